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

"""Snapshots of volumes that are files."""

from typing import Any
from unittest import mock

import ddt
from nova import exception
from nova.tests.fixtures import libvirt as fakelibvirt
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext.metrics import names
from nova_kvm_ext.tests.unit.guest_agent import agents
from nova_kvm_ext.tests.unit.storage import ceph


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
        self.domain.broken[what] = ceph.no_answer()
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
        self.domain.broken['guest-fsfreeze-thaw'] = ceph.no_answer()
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

    @ddt.data('connected', 'disconnected')
    def test_no_agent_and_required(self, state):
        """Nova refuses it, and names neither the property nor the reason."""
        self.domain.xml = (agents.XML.format(state) if state != 'connected'
                           else agents.NO_CHANNEL)
        snapshot = mock.Mock()
        self.assertRaises(exception.QemuGuestAgentNotEnabled, self.take,
                          snapshot, os_require_quiesce='yes')
        snapshot.assert_not_called()
        self.assertIn('KVML402', self.log.output)
        self.assertIn('os_require_quiesce', self.log.output)
        self.was_counted(no_no_agent_failed=1)

    @ddt.data('yes', 'no')
    def test_guest_that_is_off(self, required):
        """libvirt makes the snapshot without any agent, as plain Nova's."""
        self.domain.active = False
        self.domain.xml = agents.XML.format('disconnected').replace(
            " id='1'", '')
        snapshot = mock.Mock()
        self.take(snapshot, os_require_quiesce=required)
        self.assertFalse(snapshot.call_args.kwargs['quiesce'])
        self.assertEqual([], self.domain.calls)
        self.assertNotIn('KVML40', self.log.output)
        self.was_counted(unknown_not_running_made=1)

    def test_guest_whose_memory_is_saved(self):
        """What the guest has not written is in that memory."""
        self.domain.active, self.domain.saved = False, True
        self.domain.xml = agents.XML.format('disconnected').replace(
            " id='1'", '')
        self.domain.broken['guest-fsfreeze-status'] = agents.libvirt_error(
            fakelibvirt.VIR_ERR_OPERATION_INVALID, 'domain is not running')
        self.assertRaises(exception.QemuGuestAgentNotEnabled, self.take,
                          mock.Mock(), os_require_quiesce='yes')
