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

"""The driver's CPUs on Nova's fake libvirt: wishes, what is kept, traits."""

from typing import Any
from unittest import mock

import fixtures
from lxml import etree
from nova import objects
from nova.virt.libvirt import guest as libvirt_guest
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext.cpu import definition
from nova_kvm_ext import driver
from nova_kvm_ext.tests.unit import driver_base

EXACT = definition.CPU(
    mode='custom', match='exact', model='Nehalem', vendor='Intel',
    features=(('hypervisor', 'require'), ('popcnt', 'disable')))


def domain(cpu: str, dom_id: str = " id='1'") -> mock.Mock:
    """A guest whose domain has this CPU."""
    guest = mock.create_autospec(libvirt_guest.Guest, instance=True)
    guest.get_xml_desc.return_value = f'<domain{dom_id}>{cpu}</domain>'
    guest.is_active.return_value = bool(dom_id)
    guest.uuid = uuids.instance
    guest._domain = mock.Mock()
    guest._domain.controlInfo.return_value = (0, 0, 0)
    return guest


def live(cpu: definition.CPU) -> mock.Mock:
    """A running guest with this CPU, as libvirt tells it."""
    return domain(cpu.to_xml().replace('<cpu ', "<cpu check='full' "))


def configured(model: str | None = None) -> objects.VirtCPUModel:
    """What Nova keeps: what it configured."""
    return objects.VirtCPUModel(
        arch=None, vendor=None, mode='custom' if model else 'host-model',
        model=model, match='exact', features=[],
        topology=objects.VirtCPUTopology(sockets=1, cores=1, threads=1))


class CPUHooksTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.save = self.useFixture(fixtures.MockPatchObject(
            objects.Instance, 'save')).mock

    def cpu(self, drvr: driver.KVMDriver, instance: Any,
            properties: dict[str, str] | None = None) -> etree._Element:
        guest = self.make_guest(drvr, instance, properties)
        return etree.fromstring(guest.cpu.to_xml())

    def features(self, cpu: etree._Element) -> dict[str, str]:
        return {f.get('name'): f.get('policy') for f in cpu.findall('feature')}
