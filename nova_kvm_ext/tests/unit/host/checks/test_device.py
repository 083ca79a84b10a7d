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

"""Checks KVM2xx: /dev/kvm."""

import dataclasses

from nova_kvm_ext.host.checks import runner
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import model
from nova_kvm_ext.tests.unit.host.checks import case
from nova_kvm_ext.tests.unit.host.checks import faults


class DeviceTestCase(case.ChecksTestCase):

    def test_faults(self):
        self.check_faults('KVM2')

    def test_device_errors(self):
        host = self.host()
        host.runs = None
        facts = host.facts()
        for error, words in (('ENODEV', 'not in the kernel'),
                             ('EPERM', 'control group'),
                             ('ENOTTY', 'not KVM that answers'),
                             ('EIO', 'EIO')):
            use = model.UseFacts('/dev/kvm', True, error)
            results = {r.code: r for r in runner.run(
                dataclasses.replace(facts, kvm_use=use))}
            self.assertEqual(verdict.FAIL, results['KVM205'].result)
            self.assertIn(words, results['KVM205'].details)
        use = model.UseFacts('/dev/kvm', True, None, 11)
        results = {r.code: r for r in runner.run(
            dataclasses.replace(facts, kvm_use=use))}
        self.assertEqual(verdict.FAIL, results['KVM205'].result)

    def test_software_and_a_closed_node(self):
        """libvirt waits for KVM anyway."""
        host = self.host()
        host.settings['virt_type'] = 'qemu'
        faults.closed(host)
        found = self.check(host)['KVM204']
        self.assertEqual(verdict.WARN, found.result)
        self.assertEqual((faults.TRIGGER,), found.fix)

    def test_software_and_a_user_who_is_kept_out(self):
        host = self.host()
        host.settings['virt_type'] = 'qemu'
        faults.not_in_group(host)
        results = self.check(host)
        self.assertEqual(verdict.PASS, results['KVM204'].result)
        self.assertEqual(verdict.WARN, results['KVM205'].result)
        self.assertIn('usermod', results['KVM205'].remedy)
