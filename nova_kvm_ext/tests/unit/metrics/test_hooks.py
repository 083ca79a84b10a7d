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

from nova_kvm_ext import counters
from nova_kvm_ext.guest_agent import hooks as guest_agent_hooks
from nova_kvm_ext import log
from nova_kvm_ext.metrics import counted
from nova_kvm_ext.metrics import hooks
from nova_kvm_ext.metrics import names
from nova_kvm_ext.storage import consistency
from nova_kvm_ext.storage import counting
from nova_kvm_ext.tests.unit import driver_base

LOG = log.getLogger(guest_agent_hooks.__name__)


class CountingTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(log, '_listeners', []))
        self.useFixture(fixtures.MockPatchObject(counters.atexit, 'register'))
        self.drvr = self.started()
        self.useFixture(fixtures.MockPatchObject(
            counters, 'COUNTERS', counters.Counters()))
        hooks.start('here')

    def counted(self, metric: names.Metric) -> dict[tuple[str, ...], int]:
        counters.COUNTERS.flush()
        found = counted.read(counted.path(hooks.CONF.state_path, 'here'))
        return {} if found is None else {
            key: number for key, number in
            found.counters[metric.name].items() if number}

    def test_messages_by_code_also_those_that_repeat_themselves(self):
        for _ in range(3):
            LOG.warning('KVML403 The snapshot is not quiesced: %s', 'x')
        LOG.info('KVML404 is no warning')
        # A message may quote what a guest wrote.
        LOG.warning('%s', 'KVML999 of a guest')
        LOG.warning('%s', 'KVM101 CPU: cannot')
        self.assertEqual({('KVML403',): 3, ('KVM101',): 1},
                         self.counted(names.LOGGED))

    def test_snapshots(self):
        reason = consistency.Reason
        with self.drvr._snapshots.taking('image'):
            self.drvr._snapshots._learn(
                consistency.Consistency(reason.COLD))
        self.assertRaises(ValueError, self.fail_taking)
        counting.snapshot('volume', consistency.Consistency(reason.FROZEN))
        self.assertEqual(
            {('image', 'no', 'cold', 'made'): 1,
             ('image', 'unknown', 'not_asked', 'failed'): 1,
             ('volume', 'yes', 'frozen', 'made'): 1},
            self.counted(names.SNAPSHOTS))

    def fail_taking(self) -> None:
        with self.drvr._snapshots.taking('image'):
            raise ValueError

    def test_kept_by_the_periodic_update(self):
        counters.COUNTERS.add(names.REFUSALS, 'mbr')
        counters.COUNTERS.add(names.REFUSALS, 'mbr')
        self.drvr.get_available_resource('node')
        found = counted.read(counted.path(hooks.CONF.state_path, 'here'))
        self.assertEqual({('mbr',): 2}, found.counters[names.REFUSALS.name])
