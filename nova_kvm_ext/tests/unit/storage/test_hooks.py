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

"""Snapshots through the driver: when a guest is frozen, and cold ones."""

import functools
from typing import Any
from unittest import mock

import ddt
import fixtures
from nova.compute import power_state
from nova.compute import task_states
from nova.compute import vm_states
from nova import exception
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_kvm_ext.metrics import names
from nova_kvm_ext.tests.unit.guest_agent import agents
from nova_kvm_ext.tests.unit.storage import ceph


@ddt.ddt
class LiveSnapshotTestCase(agents.HooksTestCase):
    """Nova's own code, whose end is a ``finally`` that freezes and thaws."""

    def setUp(self):
        super().setUp()
        self.device = mock.Mock()
        self.device.is_job_complete.return_value = True
        self.snapshot_guest = mock.Mock()
        self.snapshot_guest.get_block_device.return_value = self.device
        for path in ('nova.virt.libvirt.utils.get_disk_size',
                     'nova.virt.libvirt.utils.get_disk_backing_file',
                     'nova.virt.libvirt.utils.create_image',
                     'oslo_utils.fileutils.delete_if_exists'):
            self.useFixture(fixtures.MockPatch(path))
        self.extract = self.useFixture(fixtures.MockPatch(
            'nova.virt.libvirt.utils.extract_snapshot')).mock
        self.chown = self.useFixture(fixtures.MockPatch(
            'nova.privsep.path.chown')).mock
        self.write_config = self.useFixture(fixtures.MockPatchObject(
            self.driver._host, 'write_instance_config')).mock
        self.useFixture(fixtures.MockPatchObject(
            self.driver, '_delete_guest_configuration'))

    def snapshot(self, **properties: str) -> None:
        self.driver._live_snapshot(
            self.context, self.instance, self.snapshot_guest, '/disk', '/out',
            'qcow2', 'qcow2', self.image(**properties))

    def test_success(self):
        frozen = {}
        for name, call in (('abort', self.device.abort_job),
                           ('chown', self.chown),
                           ('config', self.write_config)):
            def note(*args: Any, name: str = name, **kwargs: Any) -> None:
                frozen[name] = self.domain.frozen

            call.side_effect = note
        self.snapshot()
        # What Nova does after the mirror is stopped needs no freeze.
        self.assertEqual(
            {'abort': True, 'chown': False, 'config': False}, frozen)
        self.assertEqual(1, self.domain.calls.count('fsThaw'))
        self.assertIn('fsFreeze', self.domain.calls)
        self.extract.assert_called_once()
        self.settled()
        self.assertIn('was frozen for', self.log.output)

    @ddt.data('abort_job', 'chown', 'write_config')
    def test_error_between(self, what):
        broken = (self.device.abort_job if what == 'abort_job' else
                  getattr(self, what))
        # The first abort_job() comes before all else.
        broken.side_effect = (
            [None, RuntimeError('broken')] if what == 'abort_job'
            else RuntimeError('broken'))
        error = self.assertRaises(RuntimeError, self.snapshot)
        self.assertEqual('broken', str(error))
        self.assertIn('fsFreeze', self.domain.calls)
        self.settled()

    def in_order(self) -> None:
        """What Nova does after the copy has been done."""
        self.assertEqual(2, self.device.abort_job.call_count)
        self.chown.assert_called_once()
        self.write_config.assert_called_once()

    @ddt.data('fsFreeze', 'late:fsFreeze', 'guest-fsfreeze-status')
    def test_required(self, what):
        self.domain.broken[what] = ceph.no_answer()
        error = self.assertRaises(
            exception.InstanceQuiesceFailed, self.snapshot,
            os_require_quiesce='yes')
        self.assertIn('Guest agent' if what != 'guest-fsfreeze-status' else
                      'did not answer', str(error))
        self.in_order()
        self.extract.assert_not_called()
        self.assertFalse(self.domain.frozen)
        self.assertEqual([], self.ledger.left_behind())
        self.assertIn('os_require_quiesce', self.log.output)

    @ddt.data('fsFreeze', 'late:fsFreeze', 'guest-fsfreeze-status')
    def test_not_required(self, what):
        self.domain.broken[what] = ceph.no_answer()
        self.snapshot()
        self.in_order()
        self.extract.assert_called_once()
        self.assertFalse(self.domain.frozen)
        self.assertEqual([], self.ledger.left_behind())
        self.assertIn('The snapshot is not quiesced', self.log.output)

    def test_required_of_an_agent_that_is_not_there(self):
        """Before anything is copied."""
        self.domain.xml = agents.XML.format('disconnected')
        self.assertRaises(exception.QemuGuestAgentNotEnabled, self.snapshot,
                          os_require_quiesce='yes')
        self.device.rebase.assert_not_called()

    def test_snapshot_without_an_agent_is_counted_so(self):
        self.domain.xml = agents.XML.format('disconnected')
        with testtools.ExpectedException(exception.QemuGuestAgentNotEnabled):
            with self.driver._snapshots.taking(uuids.image):
                self.snapshot(os_require_quiesce='yes')
        self.assertEqual({('image', 'no', 'no_agent', 'failed'): 1},
                         self.counted(names.SNAPSHOTS))

    def test_agent_that_goes_while_the_disk_is_copied(self):
        def go(*args, **kwargs):
            self.domain.xml = agents.XML.format('disconnected')

        self.device.rebase.side_effect = go
        self.assertRaises(exception.InstanceQuiesceFailed, self.snapshot,
                          os_require_quiesce='yes')
        self.in_order()

    def test_a_failure_is_forgotten_with_its_snapshot(self):
        self.domain.broken['fsFreeze'] = ceph.no_answer()
        self.device.abort_job.side_effect = [None, RuntimeError('broken')]
        self.assertRaises(RuntimeError, self.snapshot,
                          os_require_quiesce='yes')
        self.domain.broken = {}
        self.device.abort_job.side_effect = None
        self.snapshot(os_require_quiesce='yes')
        self.settled()

    @ddt.data(True, False)
    def test_guest_that_does_not_stay_frozen(self, required):
        def thaw():
            self.domain.frozen = False

        # As long as QEMU mirrors the disk.
        self.device.abort_job.side_effect = thaw
        if required:
            self.assertRaises(exception.InstanceQuiesceFailed, self.snapshot,
                              os_require_quiesce='yes')
            self.extract.assert_not_called()
        else:
            self.snapshot()
            self.extract.assert_called_once()
        self.in_order()
        self.settled()
        self.assertIn('did not stay frozen' if not required else
                      'os_require_quiesce', self.log.output)
        self.assertNotIn('was frozen for', self.log.output)

    def test_guest_that_cannot_be_thawed(self):
        """Nova learns of it when it thaws, with all in order."""
        silent = ceph.no_answer()
        self.domain.broken = {'fsThaw': silent, 'guest-fsfreeze-thaw': silent}
        self.assertRaises(exception.InstanceQuiesceFailed, self.snapshot)
        self.in_order()
        self.assertEqual([uuids.instance], self.ledger.left_behind())

    def test_late_freeze_is_thawed_at_the_end_of_the_snapshot(self):
        silent = ceph.no_answer()
        self.domain.broken = {'late:fsFreeze': silent,
                              'guest-fsfreeze-thaw': silent}
        self.write_config.side_effect = lambda xml: self.domain.broken.clear()
        self.snapshot()
        self.settled()


@ddt.ddt
class ColdSnapshotTestCase(agents.HooksTestCase):
    """Nova suspends the guest, and copies what is on its disk."""

    def suspend(self, state: int = power_state.RUNNING, live: bool = False,
                **properties: str) -> bool:
        """Whether Nova came to suspend the guest."""
        self.instance.system_metadata = {
            f'image_{key}': value for key, value in
            ({'hw_qemu_guest_agent': 'yes'} | properties).items()}
        with mock.patch.object(self.driver, 'suspend') as suspend:
            self.driver._suspend_guest_for_snapshot(
                self.context, live, state, self.instance)
        return suspend.called

    @ddt.data(power_state.RUNNING, power_state.PAUSED, power_state.SUSPENDED,
              power_state.CRASHED, power_state.NOSTATE)
    def test_required(self, state):
        """Also of a guest that sleeps, which Nova does not suspend."""
        error = self.assertRaises(
            exception.InstanceQuiesceFailed, self.suspend, state,
            os_require_quiesce='yes')
        self.assertIn('cold snapshot', str(error))
        self.assertIn('os_require_quiesce', self.log.output)

    def test_not_required(self):
        self.assertTrue(self.suspend())
        self.assertIn('The snapshot is not quiesced', self.log.output)

    def test_guest_that_sleeps(self):
        self.assertFalse(self.suspend(power_state.SUSPENDED))
        self.assertIn('The snapshot is not quiesced', self.log.output)

    def test_suspended_server_that_runs_again(self):
        """An operator has started the guest with virsh: it can be frozen."""
        self.instance.vm_state = vm_states.SUSPENDED
        self.assertFalse(self.suspend(live=True, os_require_quiesce='yes'))
        self.assertNotIn('not quiesced', self.log.output)

    def test_without_an_agent(self):
        self.domain.xml = agents.NO_CHANNEL
        self.assertTrue(self.suspend())
        self.assertNotIn('not quiesced', self.log.output)

    def test_guest_that_is_off(self):
        """It has written all that it had."""
        self.assertFalse(self.suspend(power_state.SHUTDOWN,
                                      os_require_quiesce='yes'))

    def test_live(self):
        self.assertFalse(self.suspend(live=True, os_require_quiesce='yes'))

    @ddt.data('yes', 'no')
    def test_server_that_is_suspended(self, required):
        """What it has not written is in its saved memory."""
        self.instance.vm_state = vm_states.SUSPENDED
        self.instance.task_state = task_states.IMAGE_SNAPSHOT
        call = functools.partial(
            self.suspend, power_state.SHUTDOWN, os_require_quiesce=required)
        if required == 'yes':
            self.assertRaises(exception.InstanceQuiesceFailed, call)
        else:
            self.assertFalse(call())
        self.assertIn('Resume the server first', self.log.output)

    def test_server_that_is_shelved(self):
        self.instance.vm_state = vm_states.SUSPENDED
        self.instance.task_state = task_states.SHELVING
        self.assertFalse(self.suspend(power_state.SHUTDOWN,
                                      os_require_quiesce='yes'))
