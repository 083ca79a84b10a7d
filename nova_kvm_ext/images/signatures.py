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

"""Detects files that oslo.utils' inspector takes for a raw disk.

Compressed files and archives, which Nova boots as they are, and formats that
QEMU reads and Nova does not know. Pure.

Sources: RFC 1952 (gzip), RFC 8878 (zstd), the formats' own specifications of
xz, bzip2, lz4, lzip and ZIP, POSIX pax for tar, and the probe functions in
QEMU's block/ (parallels.c, vpc.c, vmdk.c, dmg.c, bochs.c, cloop.c).
"""

import dataclasses
import struct
import zlib

# Bytes of a file's beginning and end that are looked at.
HEAD = 4096
TAIL = 512

# Of the first sector of everything that the firmware of a machine starts:
# the code of a BIOS, the protective partition table of a GPT, a FAT.
_BOOT_SIGNATURE = b'\x55\xaa'

_TAR_HEADER = 512
_TAR_CHECKSUM = slice(148, 156)


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a file is.

    :ivar name: as people call the format
    :ivar unpack: a command that makes NEW of OLD; '' where QEMU reads it
    :ivar disk_format: QEMU's name; None where QEMU does not read it
    """

    name: str
    unpack: str = ''
    disk_format: str | None = None


_PACKED: tuple[tuple[bytes, Signature], ...] = (
    (b'BZh', Signature('bzip2', 'bzip2 -dc OLD > NEW')),
    (b'\xfd7zXZ\0', Signature('xz', 'xz -dc OLD > NEW')),
    (b'\x28\xb5\x2f\xfd', Signature('zstd', 'zstd -dc OLD > NEW')),
    (b'\x04\x22\x4d\x18', Signature('lz4', 'lz4 -dc OLD > NEW')),
    (b'LZIP\1', Signature('lzip', 'lzip -dc OLD > NEW')),
    (b'PK\3\4', Signature('ZIP', 'unzip -p OLD > NEW')),
    (b'7z\xbc\xaf\x27\x1c', Signature('7z', '7z e -so OLD > NEW')),
)
_BZIP2_BLOCK = bytes.fromhex('314159265359')

_BY_QEMU: tuple[tuple[bytes, Signature], ...] = (
    (b'WithoutFreeSpace', Signature('Parallels', disk_format='parallels')),
    (b'WithouFreSpacExt', Signature('Parallels', disk_format='parallels')),
    (b'COWD', Signature('VMDK of ESX', disk_format='vmdk')),
    (b'Bochs Virtual HD Image', Signature('Bochs', disk_format='bochs')),
    (b'#!/bin/sh\n#V2.0 Format\n', Signature('cloop', disk_format='cloop')),
)


def packed(head: bytes) -> Signature | None:
    """A compressed file or an archive, from which no machine starts.

    Never one with the signature of a boot sector, whatever it begins with.

    :param head: the first HEAD bytes of the file
    """
    if head[510:512] == _BOOT_SIGNATURE:
        return None
    if _is_gzip(head):
        return Signature('gzip', 'gzip -dc OLD > NEW')
    if _is_tar(head):
        # An OVA's first member is the descriptor; headers of pax may be
        # before it.
        members = (head[at:at + 100].partition(b'\0')[0].lower()
                   for at in range(0, len(head), _TAR_HEADER))
        ova = any(member.endswith(b'.ovf') for member in members)
        return Signature('OVA' if ova else 'tar', 'tar -xf OLD')
    for magic, found in _PACKED:
        if head.startswith(magic) and (
                magic != b'BZh' or head[4:10] == _BZIP2_BLOCK):
            return found
    return None


def by_qemu(head: bytes, tail: bytes) -> Signature | None:
    """A format that QEMU reads if it is told, and Nova does not know.

    :param head: the first HEAD bytes of the file
    :param tail: its last TAIL bytes
    """
    for magic, found in _BY_QEMU:
        if head.startswith(magic):
            return found
    if tail.startswith(b'conectix'):
        return Signature('fixed VHD', disk_format='vpc')
    if tail.startswith(b'koly'):
        return Signature('DMG', disk_format='dmg')
    return None


def _is_gzip(head: bytes) -> bool:
    if not head.startswith(b'\x1f\x8b\x08'):
        return False
    try:
        return bool(zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(
            head, 1 << 16))
    except zlib.error:
        return False


def _is_tar(head: bytes) -> bool:
    header = head[:_TAR_HEADER]
    if len(header) < _TAR_HEADER or header[257:262] != b'ustar':
        return False
    try:
        written = int(header[_TAR_CHECKSUM].strip(b' \0'), 8)
    except ValueError:
        return False
    blank = bytearray(header)
    blank[_TAR_CHECKSUM] = b' ' * 8
    return sum(blank) == written


def qcow(head: bytes) -> tuple[int, int, bool] | None:
    """Version, incompatible features and encryption of a qcow or qcow2.

    docs/interop/qcow2.txt and block/qcow.c of QEMU.

    :returns: None for what is neither; features are 0 before version 3
    """
    if len(head) < 104 or not head.startswith(b'QFI\xfb'):
        return None
    version, = struct.unpack('>I', head[4:8])
    features = 0
    if version >= 3:
        features, = struct.unpack('>Q', head[72:80])
    method, = struct.unpack('>I', head[36:40] if version == 1 else
                            head[32:36])
    return version, features, method in (1, 2)
