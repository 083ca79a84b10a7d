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
import gzip
import os
import time
from typing import Any
from unittest import mock

import fixtures
from oslo_utils.imageutils import format_inspector
from oslotest import base

from nova_kvm_ext.images import facts
from nova_kvm_ext.images import qemu_img
from nova_kvm_ext.images import signatures
from nova_kvm_ext.images import verdict
from nova_kvm_ext.images import vmdk
from nova_kvm_ext.tests.unit.images import corpus

POLICY = verdict.Policy(
    max_virtual_size=1 << 40, force_raw=False, raw_only=False,
    vmdk_types=('streamOptimized', 'monolithicSparse'))
LIMITS = qemu_img.Limits(cpu_time=30, memory=2 << 30)
GIB = 1 << 30

SOUND = verdict.Facts(4096, ('qcow2',), info=verdict.Info('qcow2', GIB))


def said(found: verdict.Facts, declared: str, **policy: Any
         ) -> tuple[str, str]:
    decided = verdict.judge(found, declared,
                            dataclasses.replace(POLICY, **policy))
    assert not decided.accepted
    return decided.check, decided.said


class VerdictTestCase(base.BaseTestCase):

    def test_accepted(self):
        decided = verdict.judge(SOUND, 'qcow2', POLICY, GIB)
        self.assertTrue(decided.accepted)
        self.assertEqual((GIB, None),
                         (decided.virtual_size, decided.converted_to))

    def test_what_is_converted(self):
        for disk_format, force_raw, raw_only, wanted in (
                ('raw', True, True, None), ('raw', False, False, None),
                ('qcow2', True, False, 'raw'), ('qcow2', False, False, None),
                ('qed', True, False, 'raw'), ('qed', False, False, 'qcow2'),
                ('qed', False, True, 'raw'), ('vmdk', False, False, 'qcow2'),
                ('vmdk', False, True, 'raw'), ('vdi', False, False, None)):
            policy = dataclasses.replace(
                POLICY, force_raw=force_raw, raw_only=raw_only)
            self.assertEqual(wanted, policy.converted_to(disk_format))

    def test_raw_to_qemu(self):
        for declared, formats in (
                ('raw', ('raw',)), ('raw', ('gpt',)), ('iso', ('iso',)),
                ('iso', ('gpt', 'iso')), ('ami', ('raw',)), ('aki', ('gpt',))):
            decided = verdict.judge(verdict.Facts(
                1, formats, info=verdict.Info('raw', 1)), declared, POLICY)
            self.assertTrue(decided.accepted, (declared, formats))
            self.assertEqual('raw', decided.disk_format)

    def test_wrongly_declared(self):
        self.assertEqual(
            ('content', 'It is qcow2, not raw, as declared. Upload it again '
             'with --disk-format qcow2.'), said(SOUND, 'raw'))
        self.assertEqual(
            ('content', 'It is raw, not iso, as declared. Upload it again '
             'with --disk-format raw.'),
            said(verdict.Facts(1, ('gpt',)), 'iso'))
        self.assertIn('cut short',
                      said(verdict.Facts(1, ('raw',)), 'qcow2')[1])

    def test_qed_declared_as_something_else(self):
        self.assertIn('--disk-format qed',
                      said(verdict.Facts(1, ('qed',)), 'raw')[1])

    def test_qemu_sees_something_else(self):
        found = dataclasses.replace(SOUND, info=verdict.Info('vpc', GIB))
        self.assertEqual(
            ('content', 'QEMU takes it for vpc, not qcow2. Convert it: '
             'qemu-img convert -f vpc -O qcow2 OLD NEW'),
            said(found, 'qcow2'))

    def test_other_files(self):
        for info in (verdict.Info('qcow2', GIB, backing_file=True),
                     verdict.Info('qcow2', GIB, data_file=True)):
            self.assertIn('Flatten it: qemu-img convert -f qcow2',
                          said(dataclasses.replace(SOUND, info=info),
                               'qcow2')[1])

    def test_vmdk_types(self):
        found = verdict.Facts(1, ('vmdk',), info=verdict.Info(
            'vmdk', GIB, create_type='monolithicSparse'))
        self.assertTrue(verdict.judge(found, 'vmdk', POLICY).accepted)
        self.assertEqual('vmdk_allowed_types',
                         said(found, 'vmdk', vmdk_types=())[0])

    def test_words_of_a_tenant_are_cut(self):
        for length, shown in ((24, 'x' * 24), (25, 'x' * 21 + '...')):
            found = verdict.Facts(1, ('vmdk',), info=verdict.Info(
                'vmdk', GIB, create_type='x' * length))
            self.assertTrue(said(found, 'vmdk')[1].startswith(
                f'VMDK subformat {shown} is not allowed.'))

    def test_versions_of_qcow2(self):
        for version, words in (
                (1, 'It is qcow version 1.'), (2, 'backing file'),
                (3, 'backing file'),
                (4, 'features that QEMU does not know'),
                (0, 'features that QEMU does not know')):
            found = verdict.Facts(
                1, ('qcow2',), failed_checks=('backing_file',),
                qcow=(version, 0, False))
            self.assertIn(words, said(found, 'qcow2')[1])

    def test_a_kernel_of_its_own_is_the_exception(self):
        """A packed disk boots nothing, unless there is a kernel beside it."""
        packed = verdict.Facts(
            4096, ('raw',), info=verdict.Info('raw', GIB),
            packed=signatures.packed(gzip.compress(b'x')))
        self.assertFalse(verdict.judge(packed, 'raw', POLICY).accepted)
        self.assertTrue(verdict.judge(packed, 'raw', POLICY,
                                      kernel=True).accepted)

    def test_size(self):
        check, words = said(SOUND, 'qcow2', max_virtual_size=GIB - 1)
        self.assertEqual('virtual size', check)
        self.assertIn('image_max_virtual_gb', words)
        decided = verdict.judge(SOUND, 'qcow2', POLICY, GIB - 1)
        self.assertEqual('flavor', decided.check)

    def test_all_of_it_fits_into_a_fault(self):
        long = 'x' * 500
        for found, declared in (
                (verdict.Facts(1, ('qed',), qed_error=('tables', long)),
                 'qed'),
                (verdict.Facts(1, ('qcow2',), info_error=long), 'qcow2'),
                (verdict.Facts(1, (long,) * 2), 'raw'),
                (verdict.Facts(1, ('qcow2',), failed_checks=(long,)), 'raw'),
                (SOUND, long)):
            self.assertLessEqual(len(said(found, declared)[1]),
                                 verdict.FAULT_LENGTH)

    def test_content(self):
        """What the disk looks like decides what it is made into."""
        unsound = verdict.Content(('gpt',), False, 'raw')
        nested = verdict.Content(('qcow2',), True, 'qcow2')
        for content, overlays, wanted in (
                (verdict.Content(('gpt',), True, 'raw'), True, 'raw'),
                (unsound, True, None), (unsound, False, 'raw'),
                (nested, True, None), (nested, False, 'refused')):
            policy = dataclasses.replace(
                POLICY, force_raw=True, overlays=overlays)
            decided = verdict.judge(dataclasses.replace(
                SOUND, content=content), 'qcow2', policy)
            self.assertEqual(wanted, decided.converted_to
                             if decided.accepted else 'refused')
            self.assertEqual(decided.accepted and overlays,
                             decided.inspected)

    def test_a_disk_that_cannot_be_read(self):
        """Refused where it has to be read to be converted."""
        found = dataclasses.replace(SOUND, content_error='Invalid argument')
        self.assertEqual(
            ('qemu-img', 'QEMU cannot read its disk: Invalid argument. Check '
             'it: qemu-img check -f qcow2 OLD'),
            said(found, 'qcow2', force_raw=True))
        self.assertTrue(verdict.judge(found, 'qcow2', POLICY).accepted)

    def test_encrypted(self):
        for found, declared in (
                (verdict.Facts(1, ('qcow2',), qcow=(3, 0, True)), 'qcow2'),
                (verdict.Facts(1, ('qcow2',), qcow=(3, 0, True)), 'raw'),
                (verdict.Facts(1, ('luks',)), 'luks'),
                (verdict.Facts(1, ('luks',)), 'ami')):
            check, words = said(found, declared)
            self.assertEqual('encrypted', check)
            self.assertTrue(words.endswith('with qemu-img convert.'), words)

    def test_which_backends_make_overlays(self):
        for images_type, use_cow, wanted in (
                ('qcow2', False, True), ('default', True, True),
                ('default', False, False), ('raw', True, False),
                ('flat', True, False), ('lvm', True, False)):
            nova = mock.MagicMock(use_cow_images=use_cow)
            nova.libvirt.images_type = images_type
            self.assertEqual(wanted, verdict.Policy.from_conf(
                mock.MagicMock(), nova).overlays)


class VMDKTestCase(base.BaseTestCase):

    def test_what_qemu_takes_for_a_descriptor(self):
        for head in (b'version=1\n', b'# a\n#b\r\n   \nversion=2\n',
                     b'#a\rb\nversion=1\n', b'#\0\nversion=3\r\n'):
            self.assertEqual(vmdk.Problem.OTHER_FILES, vmdk.problem(head))

    def test_what_is_none(self):
        for head in (b'', b'#!/bin/sh\necho version=1\n', b'\0' * 512,
                     corpus.sparse_vmdk(corpus.descriptor())[:512]):
            self.assertIsNone(vmdk.problem(head))


class CorpusTestCase(base.BaseTestCase):
    """Hostile images that need no qemu-img to be refused get none to see."""

    def setUp(self):
        super().setUp()
        self.path = os.path.join(
            self.useFixture(fixtures.TempDir()).path, 'image')
        self.qemu_img = self.useFixture(fixtures.MockPatchObject(
            qemu_img, 'run', side_effect=AssertionError)).mock

    def test_refused(self):
        images = [i for i in corpus.images() if not i.by_qemu]
        self.assertGreater(len(images), 300)
        for image in images:
            image.write(self.path)
            started = time.monotonic()
            with open(self.path, 'rb') as f:
                found = facts.read(f, image.declared, LIMITS)
                detected = facts.detect(f)
            self.assertLess(time.monotonic() - started, 10, image.name)
            decided = verdict.judge(found, image.declared, POLICY)
            self.assertFalse(decided.accepted, image.name)
            self.assertTrue(decided.reason and decided.remedy, image.name)
            self.assertLess(
                len(decided.reason + (decided.brief or decided.remedy)),
                verdict.FAULT_LENGTH, decided)
            self.assertTrue(decided.said.isprintable(), image.name)
            self.assertIsNotNone(
                format_inspector.get_inspector(detected), image.name)

    def test_names_are_unique(self):
        names = [image.name for image in corpus.images()]
        self.assertEqual(len(set(names)), len(names))

    def test_small_clusters(self):
        """Tables that a file's buffer has in part."""
        image = corpus._image(
            'sound', 'qed', corpus.qed(cluster=4096, table=2, l1=4096),
            (4096, corpus._entries(12288)),
            (12288, corpus._entries(1, 20480, *[1] * 254)), size=24576)
        image.write(self.path)
        with open(self.path, 'rb') as f:
            found = facts.read(f, 'raw', LIMITS)
        self.assertIsNone(found.qed_error)
        self.assertEqual(4096, found.qed_image.allocated)

    def test_a_parser_that_breaks_down(self):
        with open(self.path, 'wb') as f:
            f.write(bytes(4096))
        with mock.patch.object(format_inspector.RawFileInspector,
                               'safety_check', side_effect=KeyError):
            with open(self.path, 'rb') as f:
                found = facts.read(f, 'raw', LIMITS)
        self.assertTrue(found.unreadable)

    def test_unreadable_file(self):
        with open(self.path, 'wb') as f:
            f.write(bytes(4096))
        with mock.patch.object(format_inspector, 'InspectWrapper',
                               side_effect=OSError):
            with open(self.path, 'rb') as f:
                self.assertRaises(OSError, facts.read, f, 'raw', LIMITS)
