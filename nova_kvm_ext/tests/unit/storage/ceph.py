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

from typing import Any
from unittest import mock

import fixtures

from nova_kvm_ext.tests.unit.guest_agent import agents


def no_answer() -> Exception:
    return agents.libvirt_error(
        agents.UNRESPONSIVE, agents.SILENT)


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
