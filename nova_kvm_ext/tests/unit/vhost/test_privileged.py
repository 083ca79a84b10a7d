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

import fixtures
import nova.privsep
from oslo_concurrency import processutils
from oslotest import base

from nova_kvm_ext.host import model
from nova_kvm_ext.vhost import privileged


class PrivilegedTestCase(base.BaseTestCase):
    """In this process, as privsep would run it in its daemon."""

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(
            nova.privsep.sys_admin_pctxt, 'client_mode', False))

    def modprobe(self, **effect: object) -> str:
        with fixtures.MockPatchObject(
                processutils, 'execute', **effect) as execute:
            said = privileged.modprobe('vhost_net')
        execute.mock.assert_called_once_with('modprobe', 'vhost_net')
        return said

    def test_the_daemon_takes_them_for_its_own(self):
        for function in (privileged.read_device, privileged.modprobe,
                         privileged.read_fall_backs):
            self.assertTrue(
                nova.privsep.sys_admin_pctxt.is_entrypoint(function))

    def test_device(self):
        self.assertEqual(
            model.DeviceFacts('/no/such', present=False),
            model.DeviceFacts(*privileged.read_device('/no/such')))

    def test_log(self):
        self.assertIsNone(privileged.read_fall_backs('no-such-guest'))

    def test_loaded(self):
        self.assertEqual('', self.modprobe(return_value=('', '')))

    def test_modprobes_own_words(self):
        said = self.modprobe(side_effect=processutils.ProcessExecutionError(
            stderr='modprobe: FATAL: Module vhost_net not found in directory '
            '/lib/modules/6.1.0\n\x1b[0m', exit_code=1))
        self.assertEqual('modprobe: FATAL: Module vhost_net not found in '
                         'directory /lib/modules/6.1.0 [0m', said)

    def test_no_words(self):
        self.assertEqual('exit code 1', self.modprobe(
            side_effect=processutils.ProcessExecutionError(exit_code=1)))

    def test_no_modprobe(self):
        self.assertIn('No such file', self.modprobe(
            side_effect=FileNotFoundError(2, 'No such file or directory')))

    def test_may_not_run_it(self):
        self.assertIn('Permission denied', self.modprobe(
            side_effect=PermissionError(13, 'Permission denied')))
