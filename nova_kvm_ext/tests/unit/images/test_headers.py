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

"""A disk's header instead of qemu-img: what is opened, and what is said."""

import json
import os

import fixtures
from oslotest import base

from nova_kvm_ext.images import headers
from nova_kvm_ext.tests.unit.images import test_qcow2


class HeadersTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.path = os.path.join(self.directory, 'disk')
        with open(self.path, 'wb') as f:
            f.write(test_qcow2.header(backing=b'base', extensions=(
                (0xe2792aca, b'raw'),)))
            f.truncate(4 << 20)

    def test_as_qemu_img_says_it(self):
        self.assertEqual({
            'virtual-size': 1 << 30, 'filename': self.path,
            'cluster-size': 1 << 16, 'format': 'qcow2',
            'actual-size': os.stat(self.path).st_blocks * 512,
            'dirty-flag': False, 'backing-filename': 'base',
            'full-backing-filename': os.path.join(self.directory, 'base'),
            'backing-filename-format': 'raw',
            'format-specific': {'type': 'qcow2', 'data': {
                'compat': '1.1', 'compression-type': 'zlib',
                'refcount-bits': 16, 'lazy-refcounts': False,
                'corrupt': False, 'extended-l2': False}}},
            json.loads(headers.info(self.path)))

    def test_version_2_has_less_to_say(self):
        with open(self.path, 'wb') as f:
            f.write(test_qcow2.header(version=2))
        self.assertEqual(
            {'compat': '0.10', 'compression-type': 'zlib',
             'refcount-bits': 16},
            json.loads(headers.info(self.path))['format-specific']['data'])

    def test_told_the_format(self):
        self.assertIsNotNone(headers.info(self.path, 'qcow2'))
        # Of a raw file the header is a guest's data.
        self.assertIsNone(headers.info(self.path, 'raw'))

    def test_nothing_is_followed(self):
        link = os.path.join(self.directory, 'link')
        os.symlink(self.path, link)
        self.assertIsNone(headers.info(link))

    def test_a_directory_may_be_a_link(self):
        """As /var/lib/nova often is."""
        link = self.useFixture(fixtures.TempDir()).join('link')
        os.symlink(self.directory, link)
        self.assertIsNotNone(headers.info(os.path.join(link, 'disk')))

    def test_no_regular_file(self):
        fifo = os.path.join(self.directory, 'fifo')
        os.mkfifo(fifo)
        # It would wait for ever.
        self.assertIsNone(headers.info(fifo))
        for path in (self.directory, '/dev/null', '/dev/zero',
                     self.path + '.gone', self.path + '/disk', '/\0'):
            self.assertIsNone(headers.info(path), path)

    def test_names_that_are_no_paths(self):
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.directory)
        for path in ('disk', 'rbd:pool/disk', 'json:{}', ''):
            self.assertIsNone(headers.info(path), path)

    def test_no_file_stays_open(self):
        before = os.listdir('/proc/self/fd')
        for path in (self.path, self.directory, '/dev/null'):
            headers.info(path)
        self.assertEqual(before, os.listdir('/proc/self/fd'))

    def test_one_bounded_read(self):
        read = self.useFixture(fixtures.MockPatch(
            'os.pread', side_effect=os.pread)).mock
        headers.info(self.path)
        self.assertEqual([4096], [call.args[1] for call in
                                  read.call_args_list])

    def test_a_disk_that_cannot_be_read(self):
        self.useFixture(fixtures.MockPatch(
            'os.pread', side_effect=OSError(5, 'Input/output error')))
        self.assertIsNone(headers.info(self.path))
