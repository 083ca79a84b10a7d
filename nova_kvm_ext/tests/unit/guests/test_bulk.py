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

"""vCPUs of all running guests in one call, and what there is without it."""

import threading
import time
from typing import Any
from unittest import mock
import uuid

import fixtures
import libvirt
from nova.tests.fixtures import libvirt as fakelibvirt

from nova_kvm_ext.guests import bulk
from nova_kvm_ext.tests.unit import driver_base


def hang_until(answered: threading.Event) -> list[Any]:
    """An answer that comes when it is told to."""
    # With eventlet and Nova before 34 the call has a thread of the operating
    # system to itself, which a greenlet cannot wake.
    until = time.monotonic() + 60
    while not answered.is_set() and time.monotonic() < until:
        time.sleep(0.01)
    return []


class VCPUsTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.stats: Any = []
        self.asked: list[tuple[int, int]] = []
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Connection.getAllDomainStats',
            lambda connection, *args: self.tell(*args)))
        self.drvr = self.started()
        self.guests = [self.running_domain(self.drvr) for _ in range(3)]

    def tell(self, *args: int) -> Any:
        self.asked.append(args)  # type: ignore[arg-type]
        if isinstance(self.stats, BaseException):
            raise self.stats
        return self.stats() if callable(self.stats) else self.stats

    def vcpus(self, count: int) -> dict[str, int]:
        return {'vcpu.current': count, 'vcpu.maximum': count} | {
            f'vcpu.{number}.state': 1 for number in range(count)}

    def novas(self) -> mock.Mock:
        """Counts Nova's own questions, each of which says two."""
        return self.useFixture(fixtures.MockPatchObject(
            fakelibvirt.Domain, 'vcpus', side_effect=lambda: (
                [(0, 1, 0, 0), (1, 1, 0, 0)], []))).mock

    def test_one_call(self):
        asked = self.novas()
        self.stats = [(guest, self.vcpus(count)) for guest, count in
                      zip(self.guests, (1, 4, 7))]
        self.assertEqual(12, self.drvr._get_vcpu_used())
        asked.assert_not_called()
        self.assertEqual([(
            libvirt.VIR_DOMAIN_STATS_VCPU,
            libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE |
            libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)], self.asked)

    def test_novas_way_for_what_is_missing(self):
        """A guest that is left out, and one of whose vCPUs nothing is said."""
        asked = self.novas()
        self.stats = [(self.guests[0], self.vcpus(5)),
                      (self.guests[1], {'vcpu.current': 9})]
        self.assertEqual(5 + 2 + 2, self.drvr._get_vcpu_used())
        self.assertEqual(2, asked.call_count)

    def test_novas_least_worst_value(self):
        """QEMU without threads for vCPUs: Nova counts one."""
        self.useFixture(fixtures.MockPatchObject(
            fakelibvirt.Domain, 'vcpus',
            side_effect=fakelibvirt.libvirtError('no affinity')))
        self.stats = [(guest, {}) for guest in self.guests]
        self.assertEqual(3, self.drvr._get_vcpu_used())

    def test_a_guest_that_has_ended_meanwhile(self):
        gone = mock.Mock()
        gone.UUIDString.return_value = str(uuid.uuid4())
        self.stats = [(guest, self.vcpus(3))
                      for guest in (*self.guests, gone)]
        self.assertEqual(9, self.drvr._get_vcpu_used())

    def test_libvirt_refuses(self):
        asked = self.novas()
        for error in (fakelibvirt.libvirtError('no'), TypeError('no')):
            self.stats = error
            self.assertEqual(6, self.drvr._get_vcpu_used())
        self.assertEqual(6, asked.call_count)
        # With another connection it goes on.
        self.stats = [(guest, self.vcpus(1)) for guest in self.guests]
        self.assertEqual(3, self.drvr._get_vcpu_used())

    def test_a_libvirt_without_that_call(self):
        asked = self.novas()
        with mock.patch.object(self.drvr._host, 'get_connection') as get:
            get.return_value = mock.Mock(spec=['listAllDomains'])
            get.return_value.listAllDomains.return_value = self.guests
            self.assertEqual(6, self.drvr._get_vcpu_used())
        self.assertEqual(3, asked.call_count)
        self.assertEqual([], self.asked)

    def test_a_libvirt_that_lets_others_wait(self):
        asked = self.novas()
        self.stats = [(guest, self.vcpus(1)) for guest in self.guests]
        for version, count in ((9_000_999, 3), (9_001_000, 6),
                               (11_003_000, 6)):
            with mock.patch.object(fakelibvirt.Connection, 'getLibVersion',
                                   return_value=version):
                self.drvr._vcpus._connection = None
                self.assertEqual(count, self.drvr._get_vcpu_used(), version)
        self.assertEqual((1, 6), (len(self.asked), asked.call_count))

    def test_a_connection_of_its_own(self):
        """A call that hangs must not take Nova's others along."""
        used = []

        def tell(connection: Any, *args: int) -> Any:
            used.append(connection)
            return []

        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Connection.getAllDomainStats', tell))
        for _ in range(2):
            self.drvr._get_vcpu_used()
        self.assertEqual(2, len(used))
        self.assertIs(used[0], used[1])
        self.assertIsNot(used[0], self.drvr._host.get_connection())

    def test_libvirtd_takes_no_other_client(self):
        """max_anonymous_clients is reached: the connection is never made."""
        asked = self.novas()
        self.useFixture(fixtures.MockPatchObject(bulk, 'PATIENCE', 0.05))
        self.useFixture(fixtures.MockPatchObject(bulk, 'BACK_OFF', 0))
        served = threading.Event()
        self.addCleanup(served.set)
        self.stats = [(guest, self.vcpus(1)) for guest in self.guests]
        with mock.patch.object(self.drvr._host, '_connect',
                               side_effect=lambda *args: hang_until(served)):
            for _ in range(2):
                self.assertEqual(6, self.drvr._get_vcpu_used())
        self.assertEqual((0, 6), (len(self.asked), asked.call_count))
        question = self.drvr._vcpus._open
        served.set()
        question.join(60)
        self.useFixture(fixtures.MockPatchObject(bulk, 'PATIENCE', 60))
        self.assertEqual(3, self.drvr._get_vcpu_used())

    def test_no_thread_left(self):
        asked = self.novas()
        self.stats = [(guest, self.vcpus(1)) for guest in self.guests]
        with mock.patch.object(bulk._Question, 'start', side_effect=(
                RuntimeError("can't start new thread"))):
            self.assertEqual(6, self.drvr._get_vcpu_used())
        self.assertEqual(3, asked.call_count)
        self.assertEqual(3, self.drvr._get_vcpu_used())

    def test_another_call_of_novas(self):
        """A later release may use more of the driver and its Host."""
        view = self.drvr._vcpus.view(self.drvr)
        self.assertIs(self.drvr.image_backend, view.image_backend)
        self.assertEqual(self.drvr._host.get_hostname,
                         view._host.get_hostname)

    def test_a_monitor_hangs(self):
        asked = self.novas()
        self.useFixture(fixtures.MockPatchObject(bulk, 'PATIENCE', 0.05))
        self.useFixture(fixtures.MockPatchObject(bulk, 'BACK_OFF', 0))
        said = self.useFixture(fixtures.MockPatchObject(bulk, 'LOG')).mock
        answered = threading.Event()
        self.addCleanup(answered.set)
        self.stats = lambda: hang_until(answered)
        hanging = self.guests[1].UUIDString()
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Domain.controlInfo',
            lambda domain: [2, 0, 1000] if domain.UUIDString() == hanging
            else [0, 0, 0]))
        for _ in range(3):
            self.assertEqual(6, self.drvr._get_vcpu_used())
        # No second question while there is one, and said once.
        self.assertEqual(1, len(self.asked))
        self.assertEqual(9, asked.call_count)
        said.warning.assert_called_once()
        self.assertEqual(hanging, said.warning.call_args.args[1]['guests'])
        # QEMU is well again, or was ended.
        question = self.drvr._vcpus._open
        answered.set()
        question.join(60)
        self.stats = [(guest, self.vcpus(1)) for guest in self.guests]
        self.assertEqual(3, self.drvr._get_vcpu_used())
        said.info.assert_called_once()

    def test_all_together_take_too_long(self):
        """No QEMU hangs: nobody is named, and Nova's way is taken a while."""
        self.novas()
        self.useFixture(fixtures.MockPatchObject(bulk, 'PATIENCE', 0.05))
        said = self.useFixture(fixtures.MockPatchObject(bulk, 'LOG')).mock
        now = self.useFixture(fixtures.MockPatchObject(
            bulk, 'time')).mock.monotonic
        now.return_value = 1000.0
        answered = threading.Event()
        self.addCleanup(answered.set)
        self.stats = lambda: hang_until(answered)
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Domain.controlInfo',
            lambda domain: [1, 0, 30]))
        for _ in range(2):
            self.assertEqual(6, self.drvr._get_vcpu_used())
        said.warning.assert_not_called()
        question = self.drvr._vcpus._open
        answered.set()
        question.join(60)
        self.stats = [(guest, self.vcpus(1)) for guest in self.guests]
        for seconds, count, asked in ((1599, 6, 1), (1600, 3, 2)):
            now.return_value = seconds
            self.assertEqual(count, self.drvr._get_vcpu_used())
            self.assertEqual(asked, len(self.asked))

    def test_nobody_knows_who_hangs(self):
        self.useFixture(fixtures.MockPatchObject(bulk, 'PATIENCE', 0.05))
        said = self.useFixture(fixtures.MockPatchObject(bulk, 'LOG')).mock
        answered = threading.Event()
        self.addCleanup(answered.set)
        self.stats = lambda: hang_until(answered)
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Domain.controlInfo',
            mock.Mock(side_effect=fakelibvirt.libvirtError('no'))))
        self.drvr._get_vcpu_used()
        said.warning.assert_not_called()
        # A minute later libvirt may tell.
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Domain.controlInfo',
            lambda domain: [2, 0, 60000]))
        for _ in range(2):
            self.drvr._get_vcpu_used()
        said.warning.assert_called_once()

    def test_what_stands_for_libvirt_does_not_tell_who(self):
        """Nova's fake libvirt has no virDomainGetControlInfo()."""
        self.novas()
        self.useFixture(fixtures.MockPatchObject(bulk, 'PATIENCE', 0.05))
        answered = threading.Event()
        self.addCleanup(answered.set)
        self.stats = lambda: hang_until(answered)
        self.assertEqual(6, self.drvr._get_vcpu_used())

    def test_a_guest_that_has_ended_while_another_hangs(self):
        self.useFixture(fixtures.MockPatchObject(bulk, 'PATIENCE', 0.05))
        said = self.useFixture(fixtures.MockPatchObject(bulk, 'LOG')).mock
        answered = threading.Event()
        self.addCleanup(answered.set)
        self.stats = lambda: hang_until(answered)
        ended, hanging, well = (guest.UUIDString() for guest in self.guests)

        def control_info(domain: Any) -> list[int]:
            if domain.UUIDString() == ended:
                raise fakelibvirt.libvirtError('domain is not running')
            return [2, 0, 1000 if domain.UUIDString() == hanging else 999]

        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Domain.controlInfo', control_info))
        self.drvr._get_vcpu_used()
        self.assertEqual(hanging, said.warning.call_args.args[1]['guests'])

    def test_not_two_at_once(self):
        with self.drvr._vcpus._asking:
            self.assertEqual({}, self.drvr._vcpus.by_uuid())
