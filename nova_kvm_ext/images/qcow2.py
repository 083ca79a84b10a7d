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

"""Reads the header of a qcow2 image.

The disk's size and the name of the backing file are in the header. The result
is None for everything unusual, and qemu-img is asked: an encrypted image, an
image with a data file, unknown features or extensions, every value that QEMU
would refuse, and a header that another format may claim. The lists of
snapshots and bitmaps must be after the header and in the file; they are not
read.

Pure. Source of every field, number and refusal: QEMU's docs/interop/qcow2.txt
(qcow2.rst since QEMU 10.1),
https://www.qemu.org/docs/master/interop/qcow2.html, and the checks of QEMU's
block/qcow2.c when it opens an image.
"""

import dataclasses
import struct

HEAD = 4096
"""Bytes at the beginning of a file that are checked. What QEMU writes there,
a backing file's name of the greatest length included, takes 1.5 KiB."""

# QEMU takes no shorter file for a qcow2 image (sizeof(QCowHeader)), and reads
# a whole sector.
_LEAST = 512

# Version 2, and what version 3 adds (big-endian).
_V2 = struct.Struct('>4sIQIIQIIQQIIQ')
_V3 = struct.Struct('>QQQII')
_EXTENSION = struct.Struct('>II')

_MAGIC = b'QFI\xfb'

# The one format whose signature QEMU looks for behind that of qcow2: a file
# may have both, and QEMU takes it for VDI (block/vdi.c).
_VDI_SIGNATURE, _VDI_OFFSET = b'\x7f\x10\xda\xbe', 0x40

_MIN_BITS, _MAX_BITS = 9, 21
_MAX_BACKING = 1023
_MAX_REFCOUNT_ORDER = 6
_SECTOR = 512

# Incompatible features. An image with one of the first two is opened
# read-only as any other, and the size means the same. What is in none of these
# names, a data file among it, is left to qemu-img.
_DIRTY, _CORRUPT, _COMPRESSION, _EXTENDED_L2 = 1 << 0, 1 << 1, 1 << 3, 1 << 4
_KNOWN = _DIRTY | _CORRUPT | _COMPRESSION | _EXTENDED_L2
_LAZY_REFCOUNTS = 1 << 0                 # a compatible feature
_BITMAPS, _DATA_FILE_RAW = 1 << 0, 1 << 1          # autoclear features
_COMPRESSION_TYPES = ('zlib', 'zstd')

_END, _BACKING_FORMAT, _FEATURE_NAMES, _BITMAPS_EXTENSION = (
    0, 0xe2792aca, 0x6803f857, 0x23852875)
_MAX_FORMAT = 15
# How many, nothing, bytes of the list, and where it is.
_BITMAPS_VALUE = struct.Struct('>IIQQ')
_MAX_BITMAPS, _MAX_BITMAPS_LIST = 65535, 64 << 20

# The bounds of QEMU's qcow2_validate_table(): bytes of each table.
_MAX_L1 = 32 << 20
_MAX_REFCOUNTS = 8 << 20
_SNAPSHOT, _MAX_SNAPSHOTS = 40, 65536
# QEMU reads nothing behind that (BDRV_MAX_LENGTH in its block-common.h).
_MAX_OFFSET = (1 << 63) - (1 << 30)


@dataclasses.dataclass(frozen=True)
class Header:
    """What qemu-img would say of an image, as far as the header has it.

    :ivar virtual_size: bytes that the guest sees
    :ivar cluster_size: bytes
    :ivar backing_file: its name, as it is written; None for none
    :ivar backing_format: what the backing file is; None where it is not said
    :ivar version: 2 or 3
    :ivar dirty: reference counts are not all recorded
    :ivar corrupt: QEMU has found the image damaged
    :ivar lazy_refcounts: reference counts may be recorded later
    :ivar extended_l2: clusters are divided
    :ivar compression: zlib or zstd
    :ivar refcount_bits: bits of one reference count
    """

    virtual_size: int
    cluster_size: int
    backing_file: str | None
    backing_format: str | None
    version: int
    dirty: bool = False
    corrupt: bool = False
    lazy_refcounts: bool = False
    extended_l2: bool = False
    compression: str = 'zlib'
    refcount_bits: int = 16


@dataclasses.dataclass(frozen=True)
class _Version3:
    """The fields that version 3 adds, with what version 2 means by them."""

    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    length: int = _V2.size


def parse(head: bytes, file_size: int) -> Header | None:
    """Read a header.

    :param head: the first HEAD bytes of the file, all of a shorter file
    :param file_size: bytes of the whole file
    :returns: None where the header does not settle it: this is no qcow2
        image, one that QEMU would refuse, or one that names more than a
        backing file
    """
    if file_size < _LEAST or len(head) < min(HEAD, file_size):
        return None
    # QEMU, too, reads zeros past the end of a file.
    head = head[:HEAD].ljust(HEAD, b'\0')
    (magic, version, backing_offset, backing_length, bits, size, encryption,
     l1_entries, l1_offset, refcounts_offset, refcount_clusters, snapshots,
     snapshots_offset) = _V2.unpack_from(head)
    if magic != _MAGIC or version not in (2, 3) or encryption or (
            not _MIN_BITS <= bits <= _MAX_BITS) or (
            head.startswith(_VDI_SIGNATURE, _VDI_OFFSET)):
        return None
    cluster = 1 << bits
    more = (_Version3() if version == 2 else
            _Version3(*_V3.unpack_from(head, _V2.size)))
    compression = _compression(head, version, more)
    if compression is None or not _features_are_plain(more, bits, cluster):
        return None
    if not refcount_clusters or not all((
            _is_table(refcounts_offset, refcount_clusters, cluster,
                      _MAX_REFCOUNTS, cluster),
            _is_table(snapshots_offset, snapshots, _SNAPSHOT,
                      _SNAPSHOT * _MAX_SNAPSHOTS, cluster),
            _is_table(l1_offset, l1_entries, 8, _MAX_L1, cluster))):
        return None
    if snapshots and not (
            cluster <= snapshots_offset <= file_size - snapshots * _SNAPSHOT):
        return None
    extended = bool(more.incompatible & _EXTENDED_L2)
    # Bits of an offset in the disk that one entry of the L1 table stands for.
    covered = bits + bits - (4 if extended else 3)
    if l1_entries < -(-size >> covered):
        return None
    found = _Extensions.read(head, more, backing_offset or cluster)
    if found is None or not _are_bitmaps(found.bitmaps, cluster, file_size):
        return None
    backing_file = _backing_file(head, backing_offset, backing_length,
                                 cluster)
    if backing_file is None:
        return None
    return Header(
        # QEMU counts whole sectors.
        virtual_size=size // _SECTOR * _SECTOR, cluster_size=cluster,
        backing_file=backing_file or None,
        backing_format=found.backing_format or None, version=version,
        dirty=bool(more.incompatible & _DIRTY),
        corrupt=bool(more.incompatible & _CORRUPT),
        lazy_refcounts=bool(more.compatible & _LAZY_REFCOUNTS),
        extended_l2=extended, compression=compression,
        refcount_bits=1 << more.refcount_order)


def _features_are_plain(more: _Version3, bits: int, cluster: int) -> bool:
    if more.incompatible & ~_KNOWN or more.autoclear & _DATA_FILE_RAW:
        return False
    # Of 32 subclusters each must be a sector at least.
    if more.incompatible & _EXTENDED_L2 and bits - 5 < _MIN_BITS:
        return False
    return (more.refcount_order <= _MAX_REFCOUNT_ORDER and
            more.length <= min(cluster, HEAD))


def _compression(head: bytes, version: int, more: _Version3) -> str | None:
    """The compression's name; None where QEMU would refuse it."""
    least = _V2.size + _V3.size
    if version == 3 and more.length < least:
        return None
    number = head[least] if version == 3 and more.length > least else 0
    if number >= len(_COMPRESSION_TYPES) or (
            bool(more.incompatible & _COMPRESSION) != bool(number)):
        return None
    return _COMPRESSION_TYPES[number]


def _is_table(offset: int, entries: int, entry: int, most: int,
              cluster: int) -> bool:
    return (entries <= most // entry and not offset % cluster and
            offset + entries * entry <= _MAX_OFFSET)


def _are_bitmaps(value: bytes | None, cluster: int, file_size: int) -> bool:
    """Whether an extension says plainly where bitmaps are, if one does."""
    if value is None:
        return True
    if len(value) != _BITMAPS_VALUE.size:
        return False
    count, reserved, size, offset = _BITMAPS_VALUE.unpack(value)
    return (1 <= count <= _MAX_BITMAPS and not reserved and
            1 <= size <= _MAX_BITMAPS_LIST and not offset % cluster and
            cluster <= offset <= file_size - size)


def _backing_file(head: bytes, offset: int, length: int, cluster: int
                  ) -> str | None:
    """The name, empty for none; None where that is not plain."""
    if not offset:
        return ''
    if (offset > cluster or length > min(_MAX_BACKING, cluster - offset) or
            offset + length > HEAD):
        return None
    try:
        # For QEMU it is a string of C.
        name = head[offset:offset + length].partition(b'\0')[0].decode()
    except UnicodeDecodeError:
        return None
    # With a protocol ("json:...") QEMU makes words of its own of it.
    plain = ':' not in name.partition('/')[0] and name.isprintable()
    return name if plain else None


@dataclasses.dataclass(frozen=True)
class _Extensions:
    """What the header extensions say.

    :ivar backing_format: empty where nothing is said
    :ivar bitmaps: what the extension about them has; None for no extension
    """

    backing_format: str = ''
    bitmaps: bytes | None = None

    @classmethod
    def read(cls, head: bytes, more: _Version3, end: int
             ) -> '_Extensions | None':
        """Read them all.

        :param end: byte behind the place for them
        :returns: None where one is not known, or malformed
        """
        backing_format = ''
        bitmaps = None
        offset = more.length
        while offset < end:
            if offset + _EXTENSION.size > HEAD:
                return None
            kind, length = _EXTENSION.unpack_from(head, offset)
            offset += _EXTENSION.size
            if length > end - offset or offset + length > HEAD:
                return None
            if kind == _END:
                break
            if kind == _BACKING_FORMAT:
                said = head[offset:offset + length].partition(b'\0')[0]
                if length > _MAX_FORMAT or not said.isascii():
                    return None
                backing_format = said.decode()
            elif kind == _BITMAPS_EXTENSION:
                if bitmaps is not None or not more.autoclear & _BITMAPS:
                    return None
                bitmaps = head[offset:offset + length]
            elif kind != _FEATURE_NAMES:
                return None
            offset += -(-length // 8) * 8
        return cls(backing_format, bitmaps)
