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

"""The sum of disks does not wait for a guest whose QEMU is busy."""

from typing import Any
from unittest import mock

import ddt
import fixtures
from nova import objects
from nova.tests.fixtures import libvirt as fakelibvirt

from nova_kvm_ext import live_xml
from nova_kvm_ext.tests.unit import driver_base

GIB = 2**30
WAITS = 11_003_000


class DescriptionsTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.version = WAITS
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Connection.getLibVersion',
            lambda connection: self.version))
        self.control: dict[str, Any] = {}
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Domain.controlInfo',
            lambda domain, flags=0: self.control_info(domain)))
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Domain.connect',
            lambda domain: domain._connection))
        self.asked: list[str] = []
        real = fakelibvirt.Domain.XMLDesc

        def describe(domain: Any, flags: int) -> str:
            self.asked.append(domain.UUIDString())
            return real(domain, flags)

        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Domain.XMLDesc', describe))
        self.drvr = self.started()
        self.guests = [self.running_domain(self.drvr) for _ in range(3)]
        # A GiB for each guest whose XML Nova has.
        self.useFixture(fixtures.MockPatchObject(
            self.drvr, '_get_instance_disk_info_from_config',
            return_value=[{'over_committed_disk_size': GIB}]))
        for cls, name in ((objects.InstanceList, 'get_by_filters'),
                          (objects.BlockDeviceMappingList,
                           'bdms_by_instance_uuid')):
            self.useFixture(fixtures.MockPatchObject(
                cls, name, return_value={}))

    def control_info(self, domain: Any) -> Any:
        answer = self.control.get(domain.UUIDString(), (0, 0, 0))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def sum(self) -> float:
        """In GiB; the calls for XML since the last sum are in asked."""
        self.asked.clear()
        return self.drvr._get_disk_over_committed_size_total() / GIB

    def test_a_busy_guest_is_not_asked_again(self):
        busy = self.guests[1].UUIDString()
        self.assertEqual((3, 3), (self.sum(), len(self.asked)))
        for state in (1, 2):
            self.control[busy] = (state, 0, 0)
            self.assertEqual(3, self.sum())
            self.assertEqual(2, len(self.asked))
            self.assertNotIn(busy, self.asked)
        self.control[busy] = (0, 0, 0)
        self.assertEqual((3, 3), (self.sum(), len(self.asked)))

    def test_a_guest_that_no_update_has_seen(self):
        """Nova leaves it out, as after an error of libvirt; in no time."""
        hangs = self.guests[0].UUIDString()
        self.control[hangs] = (2, 0, 60000)
        self.assertEqual((2, 2), (self.sum(), len(self.asked)))
        self.assertIn('Error from libvirt while getting description',
                      self.stdlog.logger.output)
        # A call that ends, and a migration, for which libvirt does not wait.
        for state in (2, 1):
            self.control[hangs] = (state, 0, 10)
            with mock.patch.object(live_xml, 'owes', return_value=False):
                self.assertEqual((3, 3 if state == 2 else 2),
                                 (self.sum(), len(self.asked)))

    def test_hanging_guests_are_named_once(self):
        first, second, _ = (guest.UUIDString() for guest in self.guests)

        def said() -> list[str]:
            self.sum()
            lines = [line for line in self.stdlog.logger.output.splitlines()
                     if 'KVML510' in line]
            return [''.join(str(number) for number, guest in
                            enumerate(self.guests)
                            if guest.UUIDString() in line) for line in lines]

        self.assertEqual([], said())
        self.control[first] = (2, 0, 4999)
        self.assertEqual([], said())
        self.control[first] = (1, 0, 60000)
        self.assertEqual([], said())
        self.control[first] = (2, 0, 5000)
        for _ in range(2):
            self.assertEqual(['0'], said())
        self.control[second] = (2, 0, 60000)
        for _ in range(2):
            self.assertEqual(['0', '01'], said())
        # One of two is well again: nothing to do.
        self.control[first] = (0, 0, 0)
        self.assertEqual(['0', '01'], said())
        self.assertNotIn('waits for no QEMU', self.stdlog.logger.output)
        self.control[second] = (0, 0, 0)
        for _ in range(2):
            self.assertEqual(['0', '01'], said())
        self.assertEqual(1, self.stdlog.logger.output.count(
            'waits for no QEMU'))
        self.control[first] = (2, 0, 60000)
        self.assertEqual(['0', '01', '0'], said())

    def test_what_cannot_be_told_is_asked(self):
        """A broken monitor, and a guest that ended meanwhile."""
        self.sum()
        self.control[self.guests[0].UUIDString()] = (3, 0, 0)
        self.control[self.guests[1].UUIDString()] = (
            fakelibvirt.libvirtError('not running'))
        self.assertEqual((3, 3), (self.sum(), len(self.asked)))

    def test_a_guest_that_does_not_run(self):
        self.sum()
        self.control[self.guests[0].UUIDString()] = (2, 0, 0)
        with mock.patch.object(fakelibvirt.Domain, 'ID', return_value=-1):
            self.assertEqual((3, 3), (self.sum(), len(self.asked)))

    def test_no_more_is_kept_than_there_are_guests(self):
        self.sum()
        self.assertEqual(3, len(self.drvr._descriptions))
        with mock.patch.object(self.drvr._host, 'list_instance_domains',
                               return_value=self.guests[:1]):
            self.assertEqual(1, self.sum())
        self.assertEqual(1, len(self.drvr._descriptions))

    def test_the_version_is_asked_once_in_a_connection(self):
        host = self.drvr._host
        with mock.patch.object(host, 'has_min_version',
                               side_effect=host.has_min_version) as asked:
            self.sum()
            self.sum()
            self.assertEqual(1, asked.call_count)
            # libvirt was upgraded, and Nova has connected again.
            host._wrapped_conn = None
            host.get_connection()
            self.sum()
            self.assertEqual(2, asked.call_count)

    def test_a_libvirt_that_gives_it_at_once(self):
        self.version = 9_000_000
        for guest in self.guests:
            self.control[guest.UUIDString()] = (2, 0, 0)
        for _ in range(2):
            self.assertEqual((3, 3), (self.sum(), len(self.asked)))
        self.assertEqual(0, len(self.drvr._descriptions))


@ddt.ddt
class NovasFakeTestCase(driver_base.DriverTestCase):

    @ddt.data(9_000_000, 9_001_000, 11_003_000, 12_008_000)
    def test_novas_fake_of_a_libvirt(self, version):
        """It has no virDomainGetControlInfo()."""
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Connection.getLibVersion',
            lambda connection: version))
        drvr = self.started()
        self.running_domain(drvr)
        for cls, name in ((objects.InstanceList, 'get_by_filters'),
                          (objects.BlockDeviceMappingList,
                           'bdms_by_instance_uuid')):
            self.useFixture(fixtures.MockPatchObject(
                cls, name, return_value={}))
        self.assertEqual(0, drvr._get_disk_over_committed_size_total())
