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

import hypothesis
from hypothesis import strategies
from oslotest import base

from nova_kvm_ext.cpu import levels
from nova_kvm_ext.cpu import traits
from nova_kvm_ext.tests.unit.cpu import documents
from nova_kvm_ext import traits as custom

# As Nova's, in small: two traits for one feature, a name of Intel's for SSE3.
MAPPING: traits.ByFeature = {
    'avx2': 'HW_CPU_X86_AVX2', 'aes': 'HW_CPU_X86_AESNI',
    'sse3': 'HW_CPU_X86_SSE3',
    'svm': ('HW_CPU_X86_SVM', 'HW_CPU_X86_AMD_SVM')}
features = strategies.frozensets(
    strategies.sampled_from(sorted(documents.KNOWN.features)))


class FeatureTraitsTestCase(base.BaseTestCase):

    def test_known(self):
        self.assertEqual(
            {'HW_CPU_X86_AVX2', 'HW_CPU_X86_AESNI', 'HW_CPU_X86_SSE3',
             'HW_CPU_X86_SVM', 'HW_CPU_X86_AMD_SVM'}, traits.known(MAPPING))

    def test_of_features(self):
        self.assertEqual(
            {'HW_CPU_X86_SSE3', 'HW_CPU_X86_SVM', 'HW_CPU_X86_AMD_SVM'},
            traits.of_features(('pni', 'svm', 'cx16'), MAPPING))

    @hypothesis.given(features, features)
    def test_arithmetic(self, some, others):
        both = traits.of_features(some | others, MAPPING)
        self.assertEqual(both, traits.of_features(some, MAPPING) |
                         traits.of_features(others, MAPPING))
        self.assertLessEqual(both, traits.known(MAPPING))


class OfHostTestCase(base.BaseTestCase):

    def test_tcg(self):
        found = traits.of_host(documents.host(documents.TCG))
        self.assertIn('CUSTOM_KVM_EXT_CPU_MODE_MAXIMUM', found)
        self.assertNotIn('CUSTOM_KVM_EXT_CPU_MODE_HOST_PASSTHROUGH', found)
        self.assertIn('CUSTOM_KVM_EXT_CPU_MODEL_NEHALEM', found)
        self.assertNotIn('CUSTOM_KVM_EXT_CPU_MODEL_HASWELL', found)
        self.assertEqual(
            {'CUSTOM_KVM_EXT_CPU_LEVEL_X86_64_V2',
             'CUSTOM_KVM_EXT_CPU_LEVEL_X86_64_V2_AES',
             'CUSTOM_KVM_EXT_CPU_LEVEL_X86_64_V3'},
            {name for name in found if '_LEVEL_' in name})

    def test_versions_only_where_an_operator_names_them(self):
        host = documents.host(documents.NEW_TCG)
        plain = traits.of_host(host)
        self.assertNotIn('CUSTOM_KVM_EXT_CPU_MODEL_NEHALEM_V1', plain)
        named = traits.of_host(host, ('nehalem-V1', 'Haswell-v1'))
        self.assertEqual({'CUSTOM_KVM_EXT_CPU_MODEL_NEHALEM_V1'},
                         named - plain)

    def test_bounded_and_valid(self):
        for name in documents.names():
            found = traits.of_host(documents.host(name))
            self.assertLessEqual(len(found), 140)
            for trait in found:
                self.assertRegex(trait, '^CUSTOM_KVM_EXT_CPU_[A-Z0-9_]+$')

    def test_nothing_told(self):
        self.assertEqual(
            frozenset(), traits.of_host(documents.host(documents.NO_CPU)))

    def test_no_levels_on_other_architectures(self):
        self.assertFalse([
            name for name in traits.of_host(documents.host(documents.ARM))
            if 'LEVEL' in name])

    def test_a_level_is_named_as_nova_kvm_ext_writes_it(self):
        self.assertEqual('CUSTOM_KVM_EXT_CPU_LEVEL_X86_64_V2_AES',
                         custom.name('cpu_level', levels.ALL[1].name))
