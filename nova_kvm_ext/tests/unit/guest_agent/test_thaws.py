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

"""Guests that were left frozen, when the service starts."""

import os
from unittest import mock

import fixtures
from nova.tests.fixtures import libvirt as fakelibvirt
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext.guest_agent import hooks
from nova_kvm_ext.guest_agent import ledger
from nova_kvm_ext.guest_agent import thaws
from nova_kvm_ext.tests.unit.guest_agent import agents


class KilledTestCase(agents.HooksTestCase):

    def test_while_it_is_frozen(self):
        self.quiesce()
        service = self.another_service()
        service.service_starts()
        self.assertFalse(self.domain.frozen)
        self.assertEqual([], self.ledger.left_behind())
        self.assertIn('was left frozen', self.log.output)

    def test_before_the_freeze_was_sent(self):
        self.ledger.enter(uuids.instance, 'snapshot').release()
        self.another_service().service_starts()
        self.assertEqual([], self.ledger.left_behind())
        self.assertIn('is not frozen', self.log.output)

    def test_one_that_lives_keeps_its_guests(self):
        self.quiesce()
        service = hooks.GuestAgents(self.driver._host)
        service.limits.__dict__['command'] = self.domain.command
        service.service_starts()
        self.assertTrue(self.domain.frozen)
        self.unquiesce()
        self.settled()

    def test_thawed_by_the_api_after_a_new_start(self):
        self.ledger.enter(uuids.instance, 'snapshot').release()
        self.domain.frozen = True
        self.unquiesce()
        self.settled()

    def test_guest_that_is_gone(self):
        self.ledger.enter(uuids.instance, 'snapshot').release()
        self.connection.lookupByUUIDString.side_effect = agents.libvirt_error(
            fakelibvirt.VIR_ERR_NO_DOMAIN, 'no domain')
        self.driver._guest_agents.freezes.settle()
        self.assertEqual([], self.ledger.left_behind())

    def test_guest_that_is_off(self):
        self.ledger.enter(uuids.instance, 'snapshot').release()
        self.domain.active = False
        self.domain.broken['guest-fsfreeze-thaw'] = agents.libvirt_error(
            55, 'domain is not running')
        self.domain.saved = True
        self.driver._guest_agents.freezes.settle()
        # Suspended to disk: it wakes up frozen.
        self.assertEqual([uuids.instance], self.ledger.left_behind())
        self.domain.saved = False
        self.driver._guest_agents.freezes.settle()
        self.assertEqual([], self.ledger.left_behind())

    def left_behind(self, count: int) -> list[str]:
        others = [f'c1c2c3c4-0000-4000-8000-{n:012}' for n in range(count)]
        for other in others:
            self.ledger.enter(other, 'snapshot').release()
        return others

    def test_many_that_hang(self):
        """Each has its turn, and none holds up the service."""
        others = self.left_behind(20)
        clock = [1000.0]
        tried: list[str] = []
        limits: list[int] = []

        def look_up(uuid):
            tried.append(uuid)
            return self.domain

        def ignore(domain, request, seconds, flags):
            limits.append(seconds)
            # libvirt asks whether the agent listens, and so it does.
            self.assertEqual(thaws.SYNC_TIMEOUT, domain.timeout)
            clock[0] += domain.timeout + seconds
            raise agents.libvirt_error(agents.UNRESPONSIVE, agents.SILENT)

        self.connection.lookupByUUIDString.side_effect = look_up
        self.driver._guest_agents.limits.__dict__['command'] = ignore
        freezes_ = hooks.GuestAgents(self.driver._host).freezes
        freezes_._thaws._limits.__dict__['command'] = ignore
        spent = []
        with mock.patch.object(thaws.time, 'monotonic', lambda: clock[0]):
            for _ in range(120):
                started = clock[0]
                freezes_.settle()
                spent.append(clock[0] - started)
                clock[0] = started + 60
        self.assertEqual(set(others), set(tried))
        self.assertLessEqual(max(spent), 6)
        self.assertEqual({thaws.FIRST_TIMEOUT, thaws.NEXT_TIMEOUT},
                         set(limits))
        self.assertEqual(20, limits.count(thaws.FIRST_TIMEOUT))
        # Each of them every ten minutes in the end.
        self.assertLessEqual(sum(spent[60:]) / 60, 20 * 2 / 10)

    def test_one_that_ignores_the_thaw(self):
        """It listens to all else, for as long as its tenant likes."""
        self.left_behind(1)
        clock = [1000.0]

        def ignore(domain, request, seconds, flags):
            clock[0] += seconds
            raise agents.libvirt_error(agents.UNRESPONSIVE, agents.SILENT)

        service = hooks.GuestAgents(self.driver._host)
        service.limits.__dict__['command'] = ignore
        spent = []
        with mock.patch.object(thaws.time, 'monotonic', lambda: clock[0]):
            for _ in range(60):
                started = clock[0]
                service.freezes.settle()
                spent.append(clock[0] - started)
                clock[0] = started + 60
        self.assertEqual([2, 0, 1, 0, 0, 1, 0, 0], spent[:8])
        self.assertLessEqual(sum(spent), 12)
        # It comes to its senses.
        self.domain.frozen = True
        service.limits.__dict__['command'] = self.domain.command
        clock[0] += thaws.LONGEST_BACK_OFF
        with mock.patch.object(thaws.time, 'monotonic', lambda: clock[0]):
            service.freezes.settle()
        self.assertFalse(self.domain.frozen)
        self.assertEqual([], self.ledger.left_behind())
        self.assertEqual({}, service.freezes.guests.thaws._failures)

    def test_one_that_was_given_up(self):
        """It may freeze late: the next round thaws it, without a back-off."""
        thaws_ = self.driver._guest_agents.freezes.guests.thaws
        thaws_.leave(self.ledger.enter(uuids.instance, 'snapshot'))
        self.domain.frozen = True
        self.driver._guest_agents.freezes.settle()
        self.assertFalse(self.domain.frozen)
        self.assertEqual([], self.ledger.left_behind())

    def test_one_that_is_paused(self):
        """libvirt says so at once: it is thawed as soon as it runs."""
        self.ledger.enter(uuids.instance, 'snapshot').release()
        self.domain.frozen = True
        self.domain.broken['guest-fsfreeze-thaw'] = agents.libvirt_error(
            55, 'domain is not running')
        for _ in range(5):
            self.driver._guest_agents.freezes.settle()
        self.assertEqual([uuids.instance], self.ledger.left_behind())
        self.assertEqual(1, self.log.output.count('may have been left'))
        self.domain.broken.clear()
        self.driver._guest_agents.freezes.settle()
        self.settled()

    def test_what_the_ledger_no_longer_has_is_forgotten(self):
        self.left_behind(3)
        self.domain.broken['guest-fsfreeze-thaw'] = agents.libvirt_error(
            agents.UNRESPONSIVE, agents.SILENT)
        settle = self.driver._guest_agents.freezes.settle
        settle()
        self.assertEqual(
            3, len(self.driver._guest_agents.freezes.guests.thaws._failures))
        for name in self.ledger.left_behind():
            os.unlink(os.path.join(self.ledger._directory, name))
        settle()
        self.assertEqual(
            {}, self.driver._guest_agents.freezes.guests.thaws._failures)

    def test_damaged_ledger(self):
        self.ledger.enter(uuids.instance, 'x').release()
        directory = self.ledger._directory
        os.mkfifo(os.path.join(
            directory, 'c1c2c3c4-0000-4000-8000-000000000001'))
        with open(os.path.join(directory, uuids.instance), 'wb') as f:
            f.write(b'\xff\x1b[31m\n' * 100)
        self.domain.frozen = True
        self.driver._guest_agents.service_starts()
        self.assertFalse(self.domain.frozen)
        self.assertIn('Remove it', self.log.output)
        self.assertNotIn('\x1b', self.log.output)

    def test_ledger_that_cannot_be_read(self):
        with mock.patch.object(ledger.os, 'listdir',
                               side_effect=PermissionError(13, 'no')):
            self.driver._guest_agents.service_starts()
        self.assertIn('permissions', self.log.output)

    def test_what_each_update_meets_is_not_said_each_time(self):
        self.useFixture(fixtures.MonkeyPatch(
            'nova_kvm_ext.log.REPEATS.quiet', 60))
        with mock.patch.object(ledger.os, 'listdir',
                               side_effect=PermissionError(13, 'no')):
            for _ in range(5):
                self.driver._guest_agents.freezes.settle()
        self.assertEqual(1, self.log.output.count('KVML410'))
