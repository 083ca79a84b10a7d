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

"""The only reader of /dev, /proc, libvirt's files and of what is installed.

Facts in, frozen data out; no decision and no remedy is made here. Paths are
taken below a root that tests can replace.
"""

from collections.abc import Iterable
import contextlib
import errno
import glob
import importlib.util
import os
import re
import stat
from typing import Any

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.cpu import usable
from nova_kvm_ext.host import model


def read_device(path: str, root: str = '/') -> model.DeviceFacts:
    """Look at a character device and try to open it.

    Opening is the only honest test: a node can exist whose module cannot be
    loaded, and opening the node of a module that is not loaded loads it.
    """
    real_path = os.path.join(root, path.lstrip('/'))
    try:
        status = os.stat(real_path)
    except OSError:
        return model.DeviceFacts(path, present=False)
    if not stat.S_ISCHR(status.st_mode):
        return model.DeviceFacts(path, present=False)
    open_error = None
    try:
        os.close(os.open(real_path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        open_error = errno.errorcode.get(e.errno or 0, str(e.errno))
    return model.DeviceFacts(
        path, present=True, mode=stat.S_IMODE(status.st_mode),
        owner=status.st_uid, group=status.st_gid, open_error=open_error)


def read_vhost(uuids: Iterable[str],
               root: str = '/') -> dict[str, model.VhostFacts]:
    """Look at what running guests have of vhost-net, in one walk of /proc.

    libvirt has no call that tells the process of a domain, and its files of
    PIDs are not for everybody, so QEMU is found by the ``-uuid`` that libvirt
    starts it with.

    The worker of a vhost device is a kernel thread named ``vhost-PID``, with
    the owner's PID. From Linux 6.4 on it is a thread of the owner itself
    (kernel/vhost_task.c); 6.18 lets an administrator choose (drivers/vhost
    /vhost.c, fork_from_owner).

    :param uuids: of domains
    """
    proc = os.path.join(root, 'proc')
    pids: dict[str, list[int]] = {uuid: [] for uuid in uuids}
    workers: dict[str, int] = {}
    for name in os.listdir(proc):
        if not name.isdecimal():
            continue
        # A process may end while it is looked at.
        with contextlib.suppress(OSError):
            with open(os.path.join(proc, name, 'cmdline'), 'rb') as f:
                words = f.read().decode(errors='replace').split('\0')
            if words == ['']:   # As kernel threads have it.
                worker = _read_comm(proc, name)
                workers[worker] = workers.get(worker, 0) + 1
            for option, value in zip(words, words[1:]):
                if option == '-uuid' and value in pids:
                    pids[value].append(int(name))
    sees_kernel_threads = 'kthreadd' in workers
    found = {}
    for uuid, candidates in pids.items():
        # Not one of several: any user can start a program with such words.
        if len(candidates) != 1:
            found[uuid] = model.VhostFacts()
            continue
        pid, = candidates
        threads = workers.get(f'vhost-{pid}', 0) + _own_workers(proc, pid)
        found[uuid] = model.VhostFacts(
            pid, _vhost_descriptors(proc, pid),
            threads if threads or sees_kernel_threads else None)
    return found


def _read_comm(proc: str, task: str) -> str:
    """The name of a process or thread."""
    with open(os.path.join(proc, task, 'comm')) as f:
        return f.read().strip()


def _own_workers(proc: str, pid: int) -> int:
    """How many of a process's own threads are vhost workers."""
    count = 0
    with contextlib.suppress(OSError):
        tasks = os.path.join(str(pid), 'task')
        for task in os.listdir(os.path.join(proc, tasks)):
            # Not this PID alone: a PID namespace has other numbers.
            if re.fullmatch(r'vhost-[0-9]+', _read_comm(
                    proc, os.path.join(tasks, task))):
                count += 1
    return count


def _vhost_descriptors(proc: str, pid: int) -> int | None:
    """How many descriptors of /dev/vhost-net a process has open."""
    directory = os.path.join(proc, str(pid), 'fd')
    try:
        names = os.listdir(directory)
        links = []
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                links.append(os.readlink(os.path.join(directory, name)))
    except OSError:
        return None
    # The directory before it depends on the mount namespace.
    return sum(os.path.basename(link) == 'vhost-net' for link in links)


def read_install() -> model.InstallFacts:
    """Look whether Nova's loader would find ``nova.virt.kvm_ext``.

    Imports the ``nova`` and ``nova.virt`` packages, not the driver.
    """
    import nova_kvm_ext
    beside_us = os.path.join(
        os.path.dirname(os.path.dirname(nova_kvm_ext.__file__)),
        'nova', 'virt', 'kvm_ext')
    door = beside_us if os.path.isdir(beside_us) else None
    try:
        nova_virt = importlib.util.find_spec('nova.virt')
        found = importlib.util.find_spec('nova.virt.kvm_ext')
    except ImportError as e:
        return model.InstallFacts((), door, str(e))
    directories = tuple(nova_virt.submodule_search_locations or ()
                        ) if nova_virt else ()
    return model.InstallFacts(
        directories, door,
        None if found else 'nova.virt has no module kvm_ext')


def read_cpu_map(root: str = '/') -> cpu_map.CPUMap | None:
    """Read libvirt's CPU map for x86.

    :returns: None where libvirt's files are not on this machine
    """
    documents = []
    for path in glob.glob(
            os.path.join(root, 'usr/share/libvirt/cpu_map/x86_*.xml')):
        with open(path, 'rb') as f:
            documents.append(f.read())
    return cpu_map.parse(documents) if documents else None


def read_cpu_host(connection: Any, virt_type: str, arch: str,
                  machine: str | None = None, emulator: str | None = None,
                  root: str = '/') -> usable.Host:
    """Ask libvirt what CPUs guests can have.

    :param connection: libvirt.virConnect, or Nova's proxy of one
    :param machine: machine type; None for libvirt's default
    :param emulator: path of the QEMU program; None for libvirt's default
    :raises errors.HostError: libvirt's answer is nonsense
    :raises libvirt.libvirtError: there are no such guests on this host
    """
    answer = connection.getDomainCapabilities(
        emulator, arch, machine, virt_type, 0)
    return usable.Host(
        virt_type, capabilities.parse(answer), read_cpu_map(root))
