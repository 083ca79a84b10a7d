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

import os

import hypothesis
from hypothesis import strategies
from oslotest import base

from nova_kvm_ext.cpu import definition
from nova_kvm_ext import errors
from nova_kvm_ext import tests
from nova_kvm_ext.tests.unit.cpu import documents

CPU = definition.CPU
KNOWN = documents.KNOWN

some_features = strategies.lists(strategies.tuples(
    strategies.sampled_from(sorted(KNOWN.features)),
    strategies.sampled_from(
        ('force', 'require', 'optional', 'disable', 'forbid'))),
    unique_by=lambda pair: pair[0], max_size=8).map(tuple)
cpus = strategies.builds(
    CPU, mode=strategies.just('custom'),
    model=strategies.sampled_from(sorted(KNOWN.models)),
    vendor=strategies.sampled_from((None, 'Intel', 'AMD')),
    features=some_features,
    match=strategies.sampled_from((None, 'exact', 'strict')),
    check=strategies.sampled_from((None, 'partial', 'full')))


class ParseTestCase(base.BaseTestCase):

    def test_live_domain(self):
        path = os.path.join(
            os.path.dirname(tests.__file__), 'data',
            'running-domain-libvirt-9.0-qemu-7.2-tcg.xml')
        with open(path) as f:
            found = CPU.parse(f.read())
        self.assertEqual('full', found.check)
        self.assertTrue(found.is_exact)
        self.assertIn('hypervisor', found.required)

    def test_element(self):
        found = CPU.parse(
            "<cpu match='exact'><model fallback='allow'>Nehalem</model>"
            "<vendor>Intel</vendor><topology sockets='1'/>"
            "<feature policy='require' name='pcid'/>"
            "<feature policy='disable' name='pcid'/><feature name='aes'/>"
            "</cpu>")
        self.assertEqual(
            CPU('custom', 'Nehalem', 'Intel',
                (('pcid', 'disable'), ('aes', 'require')), 'exact'), found)

    def test_hosts_capabilities(self):
        found = CPU.parse(
            '<capabilities><host><cpu><arch>x86_64</arch><model>EPYC</model>'
            "<feature name='avx'/></cpu></host></capabilities>")
        self.assertEqual(('EPYC', {'avx'}), (found.model, found.required))

    def test_domain_without_cpu(self):
        self.assertEqual(CPU(), CPU.parse('<domain/>'))

    def test_modes_without_a_model(self):
        for mode in ('host-model', 'host-passthrough', 'maximum'):
            found = CPU.parse(f"<cpu mode='{mode}'/>")
            self.assertEqual(CPU(mode), found)
            self.assertFalse(found.is_exact)

    def test_nonsense(self):
        for text in ('<cpus/>', '<cpu', ''):
            e = self.assertRaises(errors.HostError, CPU.parse, text, 'it')
            self.assertIn('it ', e.problem)

    def test_what_is_odd_costs_itself(self):
        found = CPU.parse(
            "<cpu mode='x' match='y' check='z'><model>&#155;31m</model>"
            "<vendor>,</vendor><arch>a&#10;b</arch>"
            "<maxphysaddr mode='emulate' bits='-1'/>"
            "<feature name='a' policy='b'/><feature/><feature name=''/>"
            "<feature name='aes'/></cpu>")
        self.assertEqual(CPU(features=(('aes', 'require'),)), found)
        self.assertEqual(7, len(found.odd))
        for said in found.odd:
            self.assertTrue(said.isprintable(), said)

    def test_names_of_more_than_one_word(self):
        found = CPU.parse('<cpu><model>ThunderX2 99xx</model>'
                          '<vendor>Zhaoxin CentaurHauls</vendor></cpu>')
        self.assertEqual(('ThunderX2 99xx', 'Zhaoxin CentaurHauls', ()),
                         (found.model, found.vendor, found.odd))

    def test_a_host_s_cpu(self):
        found = CPU.parse(
            '<capabilities><host><cpu><arch>x86_64</arch><model>EPYC</model>'
            "<feature name='ht'/></cpu></host></capabilities>")
        self.assertTrue(found.is_hosts)
        self.assertEqual(
            '<cpu><arch>x86_64</arch><model>EPYC</model>'
            '<feature name="ht"/></cpu>', found.to_xml())
        self.assertEqual(found, CPU.parse(found.to_xml()))

    def test_domain_capabilities(self):
        """virsh takes them too: what host-model gives."""
        found = CPU.parse(documents.load(documents.TCG))
        self.assertEqual(('custom', 'EPYC', 'AMD', 'exact'), (
            found.mode, found.model, found.vendor, found.match))
        self.assertFalse(found.is_hosts)
        self.assertEqual(CPU(), CPU.parse(documents.load(documents.NO_CPU)))

    def test_address_bits(self):
        found = CPU.parse("<cpu match='exact'><model>EPYC</model>"
                          "<maxphysaddr mode='emulate' bits='52'/></cpu>")
        self.assertEqual(52, found.address_bits)
        self.assertEqual(found, CPU.parse(found.to_xml()))

    @hypothesis.given(cpus)
    def test_there_and_back(self, cpu):
        self.assertEqual(cpu, CPU.parse(cpu.to_xml()))


class FeaturesTestCase(base.BaseTestCase):

    def test_features(self):
        cpu = CPU(model='kvm64', features=(
            ('pni', 'disable'), ('aes', 'require'), ('avx', 'optional')))
        found = cpu.features_by(KNOWN)
        self.assertIn('cx16', found)
        self.assertIn('aes', found)
        self.assertNotIn('pni', found)
        self.assertNotIn('avx', found)

    def test_unknown(self):
        self.assertIsNone(CPU(model='Nehalem').features_by(None))
        self.assertIsNone(CPU(model='other').features_by(KNOWN))
        self.assertIsNone(CPU('host-passthrough').features_by(KNOWN))

    @hypothesis.given(cpus, some_features)
    def test_later_policies_win(self, cpu, features):
        found = dict(cpu.with_features(features).features)
        self.assertEqual(dict(cpu.features) | dict(features), found)


class DifferenceTestCase(base.BaseTestCase):

    def test_names(self):
        found = definition.difference(
            CPU(model='Nehalem', features=(('pcid', 'require'),)),
            CPU(model='Westmere', features=(('sse4.1', 'disable'),)), KNOWN)
        self.assertEqual({'aes'}, set(found.gained))
        self.assertEqual({'pcid', 'sse4.1'}, set(found.lost))
        self.assertTrue(found.complete)
        self.assertEqual(
            'model Nehalem is now Westmere; gained aes; lost pcid, '
            'sse4.1', str(found))

    def test_without_a_map(self):
        found = definition.difference(
            CPU(model='Later', features=(
                ('a', 'require'), ('b', 'disable'), ('c', 'require'))),
            CPU(model='Later', features=(
                ('c', 'disable'), ('d', 'require'), ('e', 'disable'))), None)
        self.assertEqual((('b', 'd'), ('a', 'c', 'e')),
                         (found.gained, found.lost))
        self.assertFalse(found.complete)

    @hypothesis.given(cpus)
    def test_no_difference(self, cpu):
        for known in (KNOWN, None):
            found = definition.difference(cpu, cpu, known)
            self.assertFalse(found)
            self.assertEqual('nothing', str(found))

    @hypothesis.given(cpus, cpus)
    def test_arithmetic(self, before, after):
        found = definition.difference(before, after, KNOWN)
        self.assertEqual(
            after.features_by(KNOWN),
            before.features_by(KNOWN) - set(found.lost) | set(found.gained))
        back = definition.difference(after, before, KNOWN)
        self.assertEqual((found.gained, found.lost), (back.lost, back.gained))
