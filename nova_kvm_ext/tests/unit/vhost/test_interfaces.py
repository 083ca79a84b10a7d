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

"""Interfaces of every type, and those that are attached, with vhost-net."""

from typing import Any
from unittest import mock

import fixtures
from lxml import etree
from nova import exception
from nova.network import model as network_model
from nova import objects
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import vif as libvirt_vif
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext import driver
from nova_kvm_ext.host import model
from nova_kvm_ext.tests.unit.vhost import ports
from nova_kvm_ext.vhost import process
from nova_kvm_ext.vhost import vif as kvm_vif

port = ports.port


class VIFTypesTestCase(ports.VhostTestCase):
    """Every VIF type that Nova knows, in each of its forms."""

    PCI: dict[str, Any] = {'profile': {'pci_slot': '0000:0a:00.1'}}
    SOCKET: dict[str, Any] = {'details': {'vhostuser_mode': 'client',
                                          'vhostuser_socket': '/run/sock'}}
    # Type: what it can be, and whether a tap or macvtap is behind it. None
    # where Nova's libvirt driver has nothing for it.
    TYPES: dict[str, list[tuple[network_model.VIF, bool | None]]] = {
        'ovs': [
            (port('ovs'), True),
            (port('ovs', details={'ovs_hybrid_plug': True}), True),
            (port('ovs', details={'ovs_create_tap': True}), True),
            (port('ovs', delegate_create=True), True),
            (port('ovs', 'direct', **PCI), False),
            (port('ovs', 'vdpa', **PCI), False),
            (port('ovs', 'remote-managed', **PCI), False)],
        'ivs': [(port('ivs'), True)],
        'dvs': [(port('dvs'), None)],
        'iovisor': [(port('iovisor'), True)],
        # Gone from Nova 34.
        'bridge': [(port('bridge'), True)],
        '802.1qbg': [(port('802.1qbg', qbg_params={
            'managerid': '1', 'typeid': '2', 'typeidversion': '3',
            'instanceid': uuids.instance}), True)],
        '802.1qbh': [
            (port('802.1qbh', 'direct', details={'profileid': 'p'}, **PCI),
             False),
            (port('802.1qbh', 'macvtap', details={'profileid': 'p'}, **PCI),
             True)],
        'hw_veb': [
            (port('hw_veb', 'direct', details={'vlan': '7'}, **PCI), False),
            (port('hw_veb', 'accelerator-direct', details={'vlan': '7'},
                  **PCI), False),
            (port('hw_veb', 'macvtap', details={'vlan': '7'}, **PCI), True)],
        'hyperv': [(port('hyperv'), None)],
        'hostdev_physical': [
            (port('hostdev_physical', 'direct-physical', **PCI), False),
            (port('hostdev_physical', 'accelerator-direct-physical', **PCI),
             False)],
        'ib_hostdev': [(port('ib_hostdev', 'direct', **PCI), False)],
        'midonet': [(port('midonet'), True)],
        'vhostuser': [(port('vhostuser', **SOCKET), False)],
        'vrouter': [
            (port('vrouter'), True),
            (port('vrouter', 'direct', **PCI), False),
            (port('vrouter', 'virtio-forwarder', **PCI, **SOCKET), False)],
        'other': [(port('other'), None)],
        'tap': [(port('tap'), True)],
        'macvtap': [(port('macvtap', 'macvtap', details={
            'macvtap_source': 'eth0.7', 'macvtap_mode': 'bridge',
            'physical_interface': 'eth0'}), True)],
        'agilio_ovs': [
            (port('agilio_ovs'), True),
            (port('agilio_ovs', 'direct', **PCI), False),
            (port('agilio_ovs', 'virtio-forwarder', **PCI, **SOCKET),
             False)],
        'binding_failed': [(port('binding_failed'), None)],
        'vif': [(port('vif'), None)],
        'unbound': [(port('unbound'), None)],
    }

    def setUp(self):
        super().setUp()
        # Read this machine's /sys.
        self.useFixture(fixtures.MockPatch(
            'nova.network.os_vif_util._get_vif_name', return_value='nic0'))
        self.useFixture(fixtures.MockPatch(
            'nova.virt.libvirt.host.Host.get_vdpa_device_path',
            return_value='/dev/vhost-vdpa-0'))

    def novas(self, vif: network_model.VIF, **kwargs: Any) -> Any:
        """What Nova's own VIF driver gives, or why it gives nothing."""
        instance = self.make_instance(**kwargs)
        novas = libvirt_vif.LibvirtGenericVIFDriver(self.drvr._host)
        try:
            return novas.get_config(
                instance, vif, instance.image_meta, instance.flavor,
                driver.CONF.libvirt.virt_type).to_xml()
        except exception.NovaException as e:
            return type(e)

    def test_every_type_is_here(self):
        self.assertEqual(
            {value for name, value in vars(network_model).items()
             if name.startswith('VIF_TYPE_')}, set(self.TYPES))

    def each(self) -> Any:
        for forms in self.TYPES.values():
            for vif, tap in forms:
                novas = self.novas(vif)
                if isinstance(novas, type):
                    self.assertIn(vif['type'], {
                        *(name for name, forms in self.TYPES.items()
                          if forms[0][1] is None), 'bridge'})
                    self.assertRaises(novas, self.config, self.drvr, vif)
                else:
                    self.assertIsNotNone(tap, vif['type'])
                    yield vif, tap

    def check(self, wanted: str | None, **options: Any) -> None:
        """Taps get this driver; nothing else is touched."""
        for vif, tap in self.each():
            for kwargs in ({}, {'properties': {'hw_vif_model': 'e1000'}},
                           {'extra_specs': ports.MULTIQUEUE}):
                with self.subTest(type=vif['type'], vnic=vif['vnic_type'],
                                  **kwargs):
                    novas = self.novas(vif, **kwargs)
                    config = self.config(self.drvr, vif, **kwargs)
                    # Neutron's macvtap is virtio whatever the image says.
                    if tap and getattr(config, 'model', None) == 'virtio':
                        named = etree.fromstring(novas).xpath('driver/@name')
                        self.assertEqual(
                            wanted or ('qemu' if named else None),
                            config.driver_name)
                    else:
                        self.assertEqual(novas, config.to_xml())

    def test_host_that_can(self):
        self.host(True)
        for setting, wanted in (('prefer', 'vhost'), ('require', 'vhost'),
                                ('off', 'qemu')):
            self.drvr = self.started(vhost_net=setting)
            self.check(wanted)

    def test_host_that_cannot(self):
        self.host(True)
        for setting, wanted in (('prefer', None), ('require', 'vhost'),
                                ('off', 'qemu')):
            self.host(True)
            self.drvr = self.started(vhost_net=setting)
            self.host(False)
            self.check(wanted)

    def test_qemu_guests_are_as_nova_has_them(self):
        self.host(True)
        for setting in ('prefer', 'require', 'off'):
            self.drvr = self.started(virt_type='qemu', vhost_net=setting)
            for vif, _ in self.each():
                for extra_specs in ({}, ports.MULTIQUEUE):
                    self.assertEqual(
                        self.novas(vif, extra_specs=extra_specs),
                        self.config(self.drvr, vif, extra_specs=extra_specs
                                    ).to_xml())


class PortTestCase(ports.VhostTestCase):
    """Ports come and go."""

    def setUp(self):
        super().setUp()
        self.host(True)
        for name in ('plug', 'unplug'):
            setattr(self, name, self.useFixture(fixtures.MockPatchObject(
                kvm_vif.KVMVIFDriver, name)).mock)
        self.useFixture(fixtures.MockPatchObject(
            libvirt_driver.LibvirtDriver, '_build_device_metadata',
            return_value=None))
        self.useFixture(fixtures.MockPatchObject(objects.Instance, 'save'))
        self.running_guest = mock.Mock(spec=libvirt_guest.Guest)
        self.running_guest.get_xml_desc.return_value = '<domain/>'

    def attach(self, drvr: driver.KVMDriver, **kwargs: Any) -> Any:
        instance = self.make_instance(**kwargs)
        instance.get_network_info = mock.Mock(return_value=[])
        with mock.patch.object(drvr._host, 'get_guest',
                               return_value=self.running_guest), \
                mock.patch.object(
                drvr, '_get_guest_config_meta'):
            drvr.attach_interface(
                None, instance, instance.image_meta, port())
        return self.running_guest.attach_device.call_args.args[0]

    def test_attached(self):
        self.assertEqual(
            'vhost', self.attach(self.started()).driver_name)

    def test_attached_without_and_logged(self):
        self.host(False)
        self.assertIsNone(self.attach(self.started()).driver_name)
        self.assertEqual(1, self.log().count(
            f'Interface {ports.MAC} does not use vhost-net'))

    def test_refused_before_anything_is_plugged(self):
        drvr = self.started(vhost_net='require')
        self.host(False)
        # A NovaException: Nova gives the port back then.
        self.assertRaises(
            exception.ComputeResourcesUnavailable, self.attach, drvr)
        self.assertRaises(
            exception.InvalidInput, self.attach, drvr,
            extra_specs={'kvm_ext:vhost_queues': 'all'})
        self.plug.assert_not_called()
        self.running_guest.attach_device.assert_not_called()

    def test_seen_after_it_is_attached(self):
        self.running_guest.get_xml_desc.return_value = (
            f'<domain type="kvm" id="1"><name>g</name>'
            f'<uuid>{uuids.instance}</uuid><devices><interface type="bridge">'
            f'<mac address="{ports.MAC}"/><model type="virtio"/>'
            f'<driver name="vhost"/></interface></devices></domain>')
        with mock.patch.object(process, 'read_vhost', return_value={
                uuids.instance: model.VhostFacts(7, 0, 0)}):
            self.attach(self.started())
        self.assertIn(
            f'Interface {ports.MAC} does not use vhost-net', self.log())

    def test_found_again_whatever_has_become_of_the_host(self):
        xml = etree.tostring(self.guest_xml(
            self.started(vhost_net='prefer'), network_info=[port()]),
            encoding='unicode')
        domain = mock.Mock()
        domain.XMLDesc.return_value = xml
        guest = libvirt_guest.Guest(domain)
        for setting in ('prefer', 'require', 'off'):
            self.host(True)
            drvr = self.started(vhost_net=setting)
            self.host(False)
            found = guest.get_interface_by_cfg(self.config(drvr))
            self.assertIsInstance(
                found, vconfig.LibvirtConfigGuestInterface)

    def test_detached_from_a_host_that_lost_what_is_required(self):
        drvr = self.started(vhost_net='require')
        self.host(False)
        with mock.patch.object(drvr._host, 'get_guest',
                               return_value=self.running_guest), \
                mock.patch.object(
                drvr, '_detach_with_retry') as detach, mock.patch.object(
                drvr, '_get_guest_config_meta'):
            instance = self.make_instance()
            instance.get_network_info = mock.Mock(return_value=[])
            drvr.detach_interface(None, instance, port())
        detach.assert_called_once()
        self.unplug.assert_called_once()
