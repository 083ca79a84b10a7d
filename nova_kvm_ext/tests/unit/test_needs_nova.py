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

"""Which tests are not run again with each Nova."""

import re

from oslotest import base

from nova_kvm_ext.tests import needs_nova


class NeedsNovaTestCase(base.BaseTestCase):

    def test_all_are_told(self):
        near, others = needs_nova.needed()
        for name in 'test_driver', 'test_contract', 'cpu.test_hooks':
            self.assertIn(f'nova_kvm_ext.tests.unit.{name}', near)
        # oslo.config, whose version is that of the Nova.
        self.assertIn('nova_kvm_ext.tests.unit.test_conf', near)
        for name in 'cpu.test_cpu_map', 'guest_agent.test_replies':
            self.assertIn(f'nova_kvm_ext.tests.unit.{name}', others)
        self.assertEqual(set(), set(near) & set(others))

    def test_expression(self):
        found = needs_nova.expression()
        test = 'nova_kvm_ext.tests.unit.{}.X.test_y'
        self.assertTrue(re.search(found, test.format('test_driver')))
        self.assertFalse(re.search(found, test.format('test_driver2')))
        self.assertFalse(re.search(found, test.format('cpu.test_cpu_map')))
