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

"""Direct snapshots in Ceph, of a quiesced guest."""

import os

from nova import exception
from oslo_utils.fixture import uuidsentinel as uuids
from testtools import matchers

from nova_kvm_ext.tests.unit.storage import ceph


class RbdSnapshotTestCase(ceph.RbdTestCase):
    """Nova's direct snapshot of an RBD volume."""

    def snapshot(self) -> str:
        disk = self.driver.image_backend.by_libvirt_path(
            self.instance, 'pool/volume', image_type='rbd')
        return disk.direct_snapshot(
            self.context, 'snap', 'raw', 'copy', uuids.image)

    def test_frozen_no_longer_than_needed(self):
        self.assertIn('copy', self.snapshot())
        self.assertEqual([
            ('connect', False), ('open', False), ('create_snap volume', True),
            ('protect', False), ('close', False), ('clone', False),
            ('flatten', False), ('create_snap copy', False)], self.frozen)
        self.disk.protect_snap.assert_called_once_with('snap')
        self.ceph._disconnect_from_rados.assert_called_once_with(
            'client', 'ioctx')
        self.settled()

    def test_no_question_while_it_is_frozen(self):
        """The answer of the thaw tells whether the guest was frozen."""
        asked = self.asked_while_frozen()
        self.snapshot()
        self.assertEqual(['fsThaw'], asked)
        self.assertNotIn('guest-fsfreeze-status', self.domain.calls[
            self.domain.calls.index('fsFreeze'):])

    def test_not_required(self):
        self.domain.broken['fsFreeze'] = ceph.no_answer()
        self.snapshot()
        self.assertIn('is not quiesced', self.log.output)

    def test_required(self):
        self.instance.system_metadata['image_os_require_quiesce'] = 'yes'
        self.domain.broken['fsFreeze'] = ceph.no_answer()
        self.assertRaises(exception.InstanceQuiesceFailed, self.snapshot)
        self.assertEqual([('connect', False), ('open', False),
                          ('close', False)], self.frozen)
        self.ceph._disconnect_from_rados.assert_called_once_with(
            'client', 'ioctx')

    def test_ceph_fails(self):
        self.disk.create_snap.side_effect = RuntimeError('broken')
        self.assertRaises(RuntimeError, self.snapshot)
        self.settled()
        self.disk.close.assert_called_once_with()

    def test_disk_that_is_gone(self):
        self.open.side_effect = KeyError('not found')
        self.assertRaises(KeyError, self.snapshot)
        self.assertNotIn('fsFreeze', self.domain.calls)

    def test_ceph_does_not_answer(self):
        """The guest is not frozen while Nova waits for a connection."""
        self.connect.side_effect = RuntimeError('timed out')
        self.assertRaises(RuntimeError, self.snapshot)
        self.assertNotIn('fsFreeze', self.domain.calls)

    def test_thaw_fails(self):
        """The snapshot is good, and Nova must get to clean up after it."""
        silent = ceph.no_answer()
        self.domain.broken = {'fsThaw': silent, 'guest-fsfreeze-thaw': silent}
        self.snapshot()
        self.assertEqual([uuids.instance], self.ledger.left_behind())

    def test_limit_and_words(self):
        """Those of a snapshot, not of Nova's API."""
        def entry(*args, **kwargs):
            uuid, = self.ledger.left_behind()
            with open(os.path.join(self.ledger._directory, uuid)) as f:
                self.assertThat(f.read(), matchers.EndsWith(', snapshot\n'))

        self.domain.during['fsFreeze'] = entry
        self.snapshot()
        self.assertEqual(60, self.domain.timeouts['fsFreeze'])
        self.instance.system_metadata['image_os_require_quiesce'] = 'yes'
        self.domain.broken['fsFreeze'] = ceph.no_answer()
        error = self.assertRaises(exception.InstanceQuiesceFailed,
                                  self.snapshot)
        self.assertEqual(1, str(error).count('Failed to quiesce'))
        self.assertIn('os_require_quiesce', self.log.output)

    def thaw_meanwhile(self) -> None:
        self.during = lambda: setattr(self.domain, 'frozen', False)

    def test_guest_that_does_not_stay_frozen(self):
        self.thaw_meanwhile()
        self.snapshot()
        self.settled()
        self.assertIn('The snapshot is not quiesced', self.log.output)
        self.assertNotIn('was frozen for', self.log.output)
        self.ceph.remove_snap.assert_not_called()

    def test_guest_that_must_stay_frozen(self):
        self.thaw_meanwhile()
        self.instance.system_metadata['image_os_require_quiesce'] = 'yes'
        self.assertRaises(exception.InstanceQuiesceFailed, self.snapshot)
        self.settled()
        self.ceph.remove_snap.assert_called_once_with(
            'volume', 'snap', ignore_errors=True, force=True)
        self.disk.protect_snap.assert_not_called()
        self.ceph.clone.assert_not_called()

    def test_frozen_by_another_program(self):
        """It thaws the guest, and the snapshot is quiesced."""
        self.domain.frozen = True
        self.instance.system_metadata['image_os_require_quiesce'] = 'yes'
        self.assertIn('copy', self.snapshot())
        self.assertTrue(self.domain.frozen)
        self.assertNotIn('KVML40', self.log.output)
        self.assertEqual({}, self.freezes())

    def test_snapshot_that_is_protected_already(self):
        self.disk.is_protected_snap.return_value = True
        self.assertIn('copy', self.snapshot())
        self.disk.protect_snap.assert_not_called()

    def stall(self) -> None:
        """Ceph does not answer, and the periodic work continues."""
        self.driver._guest_agents.freezes.settle()
        self.assertTrue(self.domain.frozen)
        self.expire()
        self.driver._guest_agents.freezes.settle()
        self.assertFalse(self.domain.frozen)
        self.assertIn('KVML408', self.log.output)

    def test_ceph_that_stalls_for_longer_than_a_guest_bears(self):
        self.during = self.stall
        self.snapshot()
        self.settled()
        self.assertIn('The snapshot is not quiesced', self.log.output)

    def test_ceph_that_stalls_and_quiescing_is_required(self):
        self.during = self.stall
        self.instance.system_metadata['image_os_require_quiesce'] = 'yes'
        self.assertRaises(exception.InstanceQuiesceFailed, self.snapshot)
        self.settled()
        self.ceph.remove_snap.assert_called_once_with(
            'volume', 'snap', ignore_errors=True, force=True)

    def test_guest_that_is_off(self):
        self.domain.active = False
        self.instance.system_metadata['image_os_require_quiesce'] = 'yes'
        self.snapshot()
        self.assertNotIn('fsFreeze', self.domain.calls)

    def test_other_disks_are_left_alone(self):
        disk = self.driver.image_backend.by_libvirt_path(
            self.instance, '/disk', image_type='qcow2')
        self.assertEqual('/disk', disk.path)
