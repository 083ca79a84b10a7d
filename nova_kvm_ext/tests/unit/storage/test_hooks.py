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

"""What the driver does about snapshots, on Nova's fake libvirt."""

import functools
import os
import time
from typing import Any
from unittest import mock

import ddt
import fixtures
from nova.compute import power_state
from nova.compute import task_states
from nova.compute import vm_states
from nova import exception
from nova.tests.fixtures import libvirt as fakelibvirt
from oslo_utils.fixture import uuidsentinel as uuids
from testtools import matchers

from nova_kvm_ext.metrics import names
from nova_kvm_ext.tests.unit.guest_agent import agents


def no_answer() -> Exception:
    return agents.libvirt_error(
        agents.UNRESPONSIVE, agents.SILENT)


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
        self.domain.broken[what] = no_answer()
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
        self.domain.broken[what] = no_answer()
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

    def test_agent_that_goes_while_the_disk_is_copied(self):
        def go(*args, **kwargs):
            self.domain.xml = agents.XML.format('disconnected')

        self.device.rebase.side_effect = go
        self.assertRaises(exception.InstanceQuiesceFailed, self.snapshot,
                          os_require_quiesce='yes')
        self.in_order()

    def test_a_failure_is_forgotten_with_its_snapshot(self):
        self.domain.broken['fsFreeze'] = no_answer()
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
        silent = no_answer()
        self.domain.broken = {'fsThaw': silent, 'guest-fsfreeze-thaw': silent}
        self.assertRaises(exception.InstanceQuiesceFailed, self.snapshot)
        self.in_order()
        self.assertEqual([uuids.instance], self.ledger.left_behind())

    def test_late_freeze_is_thawed_at_the_end_of_the_snapshot(self):
        silent = no_answer()
        self.domain.broken = {'late:fsFreeze': silent,
                              'guest-fsfreeze-thaw': silent}
        self.write_config.side_effect = lambda xml: self.domain.broken.clear()
        self.snapshot()
        self.settled()


@ddt.ddt
class VolumeSnapshotTestCase(agents.HooksTestCase):
    """A volume that is a file; libvirt would freeze by itself."""

    def take(self, snapshot: Any, **properties: str) -> None:
        guest = mock.Mock(_domain=self.domain, snapshot=snapshot)
        xml = ("<domain><devices><disk type='file'><source file='/volume'/>"
               "<target dev='vdb' bus='virtio'/><serial>volume</serial></disk>"
               "</devices></domain>")
        guest.get_xml_desc.return_value = xml
        self.instance.system_metadata = {
            f'image_{key}': value for key, value in
            ({'hw_qemu_guest_agent': 'yes'} | properties).items()}
        self.driver._volume_snapshot_create(
            self.context, self.instance, guest, 'volume', 'new')

    def was_counted(self, **wanted: int) -> None:
        self.assertEqual(wanted, {
            '_'.join(key[1:]): number
            for key, number in self.counted(names.SNAPSHOTS).items()})
        for key in self.counted(names.SNAPSHOTS):
            self.assertEqual('volume', key[0])

    def test_success(self):
        def snapshot(conf, quiesce, **kwargs):
            self.assertFalse(quiesce)
            self.assertTrue(self.domain.frozen)
            self.assertEqual([uuids.instance], self.ledger.left_behind())

        self.take(snapshot)
        self.assertEqual(60, self.domain.timeouts['fsFreeze'])
        self.settled()
        self.assertIn('was frozen for', self.log.output)
        self.was_counted(yes_frozen_made=1)
        frozen = self.counters.counts().histograms[names.FREEZES.name]
        self.assertEqual(1, sum(frozen.counts))

    @ddt.data('fsFreeze', 'late:fsFreeze', 'guest-fsfreeze-status')
    def test_freeze_that_fails(self, what):
        self.domain.broken[what] = no_answer()
        snapshot = mock.Mock()
        self.take(snapshot)
        self.assertFalse(snapshot.call_args.kwargs['quiesce'])
        self.assertIn('is made without quiescing', self.log.output)
        snapshot.reset_mock()
        self.domain.frozen = False
        self.assertRaises(exception.QemuGuestAgentNotEnabled, self.take,
                          snapshot, os_require_quiesce='yes')
        snapshot.assert_not_called()
        self.assertIn('os_require_quiesce', self.log.output)
        self.assertFalse(self.domain.frozen)
        self.assertEqual([], self.ledger.left_behind())
        self.was_counted(no_not_frozen_made=1, no_not_frozen_failed=1)

    def test_snapshot_that_fails_until_it_is_not_quiesced(self):
        """Nova tries again; one snapshot is one, by how it was made."""
        broken = agents.libvirt_error(1, 'broken')
        self.take(mock.Mock(side_effect=[broken, None]))
        self.was_counted(no_not_frozen_made=1)
        self.assertRaises(fakelibvirt.libvirtError, self.take,
                          mock.Mock(side_effect=broken))
        self.was_counted(no_not_frozen_made=1, no_not_frozen_failed=1)

    def test_snapshot_that_fails_otherwise(self):
        """Nova does not try again."""
        self.assertRaises(RuntimeError, self.take,
                          mock.Mock(side_effect=RuntimeError('broken')))
        self.was_counted(yes_frozen_failed=1)
        self.settled()

    def test_snapshot_that_fails(self):
        snapshot = mock.Mock(side_effect=agents.libvirt_error(1, 'broken'))
        self.assertRaises(fakelibvirt.libvirtError, self.take, snapshot,
                          os_require_quiesce='yes')
        snapshot.assert_called_once()
        self.settled()
        self.was_counted(yes_frozen_failed=1)

    def test_thaw_that_fails(self):
        """QEMU writes to the new file: the snapshot did not fail."""
        self.domain.broken['guest-fsfreeze-thaw'] = no_answer()
        self.take(mock.Mock(), os_require_quiesce='yes')
        self.assertEqual([uuids.instance], self.ledger.left_behind())
        self.domain.broken.clear()
        self.driver._guest_agents.freezes.settle()
        self.settled()

    def test_guest_that_does_not_stay_frozen(self):
        def snapshot(conf, **kwargs):
            self.domain.frozen = False

        self.take(snapshot, os_require_quiesce='yes')
        self.settled()
        self.assertIn('Do not rely on that snapshot', self.log.output)
        self.assertNotIn('was frozen for', self.log.output)
        self.was_counted(no_thawed_made=1)
        self.assertEqual({}, self.counters.counts().histograms)

    def test_frozen_by_another_program(self):
        """By an operator, for example, who thaws it."""
        self.domain.frozen = True
        snapshot = mock.Mock()
        self.take(snapshot, os_require_quiesce='yes')
        self.assertFalse(snapshot.call_args.kwargs['quiesce'])
        self.assertTrue(self.domain.frozen)
        self.assertNotIn('fsFreeze', self.domain.calls)
        self.assertNotIn('guest-fsfreeze-thaw', self.domain.calls)
        self.assertNotIn('Do not rely', self.log.output)
        self.assertEqual({}, self.freezes())

    def test_frozen_by_the_api_already(self):
        """libvirt would refuse to freeze it twice."""
        self.quiesce()
        self.take(mock.Mock(), os_require_quiesce='yes')
        self.assertEqual(1, self.domain.calls.count('fsFreeze'))
        self.assertTrue(self.domain.frozen)
        self.unquiesce()
        self.settled()

    def test_no_agent(self):
        self.domain.xml = agents.NO_CHANNEL
        snapshot = mock.Mock()
        self.take(snapshot)
        self.assertFalse(snapshot.call_args.kwargs['quiesce'])
        self.assertEqual([], self.ledger.left_behind())
        self.was_counted(no_no_agent_made=1)


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

    @ddt.data(power_state.RUNNING, power_state.PAUSED)
    def test_required(self, state):
        error = self.assertRaises(
            exception.InstanceQuiesceFailed, self.suspend, state,
            os_require_quiesce='yes')
        self.assertIn('cold snapshot', str(error))
        self.assertIn('os_require_quiesce', self.log.output)

    def test_not_required(self):
        self.assertTrue(self.suspend())
        self.assertIn('The snapshot is not quiesced', self.log.output)

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


class RbdTestCase(agents.HooksTestCase):
    """A Ceph that is none."""

    def setUp(self):
        super().setUp()
        self.flags(images_rbd_pool='pool', group='libvirt')
        self.ceph = self.useFixture(fixtures.MockPatch(
            'nova.storage.rbd_utils.RBDDriver')).mock.return_value
        self.ceph.pool, self.ceph.rbd_user = 'pool', None
        self.ceph.ceph_conf = None
        self.frozen: list[tuple[str, bool]] = []
        self.ceph._connect_to_rados = self.connect = mock.Mock(
            side_effect=self.note('connect', ('client', 'ioctx')))
        self.during: Any = None
        for name in ('create_snap', 'clone', 'flatten'):
            setattr(self.ceph, name, mock.Mock(side_effect=self.note(name)))
        self.ceph.create_snap.side_effect = self.create_snap
        # librbd, as rbd_utils has it.
        self.disk = mock.Mock(
            is_protected_snap=mock.Mock(return_value=False),
            create_snap=mock.Mock(side_effect=self.snap),
            protect_snap=mock.Mock(side_effect=self.note('protect')),
            close=mock.Mock(side_effect=self.note('close')))
        self.open = self.useFixture(fixtures.MockPatch(
            'nova.storage.rbd_utils.rbd', create=True, Image=mock.Mock(
                side_effect=self.note('open', self.disk)),
            Error=RuntimeError, ImageNotFound=KeyError)).mock.Image
        self.useFixture(fixtures.MockPatch(
            'nova.virt.libvirt.imagebackend.Rbd._get_parent_pool',
            return_value='images'))
        self.useFixture(fixtures.MockPatch(
            'nova.virt.libvirt.imagebackend.Rbd.cleanup_direct_snapshot'))

    def create_snap(self, volume: str, name: str, pool: str | None = None,
                    protect: bool = False) -> None:
        """As Nova's: of the copy, or of a guest that cannot be frozen."""
        self.assertTrue(protect)
        if self.domain.active and self.domain.xml == (
                agents.XML.format('connected')):
            self.assertNotEqual('volume', volume)
        self.note(f'create_snap {volume}')()

    def snap(self, name: str) -> None:
        """librbd's, of the guest's disk."""
        self.note('create_snap volume')()
        if self.during:
            self.during()

    def note(self, name: str, result: Any = None) -> Any:
        """What is done, and whether the guest is frozen meanwhile."""
        def call(*args: Any, **kwargs: Any) -> Any:
            self.frozen.append((name, self.domain.frozen))
            return result

        return call


class RbdSnapshotTestCase(RbdTestCase):
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
        asked: list[str] = []

        def spy(name: str, call: Any) -> Any:
            def ask(*args: Any, **kwargs: Any) -> Any:
                if self.domain.frozen:
                    asked.append(name)
                return call(*args, **kwargs)

            return ask

        host = self.driver._host
        for name in ('get_guest', 'get_connection'):
            self.useFixture(fixtures.MockPatchObject(
                host, name, spy(name, getattr(host, name))))
        self.useFixture(fixtures.MockPatchObject(
            self.domain, 'XMLDesc', spy('XMLDesc', self.domain.XMLDesc)))
        self.snapshot()
        calls = self.domain.calls
        self.assertEqual(
            ['fsFreeze', 'fsThaw'],
            calls[calls.index('fsFreeze'):calls.index('fsThaw') + 1])
        # Nor is libvirt asked for the guest, or for what it can do.
        self.assertEqual([], asked)
        self.assertNotIn('guest-fsfreeze-status',
                         calls[calls.index('fsFreeze'):])

    def test_not_required(self):
        self.domain.broken['fsFreeze'] = no_answer()
        self.snapshot()
        self.assertIn('is not quiesced', self.log.output)

    def test_required(self):
        self.instance.system_metadata['image_os_require_quiesce'] = 'yes'
        self.domain.broken['fsFreeze'] = no_answer()
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
        silent = no_answer()
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
        self.domain.broken['fsFreeze'] = no_answer()
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
        self.ceph.clone.assert_not_called()

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


@ddt.ddt
class ConsistencyTestCase(RbdTestCase):
    """What the image of a snapshot says, by Nova's own snapshot()."""

    def setUp(self):
        super().setUp()
        self.glance = mock.Mock()
        self.glance.get.return_value = {'name': 'snap'}
        self.driver._image_api._real = self.glance
        self.type, self.path = 'rbd', 'pool/volume'
        self.useFixture(fixtures.MockPatch(
            'nova.virt.libvirt.utils.find_disk',
            side_effect=lambda guest: (self.path, 'raw')))
        self.useFixture(fixtures.MockPatch(
            'nova.virt.libvirt.utils.get_disk_type_from_path',
            side_effect=lambda path: self.type))
        self.state = self.useFixture(fixtures.MockPatchObject(
            self.guest, 'get_power_state',
            return_value=power_state.RUNNING)).mock
        self.useFixture(fixtures.MockPatchObject(
            self.driver._host, 'has_min_version', return_value=True))
        for name in ('suspend', '_resume_guest_after_snapshot'):
            self.useFixture(fixtures.MockPatchObject(self.driver, name))
        self.useFixture(fixtures.MockPatch(
            'nova.virt.libvirt.imagebackend.Rbd.snapshot_extract'))
        self.useFixture(fixtures.MockPatch(
            'nova.virt.libvirt.utils.file_open', mock.mock_open()))
        self.flags(snapshots_directory=self.useFixture(
            fixtures.TempDir()).path, group='libvirt')
        self.instance.kernel_id = self.instance.ramdisk_id = ''

    def of_file(self) -> None:
        """The disk is a file, of which Nova makes a live snapshot."""
        def live(driver: Any, ctx: Any, instance: Any, guest: Any,
                 disk: str, out: str, source: str, image: str,
                 meta: Any) -> None:
            # As Nova's does, see LiveSnapshotTestCase.
            try:
                driver.quiesce(ctx, instance, meta)
            except exception.NovaException:
                return
            if self.during:
                self.during()
            driver.unquiesce(ctx, instance, meta)

        self.type, self.path = 'qcow2', '/disk'
        self.useFixture(fixtures.MockPatch(
            'nova.virt.libvirt.driver.LibvirtDriver._live_snapshot', live))
        self.useFixture(fixtures.MockPatchObject(
            self.driver.image_backend, 'by_libvirt_path', return_value=mock.
            Mock(direct_snapshot=mock.Mock(side_effect=NotImplementedError))))

    def said(self) -> dict[str, str]:
        """What the image is given in the end."""
        self.driver.snapshot(self.context, self.instance, uuids.snapshot,
                             lambda **kwargs: None)
        call = self.glance.update.call_args
        self.assertEqual(uuids.snapshot, call.args[1])
        found = call.args[2]['properties']
        # Nova's own are there too.
        self.assertEqual('snapshot', found['image_location'])
        return {name: value for name, value in found.items()
                if name.startswith('kvm_ext_')}

    def check(self, answer: str, reason: str, seconds: str = '0.00',
              version: str = 'unknown') -> None:
        found = self.said()
        if seconds == 'some':
            seconds = found['kvm_ext_frozen_seconds']
            self.assertLess(float(seconds), 10)
        self.assertEqual({
            'kvm_ext_quiesced': answer, 'kvm_ext_quiesced_reason': reason,
            'kvm_ext_frozen_seconds': seconds,
            'kvm_ext_guest_agent_version': version}, found)

    @ddt.data(False, True)
    def test_quiesced(self, file):
        if file:
            self.of_file()
        self.check('yes', 'frozen by the guest agent', 'some', '7.2')
        # The agent is asked for its version before the freeze.
        self.assertLess(self.domain.calls.index('guest-info'),
                        self.domain.calls.index('fsFreeze'))
        self.settled()

    @ddt.data(False, True)
    def test_no_agent(self, file):
        self.domain.xml = agents.XML.format('disconnected')
        if file:
            self.of_file()
        self.check('no', 'no guest agent is connected')

    @ddt.data('fsFreeze', 'guest-fsfreeze-status', 'guest-info')
    def test_agent_that_fails(self, what):
        self.domain.broken[what] = no_answer()
        for file in (False, True):
            if file:
                self.of_file()
            self.check('no', 'the guest agent did not freeze the guest',
                       'unknown')
        self.assertFalse(self.domain.frozen)

    @ddt.data(False, True)
    def test_guest_that_does_not_stay_frozen(self, file):
        self.during = (
            lambda: setattr(self.domain, 'frozen', False))
        if file:
            self.of_file()
        self.check('no', 'the guest did not stay frozen', 'some', '7.2')

    @ddt.data(False, True)
    def test_storage_that_stalls(self, file):
        """How long it was frozen is told by its thaw, not by the stall."""
        def stall():
            self.expire()
            self.driver._guest_agents.freezes.settle()
            thawed.append(time.monotonic())
            time.sleep(0.2)

        thawed: list[float] = []
        started = time.monotonic()
        self.during = stall
        if file:
            self.of_file()
        found = self.said()
        self.assertEqual(('no', 'the guest did not stay frozen'), (
            found['kvm_ext_quiesced'], found['kvm_ext_quiesced_reason']))
        self.assertThat(
            float(found['kvm_ext_frozen_seconds']),
            matchers.LessThan(601.1 + thawed[0] - started))

    @ddt.data(False, True)
    def test_some_of_it_does_not_stay_frozen(self, file):
        """Somebody in the guest thaws one file system of two."""
        self.during = lambda: setattr(self.domain, 'count', 1)
        if file:
            self.of_file()
        self.check('no', 'the guest did not stay frozen', 'some', '7.2')

    @ddt.data(False, True)
    def test_nothing_that_can_be_frozen(self, file):
        self.domain.count = 0
        if file:
            self.of_file()
        self.check('unknown', 'the guest agent found no file system to '
                   'freeze', 'some', '7.2')
        self.settled()
        self.assertIn('not known whether the snapshot is quiesced',
                      self.log.output)

    @ddt.data(False, True)
    def test_agent_that_is_silent_in_the_end(self, file):
        """The thaw works, and its answer is lost."""
        def silent():
            self.domain.during['fsThaw'] = lambda: setattr(
                self.domain, 'frozen', False)
            self.domain.broken['fsThaw'] = no_answer()

        self.during = silent
        if file:
            self.of_file()
        self.check('unknown', 'the guest agent did not say whether the guest '
                   'stayed frozen', 'some', '7.2')

    def test_guest_that_cannot_be_thawed(self):
        self.domain.broken = {'fsThaw': no_answer(),
                              'guest-fsfreeze-thaw': no_answer()}
        self.check('unknown', 'the guest agent did not say whether the guest '
                   'stayed frozen', 'unknown', '7.2')

    def test_thaw_that_has_to_be_tried_again(self):
        """The guest was frozen until the second thaw, by its number."""
        self.during = lambda: self.domain.broken.update(
            {'fsThaw': no_answer()})
        self.check('yes', 'frozen by the guest agent', 'some', '7.2')

    def test_version_that_the_agent_does_not_say(self):
        answers = self.domain.command
        self.driver._guest_agents.limits.__dict__['command'] = (
            lambda domain, request, *args:
            '{"return": {"version": "\\u001b[31m"}}'
            if 'guest-info' in request else answers(domain, request, *args))
        self.check('yes', 'frozen by the guest agent', 'some')

    @ddt.data(exception.Forbidden, exception.ImageUnacceptable)
    def test_direct_snapshot_that_is_thrown_away(self, error):
        """What counts is how the snapshot was made in the end."""
        self.ceph.clone.side_effect = error(image_id='i', reason='r')
        self.check('no', 'cold snapshot: suspended and copied')
        self.assertIn('fsFreeze', self.domain.calls)

    @ddt.data(False, True)
    def test_cold(self, file):
        self.flags(disable_libvirt_livesnapshot=True, group='workarounds')
        # Ceph makes a snapshot then too, of a guest that does not run.
        self.driver.suspend.side_effect = lambda *args: setattr(
            self.domain, 'active', False)
        if file:
            self.of_file()
        self.check('no', 'cold snapshot: suspended and copied')
        self.assertFalse(self.domain.active)

    @ddt.data(False, True)
    def test_guest_that_is_off(self, file):
        """Was it shut down, or did it crash?"""
        self.state.return_value = power_state.SHUTDOWN
        self.domain.active = False
        if file:
            self.of_file()
        self.check('unknown', 'the guest did not run')

    def test_server_that_is_suspended(self):
        self.instance.vm_state = vm_states.SUSPENDED
        self.state.return_value = power_state.SHUTDOWN
        self.domain.active = False
        self.check('no', 'cold snapshot: suspended and copied')

    def test_guest_that_goes_off_meanwhile(self):
        self.domain.active = False
        self.check('unknown', 'the guest did not run')

    def test_the_next_snapshot_knows_nothing_of_this_one(self):
        self.said()
        self.driver._image_api.update(self.context, uuids.snapshot, {})
        self.assertEqual({}, self.glance.update.call_args.args[2])

    def test_what_its_own_image_says_is_forgotten(self):
        """The server was booted from a snapshot."""
        self.instance.system_metadata.update(
            image_kvm_ext_quiesced='yes', image_os_distro='debian')
        self.instance.obj_reset_changes()
        self.driver._guest_started(self.instance, self.guest)
        self.assertEqual(
            {'image_hw_qemu_guest_agent': 'yes', 'image_os_distro': 'debian'},
            self.instance.system_metadata)
        self.assertIn('system_metadata', self.instance.obj_what_changed())
