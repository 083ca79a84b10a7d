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

"""Images that are refused, and what happens to them who follow the remedy.

Each is made by the program that makes such images, or byte by byte where none
is at hand. The remedy's command is run as it is printed.
"""

import bz2
from collections.abc import Callable
import gzip
import io
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
from typing import Any
import unittest
import zipfile

import fixtures
from oslotest import base

from nova_kvm_ext.images import convert
from nova_kvm_ext.images import facts
from nova_kvm_ext.images import qemu_img
from nova_kvm_ext.images import verdict
from nova_kvm_ext.tests.functional import libvirtd

LIMITS = qemu_img.Limits(cpu_time=30, memory=1 << 30)
_SIZE = 4 << 20


def policy(force_raw: bool = True, overlays: bool = True) -> verdict.Policy:
    return verdict.Policy(
        max_virtual_size=1 << 40, force_raw=force_raw, raw_only=False,
        overlays=overlays,
        vmdk_types=('streamOptimized', 'monolithicSparse'))


def partition_table(*entries: bytes, code: bytes = b'\xeb\x63\x90') -> bytes:
    return (code.ljust(446, b'\0') +
            b''.join(entries).ljust(64, b'\0') + b'\x55\xaa')


def partition(kind: int, start: int, sectors: int, chs: bytes = b'\0\2\0'
              ) -> bytes:
    return b'\0' + chs + bytes([kind]) + b'\xff\xff\xff' + struct.pack(
        '<II', start, sectors)


# First sectors with the signature of a boot sector which are no partition
# table of a kind that oslo.utils' inspector lets pass.
SECTORS = {
    # Flatcar, and whatever xorriso and sgdisk --hybrid make.
    'hybrid': partition_table(partition(0xee, 1, 2047),
                              partition(0x0c, 2048, 2048)),
    'gpt-chs': partition_table(partition(0xee, 1, 8191, b'\0\1\0')),
    # One FAT, as mkfs.fat -f 1 makes.
    'fat': partition_table(code=(
        b'\xeb\x3c\x90MSDOS5.0' + struct.pack(
            '<HBHBHHB', 512, 4, 1, 1, 512, 8192, 0xf8)).ljust(446, b'\x90')),
    'ntfs': b'\xeb\x52\x90NTFS    '.ljust(510, b'\x90') + b'\x55\xaa',
    'no-partition': partition_table(),
    'odd-flag': partition_table(b'\x7f' + partition(0x83, 1, 63)[1:]),
}


class RemedyTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        if shutil.which("qemu-img") is None:
            if os.environ.get(libvirtd.REQUIRE) == "1":
                raise RuntimeError("qemu-img is not installed")
            raise unittest.SkipTest("qemu-img is not installed")
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.disk = b'\xeb\x63\x90'.ljust(510, b'\0') + bytes(514) + b'disk'
        self.write('disk', self.disk.ljust(_SIZE, b'\0'))
        self.write('PASSPHRASE', b'secret')

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def write(self, name: str, data: bytes) -> None:
        with open(self.path(name), 'wb') as f:
            f.write(data)

    def sh(self, command: str) -> str:
        return subprocess.run(
            ['sh', '-ec', command], cwd=self.directory, check=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True).stdout

    def judge(self, name: str, declared: str | None = None,
              by: verdict.Policy | None = None) -> verdict.Verdict:
        with open(self.path(name), 'rb') as f:
            declared = declared or facts.detect(f)
            return verdict.judge(facts.read(f, declared, LIMITS), declared,
                                 by or policy())

    def accepted(self, name: str, declared: str | None = None) -> None:
        """And converted, whatever nova.conf says."""
        for how in (policy(), policy(force_raw=False),
                    policy(overlays=False)):
            decided = self.judge(name, declared, how)
            self.assertTrue(decided.accepted, decided)
            if decided.converted_to is not None:
                with open(self.path(name), 'rb') as f:
                    convert.convert(f, decided, self.path('converted'),
                                    LIMITS, overwrite=True)

    def follow(self, old: str, check: str, declared: str | None = None,
               new: str = 'NEW', by: verdict.Policy | None = None) -> None:
        """Refused; what the remedy makes of it is accepted, and the disk."""
        decided = self.judge(old, declared, by)
        self.assertFalse(decided.accepted, old)
        self.assertEqual(check, decided.check, decided.reason)
        words, _, command = decided.remedy.partition(': ')
        self.assertTrue(command, decided)
        if 'OLD' not in os.listdir(self.directory):
            os.link(self.path(old), self.path('OLD'))
        self.sh(command)
        self.accepted(new)
        made = self.judge(new)
        if made.disk_format != 'raw':
            self.sh(f'qemu-img convert -f {made.disk_format} -O raw {new} '
                    f'content')
            with open(self.path('content'), 'rb') as f:
                content = f.read()
        else:
            with open(self.path(new), 'rb') as f:
                content = f.read()
        with open(self.path('disk'), 'rb') as f:
            self.assertEqual(f.read(), content[:_SIZE])

    def follow_again(self, *args: Any, **how: Any) -> None:
        for name in ('OLD', 'NEW'):
            if os.path.lexists(self.path(name)):
                os.unlink(self.path(name))
        self.follow(*args, **how)

    def test_wrongly_declared(self):
        """What is to be uploaded again is accepted as what it is."""
        self.sh('for f in qcow2 qed vdi vhdx vmdk; do '
                'qemu-img convert -f raw -O $f disk $f; done')
        for name in ('disk', 'qcow2', 'qed', 'vdi', 'vhdx', 'vmdk'):
            for declared in ('raw', 'qcow2', 'ploop'):
                if declared in (name, 'raw' if name == 'disk' else name):
                    continue
                decided = self.judge(name, declared)
                self.assertFalse(decided.accepted, (name, declared))
                words, _, to = decided.remedy.rstrip('.').rpartition(' ')
                self.assertTrue(words.endswith('--disk-format'), decided)
                self.accepted(name, to)

    def test_disks_without_a_proper_partition_table(self):
        """Refused as raw files, by Nova too; good as anything else."""
        for name, sector in SECTORS.items():
            self.write('disk', sector.ljust(_SIZE, b'd'))
            self.follow_again('disk', 'mbr', 'raw')
            for disk_format in ('qcow2', 'qed', 'vmdk', 'vdi'):
                self.sh(f'qemu-img convert -f raw -O {disk_format} disk '
                        f'{name}.{disk_format}')
                self.accepted(f'{name}.{disk_format}')
                # Nova looks at the base of an overlay each time.
                self.assertEqual(
                    {'qcow2': None, 'vdi': None}.get(disk_format, 'qcow2'),
                    self.judge(f'{name}.{disk_format}').converted_to)
                self.assertEqual('raw', self.judge(
                    f'{name}.{disk_format}',
                    by=policy(overlays=False)).converted_to)

    def test_a_fat_that_is_known(self):
        """It is what oslo.utils lets pass, so it is made raw."""
        self.write('disk', SECTORS['fat'].replace(
            struct.pack('<HBHB', 512, 4, 1, 1),
            struct.pack('<HBHB', 512, 4, 1, 2)).ljust(_SIZE, b'd'))
        self.accepted('disk', 'raw')
        self.sh('qemu-img convert -f raw -O qcow2 disk qcow2')
        self.assertEqual('raw', self.judge('qcow2').converted_to)

    def test_encrypted(self):
        secret = '--object secret,id=s,file=PASSPHRASE'
        for disk_format, options in (
                ('qcow2', 'encrypt.format=luks,encrypt.key-secret=s,'
                          'encrypt.iter-time=10'),
                ('qcow2', 'encrypt.format=aes,encrypt.key-secret=s'),
                ('qcow', 'encrypt.format=aes,encrypt.key-secret=s'),
                ('luks', 'key-secret=s,iter-time=10')):
            # It measures how fast it hashes, which fails on a busy machine.
            self.sh(f'for i in $(seq 30); do '
                    f'qemu-img convert {secret} -f raw -O {disk_format} '
                    f'-o {options} disk encrypted && exit; done; false')
            for declared in (None, 'raw', 'qcow2', 'vdi'):
                self.follow_again('encrypted', 'encrypted', declared)
            said = self.judge('encrypted').said
            self.assertNotIn('...', said)
            self.assertIn('qemu-img convert', said)

    def test_compressed(self):
        def zipped(data: bytes) -> bytes:
            out = io.BytesIO()
            with zipfile.ZipFile(out, 'w') as z:
                z.writestr('disk', data)
            return out.getvalue()

        pack: dict[str, Callable[[bytes], bytes]] = {
            'gzip': gzip.compress, 'bzip2': bz2.compress,
            'xz': lzma.compress, 'ZIP': zipped}
        tools = {'gzip': 'gzip', 'bzip2': 'bzip2', 'xz': 'xz', 'ZIP': 'unzip'}
        self.sh('qemu-img convert -f raw -O qcow2 disk qcow2')
        for name, function in pack.items():
            for inner in ('disk', 'qcow2'):
                with open(self.path(inner), 'rb') as f:
                    self.write('packed', function(f.read()))
                for declared in ('raw', 'qcow2', 'ploop'):
                    decided = self.judge('packed', declared)
                    self.assertEqual('packed', decided.check)
                    self.assertIn(name, decided.reason)
                if shutil.which(tools[name]):
                    self.follow_again('packed', 'packed')
        for tool in ('zstd', 'lz4', 'lzip'):
            if shutil.which(tool):
                self.sh(f'{tool} -c < qcow2 > packed')
                self.assertIn(tool, self.judge('packed').reason)
                self.follow_again('packed', 'packed')

    def test_archives(self):
        self.sh('qemu-img convert -f raw -O vmdk '
                '-o subformat=streamOptimized disk disk1.vmdk')
        self.write('server.ovf', b'<Envelope/>')
        for name, members in (('OVA', ('server.ovf', 'disk1.vmdk')),
                              ('tar', ('disk1.vmdk',))):
            with tarfile.open(self.path('packed'), 'w') as tar:
                for member in members:
                    tar.add(self.path(member), member)
            if name == 'OVA':
                os.unlink(self.path('disk1.vmdk'))
            self.assertIn(name, self.judge('packed', 'vmdk').reason)
            self.follow_again('packed', 'packed', new='disk1.vmdk')

    def test_what_only_looks_packed(self):
        """A disk that a machine can start from is one."""
        for magic in (b'\x1f\x8b\x08', b'\xfd7zXZ\0', b'PK\3\4'):
            self.write('disk', magic.ljust(446, b'\0') + partition_table(
                partition(0x83, 1, 63))[446:] + bytes(4096))
            self.accepted('disk', 'raw')
        self.write('disk', b'\x1f\x8b\x08' + bytes(8189))
        self.accepted('disk', 'raw')

    def test_split_vmdk(self):
        for subformat in ('monolithicFlat', 'twoGbMaxExtentFlat',
                          'twoGbMaxExtentSparse'):
            self.sh(f'qemu-img convert -f raw -O vmdk -o '
                    f'subformat={subformat} disk {subformat}.vmdk')
            for declared in (None, 'raw', 'vdi'):
                self.follow_again(f'{subformat}.vmdk', 'descriptor',
                                  declared)
        extent = 'twoGbMaxExtentSparse-s001.vmdk'
        for declared in (None, 'raw'):
            self.assertIn('descriptor', self.judge(extent, declared).remedy)
            for name in ('OLD', 'NEW'):
                os.unlink(self.path(name))
            # Which is what OLD is there.
            os.symlink('twoGbMaxExtentSparse.vmdk', self.path('OLD'))
            self.follow(extent, 'descriptor', declared)

    def test_old_and_other_formats(self):
        self.sh('qemu-img convert -f raw -O qcow disk qcow')
        self.follow_again('qcow', 'unknown_features')
        self.follow_again('qcow', 'unknown_features', 'raw')
        for disk_format, options, check in (
                ('parallels', '', 'content'),
                ('vpc', '-o subformat=dynamic', 'content'),
                ('vpc', '-o subformat=fixed,force_size', 'content')):
            self.sh(f'qemu-img convert -f raw -O {disk_format} {options} '
                    f'disk other')
            for declared in ('vhd', 'qcow2'):
                self.follow_again('other', check, declared)
            self.follow_again('other', 'disk_format', 'ploop')

    def test_other_files(self):
        self.sh('qemu-img create -q -f qcow2 -F raw -b disk backed; '
                'qemu-img create -q -f qed -F raw -b disk backed.qed; '
                'qemu-img convert -f raw -O qcow2 -o data_file=data,'
                'data_file_raw=on disk elsewhere; '
                'qemu-img create -q -f qcow -F raw -b disk backed.qcow; '
                'qemu-img convert -f raw -O vmdk disk base.vmdk; '
                'qemu-img create -q -f vmdk -F vmdk -b base.vmdk '
                'backed.vmdk')
        self.follow_again('backed', 'backing_file')
        self.follow_again('backed.qed', 'qed backing_file')
        self.follow_again('backed.qcow', 'backing_file')
        self.follow_again('backed.vmdk', 'backing_file')
        self.follow_again('elsewhere', 'data_file')

    def test_features(self):
        self.sh('qemu-img convert -f raw -O qcow2 -o extended_l2=on disk '
                'features')
        self.follow_again('features', 'unknown_features')
        self.sh('qemu-img convert -f raw -O qcow2 disk unknown; '
                'printf "\\001" | dd of=unknown bs=1 seek=74 conv=notrunc')
        decided = self.judge('unknown')
        self.assertIn('QEMU does not know', decided.reason)
        self.assertNotIn('qemu-img', decided.remedy)

    def test_vmdk_types(self):
        self.sh('qemu-img convert -f raw -O vmdk disk vmdk')
        with open(self.path('vmdk'), 'rb') as f:
            data = f.read()
        self.write('other', data.replace(b'monolithicSparse',
                                         b'customizedSparse'))
        self.follow_again('other', 'descriptor')
        by = verdict.Policy(1 << 40, ('streamOptimized',), True, False)
        self.follow_again('vmdk', 'vmdk_allowed_types', by=by)

    def test_polyglots(self):
        for disk_format in ('qcow2', 'vdi', 'vmdk', 'vhdx'):
            self.sh(f'qemu-img convert -f raw -O {disk_format} disk both')
            with open(self.path('both'), 'r+b') as f:
                f.seek(510)
                f.write(b'\x55\xaa')
            if not self.judge('both').accepted:
                self.follow_again('both', 'polyglot', disk_format)

    def test_qed(self):
        self.sh('qemu-img convert -f raw -O qed disk qed; '
                'printf "\\002" | dd of=qed bs=1 seek=16 conv=notrunc; '
                'cp qed NEW2')
        decided = self.judge('qed')
        self.assertEqual('qed need_check', decided.check)
        os.symlink('qed', self.path('OLD'))
        self.sh(decided.remedy.partition(': ')[2])
        self.accepted('qed')

    def test_image_within_an_image(self):
        """Nothing for a raw disk; a base in qcow2 shows it to nobody."""
        self.sh('qemu-img convert -f raw -O qcow2 disk inner; '
                'qemu-img convert -f raw -O qcow2 inner outer')
        self.accepted_as_overlay('outer')
        decided = self.judge('outer', by=policy(overlays=False))
        self.assertEqual('inside', decided.check)
        os.symlink('outer', self.path('OLD'))
        self.sh(decided.remedy.partition(': ')[2])
        self.accepted('NEW')

    def accepted_as_overlay(self, name: str) -> None:
        for how in (policy(), policy(force_raw=False)):
            decided = self.judge(name, by=how)
            self.assertTrue(decided.accepted)
            self.assertIsNone(decided.converted_to)

    def test_damaged(self):
        self.sh('qemu-img convert -f raw -O qcow2 disk damaged')
        with open(self.path('damaged'), 'r+b') as f:
            # The L1 table's first entry.
            f.seek(40)
            offset, = struct.unpack('>Q', f.read(8))
            f.seek(offset)
            f.write(b'\x80' + b'\xff' * 7)
        decided = self.judge('damaged')
        self.assertEqual('qemu-img', decided.check, decided.reason)
        os.symlink('damaged', self.path('OLD'))
        self.assertRaises(subprocess.CalledProcessError, self.sh,
                          decided.remedy.partition(': ')[2])
