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

"""Moves a guest back to its host, and removes what it leaves here.

libvirt migrates the guest from host to host (peer to peer), as for Nova. Disks
are copied if they are on a file system of this host alone.
"""

from collections.abc import Callable
from collections.abc import Collection
import contextlib
import dataclasses
import fcntl
import os
import re
import shutil
import struct
import threading
import time
from typing import Any

import libvirt

from nova_kvm_ext import errors
from nova_kvm_ext.guests import pauses
from nova_kvm_ext.guests import reasons
from nova_kvm_ext import live_xml
from nova_kvm_ext.migration import elsewhere
from nova_kvm_ext.migration import repair

_LOCAL = frozenset((
    'ext2', 'ext3', 'ext4', 'xfs', 'btrfs', 'zfs', 'f2fs', 'jfs', 'tmpfs',
    'overlay', 'bcachefs'))
"""Types of file systems that a single host has for itself (mount(8))."""

_SHARED = frozenset((
    'nfs', 'nfs4', 'cifs', 'smb3', 'ceph', 'fuse.ceph', 'fuse.glusterfs',
    'glusterfs', 'lustre', 'gfs2', 'ocfs2', 'gpfs', 'beegfs',
    'fuse.moosefs', 'fuse.lizardfs', 'virtiofs', '9p', 'afs', 'pvfs2',
    'fuse.quobyte', 'vmhgfs'))
"""Those that hosts share."""

TLS, TUNNELLED, PLAIN = 'tls', 'tunnelled', ''
"""How memory is sent: by Nova's ``[libvirt] live_migration_with_native_tls``,
by ``live_migration_tunnelled``, or by neither."""

_PROTECTION = {
    TLS: (libvirt.VIR_MIGRATE_TLS, '--tls '),
    TUNNELLED: (libvirt.VIR_MIGRATE_TUNNELLED, '--tunnelled '),
    PLAIN: (0, ''),
}

_OCTAL = re.compile(rb'\\([0-3][0-7]{2})')

_LOCK_TRIES = 5

_FLOCK = 'hhqqi'
"""struct flock of 64-bit Linux."""

_PROGRESS = 5.0


@dataclasses.dataclass(frozen=True)
class Here:
    """The guest as this host's libvirt has it.

    :ivar runs: whether it runs or is paused here
    :ivar busy: whether libvirt has a job with it, or it is still arriving
    :ivar disks: of its live XML
    :ivar shut_off: whether it is defined here and does not run
    :ivar hangs: whether its QEMU owes libvirt an answer; then its disks are
        not known
    :ivar torn: whether its post-copy migration has failed, so that each host
        has a part of its memory
    """

    runs: bool
    busy: bool = False
    disks: tuple[reasons.Disk, ...] = ()
    shut_off: bool = False
    hangs: bool = False
    torn: bool = False


_TORN = (
    (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED))
"""States at the destination and at the source after that
(libvirt-domain.html#virDomainMigrateStartPostCopy)."""


def look(connection: Any, uuid: str) -> Here:
    """Ask this host's libvirt.

    :raises libvirt.libvirtError: it does not say
    """
    try:
        domain = connection.lookupByUUIDString(uuid)
    except libvirt.libvirtError as e:
        if e.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return Here(False)
        raise
    if not domain.isActive():
        return Here(False, shut_off=True)
    state, reason = domain.state(0)
    if (state, reason) in _TORN:
        return Here(True, torn=True)
    xml = live_xml.read(domain)
    if xml is None:
        return Here(True, hangs=True)
    arrives = state == libvirt.VIR_DOMAIN_PAUSED and (
        reason in elsewhere.ARRIVING)
    return Here(True, arrives or pauses.has_job(domain), reasons.disks(xml))


def file_system_type(path: str, mounts: str = '/proc/self/mountinfo') -> str:
    """Type of the file system that a path lies on, '' where not known.

    :param mounts: file as in proc(5), "/proc/pid/mountinfo"
    """
    real, best, found = os.path.realpath(path), '', ''
    # In bytes: a path may be of any, and the kernel writes some as \\ooo.
    with contextlib.suppress(OSError), open(mounts, 'rb') as f:
        for line in f:
            before, _, after = line.partition(b' - ')
            point = os.fsdecode(_OCTAL.sub(
                lambda match: bytes([int(match[1], 8)]), before.split()[4]))
            inside = point == '/' or real == point or (
                real.startswith(point + '/'))
            # The last one that is mounted on the same place counts.
            if inside and len(point) >= len(best):
                best, found = point, os.fsdecode(after.split()[0])
    return found


def is_local(path: str) -> bool | None:
    """Whether a path lies on a file system of this host's own."""
    kind = file_system_type(path)
    return True if kind in _LOCAL else False if kind in _SHARED else None


def files_of(disks: Collection[reasons.Disk]) -> list[reasons.Disk]:
    """The disks in files that can be copied.

    libvirt copies none that is read-only ("Cannot migrate empty or read-only
    disk"), and Nova has it copy none of these and no shared ones.
    """
    return [disk for disk in disks
            if disk.place is reasons.Place.FILE and disk.source and
            not disk.fixed]


def to_copy(disks: Collection[reasons.Disk]) -> list[str]:
    """Targets of the disks that the other host does not have.

    :raises errors.HostError: for one that cannot be told
    """
    found = []
    for disk in files_of(disks):
        local = is_local(disk.source)
        if local is None:
            raise errors.HostError(
                f'Whether {errors.clean(disk.source)} is shared between the '
                f'hosts is not known (file system '
                f'{file_system_type(disk.source) or "not found"}).',
                'Say so with --copy-disks yes or no.')
        if local:
            found.append(disk.target)
    return found


def by_hand(uuid: str, uri: str, disks: Collection[str],
            protection: str = PLAIN) -> str:
    copy = (f'--copy-storage-inc --migrate-disks {",".join(disks)} '
            if disks else '')
    return (f'virsh migrate --live --p2p --persistent --undefinesource '
            f'{_PROTECTION[protection][1]}{copy}{uuid} {uri}')


def move(connection: Any, uuid: str, uri: str, disks: Collection[str],
         say: Callable[[str], None], protection: str = PLAIN) -> None:
    """Move a guest to the host of another libvirt. Ctrl-C aborts.

    :param uri: of the other libvirt, as this one reaches it
    :param disks: targets of those to copy
    :param say: told the progress
    :param protection: TLS, TUNNELLED or PLAIN
    :raises libvirt.libvirtError: the guest stays here
    """
    domain = connection.lookupByUUIDString(uuid)
    flags = (libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER |
             libvirt.VIR_MIGRATE_PERSIST_DEST |
             libvirt.VIR_MIGRATE_UNDEFINE_SOURCE |
             _PROTECTION[protection][0])
    params: dict[str, Any] = {}
    if disks:
        flags |= libvirt.VIR_MIGRATE_NON_SHARED_INC
        params[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = list(disks)
    failed: list[Exception] = []
    # Where eventlet has patched the threads of Python 3.13, join() with a
    # limit raises eventlet's Timeout, a BaseException, at the limit.
    ended = threading.Event()

    def migrate() -> None:
        try:
            domain.migrateToURI3(uri, params, flags)
        except Exception as e:
            failed.append(e)  # for the thread that waits
        finally:
            ended.set()

    # A thread: Ctrl-C does not get through to a call of libvirt's.
    thread = threading.Thread(target=migrate, daemon=True)
    thread.start()
    said = time.monotonic()
    try:
        while not ended.wait(0.2):
            if time.monotonic() - said >= _PROGRESS:
                said = time.monotonic()
                say(_progress(domain))
    except KeyboardInterrupt:
        with contextlib.suppress(libvirt.libvirtError):
            domain.abortJob()
        thread.join()
        raise
    if failed:
        raise failed[0]


def _progress(domain: Any) -> str:
    try:
        info = domain.jobInfo()
        return (f'{(info[3] - info[5]) >> 20} of {info[3] >> 20} MiB moved'
                if info[3] else 'the move begins')
    except libvirt.libvirtError:
        return 'the move comes to its end'


def files(instances_path: str, uuid: str) -> repair.Files:
    """What there is of a guest in this host's instances_path."""
    path = os.path.join(instances_path, uuid)
    if not os.path.isdir(path):
        return repair.Files()
    in_use = []
    for name in sorted(os.listdir(path)):
        file = os.path.join(path, name)
        if name.startswith('disk') and name != 'disk.info' and (
                os.path.isfile(file)) and not _is_free(file):
            in_use.append(name)
    return repair.Files(path, is_local(path), tuple(in_use))


def _is_free(file: str) -> bool:
    """Whether no QEMU has a disk open, by the locks that QEMU takes.

    It holds some on bytes from 100 on of each image that it has open
    (block/file-posix.c of QEMU, RAW_LOCK_PERM_BASE). The kernel shows them
    whatever container or namespace that QEMU is in.
    """
    for tries in range(_LOCK_TRIES):
        # A QEMU that has just ended takes a moment to let go.
        time.sleep(1 if tries else 0)
        try:
            with open(file, 'rb') as f:
                # fcntl(2): would a lock on all of it be granted?
                answer = fcntl.fcntl(f, fcntl.F_GETLK, struct.pack(
                    _FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except OSError:
            return False
        if struct.unpack(_FLOCK, answer)[0] == fcntl.F_UNLCK:
            return True
    return False


def remove(path: str, uuid: str) -> None:
    """Remove a guest's directory.

    :raises OSError: not all of it is gone
    """
    if os.path.basename(path) != uuid or os.path.islink(path):
        raise OSError(f'{path} is not a directory of an instance')
    shutil.rmtree(path)
