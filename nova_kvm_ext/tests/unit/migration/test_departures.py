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

"""What is said of a guest that moved while no nova-compute looked."""

from unittest import mock

import fixtures
from nova import exception
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
import oslo_messaging as messaging
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext.migration import departures
from nova_kvm_ext.tests.unit import driver_base


class DeparturesTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.log = self.useFixture(fixtures.FakeLogger(departures.__name__))
        self.drvr = self.started()
        self.instance = self.make_instance()
        self.migration = self.useFixture(fixtures.MockPatchObject(
            objects.Migration, 'get_by_instance_and_status',
            return_value=mock.Mock(dest_compute='elsewhere'))).mock

    def aborted(self) -> None:
        """Abort what libvirt no longer has."""
        self.assertRaises(exception.InstanceNotFound,
                          self.drvr.live_migration_abort, self.instance)

    def test_gone_after_a_restart(self):
        self.aborted()
        self.assertIn('being moved to elsewhere', self.log.output)
        self.assertIn('guest repair-migration ' + self.instance.uuid,
                      self.log.output)
        self.assertEqual(
            (uuids.instance, 'running'), self.migration.call_args.args[1:])

    def test_gone_in_its_post_copy_phase(self):
        self.migration.side_effect = [
            exception.MigrationNotFoundByStatus(
                instance_id=uuids.instance, status='running'),
            mock.Mock(dest_compute='elsewhere')]
        self.aborted()
        self.assertIn('being moved to elsewhere', self.log.output)
        self.assertEqual((uuids.instance, 'running (post-copy)'),
                         self.migration.call_args.args[1:])

    def test_destination_that_nova_no_longer_knows(self):
        for error in (exception.MigrationNotFoundByStatus(
                instance_id=uuids.instance, status='running'),
                messaging.MessagingTimeout()):
            self.migration.side_effect = error
            self.aborted()
            self.assertIn('being moved to another host', self.log.output)

    def test_gone_because_this_service_moved_it(self):
        def arrives(*args):
            self.aborted()

        with mock.patch.object(libvirt_driver.LibvirtDriver, '_live_migration',
                               side_effect=arrives) as novas:
            self.drvr.live_migration(
                None, self.instance, 'elsewhere', None, None)
        novas.assert_called_once()
        self.assertEqual('', self.log.output)
        # That move is over, however it ended.
        self.aborted()
        self.assertIn('being moved to elsewhere', self.log.output)

    def test_a_move_that_failed_is_over_too(self):
        with mock.patch.object(libvirt_driver.LibvirtDriver, '_live_migration',
                               side_effect=exception.MigrationError('x')):
            self.assertRaises(
                exception.MigrationError, self.drvr.live_migration,
                None, self.instance, 'elsewhere', None, None)
        self.aborted()
        self.assertIn('being moved to elsewhere', self.log.output)

    def test_a_guest_that_is_here(self):
        with mock.patch.object(self.drvr._host, 'get_guest') as get_guest:
            self.drvr.live_migration_abort(self.instance)
        get_guest.return_value._domain.abortJob.assert_called_once_with()
        self.assertEqual('', self.log.output)
