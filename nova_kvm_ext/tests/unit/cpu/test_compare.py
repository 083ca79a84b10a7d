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

import hypothesis
from oslotest import base

from nova_kvm_ext.cpu import compare
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import levels
from nova_kvm_ext.tests.unit.cpu import documents
from nova_kvm_ext.tests.unit.cpu import test_definition

CPU = definition.CPU


def answer(cpu: CPU, name: str = documents.TCG,
           known=documents.KNOWN) -> compare.Comparison:
    return compare.compare(cpu, documents.host(name).caps, known)


class CompareTestCase(base.BaseTestCase):

    def test_possible(self):
        found = answer(CPU('custom', 'Westmere'))
        self.assertIs(True, found.possible)
        self.assertEqual((), found.missing)

    def test_what_libvirts_yes_does_not_change(self):
        """libvirt's comparison does not look at these."""
        for cpu, stands in (
                (CPU('host-passthrough'), True),
                (CPU('custom', 'Nehalem', arch='aarch64'), True),
                (CPU('custom', 'no-such', fallback='forbid'), True),
                (CPU('custom', 'Haswell'), False),
                (CPU('custom', 'Nehalem', vendor='VIA'), False)):
            found = answer(cpu)
            self.assertEqual((False, stands),
                             (found.possible, found.stands), str(cpu))
            self.assertIs(not stands, compare.judge(found, True).possible)
            self.assertIs(False, compare.judge(found, False).possible)
            self.assertIs(found, compare.judge(found, None))

    def test_vendor_is_named(self):
        caps = documents.host(documents.TCG).caps
        cpu = CPU('custom', 'Nehalem', vendor='VIA')
        for vendor, words in (('AMD', 'CPUs of AMD'),
                              (None, 'CPUs of no vendor')):
            found = compare.compare(cpu, dataclasses.replace(
                caps, host_model=dataclasses.replace(
                    caps.host_model, vendor=vendor)), documents.KNOWN)
            self.assertIn(f'a CPU of VIA, and this host gives its guests '
                          f'{words}', found.reason)

    def test_missing_features_are_named(self):
        found = answer(CPU('custom', 'Haswell'))
        self.assertIs(False, found.possible)
        self.assertEqual(
            ('hle', 'invpcid', 'pcid', 'rtm', 'tsc-deadline', 'x2apic'),
            found.missing)

    def test_what_is_disabled_need_not_be_there(self):
        self.assertIs(True, answer(CPU('custom', 'Haswell', features=tuple(
            (n, 'disable') for n in answer(
                CPU('custom', 'Haswell')).missing))).possible)

    def test_what_is_forced_need_not_be_there(self):
        self.assertIs(True, answer(CPU('custom', 'Nehalem', features=(
            ('pcid', 'force'), ('x2apic', 'optional')))).possible)

    def test_what_is_optional_need_not_be_there(self):
        self.assertIs(True, answer(CPU('custom', '486', features=(
            ('vme', 'optional'),))).possible)
        self.assertIs(False, answer(CPU('custom', '486')).possible)

    def test_what_is_forbidden_must_not_be_there(self):
        found = answer(CPU('custom', 'Nehalem', features=(
            ('avx2', 'forbid'), ('pcid', 'forbid'))))
        self.assertEqual((False, ('avx2',)), (found.possible, found.missing))

    def test_what_is_forbidden_where_blockers_count(self):
        """Libvirt only asks what QEMU lacks then, as libvirt 11.3 does."""
        known = dataclasses.replace(
            documents.KNOWN, compares_by_qemu=True,
            strict_models=frozenset({'Nehalem', 'Haswell'}))
        forbidden = (('avx2', 'forbid'),)
        self.assertIs(True, answer(
            CPU('custom', 'Nehalem', features=forbidden), known=known
        ).possible)
        caps = documents.host(documents.TCG).caps
        caps = dataclasses.replace(caps, models=tuple(
            dataclasses.replace(model, blockers=('pcid',))
            if model.name == 'Haswell' else model for model in caps.models))
        found = compare.compare(
            CPU('custom', 'Haswell', features=forbidden), caps, known)
        self.assertEqual((False, ('pcid',)), (found.possible, found.missing))

    def test_forbidden_features_of_the_model_are_wanted_too(self):
        """As libvirt has it: no host will do."""
        found = answer(CPU('custom', 'Haswell', features=(
            ('pcid', 'forbid'), ('hle', 'disable'), ('rtm', 'disable'))))
        self.assertEqual(('invpcid', 'pcid', 'tsc-deadline', 'x2apic'),
                         found.missing)

    def test_strict(self):
        found = answer(CPU('custom', 'Nehalem', match='strict'))
        self.assertIs(False, found.possible)
        self.assertIn('avx2', found.missing)

    def test_vendor(self):
        self.assertIs(True, answer(CPU('custom', 'Nehalem', 'AMD')).possible)
        found = answer(CPU('custom', 'Nehalem', 'Intel'))
        self.assertIs(False, found.possible)
        self.assertIn('Intel', found.reason)

    def test_mode(self):
        self.assertIs(False, answer(CPU('host-passthrough')).possible)
        self.assertIsNone(
            answer(CPU('host-passthrough'), documents.INTEL).possible)
        self.assertIs(True, answer(CPU('host-model')).possible)
        self.assertIsNone(answer(CPU('maximum')).possible)
        self.assertIsNone(answer(CPU()).possible)

    def test_what_cannot_be_told(self):
        nehalem = CPU('custom', 'Nehalem')
        self.assertIsNone(answer(nehalem, documents.NO_CPU).possible)
        self.assertIsNone(answer(nehalem, documents.ONLY_CUSTOM).possible)
        self.assertIsNone(answer(nehalem, known=None).possible)
        found = answer(CPU('custom', 'Later'))
        self.assertIsNone(found.possible)
        self.assertIn('Later', found.reason)

    def test_levels(self):
        for name, wanted in ((documents.TCG, 3), (documents.NEW_TCG, 3),
                             (documents.BROKEN_KVM, 0), (documents.INTEL, 3),
                             (documents.AMD, 4)):
            possible = [answer(level.cpu, name).possible
                        for level in levels.ALL]
            self.assertEqual(4 * [False], (possible + 4 * [False])[4:])
            self.assertEqual(wanted, sum(possible), name)

    @hypothesis.given(test_definition.cpus)
    def test_missing_is_what_is_missing(self, cpu):
        """What is said to be missing is what keeps it from being possible."""
        found = answer(cpu)
        if found.possible is False and found.missing:
            mended = cpu.with_features(
                (n, 'optional') for n in found.missing)
            again = answer(mended)
            self.assertFalse(set(found.missing) & set(again.missing))
        if found.possible:
            self.assertEqual((), found.missing)

    def test_a_host_gives_its_own_cpu(self):
        own = documents.host(documents.TCG).caps.host_model
        self.assertIs(True, answer(own).possible)
