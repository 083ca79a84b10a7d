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

"""qcow2 headers: what is settled by them, and what is left to qemu-img.

tests/functional/test_disk_sizes holds the same against qemu-img itself.
"""

import struct
from typing import Any

import ddt
import hypothesis
from hypothesis import strategies
from oslotest import base

from nova_kvm_ext.images import qcow2

EXTENSION = struct.Struct('>II')
VDI = 0x7f10dabe
"""What QEMU takes for the signature of VDI, in the middle of a header."""


def header(*, magic: bytes = b'QFI\xfb', version: int = 3,
           backing: bytes = b'', backing_offset: int | None = None,
           backing_length: int | None = None, bits: int = 16,
           size: int = 1 << 30, encryption: int = 0, l1_size: int = 2,
           l1_offset: int = 3 << 16, refcounts: int = 1 << 16,
           refcount_clusters: int = 1, snapshots: int = 0,
           snapshots_offset: int = 0, incompatible: int = 0,
           compatible: int = 0, autoclear: int = 0, order: int = 4,
           length: int = 112, compression: int = 0,
           extensions: tuple[tuple[int, bytes], ...] = ()) -> bytes:
    """The beginning of an image as QEMU writes it, and as it does not."""
    after = b''
    for kind, data in (*extensions, (0, b'')):
        after += EXTENSION.pack(kind, len(data)) + data
        after += bytes(-len(data) % 8)
    start = 72 if version == 2 else length
    if backing_offset is None:
        backing_offset = start + len(after) if backing else 0
    found = struct.pack(
        '>4sIQIIQIIQQIIQ', magic, version, backing_offset,
        len(backing) if backing_length is None else backing_length, bits,
        size, encryption, l1_size, l1_offset, refcounts, refcount_clusters,
        snapshots, snapshots_offset)
    if version != 2:
        found += struct.pack('>QQQIIB', incompatible, compatible, autoclear,
                             order, length, compression)
    found = found[:start].ljust(start, b'\0') + after
    if backing:
        found = found[:backing_offset].ljust(backing_offset, b'\0') + backing
    return found.ljust(qcow2.HEAD, b'\0')


def bitmaps(count: int = 1, reserved: int = 0, size: int = 24,
            offset: int = 4 << 16) -> tuple[int, bytes]:
    """The header extension that says where bitmaps are."""
    return 0x23852875, struct.pack('>IIQQ', count, reserved, size, offset)


def parse(**fields: Any) -> qcow2.Header | None:
    return qcow2.parse(header(**fields), 1 << 20)


@ddt.ddt
class Qcow2TestCase(base.BaseTestCase):

    def test_plain(self):
        self.assertEqual(qcow2.Header(1 << 30, 1 << 16, None, None, 3),
                         parse())

    def test_version_2(self):
        self.assertEqual(
            qcow2.Header(1 << 30, 1 << 16, '/base', 'raw', 2),
            parse(version=2, backing=b'/base',
                  extensions=((0xe2792aca, b'raw'),)))

    def test_backing_file(self):
        names = b'\0\0dirty bit'.ljust(48, b'\0')
        self.assertEqual(
            qcow2.Header(1 << 30, 1 << 16, '/base', 'qcow2', 3),
            parse(backing=b'/base', extensions=(
                (0xe2792aca, b'qcow2'), (0x6803f857, names))))

    @ddt.data(
        ({'size': (1 << 30) + 700, 'l1_size': 3},
         {'virtual_size': (1 << 30) + 512}),
        ({'size': 0, 'l1_size': 0}, {'virtual_size': 0}),
        ({'bits': 9, 'size': 1 << 20, 'l1_size': 32}, {
            'virtual_size': 1 << 20, 'cluster_size': 512}),
        ({'bits': 21, 'l1_offset': 3 << 21, 'refcounts': 1 << 21},
         {'cluster_size': 2 << 20}),
        ({'incompatible': 1}, {'dirty': True}),
        ({'incompatible': 2}, {'corrupt': True}),
        ({'incompatible': 8, 'compression': 1}, {'compression': 'zstd'}),
        ({'incompatible': 16, 'l1_size': 4}, {'extended_l2': True}),
        ({'compatible': 1}, {'lazy_refcounts': True}),
        # What may be ignored is.
        ({'compatible': 1 << 40, 'autoclear': 1 << 40}, {}),
        ({'order': 6}, {'refcount_bits': 64}),
        ({'length': 104}, {}),
        ({'length': 200}, {}),
        ({'snapshots': 9, 'snapshots_offset': 7 << 16}, {}),
        # The list of snapshots ends where the file does.
        ({'bits': 12, 'l1_size': 512, 'snapshots': 102,
          'snapshots_offset': 255 << 12}, {}),
        ({'snapshots': 0, 'snapshots_offset': 99 << 16}, {}),
        ({'autoclear': 1, 'extensions': (bitmaps(),)}, {}),
        ({'autoclear': 1, 'extensions': (bitmaps(
            count=65535, size=1 << 16, offset=15 << 16),)}, {}),
        # The last byte of a table is the last that QEMU would read.
        ({'l1_size': 8192, 'l1_offset': (1 << 63) - (1 << 30) - (1 << 16)},
         {}),
        # A string of C ends at a NUL.
        ({'backing': b'/base\0more'}, {'backing_file': '/base'}),
        ({'backing': b'\0/base'}, {}),
        ({'backing': b'../a:b'}, {'backing_file': '../a:b'}),
    )
    @ddt.unpack
    def test_settled(self, fields, expected):
        found = parse(**fields)
        self.assertIsNotNone(found)
        for name, value in expected.items():
            self.assertEqual(value, getattr(found, name), name)

    @ddt.data(
        {'magic': b'QFI\xfa'}, {'version': 1}, {'version': 4},
        {'bits': 8}, {'bits': 22}, {'encryption': 1}, {'encryption': 2},
        {'encryption': 99},
        # A data file, by its bit and by its name.
        {'incompatible': 4}, {'extensions': ((0x44415441, b'/data'),)},
        {'autoclear': 2},
        # A feature and an extension that nobody knows.
        {'incompatible': 32}, {'incompatible': 1 << 63},
        {'extensions': ((0x12345678, b''),)},
        # LUKS, and bitmaps that nobody has kept up to date.
        {'extensions': ((0x0537be77, bytes(16)),)},
        {'extensions': (bitmaps(),)},
        {'autoclear': 1, 'extensions': ((0x23852875, bytes(16)),)},
        {'autoclear': 1, 'extensions': (bitmaps(), bitmaps())},
        {'autoclear': 1, 'extensions': (bitmaps(count=0),)},
        {'autoclear': 1, 'extensions': (bitmaps(count=65536),)},
        {'autoclear': 1, 'extensions': (bitmaps(reserved=1),)},
        {'autoclear': 1, 'extensions': (bitmaps(size=0),)},
        {'autoclear': 1, 'extensions': (bitmaps(size=(64 << 20) + 1),)},
        {'autoclear': 1, 'extensions': (bitmaps(offset=4),)},
        {'autoclear': 1, 'extensions': (bitmaps(offset=16 << 16),)},
        {'autoclear': 1, 'extensions': (bitmaps(offset=0),)},
        # QEMU would take the file for VDI.
        {'snapshots_offset': VDI << 32}, {'version': 2,
                                          'snapshots_offset': VDI << 32},
        {'extensions': ((0xe2792aca, b'x' * 16),)},
        {'extensions': ((0xe2792aca, b'\xff'),)},
        {'extensions': ((0x6803f857, bytes(4000)),)},
        {'compression': 1}, {'incompatible': 8},
        {'incompatible': 8, 'compression': 2},
        {'incompatible': 8, 'length': 104},
        {'bits': 13, 'incompatible': 16, 'l1_size': 1 << 16,
         'l1_offset': 3 << 13, 'refcounts': 1 << 13},
        {'order': 7}, {'length': 103}, {'length': 0},
        {'length': qcow2.HEAD + 8},
        {'bits': 9, 'length': 600, 'size': 512},
        {'refcount_clusters': 0}, {'refcount_clusters': 129},
        {'refcounts': 1}, {'refcounts': (1 << 63) - (1 << 30)},
        {'l1_size': 8192, 'l1_offset': (1 << 63) - (1 << 30)},
        {'refcounts': ((1 << 64) - 1) >> 16 << 16},
        {'snapshots': 65537}, {'snapshots_offset': 8},
        # A list of snapshots behind the end of the file, and in the header.
        {'bits': 12, 'l1_size': 512, 'snapshots': 103,
         'snapshots_offset': 255 << 12},
        {'snapshots': 1, 'snapshots_offset': 1 << 40}, {'snapshots': 1},
        {'l1_size': 1}, {'l1_size': (4 << 20) + 1}, {'l1_offset': 8},
        {'size': 1 << 63}, {'size': (1 << 64) - 1},
        {'incompatible': 16, 'l1_size': 3},
        {'backing': b'a', 'backing_offset': (1 << 16) + 1},
        {'backing': b'a' * 1024}, {'backing': b'\xff\xfe'},
        {'backing': b'json:{}'}, {'backing': b'nbd:host:port'},
        {'backing': b'a\nb'},
        {'backing_offset': 4000, 'backing_length': 100},
    )
    def test_left_to_qemu_img(self, fields):
        self.assertIsNone(parse(**fields))

    def test_short_files(self):
        head = header()
        for size in range(0, 512, 37):
            self.assertIsNone(qcow2.parse(head[:size], size))
        # Its tables may be past its end: they read as zeros.
        self.assertIsNotNone(qcow2.parse(head[:512], 512))
        # The reader gave less than there is.
        self.assertIsNone(qcow2.parse(head[:512], 1 << 20))

    @hypothesis.settings(max_examples=300, deadline=None, database=None)
    @hypothesis.given(strategies.data())
    def test_no_bytes_make_it_raise(self, data):
        head = bytearray(header(backing=b'/base', extensions=(
            (0xe2792aca, b'qcow2'), (0x6803f857, bytes(96)))))
        for _ in range(data.draw(strategies.integers(1, 8))):
            head[data.draw(strategies.integers(0, 400))] = data.draw(
                strategies.integers(0, 255))
        found = qcow2.parse(bytes(head), 1 << 20)
        if found is not None:
            self.assertLess(found.virtual_size, 1 << 63)
            self.assertLess(len(found.backing_file or ''), 1024)
