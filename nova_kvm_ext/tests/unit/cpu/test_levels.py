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

from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import levels
from nova_kvm_ext.tests.unit.cpu import documents

KNOWN = documents.KNOWN
feature_sets = strategies.frozensets(
    strategies.sampled_from(sorted(KNOWN.features)))


class LevelsTestCase(base.BaseTestCase):

    def test_names(self):
        self.assertEqual(
            ['x86-64-v2', 'x86-64-v2-AES', 'x86-64-v3', 'x86-64-v4'],
            [level.name for level in levels.ALL])
        self.assertIs(levels.ALL[1], levels.find('X86-64-V2-aes'))
        self.assertIsNone(levels.find('x86-64-v1'))

    def test_nothing_is_lost_upwards(self):
        for lower, higher in zip(levels.ALL, levels.ALL[1:]):
            self.assertLess(lower.features, higher.features)

    def test_features_of_the_abi(self):
        """The table of the psABI, in libvirt's names."""
        added = [levels.ALL[0].features]
        added += [higher.features - lower.features
                  for lower, higher in zip(levels.ALL, levels.ALL[1:])]
        self.assertEqual([
            {'cmov', 'cx8', 'fpu', 'fxsr', 'mmx', 'syscall', 'sse', 'sse2',
             'cx16', 'lahf_lm', 'popcnt', 'pni', 'sse4.1', 'sse4.2',
             'ssse3'},
            {'aes'},
            {'avx', 'avx2', 'bmi1', 'bmi2', 'f16c', 'fma', 'abm', 'movbe',
             'xsave'},
            {'avx512f', 'avx512bw', 'avx512cd', 'avx512dq', 'avx512vl'}],
            added)

    def test_every_feature_is_libvirts(self):
        self.assertLessEqual(levels.ALL[-1].features, set(KNOWN.features))

    def test_the_cpu_has_the_level_and_no_vendor(self):
        for level in levels.ALL:
            features = level.cpu.features_by(KNOWN)
            self.assertLessEqual(level.features, features)
            self.assertIsNone(level.cpu.vendor)
            self.assertFalse(features & {
                'svm', 'vmx', 'sse4a', '3dnow', 'vme', 'pcid', 'misalignsse'})
            # Nothing but the level and the base.
            self.assertEqual(
                level.needed |
                KNOWN.models[levels.BASE_MODEL], features)

    def test_what_is_for_the_kernel(self):
        self.assertEqual([(), (), ('xsaveopt',), ('xsaveopt',)],
                         [level.kernel_features for level in levels.ALL])

    def test_known_models(self):
        for model, level in (('kvm64', None), ('qemu64', None),
                             ('Penryn', None), ('Nehalem', 'x86-64-v2'),
                             ('Westmere', 'x86-64-v2-AES'),
                             ('EPYC', 'x86-64-v3'),
                             ('Skylake-Server', 'x86-64-v4')):
            found = levels.highest(KNOWN.models[model])
            self.assertEqual(level, found and found.name, model)

    @hypothesis.given(feature_sets)
    def test_highest(self, available):
        found = levels.highest(available)
        for level in levels.ALL:
            missing = level.missing(available)
            self.assertEqual(
                set(missing),
                level.needed - available)
            # A level can be had if and only if it is not above the highest.
            self.assertEqual(
                not missing,
                found is not None and level.features <= found.features)

    @hypothesis.given(feature_sets, strategies.sampled_from(levels.ALL),
                      strategies.booleans())
    def test_extra_flags_add_up(self, names, level, on):
        policy = 'require' if on else 'disable'
        cpu = level.cpu.with_features((n, policy) for n in sorted(names))
        plain = level.cpu.features_by(KNOWN)
        self.assertEqual(plain | names if on else plain - names,
                         cpu.features_by(KNOWN))
        self.assertEqual(cpu, definition.CPU.parse(cpu.to_xml()))
