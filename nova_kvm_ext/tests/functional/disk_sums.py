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

"""Nova's sum over disks by headers and by qemu-img, in a process of its own.

Nova's tests must be imported before anything else. Its code runs on its own
fake libvirt, over real images. test_disk_sizes.py starts this.
"""

# First of all: it may patch the standard library.
import nova.tests.unit  # noqa: F401

import pathlib
import tempfile
from typing import Any
from unittest import mock
import uuid

import fixtures
import hypothesis
from hypothesis import strategies
from nova import objects
from nova.privsep import qemu
from nova.virt import fake
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import utils as libvirt_utils

from nova_kvm_ext.tests.functional import disks
from nova_kvm_ext.tests.unit import driver_base


class DiskSumsTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)

    def available(self, drvr: Any) -> tuple[float, int]:
        """disk_available_least, and the processes that it took."""
        with mock.patch.object(
                qemu, 'unprivileged_qemu_img_info',
                side_effect=qemu.unprivileged_qemu_img_info) as asked:
            found = drvr.get_available_resource('node')
        return found['disk_available_least'], asked.call_count

    def define(self, host: Any, path: str, disk_format: str) -> None:
        guest_id = str(uuid.uuid4())
        host.get_connection().defineXML(
            f'<domain type="kvm"><name>{guest_id}</name>'
            f'<uuid>{guest_id}</uuid><memory>65536</memory>'
            f'<vcpu>1</vcpu><os><type>hvm</type></os><devices>'
            f'<disk type="file" device="disk">'
            f'<driver name="qemu" type="{disk_format}"/>'
            f'<source file="{path}"/><target dev="vda" bus="virtio"/>'
            f'</disk></devices></domain>')

    def test_disk_available_least(self):
        ours = self.started()
        theirs = libvirt_driver.LibvirtDriver(fake.FakeVirtAPI())
        theirs._host = ours._host
        self.useFixture(fixtures.MockPatchObject(
            objects.InstanceList, 'get_by_filters', return_value=[]))
        self.useFixture(fixtures.MockPatchObject(
            objects.BlockDeviceMappingList, 'bdms_by_instance_uuid',
            return_value={}))
        # What is free on this machine changes from moment to moment. Nova's
        # fixture has a mock there, of which any sum is the same mock. Nova
        # divides what it is given in place.
        libvirt_utils.get_fs_info.side_effect = lambda path: {
            'total': 1 << 50, 'free': 1 << 49, 'used': 1 << 49}
        connection = ours._host.get_connection()
        sums: set[float] = set()

        @hypothesis.settings(disks.SETTINGS, max_examples=10)
        @hypothesis.given(strategies.lists(
            disks.disks(), min_size=1, max_size=5))
        def same(found: list[disks.Disk]) -> None:
            with tempfile.TemporaryDirectory(dir=self.directory) as directory:
                try:
                    for disk in found:
                        self.define(ours._host,
                                    disk.make(pathlib.Path(directory)),
                                    'raw' if disk.raw else 'qcow2')
                    least, processes = self.available(ours)
                    self.assertEqual(0, processes, found)
                    expected, processes = self.available(theirs)
                    self.assertEqual(
                        2 * sum(not disk.raw for disk in found), processes)
                    self.assertEqual(expected, least, found)
                    sums.add(least)
                finally:
                    for domain in connection.listAllDomains(0):
                        domain.undefine()

        same()
        self.assertGreater(len(sums), 3)
