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

"""Nova's list of PCI devices stays Nova's; libvirt is asked less."""

import collections
import functools
import json
from typing import Any
from unittest import mock

import fixtures
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt.libvirt import driver as libvirt_driver
from oslotest import base

from nova_kvm_ext import driver
from nova_kvm_ext.host import node_devices
from nova_kvm_ext.tests.unit import driver_base


class DriverTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.asked: collections.Counter[str] = collections.Counter()
        for name in ('listCaps', 'XMLDesc'):
            self.useFixture(fixtures.MonkeyPatch(
                f'nova.tests.fixtures.libvirt.NodeDevice.{name}',
                self.counted(getattr(fakelibvirt.NodeDevice, name))))
        self.drvr = self.started()
        connection = self.drvr._host.get_connection()
        # On eventlet it is a proxy, which keeps what is set to itself.
        getattr(connection, '_obj', connection).pci_info = (
            fakelibvirt.HostPCIDevicesInfo(num_pci=3, num_pfs=2, num_vfs=4))
        # It looks at /sys.
        for name in ('get_ifname_by_pci_address', 'get_mac_by_pci_address'):
            self.useFixture(fixtures.MonkeyPatch(
                f'nova.pci.utils.{name}', lambda *args, **kwargs: 'it'))
        self.useFixture(fixtures.MonkeyPatch(
            'nova.pci.utils.get_vf_num_by_pci_address', lambda *args: 1))

    def counted(self, method: Any) -> Any:
        def call(device: Any, *args: Any) -> Any:
            self.asked[f'{method.__name__} {device.name()}'] += 1
            return method(device, *args)
        return call

    def test_the_same_list(self):
        if node_devices.kept_by_nova(libvirt_driver.LibvirtDriver):
            # Nova 34: it must stay the method that has the cache.
            self.assertNotIn('_get_pci_passthrough_devices',
                             vars(driver.KVMDriver))
            return
        theirs = json.loads(
            libvirt_driver.LibvirtDriver._get_pci_passthrough_devices(
                self.drvr))
        most = max(self.asked.values())
        self.asked.clear()
        ours = json.loads(self.drvr._get_pci_passthrough_devices())
        self.assertEqual(theirs, ours)
        self.assertEqual(9, len(ours))
        self.assertLess(1, most)
        self.assertEqual({1}, {
            count for question, count in self.asked.items()
            if question.startswith('listCaps')})


class DeviceTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.device = mock.Mock()
        self.host = mock.Mock(**{
            'list_all_devices.return_value': [self.device]})
        self.view = node_devices.View(mock.Mock(_host=self.host))

    def listed(self) -> Any:
        return self.view._host.list_all_devices(flags=7)[0]

    def test_asked_once_in_each_list(self):
        self.device.listCaps.side_effect = [['pci'], ['net']]
        self.device.XMLDesc.side_effect = ['a', 'b', 'c']
        found = self.listed()
        self.host.list_all_devices.assert_called_once_with(flags=7)
        for _ in range(2):
            self.assertEqual(['pci'], found.listCaps())
            self.assertEqual('a', found.XMLDesc(0))
            self.assertEqual('b', found.XMLDesc(1))
        self.assertEqual('c', self.listed().XMLDesc())
        self.assertEqual(['net'], self.listed().listCaps())

    def test_a_device_that_is_gone(self):
        """Nova catches it, and asks again."""
        error = fakelibvirt.libvirtError('gone')
        self.device.listCaps.side_effect = [error, ['pci']]
        found = self.listed()
        self.assertRaises(fakelibvirt.libvirtError, found.listCaps)
        self.assertEqual(['pci'], found.listCaps())

    def test_all_else_is_the_real_one_s(self):
        self.assertIs(self.device.parent, self.listed().parent)
        self.assertIs(self.host._get_pcidev_info,
                      self.view._host._get_pcidev_info)

    def test_who_keeps_the_list(self):
        """Nova 34 does, which is told by its cache."""
        class Kept:
            @functools.cache
            def _get_pci_passthrough_devices(self) -> str:
                return ''

        class Asked:
            def _get_pci_passthrough_devices(self) -> str:
                return ''

        self.assertIs(True, node_devices.kept_by_nova(Kept))
        self.assertIs(False, node_devices.kept_by_nova(Asked))
