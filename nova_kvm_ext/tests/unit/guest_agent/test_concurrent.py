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

"""Several operations need one guest frozen, in threads of their own.

Nova's own code makes the snapshots of volumes that are files, as Cinder's NFS
driver has it do. libvirt and the agent are stand-ins that are as strict as the
real ones: a frozen guest refuses to be frozen.
"""

import contextlib
import itertools
import random
import threading
import time
from typing import Any
from unittest import mock

import ddt
import fixtures
from nova import exception
from nova import objects
from nova.tests.fixtures import libvirt as fakelibvirt
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext.guest_agent import client
from nova_kvm_ext.guest_agent import holds
from nova_kvm_ext.guest_agent import limits as agent_limits
from nova_kvm_ext.tests.unit.guest_agent import agents

VOLUMES = ('one', 'two', 'three')
ORDERS = list(itertools.permutations(VOLUMES))
_TIMEOUT = 20

DISK = ("<disk type='file'><source file='/{0}'/><target dev='vd{1}' "
        "bus='virtio'/><serial>{0}</serial></disk>")
XML = '<domain><devices>{}</devices></domain>'.format(''.join(
    DISK.format(volume, 'bcd'[n]) for n, volume in enumerate(VOLUMES)))


class StrictDomain(agents.Domain):
    """A domain that threads use, with an agent that freezes once only."""

    def fsFreeze(self) -> int:
        if self.frozen:
            raise agents.libvirt_error(
                1, "internal error: unable to execute QEMU agent command "
                "'guest-fsfreeze-freeze': The command guest-fsfreeze-freeze "
                "has been disabled for this instance")
        return super().fsFreeze()


class Snapshot:
    """One volume's snapshot, in a thread of its own."""

    def __init__(self, test: 'ConcurrentTestCase', volume: str,
                 **properties: str) -> None:
        self._test = test
        self.volume = volume
        self.inside = threading.Event()
        self.go_on = threading.Event()
        self.error: BaseException | None = None
        self.fails: Exception | None = None
        self.frozen: list[bool] = []
        self.quiesced: list[bool] = []
        # The context's own, as each of Nova's calls has.
        self._instance = objects.Instance(
            test.context, id=1, uuid=uuids.instance, user_id='u',
            project_id='p', image_ref=uuids.image, os_type=None,
            key_data=None, vcpu_model=None, system_metadata={
                f'image_{key}': value for key, value in
                ({'hw_qemu_guest_agent': 'yes'} | properties).items()})
        self._thread = threading.Thread(target=self._run)

    def start(self) -> 'Snapshot':
        self._thread.start()
        self._test.addCleanup(self.end)
        return self

    def _run(self) -> None:
        guest = mock.Mock(_domain=self._test.domain, snapshot=self._snapshot)
        guest.get_xml_desc.return_value = XML
        try:
            self._test.driver._volume_snapshot_create(
                self._test.context, self._instance, guest, self.volume, 'new')
        except BaseException as e:
            self.error = e
        finally:
            self.inside.set()

    def _snapshot(self, conf: Any, quiesce: bool, **kwargs: Any) -> None:
        domain = self._test.domain
        self.frozen.append(domain.frozen)
        self.inside.set()
        self._test.assertTrue(self.go_on.wait(_TIMEOUT))
        self.frozen.append(domain.frozen)
        if self.fails is not None and len(self.frozen) == 2:
            raise self.fails

    def wait(self) -> 'Snapshot':
        self._test.assertTrue(self.inside.wait(_TIMEOUT))
        return self

    def end(self) -> 'Snapshot':
        self.go_on.set()
        self._thread.join(_TIMEOUT)
        self._test.assertFalse(self._thread.is_alive())
        return self


class ConcurrentTestCase(agents.HooksTestCase):

    def setUp(self):
        super().setUp()
        self.domain = StrictDomain()
        self.guest._domain = self.domain
        self.serve(self.driver)

    def snapshots(self, order: tuple[str, ...], **properties: str
                  ) -> dict[str, Snapshot]:
        """Start them one by one, each inside libvirt when the next starts."""
        return {volume: Snapshot(self, volume, **properties).start().wait()
                for volume in order}

    def all_well(self, started: dict[str, Snapshot]) -> None:
        for snapshot in started.values():
            self.assertIsNone(snapshot.error, snapshot.volume)
            self.assertEqual([True, True], snapshot.frozen, snapshot.volume)


@ddt.ddt
class VolumesTestCase(ConcurrentTestCase):

    def test_every_order(self):
        """36 of them."""
        for start, end in itertools.product(ORDERS, ORDERS):
            self.domain.calls.clear()
            started = self.snapshots(start)
            for volume in end:
                self.assertTrue(self.domain.frozen, (start, end))
                started[volume].end()
            self.all_well(started)
            self.assertEqual(1, self.domain.calls.count('fsFreeze'))
            self.settled()
        self.assertNotIn('Do not rely', self.log.output)

    def test_at_the_same_time(self):
        """Whoever comes first: forty times, with waits at random."""
        self.domain.during.clear()
        freeze, thaw = self.domain.fsFreeze, self.domain.command

        def slow_freeze():
            time.sleep(random.random() / 100)
            freeze()
            time.sleep(random.random() / 100)

        def slow_command(*args):
            time.sleep(random.random() / 200)
            return thaw(*args)

        self.useFixture(fixtures.MockPatchObject(
            self.domain, 'fsFreeze', slow_freeze))
        self.driver._guest_agents.limits.__dict__['command'] = slow_command
        for _ in range(40):
            started = {volume: Snapshot(self, volume) for volume in VOLUMES}
            for snapshot in started.values():
                snapshot.go_on.set()
                snapshot.start()
            for snapshot in started.values():
                snapshot.end()
            self.all_well(started)
            self.settled()

    def test_one_snapshot_fails(self):
        for broken, end in itertools.product(VOLUMES, ORDERS):
            started = self.snapshots(VOLUMES, os_require_quiesce='yes')
            started[broken].fails = agents.libvirt_error(1, 'no space')
            for volume in end:
                self.assertTrue(self.domain.frozen, (broken, end))
                started[volume].end()
            self.assertIsInstance(started.pop(broken).error,
                                  fakelibvirt.libvirtError)
            self.all_well(started)
            self.settled()

    @ddt.data({}, {'os_require_quiesce': 'yes'})
    def test_freeze_fails(self, properties):
        """For all who waited for it; each says why."""
        freezing, go_on = threading.Event(), threading.Event()

        def fail():
            freezing.set()
            go_on.wait(_TIMEOUT)

        self.domain.during['fsFreeze'] = fail
        self.domain.broken['fsFreeze'] = agents.libvirt_error(
            agents.UNRESPONSIVE, agents.SILENT)
        started = [Snapshot(self, volume, **properties)
                   for volume in VOLUMES]
        started[0].start()
        self.assertTrue(freezing.wait(_TIMEOUT))
        for snapshot in started[1:]:
            snapshot.start()
        self.wait_for(lambda: [3] == [
            len(f.holds) for f in self.freezes().values()])
        go_on.set()
        for snapshot in started:
            snapshot.end()
            if properties:
                self.assertIsInstance(snapshot.error,
                                      exception.QemuGuestAgentNotEnabled)
                self.assertIn('Guest agent', str(snapshot.error))
            else:
                self.assertIsNone(snapshot.error)
                self.assertEqual([False, False], snapshot.frozen)
        self.assertEqual(1, self.domain.calls.count('fsFreeze'))
        self.settled()

    def wait_for(self, condition: Any) -> None:
        until = time.monotonic() + _TIMEOUT
        while not condition():
            self.assertLess(time.monotonic(), until)
            time.sleep(0.01)

    @ddt.idata(ORDERS)
    def test_thaw_fails(self, end):
        started = self.snapshots(VOLUMES)
        self.domain.broken['guest-fsfreeze-thaw'] = agents.libvirt_error(
            agents.UNRESPONSIVE, agents.SILENT)
        for volume in end:
            started[volume].end()
        self.all_well(started)
        self.assertEqual([uuids.instance], self.ledger.left_behind())
        self.assertEqual({}, self.freezes())
        self.domain.broken.clear()
        self.driver._guest_agents.freezes.settle()
        self.settled()

    @ddt.idata(ORDERS)
    def test_agent_hangs(self, end):
        """Nothing is known of the freeze then; the snapshots are made."""
        started = self.snapshots(VOLUMES)
        for name in ('guest-fsfreeze-status', 'guest-fsfreeze-thaw'):
            self.domain.broken[name] = agents.libvirt_error(
                agents.UNRESPONSIVE, agents.SILENT)
        for volume in end:
            started[volume].end()
        self.all_well(started)
        self.assertNotIn('Do not rely', self.log.output)
        self.assertEqual([uuids.instance], self.ledger.left_behind())

    @ddt.idata(itertools.product(('stops', 'goes'), ORDERS))
    @ddt.unpack
    def test_guest_stops_or_goes(self, how, end):
        """Deleted, or migrated to another host: nothing is left here."""
        started = self.snapshots(VOLUMES)
        self.domain.frozen = self.domain.active = False
        for name in ('guest-fsfreeze-status', 'guest-fsfreeze-thaw'):
            self.domain.broken[name] = agents.libvirt_error(
                55, 'domain is not running')
        if how == 'goes':
            self.connection.lookupByUUIDString.side_effect = (
                agents.libvirt_error(fakelibvirt.VIR_ERR_NO_DOMAIN, 'x'))
        for volume in end:
            started[volume].end()
            self.assertIsNone(started[volume].error)
        self.assertEqual([], self.ledger.left_behind())
        self.assertEqual({}, self.freezes())
        self.assertEqual(3, self.log.output.count('Do not rely'))

    def test_thawed_by_somebody_while_two_need_it(self):
        """The third one freezes again; the first two are told."""
        started = self.snapshots(VOLUMES[:2])
        self.domain.frozen = False
        started |= self.snapshots(VOLUMES[2:])
        self.assertTrue(self.domain.frozen)
        for volume in VOLUMES:
            started[volume].end()
        self.assertEqual([True, True], started['three'].frozen)
        self.assertEqual(2, self.log.output.count('Do not rely'))
        self.settled()


@ddt.ddt
class ApiTestCase(ConcurrentTestCase):
    """Nova's API has the guest frozen, and its volumes are snapshot."""

    def test_every_end(self):
        """24 of them."""
        for end in itertools.permutations(('api', *VOLUMES)):
            self.domain.calls.clear()
            self.quiesce()
            started = self.snapshots(VOLUMES, os_require_quiesce='yes')
            for who in end:
                self.assertTrue(self.domain.frozen, end)
                if who == 'api':
                    self.unquiesce()
                else:
                    started[who].end()
            self.all_well(started)
            self.assertEqual(1, self.domain.calls.count('fsFreeze'))
            self.settled()

    def test_it_never_ends(self):
        self.quiesce()
        started = self.snapshots(VOLUMES)
        self.expire(lasting=True)
        self.driver._guest_agents.freezes.settle()
        self.assertTrue(self.domain.frozen)
        for snapshot in started.values():
            snapshot.end()
        self.all_well(started)
        self.settled()
        # Nova's API comes too late.
        self.unquiesce()
        self.settled()

    def test_thaw_that_comes_too_late_for_another(self):
        started = self.snapshots(VOLUMES)
        self.unquiesce()
        self.assertTrue(self.domain.frozen)
        for snapshot in started.values():
            snapshot.end()
        self.all_well(started)
        self.settled()

    @ddt.data('before', 'after')
    def test_thaw_against_a_freeze_that_ends(self, when):
        """Nova's API gave up waiting; whatever is first, it is thawed."""
        freezing, go_on = threading.Event(), threading.Event()

        def slow():
            freezing.set()
            go_on.wait(_TIMEOUT)

        self.domain.during['fsFreeze'] = slow
        errors: list[Exception] = []

        def freeze():
            try:
                self.quiesce()
            except exception.NovaException as e:
                errors.append(e)

        thread = threading.Thread(target=freeze)
        thread.start()
        self.assertTrue(freezing.wait(_TIMEOUT))
        if when == 'before':
            self.unquiesce()
        go_on.set()
        thread.join(_TIMEOUT)
        if when == 'after':
            self.assertTrue(self.domain.frozen)
            self.unquiesce()
        else:
            self.assertIn('before it was frozen', str(errors[0]))
        self.settled()

    def test_thaw_and_freeze_race(self):
        """Two hundred times: no entry stays, none is locked."""
        for _ in range(200):
            freezing = threading.Event()
            self.domain.during['fsFreeze'] = freezing.set

            def freeze():
                with contextlib.suppress(exception.NovaException):
                    self.quiesce()

            thread = threading.Thread(target=freeze)
            thread.start()
            freezing.wait(_TIMEOUT)
            time.sleep(random.random() / 1000)
            self.unquiesce()
            thread.join(_TIMEOUT)
            self.settled()


class LimitsTestCase(ConcurrentTestCase):
    """libvirt has one limit for each guest."""

    def test_the_longest_counts(self):
        limits = self.driver._guest_agents.limits
        with limits.patience(self.domain, 60):
            with limits.exactly(self.domain, 1):
                self.assertEqual(60, self.domain.timeout)
                limits.apply(self.guest)
                self.assertEqual(60, self.domain.timeout)
            self.assertEqual(60, self.domain.timeout)
        self.assertEqual(agents.LIMIT, self.domain.timeout)
        with limits.exactly(self.domain, 1):
            self.assertEqual(1, self.domain.timeout)
        self.assertEqual(agents.LIMIT, self.domain.timeout)
        self.assertEqual({}, limits._wanted)

    def test_a_frozen_guest_waits_for_no_limit(self):
        """libvirt is told before the freeze, and after the thaw."""
        told = []
        domain = self.domain
        set_limit = domain.agentSetResponseTimeout

        def tell(seconds: int, flags: int) -> None:
            told.append((seconds, domain.frozen))
            set_limit(seconds, flags)

        self.useFixture(fixtures.MockPatchObject(
            domain, 'agentSetResponseTimeout', tell))
        snapshot = Snapshot(self, 'one')
        snapshot.go_on.set()
        snapshot.start().end()
        with self.driver._guest_agents.freezes.operating(self.instance):
            self.quiesce()
            self.unquiesce()
        self.settled()
        self.assertEqual([client.FREEZE_TIMEOUT, agents.LIMIT] * 2,
                         [seconds for seconds, _ in told])
        self.assertEqual({False}, {frozen for _, frozen in told})

    def test_a_limit_that_may_be_lost_is_set_again(self):
        limits = self.driver._guest_agents.limits
        with limits.patience(self.domain, 60):
            self.domain.timeout = -2
            with limits.patience(self.domain, 30):
                self.assertEqual(-2, self.domain.timeout)
            limits.apply(self.guest)
            self.assertEqual(60, self.domain.timeout)
            self.domain.timeout = -2
            with mock.patch.object(agent_limits, '_LASTS', 0):
                with limits.patience(self.domain, 30):
                    self.assertEqual(60, self.domain.timeout)

    def test_threads(self):
        limits = self.driver._guest_agents.limits
        wrong: list[int] = []

        def want(seconds):
            for _ in range(100):
                with limits.patience(self.domain, seconds):
                    time.sleep(0)
                    if self.domain.timeout < seconds:
                        wrong.append(self.domain.timeout)

        threads = [threading.Thread(target=want, args=(seconds,))
                   for seconds in (10, 30, 45, 60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_TIMEOUT)
        self.assertEqual([], wrong)
        self.assertEqual({}, limits._wanted)
        self.assertEqual(agents.LIMIT, self.domain.timeout)


class HoldsTestCase(ConcurrentTestCase):

    def test_one_ends_while_another_freezes_again(self):
        """The guest was reset: the first snapshot knows that it is lost."""
        guests = self.driver._guest_agents.freezes.guests
        first = guests.acquire(uuids.instance, self.domain)
        self.domain.frozen = False
        stood = []
        self.domain.during['fsFreeze'] = lambda: stood.append(
            guests.release(first))
        second = guests.acquire(uuids.instance, self.domain)
        self.assertEqual([False], stood)
        self.assertIs(False, first.stood)
        self.assertIs(True, guests.release(second))
        self.settled()

    def test_another_that_takes_too_long(self):
        found = holds.Holds()
        hold, first = found.take(uuids.instance, False, 1)
        self.assertTrue(first)
        self.assertRaises(holds.NotFrozen, found.take, uuids.instance, False,
                          0.05)
        # It does not count as one who needs the guest frozen.
        self.assertEqual([hold], hold.freeze.holds)
        self.assertTrue(found.frozen(hold.freeze))
        self.assertTrue(found.release(hold))
        self.assertRaises(holds.NotFrozen, found.take, uuids.instance, False,
                          0.05)
        found.over(hold.freeze)
        self.assertFalse(found.known(uuids.instance))

    def test_a_thaw_is_waited_for(self):
        found = holds.Holds()
        first, _ = found.take(uuids.instance, False, 1)
        found.frozen(first.freeze)
        found.release(first)
        timer = threading.Timer(0.1, found.over, (first.freeze,))
        timer.start()
        second, freezes = found.take(uuids.instance, False, _TIMEOUT)
        timer.join()
        self.assertTrue(freezes)
        self.assertIsNot(first.freeze, second.freeze)

    def test_longer_than_a_freeze(self):
        self.assertGreater(
            agent_limits.WAIT_FOR_ANOTHER, client.FREEZE_TIMEOUT)
