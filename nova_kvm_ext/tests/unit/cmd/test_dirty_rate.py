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


"""guest dirty-rate: what it asks for, prints and exits with."""

import contextlib
import io
import json
from typing import Any
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext.cmd import base as cmd_base
from nova_kvm_ext.cmd import main
from nova_kvm_ext.migration import dirty_rate as measuring
from nova_kvm_ext.migration import forecast

MIB = 1024 * 1024


class DirtyRateTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.domain = mock.Mock()
        self.domain.name.return_value = 'instance-00000001'
        self.domain.UUIDString.return_value = 'a-uuid'
        self.domain.info.return_value = [1, 1024 * 1024, 1024 * 1024, 1, 0]
        self.useFixture(fixtures.MockPatch(
            'nova_kvm_ext.cmd.agent.find', return_value=self.domain))
        self.useFixture(fixtures.MockPatchObject(
            cmd_base, 'libvirt_connection',
            return_value=contextlib.nullcontext('the connection')))
        nova = mock.Mock()
        nova.libvirt = mock.Mock(
            live_migration_bandwidth=8, live_migration_downtime=500,
            connection_uri='')
        self.useFixture(fixtures.MockPatchObject(
            cmd_base, 'read_conf', return_value=nova))
        self.measure = self.useFixture(fixtures.MockPatchObject(
            measuring, 'measure', side_effect=self.measured)).mock
        self.rates = {10: 1, 1: 2}

    def measured(self, connection: Any, domain: Any, seconds: int
                 ) -> forecast.Measured:
        return forecast.Measured(
            seconds, MIB * self.rates.get(seconds, 1))

    def run_command(self, *arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main.main(['guest', 'dirty-rate', 'x', *arguments])
        return code, out.getvalue(), err.getvalue()

    def test_converges(self):
        code, out, err = self.run_command('-f', 'json')
        self.assertEqual(0, code, err)
        found = json.loads(out)
        self.assertEqual({
            'name': 'instance-00000001', 'uuid': 'a-uuid',
            'seconds': 10, 'dirty_rate': 1,
            'dirty_rate_short': 2, 'memory': 1024, 'bandwidth': 8,
            'first_iteration': 128, 'downtime_allowed': 0.5,
            'verdict': 'will converge'},
            {key: value for key, value in found.items() if key not in (
                'details', 'left', 'downtime', 'bandwidth_needed')})
        self.assertEqual([10, 1], [call.args[2] for call in
                                   self.measure.call_args_list])

    def test_stalls(self):
        self.rates = {10: 30, 1: 30}
        code, out, _ = self.run_command('-f', 'json')
        self.assertEqual(2, code)
        self.assertEqual('will not converge', json.loads(out)['verdict'])

    def test_not_known(self):
        self.rates = {10: 8, 1: 8}
        self.assertEqual(3, self.run_command()[0])

    def test_paused(self):
        self.rates = {10: 0, 1: 0}
        self.domain.info.return_value[0] = 3
        code, out, _ = self.run_command('-f', 'json')
        self.assertEqual(0, code)
        self.assertIn('is paused', json.loads(out)['details'])

    def test_options(self):
        self.rates = {5: 30, 1: 30}
        code, out, _ = self.run_command(
            '-f', 'json', '--seconds', '5', '--bandwidth', '100',
            '--downtime', '900')
        self.assertEqual(0, code)
        found = json.loads(out)
        self.assertEqual((100, 0.9), (found['bandwidth'],
                                      found['downtime_allowed']))

    def test_wrong_arguments(self):
        for wrong in (('--seconds', '1'), ('--seconds', '61'),
                      ('--bandwidth', '0'), ('--downtime', 'x')):
            self.assertEqual(3, self.run_command(*wrong)[0], wrong[0])
        self.measure.assert_not_called()

    def test_table_is_readable(self):
        code, out, _ = self.run_command()
        self.assertIn('8 MiB/s', out)
        self.assertIn('0.5 s', out)
        self.assertLessEqual(max(map(len, out.splitlines())), 80)

    def test_libvirt_fails(self):
        error = type('E', (Exception,), {'get_error_code': lambda self: 55})
        self.measure.side_effect = error('domain is not running')
        code, _, err = self.run_command()
        self.assertEqual(3, code)
        self.assertIn('error: ', err)
