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

"""How many queues an interface gets."""

import itertools
from typing import Any
from unittest import mock

import fixtures
from lxml import etree
from nova import exception
from nova.network import model as network_model
import nova.privsep.linux_net
from nova.virt.libvirt import vif as libvirt_vif

from nova_kvm_ext import driver
from nova_kvm_ext.tests.unit.vhost import ports

# Nova's fixture puts a mock in its place.
_PLUG_OS_VIF = libvirt_vif.LibvirtGenericVIFDriver._plug_os_vif

# Nova 34 is the first that has it.
_CREATE_TAP = (('ovs', {'details': {'ovs_create_tap': True}}),) if hasattr(
    network_model, 'VIF_DETAILS_OVS_CREATE_TAP') else ()


class QueuesTestCase(ports.VhostTestCase):

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
        extra_specs = ports.MULTIQUEUE | (extra_specs or {})
        found = self.interface(drvr, extra_specs=extra_specs,
                               properties=properties, vcpus=vcpus)
        count = int(found.find('driver').get('queues', 1))
        instance = self.make_instance(
            extra_specs=extra_specs, properties=properties, vcpus=vcpus)
        before = instance.obj_to_primitive()
        drvr.vif_driver.plug(instance, ports.port())
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
        drvr.vif_driver.plug(instance, ports.port())
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
                    ({}, {'extra_specs': ports.MULTIQUEUE},
                     {'extra_specs': ports.MULTIQUEUE |
                      {'kvm_ext:vhost_queues': '1'}})):
                properties = {'hw_vif_model': card} if card else {}
                tap, xml = self.pair(
                    drvr, ports.port(vif_type, **more), vcpus=4,
                    properties=properties, **asks)
                self.assertEqual(tap, xml, str((
                    virt_type, limit, can, vif_type, card, asks)))
                self.assertEqual(
                    virt_type == 'kvm' and limit != 1 and
                    vif_type in ('tap', 'ovs') and
                    card in (None, 'virtio') and
                    asks == {'extra_specs': ports.MULTIQUEUE}, xml)

    def test_tap_and_xml_agree_by_novas_own_limit(self):
        self.flags(max_queues=1, group='libvirt')
        self.assertEqual((False, False), self.pair(
            self.started(), ports.port(), extra_specs=ports.MULTIQUEUE))

    def test_tap_and_xml_agree_without_virtio_as_the_default(self):
        self.flags(use_virtio_for_bridges=False, group='libvirt')
        for vif_type, more in self.PLUGGED:
            self.assertEqual((False, False), self.pair(
                self.started(), ports.port(vif_type, **more),
                extra_specs=ports.MULTIQUEUE))

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
                instance, ports.port(), image, instance.flavor, 'kvm')
            self.assertEqual(own, (config.vhost_queues or 1) > 1)
            self.assertEqual(before, image.obj_to_primitive())
            # libvirt makes the tap of others anew.
            config = drvr.vif_driver.get_config(
                instance, ports.port('ovs'), image, instance.flavor, 'kvm')
            self.assertEqual(rescue, (config.vhost_queues or 1) > 1)

    def test_flavor_and_image_at_odds_are_novas_to_refuse(self):
        drvr = self.started()
        instance = self.make_instance(
            {'hw_vif_multiqueue_enabled': 'false'},
            extra_specs=ports.MULTIQUEUE)
        # Its image has no name for Nova's words.
        self.assertRaises((exception.FlavorImageConflict,
                           NotImplementedError),
                          drvr.vif_driver.plug, instance, ports.port())

    def test_nonsense_is_refused_in_the_users_words(self):
        for drvr in (self.started(), self.started(virt_type='qemu')):
            for value in ('0', '-1', 'all', '257', '9'):
                error = self.assertRaises(
                    exception.InvalidInput, self.interface, drvr, vcpus=8,
                    extra_specs=ports.MULTIQUEUE | {
                        'kvm_ext:vhost_queues': value})
                self.assertIn(f'kvm_ext:vhost_queues = {value}',
                              error.format_message())
            error = self.assertRaises(
                exception.InvalidInput, self.interface, drvr,
                properties={'kvm_ext_vhost_queues': '2'})
            self.assertIn('hw_vif_multiqueue_enabled', error.format_message())

    def test_a_guest_from_before_can_lose_its_port(self):
        """It was started when nobody checked that value."""
        drvr = self.started()
        specs = ports.MULTIQUEUE | {'kvm_ext:vhost_queues': 'all'}
        config = self.config(drvr, extra_specs=specs)
        self.assertEqual(2, config.vhost_queues)
        drvr.vif_driver.plug(
            self.make_instance(extra_specs=specs), ports.port())

    def test_vhost_user_keeps_its_queues(self):
        config = self.config(
            self.started(max_vhost_queues=2),
            ports.port('vhostuser', details={
                'vhostuser_mode': 'client',
                'vhostuser_socket': '/run/sock'}),
            extra_specs=ports.MULTIQUEUE, vcpus=8)
        self.assertEqual(8, config.vhost_queues)
