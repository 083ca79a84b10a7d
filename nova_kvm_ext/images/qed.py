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

"""A strict reader of QED images.

QEMU's own reader trusts much of a QED file. This one checks whether the file
is exactly what QEMU writes: a header with known values, and tables that refer
to each cluster of the file once and to nothing outside of it. It reads header
and tables, never a guest's data.

Pure, except the file object that the caller passes. Source of every field and
number: QEMU's docs/interop/qed_spec.txt (qed_spec.rst since QEMU 10.1),
https://www.qemu.org/docs/master/interop/qed_spec.html
"""

import array
from collections.abc import Iterator
import dataclasses
import struct
import sys
from typing import BinaryIO

MAGIC = b'QED\0'

# struct Header of the specification, little-endian, up to image_size. The two
# fields after it belong to a backing file.
_HEADER = struct.Struct('<4sIIIQQQQQ')

_MIN_CLUSTER, _MAX_CLUSTER = 1 << 12, 1 << 26
_MIN_TABLE, _MAX_TABLE = 1, 16
_SECTOR = 512
_ENTRY = 8   # bytes of one offset in a table

F_BACKING_FILE = 0x01
F_NEED_CHECK = 0x02
F_BACKING_FORMAT_NO_PROBE = 0x04

# What an L2 table says of a cluster that reads as zeros.
_ZERO_CLUSTER = 1

# All tables of an image that is looked at. With QEMU's own cluster size of
# 64 KiB these describe 2 TiB of allocated disk.
MAX_TABLES = 256 << 20

# And the clusters of its file: one byte of memory each.
MAX_CLUSTERS = 256 << 20

_CHUNK = 1 << 20


class QEDError(Exception):
    """The file is no QED image that can be used.

    :param check: a word for what was checked
    :param problem: what is wrong with it, as the end of a sentence
    """

    def __init__(self, check: str, problem: str) -> None:
        super().__init__(problem)
        self.check = check


@dataclasses.dataclass(frozen=True)
class Header:
    """The header of a QED image, its values within the format's bounds.

    :ivar cluster_size: bytes
    :ivar table_size: clusters of one table
    :ivar header_size: clusters before the first that a table may name
    :ivar l1_table_offset: bytes from the start of the file
    :ivar image_size: bytes that the guest sees
    """

    cluster_size: int
    table_size: int
    header_size: int
    l1_table_offset: int
    image_size: int

    @property
    def table_bytes(self) -> int:
        return self.table_size * self.cluster_size

    @property
    def entries(self) -> int:
        """Offsets in one table."""
        return self.table_bytes // _ENTRY


@dataclasses.dataclass(frozen=True)
class Image:
    """A QED image found sound.

    :ivar header: its header
    :ivar allocated: bytes of the clusters that hold data
    """

    header: Header
    allocated: int


def _power_of_two(value: int, low: int, high: int) -> bool:
    return low <= value <= high and value & (value - 1) == 0


def parse_header(data: bytes, file_size: int) -> Header:
    """Read the header.

    :param data: the first bytes of the file, at least 56 where there are so
        many
    :param file_size: bytes of the whole file
    :raises QEDError: it is not what QEMU writes
    """
    if not data.startswith(MAGIC):
        raise QEDError('magic', 'it does not begin with QED\\0')
    if len(data) < _HEADER.size:
        raise QEDError('header', 'its header is cut short')
    (_, cluster_size, table_size, header_size, features, compat_features,
     autoclear_features, l1_table_offset, image_size) = _HEADER.unpack(
         data[:_HEADER.size])
    _check_features(features, compat_features, autoclear_features)
    if not _power_of_two(cluster_size, _MIN_CLUSTER, _MAX_CLUSTER):
        raise QEDError('cluster_size', f'its cluster_size is {cluster_size}')
    if not _power_of_two(table_size, _MIN_TABLE, _MAX_TABLE):
        raise QEDError('table_size', f'its table_size is {table_size}')
    header = Header(cluster_size, table_size, header_size, l1_table_offset,
                    image_size)
    if not 1 <= header_size <= file_size // cluster_size:
        raise QEDError('header_size', f'its header_size is {header_size}')
    if image_size == 0 or image_size % _SECTOR or image_size > (
            header.entries ** 2 * cluster_size):
        raise QEDError('image_size', f'its image_size is {image_size}')
    if (l1_table_offset % cluster_size or
            l1_table_offset < header_size * cluster_size):
        raise QEDError('l1_table_offset',
                       f'its l1_table_offset is {l1_table_offset}')
    if l1_table_offset + header.table_bytes > file_size:
        raise QEDError('file size', 'its file ends before its L1 table does')
    return header


def _check_features(features: int, compat: int, autoclear: int) -> None:
    """No feature but those that need nothing from us, which is none.

    A dirty image (NEED_CHECK) may contradict itself, and QEMU would repair,
    so write, it. QEMU never sets BACKING_FORMAT_NO_PROBE alone. Unknown
    compat and autoclear bits may be ignored by the specification, but none
    were ever defined, so no program that knows QED has set them.
    """
    if features & F_BACKING_FILE:
        raise QEDError('backing_file', 'it has a backing file')
    if features & F_NEED_CHECK:
        raise QEDError('need_check', 'it was not closed cleanly')
    for name, bits in (('features', features), ('compat_features', compat),
                       ('autoclear_features', autoclear)):
        if bits:
            raise QEDError(name, f'its {name} are {bits:#x}')


class _Clusters:
    """Which clusters of the file something refers to: each may be once."""

    def __init__(self, header: Header, file_size: int) -> None:
        # QEMU, too, rounds the file down to whole clusters.
        self._count = file_size // header.cluster_size
        if self._count > MAX_CLUSTERS:
            raise QEDError('file size', 'it has too many clusters')
        self._size = header.cluster_size
        self._used = bytearray(self._count)
        self._used[:header.header_size] = b'\1' * header.header_size

    def take(self, offset: int, count: int, what: str) -> None:
        first, rest = divmod(offset, self._size)
        if rest:
            raise QEDError('tables', f'{what} is not at a cluster boundary')
        if first + count > self._count:
            raise QEDError('file size', f'its file ends before {what} does')
        if any(self._used[first:first + count]):
            raise QEDError('tables', f'{what} is where something else is')
        self._used[first:first + count] = b'\1' * count


def _table(f: BinaryIO, offset: int, entries: int,
           used: int) -> Iterator[tuple[int, array.array]]:
    """The parts of a table that are not all 0, each with its first index.

    :param entries: how many the table has
    :param used: how many belong to the disk; the others must be 0
    :raises QEDError: one of the others is not
    """
    f.seek(offset)
    done = 0
    while done < entries:
        data = f.read(min(_CHUNK, (entries - done) * _ENTRY))
        if not data or len(data) % _ENTRY:
            raise QEDError('file size', 'its file ends within a table')
        here = len(data) // _ENTRY
        # Fast where it matters: most of a sparse disk's tables is zeros.
        if data.count(0) != len(data):
            offsets = array.array('Q', data)
            if sys.byteorder == 'big':
                offsets.byteswap()
            if any(offsets[max(0, used - done):]):
                raise QEDError(
                    'tables', 'a table names clusters past the disk\'s end')
            yield done, offsets
        done += here


def check(f: BinaryIO, file_size: int) -> Image:
    """Read a QED image's header and tables.

    Time and memory are bounded by MAX_TABLES and MAX_CLUSTERS.

    :param f: the file, seekable
    :param file_size: its bytes
    :raises QEDError: QEMU would not have written it so, or it refers to
        something outside of the file
    """
    f.seek(0)
    header = parse_header(f.read(_HEADER.size), file_size)
    clusters = _Clusters(header, file_size)
    clusters.take(header.l1_table_offset, header.table_size, 'its L1 table')
    disk_clusters = -(-header.image_size // header.cluster_size)
    l2_tables = []
    total = header.table_bytes
    if total <= MAX_TABLES:
        for start, offsets in _table(
                f, header.l1_table_offset, header.entries,
                -(-disk_clusters // header.entries)):
            for index, offset in enumerate(offsets, start):
                if offset and total <= MAX_TABLES:
                    total += header.table_bytes
                    clusters.take(offset, header.table_size, 'an L2 table')
                    l2_tables.append((index, offset))
    if total > MAX_TABLES:
        raise QEDError(
            'tables', f'its tables take more than {MAX_TABLES >> 20} MiB')
    allocated = 0
    for index, table in l2_tables:
        for _, offsets in _table(f, table, header.entries,
                                 disk_clusters - index * header.entries):
            for offset in offsets:
                if offset > _ZERO_CLUSTER:
                    clusters.take(offset, 1, 'a data cluster')
                    allocated += header.cluster_size
    return Image(header, allocated)
