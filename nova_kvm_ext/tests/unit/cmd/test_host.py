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
import threading
from typing import Any
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext.cmd import host
from nova_kvm_ext import errors
from nova_kvm_ext.host.checks import runner
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import configuration
from nova_kvm_ext.host import facts
from nova_kvm_ext.host import install_facts
from nova_kvm_ext.tests.unit.host import fake_host

_TRIGGER = 'udevadm trigger --action=add --name-match=kvm --settle'


class HostCheckTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.host = self.useFixture(fake_host.FakeHost())
        self.stdout, self.stderr = io.StringIO(), io.StringIO()
        self.useFixture(fixtures.MonkeyPatch('sys.stderr', self.stderr))
        self.facts = self.host.facts()
        self.read = self.useFixture(fixtures.MockPatchObject(
            facts, 'read_host', side_effect=lambda *args, **kwargs:
            self.facts)).mock
        self.conf = mock.Mock(
            config_file=[], compute_driver=None,
            instances_path='/i', state_path='/s', rootwrap_config='/r',
            reserved_host_disk_mb=0)
        self.conf.libvirt = mock.Mock(connection_uri='test:///x',
                                      hw_machine_type=[])
        self.useFixture(fixtures.MockPatch(
            'nova_kvm_ext.cmd.base.load', return_value=self.conf))
        self.found = configuration.Configuration((), 'as found')
        self.useFixture(fixtures.MockPatchObject(
            configuration, 'find', side_effect=lambda files: self.found))
        self.install = self.useFixture(fixtures.MockPatchObject(
            install_facts, 'read')).mock
        self.useFixture(fixtures.MockPatch(
            'nova_kvm_ext.host.options.HostOptions.from_conf',
            return_value=self.facts.options))
        self.euid = self.useFixture(fixtures.MockPatch(
            'os.geteuid', return_value=0)).mock
        self.useFixture(fixtures.MockPatch('os.makedirs'))
        self.commands: list[list[str]] = []
        self.ran = self.useFixture(fixtures.MockPatch(
            'subprocess.run', side_effect=self.run_fix)).mock

    def run_fix(self, command: list[str], **kwargs: Any) -> mock.Mock:
        self.commands.append(command)
        return mock.Mock(returncode=0, stdout='', stderr='')

    def check(self, *arguments: str) -> tuple[int, str]:
        app = mock.Mock(stdout=self.stdout)
        app.options.debug = False
        command = host.Check(app, None)
        code = command.run(
            command.get_parser('x').parse_args(list(arguments)))
        return code, self.stdout.getvalue()

    def close(self) -> None:
        self.host.node('/dev/kvm', mode=0o600)
        self.euid.return_value = 1000
        self.read.side_effect = None
        self.facts = self.read.return_value = self.broken = self.again()
        self.euid.return_value = 0

    def again(self):
        with mock.patch.object(facts, 'read_host', self.real), \
                mock.patch('os.geteuid', return_value=1000), \
                mock.patch('subprocess.run', self.host._run):
            return self.host.facts()

    real = staticmethod(facts.read_host)

    def test_exit_codes(self):
        self.assertEqual(0, self.check()[0])
        for result, code in (('WARN', 1), ('FAIL', 2), ('SKIP', 0)):
            self.useFixture(fixtures.MockPatchObject(
                runner, 'run', return_value=[
                    verdict.CheckResult('KVM999', 'x', result, 'y')]))
            self.assertEqual(code, self.check()[0])

    def test_what_nova_compute_reads_and_its_python(self):
        self.check()
        self.install.assert_called_once_with(self.found.service)
        self.assertIs(self.install.return_value,
                      self.read.call_args.kwargs['install'])

    def test_a_configuration_that_cannot_be_used(self):
        with mock.patch.object(configuration, 'find', side_effect=(
                errors.InvalidOption('It is closed.', 'Open it.'))):
            self.assertEqual(3, self.check()[0])
        self.assertEqual('error: It is closed. Open it.\n',
                         self.stderr.getvalue())

    def test_json(self):
        self.close()
        code, out = self.check('-f', 'json')
        self.assertEqual(2, code)
        results = {result['code']: result for result in json.loads(out)}
        self.assertEqual(list(runner.codes()), list(results))
        self.assertEqual(
            {'code': 'KVM204', 'title': 'Permissions of /dev/kvm',
             'result': 'FAIL', 'remedy': _TRIGGER, 'fix': [_TRIGGER],
             'details': results['KVM204']['details']}, results['KVM204'])
        self.assertEqual([], self.commands, 'nothing is repaired unasked')

    def test_text(self):
        self.close()
        code, out = self.check()
        self.assertEqual(2, code)
        self.assertTrue(out.startswith(
            'FAIL KVM204 Permissions of /dev/kvm\n'), out)
        self.assertIn(f'\n     {_TRIGGER}\n', out)
        self.assertNotIn('PASS', out)
        self.assertIn('2 failures', out)
        self.assertLess(max(map(len, out.splitlines())), 81)

    def test_all(self):
        code, out = self.check('--all')
        self.assertEqual(0, code)
        for name in runner.codes():
            self.assertIn(f' {name} ', out)

    def test_table(self):
        self.close()
        for arguments in (('-f', 'table'), ('-c', 'Code', '-c', 'result')):
            code, out = self.check(*arguments)
            self.assertEqual(2, code)
            self.assertIn('| code ', out)
            self.assertLess(max(map(len, out.splitlines())), 81)

    def test_plain(self):
        self.close()
        for form in ('value', 'csv'):
            _, out = self.check('-f', form)
            self.assertIn(_TRIGGER, out)
            self.assertNotIn('[]', out)
            self.assertNotIn("['", out)

    def test_fix(self):
        broken, healthy = None, self.facts
        self.close()
        broken = self.broken
        self.read.side_effect = [broken, healthy]
        code, _ = self.check('--fix')
        self.assertEqual([_TRIGGER.split()], self.commands)
        self.assertEqual(0, code)
        self.assertEqual(f'+ {_TRIGGER}\n', self.stderr.getvalue())

    def test_a_fix_that_does_not_help_ends(self):
        self.close()
        self.ran.side_effect = None
        self.ran.return_value = mock.Mock(returncode=3, stdout='',
                                          stderr='not \x1b[1mallowed\n')
        code, _ = self.check('--fix')
        self.assertEqual(2, code)
        self.assertEqual(1, self.ran.call_count)
        self.assertIn('failed with exit code 3: not  [1mallowed'.replace(
            '  ', ' '), self.stderr.getvalue())

    def test_a_fix_that_is_not_installed(self):
        self.close()
        self.ran.side_effect = FileNotFoundError(2, 'No such file')
        self.assertEqual(2, self.check('--fix')[0])
        self.assertIn('No such file', self.stderr.getvalue())

    def test_fix_needs_root(self):
        self.euid.return_value = 1000
        self.assertEqual(3, self.check('--fix')[0])
        self.read.assert_not_called()
        self.assertIn('sudo', self.stderr.getvalue())

    def test_nothing_to_fix(self):
        self.assertEqual(0, self.check('--fix')[0])
        self.assertEqual([], self.commands)

    def test_libvirt_that_hangs(self):
        done = threading.Event()
        self.addCleanup(done.set)
        unasked = self.again()

        def look(options, uri, connect=None, **kwargs):
            if connect is not None:
                done.wait(60)
            return unasked

        self.read.side_effect = look
        code, out = self.check('--timeout', '1', '-f', 'json')
        self.assertEqual(1, code)
        [found] = [r for r in json.loads(out) if r['code'] == 'KVM502']
        self.assertIn('no answer within 1 s', found['details'])

    def test_a_defect_is_no_warning(self):
        self.read.side_effect = ZeroDivisionError('x')
        self.assertEqual(3, self.check()[0])
        self.assertIn('defect of nova-kvm-ext', self.stderr.getvalue())

    def test_which_timeout(self):
        for wrong in ('0', '-1', 'x', '3601'):
            self.assertRaises(SystemExit, self.check, '--timeout', wrong)
