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
        text = self.refused(
            '<domainCapabilities><cpu><mode name="custom" supported="yes">'
            '<model>a b</model></mode></cpu></domainCapabilities>')
        self.assertIn("'a b'", text)

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
