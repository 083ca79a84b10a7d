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

import dataclasses

from oslotest import base

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import usable
from nova_kvm_ext.tests.unit.cpu import documents

host = documents.host


class ModeTestCase(base.BaseTestCase):

    def test_supported(self):
        for name in documents.names():
            for mode in host(name).caps.modes or ():
                self.assertIsNone(usable.check_mode(mode, host(name)))
            self.assertIsNone(usable.check_mode('none', host(name)))

    def test_not_supported(self):
        found = usable.check_mode('host-passthrough', host(documents.TCG))
        self.assertIn('virt_type = qemu', found.problem)
        self.assertEqual('Use maximum or host-model.', found.remedy)
        found = usable.check_mode('host-model', host(documents.ARM))
        self.assertEqual('Use host-passthrough or maximum.', found.remedy)

    def test_libvirt_tells_nothing(self):
        self.assertIsNone(
            usable.check_mode('host-passthrough', host(documents.NO_CPU)))
        without = usable.Host('qemu', host(documents.NO_CPU).caps)
        self.assertIsNotNone(usable.check_mode('host-passthrough', without))


class MissingTestCase(base.BaseTestCase):

    def test_by_qemu_or_by_the_map(self):
        there = host(documents.TCG)
        model = capabilities.Model('Haswell', 'no')
        self.assertEqual(
            ('hle', 'invpcid', 'pcid', 'rtm', 'tsc-deadline', 'x2apic'),
            usable.missing_features(model, there))
        self.assertEqual(('a', 'b'), usable.missing_features(
            dataclasses.replace(model, blockers=('b', 'a')), there))

    def test_not_known(self):
        there = host(documents.TCG)
        unknown = capabilities.Model('no-such', 'no')
        self.assertEqual((), usable.missing_features(unknown, there))
        model = capabilities.Model('Haswell', 'no')
        for less in (
                dataclasses.replace(there, x86_map=None),
                dataclasses.replace(there, caps=dataclasses.replace(
                    there.caps, host_model=None))):
            self.assertEqual((), usable.missing_features(model, less))


class ModelTestCase(base.BaseTestCase):

    def check(self, model: str, name: str = documents.TCG, disabled=()):
        return usable.check_model(
            model, host(name), [(n, 'disable') for n in disabled])

    def test_usable(self):
        for name in documents.names():
            for model in host(name).caps.usable_models:
                self.assertIsNone(self.check(model.name.upper(), name))

    def test_unknown(self):
        found = self.check('Nehalm', documents.NEW_TCG)
        self.assertEqual(
            'Is Nehalem or Nehalem-IBRS meant? nova-kvm-ext cpu model list '
            'has those that it knows.', found.remedy)
        self.assertIn('Is x86-64-v3 or', self.check('x86_64-v3').remedy)

    def test_blockers(self):
        found = self.check('Haswell', documents.NEW_TCG)
        self.assertEqual(
            ('hle', 'invpcid', 'pcid', 'rtm', 'tsc-deadline'), found.missing)
        self.assertIn('it lacks hle, invpcid, pcid', found.problem)
        self.assertIn('Westmere', found.remedy)
        self.assertIn('x86-64-v3', found.remedy)

    def test_computed_where_libvirt_does_not_tell(self):
        found = self.check('Haswell')
        self.assertEqual(
            ('hle', 'invpcid', 'pcid', 'rtm', 'tsc-deadline', 'x2apic'),
            found.missing)

    def test_neither_told_nor_computed(self):
        found = usable.check_model(
            'Haswell', host(documents.TCG, known=None))
        self.assertEqual((), found.missing)
        self.assertIn('does not tell what is missing', found.problem)

    def test_what_is_disabled_is_not_missing(self):
        missing = self.check('Haswell', documents.NEW_TCG).missing
        self.assertIsNone(self.check('Haswell', documents.NEW_TCG, missing))
        self.assertEqual(('hle',), self.check(
            'Haswell', documents.NEW_TCG, missing[1:]).missing)

    def test_nearest_can_run_the_same_systems(self):
        """Of models without 64-bit mode none is near."""
        found = self.check('Nehalem', documents.BROKEN_KVM)
        self.assertNotIn('pentium', found.remedy)

    def test_many_missing_are_cut(self):
        found = self.check('Skylake-Server', documents.BROKEN_KVM)
        self.assertGreater(len(found.missing), 20)
        self.assertIn('more', found.problem)
        self.assertLess(len(found.problem), 300)

    def test_libvirt_tells_nothing(self):
        for name in (documents.NO_CPU, documents.ONLY_CUSTOM):
            self.assertIsNone(self.check('qemu64', name))

    def test_level(self):
        self.assertIsNone(self.check('X86-64-V3'))
        found = self.check('x86-64-v4')
        self.assertEqual(('avx512bw', 'avx512cd', 'avx512dq', 'avx512f',
                          'avx512vl'), found.missing)
        self.assertEqual('Use x86-64-v3.', found.remedy)
        self.assertIsNone(self.check('x86-64-v4', disabled=found.missing))
        self.assertIsNone(self.check('x86-64-v4', documents.AMD))

    def test_level_on_another_architecture(self):
        self.assertIn('aarch64',
                      self.check('x86-64-v2', documents.ARM).problem)


class FlagTestCase(base.BaseTestCase):

    def test_flags(self):
        tcg = host(documents.TCG)
        self.assertIsNone(usable.check_flag('pcid', tcg))
        self.assertIsNone(usable.check_flag('mds-no', tcg))
        self.assertIn('Is sse4.1 or', usable.check_flag('sse4_1', tcg).remedy)

    def test_no_map_of_this_architecture(self):
        self.assertIsNone(usable.check_flag('sve', host(documents.ARM)))


class WordsTestCase(base.BaseTestCase):

    def test_some(self):
        self.assertEqual('a, b', usable.some('ba'))
        self.assertEqual('a, b and 2 more', usable.some('dcba', 2))

    def test_meant(self):
        self.assertEqual('', usable.meant('zzzz', ('abc',)))
        self.assertEqual('', usable.meant(1000 * 'x', ('abc',)))
