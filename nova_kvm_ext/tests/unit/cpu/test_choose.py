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

from nova_kvm_ext.cpu import choose
from nova_kvm_ext import errors
from nova_kvm_ext.tests.unit import test_conf

MODELS = ('486', 'EPYC', 'Nehalem', 'Nehalem-IBRS', 'Skylake-Server')


def choice(text: str, virt_type: str = 'kvm',
           known: tuple[str, ...] = MODELS) -> choose.CPUChoice:
    return choose.choose(test_conf.settings(text), virt_type, known)


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
