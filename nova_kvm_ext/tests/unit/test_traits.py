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

import os_traits
from oslotest import base

from nova_kvm_ext import traits


class TraitsTestCase(base.BaseTestCase):

    def test_name(self):
        self.assertEqual('CUSTOM_KVM_EXT_CPU_MODEL_EPYC_ROME',
                         traits.name('cpu_model', 'EPYC-Rome'))
        self.assertEqual('CUSTOM_KVM_EXT_X86_64_V2_AES',
                         traits.name('x86-64-v2-AES'))

    def test_a_name_that_placement_takes(self):
        for text in ('', 'é' * 300, 'x' * 300, '\x1b[2J', '___'):
            self.assertTrue(os_traits.is_custom(traits.name(text)))
            self.assertLessEqual(len(traits.name(text)), 255)
        self.assertEqual(255, len(traits.name('x' * 300)))

    def test_changes(self):
        kept, gone, new = map(traits.name, ('kept', 'gone', 'new'))
        present = {kept, gone, 'CUSTOM_GOLD', 'HW_CPU_X86_AVX',
                   'CUSTOM_KVM_EXTRA'}
        self.assertEqual(({new}, {gone}),
                         traits.changes(present, {kept, new}))
        self.assertEqual((set(), {kept, gone}), traits.changes(present, ()))
