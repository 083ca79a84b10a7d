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

"""Reads what a guest's QEMU process has of vhost-net.

Returns frozen data; :mod:`nova_kvm_ext.vhost.proof` judges it. Tests can
replace the root of all paths.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import functools
import os
import re

from nova_kvm_ext.host import model
from nova_kvm_ext.vhost import proof

# libvirt src/qemu/qemu_process.c: where the PID of a domain's QEMU is, for
# everybody to read, under libvirtd and virtqemud alike.
_PID_FILES = 'run/libvirt/qemu'

_LOGS = 'var/log/libvirt/qemu'
# src/logging/virtlogd.conf: how many older files virtlogd keeps (max_backups),
# and what one may have at most (max_size), with room for more.
_OLDER_LOGS = 3
_LOG_BYTES = 4 * 2 ** 20
# src/qemu/qemu_domain.c, qemuDomainLogAppendMessage at each start.
_STARTED = re.compile(rb'^\S+ \S+: starting up libvirt version', re.MULTILINE)
# QEMU hw/net/virtio-net.c, virtio_net_vhost_status, behind time and program.
# It names no card.
_FELL_BACK = re.compile(
    rb'^(\S+ )?[^\s:]+: unable to start vhost net: -?\d+: falling back on '
    rb'userspace virtio', re.MULTILINE)
# drivers/vhost/vhost.c names its workers by the owner's PID.
_WORKER = re.compile('vhost-([0-9]+)')


def read_vhost(guests: Iterable[proof.Running], root: str = '/',
               log_of: Callable[[str], bytes | None] | None = None
               ) -> dict[str, model.VhostFacts]:
    """Check what running guests have of vhost-net.

    libvirt has no call that tells the process of a domain. Its file with the
    PID is read, and the process is believed if it was started with the
    domain's ``-uuid``. Only for guests that are not found so (libvirt in
    another PID namespace, or its /run not to be seen) all processes are
    walked through, once for all of them.

    :param log_of: gives what :func:`read_log` gives for a domain's name; None
        for libvirt's logs below ``root``
    :returns: facts by UUID
    """
    proc = os.path.join(root, 'proc')
    guests = list(guests)
    pids = {guest.uuid: _pid_of(guest, root, proc) for guest in guests}
    missing = [uuid for uuid, pid in pids.items() if pid is None]
    if missing:
        pids |= _search(missing, proc)
    names = {guest.uuid: guest.name for guest in guests}
    of_kernel = _kernel_workers(proc)
    if log_of is None:
        log_of = functools.partial(read_log, root=root)
    return {uuid: model.VhostFacts() if pid is None else
            _look(pid, proc, _fall_backs(log_of(names[uuid])), of_kernel)
            for uuid, pid in pids.items()}


def read_fall_backs(name: str, root: str = '/') -> int | None:
    """How often QEMU has said that it does not use vhost-net after all.

    A guest's driver starts vhost-net, long after QEMU has opened it. Where
    that fails QEMU moves the packets itself, keeps descriptor and thread, and
    writes one line to its log.

    :param name: of the domain
    :returns: how often since this QEMU was started; None where the log
        cannot be read (it is root's)
    """
    return _fall_backs(read_log(name, root))


def _fall_backs(text: bytes | None) -> int | None:
    return None if text is None else len(_FELL_BACK.findall(text))


def read_log(name: str, root: str = '/') -> bytes | None:
    """What is in the log of a guest's QEMU since that was started.

    :param name: of the domain
    :returns: from libvirt's line about the start on; all that there is where
        that line is not found; None where the log cannot be read
    """
    if '/' in name:
        return None
    path = os.path.join(root, _LOGS, f'{name}.log')
    found = None
    for older in range(-1, _OLDER_LOGS):
        try:
            with open(path if older < 0 else f'{path}.{older}', 'rb') as f:
                f.seek(max(0, os.fstat(f.fileno()).st_size - _LOG_BYTES))
                text = f.read(_LOG_BYTES)
        except OSError:
            break
        starts = [start.start() for start in _STARTED.finditer(text)]
        found = text[starts[-1] if starts else 0:] + (found or b'')
        if starts:
            break
    return found


def _pid_of(guest: proof.Running, root: str, proc: str) -> int | None:
    """The QEMU of a guest, as libvirt's own file says."""
    # The kernel itself could not have a PID of more digits.
    with contextlib.suppress(OSError, ValueError):
        with open(os.path.join(
                root, _PID_FILES, f'{guest.name}.pid')) as f:
            pid = int(f.read(20))
        if guest.uuid in _uuids(proc, str(pid)):
            return pid
    return None


def _uuids(proc: str, pid: str) -> list[str]:
    """What a process has been started with as ``-uuid``."""
    with open(os.path.join(proc, pid, 'cmdline'), 'rb') as f:
        words = f.read().decode(errors='replace').split('\0')
    return [value for option, value in zip(words, words[1:])
            if option == '-uuid']


def _search(uuids: Iterable[str], proc: str) -> dict[str, int | None]:
    """The QEMU of each guest, from all processes."""
    found: dict[str, list[int]] = {uuid: [] for uuid in uuids}
    for name in os.listdir(proc):
        if not name.isdecimal():
            continue
        # A process may end while it is looked at.
        with contextlib.suppress(OSError):
            for uuid in _uuids(proc, name):
                if uuid in found:
                    found[uuid].append(int(name))
    # Not one of several: any user can start a program with such words.
    return {uuid: pids[0] if len(pids) == 1 else None
            for uuid, pids in found.items()}


def _look(pid: int, proc: str, fall_backs: int | None,
          of_kernel: Mapping[int, list[str]] | None) -> model.VhostFacts:
    workers = list(_own_workers(proc, pid)) or (of_kernel or {}).get(pid, [])
    return model.VhostFacts(
        pid, _descriptors(proc, pid),
        len(workers) if workers or of_kernel is not None else None,
        fall_backs, _switches(workers))


def _read_comm(task: str) -> str:
    """The name of a process or thread."""
    with open(f'{task}/comm') as f:
        return f.read().strip()


def _own_workers(proc: str, pid: int) -> Iterator[str]:
    """Threads of a process that are vhost workers, as from Linux 6.4 on.

    Since then a worker is a thread of the device's owner (kernel
    /vhost_task.c); 6.18 lets an administrator choose (drivers/vhost/vhost.c,
    fork_from_owner).

    :returns: their directories
    """
    tasks = os.path.join(proc, str(pid), 'task')
    with contextlib.suppress(OSError):
        for name in os.listdir(tasks):
            task = f'{tasks}/{name}'
            # Not this PID alone: a PID namespace has other numbers.
            if _WORKER.fullmatch(_read_comm(task)):
                yield task


def _kernel_workers(proc: str) -> dict[int, list[str]] | None:
    """Threads of the kernel that work for a process, as before Linux 6.4.

    They have the owner's PID in their name and are children of kthreadd,
    which can have thousands.

    :returns: their directories by that PID; None where kernel threads are
        not seen, as in a PID namespace
    """
    kthreadd = os.path.join(proc, '2')
    try:
        if _read_comm(kthreadd) != 'kthreadd':
            return None
    except OSError:
        return None
    try:
        with open(os.path.join(kthreadd, 'task', '2', 'children')) as f:
            names = f.read().split()
    except OSError:
        # A kernel without CONFIG_PROC_CHILDREN.
        names = [name for name in os.listdir(proc) if name.isdecimal()]
    found: dict[int, list[str]] = {}
    for name in names:
        with contextlib.suppress(OSError):
            task = f'{proc}/{name}'
            worker = _WORKER.fullmatch(_read_comm(task))
            if worker:
                found.setdefault(int(worker[1]), []).append(task)
    return found


def _switches(workers: Iterable[str]) -> int | None:
    """How often vhost workers have waited for work, all together."""
    total = None
    for task in workers:
        with contextlib.suppress(OSError):
            with open(os.path.join(task, 'status')) as f:
                found = re.search(r'^voluntary_ctxt_switches:\s*(\d+)',
                                  f.read(), re.MULTILINE)
            if found is not None:
                total = (total or 0) + int(found[1])
    return total


def _descriptors(proc: str, pid: int) -> int | None:
    """How many descriptors of /dev/vhost-net a process has open."""
    directory = os.path.join(proc, str(pid), 'fd')
    try:
        links = []
        for name in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):
                links.append(os.readlink(f'{directory}/{name}'))
    except OSError:
        return None
    # The directory before it depends on the mount namespace.
    return sum(link.rpartition('/')[2] == 'vhost-net' for link in links)
