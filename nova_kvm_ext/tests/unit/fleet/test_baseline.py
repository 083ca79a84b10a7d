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
import os
from unittest import mock

import fixtures
from oslo_config import cfg
from oslotest import base

from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import levels
from nova_kvm_ext import errors
from nova_kvm_ext.fleet import baseline
from nova_kvm_ext.fleet import fit
from nova_kvm_ext.fleet import kinds
from nova_kvm_ext.tests.unit.cpu import hosts
from nova_kvm_ext.tests.unit.fleet import fleets


def of(*named, x86_map=hosts.MAP, also=()):
    return baseline.of(fit.Fleet(kinds.group(named), x86_map), also)


def forget(host, *names, models=()):
    """A host whose libvirt does not know these names."""
    caps = dataclasses.replace(host.cpu.caps, models=tuple(
        m for m in host.cpu.caps.models if m.name not in models))
    return dataclasses.replace(host, cpu=dataclasses.replace(
        host.cpu, known=host.cpu.known - set(names), caps=caps))


class OneVendorTestCase(base.BaseTestCase):

    def test_model_plus_and_minus(self):
        found = of(fleets.host('a', has=('vme',)),
                   fleets.host('b', lacks=('sha-ni',), has=('vme',)))
        self.assertEqual('EPYC', found.cpu.model)
        self.assertEqual('AMD', found.cpu.vendor)
        self.assertEqual(('custom', 'exact'),
                         (found.cpu.mode, found.cpu.match))
        self.assertEqual({'hypervisor': 'require', 'vme': 'require',
                          'sha-ni': 'disable'}, dict(found.cpu.features))
        self.assertEqual(
            '[kvm_ext]\ncpu_mode = custom\ncpu_model = EPYC\n\n[libvirt]\n'
            'cpu_model_extra_flags = +hypervisor, +vme, -sha-ni',
            found.nova_conf())
        self.assertEqual(found.common, found.features)
        self.assertEqual('x86-64-v3', found.level)
        self.assertEqual((), found.notes)

    def test_nova_conf_is_understood(self):
        names = [f'vmx-exit-load-perf-global-ctrl-{n}' for n in range(12)]
        cpu = definition.CPU(model='EPYC', features=tuple(
            (name, 'disable' if at % 2 else 'require')
            for at, name in enumerate(names)))
        found = dataclasses.replace(of(fleets.host('a')), cpu=cpu)
        path = os.path.join(self.useFixture(fixtures.TempDir()).path, 'conf')
        with open(path, 'w') as f:
            f.write(found.nova_conf())
        self.assertLess(max(map(len, found.nova_conf().splitlines())), 60)
        read = cfg.ConfigOpts()
        read.register_opts([cfg.ListOpt('cpu_model_extra_flags')], 'libvirt')
        read(['--config-file', path])
        self.assertEqual(
            ['-' * (at % 2) + '+' * (1 - at % 2) + name
             for at, name in enumerate(names)],
            read.libvirt.cpu_model_extra_flags)

    def test_features_are_all_that_are_common(self):
        found = of(fleets.host('a', 'Westmere'), fleets.host('b', 'Nehalem'),
                   fleets.host('c', 'Skylake-Server'))
        self.assertEqual('Nehalem', found.cpu.model)
        self.assertEqual(
            hosts.MAP.models['Nehalem'] | {'hypervisor'}, found.features)
        self.assertEqual('x86-64-v2', found.level)

    def test_model_of_no_vendor(self):
        found = of(fleets.host('a', 'kvm64'))
        self.assertEqual('kvm64', found.cpu.model)
        self.assertIsNone(found.cpu.vendor)

    def test_models_of_another_vendor_are_none(self):
        # Westmere is all but sha-ni and so on of this.
        lacks = tuple(hosts.MAP.models['EPYC'] -
                      hosts.MAP.models['Westmere'])
        found = of(fleets.host('a', lacks=lacks))
        self.assertNotIn(found.cpu.model, ('Westmere', 'Nehalem', 'Penryn'))

    def test_what_cannot_migrate(self):
        with_tsc = dataclasses.replace(hosts.MAP, features={
            **hosts.MAP.features, 'invtsc': ()})
        one = fleets.host('a', has=('invtsc',))
        found = of(one, x86_map=with_tsc)
        self.assertNotIn('invtsc', found.features)
        self.assertNotIn('invtsc', found.common)

    def test_disabled_costs_more_than_added(self):
        # EPYC less one, or Penryn and more: as libvirt, the one with fewer.
        found = of(fleets.host('a', lacks=('sha-ni',)))
        self.assertEqual('EPYC', found.cpu.model)
        self.assertEqual(frozenset({'sha-ni'}), found.cpu.disabled)

    def test_cost(self):
        def cost(added, removed):
            return baseline._Candidate(
                '', frozenset(map(str, range(added))),
                frozenset(map(str, range(removed)))).cost

        self.assertEqual([0, 3, 2, 5, 9, 10],
                         [cost(0, 0), cost(3, 0), cost(0, 1), cost(0, 2),
                          cost(0, 3), cost(1, 3)])

    def test_equal_costs(self):
        def best(*names, own):
            kind = mock.Mock(spec=kinds.Kind, model=own)
            return baseline._best(
                [baseline._Candidate(name, frozenset(), frozenset())
                 for name in names], [kind]).name

        self.assertEqual('B', best('A', 'B', 'C', own='B'))
        self.assertEqual('C', best('A-v1', 'C', own=None))
        self.assertEqual('A', best('C', 'A', own=None))

    def test_model_that_a_libvirt_does_not_know(self):
        found = of(fleets.host('new'),
                   forget(fleets.host('old'), models=('EPYC',)))
        self.assertNotEqual('EPYC', found.cpu.model)
        self.assertIn('EPYC would be nearer', ' '.join(found.notes))
        self.assertIn('old', ' '.join(found.notes))
        self.assertNotIn('new', ' '.join(found.notes))

    def test_flag_that_a_libvirt_does_not_know(self):
        lacks = ('sha-ni',)
        found = of(fleets.host('new', lacks=lacks),
                   forget(fleets.host('old', lacks=lacks), *lacks))
        self.assertNotIn('sha-ni', dict(found.cpu.features))
        self.assertNotEqual('EPYC', found.cpu.model)

    def test_every_host_can_have_it(self):
        named = [fleets.host('a', lacks=('sha-ni',), has=('vme',)),
                 fleets.host('b', has=('vme',)),
                 fleets.host('c', lacks=('svm', 'fma'))]
        found = of(*named)
        fleet = fit.Fleet(kinds.group(named), hosts.MAP)
        for kind in fleet.kinds:
            self.assertIs(True, fleet.fits(found.cpu, kind).possible)


class VendorsTestCase(base.BaseTestCase):

    def test_level(self):
        found = of(fleets.host('a'), fleets.host('b', 'Skylake-Server'))
        self.assertEqual(levels.find('x86-64-v3').cpu, found.cpu)
        self.assertEqual('x86-64-v3', found.level)
        self.assertIn('AMD, Intel', found.notes[0])
        self.assertIn('no live migration between vendors', found.notes[0])

    def test_nova_conf_names_the_level(self):
        found = of(fleets.host('a', has=('vme', 'pcid')),
                   fleets.host('b', 'Skylake-Server', has=('vme',)),
                   also=('vme', 'ssbd', 'avx2'))
        self.assertIn('vme', found.features)
        self.assertNotIn('pcid', found.features)
        self.assertIn('pcid', found.common)
        self.assertEqual(
            '[kvm_ext]\ncpu_mode = custom\ncpu_model = x86-64-v3\n\n'
            '[libvirt]\ncpu_model_extra_flags = +vme', found.nova_conf())

    def test_no_flags(self):
        found = of(fleets.host('a'), fleets.host('b', 'Skylake-Server'))
        self.assertEqual('[kvm_ext]\ncpu_mode = custom\n'
                         'cpu_model = x86-64-v3', found.nova_conf())

    def test_nothing_in_common(self):
        e = self.assertRaises(errors.HostError, of, fleets.host('a'),
                              fleets.host('b', 'Penryn'))
        self.assertIn('--hosts', str(e))


class LimitsTestCase(base.BaseTestCase):

    def test_nobody_tells(self):
        e = self.assertRaises(errors.HostError, of, fleets.untold('a'))
        self.assertIn('nova-kvm-ext host check', str(e))

    def test_some_do_not_tell(self):
        found = of(fleets.host('a'), fleets.untold('b'), fleets.untold('c'))
        self.assertEqual('EPYC', found.cpu.model)
        self.assertIn('2 hosts do not tell', found.notes[0])
        self.assertIn('b, c', found.notes[0])

    def test_without_a_cpu_map(self):
        host = fleets.host('a')
        found = of(dataclasses.replace(host, cpu=dataclasses.replace(
            host.cpu, expands={})), x86_map=None)
        self.assertEqual('x86-64-v3', found.model)
        self.assertIn('CPU map is not on this machine', found.notes[0])

    def test_several_architectures(self):
        arm = fleets.host('b')
        arm = dataclasses.replace(arm, cpu=dataclasses.replace(
            arm.cpu, caps=dataclasses.replace(arm.cpu.caps, arch='aarch64')))
        e = self.assertRaises(errors.HostError, of, fleets.host('a'), arm)
        self.assertIn('aarch64 kvm, x86_64 kvm', str(e))

    def test_many_names_are_cut(self):
        self.assertEqual('a, b, c, d', baseline._some('dcba'))
        self.assertEqual('a, b, c, d and 2 more', baseline._some('abcdef'))


class LossesAndGainsTestCase(base.BaseTestCase):

    def test_losses(self):
        found = of(fleets.host('a'), fleets.host('b'),
                   fleets.host('c', lacks=('sha-ni', 'svm')))
        self.assertEqual(
            [(2, ('sha-ni', 'svm'), None), (1, (), None)],
            [(loss.kind.count, loss.features, loss.level)
             for loss in found.losses])

    def test_level_that_is_lost(self):
        found = of(fleets.host('a', 'Westmere'),
                   fleets.host('b', 'Skylake-Server'))
        self.assertEqual({'Westmere': None, 'Skylake-Server': 'x86-64-v3'},
                         {loss.kind.model: loss.level
                          for loss in found.losses})

    def test_gains(self):
        found = of(fleets.host('a', 'Skylake-Server'),
                   fleets.host('b', 'Skylake-Server', has=('vme',)),
                   fleets.host('c', 'Westmere', has=('vme',)))
        self.assertEqual(['Westmere', 'Skylake-Server'],
                         [gain.without.model for gain in found.gains])
        self.assertEqual('x86-64-v3', found.gains[0].level)
        self.assertIn('avx2', found.gains[0].features)
        self.assertEqual((('vme',), None),
                         (found.gains[1].features, found.gains[1].level))

    def test_most_for_a_host(self):
        # Each of the two kinds is all that keeps one feature.
        found = of(fleets.host('a', lacks=('svm',)),
                   fleets.host('b', lacks=('svm',)),
                   fleets.host('c', lacks=('sha-ni',)))
        self.assertEqual([(1, ('sha-ni',)), (2, ('svm',))],
                         [(gain.without.count, gain.features)
                          for gain in found.gains])

    def test_one_kind(self):
        self.assertEqual((), of(fleets.host('a')).gains)
