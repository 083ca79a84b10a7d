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


"""``host check`` on hosts that are broken, and what libvirt says of them.

Each state is made for real: modules are unloaded, forbidden, the node loses
its permissions. A state's row of the fault table has what we, libvirt and
virt-host-validate say.
"""

import json
import os
import re
import subprocess
from typing import Any

import libvirt

from nova_kvm_ext import errors
from nova_kvm_ext.tests.kvm import base

_FORBIDDEN = '/etc/modprobe.d/nova-kvm-ext-test.conf'

_DOMAIN = """
<domain type='kvm'><name>fault</name><memory unit='MiB'>16</memory>
<os><type>hvm</type></os>{cpu}
<devices><controller type='usb' model='none'/><memballoon model='none'/>
{devices}</devices></domain>
"""
# As on a host that has booted and not used it: the node is systemd's.
_UNLOAD_VHOST_NET = ('modprobe -r vhost_net; systemd-tmpfiles --create --boot '
                     '--prefix=/dev/vhost-net')
VHOST = """
<interface type='ethernet'><model type='virtio'/><driver name='vhost'/>
</interface>
"""


def start(devices: str = '', cpu: str = '') -> str:
    """What libvirt says to a guest of type kvm; '' when it starts."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    connection = libvirt.open(base.URI)
    try:
        connection.createXML(
            _DOMAIN.format(devices=devices, cpu=cpu),
            libvirt.VIR_DOMAIN_START_PAUSED).destroy()
    except libvirt.libvirtError as e:
        return str(e)
    return ''


class HostCheckTestCase(base.KVMHostTestCase):

    breaks_host = True

    def setUp(self) -> None:
        super().setUp()
        self.settings('')

    def settings(self, ours: str) -> None:
        """Write nova.conf, with these lines in [kvm_ext]."""
        self.conf = os.path.join(self.directory, 'nova.conf')
        with open(self.conf, 'w') as f:
            f.write('[DEFAULT]\ncompute_driver = kvm_ext.KVMDriver\n'
                    'instances_path = /var/lib/nova/instances\n'
                    # The probe guest's answer is kept, as on any host.
                    'state_path = /var/lib/nova\n'
                    '[nova_sys_admin]\n'
                    'helper_command = sudo /opt/venv/bin/privsep-helper\n'
                    f'[kvm_ext]\nvirt_type = kvm\n{ours}')
        os.makedirs('/var/lib/nova/instances', exist_ok=True)

    def check(self, *arguments: str) -> dict[str, dict[str, Any]]:
        """What ``host check`` says, by code."""
        self.code, out, self.said = self.call(
            base.command, 'host', 'check', '-f', 'json', '--timeout', '600',
            '--config-file', self.conf, *arguments)
        self.show('host check', out + self.said)
        return {result['code']: result for result in json.loads(out)}

    def look(self, state: str, *, libvirts: str | None, devices: str = '',
             code: str | None = None, level: str = 'FAIL',
             fixed: bool = True) -> dict[str, Any]:
        """Check a state of the host from all sides, and repair it.

        :param libvirts: name of the known error that libvirt must give to a
            guest with these devices, or None where it must start it
        :param code: of the first check that must complain, or None where none
            may
        :param level: how that check complains
        :param fixed: whether ``--fix`` repairs it
        :returns: what that check said
        """
        # libvirt first: to look at a device loads its module.
        said = self.call(start, devices)
        row = errors.explain(said)
        self.assertEqual(libvirts, row and row.name, said)
        validate = subprocess.run(
            ['virt-host-validate', 'qemu'], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
        bad = _bad(self.check())
        found = bad[0] if bad else _NOTHING
        fixes = 'nothing to repair'
        if bad:
            self.assertTrue(found['remedy'])
            left = _bad(self.check('--fix'))
            fixes = f'left {left[0]["code"]}' if left else 'repaired'
            self.assertEqual(fixed, not left, self.said)
        base.say(
            'fault', state=state,
            check=' '.join(filter(None, (
                found['result'], found['code'], found['details']))),
            remedy=found['remedy'], fixed=fixes,
            libvirt=f'{errors.clean(said, 300)} ({row.name})' if row
            else 'starts the guest',
            validate='; '.join(
                ' '.join(line.split()).removeprefix('QEMU: Checking ')
                for line in validate.splitlines()
                if re.search('for hardware|/dev/kvm|vhost-net', line)))
        self.assertEqual((code, level if code else 'PASS'),
                         (found['code'], found['result']))
        return found


# That Nova will want a newer libvirt or QEMU is no fault of this host.
_VERSIONS = ('KVM503', 'KVM504')

_NOTHING = {'code': None, 'result': 'PASS', 'details': '', 'remedy': ''}


def _bad(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [result for code, result in results.items() if
            result['result'] in ('FAIL', 'WARN') and code not in _VERSIONS]


class FaultsTestCase(HostCheckTestCase):

    def test_healthy(self) -> None:
        self.look('healthy', libvirts=None, devices=VHOST)
        results = self.check()
        for code in ('KVM101', 'KVM104', 'KVM204', 'KVM205', 'KVM301',
                     'KVM302', 'KVM303', 'KVM506', 'KVM507', 'KVM508'):
            self.assertEqual('PASS', results[code]['result'])

    def test_the_command_itself(self) -> None:
        """As an operator runs it; above it is called in a forked process."""
        done = subprocess.run(
            ['nova-kvm-ext', 'host', 'check', '--all', '--config-file',
             self.conf],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.show('host check', done.stdout)
        self.assertEqual(1, done.returncode)
        self.assertRegex(done.stdout, r'PASS KVM508 ')

    def test_vhost_net_not_loaded(self) -> None:
        """Whoever opens the node loads the module."""
        self.shell(_UNLOAD_VHOST_NET)
        self.look('vhost_net is not loaded', libvirts=None, devices=VHOST)
        self.assertTrue(os.path.exists('/sys/module/vhost_net'))
        self.shell(_UNLOAD_VHOST_NET)
        self.assertEqual([], _bad(self.check()))

    def test_vhost_net_forbidden(self) -> None:
        with open(_FORBIDDEN, 'w') as f:
            f.write('install vhost_net /bin/false\n')
        self.addCleanup(self.shell, f'rm -f {_FORBIDDEN}; modprobe vhost_net')
        self.shell(_UNLOAD_VHOST_NET)
        self.settings('vhost_net = require\n')
        found = self.look(
            'vhost_net cannot be loaded', libvirts='vhost-net',
            devices=VHOST, code='KVM301', fixed=False)
        self.assertIn(_FORBIDDEN, found['remedy'])

    def test_no_vhost_net_node(self) -> None:
        self.shell('modprobe -r vhost_net; rm -f /dev/vhost-net')
        self.addCleanup(self.shell, 'modprobe vhost_net')
        self.look('there is no /dev/vhost-net', libvirts='vhost-net',
                  devices=VHOST, code='KVM301', level='WARN')

    def test_kvm_not_loaded(self) -> None:
        # Not modprobe -r, which removes kvm with it.
        self.shell('rmmod kvm_amd')
        self.addCleanup(self.shell, 'modprobe kvm_amd')
        self.look('kvm_amd is not loaded', libvirts='kvm-not-offered',
                  code='KVM104')

    def test_kvm_permissions(self) -> None:
        self.shell('chown root:root /dev/kvm; chmod 0600 /dev/kvm')
        self.addCleanup(self.shell, 'udevadm trigger --action=add '
                        '--name-match=kvm --settle')
        self.look('/dev/kvm is 0600 root:root', libvirts='kvm-permission',
                  code='KVM204')

    def test_cpu_that_this_host_cannot_give(self) -> None:
        said = self.call(start, '', """
            <cpu mode='custom' match='exact' check='full'>
            <model fallback='forbid'>Icelake-Server</model></cpu>""")
        row = errors.explain(said)
        self.assertEqual('cpu-missing', row and row.name, said)
