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

from oslotest import base

from nova_kvm_ext.fleet import admit
from nova_kvm_ext.fleet import baseline
from nova_kvm_ext.fleet import fit
from nova_kvm_ext.fleet import kinds
from nova_kvm_ext.tests.unit.cpu import hosts
from nova_kvm_ext.tests.unit.fleet import fleets


class AdmitTestCase(base.BaseTestCase):

    def admit(self, new, *others):
        fleet = fit.Fleet(kinds.group(others), hosts.MAP)
        return admit.admit(kinds.group([new])[0], fleet,
                           baseline.of(fleet).cpu)

    def test_same(self):
        found = self.admit(fleets.host('new'), fleets.host('a'),
                           fleets.host('b'))
        self.assertIs(True, found.answer.possible)
        self.assertEqual((), found.lost)
        self.assertEqual((2, 2), (found.gives, found.takes))
        self.assertEqual('x86-64-v3', found.level)
        self.assertEqual('x86-64-v3', found.level_after)

    def test_better(self):
        found = self.admit(fleets.host('new', has=('vme',)),
                           fleets.host('a'))
        self.assertIs(True, found.answer.possible)
        self.assertEqual((0, 1), (found.gives, found.takes))

    def test_worse(self):
        found = self.admit(
            fleets.host('new', 'Westmere'),
            fleets.host('a', 'Skylake-Server'),
            fleets.host('b', 'Skylake-Server'), fleets.host('c', 'Nehalem'))
        self.assertIs(True, found.answer.possible)
        found = self.admit(
            fleets.host('new', 'Westmere'),
            fleets.host('a', 'Skylake-Server'),
            fleets.host('b', 'Skylake-Server'))
        self.assertIs(False, found.answer.possible)
        self.assertIn('avx2', found.lost)
        self.assertEqual(('x86-64-v3', 'x86-64-v2-AES'),
                         (found.level, found.level_after))
        self.assertEqual((2, 0), (found.gives, found.takes))

    def test_nothing_left(self):
        found = self.admit(fleets.host('new', 'kvm64'), fleets.host('a'))
        self.assertIsNone(found.level_after)
