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


"""What a completed migration took, in one line."""

from oslotest import base

from nova_kvm_ext.migration import completed
from nova_kvm_ext.migration import verdict
from nova_kvm_ext.tests.unit.migration import test_verdict


class CompletedTestCase(base.BaseTestCase):

    def test_recorded(self):
        # libvirt has no such statistics of one that was aborted.
        ends = [trace['end'] for trace in test_verdict.read_traces()
                if trace['end']]
        self.assertGreater(len(ends), 2)
        self.assertEqual(
            'downtime 0.087 s, iterations 3, sent 92.2 MiB, throughput '
            '7.93 MiB/s, duration 13.3 s', str(completed.Completed.read(
                ends[0])))
        for end in ends:
            self.assertNotIn('not known', str(completed.Completed.read(end)))

    def test_numbers_are_libvirts(self):
        self.assertEqual(
            completed.Completed(60.5, 1.25, 7, 1 << 30, 1 << 20),
            completed.Completed.read({
                'time_elapsed': 60500, 'downtime': 1250,
                'memory_iteration': 7, 'data_processed': 1 << 30,
                'memory_bps': 1 << 20}))

    def test_nothing_is_not_known(self):
        for stats in ({}, {'downtime': None, 'memory_iteration': 'x',
                           'data_processed': -1, 'time_elapsed': True}):
            self.assertEqual(
                'downtime not known, iterations not known, sent not known, '
                'throughput not known, duration not known',
                str(completed.Completed.read(stats)))

    def test_zero_is_known(self):
        self.assertIn('downtime 0.000 s', str(completed.Completed.read(
            {'downtime': 0})))

    def test_last_look(self):
        found = completed.Completed.until(verdict.Sample(
            12.5, 4, 100, 5, 3 * 1024 ** 2, 1024 ** 2))
        self.assertEqual(
            'downtime not known, iterations 4, sent 3 MiB, throughput '
            '1 MiB/s, duration 12.5 s', str(found))
