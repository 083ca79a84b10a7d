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

import atexit
from typing import Any
from unittest import mock
import uuid

import fixtures
import libvirt
from lxml import etree
from nova import context
from nova import objects
from nova import test
from nova.tests import fixtures as nova_fixtures
from nova.tests.fixtures import libvirt as libvirt_fixture
from nova.virt import fake
from nova.virt.libvirt import blockinfo
from nova.virt.libvirt import driver as libvirt_driver
import os_vif
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext import counters
from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import compare
from nova_kvm_ext.cpu import definition
from nova_kvm_ext import driver
from nova_kvm_ext.host import model
from nova_kvm_ext.metrics import names
from nova_kvm_ext.tests.unit.cpu import hosts

VHOST_NET = model.DeviceFacts('/dev/vhost-net', present=True)
NO_VHOST_NET = model.DeviceFacts('/dev/vhost-net', present=False)


class DriverTestCase(test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        os_vif.initialize()
        self.libvirt = self.useFixture(nova_fixtures.LibvirtFixture())
        self.useFixture(nova_fixtures.CGroupsFixture())
        self.be_host()
        self.flags(instances_path=self.useFixture(fixtures.TempDir()).path,
                   state_path=self.useFixture(fixtures.TempDir()).path)
        self.flags(sysinfo_serial='none', group='libvirt')
        # Each driver counts for itself here.
        self.counters = counters.Counters()
        self.useFixture(fixtures.MockPatchObject(
            counters, 'COUNTERS', self.counters))
        # At the end of the process it would make state_path anew.
        self.addCleanup(atexit.unregister, self.counters.flush)
        # The machine that the test runs on is not looked at.
        self.flags(host_check='off', group='kvm_ext')
        self.vhost_net = self.useFixture(fixtures.MockPatch(
            'nova_kvm_ext.host.facts.read_device',
            return_value=NO_VHOST_NET)).mock
        self.modprobe = self.useFixture(fixtures.MockPatch(
            'nova_kvm_ext.vhost.privileged.modprobe',
            return_value='Module vhost_net not found.')).mock
        # Handed a mock for a domain, libvirt's own ends the process (3.13).
        self.useFixture(fixtures.MockPatch(
            'libvirt_qemu.qemuAgentCommand',
            side_effect=libvirt_fixture.make_libvirtError(
                libvirt.libvirtError, 'Guest agent is not responding: QEMU '
                'guest agent is not connected',
                error_code=libvirt.VIR_ERR_AGENT_UNRESPONSIVE)))
        # Up to Nova 33, init_host looks for instances in the database.
        self.useFixture(fixtures.MockPatchObject(
            objects.InstanceList, 'get_by_host',
            return_value=objects.InstanceList(objects=[])))
        # Looks into the file system of the machine that the test runs on.
        self.useFixture(fixtures.MockPatchObject(
            libvirt_driver.LibvirtDriver, '_check_vtpm_support'))

    def be_host(self, **host: Any) -> None:
        """Have the CPUs of this host, see hosts.capabilities()."""
        self.useFixture(fixtures.MonkeyPatch(
            'nova_kvm_ext.cpu.reader.read_map',
            lambda root='/': hosts.MAP))
        theirs = libvirt_fixture.Connection.getDomainCapabilities

        def answer(connection: Any, emulator: str | None, arch: str,
                   machine: str, virt_type: str, flags: int) -> str:
            # Nova always names the emulator.
            if emulator is None:
                return hosts.capabilities(virt_type, **host)
            return theirs(connection, emulator, arch, machine, virt_type,
                          flags)

        def compared(connection: Any, emulator: str | None, arch: str | None,
                     machine: str | None, virt_type: str | None, xml: str,
                     flags: int) -> int:
            # Nova names nothing but the CPU. 2 is VIR_CPU_COMPARE_SUPERSET.
            found = compare.compare(
                definition.CPU.parse(xml), capabilities.parse(
                    hosts.capabilities(virt_type or 'kvm', **host)),
                hosts.MAP)
            return 0 if found.possible is False else 2

        for name, ours in (('getDomainCapabilities', answer),
                           ('compareHypervisorCPU', compared)):
            self.useFixture(fixtures.MonkeyPatch(
                f'nova.tests.fixtures.libvirt.Connection.{name}', ours))

    def counted(self, metric: names.Metric) -> dict[tuple[str, ...], int]:
        """What the driver has counted, by the values of the labels."""
        return self.counters.counts().counters.get(metric.name, {})

    def started(self, **kvm_ext: Any) -> driver.KVMDriver:
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

    @staticmethod
    def running_domain(drvr: driver.KVMDriver) -> Any:
        """A domain with two vCPUs and no devices, which runs."""
        name = str(uuid.uuid4())
        domain = drvr._host.get_connection().defineXML(
            f'<domain type="kvm"><name>{name}</name><uuid>{name}</uuid>'
            f'<memory>65536</memory><vcpu>2</vcpu>'
            f'<os><type>hvm</type></os><devices/></domain>')
        domain.createWithFlags(0)
        return domain

    def guest_xml(self, drvr: driver.KVMDriver,
                  properties: dict[str, str] | None = None,
                  network_info: Any = (),
                  extra_specs: dict[str, str] | None = None,
                  vcpus: int = 2) -> etree._Element:
        """The XML of a guest with these image properties."""
        instance = self.make_instance(properties, extra_specs, vcpus)
        guest = self.make_guest(drvr, instance, properties, network_info)
        guest.metadata = []
        return etree.fromstring(guest.to_xml())

    def make_instance(self, properties: dict[str, str] | None = None,
                      extra_specs: dict[str, str] | None = None,
                      vcpus: int = 2, vcpu_model: Any = None) -> Any:
        """An instance whose image and flavor say this."""
        ctx = context.get_admin_context()
        flavor = objects.Flavor(
            id=1, flavorid='1', name='m1.tiny', vcpus=vcpus, memory_mb=512,
            root_gb=0, ephemeral_gb=0, swap=0,
            extra_specs=extra_specs or {})
        properties = properties or {}
        return objects.Instance(
            ctx, id=1, uuid=uuids.instance, user_id='u', project_id='p',
            host='host', node='node', display_name='guest', hostname='guest',
            flavor=flavor, vcpus=vcpus, memory_mb=512, root_gb=0,
            ephemeral_gb=0,
            image_ref=uuids.image, kernel_id=None, ramdisk_id=None,
            os_type=None, architecture=None, vm_mode=None, config_drive=None,
            key_name=None,
            vm_state='building', task_state=None, root_device_name=None,
            vcpu_model=vcpu_model, numa_topology=None, pci_devices=None,
            pci_requests=None, trusted_certs=None, resources=None,
            device_metadata=None, migration_context=None, metadata={},
            system_metadata={f'image_{key}': value
                             for key, value in properties.items()})

    def make_guest(self, drvr: driver.KVMDriver, instance: Any,
                   properties: dict[str, str] | None = None,
                   network_info: Any = ()) -> Any:
        """Nova's configuration of an instance's guest."""
        image_meta = objects.ImageMeta.from_dict(
            {'disk_format': 'raw', 'properties': properties or {}})
        disk_info = blockinfo.get_disk_info(
            driver.CONF.libvirt.virt_type, instance, image_meta)
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, '_get_guest_config_meta'):
            return drvr._get_guest_config(
                instance, network_info, image_meta, disk_info)
