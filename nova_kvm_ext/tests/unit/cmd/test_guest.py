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

import io
import json
import os
from typing import Any
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext.boot.spec import Spec
from nova_kvm_ext.boot import supervisor
from nova_kvm_ext.cmd import guest
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode
from nova_kvm_ext.host import configuration
from nova_kvm_ext.host import service

DOMAIN = {
    'virt_type': 'qemu', 'arch': 'x86_64', 'machine': 'pc-i440fx-7.2',
    'emulator': '/usr/bin/qemu-system-x86_64', 'vcpus': 1,
    'memory_kib': 262144, 'cpu': '<cpu/>', 'cpu_mode': 'custom',
    'cpu_model': 'Nehalem', 'agent_channel': True, 'interfaces': []}
STEP = {'name': 'nova', 'details': 'release 34', 'seconds': 1.25}
CHECK = {'name': 'vcpus', 'result': 'PASS', 'details': '1 promised, 1 seen'}
# doc/source/cli/guest-boot.rst, JSON
MEMBERS = ['result', 'exit_code', 'seconds', 'virt_type', 'machine',
           'cpu_mode', 'cpu_model', 'error', 'config_files', 'checks',
           'vulnerabilities', 'steps', 'domain', 'xml']


class GuestBootTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.stdout, self.stderr = io.StringIO(), io.StringIO()
        self.useFixture(fixtures.MonkeyPatch('sys.stdout', self.stdout))
        self.useFixture(fixtures.MonkeyPatch('sys.stderr', self.stderr))
        self.euid = self.useFixture(fixtures.MockPatch(
            'os.geteuid', return_value=0)).mock
        self.events: list[dict[str, Any]] = []
        self.code: Any = 0
        self.supervisor = self.useFixture(fixtures.MockPatchObject(
            supervisor, 'boot', side_effect=self.supervised)).mock
        self.found = configuration.Configuration(
            (), 'as found', service.Service())
        self.useFixture(fixtures.MockPatchObject(
            configuration, 'find', side_effect=lambda given: (
                configuration.Configuration(tuple(given)) if given else
                self.found)))

    def supervised(self, options, on_event):
        for event in self.events:
            on_event(dict(event))
        if isinstance(self.code, Exception):
            raise self.code
        return self.code

    def boot(self, *arguments: str) -> int:
        command = guest.Boot(
            mock.Mock(stdout=self.stdout, stderr=self.stderr), None)
        parser = command.get_parser('nova-kvm-ext guest boot')
        return command.run(parser.parse_args(arguments))

    def options(self, *arguments: str) -> Spec:
        """What the supervisor is told."""
        self.boot(*arguments)
        return self.supervisor.call_args.args[0]

    def happens(self, kind: str, **data: Any):
        self.events.append({'event': kind, **data})


class ArgumentsTestCase(GuestBootTestCase):

    def test_what_nova_compute_reads(self):
        self.found = configuration.Configuration(
            ('/etc/nova/nova.conf', '/etc/nova/nova-compute.conf'),
            'as found', service.Service(
                environment={'OS_LIBVIRT__CPU_MODE': 'none'}),
            ('A note.',))
        self.useFixture(fixtures.EnvironmentVariable('OS_LIBVIRT__CPU_MODE'))
        found = self.options('-f', 'json')
        self.assertEqual(list(self.found.files), found.config_files)
        # It is theirs to say.
        self.assertEqual('', found.settings)
        self.assertEqual(list(self.found.files), json.loads(
            self.stdout.getvalue())['config_files'])
        for words in ('A note.', 'configuration: /etc/nova/nova.conf, '
                      '/etc/nova/nova-compute.conf (as found)'):
            self.assertIn(words, self.stderr.getvalue())
        # The worker inherits it.
        self.assertEqual('none', os.environ['OS_LIBVIRT__CPU_MODE'])

    def test_a_configuration_that_cannot_be_used(self):
        with mock.patch.object(
                configuration, 'find',
                side_effect=errors.InvalidOption('It is.')):
            self.assertEqual(ExitCode.USAGE, self.boot())
        self.supervisor.assert_not_called()

    def test_defaults(self):
        self.assertEqual(
            Spec(
                config_files=[], settings='[kvm_ext]\nvirt_type = auto\n',
                image=None, disk_format=None,
                properties={}, extra_specs={},
                vcpus=1, memory_mb=256, bridge=None, timeout=300,
                expect='login:', cache_dir='/var/cache/nova-kvm-ext',
                xml_only=False, keep=False),
            self.options())

    def test_all(self):
        self.useFixture(fixtures.MockPatch('os.getcwd', return_value='/here'))
        self.assertEqual(
            Spec(
                config_files=['/here/a.conf', '/b.conf'],
                settings='[kvm_ext]\ncpu_mode = maximum\n'
                         '[DEFAULT]\ndebug = a=b c\n[libvirt]\nx = \n',
                image='/here/x.qcow2', disk_format='qcow2',
                properties={'hw_disk_bus': 'ide', 'a': 'b=c', 'empty': ''},
                extra_specs={'hw:cpu_sockets': '2'}, vcpus=4, memory_mb=1024,
                bridge='br-ex.100', timeout=7, expect='ready', cache_dir='/c',
                xml_only=True, keep=True),
            self.options(
                '--config-file', 'a.conf', '--config-file', '/b.conf',
                '--set', 'kvm_ext.cpu_mode=maximum', '--set', 'debug=a=b c',
                '--set', 'libvirt.x=', '--image', 'x.qcow2',
                '--disk-format', 'qcow2', '--property', 'hw_disk_bus=ide',
                '--property', 'a=b=c', '--property', 'empty=',
                '--extra-spec', 'hw:cpu_sockets=2', '--vcpus', '4',
                '--memory', '1024', '--nic', 'bridge=br-ex.100', '--timeout',
                '7', '--expect', 'ready', '--cache-dir', '/c', '--xml',
                '--keep'))

    def test_bad_values(self):
        for option, values in (
                ('--vcpus', ('0', '-1', '1.5', 'x', '', '9' * 5000)),
                ('--memory', ('0', '1G', '\u00b2')),
                ('--timeout', ('0', '-5', 'inf', 'nan')),
                ('--nic', ('br0', 'bridge=', 'bridge=a/b', 'bridge=a b',
                           'bridge=..', 'bridge=' + 'x' * 16, 'bridge=a:b',
                           'tap=x', '')),
                ('--property', ('x', '=y', '')),
                ('--extra-spec', ('x', '=y', '')),
                ('--set', ('x', 'a.b', '.b=c', 'a.=c', 'a.b.c=d', '=c',
                           'a.b=c\n[x]', 'a\n.b=c', 'a.b=c\r', 'a]b.c=d'))):
            for value in values:
                self.stderr.truncate(0)
                error = self.assertRaises(
                    SystemExit, self.boot, f'{option}={value}')
                self.assertEqual(2, error.code)  # argparse's
                said = self.stderr.getvalue()
                self.assertIn(f'argument {option}', said)
                self.assertIn(repr(value), said)
        self.supervisor.assert_not_called()

    def test_no_argument_is_left_over(self):
        error = self.assertRaises(SystemExit, self.boot, 'x.qcow2')
        self.assertEqual(2, error.code)  # argparse's
        self.assertIn('x.qcow2', self.stderr.getvalue())

    def test_virt_type_is_auto_only_where_nobody_chose(self):
        for arguments in (('--set', 'kvm_ext.virt_type=kvm'),
                          ('--set', 'libvirt.virt_type=qemu'),
                          ('--config-file', '/x.conf')):
            self.assertNotIn('auto', self.options(*arguments).settings)
        for arguments in (('--set', 'kvm_ext.cpu_mode=maximum'),
                          ('--set', 'virt_type=kvm')):
            self.assertTrue(self.options(*arguments).settings.endswith(
                '[kvm_ext]\nvirt_type = auto\n'))

    def test_connect(self):
        self.assertTrue(self.options('--connect', 'qemu:///x').settings
                        .startswith('[libvirt]\nconnection_uri = qemu:///x'))

    def test_properties(self):
        for wanted, arguments in (
                ({'a': 'b'}, ('--property', 'a=b')),
                ({'hw_qemu_guest_agent': 'no'},
                 ('--property', 'hw_qemu_guest_agent=no')),
                ({}, ('--image', '/x.raw')),
                ({'hw_qemu_guest_agent': 'yes'},
                 ('--image', '/x.raw', '--property',
                  'hw_qemu_guest_agent=yes'))):
            self.assertEqual(wanted, self.options(*arguments).properties)

    def test_nic_none(self):
        self.assertIsNone(self.options('--nic', 'none').bridge)

    def test_help_tells_the_exit_codes(self):
        error = self.assertRaises(SystemExit, self.boot, '--help')
        self.assertEqual(0, error.code)
        self.assertIn('Exit codes: 0 the guest has everything',
                      self.stdout.getvalue())


class OutputTestCase(GuestBootTestCase):

    def result(self, *arguments: str) -> dict[str, Any]:
        self.boot('-f', 'json', *arguments)
        return json.loads(self.stdout.getvalue())

    def everything(self):
        self.happens('left', text='An earlier boot was killed.')
        self.happens('progress', text='building')
        self.happens('step', **STEP)
        self.happens('log', level='WARNING', text='libvirt is old')
        self.happens('domain', **DOMAIN)
        self.happens('vulnerabilities', found={'mds': 'Vulnerable'})
        self.happens('check', **CHECK)
        self.happens('kept', text='Kept. To remove it: x')

    def test_json(self):
        self.everything()
        found = self.result()
        self.assertEqual(MEMBERS, list(found))
        self.assertIsInstance(found.pop('seconds'), float)
        self.assertEqual(
            {'result': 'PASS', 'exit_code': 0, 'virt_type': 'qemu',
             'machine': 'pc-i440fx-7.2', 'cpu_mode': 'custom',
             'cpu_model': 'Nehalem', 'error': None,
             'config_files': [], 'checks': [CHECK],
             'vulnerabilities': {'mds': 'Vulnerable'}, 'steps': [STEP],
             'domain': DOMAIN, 'xml': None}, found)

    def test_json_of_a_failure(self):
        self.code = ExitCode.NO_BOOT
        self.happens('error', text='It was "refused"\n\x1b.')
        found = self.result()
        self.assertEqual(MEMBERS, list(found))
        self.assertEqual(('FAIL', 4, 'It was "refused"\n\x1b.', None, None),
                         (found['result'], found['exit_code'], found['error'],
                          found['domain'], found['cpu_model']))

    def test_json_of_xml(self):
        self.happens('xml', text='<domain>\n</domain>')
        self.assertEqual('<domain>\n</domain>', self.result('--xml')['xml'])

    def test_table(self):
        self.everything()
        self.boot()
        said = self.stdout.getvalue()
        for word in ('| result', 'PASS', 'exit_code', 'Nehalem',
                     'pc-i440fx-7.2'):
            self.assertIn(word, said)
        # People have seen these as they happened.
        for word in ('steps', 'checks', 'domain', 'xml', 'error'):
            self.assertNotIn(word, said)

    def test_progress(self):
        self.everything()
        self.boot()
        self.assertEqual(
            ['left     An earlier boot was killed.',
             'progress building',
             'nova        1.2 s  release 34',
             'warning  libvirt is old',
             'PASS     vcpus: 1 promised, 1 seen',
             'kept     Kept. To remove it: x'],
            self.stderr.getvalue().splitlines())

    def test_xml_only(self):
        self.happens('step', **STEP)
        self.happens('xml', text='<domain/>')
        self.assertEqual(0, self.boot('--xml'))
        self.assertEqual('<domain/>\n', self.stdout.getvalue())

    def test_xml_that_could_not_be_made(self):
        self.code = ExitCode.USAGE
        self.happens('error', text='Wrong.')
        self.assertEqual(3, self.boot('--xml'))
        self.assertIn('FAIL', self.stdout.getvalue())

    def test_one_value(self):
        self.everything()
        self.boot('-f', 'value', '-c', 'cpu_model')
        self.assertEqual('Nehalem\n', self.stdout.getvalue())


class ExitCodeTestCase(GuestBootTestCase):

    def test_passed_through(self):
        for code in (*ExitCode, 130, 143):
            self.code = code
            self.stdout.seek(0)
            self.stdout.truncate(0)
            self.assertEqual(code, self.boot('-f', 'json'))
            found = json.loads(self.stdout.getvalue())
            self.assertEqual(code, found['exit_code'])
            self.assertEqual('FAIL' if code else 'PASS', found['result'])

    def test_not_root(self):
        self.euid.return_value = 1000
        self.assertEqual(ExitCode.HOST, self.boot('-f', 'json'))
        self.supervisor.assert_not_called()
        found = json.loads(self.stdout.getvalue())
        self.assertEqual(3, found['exit_code'])
        self.assertEqual('guest boot needs root, for the taps, disks and '
                         'logs of a guest. Run it with sudo.',
                         found['error'])
        self.assertIn('ERROR    guest boot needs root',
                      self.stderr.getvalue())

    def test_host_error(self):
        self.code = errors.HostError('No busybox.', 'Install it.')
        self.assertEqual(ExitCode.HOST, self.boot())
        self.assertEqual('ERROR    No busybox. Install it.\n',
                         self.stderr.getvalue())
        self.assertIn('FAIL', self.stdout.getvalue())
