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

import ddt
from oslotest import base

from nova_kvm_ext.storage import consistency

Reason = consistency.Reason


@ddt.ddt
class ConsistencyTestCase(base.BaseTestCase):

    def test_every_reason_has_its_answer(self):
        self.assertEqual(set(Reason), set(consistency.QUIESCED_BY_REASON))
        self.assertEqual(
            [Reason.FROZEN], [reason for reason in Reason if
                              consistency.Consistency(reason).quiesced])

    def test_all_properties_are_always_written(self):
        """What is not overwritten is inherited from another image."""
        for reason in Reason:
            found = consistency.Consistency(reason).properties()
            self.assertEqual(consistency.PROPERTIES, tuple(found))
            for value in found.values():
                self.assertTrue(value)
                # Glance's limit for a value that can be searched for.
                self.assertLess(len(value), 255)

    def test_nothing_known(self):
        self.assertEqual({
            'kvm_ext_quiesced': 'unknown',
            'kvm_ext_quiesced_reason': 'quiescing was not tried',
            'kvm_ext_frozen_seconds': '0.00',
            'kvm_ext_guest_agent_version': 'unknown',
        }, consistency.Consistency().properties())

    @ddt.data(
        (Reason.FROZEN, 0.314, '0.31'), (Reason.FROZEN, None, 'unknown'),
        (Reason.NOT_SAID, 1.0, '1.00'), (Reason.THAWED, 3.0, '3.00'),
        (Reason.NOT_FROZEN, None, 'unknown'), (Reason.COLD, 7.0, '0.00'),
        (Reason.NO_AGENT, None, '0.00'), (Reason.NOT_RUNNING, None, '0.00'))
    @ddt.unpack
    def test_seconds(self, reason, seconds, expected):
        self.assertEqual(expected, consistency.Consistency(
            reason, seconds).frozen_seconds)

    @ddt.data(
        ('7.2.22', '7.2.22'), ('10.0.2.1', '10.0.2.1'),
        ('7.2.22 (Debian 1:7.2+dfsg-7)', '7.2.22'), ('100.0.0.0', '100.0.0.0'),
        ('', 'unknown'), ('7', 'unknown'), ('yes', 'unknown'),
        (' 7.2', 'unknown'), ('7.2.0.0.1', 'unknown'), ('99999.1', 'unknown'),
        ('7.12345', 'unknown'), ('٧.٢', 'unknown'),
        ('7.2\nkvm_ext_quiesced: yes', '7.2'), ('7.2; DROP', '7.2'),
        ('<b>7.2</b>', 'unknown'), ('\x1b[31m7.2', 'unknown'))
    @ddt.unpack
    def test_version_is_a_number_or_nothing(self, said, expected):
        found = consistency.Consistency(Reason.FROZEN, 1, said).properties()
        self.assertEqual(expected, found['kvm_ext_guest_agent_version'])
