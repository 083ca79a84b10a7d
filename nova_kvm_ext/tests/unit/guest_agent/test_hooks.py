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

"""Guest agents through the driver: channel, limits, shutdown, passwords."""

import json
from typing import Any
from unittest import mock

import fixtures
from nova.compute import power_state
from nova import exception
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext.guest_agent import channel
from nova_kvm_ext.guest_agent import client
from nova_kvm_ext.guest_agent import hooks
from nova_kvm_ext.guest_agent import limits
from nova_kvm_ext.tests.unit.guest_agent import agents


class ChannelTestCase(agents.HooksTestCase):
    """Nova uses the guest's channel, not by its image."""

    def test_channel_without_a_word_of_the_image(self):
        image = objects.ImageMeta.from_dict({'properties': {}})
        self.driver._can_quiesce(self.instance, image)
        self.assertNotIn('hw_qemu_guest_agent', image.properties)
        self.instance.system_metadata = {}
        self.driver.set_admin_password(self.instance, 'secret')
        self.assertEqual('secret', self.domain.password)

    def test_no_channel_though_the_image_says_yes(self):
        self.domain.xml = agents.NO_CHANNEL
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
        self.domain.xml = agents.XML.format('disconnected')
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


class TimeoutTestCase(agents.HooksTestCase):

    def test_running_guests_when_the_service_starts(self):
        for errand in self.driver._guest_agents.errands():
            errand()
        self.assertEqual(agents.LIMIT, self.domain.timeout)

    def test_every_start_of_a_guest(self):
        self.instance.task_state = None
        with mock.patch.object(libvirt_guest.Guest, 'create',
                               return_value=self.guest):
            self.driver._create_guest(
                self.context, '<domain/>', self.instance, power_on=False)
        self.assertEqual(agents.LIMIT, self.domain.timeout)

    def test_guest_that_does_not_run(self):
        with mock.patch.object(
                self.domain, 'agentSetResponseTimeout',
                side_effect=agents.libvirt_error(55, 'domain is not running')):
            self.driver._guest_agents.limits.apply(self.guest)

    def test_after_live_migration(self):
        with mock.patch.object(
                libvirt_driver.LibvirtDriver,
                'post_live_migration_at_destination') as novas:
            self.driver.post_live_migration_at_destination(
                self.context, self.instance, [], True, None)
        novas.assert_called_once_with(
            self.context, self.instance, [], True, None)
        self.assertEqual(agents.LIMIT, self.domain.timeout)
        self.assertEqual(['guest-fsfreeze-status', 'setTime'],
                         self.domain.calls)

    def test_guest_without_a_channel_after_live_migration(self):
        self.domain.xml = agents.NO_CHANNEL
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
        self.domain.broken['guest-fsfreeze-status'] = agents.libvirt_error(
            agents.UNRESPONSIVE, agents.SILENT)
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
        self.assertEqual(agents.LIMIT, self.domain.timeouts['setTime'])

    def test_a_freeze_and_a_thaw_have_more_time(self):
        self.quiesce()
        # A limit that is set meanwhile would have the guest wait.
        self.assertEqual(limits.VOLUME_FREEZE_TIMEOUT, self.domain.timeout)
        self.unquiesce()
        self.assertEqual(agents.LIMIT, self.domain.timeout)
        self.assertEqual(limits.VOLUME_FREEZE_TIMEOUT,
                         self.domain.timeouts['fsFreeze'])
        self.assertLessEqual(client.THAW_TIMEOUT,
                             self.domain.timeouts['fsThaw'])
        with self.driver._guest_agents.freezes.operating(self.instance):
            self.quiesce()
        self.assertEqual(60, self.domain.timeouts['fsFreeze'])


class ShutdownTestCase(agents.HooksTestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatch('time.sleep'))

    def test_by_the_agent(self):
        self.assertTrue(self.driver._clean_shutdown(self.instance, 60, 10))
        self.assertEqual(['guest-shutdown'], self.domain.calls)
        self.assertEqual(agents.LIMIT, self.domain.timeout)

    def test_the_button_when_the_agent_is_silent(self):
        self.domain.broken['guest-shutdown'] = agents.libvirt_error(
            agents.UNRESPONSIVE, agents.SILENT)
        self.assertTrue(self.driver._clean_shutdown(self.instance, 60, 10))
        self.assertEqual(['guest-shutdown', 'shutdownFlags 1'],
                         self.domain.calls)

    def test_time_is_nova_s_in_all(self):
        """libvirt's own way is 60 s for each time that Nova asks."""
        clock = [1000.0]

        def silent():
            clock[0] += self.domain.timeout * 2
            raise agents.libvirt_error(agents.UNRESPONSIVE, agents.SILENT)

        for timeout, asked in ((60, agents.LIMIT), (9, 3), (2, 1)):
            self.domain.during['guest-shutdown'] = silent
            with mock.patch.object(hooks.time, 'monotonic',
                                   lambda: clock[0]):
                before = clock[0]
                _, left = self.driver._guest_agents.shut_down(
                    self.driver, self.instance, timeout)
            self.assertEqual(asked, self.domain.timeouts['guest-shutdown'])
            self.assertEqual(max(1, timeout - (clock[0] - before)), left)

    def test_no_agent_is_nova_s_business(self):
        for xml in (agents.NO_CHANNEL, agents.XML.format('disconnected')):
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
        self.assertEqual(agents.LIMIT, self.domain.timeout)


class PasswordTestCase(agents.HooksTestCase):

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
        for code in (agents.UNRESPONSIVE, 97, 112):
            self.domain.broken['setUserPassword'] = agents.libvirt_error(
                code, agents.SILENT)
            error = self.fails(exception.InstanceAgentNotEnabled)
            self.assertIn('does not answer', str(error))

    def test_agent_that_is_gone(self):
        self.domain.xml = agents.XML.format('disconnected')
        error = self.fails(exception.InstanceAgentNotEnabled)
        self.assertIn('does not answer', str(error))
        self.assertEqual([], self.domain.calls)

    def test_agent_that_repeats_the_password(self):
        for broken in (agents.libvirt_error(1, f'chpasswd: {self.SECRET}?'),
                       SystemError(self.SECRET)):
            self.domain.broken['setUserPassword'] = broken
            error = self.fails(exception.InternalError)
            self.assertIn('did not set the password', str(error))


class DiagnosticsTestCase(agents.HooksTestCase):

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
        self.domain.broken['guest-info'] = agents.libvirt_error(
            agents.UNRESPONSIVE, agents.SILENT)
        self.assertEqual('not answering', self.state())
        self.domain.xml = agents.XML.format('disconnected')
        self.assertEqual('disconnected', self.state())
        self.domain.xml = agents.NO_CHANNEL
        self.assertEqual('no channel', self.state())

    def test_frozen_since_and_no_path_of_the_host(self):
        self.state()
        found = self.driver.get_diagnostics(self.instance)['guest_agent']
        self.assertIsNone(found['frozen_since'])
        self.domain.broken['guest-info'] = agents.libvirt_error(
            38, 'Failed to connect to \'/var/lib/libvirt/qemu/agent.sock\'')
        self.ledger.enter(self.instance.uuid, 'x').release()
        found = self.driver.get_diagnostics(self.instance)['guest_agent']
        self.assertRegex(found['frozen_since'], '^20.*Z$')
        self.assertIn('agent.sock', found['problem'])
        self.assertNotIn('/var', found['problem'])

    def test_guest_that_does_not_run(self):
        self.domain.broken['guest-info'] = agents.libvirt_error(
            55, 'not running')
        self.assertEqual('unknown', self.state())
