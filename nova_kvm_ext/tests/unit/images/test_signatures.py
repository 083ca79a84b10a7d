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

import bz2
import gzip
import io
import lzma
import struct
import tarfile

from oslotest import base

from nova_kvm_ext.images import signatures
from nova_kvm_ext.images import vmdk
from nova_kvm_ext.tests.unit.images import corpus


def tar(name: str, style: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w', format=style) as archive:
        member = tarfile.TarInfo(name)
        member.mtime = 1.5
        archive.addfile(member)
    return out.getvalue()[:signatures.HEAD]


def name(head: bytes) -> str | None:
    found = signatures.packed(head)
    return None if found is None else found.name


class PackedTestCase(base.BaseTestCase):

    def test_compressed(self):
        for wanted, head in (
                ('gzip', gzip.compress(b'x' * 9)),
                ('bzip2', bz2.compress(b'x')), ('xz', lzma.compress(b'x')),
                ('zstd', b'\x28\xb5\x2f\xfd\0'), ('lz4', b'\x04\x22\x4d\x18'),
                ('lzip', b'LZIP\1'), ('ZIP', b'PK\3\4'),
                ('7z', b'7z\xbc\xaf\x27\x1c')):
            self.assertEqual(wanted, name(head))
            self.assertEqual(wanted, name(head.ljust(4096, b'\1')))
            found = signatures.packed(head)
            self.assertIn('OLD', found.unpack)
            self.assertIsNone(found.disk_format)

    def test_archives(self):
        for style in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT,
                      tarfile.PAX_FORMAT):
            self.assertEqual('OVA', name(tar('Server.OVF', style)))
            self.assertEqual('tar', name(tar('disk.vmdk', style)))
        self.assertEqual('tar -xf OLD',
                         signatures.packed(tar('x.ovf')).unpack)

    def test_what_is_none(self):
        archive = bytearray(tar('disk.vmdk'))
        archive[0] ^= 1
        for head in (b'', b'\x1f\x8b', b'\x1f\x8b\x08' + bytes(4000),
                     b'BZh9' + bytes(20), bytes(archive), bytes(4096),
                     tar('disk.vmdk')[:511],
                     tar('x')[:148] + b'x' * 8 + tar('x')[156:],
                     corpus.qcow2()[:4096]):
            self.assertIsNone(signatures.packed(head))

    def test_a_boot_sector_is_none(self):
        for head in (b'PK\3\4', lzma.compress(b'x')):
            head = head.ljust(510, b'\0') + b'\x55\xaa'
            self.assertIsNone(signatures.packed(head))
            self.assertIsNotNone(signatures.packed(head[:511] + b'\0'))


class ByQEMUTestCase(base.BaseTestCase):

    def test_formats(self):
        for wanted, head, tail in (
                ('parallels', b'WithoutFreeSpace', b''),
                ('parallels', b'WithouFreSpacExt', b''),
                ('vmdk', b'COWD', b''), ('vpc', b'', b'conectix'),
                ('dmg', b'', b'koly'),
                ('bochs', b'Bochs Virtual HD Image', b''),
                ('cloop', b'#!/bin/sh\n#V2.0 Format\n', b''),
                (None, b'conectix', b'')):
            found = signatures.by_qemu(head, tail)
            self.assertEqual(wanted, found and found.disk_format)

    def test_qcow(self):
        head = bytearray(corpus.qcow2(features=1 << 40)[:104])
        self.assertEqual((3, 1 << 40, False), signatures.qcow(bytes(head)))
        head[32:36] = struct.pack('>I', 2)
        self.assertEqual((3, 1 << 40, True), signatures.qcow(bytes(head)))
        head[4:8] = struct.pack('>I', 2)
        self.assertEqual((2, 0, True), signatures.qcow(bytes(head)))
        head[4:8] = struct.pack('>I', 1)
        head[36:40] = struct.pack('>I', 0)
        self.assertEqual((1, 0, False), signatures.qcow(bytes(head)))
        head[36:40] = struct.pack('>I', 1)
        self.assertEqual((1, 0, True), signatures.qcow(bytes(head)))
        self.assertIsNone(signatures.qcow(bytes(head[:103])))
        self.assertIsNone(signatures.qcow(bytes(104)))

    def test_where_a_descriptor_is_looked_for(self):
        """QEMU guesses by the first 512 bytes."""
        text = b'version=1'
        self.assertEqual(vmdk.Problem.OTHER_FILES, vmdk.problem(
            b'#' * 503 + b'\n' + text))
        self.assertIsNone(vmdk.problem(b'#' * 504 + b'\n' + text))

    def test_extents(self):
        """VMware's have no place for a descriptor, QEMU's an empty one."""
        text = corpus.descriptor()
        for image, wanted in (
                (corpus.sparse_vmdk(text), None),
                (corpus.sparse_vmdk(b''), vmdk.Problem.EXTENT),
                (corpus.sparse_vmdk(text, offset=0), vmdk.Problem.EXTENT),
                (corpus.sparse_vmdk(b'', sectors=0), vmdk.Problem.EXTENT),
                (corpus.sparse_vmdk(text, capacity=0),
                 vmdk.Problem.OTHER_FILES),
                (corpus.sparse_vmdk(text, sectors=128), None),
                (corpus.sparse_vmdk(text, sectors=129), vmdk.Problem.LONG),
                (b'KDMV', vmdk.Problem.CUT_SHORT)):
            self.assertEqual(wanted, vmdk.problem(image[:vmdk.HEAD]))
