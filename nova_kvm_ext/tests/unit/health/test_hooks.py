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

"""What the driver tells probes, and that telling never fails the driver."""

import os

import fixtures
import libvirt
from nova import exception
from nova import test
from nova.tests.fixtures import libvirt as libvirt_fixture

from nova_kvm_ext import conf
from nova_kvm_ext.health import hooks
from nova_kvm_ext.health import probe
from nova_kvm_ext.host.checks import verdict as checks


class HealthTestCase(test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        conf.register_opts(hooks.CONF)
        self.state_path = self.useFixture(fixtures.TempDir()).path
        self.flags(state_path=self.state_path, host='cmp')
        self.health = hooks.Health()

    def read(self):
        return probe.read(self.state_path)

    def start(self):
        with self.health.starting():
            pass

    def log(self):
        return self.stdlog.logger.output

    def test_nothing_is_written_before_the_start(self):
        self.health.connection(False, 'lost')
        self.health.placement_answered()
        with self.health.updating():
            pass
        self.assertEqual([], os.listdir(self.state_path))

    def test_start(self):
        with self.health.starting():
            state = self.read()
            self.assertEqual('starting', state['phase'])
            self.assertEqual((os.getpid(), 'cmp', 60), (
                state['process']['pid'], state['host'], state['interval']))
            self.assertIsNone(state['libvirt']['answers'])
        state = self.read()
        self.assertEqual('running', state['phase'])
        self.assertIs(True, state['libvirt']['answers'])

    def test_a_start_that_fails(self):
        def start():
            with self.health.starting():
                raise ValueError()

        self.assertRaises(ValueError, start)
        self.assertEqual('starting', self.read()['phase'])

    def test_intervals(self):
        for option, interval in ((0, 60), (300, 300), (-1, None)):
            self.flags(update_resources_interval=option)
            self.start()
            self.assertEqual(interval, self.read()['interval'])

    def test_update(self):
        self.start()
        with self.health.updating():
            update = self.read()['update']
            self.assertIsNone(update['finished'])
            self.assertIsNotNone(update['began'])
        update = self.read()['update']
        self.assertGreaterEqual(update['succeeded'], update['began'])
        self.assertEqual(update['succeeded'], update['finished'])
        seen = self.read()['libvirt']['seen']
        self.assertGreaterEqual(seen, update['began'])

    def failing(self, error):
        def update():
            with self.health.updating():
                raise error

        self.assertRaises(type(error), update)
        return self.read()

    def test_update_that_fails(self):
        self.start()
        state = self.failing(ValueError('a \x1b[2J' + 'b' * 999))
        self.assertIs(True, state['libvirt']['answers'])
        self.assertTrue(state['update']['error'].startswith('a [2J'))
        self.assertIsNone(state['update']['succeeded'])
        self.assertIsNotNone(state['update']['finished'])
        with self.health.updating():
            pass
        self.assertEqual('', self.read()['update']['error'])

    def test_libvirt_is_lost_and_back(self):
        self.start()
        since = self.read()['libvirt']['since']
        self.health.connection(False, 'Connection to libvirt lost: 1')
        lost = self.read()['libvirt']
        self.assertEqual((False, 'Connection to libvirt lost: 1'),
                         (lost['answers'], lost['reason']))
        self.assertGreaterEqual(lost['since'], since)
        # The first reason and its time are kept.
        state = self.failing(exception.HypervisorUnavailable())
        self.assertEqual(lost, state['libvirt'])
        self.health.connection(True, None)
        back = self.read()['libvirt']
        self.assertEqual((True, ''), (back['answers'], back['reason']))
        self.assertGreater(back['since'], lost['since'])

    def test_an_error_of_libvirt_is_an_answer(self):
        self.start()
        error = libvirt_fixture.make_libvirtError(
            libvirt.libvirtError, 'no domain', error_code=42)
        # The class takes the words of the last error of this thread.
        error.args = ('no domain',)
        state = self.failing(error)
        self.assertIs(True, state['libvirt']['answers'])
        self.assertIn('no domain', state['update']['error'])

    def test_checks(self):
        self.start()
        results = [checks.CheckResult('KVM101', 'CPU', 'PASS', 'fine'),
                   checks.CheckResult('KVM404', 'x', 'FAIL', 'full')]
        self.health.checked(results, 'Host check KVM404 x: full.')
        found = self.read()['host_check']
        self.assertEqual({'KVM101': 'PASS', 'KVM404': 'FAIL'},
                         found['results'])
        self.assertEqual('enforce', found['mode'])
        self.assertIn('KVM404', found['fault'])

    def test_placement(self):
        self.start()
        self.health.placement_answered()
        self.assertIsNotNone(self.read()['placement']['answered'])

    def test_a_full_disk_is_said_once(self):
        self.start()
        before = self.read()
        error = OSError(28, 'No space left on device')
        with fixtures.MonkeyPatch(
                'nova_kvm_ext.health.record.json.dumps',
                lambda *args: (_ for _ in ()).throw(error)):
            for _ in range(3):
                with self.health.updating():
                    pass
        self.assertEqual(1, self.log().count('KVML901'))
        self.assertIn('No space left', self.log())
        self.assertEqual(before, self.read())
        with self.health.updating():
            pass
        self.assertIn('written again', self.log())
        self.assertNotEqual(before, self.read())

    def test_a_state_path_that_is_gone(self):
        for name in 'gone', 'odd\0':
            self.flags(state_path=os.path.join(self.state_path, name))
            hooks.Health().starting().__enter__()
        self.assertEqual(2, self.log().count('KVML901'))
        self.assertEqual([], os.listdir(self.state_path))
