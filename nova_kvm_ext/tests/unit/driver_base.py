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

"""What tests of KVMDriver on Nova's fake libvirt start from."""

from typing import Any
from unittest import mock

import fixtures
from lxml import etree
from nova import context
from nova import objects
from nova import test
from nova.tests import fixtures as nova_fixtures
from nova.virt import fake
from nova.virt.libvirt import blockinfo
from nova.virt.libvirt import driver as libvirt_driver
import os_vif
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext import driver
from nova_kvm_ext.host import model

VHOST_NET = model.DeviceFacts('/dev/vhost-net', present=True)
NO_VHOST_NET = model.DeviceFacts('/dev/vhost-net', present=False)


class DriverTestCase(test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        os_vif.initialize()
        self.libvirt = self.useFixture(nova_fixtures.LibvirtFixture())
        self.useFixture(nova_fixtures.CGroupsFixture())
        self.flags(instances_path=self.useFixture(fixtures.TempDir()).path,
                   state_path=self.useFixture(fixtures.TempDir()).path)
        self.flags(sysinfo_serial='none', group='libvirt')
        self.vhost_net = self.useFixture(fixtures.MockPatch(
            'nova_kvm_ext.host.facts.read_device',
            return_value=NO_VHOST_NET)).mock
        # Up to Nova 33, init_host looks for instances in the database.
        self.useFixture(fixtures.MockPatchObject(
            objects.InstanceList, 'get_by_host',
            return_value=objects.InstanceList(objects=[])))
        # Looks into the file system of the machine that the test runs on.
        self.useFixture(fixtures.MockPatchObject(
            libvirt_driver.LibvirtDriver, '_check_vtpm_support'))

    def started(self, **kvm_ext: str) -> driver.KVMDriver:
        """A driver after init_host with these options of [kvm_ext]."""
        for name, value in kvm_ext.items():
            self.flags(group='kvm_ext', **{name: value})
        # The driver sets Nova's own options, as they are for good in a
        # service; here they must not outlive the test.
        for name in ('virt_type', 'cpu_mode', 'cpu_models'):
            self.addCleanup(driver.CONF.clear_override, name, group='libvirt')
        found = driver.KVMDriver(fake.FakeVirtAPI())
        found.init_host('host')
        return found

    def guest_xml(self, drvr: driver.KVMDriver,
                  properties: dict[str, str] | None = None,
                  network_info: Any = ()) -> etree._Element:
        """The XML of a guest with these image properties."""
        ctx = context.get_admin_context()
        flavor = objects.Flavor(
            id=1, flavorid='1', name='m1.tiny', vcpus=2, memory_mb=512,
            root_gb=0, ephemeral_gb=0, swap=0, extra_specs={})
        properties = properties or {}
        instance = objects.Instance(
            ctx, id=1, uuid=uuids.instance, user_id='u', project_id='p',
            host='host', node='node', display_name='guest', hostname='guest',
            flavor=flavor, vcpus=2, memory_mb=512, root_gb=0, ephemeral_gb=0,
            image_ref=uuids.image, kernel_id=None, ramdisk_id=None,
            os_type=None, architecture=None, vm_mode=None, config_drive=None,
            key_name=None,
            vm_state='building', task_state=None, root_device_name=None,
            vcpu_model=None, numa_topology=None, pci_devices=None,
            pci_requests=None, trusted_certs=None, resources=None,
            device_metadata=None, migration_context=None, metadata={},
            system_metadata={f'image_{key}': value
                             for key, value in properties.items()})
        image_meta = objects.ImageMeta.from_dict(
            {'disk_format': 'raw', 'properties': properties})
        disk_info = blockinfo.get_disk_info(
            driver.CONF.libvirt.virt_type, instance, image_meta)
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, '_get_guest_config_meta'):
            guest = drvr._get_guest_config(
                instance, network_info, image_meta, disk_info)
        guest.metadata = []
        return etree.fromstring(guest.to_xml())
