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


"""The host whose CPU has no virtualization: a machine of its own."""

import re

from nova_kvm_ext.tests.kvm import test_faults


class NoSVMTestCase(test_faults.HostCheckTestCase):

    def test_no_svm(self) -> None:
        with open('/proc/cpuinfo') as f:
            if re.search(r'^flags\b.* (svm|vmx)\b', f.read(), re.MULTILINE):
                self.skipTest('This CPU has virtualization')
        self.look('the CPU has no SVM', libvirts='kvm-not-offered',
                  code='KVM101', fixed=False)
