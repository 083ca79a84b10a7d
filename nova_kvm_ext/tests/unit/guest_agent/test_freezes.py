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

"""Freezes and thaws around what Nova does with a guest."""

import contextlib
import os
from typing import Any
from unittest import mock

from nova import exception
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt.libvirt import driver as libvirt_driver
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext import driver
from nova_kvm_ext.guest_agent import client
from nova_kvm_ext.tests.unit.guest_agent import agents

HOSTILE = 'it is \x1b[31mred\x1b[0m\nERROR a line of its own \u202e'


def connection_error() -> Any:
    error: Any = agents.libvirt_error(
        38, 'Cannot recv data: Connection reset by peer')
    error.get_error_domain = lambda: client._FROM_RPC
    return error


class FreezeTestCase(agents.HooksTestCase):
    """Volume-backed: Nova's API freezes and thaws."""

    def test_written_down_while_it_is_frozen(self):
        self.domain.during['fsFreeze'] = lambda: self.assertEqual(
            [uuids.instance], self.ledger.left_behind())
        self.quiesce()
        self.assertNotIn('fsFreeze', self.domain.during)
        self.assertTrue(self.domain.frozen)
        self.assertEqual([uuids.instance], self.ledger.left_behind())
        self.unquiesce()
        self.settled()
        self.assertRegex(
            self.log.output, r'was frozen for \d{1,2}\.\d\d s, after a freeze '
            r'that took \d{1,2}\.\d\d s')

    def test_no_question_while_the_api_has_it_frozen(self):
        """Nothing but the thaw: the guest waits for no more than Nova does.

        LibvirtDriver asks libvirt for the guest before it thaws.
        """
        asked = self.asked_while_frozen()
        self.quiesce()
        self.unquiesce()
        self.assertEqual(['fsThaw'], asked)
        self.settled()

    def test_not_frozen_where_it_cannot_be_written_down(self):
        with open(os.path.join(driver.CONF.state_path, 'kvm-ext-frozen'),
                  'w'):
            pass
        error = self.assertRaises(
            exception.InstanceQuiesceFailed, self.quiesce)
        self.assertIn('state_path', str(error))
        self.assertNotIn('fsFreeze', self.domain.calls)
        # The log names the file for the operator. The tenant is not told.
        self.assertNotIn(driver.CONF.state_path, str(error))
        self.assertIn(driver.CONF.state_path, self.log.output)

    def test_answer_that_came_late(self):
        self.domain.broken['late:fsFreeze'] = agents.libvirt_error(
            agents.UNRESPONSIVE, agents.SILENT)
        self.assertRaises(exception.InstanceQuiesceFailed, self.quiesce)
        self.settled()

    def test_freeze_that_ends_after_it_was_given_up(self):
        silent = agents.libvirt_error(
            agents.UNRESPONSIVE, agents.SILENT)
        self.domain.broken = {'late:fsFreeze': silent,
                              'guest-fsfreeze-thaw': silent}
        self.assertRaises(exception.InstanceQuiesceFailed, self.quiesce)
        self.assertTrue(self.domain.frozen)
        self.assertEqual([uuids.instance], self.ledger.left_behind())
        self.assertIn('may be frozen', self.log.output)
        # It hangs still.
        self.driver._guest_agents.freezes.settle()
        self.assertEqual([uuids.instance], self.ledger.left_behind())
        self.domain.broken = {}
        self.driver._guest_agents.freezes.settle()
        self.settled()
        self.assertIn('was left frozen', self.log.output)

    def test_one_that_froze_late_is_thawed_before_the_next_freeze(self):
        silent = agents.libvirt_error(
            agents.UNRESPONSIVE, agents.SILENT)
        self.domain.broken = {'late:fsFreeze': silent,
                              'guest-fsfreeze-thaw': silent}
        self.assertRaises(exception.InstanceQuiesceFailed, self.quiesce)
        self.domain.broken = {}
        self.quiesce()
        self.unquiesce()
        self.settled()

    def test_agent_that_hangs_is_sent_no_freeze(self):
        self.domain.broken['guest-fsfreeze-status'] = agents.libvirt_error(
            agents.UNRESPONSIVE, agents.SILENT)
        error = self.assertRaises(
            exception.InstanceQuiesceFailed, self.quiesce)
        self.assertIn('did not answer', str(error))
        self.assertNotIn('fsFreeze', self.domain.calls)
        self.settled_without_limit()

    def settled_without_limit(self) -> None:
        self.assertEqual([], self.ledger.left_behind())
        self.assertEqual({}, self.freezes())

    def test_agent_that_cannot_freeze_at_all(self):
        """Thawing it would fail for ever."""
        refusal = agents.libvirt_error(
            1, "internal error: unable to execute QEMU agent command "
            "'guest-fsfreeze-freeze': The command guest-fsfreeze-freeze has "
            "not been found")
        self.domain.broken = {name: refusal for name in (
            'guest-fsfreeze-status', 'fsFreeze', 'guest-fsfreeze-thaw')}
        self.assertRaises(exception.InstanceQuiesceFailed, self.quiesce)
        self.settled_without_limit()

    def test_frozen_by_somebody_else(self):
        self.domain.frozen = True
        error = self.assertRaises(
            exception.InstanceQuiesceFailed, self.quiesce)
        self.assertIn('frozen already', str(error))
        self.assertTrue(self.domain.frozen)

    def test_frozen_twice(self):
        """Two servers' images at once: the last one thaws."""
        self.quiesce()
        self.quiesce()
        self.assertEqual(1, self.domain.calls.count('fsFreeze'))
        self.unquiesce()
        self.assertTrue(self.domain.frozen)
        self.unquiesce()
        self.settled()

    def test_thawed_by_somebody_and_frozen_again(self):
        """The first snapshot is spoilt, and the second is not."""
        self.quiesce()
        self.domain.frozen = False
        self.quiesce()
        self.assertEqual(2, self.domain.calls.count('fsFreeze'))
        self.unquiesce()
        self.assertTrue(self.domain.frozen)
        self.assertIn('Do not rely on that snapshot', self.log.output)
        self.unquiesce()
        self.settled()
        self.assertEqual(1, self.log.output.count('Do not rely'))

    def test_agent_that_refuses_to_say(self):
        """Windows without its volume shadow copy service, for example."""
        self.domain.broken['guest-fsfreeze-status'] = agents.libvirt_error(
            1, "internal error: unable to execute QEMU agent command "
            "'guest-fsfreeze-status': this feature or command is not "
            "currently supported")
        self.quiesce()
        self.assertTrue(self.domain.frozen)
        self.unquiesce()
        self.settled()

    def test_reason_is_said_once(self):
        self.domain.broken['fsFreeze'] = agents.libvirt_error(
            agents.UNRESPONSIVE, agents.SILENT)
        error = self.assertRaises(exception.InstanceQuiesceFailed,
                                  self.quiesce)
        self.assertEqual(1, str(error).count('Failed to quiesce'))

    def test_words_of_the_guest(self):
        self.domain.broken['fsFreeze'] = agents.libvirt_error(1, HOSTILE)
        error = self.assertRaises(
            exception.InstanceQuiesceFailed, self.quiesce)
        for text in (str(error), self.log.output.replace('\n', '', 1)):
            self.assertNotIn('\x1b', text)
            self.assertNotIn('\u202e', text)
        self.assertNotIn('\nERROR', self.log.output)

    def test_answer_that_is_no_text(self):
        """libvirt-python raises SystemError then; Nova does not expect it."""
        self.domain.broken['fsFreeze'] = SystemError('returned a result')
        self.assertRaises(exception.InstanceQuiesceFailed, self.quiesce)
        self.settled()

    def test_interrupted(self):
        self.domain.broken['late:fsFreeze'] = KeyboardInterrupt()
        self.assertRaises(KeyboardInterrupt, self.quiesce)
        self.settled()

    def test_thaw_asked_for_before_the_freeze_is_answered(self):
        """Nova's API has given up waiting, and sends the thaw."""
        self.domain.broken['fsThaw'] = agents.libvirt_error(
            68, 'cannot acquire state change lock')

        def thaw():
            with contextlib.suppress(exception.NovaException):
                self.unquiesce()

        self.domain.during['fsFreeze'] = thaw
        self.assertRaises(exception.InstanceQuiesceFailed, self.quiesce)
        self.settled()

    def test_thaw_that_meets_the_answer_of_the_freeze(self):
        """The agent answers between the look at the freeze and the thaw."""
        guests = self.driver._guest_agents.freezes.guests
        hold = guests.acquire(uuids.instance, self.domain)
        hold.freeze.answered = None
        self.assertIsNone(guests.release(hold))
        self.settled()

    def test_thaw_that_fails_once(self):
        self.quiesce()
        self.domain.broken['fsThaw'] = agents.libvirt_error(
            agents.UNRESPONSIVE, agents.SILENT)
        self.unquiesce()
        self.settled()

    def test_thaw_that_fails(self):
        silent = agents.libvirt_error(
            agents.UNRESPONSIVE, agents.SILENT)
        self.quiesce()
        self.domain.broken = {'fsThaw': silent, 'guest-fsfreeze-thaw': silent}
        self.assertRaises(exception.InstanceQuiesceFailed, self.unquiesce)
        self.assertEqual([uuids.instance], self.ledger.left_behind())
        self.domain.broken = {}
        with mock.patch.object(libvirt_driver.LibvirtDriver,
                               'get_available_resource'):
            self.driver.get_available_resource('node')
        self.settled()

    def test_libvirt_dies(self):
        self.quiesce()
        dead = connection_error()
        self.domain.broken = {'fsThaw': dead, 'guest-fsfreeze-thaw': dead}
        self.connection.lookupByUUIDString.side_effect = dead
        self.assertRaises(exception.InstanceQuiesceFailed, self.unquiesce)
        self.driver._host.get_connection.side_effect = (
            exception.HypervisorUnavailable())
        self.driver._guest_agents.freezes.settle()
        self.assertEqual([uuids.instance], self.ledger.left_behind())
        self.domain.broken = {}
        self.serve(self.driver)
        self.driver._guest_agents.freezes.settle()
        self.assertFalse(self.domain.frozen)
        self.assertEqual([], self.ledger.left_behind())

    def test_libvirt_is_restarted(self):
        """The domain that froze is of a connection that is no more."""
        self.quiesce()
        dead = connection_error()
        old, self.domain = self.domain, agents.Domain()
        old.broken = {'fsThaw': dead, 'guest-fsfreeze-thaw': dead}
        self.domain.frozen, self.domain.timeout = True, agents.LIMIT
        self.guest._domain = self.domain
        self.serve(self.driver)
        self.unquiesce()
        self.settled()

    def test_libvirt_dies_and_the_message_bus_with_it(self):
        self.quiesce()
        dead = connection_error()
        self.domain.broken = {'fsThaw': dead, 'guest-fsfreeze-thaw': dead}
        self.driver._host.get_connection.side_effect = RuntimeError('no bus')
        self.assertRaises(RuntimeError, self.unquiesce)
        self.domain.broken = {}
        self.serve(self.driver)
        self.driver._guest_agents.freezes.settle()
        self.settled()

    def test_volume_snapshot_that_never_ends(self):
        self.quiesce()
        self.driver._guest_agents.freezes.settle()
        self.assertTrue(self.domain.frozen)
        self.expire()
        self.driver._guest_agents.freezes.settle()
        self.settled()
        self.assertIn('Do not rely on that snapshot', self.log.output)

    def test_volume_snapshot_of_a_guest_that_is_gone(self):
        self.quiesce()
        gone = agents.libvirt_error(fakelibvirt.VIR_ERR_NO_DOMAIN, 'no domain')
        self.domain.broken['guest-fsfreeze-thaw'] = gone
        self.connection.lookupByUUIDString.side_effect = gone
        self.expire()
        self.driver._guest_agents.freezes.settle()
        self.assertEqual({}, self.freezes())
        self.assertEqual([], self.ledger.left_behind())
        self.assertIn('is not frozen any more', self.log.output)
        self.assertNotIn('Do not rely', self.log.output)

    def test_thaw_of_what_was_never_frozen(self):
        self.unquiesce()
        self.settled()
