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

"""Which features against flaws of CPUs guests lack."""

from oslotest import base

from nova_kvm_ext.cpu import vulnerabilities

_INTEL = frozenset('pcid spec-ctrl stibp ssbd md-clear'.split())
_AMD = frozenset('ibpb stibp amd-ssbd virt-ssbd'.split())


def _names(found):
    return [m.name for m in found.missing]


class LackTestCase(base.BaseTestCase):

    def lack(self, has, available, vendor='Intel', left_out=()):
        return vulnerabilities.lack(
            [frozenset(has)], frozenset(available), vendor, left_out)

    def test_a_level_on_intel(self):
        found = self.lack({'sse4.2'}, _INTEL | {'avx'})
        self.assertEqual(['pcid', 'spec-ctrl', 'stibp', 'ssbd', 'md-clear'],
                         _names(found))
        self.assertEqual(('pcid', 'spec-ctrl', 'stibp', 'ssbd', 'md-clear'),
                         found.flags)
        self.assertEqual(['spec-ctrl', 'stibp', 'ssbd', 'md-clear'],
                         [m.name for m in found.required])

    def test_a_level_on_amd_and_hygon(self):
        for vendor in 'AMD', 'Hygon':
            self.assertEqual(
                ['ibpb', 'stibp', 'amd-ssbd', 'virt-ssbd'],
                _names(self.lack({'sse4.2'}, _AMD | {'spec-ctrl'}, vendor)))

    def test_what_the_register_tells(self):
        """Bits of IA32_ARCH_CAPABILITIES, which a guest needs for them."""
        of_register = {'mds-no', 'taa-no', 'tsx-ctrl', 'bhi-no', 'gds-no',
                       'rfds-no'}
        for name in of_register:
            found = self.lack({'rtm'}, {name, 'arch-capabilities'})
            self.assertEqual(('arch-capabilities', name), found.flags)
            # None of them protects: they tell that nothing need be done.
            self.assertEqual((), found.required)
            self.assertEqual((name,), self.lack(
                {'rtm', 'arch-capabilities'},
                {name, 'arch-capabilities'}).flags)
        for vendor, names in (('Intel', _INTEL), ('AMD', _AMD)):
            for name in names:
                self.assertEqual((name,), self.lack(
                    (), {name, 'arch-capabilities'}, vendor).flags)

    def test_only_what_the_host_has(self):
        self.assertEqual(['ssbd'], _names(self.lack((), {'ssbd', 'avx'})))
        self.assertEqual([], _names(self.lack((), {'avx'})))

    def test_what_guests_have_is_not_missing(self):
        self.assertEqual([], _names(self.lack(_INTEL, _INTEL)))

    def test_one_of_two_models(self):
        found = vulnerabilities.lack(
            [_INTEL, _INTEL - {'ssbd'}], _INTEL, 'Intel')
        self.assertEqual(['ssbd'], _names(found))

    def test_what_an_operator_takes_away_stays_away(self):
        self.assertEqual([], _names(self.lack(
            _INTEL - {'ssbd'}, _INTEL, left_out={'ssbd'})))

    def test_features_of_the_register_need_its_feature(self):
        available = {'mds-no', 'taa-no', 'arch-capabilities'}
        found = self.lack((), available)
        self.assertEqual(['mds-no', 'taa-no'], _names(found))
        self.assertEqual(('arch-capabilities', 'mds-no', 'taa-no'),
                         found.flags)
        self.assertEqual((), found.required)
        self.assertEqual(('mds-no', 'taa-no'), self.lack(
            {'arch-capabilities'}, available).flags)

    def test_tsx_ctrl_is_for_guests_with_tsx(self):
        self.assertEqual([], _names(self.lack((), {'tsx-ctrl'})))
        self.assertEqual(['tsx-ctrl'],
                         _names(self.lack({'rtm'}, {'tsx-ctrl'})))

    def test_a_host_that_is_not_affected(self):
        """No guest needs to switch off what its CPU does not do."""
        found = self.lack((), _AMD | {'amd-no-ssb'}, 'AMD')
        self.assertEqual(['ibpb', 'stibp', 'amd-no-ssb'], _names(found))

    def test_other_vendors(self):
        for vendor in None, 'Zhaoxin CentaurHauls', '':
            self.assertIsNone(vulnerabilities.of_vendor(vendor))
            self.assertEqual([], _names(self.lack((), _INTEL, vendor)))

    def test_in_words(self):
        [found] = self.lack((), {'ssbd'}).missing
        self.assertEqual('ssbd (Speculative Store Bypass, CVE-2018-3639)',
                         str(found))


class OptionTestCase(base.BaseTestCase):

    def test_what_is_there_stays(self):
        self.assertEqual(
            '[libvirt] cpu_model_extra_flags = pcid, -hle, ssbd, md-clear',
            vulnerabilities.option(
                ('ssbd', 'md-clear', 'pcid'),
                (('pcid', 'require'), ('hle', 'disable'))))
