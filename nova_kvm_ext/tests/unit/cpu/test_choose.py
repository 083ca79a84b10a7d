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

from lxml import etree
from oslotest import base

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import choose
from nova_kvm_ext.cpu import levels
from nova_kvm_ext.cpu import usable
from nova_kvm_ext import errors
from nova_kvm_ext import request
from nova_kvm_ext.tests.unit.cpu import documents
from nova_kvm_ext.tests.unit.cpu import test_traits
from nova_kvm_ext.tests.unit import test_settings

MODELS = ('486', 'EPYC', 'Nehalem', 'Nehalem-IBRS', 'Skylake-Server')


def choice(text: str, virt_type: str = 'kvm',
           known: tuple[str, ...] = MODELS) -> choose.CPUChoice:
    return choose.choose(test_settings.settings(text), usable.Host(
        virt_type, capabilities.DomainCapabilities(
            models=tuple(map(capabilities.Model, known)))))


class ChooseTestCase(base.BaseTestCase):

    def refused(self, text: str, virt_type: str = 'kvm') -> str:
        return str(self.assertRaises(
            errors.InvalidOption, choice, text, virt_type))

    def test_modes(self):
        for mode in ('host-model', 'host-passthrough', 'none'):
            found = choice(f'[kvm_ext]\ncpu_mode = {mode}\n')
            self.assertEqual((mode, mode), (found.mode, found.nova_mode))

    def test_maximum_is_told_to_nova_as_the_nearest_it_knows(self):
        found = choice('[kvm_ext]\ncpu_mode = maximum\n', 'qemu')
        self.assertEqual('maximum', found.mode)
        self.assertEqual('host-passthrough', found.nova_mode)

    def test_nobody_chose(self):
        found = choice('')
        self.assertIsNone(found.mode)
        self.assertIsNone(found.nova_mode)

    def test_model_in_libvirts_own_spelling(self):
        found = choice(
            '[kvm_ext]\ncpu_mode = custom\ncpu_model = nehalem-ibrs\n')
        self.assertEqual(('Nehalem-IBRS',), found.models)

    def test_model_where_libvirt_tells_none(self):
        found = choice('[kvm_ext]\ncpu_mode = custom\ncpu_model = max\n',
                       known=())
        self.assertEqual(('max',), found.models)

    def test_misspelt_model(self):
        text = self.refused(
            '[kvm_ext]\ncpu_mode = custom\ncpu_model = Nehalm\n')
        self.assertIn('[kvm_ext] cpu_model = Nehalm', text)
        self.assertIn('Is Nehalem or Nehalem-IBRS meant?', text)

    def test_custom_without_model(self):
        text = self.refused('[kvm_ext]\ncpu_mode = custom\n')
        self.assertIn('[kvm_ext] cpu_mode = custom', text)
        self.assertIn('Set [kvm_ext] cpu_model', text)

    def test_model_without_custom(self):
        for mode in ('', 'cpu_mode = host-model', 'cpu_mode = none'):
            text = self.refused(f'[kvm_ext]\ncpu_model = EPYC\n{mode}\n')
            self.assertIn('[kvm_ext] cpu_model = EPYC has no effect', text)

    def test_host_passthrough_in_software(self):
        text = self.refused(
            '[libvirt]\ncpu_mode = host-passthrough\nvirt_type = qemu\n',
            'qemu')
        self.assertIn('[libvirt] cpu_mode = host-passthrough', text)
        self.assertIn('[libvirt] virt_type = qemu', text)
        self.assertIn('maximum', text)


class XMLTestCase(base.BaseTestCase):

    def element(self, text: str) -> etree._Element:
        return etree.fromstring(choice(text).to_xml())

    def test_none_has_no_element(self):
        self.assertIsNone(choice('[kvm_ext]\ncpu_mode = none\n').to_xml())

    def test_unset_is_host_model(self):
        self.assertEqual('host-model', self.element('').get('mode'))

    def test_custom_with_flags(self):
        cpu = self.element("""
            [kvm_ext]
            cpu_mode = custom
            cpu_model = nehalem
            [libvirt]
            cpu_model_extra_flags = PCID, +ssbd, -vme
            """)
        self.assertEqual('custom', cpu.get('mode'))
        self.assertEqual('Nehalem', cpu.findtext('model'))
        self.assertEqual(
            [('pcid', 'require'), ('ssbd', 'require'), ('vme', 'disable')],
            [(f.get('name'), f.get('policy')) for f in cpu.iter('feature')])


class CheckedTestCase(base.BaseTestCase):
    """What the domain capabilities say decides."""

    def chosen(self, text: str, name: str = documents.TCG
               ) -> choose.CPUChoice:
        host = documents.host(name)
        return choose.choose(test_settings.settings(text), host)

    def refused(self, text: str, name: str = documents.TCG) -> str:
        return str(self.assertRaises(
            errors.InvalidOption, self.chosen, text, name))

    def test_mode(self):
        text = self.refused(
            '[kvm_ext]\ncpu_mode = host-passthrough\nvirt_type = qemu\n')
        self.assertIn('[kvm_ext] cpu_mode = host-passthrough', text)
        self.assertIn('[kvm_ext] virt_type = qemu', text)
        self.assertIn('maximum', text)

    def test_unset_mode(self):
        self.assertIn('cpu_mode = unset', self.refused(
            '', documents.ONLY_CUSTOM))
        self.assertIsNone(self.chosen('').mode)

    def test_model(self):
        settings = '[kvm_ext]\ncpu_mode = custom\ncpu_model = haswell\n'
        text = self.refused(settings, documents.AMD)
        self.assertIn('[kvm_ext] cpu_model = Haswell', text)
        self.assertIn('hle, invpcid, pcid, rtm', text)
        # libvirt compares no CPU of an emulated guest.
        text, = self.chosen(settings, documents.NEW_TCG).warnings
        self.assertIn('lacks hle, invpcid, pcid, rtm, tsc-deadline', text)
        self.assertIn('without what is missing', text)
        self.assertIn('Westmere', text)

    def test_model_made_usable_by_extra_flags(self):
        found = self.chosen("""
            [kvm_ext]
            cpu_mode = custom
            cpu_model = Haswell
            [libvirt]
            cpu_model_extra_flags = -hle,-rtm,-pcid,-invpcid,-tsc-deadline
            """, documents.NEW_TCG)
        self.assertEqual(('Haswell',), found.models)

    def test_level(self):
        found = self.chosen(
            '[kvm_ext]\ncpu_mode = custom\ncpu_model = X86-64-V2-aes\n')
        self.assertEqual(('x86-64-v2-AES',), found.models)
        self.assertEqual(('kvm64',), found.nova_models)
        self.assertEqual((), found.warnings)
        self.assertIn('<model>kvm64</model>', found.to_xml())
        self.assertIn('name="aes"', found.to_xml())
        self.assertIn('avx512f', self.refused(
            '[kvm_ext]\ncpu_mode = custom\ncpu_model = x86-64-v4\n'))

    def test_flag(self):
        text = self.refused('[libvirt]\ncpu_model_extra_flags = avx3\n')
        self.assertIn('[libvirt] cpu_model_extra_flags = avx3', text)
        self.assertIn('avx2', text)

    def test_warnings(self):
        [none] = self.chosen('[kvm_ext]\ncpu_mode = none\n').warnings
        self.assertIn('x86-64-v2 and later', none)
        [deprecated] = self.chosen(
            '[kvm_ext]\ncpu_mode = custom\ncpu_model = kvm64\n',
            documents.AMD).warnings
        self.assertIn('deprecated', deprecated)
        [flag] = self.chosen(
            '[libvirt]\ncpu_model_extra_flags = pcid,-vme\n').warnings
        self.assertIn('pcid', flag)
        self.assertNotIn('vme', flag)

    def test_as_configured_asks_no_host(self):
        settings = test_settings.settings(
            '[kvm_ext]\ncpu_mode = custom\ncpu_model = haswell\n')
        self.assertEqual(('Haswell',), choose.as_configured(
            settings, ['Haswell']).models)
        self.assertEqual(
            ('haswell',), choose.as_configured(settings).models)

    def test_features_of_guests(self):
        host = documents.host(documents.TCG)
        text = '[libvirt]\ncpu_model_extra_flags = -avx2,pcid\n'
        [found] = self.chosen(text).guests_features(host)
        self.assertEqual(host.available - {'avx2'} | {'pcid'}, found)
        custom = self.chosen(
            text + 'cpu_mode = custom\ncpu_models = Nehalem,x86-64-v3\n')
        nehalem, level = custom.guests_features(host)
        self.assertEqual(
            documents.KNOWN.models['Nehalem'] | {'pcid'}, nehalem)
        self.assertIn('bmi2', level)
        self.assertNotIn('avx2', level)
        self.assertEqual((), self.chosen(
            '[kvm_ext]\ncpu_mode = none\n').guests_features(host))


class GuestTestCase(base.BaseTestCase):

    CUSTOM = '[kvm_ext]\ncpu_mode = custom\ncpu_model = Nehalem\n'
    MODELS = """
        [libvirt]
        cpu_mode = custom
        cpu_models = Nehalem, Westmere, x86-64-v3
        """
    HOST = documents.host(documents.TCG)

    def chosen(self, text: str = '', flavor=None, image=None,
               name: str = documents.TCG) -> choose.GuestChoice:
        flavor, image = flavor or {}, image or {}
        settings = test_settings.settings(text)
        host = documents.host(name)
        wishes = request.GuestRequest.read(
            {f'kvm_ext:{k}': v for k, v in flavor.items()},
            {f'image_kvm_ext_{k}': v for k, v in image.items()})
        return choose.choose_for_guest(
            choose.choose(settings, host),
            choose.GuestNeeds(
                wishes, request.required_traits(flavor),
                request.required_traits(image)),
            settings, host, test_traits.MAPPING)

    def refused(self, *args, **kwargs) -> str:
        return str(self.assertRaises(
            errors.InvalidRequest, self.chosen, *args, **kwargs))

    def origins(self, found: choose.GuestChoice) -> dict[str, set[str]]:
        origins: dict[str, set[str]] = {}
        for feature in found.features(self.HOST):
            origins.setdefault(feature.origin, set()).add(feature.name)
        return origins

    def test_nobody_asks(self):
        found = self.chosen()
        self.assertEqual(('host-model', None, False),
                         (found.mode, found.model, found.is_wish))
        self.assertEqual('[libvirt] cpu_mode', found.said)
        self.assertEqual(
            {'host expansion': documents.host(documents.TCG).available},
            self.origins(found))
        self.assertEqual('<cpu mode="host-model"/>', found.cpu.to_xml())

    def test_flavor_asks_for_a_level(self):
        found = self.chosen(flavor={'cpu_model': 'x86-64-V3'})
        self.assertEqual(('custom', 'x86-64-v3', 'flavor', True),
                         (found.mode, found.model, found.asked_by,
                          found.is_wish))
        self.assertEqual(
            'flavor extra spec kvm_ext:cpu_model = x86-64-V3', found.said)
        origins = self.origins(found)
        level = levels.find('x86-64-v3')
        self.assertEqual(level.needed, origins['level x86-64-v3'])
        self.assertEqual(
            documents.KNOWN.models['kvm64'] - level.features,
            origins['model kvm64'])
        self.assertEqual(level.cpu, found.cpu)

    def test_extra_flags(self):
        found = self.chosen(
            '[libvirt]\ncpu_model_extra_flags = -sse4.2,ssbd\n',
            flavor={'cpu_model': 'Nehalem'})
        self.assertEqual({'sse4.2', 'ssbd'}, self.origins(found)['extra flag'])
        self.assertEqual(
            {('sse4.2', 'disable', '[libvirt] cpu_model_extra_flags'),
             ('ssbd', 'require', '[libvirt] cpu_model_extra_flags')},
            {(f.name, f.policy, f.asked_by) for f in found.features(self.HOST)
             if f.origin == 'extra flag'})
        self.assertEqual(
            (('sse4.2', 'disable'), ('ssbd', 'require')), found.cpu.features)

    def test_flavor_may_ask_for_any_mode(self):
        for mode in ('maximum', 'host-model', 'none'):
            found = self.chosen(self.CUSTOM, flavor={'cpu_mode': mode})
            self.assertEqual((mode, None), (found.mode, found.model))
        self.assertIsNone(found.cpu)
        self.assertEqual((), found.features(self.HOST))

    def test_not_what_the_host_cannot_give(self):
        text = self.refused(flavor={'cpu_mode': 'host-passthrough'})
        self.assertIn('flavor extra spec kvm_ext:cpu_mode', text)
        self.assertIn('maximum', text)
        text = self.refused(flavor={'cpu_model': 'Haswell'})
        self.assertIn('lacks hle', text)
        self.assertIn('x86-64-v3', text)
        self.assertIn('Is Nehalem', self.refused(
            flavor={'cpu_model': 'Nehalm'}))
        self.assertIn('Is host-model meant', self.refused(
            flavor={'cpu_mode': 'hostmodel'}))

    def test_image_is_limited(self):
        found = self.chosen(image={'cpu_model': 'x86-64-v2'})
        self.assertEqual(('x86-64-v2', 'image'),
                         (found.model, found.asked_by))
        text = self.refused(image={'cpu_model': 'Nehalem'})
        self.assertIn('image property kvm_ext_cpu_model = Nehalem', text)
        self.assertIn('[kvm_ext] image_cpu_models', text)
        self.assertIn('They may ask for x86-64-v2.', text)
        text = self.refused(self.CUSTOM, image={'cpu_mode': 'host-model'})
        self.assertIn('[kvm_ext] image_cpu_modes', text)
        self.assertIn('They may ask for custom.', text)

    def test_image_allowed_more(self):
        text = ('[kvm_ext]\nimage_cpu_modes = maximum\n'
                'image_cpu_models = nehalem\n')
        self.assertEqual('maximum', self.chosen(
            text, image={'cpu_mode': 'maximum'}).mode)
        # Without custom among the modes no model helps.
        self.assertIn('image_cpu_modes', self.refused(
            text, image={'cpu_model': 'Nehalem'}))
        self.assertEqual('Nehalem', self.chosen(
            text.replace('maximum', 'custom'),
            image={'cpu_model': 'NEHALEM'}).model)

    def test_image_allowed_nothing(self):
        text = '[kvm_ext]\nimage_cpu_modes =\nimage_cpu_models =\n'
        self.assertIn('They may ask for none', self.refused(
            text, image={'cpu_mode': 'maximum'}))
        self.assertIn('image_cpu_modes', self.refused(
            text, image={'cpu_model': 'x86-64-v2'}))

    def test_image_may_ask_for_what_all_get(self):
        nothing = 'image_cpu_modes =\nimage_cpu_models =\n'
        found = self.chosen(self.CUSTOM + nothing,
                            image={'cpu_model': 'nehalem'})
        self.assertEqual('Nehalem', found.model)
        found = self.chosen(self.CUSTOM + nothing,
                            image={'cpu_mode': 'custom'})
        self.assertEqual('Nehalem', found.model)
        found = self.chosen('[kvm_ext]\n' + nothing,
                            image={'cpu_mode': 'host-model'})
        self.assertEqual('host-model', found.mode)

    def test_flavor_and_image(self):
        found = self.chosen(flavor={'cpu_model': 'Nehalem'},
                            image={'cpu_model': 'nehalem'})
        self.assertEqual('flavor', found.asked_by)
        found = self.chosen('[kvm_ext]\nimage_cpu_modes =\n',
                            flavor={'cpu_mode': 'custom'},
                            image={'cpu_model': 'x86-64-v2'})
        self.assertEqual('x86-64-v2', found.model)
        for flavor, image in (
                ({'cpu_model': 'Nehalem'}, {'cpu_model': 'x86-64-v2'}),
                ({'cpu_mode': 'maximum'}, {'cpu_model': 'x86-64-v2'}),
                ({'cpu_mode': 'maximum', 'cpu_model': 'Nehalem'}, {}),
                ({'cpu_model': 'Nehalem'}, {'cpu_mode': 'host-model'})):
            self.assertIn('contradict each other', self.refused(
                flavor=flavor, image=image))

    def test_custom_without_a_model(self):
        text = self.refused(flavor={'cpu_mode': 'custom'})
        self.assertIn('names no CPU model', text)
        self.assertIn('kvm_ext:cpu_model', text)
        self.assertEqual('Nehalem', self.chosen(
            self.CUSTOM, flavor={'cpu_mode': 'custom'}).model)

    def test_traits_choose_among_models(self):
        for who in ('flavor', 'image'):
            for trait, model in (('HW_CPU_X86_SSE3', 'Nehalem'),
                                 ('HW_CPU_X86_AESNI', 'Westmere'),
                                 ('HW_CPU_X86_AVX2', 'x86-64-v3'),
                                 ('HW_CPU_HYPERTHREADING', 'Nehalem')):
                found = self.chosen(self.MODELS, **{
                    who: {f'trait:{trait}': 'required'}}, name=documents.TCG)
                self.assertEqual(model, found.model)

    def test_traits_of_both(self):
        text = """
            [libvirt]
            cpu_mode = custom
            cpu_models = Nehalem, Opteron_G2, Westmere
            """
        text = self.refused(
            text, flavor={'trait:HW_CPU_X86_AESNI': 'required'},
            image={'trait:HW_CPU_X86_SVM': 'required'})
        self.assertIn('the flavor and the image', text)
        self.assertIn('HW_CPU_X86_SVM', text)

    def test_extra_flags_count(self):
        aes = {'trait:HW_CPU_X86_AESNI': 'required'}
        self.assertEqual('Nehalem', self.chosen(
            self.CUSTOM + '[libvirt]\ncpu_model_extra_flags = AES\n',
            flavor=aes).model)
        self.assertIn('HW_CPU_X86_AESNI', self.refused(
            self.MODELS + 'cpu_model_extra_flags = -aes\n', flavor=aes))

    def test_traits_contradict_the_model_asked_for(self):
        text = self.refused(
            flavor={'cpu_model': 'Nehalem'},
            image={'trait:HW_CPU_X86_AVX2': 'required'})
        self.assertIn('kvm_ext:cpu_model = Nehalem', text)
        self.assertIn('HW_CPU_X86_AVX2, required by the image', text)

    def test_hostile_text(self):
        for value in ('\x1b[31m' * 100, '', ' ', '\u202e', 'a' * 255):
            for name in ('cpu_mode', 'cpu_model'):
                text = self.refused(image={name: value})
                self.assertTrue(text.isprintable(), text)
                self.assertLess(len(text), 500)
