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

"""What the checks of volumes and of snapshots share.

A volume of a check has an ext4 with a journal on it, which the test guest
mounts and writes to without pause. Whether a snapshot is consistent is told by
e2fsck on a copy, and by the flag of ext4 that says that its journal has to be
replayed, which a file system that was frozen does not have.
"""

import base64
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import functools
import json
import os
import pathlib
import re
import subprocess
import tempfile
from typing import Any
import unittest
import uuid

import openstack

from nova_kvm_ext.tests.cloud import base
from nova_kvm_ext.tests.cloud import ceph

_MIB = 1024 * 1024
_SECTOR = 512
# It has a journal from 2 MiB on.
_FILESYSTEM_MIB = 16
# Small writes, each to the disk, and the file anew before there is no space.
LOAD = ('cd {}; while :; do echo x >> load; sync; '
        '[ $(wc -c < load) -gt 99999 ] && : > load; done')


def environment() -> dict[str, str]:
    """The tools of ext4 are not in everybody's path."""
    return os.environ | {
        'LC_ALL': 'C', 'PATH': f'{os.environ["PATH"]}:/usr/sbin:/sbin'}


def state_of_filesystem(disk: pathlib.Path) -> str:
    """Whether the last ext4 of a raw disk is consistent.

    :param disk: with a partition table of MBR, or a file system and no more
    :returns: 'clean', or what is wrong
    """
    with open(disk, 'rb') as file:
        first = file.read(_SECTOR)
    parts = [(int.from_bytes(first[at + 8:at + 12], 'little'),
              int.from_bytes(first[at + 12:at + 16], 'little'))
             for at in range(446, 510, 16)]
    start, length = max(parts) if first[510:] == b'\x55\xaa' else (
        0, disk.stat().st_size // _SECTOR)
    with tempfile.NamedTemporaryFile(dir=disk.parent) as copy:
        subprocess.run(
            ['dd', f'if={disk}', f'of={copy.name}', f'skip={start}',
             f'count={length}', 'conv=sparse', 'status=none'], check=True)
        features = subprocess.run(
            ['dumpe2fs', '-h', copy.name], env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if features.returncode:
            return f'no ext4: {features.stdout.strip()}'
        if re.search(r'^Filesystem features:.* needs_recovery\b',
                     features.stdout, re.MULTILINE):
            return 'needs recovery'
        found = subprocess.run(
            ['e2fsck', '-fn', copy.name], env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return 'clean' if found.returncode == 0 else found.stdout.strip()


class VolumeTestCase(base.CloudTestCase):
    """A check of volumes through the APIs."""

    types: list[str]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        try:
            cls.types = sorted(
                one.name for one in cls.cloud.block_storage.types()
                if not one.name.startswith('__'))
        except openstack.exceptions.EndpointNotFound:
            raise unittest.SkipTest('The cloud has no volumes') from None

    def need(self, kind: str) -> None:
        """Skip a test where there is no such type of volumes."""
        if kind not in self.types:
            self.skipTest(f'The cloud has no volumes of type {kind}')

    def volume(self, kind: str, *, image: Any = None,
               snapshot: Any = None) -> Any:
        """A volume that is removed after the test."""
        more = {}
        if image is not None:
            more['imageRef'] = image.id
        if snapshot is not None:
            more['snapshot_id'] = snapshot.id
        volume = self.cloud.block_storage.create_volume(
            size=1, volume_type=kind, name=f'kvm-ext-{uuid.uuid4()}', **more)
        self.addCleanup(self._remove_volume, volume)
        return self.wait_for_volume(volume, 'available')

    def wait_for_volume(self, volume: Any, status: str) -> Any:
        """Wait until a volume has a status."""
        def reached() -> Any:
            found = self.cloud.block_storage.get_volume(volume.id)
            if found.status != status and found.status.startswith('error'):
                self.fail(f'The volume is {found.status}')
            return found if found.status == status else None
        return self.wait(f'volume that is {status}', reached)

    def _remove_volume(self, volume: Any) -> None:
        def free() -> bool:
            return self.cloud.block_storage.get_volume(volume.id).status in (
                'available', 'error')
        self.wait('volume that nobody has', free)
        self.cloud.block_storage.delete_volume(volume.id)
        self.wait('end of the volume', lambda: (
            self.cloud.block_storage.find_volume(volume.id) is None))

    def attach(self, server: Any, volume: Any) -> None:
        """Attach a volume, and wait."""
        self.cloud.compute.create_volume_attachment(
            server, volume_id=volume.id)
        # A volume that a check has made later goes before its server does.
        self.addCleanup(self._detach_if_attached, server, volume)
        self.wait_for_volume(volume, 'in-use')

    def _detach_if_attached(self, server: Any, volume: Any) -> None:
        if self.cloud.block_storage.get_volume(
                volume.id).status == 'in-use':
            self.detach(server, volume)

    def detach(self, server: Any, volume: Any) -> None:
        """Detach a volume, and wait."""
        self.cloud.compute.delete_volume_attachment(server, volume.id)
        self.wait_for_volume(volume, 'available')

    def snapshot_of(self, volume: Any) -> Any:
        """Have Cinder make a snapshot, also of a volume that is in use.

        :returns: the snapshot, of which status tells whether it was made
        """
        return self.snapshots_at_once([volume])[0]

    def snapshots_at_once(self, several: Iterable[Any]) -> list[Any]:
        """The same of several volumes, without waiting for each."""
        made = []
        for volume in several:
            snapshot = self.cloud.block_storage.create_snapshot(
                volume_id=volume.id, is_forced=True,
                name=f'kvm-ext-{uuid.uuid4()}')
            self.addCleanup(self.remove_snapshots, [snapshot.id])
            made.append(snapshot)
        return [self.wait_for_snapshot(snapshot) for snapshot in made]

    def wait_for_snapshot(self, snapshot: Any) -> Any:
        """Wait until Cinder has made a snapshot, or has failed to."""
        def done() -> Any:
            found = self.cloud.block_storage.get_snapshot(snapshot.id)
            return found if found.status in ('available', 'error') else None
        return self.wait('end of the snapshot', done)

    def remove_snapshots(self, ids: Iterable[str]) -> None:
        """Delete snapshots of volumes, and wait."""
        for one in ids:
            self.cloud.block_storage.delete_snapshot(one)
            self.wait('end of the snapshot', functools.partial(
                self._is_no_snapshot, one))

    def _is_no_snapshot(self, one: str) -> bool:
        return self.cloud.block_storage.find_snapshot(one) is None

    def boot_from(self, volume: Any, **wanted: Any) -> Any:
        """A server whose root disk is a volume."""
        server = self.cloud.compute.create_server(
            name=f'kvm-ext-{uuid.uuid4()}', flavor_id=self.flavor.id,
            networks='none', block_device_mapping=[{
                'uuid': volume.id, 'source_type': 'volume',
                'destination_type': 'volume', 'boot_index': 0,
                'delete_on_termination': False}], **wanted)
        self.addCleanup(self.remove, server)
        return self.wait_for_status(server, 'ACTIVE')

    def snapshots_of_image(self, image: Any) -> list[str]:
        """The snapshots of volumes that an image of a server stands for.

        Nova has the image before Cinder has made them. They are removed after
        the test.
        """
        text = self.cloud.image.get_image(image.id).properties[
            'block_device_mapping']
        found = re.findall(r'"snapshot_id": "([0-9a-f-]+)"', text)
        self.addCleanup(self.remove_snapshots, found)
        for one in found:
            self.assertEqual('available', self.wait_for_snapshot(
                self.cloud.block_storage.get_snapshot(one)).status)
        return found


class HostVolumeTestCase(VolumeTestCase, base.HostTestCase):
    """A check of volumes that looks at what lies on the storage.

    :ivar filesystem: an image of an ext4 with a journal
    """

    filesystem: Any

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        with tempfile.NamedTemporaryFile() as disk:
            os.truncate(disk.name, _FILESYSTEM_MIB * _MIB)
            subprocess.run(['mke2fs', '-q', '-F', '-t', 'ext4', disk.name],
                           env=environment(), check=True)
            cls.filesystem = cls.make_image(disk.name)

    def sh(self, server: Any, script: str) -> None:
        """Have the guest begin with a script, which it continues with."""
        self.tell_agent(server, 'guest-exec', path='/bin/sh',
                        arg=['-c', script])

    def sh_wait(self, server: Any, script: str) -> str:
        """Have the guest run a script to its end; returns what it printed."""
        pid = self.tell_agent(
            server, 'guest-exec', path='/bin/sh', arg=['-c', script],
            **{'capture-output': True})['pid']

        def ended() -> Any:
            status = self.tell_agent(server, 'guest-exec-status', pid=pid)
            return status if status['exited'] else None
        status = self.wait('end of the script in the guest', ended)
        output, errors = (base64.b64decode(status.get(name, '')).decode()
                          for name in ('out-data', 'err-data'))
        self.assertEqual(0, status.get('exitcode'), output + errors)
        return output

    def mount(self, server: Any, volume: Any) -> str:
        """Have a guest mount an attached volume; returns where."""
        place = f'/run/{volume.id[:8]}'
        # The guest may see the disk a little later than Nova has it.
        self.sh_wait(server, (
            f'mkdir -p {place}; for try in $(seq 60); do '
            f'for disk in /sys/block/vd*; do '
            f'[ "$(cut -c1-20 $disk/serial)" = {volume.id[:20]} ] || '
            f'continue; '
            f'mount -t ext4 /dev/${{disk##*/}} {place} && exit 0; done; '
            f'sleep 1; done; exit 1'))
        return place

    def write_load(self, server: Any, *places: str) -> None:
        """Have a guest write to file systems without pause."""
        for place in places:
            self.sh(server, LOAD.format(place))

    @contextlib.contextmanager
    def directory(self) -> Iterator[pathlib.Path]:
        """A directory of the cloud for copies."""
        with tempfile.TemporaryDirectory(dir=self.state / 'tmp') as name:
            yield pathlib.Path(name)

    def state_of_image(self, image: Any) -> str:
        """:func:`state_of_filesystem` of a copy of an image."""
        with self.directory() as directory:
            found = self.cloud.image.get_image(image.id)
            self.cloud.image.download_image(
                image.id, output=str(directory / 'image'))
            return self._state(directory, found.disk_format)

    def state_of_snapshot(self, snapshot_id: str) -> str:
        """:func:`state_of_filesystem` of a copy of a volume's snapshot."""
        volume = self.cloud.block_storage.get_volume(
            self.cloud.block_storage.get_snapshot(snapshot_id).volume_id)
        if volume.volume_type == 'rbd':
            return self._state_of_rbd(f'volume-{volume.id}'
                                      f'@snapshot-{snapshot_id}')
        # The volume's file has the snapshot: QEMU writes to one that is laid
        # over it.
        over = f'volume-{volume.id}.{snapshot_id}'
        info = json.loads(subprocess.run(
            ['qemu-img', 'info', '--force-share', '-f', 'qcow2', '--output',
             'json', str(self.state / 'nfs' / over)],
            check=True, stdout=subprocess.PIPE).stdout)
        return self._state_of_file(os.path.basename(info['backing-filename']),
                                   info['backing-filename-format'])

    def state_of_volume(self, volume: Any) -> str:
        """:func:`state_of_filesystem` of a copy of a volume."""
        found = self.cloud.block_storage.get_volume(volume.id)
        if found.volume_type == 'rbd':
            return self._state_of_rbd(f'volume-{volume.id}')
        # With snapshots the newest file is laid over the others.
        names = json.loads(
            (self.state / 'nfs' / f'volume-{volume.id}.info').read_text()
        ) if (self.state / 'nfs' / f'volume-{volume.id}.info').exists() else {}
        active = names.get('active', f'volume-{volume.id}')
        return self._state_of_file(active, 'qcow2' if names else 'raw')

    def _state_of_rbd(self, name: str) -> str:
        with self.directory() as directory:
            subprocess.run(
                ['rbd', '--id', 'admin', 'export', '--no-progress',
                 f'{ceph.POOLS["cinder"]}/{name}', str(directory / 'raw')],
                check=True)
            return state_of_filesystem(directory / 'raw')

    def _state_of_file(self, name: str, disk_format: str) -> str:
        with self.directory() as directory:
            subprocess.run(
                ['qemu-img', 'convert', '--force-share', '-f', disk_format,
                 '-O', 'raw', str(self.state / 'nfs' / name),
                 str(directory / 'raw')], check=True)
            return state_of_filesystem(directory / 'raw')

    def _state(self, directory: pathlib.Path, disk_format: str) -> str:
        raw = directory / 'image'
        if disk_format != 'raw':
            raw = directory / 'raw'
            subprocess.run(['qemu-img', 'convert', '-f', disk_format, '-O',
                            'raw', str(directory / 'image'), str(raw)],
                           check=True)
        return state_of_filesystem(raw)
