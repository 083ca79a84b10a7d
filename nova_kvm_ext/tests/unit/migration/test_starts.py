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

from typing import Any
from unittest import mock

import fixtures
from nova import exception
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver

from nova_kvm_ext.migration import elsewhere
from nova_kvm_ext.migration import starts
from nova_kvm_ext.tests.unit import driver_base


class StartsTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.log = self.useFixture(fixtures.FakeLogger(starts.__name__))
        self.host = mock.Mock()
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
        starts.check(self.instance, self.host,
                     lambda name: f'qemu+tcp://{name}/system')

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
        self.host.get_guest.side_effect = None
        self.host.get_guest.return_value.is_active.return_value = True
        self.check()
        self.ask.assert_not_called()
        self.host.get_guest.return_value.is_active.return_value = False
        self.refused()

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

    def test_destination_that_is_no_longer_known(self):
        self.node.side_effect = exception.ComputeHostNotFound(host='x')
        self.refused()
        self.assertEqual(['qemu+tcp://elsewhere/system'],
                         self.ask.call_args.args[0])

    def test_uri_without_a_place_for_a_name(self):
        def no_place(name):
            return 'qemu:///system' % name

        self.ask.return_value = elsewhere.Found(None, 'nobody')
        starts.check(self.instance, self.host, no_place)
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
        with (mock.patch.object(starts, 'check') as check,
              mock.patch.object(libvirt_driver.LibvirtDriver,
                                '_create_guest'),
              mock.patch.object(drvr, '_guest_started')):
            drvr._create_guest(None, '<domain/>', self.instance)
        check.assert_not_called()
