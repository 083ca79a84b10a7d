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

import threading
from typing import Any
from unittest import mock

import fixtures
from nova import exception
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from oslo_utils import uuidutils

from nova_kvm_ext.migration import elsewhere
from nova_kvm_ext.migration import starts
from nova_kvm_ext.tests.unit import driver_base
from nova_kvm_ext.tests.unit.guests import domains


class StartsTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.log = self.useFixture(fixtures.FakeLogger(starts.__name__))
        self.host = mock.Mock()
        self.host.get_capabilities.return_value.host.uuid = 'our-own'
        self.host.get_guest.side_effect = exception.InstanceNotFound(
            instance_id='x')
        self.instance = self.make_instance()
        self.records: Any = [self.record()]
        self.useFixture(fixtures.MockPatchObject(
            objects.MigrationList, 'get_by_filters', self.find))
        self.node = self.useFixture(fixtures.MockPatchObject(
            objects.ComputeNode, 'get_first_node_by_host_for_old_compat',
            return_value=mock.Mock(host_ip='192.0.2.7'))).mock
        self.ask = self.useFixture(fixtures.MockPatchObject(
            elsewhere, 'ask', return_value=elsewhere.Found(True))).mock
        self.starts = starts.Starts(self.host)

    def find(self, context, filters):
        self.assertEqual({'instance_uuid': self.instance.uuid,
                          'migration_type': 'live-migration'}, filters)
        if isinstance(self.records, Exception):
            raise self.records
        return self.records

    def record(self, **more):
        return mock.Mock(**({
            'id': 1, 'source_compute': starts.CONF.host,
            'dest_compute': 'elsewhere', 'dest_host': None,
            'status': 'error'} | more))

    def check(self):
        self.starts.check(self.instance,
                          lambda name: f'qemu+tcp://{name}/system')

    def defined_here(self, active=False, state=(1, 1)):
        self.host.get_guest.side_effect = None
        guest = self.host.get_guest.return_value
        guest.is_active.return_value = active
        guest._domain.state.return_value = list(state)

    def refused(self):
        error = self.assertRaises(exception.InstancePowerOnFailure,
                                  self.check)
        # A tenant reads it.
        self.assertNotIn('elsewhere', str(error))
        self.assertIn('KVML721', self.log.output)
        self.assertIn('repair-migration ' + self.instance.uuid,
                      self.log.output)
        self.assertIn('On elsewhere run', self.log.output)

    def test_runs_elsewhere(self):
        self.refused()
        uris, uuid = self.ask.call_args.args
        self.assertEqual({'own': 'our-own'}, self.ask.call_args.kwargs)
        self.assertEqual(self.instance.uuid, uuid)
        self.assertEqual(['qemu+tcp://elsewhere/system',
                          'qemu+tcp://192.0.2.7/system'], uris)

    def test_not_there(self):
        self.ask.return_value = elsewhere.Found(False)
        self.check()
        self.assertEqual('', self.log.output)

    def test_not_known(self):
        self.ask.return_value = elsewhere.Found(None, 'no route')
        self.check()
        self.assertIn('KVML722', self.log.output)
        self.assertIn('no route', self.log.output)

    def test_is_here(self):
        self.defined_here(active=True)
        self.check()
        self.ask.assert_not_called()
        self.defined_here()
        self.refused()

    def test_switched_to_post_copy(self):
        """A hard reboot would end what is left of the guest's memory."""
        for state in ((3, 12), (3, 13)):
            for status in ('error', 'failed', 'running (post-copy)'):
                self.records = [self.record(status=status)]
                self.defined_here(True, state)
                self.refused()
        # The other host may be gone, and the guest with it.
        self.ask.return_value = elsewhere.Found(None, 'no route')
        self.check()
        self.assertIn('KVML722', self.log.output)

    def errands(self, records, **instance):
        """What the service that starts says of these."""
        asked = []

        def find(context, filters):
            asked.append(filters)
            if isinstance(records, Exception):
                raise records
            return records

        known = {'host': starts.CONF.host, 'task_state': None} | instance
        self.instance.host = known['host']
        self.instance.task_state = known['task_state']
        with (mock.patch.object(objects.MigrationList, 'get_by_filters', find),
              mock.patch.object(
                  objects.InstanceList, 'get_by_filters',
                  side_effect=lambda context, filters, **kwargs: [
                      each for each in [self.instance]
                      if each.uuid in filters['uuid'] and
                      each.host == filters['host']])):
            for errand in self.starts.errands():
                errand()
        self.assertEqual([{
            'source_compute': starts.CONF.host, 'status':
                'running (post-copy)', 'migration_type': 'live-migration'}],
            asked)
        return 'KVML701' in self.log.output

    def test_left_by_post_copy(self):
        """Nova looks for migrations that are "running" alone."""
        uuid = self.instance.uuid
        here = [self.record(instance_uuid=uuid, dest_compute='first'),
                self.record(id=2, instance_uuid=uuid)]
        self.assertFalse(self.errands([]))
        self.assertFalse(self.errands(RuntimeError('no conductor')))
        self.assertFalse(self.errands(
            [self.record(instance_uuid='another')]))
        self.assertFalse(self.errands(here, host='another'))
        self.assertFalse(self.errands(here, task_state='migrating'))
        # It has come back since.
        for active, state in ((True, (1, 1)), (False, (5, 1))):
            self.defined_here(active, state)
            self.assertFalse(self.errands(here))
        # Part of its memory is still here.
        self.defined_here(True, (3, 12))
        self.assertTrue(self.errands(here))
        self.assertIn(f'repair-migration {uuid}" on elsewhere',
                      self.log.output)
        self.assertNotIn('first', self.log.output)

    def test_post_copy_where_libvirt_does_not_say(self):
        """Whether the guest is here is not known: it is asked again."""
        self.defined_here()
        self.host.get_guest.return_value.is_active.side_effect = (
            domains.Error('connection reset', 38))
        self.assertRaises(domains.Error, self.errands, [
            self.record(instance_uuid=self.instance.uuid)])
        self.assertNotIn('KVML701', self.log.output)

    def test_paused_here_for_another_reason(self):
        for reason in (0, 1, 2, 5, 9, 11):
            self.defined_here(True, (3, reason))
            self.check()
        self.ask.assert_not_called()

    def test_ends_while_it_is_looked_at(self):
        self.defined_here()
        self.host.get_guest.return_value.is_active.side_effect = (
            domains.Error('no domain', 42))
        self.refused()
        self.host.get_guest.return_value.is_active.side_effect = (
            ValueError('x'))
        self.assertRaises(ValueError, self.check)

    def test_did_not_leave(self):
        for records in ([], [self.record(status='completed')],
                        [self.record(source_compute='another')],
                        [self.record(dest_compute=None)],
                        [self.record(dest_compute=starts.CONF.host)],
                        # It has come back since.
                        [self.record(), self.record(
                            id=2, source_compute='elsewhere',
                            dest_compute=starts.CONF.host)],
                        RuntimeError('no conductor'),
                        exception.DBNotAllowed(binary='nova-compute')):
            self.records = records
            self.check()
        self.ask.assert_not_called()
        self.assertEqual('', self.log.output)

    def test_any_status_but_completed(self):
        for status in ('running', 'error', 'failed', 'cancelled',
                       'post-migrating'):
            self.records = [self.record(status=status)]
            self.refused()

    def test_defined_here_after_a_migration_that_was_rolled_back(self):
        self.defined_here()
        for status in ('failed', 'cancelled'):
            self.records = [self.record(status=status)]
            self.check()
        self.ask.assert_not_called()
        # Nova saw no end of these.
        for status in ('running', 'error', 'post-migrating'):
            self.records = [self.record(status=status)]
            self.refused()

    def test_what_is_proved_is_not_asked_again(self):
        self.ask.return_value = elsewhere.Found(False)
        self.check()
        self.check()
        self.ask.assert_called_once()
        # The guest may have left by another migration since.
        self.records.append(self.record(id=2))
        self.ask.return_value = elsewhere.Found(True)
        self.refused()
        # That it runs there may change.
        self.ask.return_value = elsewhere.Found(False)
        self.check()
        self.assertEqual(3, self.ask.call_count)

    def test_remembered_of_so_many(self):
        self.ask.return_value = elsewhere.Found(False)
        with mock.patch.object(starts, '_MOST_PROVED', 2):
            for uuid in 'abcac':
                self.instance.uuid = uuid * 8 + '-0000-4000-8000-' + uuid * 12
                self.check()
        self.assertEqual(4, self.ask.call_count)

    def test_shut_off_there(self):
        self.ask.return_value = elsewhere.Found(False, shut_off=True)
        self.check()
        self.assertIn('KVML723', self.log.output)
        self.assertIn('on elsewhere too', self.log.output)
        # Somebody may have started it there.
        self.ask.return_value = elsewhere.Found(True)
        self.refused()

    def test_silent_host_is_asked_once_for_many_guests(self):
        self.ask.return_value = elsewhere.Found(None, 'silent', late=True)
        clock = self.useFixture(fixtures.MockPatchObject(
            starts.time, 'monotonic', return_value=1000.0)).mock
        for _ in range(3):
            self.instance.uuid = uuidutils.generate_uuid()
            self.check()
        self.ask.assert_called_once()
        self.assertEqual(3, self.log.output.count('KVML722'))
        # Another host is asked.
        self.records = [self.record(dest_compute='third')]
        self.check()
        self.assertEqual(2, self.ask.call_count)
        self.records = [self.record()]
        clock.return_value += starts._SILENT
        self.ask.return_value = elsewhere.Found(True)
        self.refused()

    def test_host_that_refuses_to_answer_is_asked_again(self):
        # That takes no time, and may have been mended.
        self.ask.return_value = elsewhere.Found(None, 'refused')
        self.check()
        self.ask.return_value = elsewhere.Found(True)
        self.refused()

    def test_guests_that_are_started_at_once_wait_for_one_answer(self):
        started, go_on = threading.Event(), threading.Event()

        def ask(uris, uuid, own):
            started.set()
            go_on.wait(60)
            return elsewhere.Found(None, 'silent', late=True)

        self.ask.side_effect = ask
        threads = [threading.Thread(target=self.check) for _ in range(5)]
        for thread in threads:
            thread.start()
        started.wait(60)
        go_on.set()
        for thread in threads:
            thread.join()
        self.ask.assert_called_once()

    def test_destination_that_is_no_longer_known(self):
        self.node.side_effect = exception.ComputeHostNotFound(host='x')
        self.refused()
        self.assertEqual(['qemu+tcp://elsewhere/system'],
                         self.ask.call_args.args[0])

    def test_uri_without_a_place_for_a_name(self):
        def no_place(name):
            return 'qemu:///system' % name

        self.ask.return_value = elsewhere.Found(None, 'nobody')
        self.starts.check(self.instance, no_place)
        self.assertEqual([], self.ask.call_args.args[0])

    def test_hard_reboot_and_start(self):
        drvr = self.started()
        with mock.patch.object(drvr, '_destroy') as destroy:
            self.assertRaises(
                exception.InstancePowerOnFailure, drvr.power_on, None,
                self.instance, [])
            self.assertRaises(
                exception.InstancePowerOnFailure, drvr.reboot, None,
                self.instance, [], 'HARD')
        destroy.assert_not_called()

    def test_rescue(self):
        drvr = self.started()
        self.instance.task_state = 'rescuing'
        self.assertRaises(exception.InstancePowerOnFailure,
                          drvr._create_guest, None, '<domain/>',
                          self.instance)

    def test_other_starts_ask_nobody(self):
        drvr = self.started()
        self.instance.task_state = 'spawning'
        with (mock.patch.object(drvr._starts, 'check') as check,
              mock.patch.object(libvirt_driver.LibvirtDriver,
                                '_create_guest'),
              mock.patch.object(drvr, '_guest_started')):
            drvr._create_guest(None, '<domain/>', self.instance)
        check.assert_not_called()
