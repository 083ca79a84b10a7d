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

"""What the image of a snapshot says of quiescing."""

import time
from typing import Any
from unittest import mock

import ddt
import fixtures
from nova.compute import power_state
from nova.compute import vm_states
from nova import exception
from oslo_utils.fixture import uuidsentinel as uuids
from testtools import matchers

from nova_kvm_ext.metrics import names
from nova_kvm_ext.tests.unit.guest_agent import agents
from nova_kvm_ext.tests.unit.storage import ceph


@ddt.ddt
class ConsistencyTestCase(ceph.RbdTestCase):
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
        self.domain.broken[what] = ceph.no_answer()
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
            self.domain.broken['fsThaw'] = ceph.no_answer()

        self.during = silent
        if file:
            self.of_file()
        self.check('unknown', 'the guest agent did not say whether the guest '
                   'stayed frozen', 'some', '7.2')

    def test_guest_that_cannot_be_thawed(self):
        self.domain.broken = {'fsThaw': ceph.no_answer(),
                              'guest-fsfreeze-thaw': ceph.no_answer()}
        self.check('unknown', 'the guest agent did not say whether the guest '
                   'stayed frozen', 'unknown', '7.2')

    def test_thaw_that_has_to_be_tried_again(self):
        """The guest was frozen until the second thaw, by its number."""
        self.during = lambda: self.domain.broken.update(
            {'fsThaw': ceph.no_answer()})
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

    @ddt.data(power_state.SUSPENDED, power_state.CRASHED)
    def test_cold_of_a_guest_that_sleeps(self, state):
        """The guest still runs in QEMU; Nova copies its disk."""
        self.flags(disable_libvirt_livesnapshot=True, group='workarounds')
        self.state.return_value = state
        self.of_file()
        self.check('no', 'cold snapshot: suspended and copied')

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

    @ddt.data(('fsFreeze', 'not_frozen'), (None, 'no_agent'))
    @ddt.unpack
    def test_required_snapshot_that_fails(self, broken, reason):
        """It is counted by what it failed for."""
        self.instance.system_metadata['image_os_require_quiesce'] = 'yes'
        if broken is None:
            self.domain.xml = agents.XML.format('disconnected')
        else:
            self.domain.broken[broken] = ceph.no_answer()
        self.assertRaises(exception.NovaException, self.said)
        self.assertEqual({('image', 'no', reason, 'failed'): 1},
                         self.counted(names.SNAPSHOTS))

    def test_snapshot_that_fails(self):
        """Nova is told, and the next one knows nothing of it."""
        error = exception.ImageNotFound(image_id='i')
        self.glance.update.side_effect = error
        self.assertIs(error, self.assertRaises(
            exception.ImageNotFound, self.said))
        self.assertFalse(self.domain.frozen)
        self.glance.update.side_effect = None
        self.driver._image_api.update(self.context, uuids.snapshot, {})
        self.assertEqual({}, self.glance.update.call_args.args[2])

    def test_the_next_snapshot_knows_nothing_of_this_one(self):
        self.said()
        self.driver._image_api.update(self.context, uuids.snapshot, {})
        self.assertEqual({}, self.glance.update.call_args.args[2])

    @ddt.data('ture', 'required', 'yes\x1b[31m', '2')
    def test_wish_that_nova_does_not_understand(self, written):
        self.instance.system_metadata['image_os_require_quiesce'] = written
        self.driver._guest_started(self.instance, self.guest)
        self.assertIn('KVML401', self.log.output)
        self.assertIn('os_require_quiesce', self.log.output)
        self.assertNotIn('\x1b', self.log.output)

    @ddt.data('yes', ' True ', '1', 'ON', 'no', 'false', '0', '', None)
    def test_wish_that_nova_understands(self, written):
        if written is not None:
            self.instance.system_metadata['image_os_require_quiesce'] = written
        self.driver._guest_started(self.instance, self.guest)
        self.assertNotIn('os_require_quiesce', self.log.output)
        # As our code, and Nova's, reads it.
        self.assertEqual(
            written in ('yes', ' True ', '1', 'ON'),
            bool(self.driver._requires_quiesce(self.instance.image_meta)))

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
