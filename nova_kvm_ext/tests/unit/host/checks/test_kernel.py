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

"""Checks KVM1xx: the kernel and the processor."""

import dataclasses

from nova_kvm_ext.host.checks import runner
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import model
from nova_kvm_ext.tests.unit.host.checks import case


class KernelTestCase(case.ChecksTestCase):

    def test_faults(self):
        self.check_faults('KVM1')

    def test_kvm_without_vmx_or_svm(self):
        host = self.host()
        host.write('/proc/cpuinfo', 'vendor_id : GenuineIntel\nflags : fpu\n')
        found = self.check(host)['KVM101']
        self.assertEqual(verdict.WARN, found.result)
        self.assertIn('yet the kernel has KVM', found.details)

    def test_other_architectures_have_no_flag(self):
        host = self.host()
        facts = host.facts(None)
        facts = dataclasses.replace(
            facts, cpu=model.CPUFacts('s390x', locked_source='none'),
            kernel=dataclasses.replace(facts.kernel, modules={
                name: facts.kernel.modules[name]
                for name in ('kvm', 'vhost_net')}))
        results = {r.code: r for r in runner.run(facts)}
        self.assertEqual(verdict.SKIP, results['KVM101'].result)
        self.assertEqual(verdict.PASS, results['KVM104'].result)
