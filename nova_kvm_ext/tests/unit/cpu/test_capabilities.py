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

import random

import hypothesis
from hypothesis import strategies
from oslotest import base

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import document
from nova_kvm_ext import errors
from nova_kvm_ext.tests.unit.cpu import documents


def parse(name: str) -> capabilities.DomainCapabilities:
    return capabilities.parse(documents.load(name))


class CapturedTestCase(base.BaseTestCase):

    def test_every_document(self):
        self.assertGreaterEqual(len(documents.names()), 17)
        for name in documents.names():
            found = parse(name)
            self.assertIn(found.virt_type, ('kvm', 'qemu'), name)
            self.assertIn(found.arch, ('x86_64', 'i686', 'aarch64'), name)

    def test_libvirt_9_under_tcg(self):
        found = parse(documents.TCG)
        self.assertEqual('/usr/bin/qemu-system-x86_64', found.emulator)
        self.assertEqual('pc-i440fx-7.2', found.machine)
        self.assertEqual('qemu', found.virt_type)
        self.assertEqual(
            {'maximum', 'host-model', 'custom'}, found.modes)
        self.assertIs(False, found.supports('host-passthrough'))
        self.assertIs(True, found.supports('none'))
        self.assertEqual(('on', 'off'), found.maximum_migratable)
        self.assertEqual((), found.host_passthrough_migratable)
        self.assertEqual(53, len(found.models))
        self.assertEqual(18, len(found.usable_models))
        self.assertEqual(
            capabilities.Model('Nehalem', 'yes', 'Intel'),
            found.model('nehalem'))
        self.assertIsNone(found.model('qemu64').vendor)
        self.assertIsNone(found.model('EPYC').blockers)
        self.assertIsNone(found.model('Nehalm'))

    def test_host_model(self):
        found = parse(documents.TCG).host_model
        self.assertEqual(('custom', 'EPYC', 'AMD'),
                         (found.mode, found.model, found.vendor))
        self.assertIn('erms', found.required)
        self.assertIn('vme', found.disabled)
        self.assertEqual(28, len(found.features))

    def test_libvirt_11(self):
        found = parse(documents.NEW_TCG)
        self.assertEqual(145, len(found.models))
        self.assertEqual(36, len(found.usable_models))
        self.assertEqual(
            capabilities.Model(
                'Haswell', 'no', 'Intel', canonical='Haswell-v1',
                blockers=('hle', 'invpcid', 'pcid', 'rtm', 'tsc-deadline')),
            found.model('Haswell'))
        # What is usable has nothing that blocks it.
        for model in found.models:
            self.assertIs(model.usable == 'no',
                          model.blockers is not None, model.name)

    def test_kvm(self):
        found = parse(documents.BROKEN_KVM)
        self.assertEqual(('on', 'off'), found.host_passthrough_migratable)
        self.assertIs(True, found.supports('host-passthrough'))
        self.assertEqual({'pni'}, found.host_model.disabled)

    def test_libvirt_12_8(self):
        """With a vendor of two words, which once cost the whole document."""
        found = parse(documents.NEWEST_KVM)
        self.assertEqual((), found.odd)
        self.assertEqual('Zhaoxin CentaurHauls',
                         found.model('YongFeng').vendor)
        self.assertEqual(48, found.address_bits)
        self.assertGreater(len(found.models), 150)
        self.assertIn('invtsc', found.host_model.required)


class ByHandTestCase(base.BaseTestCase):

    def test_libvirt_8(self):
        found = parse(documents.INTEL)
        self.assertIsNone(found.model('Nehalem').vendor)
        self.assertIs(True, found.model('kvm64').deprecated)
        self.assertEqual('unknown', found.model('Westmere').usable)

    def test_libvirt_12_with_what_is_new(self):
        found = parse(documents.AMD)
        self.assertIs(True, found.supports('mode-of-the-future'))
        self.assertEqual(('hle', 'pcid', 'rtm'),
                         found.model('Haswell').blockers)
        self.assertEqual(6, len(found.host_model.features) - 1)

    def test_nothing_told_is_no_no(self):
        found = parse(documents.NO_CPU)
        self.assertIsNone(found.modes)
        self.assertIsNone(found.supports('host-model'))
        self.assertIs(True, found.supports('none'))
        self.assertIsNone(found.host_model)
        self.assertEqual((), found.models)

    def test_no_host_model(self):
        found = parse(documents.ONLY_CUSTOM)
        self.assertIs(False, found.supports('host-model'))
        self.assertIsNone(found.host_model)
        self.assertIsNone(found.emulator)


class HostileTestCase(base.BaseTestCase):

    def refused(self, text) -> str:
        return str(self.assertRaises(
            errors.HostError, capabilities.parse, text))

    def test_no_xml(self):
        for text in ('', 'no', '<', '<a>', b'\xff\xfe\x00', '\ud800',
                     '<?xml version="1.0" encoding="nonsense"?><a/>' * 2):
            self.assertIn('libvirt\'s answer about domain capabilities',
                          self.refused(text))

    def test_another_document(self):
        self.assertIn('is a <domain>. It should be a <domainCapabilities>',
                      self.refused('<domain/>'))

    def test_too_long(self):
        self.assertIn('longer than 4 MiB', self.refused(
            ' ' * (document.MAX_BYTES + 1)))
        # As long as it may be.
        longest = '<a/>'.ljust(document.MAX_BYTES)
        self.assertEqual('a', document.parse(longest, 'x').tag)

    def test_too_deep(self):
        self.refused('<domainCapabilities>' + '<cpu>' * 5000)

    def test_document_type(self):
        self.assertIn('document type', self.refused(
            '<!DOCTYPE x [<!ENTITY a SYSTEM "/etc/passwd">]>'
            '<domainCapabilities><path>&a;</path></domainCapabilities>'))

    def test_bomb(self):
        entities = '<!ENTITY a0 "ha">' + ''.join(
            f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
        self.refused(f'<!DOCTYPE x [{entities}]><domainCapabilities>'
                     f'<arch a="&a11;">&a11;</arch></domainCapabilities>')

    def test_names_that_can_be_none(self):
        """Each costs its entry, and is said."""
        found = capabilities.parse("""<domainCapabilities><cpu>
          <mode/><mode name='&lt;' supported='yes'/>
          <mode name='host-model' supported='yes'>
            <model>Nehalem</model><vendor>,</vendor>
            <maxphysaddr mode='passthrough' limit='x'/>
            <feature policy='require' name='aes'/>
            <feature policy='wish' name='avx'/>
            <feature policy='require' name='&#155;31m'/></mode>
          <mode name='custom' supported='yes'>
            <model usable='yes'>Nehalem</model>
            <model usable='no' vendor='Zhaoxin CentaurHauls'>YongFeng</model>
            <blockers model='YongFeng'>
              <feature name='aes'/><feature/><feature name=';'/></blockers>
            <blockers model='nobody'><feature name='aes'/></blockers>
            <blockers/>
            <model usable='perhaps' vendor=''>486</model>
            <model usable='yes'/><model usable='yes'>&#155;31m</model>
            <model usable='yes'>Twice</model>
            <model usable='no'>Twice</model>
          </mode></cpu></domainCapabilities>""")
        self.assertEqual({'host-model', 'custom'}, found.modes)
        self.assertEqual((('aes', 'require'),), found.host_model.features)
        self.assertIsNone(found.host_model.vendor)
        self.assertIsNone(found.address_bits)
        self.assertEqual([
            capabilities.Model('Nehalem', 'yes'),
            capabilities.Model('YongFeng', 'no', 'Zhaoxin CentaurHauls',
                               blockers=('aes',)),
            capabilities.Model('486', 'unknown'),
            capabilities.Model('Twice', 'unknown')], list(found.models))
        self.assertEqual(9, len(found.odd), str(found.odd))
        for said in found.odd:
            self.assertTrue(said.isprintable(), said)

    def test_a_host_model_of_an_odd_name_is_not_told(self):
        found = capabilities.parse(
            "<domainCapabilities><cpu><mode name='host-model' "
            "supported='yes'><model>;</model></mode></cpu>"
            "</domainCapabilities>")
        self.assertIsNone(found.host_model)
        self.assertEqual(["the CPU model ';'"], list(found.odd))

    def test_control_characters_do_not_get_out(self):
        found = capabilities.parse(
            '<domainCapabilities><machine>a&#133;b&#10;c</machine>'
            '</domainCapabilities>')
        self.assertEqual('a b c', found.machine)

    @hypothesis.given(strategies.binary(max_size=200))
    def test_any_bytes(self, text):
        self.assertRaises(errors.HostError, capabilities.parse, text)

    @hypothesis.settings(deadline=None, max_examples=300)
    @hypothesis.given(
        strategies.sampled_from([
            documents.TCG, documents.INTEL, documents.AMD, documents.ARM]),
        strategies.integers(0, 1 << 32))
    def test_mutated_documents(self, name, seed):
        """Whatever is changed, it is understood or refused in our words."""
        rng = random.Random(seed)
        text = documents.load(name)
        for _ in range(rng.randint(1, 8)):
            start = rng.randrange(len(text))
            end = start + rng.choice((0, 1, 1, 5, 40))
            other = rng.randrange(len(text))
            text = text[:start] + rng.choice((
                '', '<', '>', "'", '&', '&#0;', '\x1b', '\u202e', 'no',
                text[other:other + 30])) + text[end:]
        try:
            capabilities.parse(text)
        except errors.HostError as e:
            self.assertTrue(str(e).isprintable(), e)
