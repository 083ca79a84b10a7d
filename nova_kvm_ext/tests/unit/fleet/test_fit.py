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

from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import document
from nova_kvm_ext.fleet import export
from nova_kvm_ext.fleet import fit
from nova_kvm_ext.fleet import kinds
from nova_kvm_ext.tests.unit.cpu import hosts
from nova_kvm_ext.tests.unit.fleet import fleets


def cpu(model='EPYC', vendor='AMD', **features):
    return definition.CPU(
        mode='custom', match='exact', model=model, vendor=vendor,
        features=tuple((name.replace('_', '-'), policy)
                       for name, policy in features.items()))


class FitsTestCase(base.BaseTestCase):

    def fits(self, guest, host, *others, x86_map=hosts.MAP):
        found = kinds.group([host, *others])
        fleet = fit.Fleet(found, x86_map)
        kind = next(k for k in found if host in k.hosts)
        return fleet.fits(guest, kind)

    def test_yes(self):
        self.assertIs(True, self.fits(cpu(), fleets.host('a')).possible)

    def test_no(self):
        answer = self.fits(cpu(), fleets.host('a', lacks=('avx2', 'sha-ni')))
        self.assertIs(False, answer.possible)
        self.assertEqual(('avx2', 'sha-ni'), answer.missing)
        self.assertEqual((), answer.unknown)

    def test_disabled_where_it_lacks(self):
        self.assertIs(True, self.fits(
            cpu(avx2='disable'), fleets.host('a', lacks=('avx2',))).possible)

    def test_other_vendor(self):
        self.assertIs(False, self.fits(
            cpu(), fleets.host('a', 'Skylake-Server')).possible)

    def test_by_exports_alone(self):
        guest = cpu()
        self.assertIs(True, self.fits(
            guest, fleets.host('a'), x86_map=None).possible)
        # What the guest's model is, another host tells.
        answer = self.fits(
            guest, fleets.host('a', 'kvm64'), fleets.host('b'), x86_map=None)
        self.assertIs(False, answer.possible)

    def test_nobody_knows_the_model(self):
        answer = self.fits(cpu('Denverton', None), fleets.host('a'),
                           x86_map=None)
        self.assertIsNone(answer.possible)

    def test_host_that_does_not_tell(self):
        answer = self.fits(cpu(), fleets.untold('a'))
        self.assertIsNone(answer.possible)
        self.assertIn('does not tell', answer.reason)
        self.assertIsNone(self.fits(
            cpu(), fleets.untold('a'), x86_map=None).possible)

    def test_name_that_is_not_known_there(self):
        old = fleets.host('a')
        old = dataclasses.replace(old, cpu=dataclasses.replace(
            old.cpu, known=old.cpu.known - {'vme'}))
        answer = self.fits(cpu(vme='disable'), old)
        self.assertIsNone(answer.possible)
        self.assertEqual(('vme',), answer.unknown)
        self.assertIn('vme', answer.reason)
        answer = self.fits(cpu(vme='require'), old)
        self.assertIs(False, answer.possible)
        self.assertEqual((('vme',), ()), (answer.unknown, answer.missing))

    def test_each_host_by_its_own_map(self):
        # By this machine's map the model has a feature that the host, by its
        # own map, does not need for it and does not have.
        newer = dataclasses.replace(hosts.MAP, models={
            **hosts.MAP.models, 'EPYC': hosts.MAP.models['EPYC'] | {'pcid'}})
        answer = self.fits(cpu(), fleets.host('a'), x86_map=newer)
        self.assertEqual(('pcid',), answer.missing)
        self.assertIs(True, self.fits(
            cpu('Nehalem', None), fleets.host('a'), x86_map=newer).possible)

    def test_name_of_ours_is_no_model_of_guests(self):
        self.assertIsNone(document.name(fit._HOST_MODEL))


class MatrixTestCase(base.BaseTestCase):

    def test_both_ways(self):
        found = kinds.group([
            fleets.host('a1'), fleets.host('a2'),
            fleets.host('b', lacks=('sha-ni',)),
            fleets.host('c', 'Nehalem'), fleets.untold('d')])
        fleet = fit.Fleet(found, hosts.MAP)
        at = {kind.hosts[0].host: n for n, kind in enumerate(found)}
        matrix = fleet.matrix()
        say = {(x, y): matrix[at[x]][at[y]] for x in at for y in at}
        self.assertIs(True, say['a1', 'a1'].possible)
        self.assertIs(False, say['a1', 'b'].possible)
        self.assertEqual(('sha-ni',), say['a1', 'b'].missing)
        self.assertIs(True, say['b', 'a1'].possible)
        self.assertIs(False, say['c', 'a1'].possible)
        self.assertIsNone(say['d', 'a1'].possible)
        self.assertIsNone(say['a1', 'd'].possible)
        self.assertIsNone(say['d', 'd'].possible)


class ReachTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.fleet = fit.Fleet(kinds.group([
            fleets.host('a1'), fleets.host('a2'), fleets.host('a3'),
            fleets.host('b', lacks=('sha-ni',)),
            fleets.host('b2', lacks=('sha-ni', 'avx2')),
            fleets.untold('d')]), hosts.MAP)

    def test_counts(self):
        found = fit.reach(cpu(), self.fleet)
        self.assertEqual((3, 2, 1), tuple(map(
            found.hosts, (True, False, None))))
        self.assertEqual([('sha-ni', 2), ('avx2', 1)],
                         list(found.keeping().items()))

    def test_without_some(self):
        found = fit.reach(cpu(), self.fleet, ['a1', 'd', 'nobody'])
        self.assertEqual((2, 2, 0), tuple(map(
            found.hosts, (True, False, None))))

    def test_kinds_stay_the_same(self):
        fit.reach(cpu(), self.fleet, ['a1'])
        self.assertEqual(3, self.fleet.kinds[0].count)


class MapTestCase(base.BaseTestCase):

    def test_nobody_knows(self):
        self.assertIsNone(fit.Fleet(kinds.group([fleets.untold('a')])).known)

    def test_ours_goes_before_a_hosts(self):
        odd = fleets.host('a')
        odd = dataclasses.replace(odd, cpu=dataclasses.replace(
            odd.cpu, expands={'EPYC': frozenset({'lm'}),
                              'Own': frozenset({'lm'})}))
        known = fit.Fleet(kinds.group([odd]), hosts.MAP).known
        self.assertEqual(hosts.MAP.models['EPYC'], known.models['EPYC'])
        self.assertEqual(frozenset({'lm'}), known.models['Own'])

    def test_kind_of_more_hosts_goes_first(self):
        def odd(name, feature):
            cpu = fleets.host(name, has=() if name < 'c' else ('pcid',)).cpu
            return export.Export(name, dataclasses.replace(
                cpu, expands={'Own': frozenset({feature})}))

        known = fit.Fleet(kinds.group(
            [odd('c', 'two'), odd('a', 'one'), odd('b', 'one')])).known
        self.assertEqual(frozenset({'one'}), known.models['Own'])
