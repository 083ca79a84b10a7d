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

"""Hostile images, made byte by byte.

Needs no tool and opens nothing. Numbers and layouts: QEMU's
docs/interop/qcow2.txt and qed_spec.txt, VMware's "Virtual Disk Format 5.0".
"""

from collections.abc import Iterator
import dataclasses
import itertools
import struct

MIB = 1 << 20
TIB = 1 << 40

# Where a guest's file would look for what is not its own.
OUTSIDE = ('/etc/passwd', 'neighbour', '../neighbour', 'nbd://127.0.0.1/x',
           'json:{"driver":"file","filename":"/etc/passwd"}')


@dataclasses.dataclass(frozen=True)
class Image:
    """A hostile image.

    :ivar name: what it is
    :ivar declared: disk_format that Glance would have
    :ivar parts: content by offset
    :ivar size: bytes of the file; what is between the parts is a hole
    :ivar by_qemu: it is sound to the look of it: qemu-img tells, or the
        conversion
    """

    name: str
    declared: str
    parts: tuple[tuple[int, bytes], ...]
    size: int
    by_qemu: bool = False

    def write(self, path: str) -> None:
        with open(path, 'wb') as f:
            for offset, data in self.parts:
                f.seek(offset)
                f.write(data)
            f.truncate(self.size)


def _image(name: str, declared: str, *parts: bytes | tuple[int, bytes],
           size: int | None = None, by_qemu: bool = False) -> Image:
    placed = tuple((0, part) if isinstance(part, bytes) else part
                   for part in parts)
    end = max((offset + len(data) for offset, data in placed), default=0)
    return Image(name, declared, placed, end if size is None else size,
                 by_qemu)


def qcow2(virtual_size: int = MIB, backing: bytes = b'', version: int = 3,
          features: int = 0, l1_size: int = 1) -> bytes:
    """The header cluster and an empty L1 table."""
    header = struct.pack(
        '>4sIQIIQIIQQIIQQQQII', b'QFI\xfb', version,
        512 if backing else 0, len(backing), 16, virtual_size, 0, l1_size,
        0x30000, 0x10000, 1, 0, 0, features, 0, 0, 4, 104)
    return (header.ljust(512, b'\0') + backing).ljust(0x40000, b'\0')


def qed(cluster: int = 65536, table: int = 4, header: int = 1,
        features: int = 0, compat: int = 0, autoclear: int = 0,
        l1: int = 65536, size: int = MIB) -> bytes:
    """The header alone."""
    return struct.pack('<4sIIIQQQQQII', b'QED\0', cluster, table, header,
                       features, compat, autoclear, l1, size, 512, 11)


_QED_SIZE = 65536 * 5


def _entries(*offsets: int) -> bytes:
    return struct.pack(f'<{len(offsets)}Q', *offsets)


def descriptor(create_type: str = 'monolithicSparse',
               extents: str = 'RW 2048 SPARSE "x.vmdk"', more: str = ''
               ) -> bytes:
    return (f'# Disk DescriptorFile\nversion=1\nCID=12345678\n'
            f'parentCID=ffffffff\ncreateType="{create_type}"\n{more}\n'
            f'# Extent description\n{extents}\n\n# The Disk Data Base\n#DDB\n'
            f'ddb.adapterType = "ide"\n').encode()


def sparse_vmdk(text: bytes, capacity: int = 2048, version: int = 1,
                offset: int = 1, sectors: int = 20, gd: int = 26) -> bytes:
    """A hosted sparse extent with this descriptor in it."""
    header = struct.pack('<4sIIQQQQIQQQ', b'KDMV', version, 3, capacity, 128,
                         offset, sectors, 512, 21, gd, 128).ljust(512, b'\0')
    return (header + text.ljust(sectors * 512, b'\0')).ljust(65536, b'\0')


_MBR = bytes(446) + b'\x80\0\1\0\x83\0\0\0' + struct.pack(
    '<II', 1, 63) + bytes(48) + b'\x55\xaa'
_ISO = (32768, b'\1CD001\1')
_VDI = (0x40, struct.pack('<I', 0xbeda107f))

HEADS: dict[str, tuple[bytes, int]] = {
    # Just enough to be taken for the format, and the file's size.
    'qcow2': (qcow2(), 0x40000),
    'qed': (qed(), _QED_SIZE),
    'vmdk': (sparse_vmdk(descriptor()), 65536),
    'vdi': (bytes(0x40) + _VDI[1] + bytes(512), MIB),
    'vhd': (b'conectix' + bytes(504), MIB),
    'luks': (b'LUKS\xba\xbe\0\1' + bytes(1024), MIB),
    'iso': (bytes(32768) + _ISO[1] + bytes(2048), MIB),
    'raw': (b'\xeb\x63\x90' + bytes(509), MIB),
}


def _qcow2_images() -> Iterator[Image]:
    for outside, declared in itertools.product(OUTSIDE, ('qcow2', 'raw')):
        yield _image(f'qcow2 backed by {outside}, declared {declared}',
                     declared, qcow2(backing=outside.encode()))
    yield _image('qcow2 with its data elsewhere', 'qcow2', qcow2(features=4))
    for bit in (5, 8, 17, 40, 63):
        yield _image(f'qcow2 with feature {bit}', 'qcow2',
                     qcow2(features=1 << bit))
    for version in (0, 1, 4, 0xffffffff):
        yield _image(f'qcow2 version {version}', 'qcow2',
                     qcow2(version=version))
    for length in (0, 3, 4, 31, 104, 511):
        yield _image(f'qcow2 of {length} bytes', 'qcow2', qcow2()[:length])
    yield _image('qcow2 of 60 TiB', 'qcow2', qcow2(
        60 * TIB, l1_size=60 * TIB >> 29), size=4 * MIB, by_qemu=True)
    yield _image('qcow2 of 8 EiB', 'qcow2', qcow2((1 << 63) - 512),
                 by_qemu=True)
    yield _image('qcow2 with an L1 table of 16 GiB', 'qcow2',
                 qcow2(l1_size=(1 << 31) - 1), by_qemu=True)


def _vmdk_images() -> Iterator[Image]:
    flat = 'RW 2048 FLAT "{}" 0'
    for create_type in ('monolithicFlat', 'twoGbMaxExtentFlat', 'vmfs',
                        'monolithicSparse', 'fullDevice'):
        for outside, declared in itertools.product(
                ('/etc/passwd', 'neighbour'), ('vmdk', 'raw')):
            text = descriptor(create_type, flat.format(outside))
            what = f'{create_type} of {outside}, declared {declared}'
            yield _image(f'vmdk text, {what}', declared, text)
            yield _image(f'vmdk text with NULs, {what}', declared,
                         text.ljust(1024, b'\0'))
            yield _image(f'vmdk without a size, {what}', declared,
                         sparse_vmdk(text, capacity=0))
    for before in (b'#\r#\n', b'   \n', b'# x\0y\n', b'#\xff\n',
                   b'#' * 400 + b'\n'):
        yield _image(f'vmdk text after {before[:9]!r}', 'raw',
                     before + descriptor('monolithicFlat', flat.format(
                         'neighbour')).partition(b'\n')[2])
    two = descriptor('monolithicFlat', flat.format('neighbour'),
                     more='CREATETYPE="monolithicSparse"')
    yield _image('vmdk of two types', 'vmdk', sparse_vmdk(two))
    yield _image('vmdk of two types without a size', 'vmdk',
                 sparse_vmdk(two, capacity=0))
    yield _image('vmdk with a path', 'vmdk', sparse_vmdk(descriptor(
        extents=flat.format('/etc/passwd'))))
    yield _image('vmdk without extents', 'vmdk',
                 sparse_vmdk(descriptor(extents='')))
    yield _image('vmdk with a line of its own', 'vmdk',
                 sparse_vmdk(descriptor(more='include "/etc/passwd"')))
    yield _image('vmdk with a parent', 'vmdk', sparse_vmdk(descriptor(
        more='parentFileNameHint="/etc/passwd"').replace(
            b'parentCID=ffffffff', b'parentCID=12345678')), by_qemu=True)
    for create_type in ('', 'x' * 63, 'y' * 200, 'streamoptimized2'):
        yield _image(f'vmdk of type {create_type[:9]!r}', 'vmdk',
                     sparse_vmdk(descriptor(create_type)))
    for version in (0, 4, 0xffffffff):
        yield _image(f'vmdk version {version}', 'vmdk', sparse_vmdk(
            descriptor(), version=version))
    for offset in (0, 2, 1 << 40, (1 << 64) - 1):
        yield _image(f'vmdk descriptor at {offset}', 'vmdk', sparse_vmdk(
            descriptor(), offset=offset))
    head = sparse_vmdk(descriptor())
    for length in (4, 20, 63, 64, 511, 512, 600):
        yield _image(f'vmdk of {length} bytes', 'vmdk', head[:length])
    yield _image('vmdk with a false footer', 'vmdk', sparse_vmdk(
        descriptor('streamOptimized'), gd=(1 << 64) - 1))
    for name, filling in (('blank lines', b'\n'), ('comments', b'#\n'),
                          ('fields', b'a=b\n'), ('one line', b'a=bbbbbbb')):
        text = descriptor() + filling * (MIB // len(filling))
        for more in (b'', b'RW 1 FLAT "/etc/passwd" 0\n', b'x y\n'):
            yield _image(
                f'vmdk padded with {name}{", bad" if more else ""} '
                f'{more[:2]!r}', 'vmdk', sparse_vmdk(
                    text[:2047 * 512 - len(more)] + more, sectors=2047)
                + bytes(65536))
    yield _image('vmdk of 60 TiB', 'vmdk', sparse_vmdk(
        descriptor(), capacity=60 * TIB >> 9), by_qemu=True)


def _qed_images() -> Iterator[Image]:
    for what, values in (
            ('cluster', (0, 1, 512, 2048, 65537, 1 << 27, 0xffffffff)),
            ('table', (0, 3, 5, 32, 0xffffffff)),
            ('header', (0, 2, 6, 0xffffffff)),
            ('features', (1, 2, 3, 4, 5, 8, 1 << 63)),
            ('compat', (1, 1 << 63)), ('autoclear', (1, 1 << 63)),
            ('l1', (0, 512, 65537, 131072, _QED_SIZE, 1 << 40, 1 << 63)),
            ('size', (0, 1, MIB + 1, (1 << 63), (1 << 64) - 512))):
        for value in values:
            yield _image(f'qed {what} {value:#x}', 'qed',
                         qed(**{what: value}), size=_QED_SIZE)
    for outside in OUTSIDE:
        yield _image(f'qed backed by {outside}', 'qed', qed(features=1),
                     (512, outside.encode()), size=_QED_SIZE)
    for length in (0, 3, 4, 55, 56, 4096, 65536, _QED_SIZE - 1):
        yield _image(f'qed of {length} bytes', 'qed', qed()[:length],
                     size=length)
    l2, size = _QED_SIZE, _QED_SIZE * 2
    for name, l1_table, l2_table in (
            ('L2 in the header', (512,), ()),
            ('L2 at 1', (1,), ()),
            ('L2 on L1', (65536,), ()),
            ('L2 twice', (l2, l2), ()),
            ('L2 past the disk', (l2, l2 + 65536 * 4), ()),
            ('L2 outside', (1 << 40,), ()),
            ('L2 at 2^64', ((1 << 64) - 65536,), ()),
            ('L2 at the end', (size - 65536,), ()),
            ('data in the header', (l2,), (0, 512)),
            ('data on L1', (l2,), (65536,)),
            ('data on its L2', (l2,), (l2,)),
            ('data twice', (l2,), (l2 + 4 * 65536,) * 2),
            ('data outside', (l2,), (size,)),
            ('data at 2^63', (l2,), (1 << 63,)),
            ('data unaligned', (l2,), (l2 + 4 * 65536 + 4096,)),
            ('data past the disk', (l2,),
             (0,) * 16 + (l2 + 4 * 65536,))):
        yield _image(f'qed {name}', 'qed', qed(),
                     (65536, _entries(*l1_table)), (l2, _entries(*l2_table)),
                     size=size)
    # One cluster is all that a disk of terabytes has.
    yield _image('qed amplified', 'qed', qed(size=2 * TIB // 4),
                 (65536, _entries(*range(l2, l2 + 65536 * 40, 65536 * 4))),
                 *((l2 + 65536 * 4 * i, _entries(l2 + 65536 * 44) * 32768)
                   for i in range(10)), size=l2 + 65536 * 45)
    yield _image('qed of 60 TiB', 'qed', qed(
        cluster=MIB, table=4, l1=MIB, size=60 * TIB), size=5 * MIB,
        by_qemu=True)
    yield _image('qed with tables of 1 GiB', 'qed', qed(
        cluster=64 * MIB, table=16, l1=64 * MIB), size=1200 * MIB)
    # Zero clusters, as many as may be looked at, and one more table.
    tables = 65
    yield _image('qed with many tables', 'qed', qed(
        cluster=MIB, table=4, l1=MIB, size=16 * TIB),
        (MIB, _entries(*range(5 * MIB, (5 + 4 * tables) * MIB, 4 * MIB))),
        size=(5 + 4 * tables) * MIB)


def _polyglots() -> Iterator[Image]:
    for name, more in (('iso', _ISO), ('mbr', (446, _MBR[446:])),
                       ('vdi', _VDI)):
        for disk_format in ('qcow2', 'qed', 'vmdk', 'vhd'):
            head, size = HEADS[disk_format]
            for declared in (disk_format, 'raw', 'vdi'):
                yield _image(f'{disk_format} and {name}, declared {declared}',
                             declared, head, more, size=max(size, MIB))
    yield _image('vdi and mbr', 'vdi', _MBR, _VDI, size=MIB)
    yield _image('vdi and iso', 'raw', _VDI, _ISO, size=MIB)


def _others() -> Iterator[Image]:
    for found, declared in itertools.permutations(
            [*HEADS, 'vhdx', 'gpt', 'ploop'], 2):
        if found in HEADS:
            head, size = HEADS[found]
            yield _image(f'{found}, declared {declared}', declared, head,
                         size=size)
    for declared in ('', 'docker', '../raw', 'RAW', 'q' * 999, 'qcow2\n',
                     '\x1b[2J'):
        yield _image(f'declared {declared[:9]!r}', declared,
                     *HEADS['raw'][:1])
    yield _image('mbr with an odd boot flag', 'raw', _MBR.replace(
        b'\x80\0\1\0\x83', b'\x7f\0\1\0\x83'), size=MIB)
    yield _image('mbr without partitions', 'raw', bytes(510) + b'\x55\xaa',
                 size=MIB)
    yield _image('raw of 15 TiB', 'raw', *HEADS['raw'][:1], size=15 * TIB,
                 by_qemu=True)


def images() -> list[Image]:
    """All of it."""
    return [*_qcow2_images(), *_vmdk_images(), *_qed_images(), *_polyglots(),
            *_others()]
