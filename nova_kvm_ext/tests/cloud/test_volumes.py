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

"""Volumes of Cinder: attached, booted from, moved with their server.

Through the public APIs alone, but for what a guest is told to write. A cloud
that has no volume type of the name is not asked for it.
"""

import os

import ddt

from nova_kvm_ext.tests.cloud import base
from nova_kvm_ext.tests.cloud import storage
from nova_kvm_ext.tests.cloud import test_migration
from nova_kvm_ext.tests.cloud import volumes


class VolumeTestCase(volumes.VolumeTestCase):

    def test_several_on_one_server(self):
        server = self.boot()
        self.wait_for_agent(server)
        several = [self.volume(kind) for kind in self.types for _ in range(2)]
        for volume in several:
            self.attach(server, volume)
        # In the guest too, after a start that has all of them.
        self.cloud.compute.reboot_server(server, 'HARD')
        self.wait_for_status(server, 'ACTIVE')
        self.wait_for_agent(server)
        self.assertEqual(1 + len(several), len(self.report(server).disks))
        for volume in several:
            self.detach(server, volume)
        self.wait_for_agent(server)


@ddt.ddt
class VolumeBackedTestCase(test_migration.Migrating, volumes.VolumeTestCase):
    """A server whose root disk is a volume."""

    @ddt.data(*storage.TYPES)
    def test_life(self, kind):
        self.need(kind)
        server = self.boot_from(self.volume(kind, image=self.image),
                                host=self.first)
        self.wait_for_agent(server)
        self.attach(server, self.volume(kind))
        if kind != 'nfs' or base.STATE not in os.environ or (
                storage.NFS_IS_SHARED):
            self.move(server, self.second)
            self.move(server, self.first)
        larger = self.make_flavor(
            vcpus=2, ram=384, extra_specs=self.pinned(self.first))
        self.cloud.compute.resize_server(server, larger.id)
        self.wait_for_status(server, 'VERIFY_RESIZE')
        self.cloud.compute.confirm_server_resize(server)
        self.wait_for_status(server, 'ACTIVE')
        self.wait_for_agent(server)
        self.assertEqual(2, self.report(server).cpus)
        self._rescue(server)

    def _rescue(self, server):
        image = self.make_image(base.guest_file(), properties={
            'hw_qemu_guest_agent': 'yes', 'hw_rescue_device': 'disk',
            'hw_rescue_bus': 'virtio'})
        # Since this version servers on volumes can be rescued.
        answer = self.cloud.compute.post(
            f'/servers/{server.id}/action', microversion='2.87',
            json={'rescue': {'rescue_image_ref': image.id}})
        base.openstack.exceptions.raise_from_response(answer)
        self.wait_for_status(server, 'RESCUE')
        # Its own disks stay where they are, and the rescue disk is the last.
        self.assertEqual(3, len(self.report(server).disks))
        self.cloud.compute.unrescue_server(server)
        self.wait_for_status(server, 'ACTIVE')
        self.wait_for_agent(server)


@ddt.ddt
class HostVolumeTestCase(volumes.HostVolumeTestCase):
    """While the guest writes to it, and what is on it afterwards."""

    @ddt.data(*storage.TYPES)
    def test_attached_and_detached_under_load(self, kind):
        self.need(kind)
        server = self.boot()
        self.wait_for_agent(server)
        self.write_load(server, '/data')
        volume = self.volume(kind, image=self.filesystem)
        for _ in range(2):
            place = self._attach_and_write(server, volume)
            # Of a volume that is written to.
            snapshot = self.snapshot_of(volume)
            self.assertEqual('available', snapshot.status)
            self._unmount(server, place)
            self.detach(server, volume)
        self.assert_thawed(server)
        self.assertEqual('clean', self.state_of_volume(volume))

    @ddt.data(*storage.TYPES)
    def test_several_under_load(self, kind):
        """Three volumes: snapshots of all at once, and detached one by one.

        Each is detached while the guest writes to the others.
        """
        self.need(kind)
        server = self.boot()
        self.wait_for_agent(server)
        several = [self.volume(kind, image=self.filesystem) for _ in range(3)]
        places = [self._attach_and_write(server, volume)
                  for volume in several]
        self.assertEqual(
            ['available'] * 3, [snapshot.status for snapshot in
                                self.snapshots_at_once(several)])
        self.assert_thawed(server)
        for volume, place in zip(several, places):
            self._unmount(server, place)
            self.detach(server, volume)
            self.assertEqual('clean', self.state_of_volume(volume))
        self.assert_thawed(server)
        self.assert_sound()

    def _attach_and_write(self, server, volume):
        """Have a guest write to a volume; returns where it is mounted."""
        self.attach(server, volume)
        place = self.mount(server, volume)
        self.write_load(server, place)
        self.sh_wait(server, f'sleep 2; test -s {place}/load')
        return place

    def _unmount(self, server, place):
        """End what writes to a volume, and unmount it.

        A process that was killed may have to end a write first.
        """
        self.sh_wait(server, (
            f'for proc in /proc/[0-9]*; do '
            f'[ "$(readlink $proc/cwd)" = {place} ] && '
            f'kill -9 ${{proc##*/}}; done; '
            f'for i in $(seq 30); do umount {place} && exit; sleep 1; done; '
            f'exit 1'))

    @ddt.data(*storage.TYPES)
    def test_snapshots_of_a_volume_backed_server_are_quiesced(self, kind):
        server = self.boot_from(self.volume(kind, image=self.image))
        self.wait_for_agent(server)
        data = self.volume(kind, image=self.filesystem)
        self.attach(server, data)
        self.write_load(server, '/data', self.mount(server, data))
        image = self.snapshot(server)
        self.assertIsNotNone(image, self.events(server, 'createImage'))
        made = self.snapshots_of_image(image)
        self.assertEqual(2, len(made))
        self.assertEqual(
            ['clean', 'clean'], [self.state_of_snapshot(one) for one in made])
        self.assert_thawed(server)
        self.assert_sound()
