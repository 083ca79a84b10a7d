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

"""vhost-net and queues of guests that migrate."""

import dataclasses
import functools
from typing import Any
from unittest import mock

from lxml import etree
from nova import exception
from nova.network import model as network_model
from nova import objects
from nova.objects import migrate_data as migrate_data_obj
import nova.privsep.linux_net
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import migration
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext import driver
from nova_kvm_ext.tests.unit.vhost import ports


class MigrationTestCase(ports.VhostTestCase):
    """Both ends, with Nova's own code between them."""

    def data(self) -> objects.LibvirtLiveMigrateData:
        """As Neutron's binding on the destination has filled it."""
        return migrate_data_obj.LibvirtLiveMigrateData(vifs=[
            migrate_data_obj.VIFMigrateData(
                port_id=uuids.port, vnic_type='normal', vif_type='tap',
                vif_details={'port_filter': True}, profile={},
                host='destination', source_vif=ports.port())])

    def test_queues_of_the_tap_on_the_destination(self):
        """They are those that the guest runs with, whatever limits say."""
        for source_limit, destination_limit, wanted in (
                (1, None, False), (None, 1, True), (4, 4, True)):
            source = self.started(max_vhost_queues=source_limit)
            vif = self.told(source, extra_specs=ports.MULTIQUEUE, vcpus=4)
            destination = self.started(max_vhost_queues=destination_limit)
            instance = self.make_instance(
                extra_specs=ports.MULTIQUEUE, vcpus=4)
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
            source, network_info=[ports.port(vif_type)], **kwargs)
        instance = self.make_instance(**kwargs)
        instance.get_network_info = mock.Mock(
            return_value=network_model.NetworkInfo([ports.port(vif_type)]))
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
        self.assertIsNone(self.told(
            source, 'ovs', extra_specs=ports.MULTIQUEUE))

    def test_queues_that_cannot_be_told(self):
        instance = self.make_instance(extra_specs=ports.MULTIQUEUE)
        instance.get_network_info = mock.Mock(return_value=[ports.port()])
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
        running = self.guest_xml(source, network_info=[ports.port()], **kwargs)
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
                extra_specs=ports.MULTIQUEUE).find('driver')
            self.assertEqual('8', found.get('queues'))

    def test_queues_stay_where_there_was_one(self):
        source = self.started(max_vhost_queues=1)
        found = self.migrated(source, source, vcpus=8,
                              extra_specs=ports.MULTIQUEUE).find('driver')
        self.assertIsNone(found.get('queues'))

    def test_queues_without_vhost_net_on_the_destination(self):
        found = self.migrated(
            self.source, self.source, False, vcpus=8,
            extra_specs=ports.MULTIQUEUE).find('driver')
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
