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

"""Reads whether libvirt sees the same files as this process.

Kolla and OpenStack-Helm run libvirt and QEMU in one container and
nova-compute in another. A file that is missing in this process' file system
(QEMU, an account, a device) then says nothing about guests.

Returns frozen data; makes no decision. Three answers: yes, no, and not known.
:func:`read` needs the process that serves libvirt's socket, and its root
directory, which only root may read. :func:`ask` needs no privilege, but
libvirt's answer.
"""

import contextlib
import dataclasses
import os
import socket
import struct
import tempfile
from typing import Any
import urllib.parse

from nova_kvm_ext import errors
from nova_kvm_ext.host import kernel_facts
from nova_kvm_ext.host import model

_SOCKETS = ('virtqemud-sock', 'libvirt-sock')
"""In the order in which libvirt tries them where both exist. It is a build
option of libvirt (remote_mode) which one comes first; both daemons are of
one installation."""

_LOCAL = ('', 'unix')
"""Transports that reach a daemon of this machine by a socket in the file
system (https://libvirt.org/uri.html, "Transport configuration")."""

_COMPARED = ('/', '/usr', '/etc', '/etc/libvirt', '/run/libvirt',
             '/var/lib/libvirt', '/dev', '/dev/kvm')
"""What is one and the same file where two processes have the same file
system, as far as the checks read it. A container has another root, or other
directories mounted over it; a service with PrivateTmp or ProtectSystem has a
mount namespace of its own and still these."""

_DAEMONS = ('libvirtd', 'virtqemud', 'virtproxyd')


def is_remote(uri: str) -> bool:
    """Whether a URI reaches libvirt by a network, be it to this machine."""
    try:
        parts = urllib.parse.urlsplit(uri)
        transport = parts.scheme.partition('+')[2]
        return transport not in _LOCAL or bool(parts.netloc)
    except ValueError:
        return False


def read(uri: str, root: str = '/') -> model.LibvirtPlace:
    """Whether the libvirt of a URI has this process's file system.

    :param uri: libvirt's connection URI
    :param root: directory below which files are looked up
    """
    if is_remote(uri):
        transport = urllib.parse.urlsplit(uri).scheme.partition('+')[2]
        return model.LibvirtPlace(
            None, f'it is reached by a network ({transport or "tls"})',
            remote=True)
    path = _socket_path(uri, root)
    if path is None:
        return model.LibvirtPlace(None, f'{uri} has no socket here')
    pid, why = _server(path, root)
    if pid is None:
        return model.LibvirtPlace(None, why)
    return _compare(pid, root)


def files(uri: str, root: str = '/') -> str | None:
    """The directory below which the files of a URI's libvirt are seen.

    :returns: None where that is not known; only root sees another's
    """
    path = None if is_remote(uri) else _socket_path(uri, root)
    pid = None if path is None else _server(path, root)[0]
    if pid is None:
        return None
    found = os.path.join(root, 'proc', str(pid), 'root')
    try:
        os.stat(found)
    except OSError:
        return None
    return found


def ask(connection: Any, arch: str, known: model.LibvirtPlace,
        root: str = '/') -> model.LibvirtPlace:
    """Have libvirt look at a file that has just been made in /var/tmp.

    It is named as the emulator of a question, and is none: before anything
    else libvirt says that it is not executable, or not there
    (virQEMUCapsNewForBinaryInternal in src/qemu/qemu_capabilities.c; the
    same words in libvirt 9.0 to 12). Containers share directories of
    libvirt's and Nova's with each other, and not this one.

    :param connection: libvirt.virConnect, or Nova's proxy of one
    :param arch: the host's architecture, as uname says it
    :param known: what :func:`read` said
    :returns: ``here`` is True where libvirt sees the file. Else it is as
        before: a service may have a /var/tmp of its own (PrivateTmp)
    """
    try:
        with tempfile.NamedTemporaryFile(
                prefix='nova-kvm-ext-no-emulator-',
                dir=os.path.join(root, 'var/tmp')) as file:
            try:
                connection.getDomainCapabilities(
                    file.name, arch, None, None, 0)
            except Exception as e:
                if errors.libvirt_error_code(e) is None:
                    raise
                said = str(e)
                if file.name in said and 'is not executable' in said:
                    return dataclasses.replace(
                        known, here=True,
                        reason='it sees this /var/tmp')
    except OSError:
        return known
    return known


def _socket_path(uri: str, root: str) -> str | None:
    """The socket that libvirt would connect to; None where there is none."""
    parts = urllib.parse.urlsplit(uri)
    named = urllib.parse.parse_qs(parts.query).get('socket')
    if named:
        candidates = [named[0]]
    elif parts.path == '/session':
        base = os.environ.get('XDG_RUNTIME_DIR') or f'/run/user/{os.getuid()}'
        candidates = [os.path.join(base, 'libvirt', name)
                      for name in _SOCKETS]
    else:
        candidates = [f'/run/libvirt/{name}' for name in _SOCKETS]
    return next((path for path in (
        os.path.join(root, candidate.lstrip('/'))
        for candidate in candidates) if os.path.exists(path)), None)


def _server(path: str, root: str) -> tuple[int | None, str]:
    """The process that serves a socket, or None and why it is not known.

    The kernel tells who called listen() (unix(7), SO_PEERCRED): 0 for a
    process of a PID namespace that is not seen from here, and systemd itself
    where systemd made the socket. It hands the socket to the daemon when
    the first client comes, so then the daemon is looked for by the socket.
    """
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            client.connect(path)
            pid, _, _ = struct.unpack('3i', client.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED,
                struct.calcsize('3i')))
    except (OSError, ValueError) as e:
        return None, f'the socket {path} tells nothing of its server: {e}'
    if pid <= 0:
        return None, (f'the process that serves {path} is in another PID '
                      f'namespace, as in another container')
    if pid != 1 or _command(1, root) in _DAEMONS:
        return pid, ''
    holder = _holder(path, root)
    if holder is None:
        return None, (f'systemd made the socket {path}, and which process '
                      f'serves it is not known')
    return holder, ''


def _command(pid: int, root: str) -> str:
    return kernel_facts.read(f'/proc/{pid}/comm', root).strip()


def _holder(path: str, root: str) -> int | None:
    """The daemon that has a listening socket open; only root can look."""
    inodes = set()
    for line in kernel_facts.read('/proc/net/unix', root).splitlines()[1:]:
        # Num RefCount Protocol Flags Type St Inode Path
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and os.path.realpath(fields[7]) == (
                os.path.realpath(path)):
            inodes.add(f'socket:[{fields[6]}]')
    proc = os.path.join(root, 'proc')
    for name in os.listdir(proc) if inodes else ():
        if not name.isdecimal() or _command(int(name), root) not in _DAEMONS:
            continue
        directory = os.path.join(proc, name, 'fd')
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(directory):
                with contextlib.suppress(OSError):
                    if os.readlink(os.path.join(
                            directory, descriptor)) in inodes:
                        return int(name)
    return None


def _compare(pid: int, root: str) -> model.LibvirtPlace:
    """Whether a process has this one's files."""
    seen = os.path.join(root, 'proc', str(pid), 'root')
    who = f'process {pid} ({_command(pid, root) or "?"})'
    for path in _COMPARED:
        try:
            theirs = _identity(os.path.join(seen, path.lstrip('/')))
            ours = _identity(os.path.join(root, path.lstrip('/')))
        except PermissionError:
            return model.LibvirtPlace(
                None, f'only root can look at the files of {who}')
        except OSError as e:
            return model.LibvirtPlace(
                None, f'the files of {who} cannot be checked: {e.strerror}')
        if path == '/' and theirs is None:
            return model.LibvirtPlace(None, f'{who} is not seen from here')
        if ours != theirs:
            return model.LibvirtPlace(
                False, f'{who} has another {path}')
    return model.LibvirtPlace(True, f'{who} has the same directories')


def _identity(path: str) -> tuple[int, int] | None:
    """What tells one file from another; None where there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
