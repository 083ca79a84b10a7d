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

"""What images, disks and volumes of a cloud lie on.

The one place that knows how Glance, Nova and Cinder are told about storage.
Images and disks are files, or all lie in the Ceph of
:mod:`nova_kvm_ext.tests.cloud.ceph`. Volumes, where there are any, are of two
types beside each other: RBD, and files on an NFS share.

A kernel need not have an NFS client. A program in the place of mount mounts
the directory that the server would export instead: what Cinder, Nova, libvirt
and QEMU do is the same, but for the network. The directory is a file system of
its own, because Nova asks whether a path is a mount point. bindfs mounts it
under the type of a network's file system, without which libvirt refuses live
migrations (its virFileIsSharedFS()); where there is no FUSE it is bound.

It starts nothing.
"""

import dataclasses
import json
import pathlib
import shutil
import textwrap
from typing import Any

from nova_kvm_ext.tests.cloud import ceph
from nova_kvm_ext.tests.cloud import sandbox

KINDS = ('files', 'ceph')
"""Where images and the disks of guests are."""

TYPES = ('rbd', 'nfs')
"""Types of volumes, and Cinder's backends for them."""

NFS_IS_SHARED = bool(
    shutil.which('bindfs') and pathlib.Path('/dev/fuse').exists())
"""Whether libvirt takes what stands for NFS for a network's file system."""

EXPORT = '/export'
_FILE = 'storage.json'
_NFS_MIB = 8192
# Nothing is kept: another compute writes to the same files.
_BIND = ('bindfs -o subtype=glusterfs,allow_other,direct_io,attr_timeout=0,'
         'entry_timeout=0,negative_timeout=0' if NFS_IS_SHARED else
         '/bin/mount --no-mtab --bind')

Options = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Storage:
    """The storage of one cloud.

    :ivar kind: one of KINDS
    :ivar volumes: whether there is Cinder, with volumes of all TYPES
    """

    kind: str = KINDS[0]
    volumes: bool = False

    @property
    def has_ceph(self) -> bool:
        """Whether there is a Ceph."""
        return self.kind == 'ceph' or self.volumes

    @property
    def computes(self) -> tuple[str, ...]:
        """The directories that are another one on each compute."""
        return ('mnt',) if self.volumes else ()

    def write(self, state: pathlib.Path) -> None:
        """Write it down, and the programs that it needs in the cloud."""
        (state / 'etc' / _FILE).write_text(json.dumps(
            dataclasses.asdict(self)))
        if self.volumes:
            _write_programs(state)
            for compute in sandbox.COMPUTES:
                # QEMU must see what is mounted later.
                with open(state / compute / 'libvirt-etc' / 'qemu.conf', 'a'
                          ) as file:
                    file.write('namespaces = []\n')
            (state / 'etc' / 'nfs_shares').write_text(f'{_share()}\n')

    def nfs_commands(self, state: pathlib.Path, compute: str) -> list[str]:
        """The commands that put the NFS server's directory in place."""
        if not self.volumes:
            return []
        disk, mount = state / 'nfs.img', 'mount --no-mtab'
        directory = state / 'nfs'
        commands = [f'mkdir -p {directory} {state}/{compute}/mnt {state}/mnt',
                    f'{mount} --bind {state}/{compute}/mnt {state}/mnt']
        if compute == sandbox.COMPUTES[0]:
            commands += [
                f'truncate --size={_NFS_MIB}M {disk}',
                f'mke2fs -q -t ext4 -m 0 -E lazy_itable_init=1 {disk}',
                f'{mount} -t ext4 -o loop {disk} {directory}']
        else:
            # What the first mounts now is not seen here.
            commands.append(
                f'{mount} -t ext4 $(losetup --noheadings --output NAME '
                f'--associated {disk}) {directory}')
        return commands

    def glance(self, directory: pathlib.Path) -> Options:
        """What glance-api.conf says of it.

        :param directory: of images that are files
        """
        options: Options = {
            'DEFAULT': {'enabled_backends': 'files:file'},
            'glance_store': {'default_backend': self.kind},
            'files': {'filesystem_store_datadir': directory},
        }
        if self.kind == 'ceph':
            options['DEFAULT'] = {
                'enabled_backends': 'files:file,ceph:rbd',
                # Without it Nova makes cold snapshots alone.
                'show_image_direct_url': True}
            options['ceph'] = {
                'rbd_store_ceph_conf': ceph.CONF,
                'rbd_store_user': 'glance',
                'rbd_store_pool': ceph.POOLS['glance']}
        return options

    def nova(self, state: pathlib.Path) -> Options:
        """What a compute's nova.conf says of it."""
        libvirt: dict[str, Any] = {}
        options: Options = {'libvirt': libvirt}
        if self.kind == 'ceph':
            libvirt |= {
                'images_type': 'rbd',
                'images_rbd_pool': ceph.POOLS['nova'],
                'images_rbd_ceph_conf': ceph.CONF,
                'images_rbd_glance_store_name': 'ceph',
                'rbd_user': 'nova',
                'rbd_secret_uuid': ceph.SECRETS['nova']}
        if self.volumes:
            # The same path on each compute, or no guest could migrate.
            libvirt['nfs_mount_point_base'] = state / 'mnt'
            options['cinder'] = {
                'catalog_info': 'block-storage::publicURL'}
        return options

    def cinder(self, state: pathlib.Path) -> Options:
        """What cinder.conf says of it."""
        return {
            'DEFAULT': {'enabled_backends': ','.join(TYPES),
                        'default_volume_type': TYPES[0]},
            'rbd': {
                'volume_driver': 'cinder.volume.drivers.rbd.RBDDriver',
                'volume_backend_name': 'rbd',
                'rbd_ceph_conf': ceph.CONF,
                'rbd_user': 'cinder',
                'rbd_pool': ceph.POOLS['cinder'],
                'rbd_secret_uuid': ceph.SECRETS['cinder']},
            'nfs': {
                'volume_driver': 'cinder.volume.drivers.nfs.NfsDriver',
                'volume_backend_name': 'nfs',
                'nfs_shares_config': state / 'etc' / 'nfs_shares',
                'nfs_mount_point_base': state / 'lib' / 'cinder' / 'mnt',
                'nfs_snapshot_support': True,
                'nas_secure_file_operations': False,
                'nas_secure_file_permissions': False}}


def of(state: pathlib.Path) -> Storage:
    """The storage of a cloud that is up."""
    return Storage(**json.loads((state / 'etc' / _FILE).read_text()))


def _share() -> str:
    return f'{sandbox.ADDRESSES[sandbox.COMPUTES[0]]}:{EXPORT}'


def _write_programs(state: pathlib.Path) -> None:
    """What stands for programs that a machine need not have."""
    directory = state / 'bin'
    directory.mkdir(exist_ok=True)
    # Cinder asks for mount.nfs by itself to see whether it is installed.
    for name, script in (
            ('mount.nfs', 'exit 0'),
            ('mount', f'''\
                kind=
                previous=
                for last in "$@"; do
                    [ "$previous" != -t ] || kind=$last
                    share=$previous
                    previous=$last
                done
                [ "$kind" = nfs ] || exec /bin/mount "$@"
                if [ "$share" != {_share()} ]; then
                    echo "mount.nfs: access denied by server: $share" >&2
                    exit 32
                fi
                exec {_BIND} {state}/nfs "$last"'''),
            # All is root here. Cinder asks for this one all the same.
            ('sudo', '''\
                [ "$1" != cinder-rootwrap ] || shift 2
                exec "$@"''')):
        path = directory / name
        path.write_text('#!/bin/sh\n' + textwrap.dedent(script) + '\n')
        path.chmod(0o755)
