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

"""What the driver does about guest agents, on Nova's fake libvirt.

The guest is a domain that has an agent in it; Nova's own code calls it.
"""

import contextlib
import json
import os
from typing import Any
from unittest import mock

import fixtures
from nova.compute import power_state
from nova import context
from nova import exception
from nova import objects
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext import driver
from nova_kvm_ext.guest_agent import channel
from nova_kvm_ext.guest_agent import client
from nova_kvm_ext.guest_agent import holds
from nova_kvm_ext.guest_agent import hooks
from nova_kvm_ext.guest_agent import ledger
from nova_kvm_ext.guest_agent import limits
from nova_kvm_ext.guest_agent import thaws
from nova_kvm_ext.tests.unit import driver_base

LIMIT = 7
XML = """<domain type='kvm' id='1'><devices><channel type='unix'>
<target type='virtio' name='org.qemu.guest_agent.0' state='{}'/></channel>
</devices></domain>"""
NO_CHANNEL = "<domain type='kvm' id='1'><devices/></domain>"

UNRESPONSIVE = fakelibvirt.VIR_ERR_AGENT_UNRESPONSIVE
SILENT = 'Guest agent is not responding: Guest agent not available for now'
HOSTILE = 'it is \x1b[31mred\x1b[0m\nERROR a line of its own \u202e'


def libvirt_error(code: int, text: str) -> Exception:
    return fakelibvirt.make_libvirtError(
        fakelibvirt.libvirtError, text, error_code=code)


def connection_error() -> Any:
    error: Any = libvirt_error(
        38, 'Cannot recv data: Connection reset by peer')
    error.get_error_domain = lambda: client._FROM_RPC
    return error


class Domain:
    """A running domain with an agent, which may be made to misbehave.

    :ivar broken: libvirt call or agent command -> exception that it raises;
        where it is 'late:NAME', the command takes effect all the same
    :ivar count: how many file systems can be frozen
    """

    def __init__(self) -> None:
        self.xml = XML.format('connected')
        self.active = True
        self.saved = False
        self.frozen = False
        self.count = 2
        self.broken: dict[str, BaseException] = {}
        self.timeout = -2
        self.calls: list[str] = []
        self.timeouts: dict[str, int] = {}
        self.password: str | None = None
        self.during: dict[str, Any] = {}

    def _do(self, name: str) -> None:
        self.calls.append(name)
        self.timeouts[name] = self.timeout
        if name in self.during:
            self.during.pop(name)()
        if name in self.broken:
            raise self.broken[name]

    def UUIDString(self) -> str:
        return uuids.instance

    def ID(self) -> int:
        return 1 if self.active else -1

    def XMLDesc(self, flags: int = 0) -> str:
        return self.xml

    def isActive(self) -> bool:
        return self.active

    def state(self, flags: int = 0) -> list[int]:
        return [1, 1] if self.active else [5, 0]

    def hasManagedSaveImage(self, flags: int) -> bool:
        return self.saved

    def agentSetResponseTimeout(self, seconds: int, flags: int) -> None:
        self.timeout = seconds

    def info(self) -> list[int]:
        return [1 if self.active else 5, 0, 0, 0, 0]

    def fsFreeze(self) -> int:
        self.frozen = 'late:fsFreeze' in self.broken or self.frozen
        if 'late:fsFreeze' in self.broken:
            raise self.broken['late:fsFreeze']
        self._do('fsFreeze')
        self.frozen = True
        return self.count

    def fsThaw(self) -> int:
        self._do('fsThaw')
        return self._thaw()

    def _thaw(self) -> int:
        thawed, self.frozen = self.frozen * self.count, False
        return thawed

    def setUserPassword(self, user: str, password: str, flags: int) -> None:
        self._do('setUserPassword')
        self.password = password

    def setTime(self, time: Any = None, flags: int = 0) -> None:
        self._do('setTime')

    def shutdown(self) -> None:
        self._do('shutdown')

    def shutdownFlags(self, flags: int) -> None:
        self._do(f'shutdownFlags {flags}')
        self.active = False

    def command(self, domain: Any, request: str, seconds: int, flags: int
                ) -> str:
        """What stands for libvirt_qemu.qemuAgentCommand."""
        name = json.loads(request)['execute']
        self._do(name)
        answer: Any = {}
        if name == 'guest-fsfreeze-thaw':
            answer = self._thaw()
        elif name == 'guest-fsfreeze-status':
            answer = 'frozen' if self.frozen else 'thawed'
        elif name == 'guest-info':
            answer = {'version': '7.2', 'supported_commands': []}
        elif name == 'guest-shutdown':
            self.active = False
        return json.dumps({'return': answer})


class HooksTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.flags(host='host', shutdown_timeout=60)
        self.flags(guest_agent_timeout=LIMIT, group='kvm_ext')
        # What Nova's fake libvirt has not.
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.driver.libvirt.'
            'VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN', 1))
        self.driver = self.started()
        self.domain = Domain()
        self.guest = libvirt_guest.Guest(self.domain)
        self.serve(self.driver)
        self.context = context.get_admin_context()
        self.instance = objects.Instance(
            self.context, id=1, uuid=uuids.instance, user_id='u',
            project_id='p', image_ref=uuids.image, os_type=None,
            key_data=None, vcpu_model=None, system_metadata={
                'image_hw_qemu_guest_agent': 'yes'})
        self.ledger = ledger.Ledger(driver.CONF.state_path, 'host')
        self.log = self.useFixture(fixtures.FakeLogger('nova_kvm_ext'))

    def serve(self, drvr: driver.KVMDriver) -> None:
        """Have a driver find the domain."""
        self.connection = mock.Mock(
            lookupByUUIDString=mock.Mock(return_value=self.domain),
            listAllDomains=mock.Mock(return_value=[]))
        for name, value in (
                ('get_guest', mock.Mock(return_value=self.guest)),
                ('get_connection', mock.Mock(return_value=self.connection)),
                ('list_guests', mock.Mock(return_value=[self.guest]))):
            self.useFixture(fixtures.MockPatchObject(
                drvr._host, name, value))
        # Each domain answers for itself.
        drvr._guest_agents.limits.__dict__['command'] = (
            lambda domain, *args: domain.command(domain, *args))

    def another_service(self) -> hooks.GuestAgents:
        """The one that is started after this one was killed."""
        # The kernel drops the locks of a process that dies.
        for freeze in self.freezes().values():
            freeze.entry.release()
        agents = hooks.GuestAgents(self.driver._host)
        agents.limits.__dict__['command'] = self.domain.command
        return agents

    def quiesce(self, **properties: str) -> None:
        self.driver.quiesce(self.context, self.instance, self.image(
            **properties))

    def unquiesce(self) -> None:
        self.driver.unquiesce(self.context, self.instance, self.image())

    def image(self, **properties: str) -> objects.ImageMeta:
        return objects.ImageMeta.from_dict({'properties': {
            'hw_qemu_guest_agent': 'yes'} | properties})

    def freezes(self) -> dict[str, holds.Freeze]:
        return self.driver._guest_agents.freezes._holds._freezes

    def expire(self, lasting: bool = False) -> None:
        """Ten minutes pass.

        :param lasting: for a freeze by Nova's API alone
        """
        for freeze in self.freezes().values():
            for hold in freeze.holds:
                if hold.lasting or not lasting:
                    hold.since -= limits.VOLUME_FREEZE_LIMIT + 1
            if freeze.answered is not None:
                freeze.answered -= limits.VOLUME_FREEZE_LIMIT + 1

    def settled(self) -> None:
        """The guest is thawed, and nothing says otherwise."""
        self.assertFalse(self.domain.frozen)
        self.assertEqual([], self.ledger.left_behind())
        self.assertEqual({}, self.freezes())
        self.assertEqual(LIMIT, self.domain.timeout)


class ChannelTestCase(HooksTestCase):
    """Nova uses the guest's channel, not by its image."""

    def test_channel_without_a_word_of_the_image(self):
        image = objects.ImageMeta.from_dict({'properties': {}})
        self.driver._can_quiesce(self.instance, image)
        self.assertNotIn('hw_qemu_guest_agent', image.properties)
        self.instance.system_metadata = {}
        self.driver.set_admin_password(self.instance, 'secret')
        self.assertEqual('secret', self.domain.password)

    def test_no_channel_though_the_image_says_yes(self):
        self.domain.xml = NO_CHANNEL
        self.assertRaises(exception.QemuGuestAgentNotEnabled,
                          self.driver._can_quiesce, self.instance,
                          self.image())
        self.assertRaises(exception.QemuGuestAgentNotEnabled,
                          self.driver.set_admin_password, self.instance, 'x')
        self.assertRaises(exception.QemuGuestAgentNotEnabled, self.quiesce)
        self.assertEqual([], self.domain.calls)

    def test_the_image_counts_where_there_is_no_domain(self):
        self.driver._host.get_guest.side_effect = (
            exception.InstanceNotFound(instance_id='x'))
        self.driver._can_quiesce(self.instance, self.image())
        self.assertRaises(
            exception.QemuGuestAgentNotEnabled, self.driver._can_quiesce,
            self.instance, objects.ImageMeta.from_dict({'properties': {}}))

    def test_not_connected(self):
        self.domain.xml = XML.format('disconnected')
        error = self.assertRaises(
            exception.QemuGuestAgentNotEnabled, self.driver._can_quiesce,
            self.instance, self.image())
        self.assertIn('not connected', str(error))

    def test_password_of_one_is_not_the_next_ones(self):
        self.instance.system_metadata = {}
        self.driver.set_admin_password(self.instance, 'secret')
        self.assertRaises(
            exception.QemuGuestAgentNotEnabled,
            self.driver._can_set_admin_password,
            objects.ImageMeta.from_dict({'properties': {}}))

    def test_always(self):
        self.flags(guest_agent='always', group='kvm_ext')
        for properties, there in (({}, 1), ({'hw_qemu_guest_agent': 'yes'}, 1),
                                  ({'hw_qemu_guest_agent': 'no'}, 0),
                                  ({'hw_qemu_guest_agent': 'maybe'}, 1)):
            found = self.guest_xml(self.driver, properties).xpath(
                'devices/channel/target[@name=$name]',
                name=channel.TARGET_NAME)
            self.assertEqual(there, len(found), properties)


class TimeoutTestCase(HooksTestCase):

    def test_running_guests_when_the_service_starts(self):
        for errand in self.driver._guest_agents.errands():
            errand()
        self.assertEqual(LIMIT, self.domain.timeout)

    def test_every_start_of_a_guest(self):
        self.instance.task_state = None
        with mock.patch.object(libvirt_guest.Guest, 'create',
                               return_value=self.guest):
            self.driver._create_guest(
                self.context, '<domain/>', self.instance, power_on=False)
        self.assertEqual(LIMIT, self.domain.timeout)

    def test_guest_that_does_not_run(self):
        with mock.patch.object(
                self.domain, 'agentSetResponseTimeout',
                side_effect=libvirt_error(55, 'domain is not running')):
            self.driver._guest_agents.limits.apply(self.guest)

    def test_after_live_migration(self):
        with mock.patch.object(
                libvirt_driver.LibvirtDriver,
                'post_live_migration_at_destination') as novas:
            self.driver.post_live_migration_at_destination(
                self.context, self.instance, [], True, None)
        novas.assert_called_once_with(
            self.context, self.instance, [], True, None)
        self.assertEqual(LIMIT, self.domain.timeout)
        self.assertEqual(['guest-fsfreeze-status', 'setTime'],
                         self.domain.calls)

    def test_guest_without_a_channel_after_live_migration(self):
        self.domain.xml = NO_CHANNEL
        self.driver._guest_agents.migrated(self.instance)
        self.assertEqual(['setTime'], self.domain.calls)

    def test_guest_that_migrates_frozen(self):
        """Its snapshot may be under way; then Nova's API thaws it here."""
        def migrate():
            self.domain.calls.clear()
            self.domain.frozen = True
            self.driver._guest_agents.migrated(self.instance)
            self.assertNotIn('setTime', self.domain.calls)
            self.assertEqual([uuids.instance], self.ledger.left_behind())
            self.driver._guest_agents.freezes.settle()
            self.assertTrue(self.domain.frozen)

        migrate()
        self.unquiesce()
        self.settled()
        migrate()
        self.expire()
        self.driver._guest_agents.freezes.settle()
        self.settled()

    def test_agent_that_is_silent_after_a_migration(self):
        self.domain.broken['guest-fsfreeze-status'] = libvirt_error(
            UNRESPONSIVE, SILENT)
        self.driver._guest_agents.migrated(self.instance)
        self.settled()

    def test_migration_is_done_whatever_becomes_of_the_agent(self):
        self.driver._host.get_guest.side_effect = (
            exception.InternalError('no'))
        self.driver._guest_agents.migrated(self.instance)
        self.assertIn('time limit', self.log.output)

    def test_after_a_cold_snapshot(self):
        resume = self.driver._resume_guest_after_snapshot
        with mock.patch.object(libvirt_driver.LibvirtDriver,
                               '_resume_guest_after_snapshot'):
            resume(self.context, True, power_state.RUNNING, self.instance,
                   self.guest)
            self.assertEqual([], self.domain.calls)
            resume(self.context, False, power_state.RUNNING, self.instance,
                   self.guest)
        self.assertEqual(['setTime'], self.domain.calls)
        self.assertEqual(LIMIT, self.domain.timeouts['setTime'])

    def test_a_freeze_and_a_thaw_have_more_time(self):
        self.quiesce()
        # A limit that is set meanwhile would have the guest wait.
        self.assertEqual(limits.VOLUME_FREEZE_TIMEOUT, self.domain.timeout)
        self.unquiesce()
        self.assertEqual(LIMIT, self.domain.timeout)
        self.assertEqual(limits.VOLUME_FREEZE_TIMEOUT,
                         self.domain.timeouts['fsFreeze'])
        self.assertLessEqual(client.THAW_TIMEOUT,
                             self.domain.timeouts['fsThaw'])
        with self.driver._guest_agents.freezes.operating(self.instance):
            self.quiesce()
        self.assertEqual(60, self.domain.timeouts['fsFreeze'])


class FreezeTestCase(HooksTestCase):
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
        self.assertRegex(self.log.output, r'was frozen for \d+\.\d\d s')

    def test_not_frozen_where_it_cannot_be_written_down(self):
        with open(os.path.join(driver.CONF.state_path, 'kvm-ext-frozen'),
                  'w'):
            pass
        error = self.assertRaises(
            exception.InstanceQuiesceFailed, self.quiesce)
        self.assertIn('state_path', str(error))
        self.assertNotIn('fsFreeze', self.domain.calls)
        # The operator reads which file, the tenant that one cannot be.
        self.assertNotIn(driver.CONF.state_path, str(error))
        self.assertIn(driver.CONF.state_path, self.log.output)

    def test_answer_that_came_late(self):
        self.domain.broken['late:fsFreeze'] = libvirt_error(
            UNRESPONSIVE, SILENT)
        self.assertRaises(exception.InstanceQuiesceFailed, self.quiesce)
        self.settled()

    def test_freeze_that_ends_after_it_was_given_up(self):
        silent = libvirt_error(UNRESPONSIVE, SILENT)
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
        silent = libvirt_error(UNRESPONSIVE, SILENT)
        self.domain.broken = {'late:fsFreeze': silent,
                              'guest-fsfreeze-thaw': silent}
        self.assertRaises(exception.InstanceQuiesceFailed, self.quiesce)
        self.domain.broken = {}
        self.quiesce()
        self.unquiesce()
        self.settled()

    def test_agent_that_hangs_is_sent_no_freeze(self):
        self.domain.broken['guest-fsfreeze-status'] = libvirt_error(
            UNRESPONSIVE, SILENT)
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
        refusal = libvirt_error(
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
        self.domain.broken['guest-fsfreeze-status'] = libvirt_error(
            1, "internal error: unable to execute QEMU agent command "
            "'guest-fsfreeze-status': this feature or command is not "
            "currently supported")
        self.quiesce()
        self.assertTrue(self.domain.frozen)
        self.unquiesce()
        self.settled()

    def test_reason_is_said_once(self):
        self.domain.broken['fsFreeze'] = libvirt_error(UNRESPONSIVE, SILENT)
        error = self.assertRaises(exception.InstanceQuiesceFailed,
                                  self.quiesce)
        self.assertEqual(1, str(error).count('Failed to quiesce'))

    def test_words_of_the_guest(self):
        self.domain.broken['fsFreeze'] = libvirt_error(1, HOSTILE)
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
        self.domain.broken['fsThaw'] = libvirt_error(
            68, 'cannot acquire state change lock')

        def thaw():
            with contextlib.suppress(exception.NovaException):
                self.unquiesce()

        self.domain.during['fsFreeze'] = thaw
        self.assertRaises(exception.InstanceQuiesceFailed, self.quiesce)
        self.settled()

    def test_thaw_that_fails_once(self):
        self.quiesce()
        self.domain.broken['fsThaw'] = libvirt_error(UNRESPONSIVE, SILENT)
        self.unquiesce()
        self.settled()

    def test_thaw_that_fails(self):
        silent = libvirt_error(UNRESPONSIVE, SILENT)
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
        old, self.domain = self.domain, Domain()
        old.broken = {'fsThaw': dead, 'guest-fsfreeze-thaw': dead}
        self.domain.frozen, self.domain.timeout = True, LIMIT
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
        gone = libvirt_error(fakelibvirt.VIR_ERR_NO_DOMAIN, 'no domain')
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


class KilledTestCase(HooksTestCase):

    def test_while_it_is_frozen(self):
        self.quiesce()
        agents = self.another_service()
        agents.service_starts()
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
        agents = hooks.GuestAgents(self.driver._host)
        agents.limits.__dict__['command'] = self.domain.command
        agents.service_starts()
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
        self.connection.lookupByUUIDString.side_effect = libvirt_error(
            fakelibvirt.VIR_ERR_NO_DOMAIN, 'no domain')
        self.driver._guest_agents.freezes.settle()
        self.assertEqual([], self.ledger.left_behind())

    def test_guest_that_is_off(self):
        self.ledger.enter(uuids.instance, 'snapshot').release()
        self.domain.active = False
        self.domain.broken['guest-fsfreeze-thaw'] = libvirt_error(
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
            raise libvirt_error(UNRESPONSIVE, SILENT)

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
            raise libvirt_error(UNRESPONSIVE, SILENT)

        agents = hooks.GuestAgents(self.driver._host)
        agents.limits.__dict__['command'] = ignore
        spent = []
        with mock.patch.object(thaws.time, 'monotonic', lambda: clock[0]):
            for _ in range(60):
                started = clock[0]
                agents.freezes.settle()
                spent.append(clock[0] - started)
                clock[0] = started + 60
        self.assertEqual([2, 0, 1, 0, 0, 1, 0, 0], spent[:8])
        self.assertLessEqual(sum(spent), 12)
        # It comes to its senses.
        self.domain.frozen = True
        agents.limits.__dict__['command'] = self.domain.command
        clock[0] += thaws.LONGEST_BACK_OFF
        with mock.patch.object(thaws.time, 'monotonic', lambda: clock[0]):
            agents.freezes.settle()
        self.assertFalse(self.domain.frozen)
        self.assertEqual([], self.ledger.left_behind())
        self.assertEqual({}, agents.freezes._thaws._failures)

    def test_one_that_was_given_up(self):
        """It may freeze late: the next round thaws it, without a back-off."""
        thaws_ = self.driver._guest_agents.freezes._thaws
        thaws_.leave(self.ledger.enter(uuids.instance, 'snapshot'))
        self.domain.frozen = True
        self.driver._guest_agents.freezes.settle()
        self.assertFalse(self.domain.frozen)
        self.assertEqual([], self.ledger.left_behind())

    def test_one_that_is_paused(self):
        """libvirt says so at once: it is thawed as soon as it runs."""
        self.ledger.enter(uuids.instance, 'snapshot').release()
        self.domain.frozen = True
        self.domain.broken['guest-fsfreeze-thaw'] = libvirt_error(
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
        self.domain.broken['guest-fsfreeze-thaw'] = libvirt_error(
            UNRESPONSIVE, SILENT)
        settle = self.driver._guest_agents.freezes.settle
        settle()
        self.assertEqual(
            3, len(self.driver._guest_agents.freezes._thaws._failures))
        for name in self.ledger.left_behind():
            os.unlink(os.path.join(self.ledger._directory, name))
        settle()
        self.assertEqual(
            {}, self.driver._guest_agents.freezes._thaws._failures)

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


class ShutdownTestCase(HooksTestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatch('time.sleep'))

    def test_by_the_agent(self):
        self.assertTrue(self.driver._clean_shutdown(self.instance, 60, 10))
        self.assertEqual(['guest-shutdown'], self.domain.calls)
        self.assertEqual(LIMIT, self.domain.timeout)

    def test_the_button_when_the_agent_is_silent(self):
        self.domain.broken['guest-shutdown'] = libvirt_error(
            UNRESPONSIVE, SILENT)
        self.assertTrue(self.driver._clean_shutdown(self.instance, 60, 10))
        self.assertEqual(['guest-shutdown', 'shutdownFlags 1'],
                         self.domain.calls)

    def test_time_is_nova_s_in_all(self):
        """libvirt's own way is 60 s for each time that Nova asks."""
        clock = [1000.0]

        def silent():
            clock[0] += self.domain.timeout * 2
            raise libvirt_error(UNRESPONSIVE, SILENT)

        for timeout, asked in ((60, LIMIT), (9, 3), (2, 1)):
            self.domain.during['guest-shutdown'] = silent
            with mock.patch.object(hooks.time, 'monotonic',
                                   lambda: clock[0]):
                before = clock[0]
                _, left = self.driver._guest_agents.shut_down(
                    self.driver, self.instance, timeout)
            self.assertEqual(asked, self.domain.timeouts['guest-shutdown'])
            self.assertEqual(max(1, timeout - (clock[0] - before)), left)

    def test_no_agent_is_nova_s_business(self):
        for xml in (NO_CHANNEL, XML.format('disconnected')):
            self.domain.calls.clear()
            self.domain.xml = xml
            self.driver._clean_shutdown(self.instance, 1, 10)
            self.assertEqual(['shutdown'], self.domain.calls)

    def test_soft_reboot(self):
        self.domain.timeout = -2
        with mock.patch.object(self.guest, 'launch') as launch, \
                mock.patch.object(self.driver, '_wait_for_running',
                                  side_effect=libvirt_driver.loopingcall.
                                  LoopingCallDone()):
            self.assertTrue(self.driver._soft_reboot(self.instance))
        launch.assert_called_once_with()
        self.assertEqual('guest-shutdown', self.domain.calls[0])
        self.assertNotIn('shutdown', self.domain.calls)
        self.assertEqual(LIMIT, self.domain.timeout)


class PasswordTestCase(HooksTestCase):

    SECRET = 'hunter2'

    def fails(self, kind: type[Exception]) -> Exception:
        error = self.assertRaises(kind, self.driver.set_admin_password,
                                  self.instance, self.SECRET)
        while error is not None:
            self.assertNotIn(self.SECRET, str(error))
            error, first = (None if error.__suppress_context__ else
                            error.__context__), error
        self.assertNotIn(self.SECRET, self.log.output)
        return first

    def test_success(self):
        self.driver.set_admin_password(self.instance, self.SECRET)
        self.assertEqual(self.SECRET, self.domain.password)

    def test_silent_agent(self):
        for code in (UNRESPONSIVE, 97, 112):
            self.domain.broken['setUserPassword'] = libvirt_error(
                code, SILENT)
            error = self.fails(exception.InstanceAgentNotEnabled)
            self.assertIn('does not answer', str(error))

    def test_agent_that_is_gone(self):
        self.domain.xml = XML.format('disconnected')
        error = self.fails(exception.InstanceAgentNotEnabled)
        self.assertIn('does not answer', str(error))
        self.assertEqual([], self.domain.calls)

    def test_agent_that_repeats_the_password(self):
        for broken in (libvirt_error(1, f'chpasswd: {self.SECRET}?'),
                       SystemError(self.SECRET)):
            self.domain.broken['setUserPassword'] = broken
            error = self.fails(exception.InternalError)
            self.assertIn('did not set the password', str(error))


class DiagnosticsTestCase(HooksTestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(
            libvirt_driver.LibvirtDriver, 'get_diagnostics',
            return_value={'memory': 1}))

    def state(self) -> Any:
        found = self.driver.get_diagnostics(self.instance)
        self.assertEqual(1, found['memory'])
        # It goes over the message bus.
        json.dumps(found)
        return found['guest_agent']['state']

    def test_states(self):
        self.assertEqual('connected', self.state())
        self.domain.frozen = True
        self.assertEqual('frozen', self.state())
        self.domain.broken['guest-info'] = libvirt_error(UNRESPONSIVE, SILENT)
        self.assertEqual('not answering', self.state())
        self.domain.xml = XML.format('disconnected')
        self.assertEqual('disconnected', self.state())
        self.domain.xml = NO_CHANNEL
        self.assertEqual('no channel', self.state())

    def test_frozen_since_and_no_path_of_the_host(self):
        self.state()
        found = self.driver.get_diagnostics(self.instance)['guest_agent']
        self.assertIsNone(found['frozen_since'])
        self.domain.broken['guest-info'] = libvirt_error(
            38, 'Failed to connect to \'/var/lib/libvirt/qemu/agent.sock\'')
        self.ledger.enter(self.instance.uuid, 'x').release()
        found = self.driver.get_diagnostics(self.instance)['guest_agent']
        self.assertRegex(found['frozen_since'], '^20.*Z$')
        self.assertIn('agent.sock', found['problem'])
        self.assertNotIn('/var', found['problem'])

    def test_guest_that_does_not_run(self):
        self.domain.broken['guest-info'] = libvirt_error(55, 'not running')
        self.assertEqual('unknown', self.state())
