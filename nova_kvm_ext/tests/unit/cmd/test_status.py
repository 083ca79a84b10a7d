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

"""``nova-kvm-ext-status upgrade check``."""

import contextlib
import io
import json
import subprocess
import textwrap
from typing import Any
from unittest import mock

import fixtures
import libvirt
from nova import conf as nova_conf
from oslo_config import cfg
from oslo_upgradecheck import upgradecheck
from oslotest import base

from nova_kvm_ext.cmd import status
from nova_kvm_ext import conf
from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import channel
from nova_kvm_ext.guests import model
from nova_kvm_ext.guests import survey
from nova_kvm_ext.guests import verdicts
from nova_kvm_ext.host.checks import runner
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import facts

PASSED = [verdict.CheckResult(code, title, verdict.PASS, 'well')
          for code, title in runner.codes().items()]


class StatusTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.results = list(PASSED)
        self.mocked(facts, 'read_host')
        self.mocked(runner, 'run').side_effect = lambda found: self.results
        self.mocked(status.base, 'libvirt_connection').side_effect = (
            lambda uri: contextlib.nullcontext())
        self.look = self.mocked(survey, 'look')
        self.look.return_value = survey.Survey((), model.Today())
        self.version = self.mocked(status.metadata, 'version')
        self.version.return_value = '34.0.0'
        self.contract = self.mocked(subprocess, 'run')
        self.contract.return_value = self.ended('[]')
        # Its command line is registered for good, once in a process.
        self.conf = cfg.ConfigOpts()
        self.conf.register_opts(
            [cfg.StrOpt('virt_type', default='kvm'), cfg.StrOpt('cpu_mode'),
             cfg.ListOpt('cpu_models', default=[]),
             cfg.ListOpt('cpu_model_extra_flags', default=[]),
             cfg.ListOpt('hw_machine_type'),
             cfg.StrOpt('images_type', default='default'),
             cfg.StrOpt('images_rbd_pool', default='rbd'),
             cfg.StrOpt('images_rbd_ceph_conf', default=''),
             cfg.StrOpt('rbd_user'), cfg.StrOpt('rbd_secret_uuid'),
             cfg.BoolOpt('live_migration_permit_post_copy', default=False),
             cfg.StrOpt('connection_uri', default='')], group='libvirt')
        for name in ('compute_driver', 'instances_path', 'state_path',
                     'rootwrap_config'):
            self.conf.register_opt(cfg.StrOpt(name, default='/none'))
        self.conf.register_opt(
            cfg.IntOpt('reserved_host_disk_mb', default=0))
        self.conf.register_opt(
            cfg.BoolOpt('disable_rootwrap', default=False),
            group='workarounds')
        self.useFixture(fixtures.MockPatchObject(
            nova_conf, 'CONF', self.conf))
        self.useFixture(fixtures.MockPatchObject(
            upgradecheck, 'CONF', self.conf))
        self.directory = self.useFixture(fixtures.TempDir())
        self.file = self.directory.join('nova.conf')
        self.write('')

    def mocked(self, where: Any, name: str) -> mock.Mock:
        return self.useFixture(fixtures.MockPatchObject(where, name)).mock

    @staticmethod
    def ended(stdout: str, code: int = 0,
              stderr: str = '') -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], code, stdout, stderr)

    def write(self, text: str) -> None:
        with open(self.file, 'w') as f:
            f.write(textwrap.dedent(text))

    def become(self, code: str, result: str) -> None:
        """Give a check another result."""
        self.results = [
            verdict.CheckResult(code, found.title, result, 'it is so',
                                'repair it') if found.code == code else found
            for found in self.results]

    def check(self) -> tuple[int, dict[str, tuple[int, str]]]:
        """The exit code, and code and details by check."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            code = status.main(
                ['--config-file', self.file, 'upgrade', 'check', '--json'])
        return code, {
            found['check']: (found['result'], found['details'])
            for found in json.loads(said.getvalue())['checks']}

    def one(self, name: str) -> tuple[int, str]:
        """The code and details of a check; all others pass."""
        code, found = self.check()
        self.assertEqual(code, found[name][0])
        self.assertEqual({0}, {other for check, (other, _) in found.items()
                               if check != name})
        return found[name]

    def test_nothing_to_do(self):
        code, found = self.check()
        self.assertEqual(0, code)
        # The one piece of information that needs no action.
        self.assertIn(channel.MASAKARI_EXPRESSION,
                      found.pop('Guest agents and Masakari')[1])
        self.assertEqual({(0, None)}, set(found.values()))

    def test_table(self):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            self.assertEqual(0, status.main(
                ['--config-file', self.file, 'upgrade', 'check']))
        self.assertIn('Check: Nova release', said.getvalue())

    def test_nova_release(self):
        for version, code in (('30.1.0', 2), ('31.0.0', 0), ('34.9.1', 0),
                              ('35.0.0.0rc1', 1)):
            self.version.return_value = version
            found = status.Checks()._nova_release()
            self.assertEqual(code, found.code, version)
            if code:
                self.assertIn(version, found.details)

    def test_interface_that_has_moved(self):
        self.contract.return_value = self.ended(
            'Nova talks\n["LibvirtDriver._create_guest is gone"]\n')
        code, details = self.one('Interface to Nova')
        self.assertEqual(2, code)
        self.assertIn('_create_guest is gone', details)

    def test_driver_that_does_not_import(self):
        self.contract.return_value = self.ended(
            '', 1, 'Traceback\nImportError: no name x\x1b[31m in nova\n')
        code, details = self.one('Interface to Nova')
        self.assertEqual(2, code)
        self.assertIn('ImportError: no name x [31m in nova', details)

    def test_driver_not_beside_nova(self):
        self.become('KVM401', verdict.FAIL)
        self.assertEqual(
            (2, 'KVM401 Driver found by Nova: it is so (remedy: repair it)'),
            self.one('Driver found by Nova'))

    def test_refused_options(self):
        self.become('KVM402', verdict.FAIL)
        self.assertEqual(2, self.one('Options of nova.conf')[0])

    def test_options_that_there_are_not(self):
        self.write('''
            [kvm_ext]
            virt_type = qemu
            cpu_modell = x
            [libvirt]
            anything = 1
            ''')
        code, details = self.one('Options of nova.conf')
        self.assertEqual(1, code)
        self.assertIn(f'cpu_modell in {self.file}', details)
        self.assertNotIn('virt_type', details)
        self.assertNotIn('anything', details)

    def test_every_option_is_known(self):
        self.write('[kvm_ext]\n' + ''.join(
            f'{option.name} = {option.default or "kvm"}\n'
            for option in conf.list_opts()[0][1]
            if option.name not in ('cpu_mode', 'cpu_model')))
        self.assertEqual(0, self.check()[0])

    def test_versions(self):
        self.become('KVM504', verdict.WARN)
        code, details = self.one('Versions of libvirt and QEMU')
        self.assertEqual(1, code)
        self.assertIn('KVM504', details)

    def test_host(self):
        self.become('KVM101', verdict.WARN)
        self.become('KVM205', verdict.FAIL)
        code, details = self.one('Host checks')
        self.assertEqual(2, code)
        self.assertLess(details.index('KVM205'), details.index('KVM101'))

    def test_each_check_of_the_host_is_told_once(self):
        conf.register_opts(self.conf)
        self.conf(['--config-file', self.file])
        for code in runner.codes():
            self.results = list(PASSED)
            self.become(code, verdict.FAIL)
            commands = status.Checks()
            self.assertEqual(1, [
                check(commands).code for _, check in
                commands._upgrade_checks].count(upgradecheck.Code.FAILURE))

    def test_guests_with_an_older_qemu(self):
        old = verdicts.judge(model.Guest(
            'u', 'instance-1', process=model.Process(7, 'S', replaced=True)),
            model.Today())
        gone = verdicts.judge(model.Guest(
            'v', 'instance-2', arch='x', machine='pc-1.0'), model.Today(
                machines={'x': {'pc': model.Machine('pc')}}))
        self.look.return_value = survey.Survey((old, gone), model.Today())
        code, details = self.one('Guests that run')
        self.assertEqual(1, code)
        said = ' '.join(details.split())
        self.assertIn('1 guest runs an older QEMU (instance-1)', said)

    def test_many_guests_with_an_older_qemu(self):
        old = verdicts.judge(model.Guest(
            'u', 'instance-1', process=model.Process(7, 'S', replaced=True)),
            model.Today())
        self.look.return_value = survey.Survey((old,) * 23, model.Today())
        _, details = self.one('Guests that run')
        self.assertIn('23 guests run an older QEMU',
                      ' '.join(details.split()))

    def test_guests_of_a_libvirt_that_is_down(self):
        error = libvirt.libvirtError('down')
        self.look.side_effect = error
        self.assertEqual(0, self.check()[0])

    def masakari(self, text: str | None) -> tuple[Any, str]:
        directory = self.useFixture(fixtures.TempDir()).path
        if text is not None:
            with open(f'{directory}/masakarimonitors.conf', 'w') as f:
                f.write(textwrap.dedent(text))
        self.useFixture(fixtures.MockPatchObject(
            status, '_MASAKARI_FILES', (f'{directory}/*monitors*.conf',)))
        found = status.Checks()._masakari()
        return found.code, found.details

    def test_masakari(self):
        section = '[introspectiveinstancemonitor]\n'
        option = f'{section}qemu_guest_agent_sock_path = '
        for text, code in (
                # Not seen: information, no warning that never goes away.
                (None, upgradecheck.Code.SUCCESS),
                ('[host]\ndisable_ipmi_check = true\n',
                 upgradecheck.Code.SUCCESS),
                ('no configuration at all', upgradecheck.Code.SUCCESS),
                (section, upgradecheck.Code.WARNING),
                (f'{option}{channel.MASAKARI_DEFAULT}\n',
                 upgradecheck.Code.WARNING),
                # Half of the paths.
                (f'{option}/var/lib/libvirt/qemu/.*guest_agent.*\n',
                 upgradecheck.Code.WARNING),
                (f'{option}(\n', upgradecheck.Code.WARNING),
                (f'{option}{channel.MASAKARI_EXPRESSION}\n',
                 upgradecheck.Code.SUCCESS)):
            found, details = self.masakari(text)
            self.assertEqual(code, found, text)
            if text != f'{option}{channel.MASAKARI_EXPRESSION}\n':
                self.assertIn(channel.MASAKARI_EXPRESSION, details)
            else:
                self.assertIsNone(details, text)

    def test_no_such_file(self):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            self.assertEqual(255, status.main(
                ['--config-file', '/none.conf', 'upgrade', 'check']))
        self.assertIn('/none.conf', said.getvalue())

    def test_a_wrong_command_line_is_no_failure(self):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            self.assertEqual(255, status.main(['--fly']))
        self.assertIn('usage:', said.getvalue())

    def test_a_defect(self):
        self.version.side_effect = errors.HostError('no')
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(255, status.main(
                ['--config-file', self.file, 'upgrade', 'check']))
