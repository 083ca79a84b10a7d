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

"""Checks KVM3xx: vhost-net."""

from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.tests.unit.host.checks import case
from nova_kvm_ext.tests.unit.host.checks import faults


class VhostTestCase(case.ChecksTestCase):

    def test_faults(self):
        self.check_faults('KVM3')

    def test_vhost_net_is_as_grave_as_it_is_wanted(self):
        for wanted, result, said in (
                ('prefer', verdict.WARN, 'slower'),
                ('require', verdict.FAIL, 'vhost_net = require'),
                ('off', verdict.SKIP, 'vhost_net = off')):
            host = self.host()
            faults.no_vhost(host)
            host.settings |= {'vhost_net': wanted}
            found = self.check(host)['KVM301']
            self.assertEqual(result, found.result)
            self.assertIn(said, found.details)
