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
import json

from oslotest import base

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext import errors
from nova_kvm_ext.fleet import export
from nova_kvm_ext.tests.unit.cpu import hosts
from nova_kvm_ext.tests.unit.fleet import fleets


def parse(text, what='here'):
    return export.Parser().parse(
        text if isinstance(text, bytes) else text.encode(), what)


class OfCapabilitiesTestCase(base.BaseTestCase):

    def test_features(self):
        cpu = fleets.host('a', lacks=('avx2',), has=('pcid',)).cpu
        self.assertIn('hypervisor', cpu.features)
        self.assertIn('pcid', cpu.features)
        self.assertIn('sha-ni', cpu.features)
        self.assertNotIn('avx2', cpu.features)
        self.assertIn('avx2', cpu.known)
        self.assertEqual('EPYC', cpu.caps.host_model.model)
        self.assertEqual(
            cpu.features, cpu.caps.host_model.required)
        self.assertEqual(frozenset(), cpu.caps.host_model.disabled)

    def test_models_that_are_near(self):
        # Skylake-Server has avx512f, avx512bw and pcid besides.
        cpu = fleets.host('a').cpu
        self.assertEqual(
            {name: features for name, features in hosts.MAP.models.items()},
            dict(cpu.expands))
        cpu = fleets.host('a', lacks=('avx2',)).cpu
        self.assertEqual(hosts.MAP.models['EPYC'], cpu.expands['EPYC'])
        self.assertNotIn('Skylake-Server', cpu.expands)

    def test_models_without_64_bits(self):
        old = dataclasses.replace(hosts.MAP, models={
            **hosts.MAP.models, '486': frozenset({'fpu'})})
        cpu = export.of_capabilities(
            capabilities.parse(hosts.capabilities()), old)
        self.assertNotIn('486', cpu.expands)

    def test_own_model(self):
        # libvirt calls some hosts by a model that has little in common.
        odd = dataclasses.replace(hosts.MAP, models={
            **hosts.MAP.models, 'EPYC': frozenset('abcdef')})
        cpu = export.of_capabilities(
            capabilities.parse(hosts.capabilities()), odd)
        self.assertEqual(frozenset('abcdef'), cpu.expands['EPYC'])

    def test_without_a_map(self):
        cpu = fleets.untold('a').cpu
        self.assertIsNone(cpu.features)
        self.assertIsNone(cpu.known)
        self.assertEqual({}, cpu.expands)

    def test_map_is_of_x86(self):
        text = hosts.capabilities().replace('x86_64', 'aarch64')
        cpu = export.of_capabilities(capabilities.parse(text), hosts.MAP)
        self.assertIsNone(cpu.features)

    def test_names_of_models(self):
        self.assertIn('Penryn', fleets.host('a').cpu.knows_models)
        nothing = export.HostCPU(capabilities.DomainCapabilities())
        self.assertIsNone(nothing.knows_models)


class DocumentTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.host = fleets.host(
            'compute1', lacks=('sha-ni',), libvirt='11.3.0', qemu='10.0.2',
            kernel='6.12.38', microcode='0x8301055', nested=True)

    def test_there_and_back(self):
        text = export.to_json(self.host)
        self.assertNotIn('\n', text)
        # Hosts of other releases read it.
        self.assertEqual(1, json.loads(text)['kvm_ext'])
        found = parse(text)
        self.assertEqual(self.host.cpu.digest, found.cpu.digest)
        self.assertEqual(self.host.cpu.features, found.cpu.features)
        self.assertEqual(self.host.cpu.known, found.cpu.known)
        self.assertEqual(self.host.cpu.expands, dict(found.cpu.expands))
        self.assertEqual(
            {m.name: (m.usable, m.vendor) for m in self.host.cpu.caps.models},
            {m.name: (m.usable, m.vendor) for m in found.cpu.caps.models})
        self.assertEqual(
            ('sha-ni',), found.cpu.caps.model('EPYC').blockers)
        for name in ('host', 'libvirt', 'qemu', 'kernel', 'microcode',
                     'nested'):
            self.assertEqual(getattr(self.host, name), getattr(found, name))
        self.assertEqual(text, export.to_json(found))

    def test_models_of_which_libvirt_says_neither(self):
        cpu = self.host.cpu
        asked = dataclasses.replace(self.host, cpu=dataclasses.replace(
            cpu, caps=dataclasses.replace(cpu.caps, models=tuple(
                dataclasses.replace(model, usable='unknown', blockers=None)
                for model in cpu.caps.models))))
        found = parse(export.to_json(asked)).cpu.caps.models
        self.assertEqual({model.name for model in cpu.caps.models},
                         {model.name for model in found})
        self.assertFalse({'yes', 'no'} & {model.usable for model in found})

    def test_digest_says_what_guests_can_have(self):
        digest = self.host.cpu.digest
        self.assertRegex(digest, '^[0-9a-f]{16}$')
        self.assertEqual(
            digest, fleets.host('other', lacks=('sha-ni',)).cpu.digest)
        self.assertNotEqual(digest, fleets.host('other').cpu.digest)

    def test_nothing_told(self):
        found = parse(export.to_json(fleets.untold('a')))
        self.assertIsNone(found.cpu.features)
        self.assertIsNone(found.cpu.known)
        self.assertIsNone(found.nested)
        self.assertIsNone(found.libvirt)

    def test_same_part_is_read_once(self):
        parser = export.Parser()
        one = parser.parse(export.to_json(self.host).encode(), 'one')
        two = parser.parse(export.to_json(
            fleets.host('two', lacks=('sha-ni',))).encode(), 'two')
        self.assertIs(one.cpu, two.cpu)
        self.assertEqual(('compute1', 'two'), (one.host, two.host))
        three = parser.parse(export.to_json(fleets.host('c')).encode(), 'c')
        self.assertIsNot(one.cpu, three.cpu)

    def test_parts_that_are_kept_are_few(self):
        parser = export.Parser(texts=1)
        for name, lacks in (('a', ()), ('b', ('sha-ni',)), ('c', ('svm',))):
            text = export.to_json(fleets.host(name, lacks=lacks)).encode()
            self.assertEqual(
                fleets.host(name, lacks=lacks).cpu.digest,
                parser.parse(text, name).cpu.digest)
        self.assertEqual(1, len(parser._cpus))

    def test_other_layout(self):
        value = export.to_dict(self.host)
        for text in (json.dumps(value, indent=2),
                     json.dumps(value, sort_keys=True)):
            self.assertEqual(
                self.host.cpu.digest, parse(text).cpu.digest)

    def test_part_named_cpu_elsewhere(self):
        value = export.to_dict(self.host)
        value = {'more': {'cpu': 1}} | value
        self.assertEqual(
            self.host.cpu.digest,
            parse(json.dumps(value, separators=(',', ':'))).cpu.digest)

    def test_garbage(self):
        good = export.to_dict(self.host)
        for text, words in (
                ('', 'not JSON'), ('{', 'not JSON'), ('[' * 60000, 'not JSON'),
                ('[]', 'no "kvm_ext"'), ('{}', 'no "kvm_ext"'),
                ('1' * (export.MAX_BYTES + 1), 'longer than 64 KiB'),
                ('{"kvm_ext":1}', 'a part is missing'),
                (json.dumps(good | {'cpu': []}), 'a part is missing'),
                (json.dumps(good | {'cpu': None}), 'a part is missing'),
                (json.dumps(good | {'cpu': good['cpu'] | {'features': 'a'}}),
                 'a part is missing'),
                (json.dumps(good | {'cpu': good['cpu'] | {
                    'expands': {'EPYC': ['xyz']}}}), 'a part is missing'),
                (json.dumps(good | {'cpu': good['cpu'] | {'models': [1]}}),
                 'a part is missing')):
            e = self.assertRaises(errors.HostError, parse, text, 'some file')
            self.assertIn(words, str(e))
            self.assertIn('some file', str(e))
            self.assertIn('nova-kvm-ext cpu export', str(e))

    def test_what_also_is_there(self):
        value = export.to_dict(self.host)
        value['cpu']['also'] = ['rtm', 'hle']
        self.assertEqual(frozenset({'rtm', 'hle'}),
                         parse(json.dumps(value)).cpu.caps.supported)
        empty: list[str] = []
        for nothing in (empty, None):
            value['cpu']['also'] = nothing
            self.assertEqual(frozenset(),
                             parse(json.dumps(value)).cpu.caps.supported)

    def test_long_names_are_cut(self):
        value = export.to_dict(self.host)
        for length, name in ((255, 'h' * 255), (256, 'h' * 252 + '...')):
            self.assertEqual(name, parse(json.dumps(
                value | {'host': 'h' * length})).host)
        for length, kernel in ((80, 'k' * 80), (81, 'k' * 77 + '...')):
            self.assertEqual(kernel, parse(json.dumps(
                value | {'kernel': 'k' * length})).kernel)
        for length, vendor in ((64, 'v' * 64), (65, 'v' * 61 + '...')):
            value['cpu']['vendor'] = 'v' * length
            self.assertEqual(
                vendor, parse(json.dumps(value)).cpu.caps.host_model.vendor)

    def test_a_list_among_names(self):
        text = export.to_json(self.host).replace('"features":[',
                                                 '"features":[[],', 1)
        self.assertEqual(self.host.cpu.features, parse(text).cpu.features)

    def test_models_with_few_blockers_say_them(self):
        cpu = self.host.cpu
        model = cpu.caps.models[0]
        for count, kept in ((0, None), (export.NEAR, export.NEAR),
                            (export.NEAR + 1, None)):
            host = dataclasses.replace(self.host, cpu=dataclasses.replace(
                cpu, caps=dataclasses.replace(cpu.caps, models=(
                    dataclasses.replace(
                        model, usable='no', blockers=tuple(
                            f'f{n}' for n in range(count))),))))
            found, = parse(export.to_json(host)).cpu.caps.models
            self.assertEqual(kept, found.blockers and len(found.blockers))

    def test_odd_entries_cost_themselves(self):
        value = export.to_dict(self.host)
        value['cpu']['features'] += ['<b>', '', 7, 'x' * 65]
        value['kernel'] = ['6.1']
        value['qemu'] = '10\n.0'
        value['nested'] = 'yes'
        found = parse(json.dumps(value))
        self.assertEqual(self.host.cpu.features, found.cpu.features)
        self.assertIsNone(found.kernel)
        self.assertNotIn('\n', found.qemu)
        self.assertIsNone(found.nested)

    def test_masks_beyond_the_features(self):
        value = export.to_dict(self.host)
        value['cpu']['expands']['Wrong'] = ['f' * 60]
        found = parse(json.dumps(value))
        self.assertNotIn('Wrong', found.cpu.expands)
        self.assertIn('EPYC', found.cpu.expands)

    def test_vendor_with_a_space(self):
        value = export.to_dict(self.host)
        value['cpu']['vendor'] = 'Zhaoxin CentaurHauls'
        found = parse(json.dumps(value))
        self.assertEqual('Zhaoxin CentaurHauls',
                         found.cpu.caps.host_model.vendor)
