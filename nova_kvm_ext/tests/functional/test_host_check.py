#    Licensed under the Apache License, Version 2.0 (the "License"); you may
#    not use this file except in compliance with the License. You may obtain
#    a copy of the License at
#
#         http://www.apache.org/licenses/LICENSE-2.0
#
#    Unless required by applicable law or agreed to in writing, software
#    distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
#    WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
#    License for the specific language governing permissions and limitations
#    under the License.

"""The driver on a host whose KVM goes and comes back, and its errors.

Each process runs the real driver where a private libvirt runs: with that
one's directories and /dev. Nova's service record is in a database of its own.
"""

import grp
import json
import os
import pathlib
import sys
import textwrap
from typing import Any

import testtools

from nova_kvm_ext.tests.functional import libvirtd

# What such a process begins with. Nova's threads are not daemons, so it ends
# without waiting for them. KVM may be an emulated one on a test machine: the
# 64-bit guest that tells has tests of its own.
_BEGIN = """
import nova.cmd.compute  # first, as in the worker of guest boot
import json, logging, os, sys, traceback
from unittest import mock
directory, answer, settings = sys.argv[1:]
from nova import exception, rpc
from nova.db.main import api as db
from nova_kvm_ext.boot import cloudless
from nova_kvm_ext.host import door
from nova_kvm_ext.host import probe
from nova_kvm_ext.host import probe_answers
cloudless.configure(directory, directory, [settings])
from nova_kvm_ext import driver as kvm_driver
CONF = cloudless.CONF
rpc.init(CONF)
mock.patch.object(
    probe_answers, 'cached_run', return_value=probe.ProbeResult(
        True, 'as on a good host', 0.1)).start()
said = {}

def become_nova():
    # Not sooner: Python and this package may be where that user may not go.
    mock.patch.object(
        door, 'read_install', return_value=door.read_install()).start()
    for path, _, files in os.walk(directory):
        for name in ('', *files):
            os.chown(os.path.join(path, name), 65534, 65534)
    os.setgroups([]); os.setgid(65534); os.setuid(65534)

def record():
    found = db.service_get_by_compute_host(cloudless.context(), CONF.host)
    return [bool(found.disabled), found.disabled_reason or '']

def say(name, value):
    said[name] = value

def start():
    driver = kvm_driver.KVMDriver(cloudless.virtapi())
    try:
        driver.init_host(CONF.host)
    except Exception as e:
        say('refused', [type(e).__name__, str(e)])
    return driver

def update(name, driver):
    driver.get_available_resource(CONF.host)
    say(name, record())

try:
"""

_END = """
except BaseException:
    say('error', traceback.format_exc())
with open(answer, 'w') as f:
    json.dump(said, f)
sys.stdout.flush()
os._exit(0)
"""

_PROCESS_SECONDS = 600
"""What a process may take that imports Nova, on a busy host."""

# What an operator has, or a transport that goes nowhere.
_SETTINGS = """
[DEFAULT]
transport_url = fake:///
[libvirt]
connection_uri = {uri}
[kvm_ext]
virt_type = {virt_type}
host_check = {host_check}
"""


class HostCheckTestCase(testtools.TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.private = self.useFixture(libvirtd.PrivateLibvirt())
        if not os.path.exists('/dev/kvm'):
            self.skipTest('this host has no /dev/kvm to remove')
        self.number = 0

    def inside(self, script: str) -> None:
        self.private.run(['sh', '-ec', script])

    def take_kvm(self) -> None:
        self.inside('chown 0:0 /dev/kvm; chmod 0600 /dev/kvm')

    def give_kvm(self) -> None:
        self.inside('chgrp kvm /dev/kvm; chmod 0660 /dev/kvm')

    def process(self, body: str, virt_type: str = 'kvm',
                host_check: str = 'enforce') -> dict[str, Any]:
        """What a process with this program says."""
        self.number += 1
        directory = pathlib.Path(self.private.directory,
                                 f'nova-{self.number}')
        directory.mkdir()
        answer = directory / 'answer.json'
        settings = directory / 'nova.conf'
        settings.write_text(_SETTINGS.format(
            uri=self.private.uri, virt_type=virt_type,
            host_check=host_check))
        self.private.run([
            sys.executable, '-c',
            _BEGIN + textwrap.indent(textwrap.dedent(body), '    ') + _END,
            str(directory), str(answer), str(settings)], _PROCESS_SECONDS)
        said = json.loads(answer.read_text())
        said['log'] = (directory / 'nova.log').read_text()
        self.addDetail(f'said-{self.number}', testtools.content.text_content(
            json.dumps(said, indent=1)))
        self.assertNotIn('error', said)
        return said


class AtStartTestCase(HostCheckTestCase):

    def test_refused_until_it_is_mended(self) -> None:
        self.take_kvm()
        said = self.process('start()')
        kind, text = said['refused']
        self.assertEqual('InvalidConfiguration', kind)
        self.assertIn('KVM204 Permissions of /dev/kvm', text)
        self.assertIn('KVM205 Use of /dev/kvm', said['log'])

        self.give_kvm()
        said = self.process('start()')
        self.assertNotIn('refused', said)
        self.assertIn('0 FAIL', said['log'])

    def test_warn(self) -> None:
        self.inside('mount --no-mtab --bind /dev/null /dev/kvm')
        said = self.process('start()', host_check='warn')
        self.assertNotIn('refused', said)
        self.assertIn('KVM202', said['log'])

    def test_no_kvm_is_needed_for_qemu(self) -> None:
        self.inside('mount --no-mtab --bind /dev/null /dev/kvm')
        said = self.process("update('at first', start())", virt_type='qemu')
        self.assertNotIn('refused', said)
        self.assertIn('0 FAIL', said['log'])
        self.assertEqual([False, ''], said['at first'])

    def test_auto_goes_on_without_kvm(self) -> None:
        self.inside('mount --no-mtab --bind /dev/null /dev/kvm')
        said = self.process('''
            probe_answers.cached_run.return_value = probe.ProbeResult(
                False, 'there is none', 0.1)
            update('at first', start())
            ''', virt_type='auto')
        self.assertNotIn('refused', said)
        self.assertIn('0 FAIL', said['log'])

    def test_as_novas_user(self) -> None:
        """What that user may not know is no FAIL; what it can is one."""
        # As distributions have them.
        self.inside('chmod 0600 /etc/libvirt/qemu.conf; '
                    'chmod 0777 /run/libvirt/libvirt-sock')
        said = self.process('''
            start()
            become_nova()
            say('readable', os.access('/etc/libvirt/qemu.conf', os.R_OK))
            start()
            ''')
        self.assertEqual({'readable': False}, {
            name: value for name, value in said.items() if name != 'log'})
        # libvirt says who QEMU's user is: no warning at each start.
        self.assertNotIn('KVM201', said['log'])
        said = self.process('''
            start()
            os.chmod('/dev/kvm', 0o600)
            become_nova()
            start()
            ''')
        self.assertIn('KVM204', said['refused'][1])


class AgainTestCase(HostCheckTestCase):

    def test_kvm_goes_and_comes_back(self) -> None:
        group = grp.getgrnam('kvm').gr_gid
        said = self.process(f'''
            driver = start()
            update('at first', driver)
            os.chown('/dev/kvm', 0, 0)
            os.chmod('/dev/kvm', 0o600)
            update('gone', driver)
            # Nova enables what it finds when libvirt comes back.
            driver._handle_conn_event(True, None)
            say('libvirt is back', record())
            update('still gone', driver)
            os.chown('/dev/kvm', 0, {group})
            os.chmod('/dev/kvm', 0o660)
            update('repaired', driver)

            os.chmod('/dev/kvm', 0)
            for reason in ('new disks', 'AUTO: Connection to libvirt lost'):
                db.service_update(cloudless.context(), 1, {{
                    'disabled': True, 'disabled_reason': reason}})
                update(reason + ', gone', driver)
                os.chmod('/dev/kvm', 0o660)
                update(reason + ', repaired', driver)
                os.chmod('/dev/kvm', 0)
            ''')
        self.assertNotIn('refused', said)
        self.assertEqual([False, ''], said['at first'])
        for when in ('gone', 'still gone'):
            disabled, reason = said[when]
            self.assertTrue(disabled)
            self.assertThat(reason, testtools.matchers.StartsWith(
                'AUTO: nova-kvm-ext: Host check KVM20'))
        self.assertEqual([False, ''], said['libvirt is back'])
        self.assertEqual([False, ''], said['repaired'])
        for reason in ('new disks', 'AUTO: Connection to libvirt lost'):
            for when in ('gone', 'repaired'):
                self.assertEqual([True, reason], said[f'{reason}, {when}'])

    def test_nova_starts_again_after_it_is_mended(self) -> None:
        """The record outlives the service that wrote it."""
        said = self.process('''
            db.service_update(cloudless.context(), 1, {
                'disabled': True, 'disabled_reason':
                'AUTO: nova-kvm-ext: Host check KVM205 Use of /dev/kvm'})
            update('repaired', start())
            ''')
        self.assertEqual([False, ''], said['repaired'])


class FaultTestCase(HostCheckTestCase):

    def test_a_known_error_reaches_log_and_fault(self) -> None:
        """As Nova's compute manager has it, in Nova's own database."""
        said = self.process('''
            from nova.compute import utils as compute_utils
            from nova import objects
            driver = start()
            context = cloudless.context()
            instance = objects.Instance(
                context, uuid='11111111-2222-3333-4444-555555555555',
                task_state=None)
            try:
                driver._create_guest(context, """
                    <domain type='qemu'><name>x</name>
                    <memory unit='MiB'>16</memory>
                    <os><type machine='pc-i440fx-99.9'>hvm</type></os>
                    <devices><controller type='usb' model='none'/>
                    <memballoon model='none'/></devices></domain>
                    """, instance)
            except Exception as e:
                say('raised', [type(e).__name__, e.get_error_code(), str(e)])
                compute_utils.add_instance_fault_from_exc(
                    context, instance, e, sys.exc_info())
            fault, = db.instance_fault_get_by_instance_uuids(
                context, [instance.uuid])[instance.uuid]
            say('message', fault['message'])
            say('details', fault['details'])
            ''', virt_type='qemu')
        kind, code, text = said['raised']
        self.assertEqual(('libvirtError', 67), (kind, code))
        self.assertEqual(
            "unsupported configuration: Emulator '/usr/bin/qemu-system-x86_64"
            "' does not support machine type 'pc-i440fx-99.9'", text)
        self.assertEqual('libvirtError', said['message'])
        for found in (said['log'], said['details']):
            self.assertIn(text, found)
            self.assertIn('Compare [libvirt] hw_machine_type', found)
        self.assertIn('11111111-2222-3333-4444-555555555555', said['log'])
