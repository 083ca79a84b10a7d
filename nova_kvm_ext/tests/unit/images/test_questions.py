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

"""Who answers when Nova's own code asks about disks."""

import json
import os
from typing import Any
from unittest import mock
import uuid

import fixtures
from nova import context
from nova import exception
from nova import objects
from nova.privsep import qemu
from nova.virt.libvirt import utils as libvirt_utils

from nova_kvm_ext import driver
from nova_kvm_ext.images import questions
from nova_kvm_ext.tests.unit import driver_base
from nova_kvm_ext.tests.unit.images import test_qcow2

GIB = 1 << 30


class QuestionsTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.drvr = self.started()
        self.novas = self.useFixture(fixtures.MockPatchObject(
            qemu, 'unprivileged_qemu_img_info',
            side_effect=lambda path, format=None: json.dumps({
                'format': 'qcow2', 'virtual-size': 5 * GIB,
                'actual-size': GIB}))).mock
        for cls, name in ((objects.InstanceList, 'get_by_filters'),
                          (objects.BlockDeviceMappingList,
                           'bdms_by_instance_uuid')):
            self.useFixture(fixtures.MockPatchObject(
                cls, name, return_value={}))

    def disk(self, **fields: Any) -> str:
        """Path of a disk of a new guest."""
        name = str(uuid.uuid4())
        directory = os.path.join(driver.CONF.instances_path, name)
        os.makedirs(directory)
        path = os.path.join(directory, 'disk')
        with open(path, 'wb') as f:
            f.write(test_qcow2.header(**fields))
        self.drvr._host.get_connection().defineXML(
            f'<domain type="kvm"><name>{name}</name><uuid>{name}</uuid>'
            f'<memory>65536</memory><vcpu>1</vcpu><os><type>hvm</type></os>'
            f'<devices><disk type="file" device="disk">'
            f'<driver name="qemu" type="qcow2"/><source file="{path}"/>'
            f'<target dev="vda" bus="virtio"/></disk></devices></domain>')
        return path

    def test_no_process_for_a_disk(self):
        paths = [self.disk(backing=b'/base', size=size * GIB, l1_size=8)
                 for size in (1, 2, 3)]
        self.assertEqual(
            6 * GIB - sum(os.stat(path).st_blocks * 512 for path in paths),
            self.drvr._get_disk_over_committed_size_total())
        self.novas.assert_not_called()

    def test_qemu_img_is_asked_about_the_rest(self):
        """And what it says counts."""
        plain = self.disk()
        paths = [self.disk(encryption=2), self.disk(incompatible=4),
                 self.disk(incompatible=1 << 9), self.disk(magic=b'QED\0')]
        self.assertEqual(
            GIB - os.stat(plain).st_blocks * 512 + len(paths) * 4 * GIB,
            self.drvr._get_disk_over_committed_size_total())
        # Once for the size, once for the backing file.
        self.assertEqual(
            sorted(paths * 2),
            sorted(call.args[0] for call in self.novas.call_args_list))

    def test_nova_handles_its_own_errors(self):
        os.unlink(self.disk())
        refused = self.disk(encryption=99)
        self.disk()
        self.novas.side_effect = exception.DiskNotFound(location=refused)
        self.assertGreater(
            self.drvr._get_disk_over_committed_size_total(), 0)

    def test_a_link_is_not_followed_here(self):
        path = self.disk()
        os.rename(path, path + '.other')
        os.symlink(path + '.other', path)
        self.assertEqual(4 * GIB,
                         self.drvr._get_disk_over_committed_size_total())

    def test_the_pass_over_the_image_cache(self):
        path = self.disk(backing=b'/var/lib/nova/instances/_base/abc')
        self.drvr.image_cache_manager.instance_names = {
            os.path.basename(os.path.dirname(path))}
        found: list[str] = []
        with mock.patch.object(
                self.drvr.image_cache_manager, 'update',
                side_effect=lambda *args: found.extend(
                    self.drvr.image_cache_manager._list_backing_images())):
            self.drvr.manage_image_cache(context.get_admin_context(), [])
        self.assertEqual(
            [os.path.join(driver.CONF.instances_path, '_base', 'abc')], found)
        self.novas.assert_not_called()

    def test_outside_nova_asks_qemu_img(self):
        path = self.disk(backing=b'/base')
        with questions.by_headers():
            self.assertEqual('base',
                             libvirt_utils.get_disk_backing_file(path))
        self.assertIsNone(libvirt_utils.get_disk_backing_file(path))
        self.novas.assert_called_once_with(path, format=None)
        self.assertIs(self.novas, qemu.unprivileged_qemu_img_info)
