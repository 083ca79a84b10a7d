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

from typing import Any

from lxml import etree
from nova.network import model as network_model
from nova.tests import fixtures as nova_fixtures
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext import driver
from nova_kvm_ext.tests.unit import driver_base

MAC = '52:54:00:12:34:56'
MULTIQUEUE = {'hw:vif_multiqueue_enabled': 'true'}


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
