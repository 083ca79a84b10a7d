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

"""vhost-net through the driver: start, boot, ports, migration, proof."""

import dataclasses
import functools
import itertools
from typing import Any
from unittest import mock

import fixtures
from lxml import etree
from nova.compute import provider_tree
from nova import exception
from nova.network import model as network_model
from nova import objects
from nova.objects import migrate_data as migrate_data_obj
import nova.privsep.linux_net
from nova.tests import fixtures as nova_fixtures
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import migration
from nova.virt.libvirt import vif as libvirt_vif
from oslo_privsep import daemon
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext import driver
from nova_kvm_ext.host import model
from nova_kvm_ext.tests.unit import driver_base
from nova_kvm_ext.vhost import hooks
from nova_kvm_ext.vhost import privileged
from nova_kvm_ext.vhost import process
from nova_kvm_ext.vhost import vif as kvm_vif

MAC = '52:54:00:12:34:56'
MULTIQUEUE = {'hw:vif_multiqueue_enabled': 'true'}

# Nova's fixture puts a mock in its place.
_PLUG_OS_VIF = libvirt_vif.LibvirtGenericVIFDriver._plug_os_vif

# Nova 34 is the first that has it.
_CREATE_TAP = (('ovs', {'details': {'ovs_create_tap': True}}),) if hasattr(
    network_model, 'VIF_DETAILS_OVS_CREATE_TAP') else ()


def device(open_error: str) -> model.DeviceFacts:
    return model.DeviceFacts('/dev/vhost-net', present=True, mode=0o600,
                             owner=0, group=0, open_error=open_error)


def port(vif_type: str = 'tap', vnic_type: str = 'normal',
         **more: Any) -> network_model.VIF:
    network = network_model.Network(
        id=uuids.network, bridge='br-int', label=None, subnets=[],
        interface='eth0')
    return network_model.VIF(**{
        'id': uuids.port, 'address': MAC, 'network': network,
        'type': vif_type, 'vnic_type': vnic_type, 'devname': 'tap0',
        'details': {}, 'profile': {}} | more)


class VhostTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(nova_fixtures.PrivsepFixture())

    def host(self, can: bool) -> None:
        """What the device is like from now on."""
        self.vhost_net.side_effect = None
        self.vhost_net.return_value = (
            driver_base.VHOST_NET if can else driver_base.NO_VHOST_NET)

    def log(self) -> str:
        return self.stdlog.logger.output

    def interface(self, drvr: driver.KVMDriver,
                  **kwargs: Any) -> etree._Element:
        return self.guest_xml(
            drvr, network_info=[port()], **kwargs).find(
            'devices/interface')

    def config(self, drvr: driver.KVMDriver,
               vif: network_model.VIF | None = None,
               **kwargs: Any) -> Any:
        """What the VIF driver gives for a port."""
        instance = self.make_instance(**kwargs)
        return drvr.vif_driver.get_config(
            instance, vif or port(), instance.image_meta, instance.flavor,
            driver.CONF.libvirt.virt_type)


class StartTestCase(VhostTestCase):

    def refused(self, **options: Any) -> str:
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, 'init_host') as init_host:
            error = self.assertRaises(
                exception.InvalidConfiguration, self.started, **options)
        init_host.assert_not_called()
        return str(error)

    def test_a_host_that_can(self):
        self.host(True)
        for setting in ('prefer', 'require'):
            self.started(vhost_net=setting)
        self.assertIn('Guests use vhost-net', self.log())
        self.modprobe.assert_not_called()

    def test_a_host_that_cannot(self):
        self.started()
        self.assertEqual(1, self.log().count('Guests do not use vhost-net'))
        self.assertIn('there is no /dev/vhost-net, and modprobe vhost_net '
                      'fails (Module vhost_net not found.)', self.log())
        self.modprobe.assert_called_once_with('vhost_net')

    def test_require_does_not_start_without(self):
        error = self.refused(vhost_net='require')
        self.assertIn('[kvm_ext] vhost_net = require', error)
        self.assertIn('there is no /dev/vhost-net', error)
        self.assertIn('Module vhost_net not found.', error)

    def test_a_module_that_can_be_loaded(self):
        self.modprobe.return_value = ''
        self.vhost_net.side_effect = [
            driver_base.NO_VHOST_NET, driver_base.VHOST_NET]
        self.started(vhost_net='require')
        self.modprobe.assert_called_once_with('vhost_net')

    def test_loading_switched_off(self):
        self.assertIn('run modprobe vhost_net', self.refused(
            vhost_net='require', load_vhost_net=False))
        self.modprobe.assert_not_called()

    def test_a_node_whose_module_does_not_load(self):
        self.vhost_net.return_value = device('ENODEV')
        self.assertIn('cannot be opened (ENODEV)',
                      self.refused(vhost_net='require'))

    def test_off_and_qemu_open_nothing(self):
        """Opening loads the module."""
        for options in ({'vhost_net': 'off'}, {'virt_type': 'qemu'}):
            drvr = self.started(**options)
            self.config(drvr)
            self.assertNotIn(hooks.TRAIT, drvr._our_traits())
            self.flags(group='kvm_ext', vhost_net='prefer')
        self.vhost_net.assert_not_called()
        self.modprobe.assert_not_called()
        self.assertNotIn('Guests do not use vhost-net, on', self.log())

    def test_require_says_that_it_has_no_effect_on_qemu(self):
        self.started(virt_type='qemu', vhost_net='require')
        self.assertIn('vhost_net = require has no effect', self.log())

    def test_this_user_may_not_open_it_and_root_may(self):
        self.vhost_net.side_effect = [
            device('EACCES'), driver_base.VHOST_NET]
        self.started(vhost_net='require')
        self.modprobe.assert_not_called()

    def test_even_root_may_not(self):
        self.vhost_net.return_value = device('EPERM')
        self.modprobe.return_value = ''
        self.assertIn('even root may not open', self.refused(
            vhost_net='require'))

    def test_nobody_can_be_asked_as_root(self):
        """Each way in which privsep can fail, none of them ends prefer."""
        for seen in (device('EACCES'), driver_base.NO_VHOST_NET):
            self.vhost_net.return_value = seen
            for error in (
                    daemon.FailedToDropPrivileges('helper exited non-zero'),
                    FileNotFoundError(2, 'No such file', 'sudo'),
                    AssertionError()):
                with mock.patch.object(privileged, 'read_device',
                                       side_effect=error):
                    self.modprobe.side_effect = error
                    self.started(vhost_net='prefer')
                    text = self.refused(vhost_net='require')
                self.assertIn('as root' if not seen.present else
                              'root cannot be asked', text)
                self.assertIn(str(error) or 'AssertionError', text)

    def test_bad_values(self):
        for name, value in (('vhost_net', 'maybe'), ('max_vhost_queues', 0),
                            ('max_vhost_queues', 257)):
            self.assertRaises(ValueError, self.flags, group='kvm_ext',
                              **{name: value})

    def test_before_the_start_interfaces_are_novas(self):
        self.host(True)
        drvr = driver.KVMDriver(mock.Mock())
        self.assertIsNone(self.config(drvr).driver_name)
        self.vhost_net.assert_not_called()


class BootTestCase(VhostTestCase):

    def driver_name(self, drvr: driver.KVMDriver,
                    **kwargs: Any) -> str | None:
        found = self.interface(drvr, **kwargs).find('driver')
        return None if found is None else found.get('name')

    def test_policies(self):
        for setting, driver_name in (
                ('prefer', 'vhost'), ('require', 'vhost'), ('off', 'qemu')):
            self.host(True)
            self.assertEqual(driver_name, self.driver_name(
                self.started(vhost_net=setting)))

    def test_prefer_without_names_and_logs_each(self):
        drvr = self.started()
        self.assertIsNone(self.driver_name(drvr))
        self.guest_xml(drvr, network_info=[
            port(), port(address='52:54:00:00:00:02', devname='tap1')])
        for mac in (MAC, '52:54:00:00:00:02'):
            self.assertIn(f'Interface {mac} does not use vhost-net',
                          self.log())

    def test_prefer_without_keeps_what_needs_a_driver(self):
        """Nova names vhost then, which libvirt would refuse."""
        drvr = self.started()
        found = self.interface(drvr, extra_specs=MULTIQUEUE).find('driver')
        self.assertEqual(('qemu', '2'),
                         (found.get('name'), found.get('queues')))
        self.flags(rx_queue_size=512, group='libvirt')
        found = self.interface(drvr).find('driver')
        self.assertEqual(('qemu', '512'),
                         (found.get('name'), found.get('rx_queue_size')))

    def test_prefer_takes_it_when_it_comes(self):
        drvr = self.started()
        self.host(True)
        self.assertEqual('vhost', self.driver_name(drvr))

    def test_require_lost_while_the_service_runs(self):
        self.host(True)
        drvr = self.started(vhost_net='require')
        self.host(False)
        # Nova tries the next host, and the reason is in what the user sees.
        error = self.assertRaises(
            exception.ComputeResourcesUnavailable, self.interface, drvr)
        self.assertIn(MAC, error.format_message())
        self.assertIn('there is no /dev/vhost-net', error.format_message())
        # What has nothing to do with it still boots.
        self.guest_xml(drvr)
        self.interface(drvr, properties={'hw_vif_model': 'e1000'})

    def test_off_on_a_host_without(self):
        self.assertEqual('qemu', self.driver_name(
            self.started(vhost_net='off')))
        self.assertNotIn('does not use vhost-net, on', self.log())


class VIFTypesTestCase(VhostTestCase):
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
                           {'extra_specs': MULTIQUEUE}):
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
                for extra_specs in ({}, MULTIQUEUE):
                    self.assertEqual(
                        self.novas(vif, extra_specs=extra_specs),
                        self.config(self.drvr, vif, extra_specs=extra_specs
                                    ).to_xml())


class QueuesTestCase(VhostTestCase):

    def setUp(self):
        super().setUp()
        self.host(True)
        # Goes by the kernel's version.
        self.flags(max_queues=None, group='libvirt')
        self.create_tap_dev = self.useFixture(fixtures.MockPatchObject(
            nova.privsep.linux_net, 'create_tap_dev')).mock
        self.useFixture(fixtures.MockPatchObject(
            nova.privsep.linux_net, 'set_device_mtu'))

    def queues(self, drvr: driver.KVMDriver, vcpus: int = 8,
               extra_specs: dict[str, str] | None = None,
               properties: dict[str, str] | None = None) -> int:
        """Queues of the XML, which the tap device must agree with."""
        extra_specs = MULTIQUEUE | (extra_specs or {})
        found = self.interface(drvr, extra_specs=extra_specs,
                               properties=properties, vcpus=vcpus)
        count = int(found.find('driver').get('queues', 1))
        instance = self.make_instance(
            extra_specs=extra_specs, properties=properties, vcpus=vcpus)
        before = instance.obj_to_primitive()
        drvr.vif_driver.plug(instance, port())
        self.assertEqual(
            {'multiqueue': count > 1}, self.create_tap_dev.call_args.kwargs)
        self.assertEqual(before, instance.obj_to_primitive())
        return count

    def test_as_nova_without_a_limit(self):
        drvr = self.started()
        for vcpus in (1, 2, 8, 256):
            self.assertEqual(vcpus, self.queues(drvr, vcpus))

    def test_never_more_than_the_kernel_has(self):
        self.assertEqual(256, self.queues(self.started(), 300))

    def test_the_hosts_limit(self):
        for limit, wanted in ((4, 4), (1, 1), (16, 8)):
            self.assertEqual(wanted, self.queues(
                self.started(max_vhost_queues=limit)))

    def test_novas_own_limit_still_counts(self):
        self.flags(max_queues=2, group='libvirt')
        self.assertEqual(2, self.queues(self.started(max_vhost_queues=4)))

    def test_flavor_and_image(self):
        drvr = self.started(max_vhost_queues=6)
        for flavor, image, wanted in (
                ('4', None, 4), (None, '3', 3), ('4', '2', 2),
                ('2', '256', 2), ('8', None, 6), ('1', None, 1),
                (None, '1', 1)):
            self.assertEqual(wanted, self.queues(
                drvr,
                extra_specs={'kvm_ext:vhost_queues': flavor}
                if flavor else {},
                properties={'kvm_ext_vhost_queues': image}
                if image else {}))

    def test_multiqueue_of_the_image_and_one_queue(self):
        drvr = self.started(max_vhost_queues=1)
        instance = self.make_instance({'hw_vif_multiqueue_enabled': 'true'})
        drvr.vif_driver.plug(instance, port())
        self.assertEqual({'multiqueue': False},
                         self.create_tap_dev.call_args.kwargs)
        self.assertIn('image_hw_vif_multiqueue_enabled',
                      instance.system_metadata)

    def pair(self, drvr: driver.KVMDriver, vif: network_model.VIF,
             **kwargs: Any) -> tuple[bool, bool]:
        """Whether the tap device has queues, and whether the XML has."""
        instance = self.make_instance(**kwargs)
        config = self.config(drvr, vif, **kwargs)
        self.create_tap_dev.reset_mock()
        with mock.patch.object(
                libvirt_vif.LibvirtGenericVIFDriver, '_plug_os_vif',
                new=_PLUG_OS_VIF), mock.patch('os_vif.plug') as plug, \
                mock.patch(
                'nova.privsep.libvirt.plug_midonet_vif'), mock.patch(
                'nova.privsep.libvirt.plug_plumgrid_vif'):
            drvr.vif_driver.plug(instance, vif)
        if plug.called:
            tap = plug.call_args.args[0].port_profile.multiqueue
        else:
            tap = self.create_tap_dev.call_args.kwargs.get('multiqueue',
                                                           False)
        found = etree.fromstring(config.to_xml()).find('driver')
        queues = int('1' if found is None else found.get('queues', '1'))
        return tap, queues > 1

    # Those whose tap device is there before libvirt starts the guest.
    PLUGGED: Any = (('tap', {}), ('midonet', {}), ('iovisor', {}),
                    *_CREATE_TAP)

    def test_tap_and_xml_agree(self):
        """For every VIF type, model of card, virt_type and limit."""
        for virt_type, limit, can in (
                ('kvm', None, True), ('kvm', 4, False), ('kvm', 1, True),
                ('qemu', None, True)):
            drvr = self.started(virt_type=virt_type, max_vhost_queues=limit)
            self.host(can)
            for (vif_type, more), card, asks in itertools.product(
                    self.PLUGGED, (
                        None, *libvirt_vif.SUPPORTED_VIF_MODELS[virt_type]),
                    ({}, {'extra_specs': MULTIQUEUE},
                     {'extra_specs': MULTIQUEUE |
                      {'kvm_ext:vhost_queues': '1'}})):
                properties = {'hw_vif_model': card} if card else {}
                tap, xml = self.pair(
                    drvr, port(vif_type, **more), vcpus=4,
                    properties=properties, **asks)
                self.assertEqual(tap, xml, str((
                    virt_type, limit, can, vif_type, card, asks)))
                self.assertEqual(
                    virt_type == 'kvm' and limit != 1 and
                    vif_type in ('tap', 'ovs') and
                    card in (None, 'virtio') and
                    asks == {'extra_specs': MULTIQUEUE}, xml)

    def test_tap_and_xml_agree_by_novas_own_limit(self):
        self.flags(max_queues=1, group='libvirt')
        self.assertEqual((False, False), self.pair(
            self.started(), port(), extra_specs=MULTIQUEUE))

    def test_tap_and_xml_agree_without_virtio_as_the_default(self):
        self.flags(use_virtio_for_bridges=False, group='libvirt')
        for vif_type, more in self.PLUGGED:
            self.assertEqual((False, False), self.pair(
                self.started(), port(vif_type, **more),
                extra_specs=MULTIQUEUE))

    def test_a_guest_in_rescue_has_the_tap_of_its_own_image(self):
        drvr = self.started()
        for own, rescue in ((True, False), (False, True), (True, True)):
            instance = self.make_instance(
                {'hw_vif_multiqueue_enabled': str(own)} if own else {})
            image = self.make_instance(
                {'hw_vif_multiqueue_enabled': str(rescue)} if rescue else {}
            ).image_meta
            before = image.obj_to_primitive()
            config = drvr.vif_driver.get_config(
                instance, port(), image, instance.flavor, 'kvm')
            self.assertEqual(own, (config.vhost_queues or 1) > 1)
            self.assertEqual(before, image.obj_to_primitive())
            # libvirt makes the tap of others anew.
            config = drvr.vif_driver.get_config(
                instance, port('ovs'), image, instance.flavor, 'kvm')
            self.assertEqual(rescue, (config.vhost_queues or 1) > 1)

    def test_flavor_and_image_at_odds_are_novas_to_refuse(self):
        drvr = self.started()
        instance = self.make_instance(
            {'hw_vif_multiqueue_enabled': 'false'}, extra_specs=MULTIQUEUE)
        # Its image has no name for Nova's words.
        self.assertRaises((exception.FlavorImageConflict,
                           NotImplementedError),
                          drvr.vif_driver.plug, instance, port())

    def test_nonsense_is_refused_in_the_users_words(self):
        for drvr in (self.started(), self.started(virt_type='qemu')):
            for value in ('0', '-1', 'all', '257', '9'):
                error = self.assertRaises(
                    exception.InvalidInput, self.interface, drvr, vcpus=8,
                    extra_specs=MULTIQUEUE | {'kvm_ext:vhost_queues': value})
                self.assertIn(f'kvm_ext:vhost_queues = {value}',
                              error.format_message())
            error = self.assertRaises(
                exception.InvalidInput, self.interface, drvr,
                properties={'kvm_ext_vhost_queues': '2'})
            self.assertIn('hw_vif_multiqueue_enabled', error.format_message())

    def test_a_guest_from_before_can_lose_its_port(self):
        """It was started when nobody checked that value."""
        drvr = self.started()
        config = self.config(
            drvr, extra_specs=MULTIQUEUE | {'kvm_ext:vhost_queues': 'all'})
        self.assertEqual(2, config.vhost_queues)
        drvr.vif_driver.plug(self.make_instance(
            extra_specs=MULTIQUEUE | {'kvm_ext:vhost_queues': 'all'}), port())

    def test_vhost_user_keeps_its_queues(self):
        config = self.config(
            self.started(max_vhost_queues=2),
            port('vhostuser', details={'vhostuser_mode': 'client',
                                       'vhostuser_socket': '/run/sock'}),
            extra_specs=MULTIQUEUE, vcpus=8)
        self.assertEqual(8, config.vhost_queues)


class PortTestCase(VhostTestCase):
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
            f'Interface {MAC} does not use vhost-net'))

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
            f'<mac address="{MAC}"/><model type="virtio"/>'
            f'<driver name="vhost"/></interface></devices></domain>')
        with mock.patch.object(process, 'read_vhost', return_value={
                uuids.instance: model.VhostFacts(7, 0, 0)}):
            self.attach(self.started())
        self.assertIn(f'Interface {MAC} does not use vhost-net', self.log())

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


class MigrationTestCase(VhostTestCase):
    """Both ends, with Nova's own code between them."""

    def data(self) -> objects.LibvirtLiveMigrateData:
        """As Neutron's binding on the destination has filled it."""
        return migrate_data_obj.LibvirtLiveMigrateData(vifs=[
            migrate_data_obj.VIFMigrateData(
                port_id=uuids.port, vnic_type='normal', vif_type='tap',
                vif_details={'port_filter': True}, profile={},
                host='destination', source_vif=port())])

    def test_queues_of_the_tap_on_the_destination(self):
        """They are those that the guest runs with, whatever limits say."""
        for source_limit, destination_limit, wanted in (
                (1, None, False), (None, 1, True), (4, 4, True)):
            source = self.started(max_vhost_queues=source_limit)
            vif = self.told(source, extra_specs=MULTIQUEUE, vcpus=4)
            destination = self.started(max_vhost_queues=destination_limit)
            instance = self.make_instance(extra_specs=MULTIQUEUE, vcpus=4)
            with mock.patch.object(
                    nova.privsep.linux_net, 'create_tap_dev') as tap, \
                    mock.patch.object(
                        nova.privsep.linux_net, 'set_device_mtu'):
                destination.vif_driver.plug(instance, vif)
            self.assertEqual({'multiqueue': wanted}, tap.call_args.kwargs)

    def told(self, source: driver.KVMDriver,
             vif_type: str = 'tap', **kwargs: Any) -> Any:
        """The VIF that the destination plugs; None where Nova makes it."""
        running = self.guest_xml(
            source, network_info=[port(vif_type)], **kwargs)
        instance = self.make_instance(**kwargs)
        instance.get_network_info = mock.Mock(
            return_value=network_model.NetworkInfo([port(vif_type)]))
        data = objects.LibvirtLiveMigrateData()
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, 'check_can_live_migrate_source',
                side_effect=lambda context, instance, data, info: data), \
                mock.patch.object(source._host, 'get_guest') as get_guest:
            get_guest.return_value.get_xml_desc.return_value = etree.tostring(
                running)
            data = source.check_can_live_migrate_source(
                None, instance, data, None)
        self.assertEqual({}, instance.get_network_info()[0]['meta'])
        if 'vifs' not in data:
            return None
        # As it comes over the message queue.
        vif, = objects.LibvirtLiveMigrateData.obj_from_primitive(
            data.obj_to_primitive()).vifs
        bound = self.data().vifs[0]
        for name in ('vnic_type', 'vif_type', 'vif_details', 'profile'):
            setattr(vif, name, getattr(bound, name))
        return vif.get_dest_vif()

    def test_queues_are_told_only_where_they_matter(self):
        source = self.started()
        self.assertIsNone(self.told(source))
        self.assertIsNone(self.told(source, 'ovs', extra_specs=MULTIQUEUE))

    def test_queues_that_cannot_be_told(self):
        instance = self.make_instance(extra_specs=MULTIQUEUE)
        instance.get_network_info = mock.Mock(return_value=[port()])
        data = objects.LibvirtLiveMigrateData()
        self.source._vhost_net.tell_queues(instance, data, mock.Mock(
            side_effect=exception.InstanceNotFound(instance_id='x')))
        self.assertNotIn('vifs', data)
        self.assertIn('cannot be told to the destination', self.log())

    def migrated(self, source: driver.KVMDriver,
                 destination: driver.KVMDriver | None,
                 destination_can: bool = True,
                 **kwargs: Any) -> etree._Element:
        """The interface in the XML that the destination gets."""
        self.host(True)
        running = self.guest_xml(source, network_info=[port()], **kwargs)
        running.find('devices/interface').append(
            etree.Element('address', type='pci'))
        instance = self.make_instance(**kwargs)
        data = self.data()
        if destination is not None:
            self.host(destination_can)
            with mock.patch.object(
                    libvirt_driver.LibvirtDriver, 'pre_live_migration',
                    side_effect=lambda *args: args[-1]):
                data = destination.pre_live_migration(
                    None, instance, {}, [], None, data)
            # As it comes over the message queue.
            data = objects.LibvirtLiveMigrateData.obj_from_primitive(
                data.obj_to_primitive())
        self.host(True)
        # What has become of the limits here since the guest was started.
        with (self.changed(source),
              mock.patch.object(source._host, 'get_guest') as get_guest,
              mock.patch.object(libvirt_driver.LibvirtDriver,
                                'live_migration') as novas):
            get_guest.return_value.get_xml_desc.return_value = etree.tostring(
                running)
            source.live_migration(None, instance, 'destination', None, None,
                                  False, data)
            data = novas.call_args.args[-1]
            document = migration._update_vif_xml(
                running, data, functools.partial(
                    source.vif_driver.get_config, instance=instance,
                    image_meta=instance.image_meta, flavor=instance.flavor,
                    virt_type=driver.CONF.libvirt.virt_type))
        return document.find('devices/interface')

    @staticmethod
    def changed(source: driver.KVMDriver) -> Any:
        return mock.patch.object(
            source._vhost_net, '_settings', dataclasses.replace(
                source._vhost_net._settings, max_vhost_queues=3))

    def name(self, *args: Any, **kwargs: Any) -> str | None:
        found = self.migrated(*args, **kwargs).find('driver')
        return None if found is None else found.get('name')

    def setUp(self):
        super().setUp()
        self.host(True)
        self.source = self.started(vhost_net='prefer')

    def test_both_can(self):
        self.assertEqual('vhost', self.name(self.source, self.source))

    def test_the_destination_cannot(self):
        self.assertIsNone(self.name(self.source, self.source, False))

    def test_the_destination_is_off(self):
        destination = self.started(vhost_net='off')
        self.assertEqual('qemu', self.name(self.source, destination))

    def test_the_source_is_off(self):
        off = self.started(vhost_net='off')
        prefer = self.started(vhost_net='prefer')
        self.assertEqual('vhost', self.name(off, prefer))

    def test_the_destination_requires_what_it_lost(self):
        destination = self.started(vhost_net='require')
        error = self.assertRaises(
            exception.MigrationPreCheckError, self.name, self.source,
            destination, False)
        self.assertIn('there is no /dev/vhost-net', error.format_message())

    def test_the_destination_requires_it_of_nobody_here(self):
        destination = self.started(vhost_net='require')
        self.assertIsNone(self.name(
            self.source, destination, False,
            properties={'hw_vif_model': 'e1000'}))

    def test_another_driver_on_the_destination(self):
        """It says nothing, so libvirt there shall say it loudly."""
        self.assertEqual('vhost', self.name(self.source, None))

    def test_queues_stay_as_they_run(self):
        for destination in (self.source, None):
            found = self.migrated(
                self.source, destination, vcpus=8,
                extra_specs=MULTIQUEUE).find('driver')
            self.assertEqual('8', found.get('queues'))

    def test_queues_stay_where_there_was_one(self):
        source = self.started(max_vhost_queues=1)
        found = self.migrated(source, source, vcpus=8,
                              extra_specs=MULTIQUEUE).find('driver')
        self.assertIsNone(found.get('queues'))

    def test_queues_without_vhost_net_on_the_destination(self):
        found = self.migrated(
            self.source, self.source, False, vcpus=8,
            extra_specs=MULTIQUEUE).find('driver')
        self.assertEqual(('qemu', '8'),
                         (found.get('name'), found.get('queues')))

    def test_nothing_goes_into_the_ports_profile(self):
        """Nova would write that to Neutron."""
        data = self.data()
        self.source._vhost_net.answer_migration(
            self.make_instance(), data, self.source.vif_driver.get_config)
        vif, = data.vifs
        self.assertEqual({}, vif.profile)
        self.assertTrue(vif.vif_details['port_filter'])

    def test_without_bindings(self):
        data = migrate_data_obj.LibvirtLiveMigrateData()
        self.source._vhost_net.answer_migration(
            self.make_instance(), data, self.source.vif_driver.get_config)
        self.source._vhost_net.before_migration(
            self.make_instance(), data, None)
        self.source._vhost_net.before_migration(
            self.make_instance(), None, None)

    def test_a_guest_that_cannot_be_read_is_novas_to_handle(self):
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, 'live_migration') as novas, \
                mock.patch.object(
                    self.source._host, 'get_guest',
                    side_effect=exception.InstanceNotFound(instance_id='x')):
            self.source.live_migration(
                None, self.make_instance(), 'destination', None, None, False,
                self.data())
        novas.assert_called_once()


class ProofTestCase(VhostTestCase):

    XML = (f'<domain type="kvm" id="1"><name>g</name>'
           f'<uuid>{uuids.instance}</uuid><devices><interface type="bridge">'
           f'<mac address="{MAC}"/><model type="virtio"/>'
           f'<driver name="vhost"/></interface></devices></domain>')

    def setUp(self):
        super().setUp()
        self.host(True)
        self.read_vhost = self.useFixture(fixtures.MockPatchObject(
            process, 'read_vhost')).mock
        self.read_vhost.return_value = {
            uuids.instance: model.VhostFacts(7, 0, 0)}

    def start(self, xml: str | None = None, **options: Any) -> None:
        """A guest, by the method through which all of them start."""
        drvr = self.started(**options)
        guest = mock.Mock(spec=libvirt_guest.Guest)
        guest.get_xml_desc.return_value = xml or self.XML
        guest._domain = mock.Mock()
        with mock.patch.object(libvirt_driver.LibvirtDriver, '_create_guest',
                               return_value=guest):
            found = drvr._create_guest(None, '<domain/>', self.make_instance(),
                                       pause=False)
        self.assertIs(guest, found)

    def test_kept(self):
        self.read_vhost.return_value = {
            uuids.instance: model.VhostFacts(7, 1, 1)}
        self.start()
        self.assertNotIn(MAC, self.log())

    def test_broken(self):
        self.start()
        self.assertIn(f'Interface {MAC} does not use vhost-net, though its '
                      f'XML names it: vhost-net of QEMU (PID 7): 0 '
                      f'descriptor(s), 0 thread(s)', self.log())

    def test_fell_back(self):
        """QEMU's log is root's, who is asked if this user cannot read it."""
        with mock.patch.object(privileged, 'read_fall_backs',
                               return_value=1) as as_root:
            for seen in (model.VhostFacts(7, 1, 1, None, 3),
                         model.VhostFacts(7, 1, 1, 1, 3)):
                self.read_vhost.return_value = {uuids.instance: seen}
                self.start()
            as_root.assert_called_once_with('g')
            self.assertEqual(2, self.log().count('falling back on userspace'))
            # Without vhost-net there is nothing to read.
            self.read_vhost.return_value = {
                uuids.instance: model.VhostFacts(7, 0, 0)}
            self.start()
            as_root.assert_called_once_with('g')

    def test_root_cannot_be_asked_for_the_log(self):
        self.read_vhost.return_value = {
            uuids.instance: model.VhostFacts(7, 1, 1)}
        with mock.patch.object(privileged, 'read_fall_backs',
                               side_effect=FileNotFoundError):
            self.start()
        self.assertNotIn(MAC, self.log())

    def test_may_not_look(self):
        self.read_vhost.return_value = {
            uuids.instance: model.VhostFacts(7, None, None)}
        self.start()
        self.assertIn('cannot be told', self.log())
        self.assertNotIn('does not use', self.log())

    def test_where_there_is_nothing_to_look_at(self):
        for options in ({'vhost_net': 'off'}, {'virt_type': 'qemu'}):
            self.start(**options)
            self.flags(group='kvm_ext', vhost_net='prefer')
        self.start(self.XML.replace(' id="1"', ''), virt_type='kvm')
        self.read_vhost.assert_not_called()

    def test_a_look_that_fails_does_not_fail_the_boot(self):
        self.read_vhost.side_effect = OSError(5, 'Input/output error')
        self.start()
        self.start('<dom')
        self.assertIn('cannot be seen', self.log())

    def test_a_guest_that_came_without_a_driver(self):
        """From a source where Nova's own driver wrote the XML."""
        unnamed = self.XML.replace('<driver name="vhost"/>', '')
        for setting, said in (('prefer', False), ('require', True)):
            drvr = self.started(vhost_net=setting)
            with mock.patch.object(
                    libvirt_driver.LibvirtDriver,
                    'post_live_migration_at_destination'), mock.patch.object(
                    drvr._host, 'get_guest') as get_guest:
                get_guest.return_value.get_xml_desc.return_value = unnamed
                drvr.post_live_migration_at_destination(
                    None, self.make_instance(), [])
            self.assertEqual(said, f'{MAC} does not use' in self.log())


class TraitTestCase(VhostTestCase):

    def setUp(self):
        super().setUp()
        self.tree = provider_tree.ProviderTree()
        self.tree.new_root('node', uuids.node)
        self.tree.add_traits(
            'node', 'CUSTOM_MINE', 'CUSTOM_KVM_EXT_OF_YESTERDAY')

    def update(self, drvr: driver.KVMDriver) -> set[str]:
        with mock.patch.object(libvirt_driver.LibvirtDriver,
                               'update_provider_tree') as novas:
            drvr.update_provider_tree(self.tree, 'node', {})
        novas.assert_called_once_with(self.tree, 'node', {})
        return {name for name in self.tree.data('node').traits
                if not name.startswith(('CUSTOM_KVM_EXT_CPU_',
                                        'CUSTOM_KVM_EXT_IMAGE_'))}

    def test_kept_true(self):
        drvr = self.started()
        self.assertEqual({'CUSTOM_MINE'}, self.update(drvr))
        self.host(True)
        self.assertEqual({'CUSTOM_MINE', 'CUSTOM_KVM_EXT_VHOST_NET'},
                         self.update(drvr))
        self.host(False)
        self.assertEqual({'CUSTOM_MINE'}, self.update(drvr))

    def test_not_where_guests_do_without(self):
        self.host(True)
        for options in ({'vhost_net': 'off'}, {'virt_type': 'qemu'}):
            self.assertEqual({'CUSTOM_MINE'},
                             self.update(self.started(**options)))

    def test_its_name(self):
        self.assertEqual('CUSTOM_KVM_EXT_VHOST_NET', hooks.TRAIT)
