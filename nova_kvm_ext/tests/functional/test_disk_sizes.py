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

"""Sizes of disks by their headers, compared with qemu-img byte by byte.

Needs qemu-img, and neither root nor libvirtd.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any
import unittest

import fixtures
import hypothesis
from hypothesis import strategies
from oslo_utils import imageutils
from oslotest import base

from nova_kvm_ext.images import headers
from nova_kvm_ext.tests.functional import disks
from nova_kvm_ext.tests.functional import libvirtd
from nova_kvm_ext.tests.unit.images import test_qcow2

CLUSTER = 1 << 16
# QEMU reads nothing behind that.
END = (1 << 63) - (1 << 30)

# What Nova's code takes of an answer.
FIELDS = ('virtual_size', 'disk_size', 'backing_file', 'backing_file_format',
          'file_format', 'cluster_size', 'encrypted')


class DiskSizesTestCase(base.BaseTestCase):

    def setUp(self):
        for program in ('qemu-img', 'qemu-io'):
            if shutil.which(program) is None:
                if os.environ.get(libvirtd.REQUIRE) == '1':
                    raise RuntimeError(f'{program} is not installed')
                raise unittest.SkipTest(f'{program} is not installed')
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)

    def asked(self, path: str) -> Any:
        """What qemu-img says; None where it refuses."""
        told = subprocess.run(
            ['qemu-img', 'info', '--output=json', '--force-share', path],
            capture_output=True, text=True)
        return None if told.returncode else json.loads(told.stdout)

    def assertSame(self, path: str, disk: Any) -> bool:
        """Whether the header settles it; then qemu-img says the same."""
        ours, theirs = headers.info(path), self.asked(path)
        if ours is None:
            return False
        self.assertIsNotNone(theirs, f'qemu-img refuses {disk}')
        read = imageutils.QemuImgInfo(ours)
        told = imageutils.QemuImgInfo(json.dumps(theirs))
        for name in FIELDS:
            self.assertEqual(getattr(told, name), getattr(read, name),
                             f'{name} of {disk}')
        # Lists are left out, and what a newer QEMU adds.
        said = json.loads(ours)
        for key in ('dirty-flag', 'full-backing-filename'):
            self.assertEqual(theirs.get(key), said.get(key), key)
        self.assertEqual(
            said['format-specific']['data'],
            {key: value
             for key, value in theirs['format-specific']['data'].items()
             if key != 'bitmaps'})
        return True

    def test_each_image(self):
        @hypothesis.settings(disks.SETTINGS, max_examples=50)
        @hypothesis.given(disks.disks())
        def same(disk: disks.Disk) -> None:
            with tempfile.TemporaryDirectory(dir=self.directory) as directory:
                path = disk.make(pathlib.Path(directory))
                settled = self.assertSame(path, disk)
            # No process for what Nova and QEMU make.
            self.assertEqual(not disk.raw, settled, str(disk))

        same()

    def test_what_the_header_does_not_settle(self):
        """It is left to qemu-img, and the two agree anyway."""
        raw = disks.Disk(1 << 20, raw=True).make(self.directory)
        encrypted = str(self.directory / 'encrypted')
        disks.run('create', '-q', '-f', 'qcow2', '--object',
                  'secret,id=s,data=x', '-o',
                  'encrypt.format=luks,encrypt.key-secret=s,'
                  'encrypt.iter-time=10', encrypted, '1M')
        data_file = str(self.directory / 'data')
        disks.run('create', '-f', 'qcow2', '-o',
                  f'data_file={data_file}.raw,data_file_raw=on', data_file,
                  '1M')
        others = []
        for name in ('qcow', 'vmdk', 'vdi', 'qed', 'vhdx'):
            others.append(str(self.directory / name))
            disks.run('create', '-f', name, others[-1], '1M')
        for path in (raw, encrypted, data_file, *others):
            self.assertIsNone(headers.info(path), path)
            self.assertIsNotNone(self.asked(path), path)

    def test_damaged_headers(self):
        """Where QEMU refuses an image, its header never answers."""
        whole = pathlib.Path(disks.Disk(
            1 << 30, backing=('qcow2',), snapshots=1).make(
                self.directory)).read_bytes()
        path = str(self.directory / 'damaged')
        settled = 0

        @hypothesis.settings(disks.SETTINGS, max_examples=100)
        @hypothesis.given(strategies.lists(strategies.tuples(
            # The fields, then extensions and the backing file's name.
            strategies.one_of(strategies.integers(0, 112),
                              strategies.integers(0, 640)),
            strategies.one_of(
                strategies.sampled_from([0, 1, 2, 4, 0x80, 0xff]),
                strategies.integers(0, 255))), min_size=1, max_size=3))
        def same(changes: list[tuple[int, int]]) -> None:
            nonlocal settled
            damaged = bytearray(whole)
            for at, value in changes:
                # The list of snapshots is not looked at: see below.
                if not 60 <= at < 72:
                    damaged[at] = value
            pathlib.Path(path).write_bytes(damaged)
            settled += self.assertSame(path, changes)

        same()
        self.assertGreater(settled, 5)

    def test_odd_headers(self):
        """Fields at their limits, and what another format may claim."""
        path = str(self.directory / 'odd')
        for fields, settled in (
                ({}, True), ({'version': 2}, True), ({'size': 0}, True),
                ({'size': 700}, True), ({'l1_size': 1}, False),
                ({'l1_size': 8192, 'l1_offset': END - CLUSTER}, True),
                ({'l1_size': 8192, 'l1_offset': END}, False),
                ({'refcounts': END - CLUSTER}, True),
                ({'refcounts': END}, False),
                ({'refcount_clusters': 0}, False),
                ({'snapshots': 1, 'snapshots_offset': 4 * CLUSTER}, True),
                ({'snapshots': 1, 'snapshots_offset': 5 * CLUSTER}, False),
                ({'snapshots': 1}, False),
                ({'snapshots_offset': 99 * CLUSTER}, True),
                ({'snapshots_offset': test_qcow2.VDI << 32}, False),
                ({'autoclear': 1, 'extensions': (
                    test_qcow2.bitmaps(offset=5 * CLUSTER),)}, False),
                ({'autoclear': 1, 'extensions': (
                    test_qcow2.bitmaps(count=0),)}, False),
                ({'incompatible': 3}, True), ({'compatible': 1 << 63}, True),
                ({'incompatible': 8, 'compression': 1}, True),
                ({'incompatible': 16, 'l1_size': 4}, True),
                ({'order': 6}, True), ({'order': 7}, False),
                ({'length': 104}, True), ({'length': 3000}, True),
                ({'backing': b'a' * 1023}, True),
                ({'backing': b'a' * 1024}, False),
                ({'backing': b'\xc3\xa9/x:y'}, True),
                ({'backing': b'nbd://host'}, False)):
            head = test_qcow2.header(**fields)
            pathlib.Path(path).write_bytes(head.ljust(5 * CLUSTER, b'\0'))
            self.assertEqual(
                settled, self.assertSame(path, fields), str(fields))

    def test_novas_sum(self):
        """disk_available_least, ours and LibvirtDriver's."""
        told = subprocess.run(
            [sys.executable, '-W', 'ignore', '-m', 'testtools.run',
             'nova_kvm_ext.tests.functional.disk_sums'],
            env=os.environ | {'OS_NOVA_DISABLE_EVENTLET_PATCHING': 'true'},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual(0, told.returncode, told.stdout)
