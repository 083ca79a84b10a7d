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

"""Reads which user libvirt runs QEMU as, and what that user may open.

Returns frozen data; makes no decision. Tests can replace the root of all
paths.
"""

import dataclasses
import errno
import fcntl
import grp
import os
import pwd
import stat
import subprocess
import sys

from nova_kvm_ext import errors
from nova_kvm_ext.host import access
from nova_kvm_ext.host import distribution
from nova_kvm_ext.host import kernel_facts
from nova_kvm_ext.host import model
from nova_kvm_ext.host import qemu_conf

KVM_API_VERSION = 12
"""What KVM_GET_API_VERSION has answered since Linux 2.6.22 (kvm/api.rst)."""

# Run as root, it becomes the user itself: that user may not be able to reach
# the Python of a virtual environment. The ioctl is KVM_GET_API_VERSION,
# _IO(0xAE, 0x00) of linux/kvm.h. Nobody's capabilities are left, as libvirt
# leaves none to QEMU, unless the user is root.
# linux/kvm.h
_KVM_GET_API_VERSION = 0xae00

_OPEN = """
import fcntl, os, sys
path, ioctl, uid, gid, *groups = sys.argv[1:]
try:
    os.setgroups([int(group) for group in groups])
    os.setgid(int(gid))
    os.setuid(int(uid))
    device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    print(0, fcntl.ioctl(device, 0xae00) if ioctl == 'kvm' else -1)
except OSError as e:
    print(e.errno, -1)
"""
_OPEN_SECONDS = 10


class _FileAccounts:
    """Users and groups of the files below a root."""

    def __init__(self, root: str) -> None:
        def lines(path: str) -> list[list[str]]:
            fields = [line.split(':') for line in
                      kernel_facts.read(path, root).splitlines()]
            return [line for line in fields
                    if len(line) > 3 and line[2].isdecimal()]

        self._users = [
            (line[0], int(line[2]), int(line[3])) for line in
            lines('/etc/passwd') if line[3].isdecimal()]
        self._groups = [(line[0], int(line[2]), line[3].split(','))
                        for line in lines('/etc/group')]

    def uid(self, name: str) -> int | None:
        return next((uid for user, uid, _ in self._users if user == name),
                    None)

    def gid(self, name: str) -> int | None:
        return next((gid for group, gid, _ in self._groups if group == name),
                    None)

    def group_name(self, gid: int) -> str | None:
        return next((group for group, number, _ in self._groups
                     if number == gid), None)

    def groups(self, uid: int, gid: int) -> tuple[int, ...]:
        """Every group of QEMU, see :func:`read_qemu_user`."""
        name, primary = next(((user, primary) for user, number, primary
                              in self._users if number == uid), (None, gid))
        return tuple(sorted({gid, primary} | {
            number for _, number, members in self._groups
            if name in members}))

    def user_name(self, uid: int) -> str | None:
        return next((user for user, number, _ in self._users
                     if number == uid), None)


class _SystemAccounts:
    """Users and groups of this host, wherever NSS has them from."""

    def uid(self, name: str) -> int | None:
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            return None

    def gid(self, name: str) -> int | None:
        try:
            return grp.getgrnam(name).gr_gid
        except KeyError:
            return None

    def group_name(self, gid: int) -> str | None:
        try:
            return grp.getgrgid(gid).gr_name
        except KeyError:
            return None

    def groups(self, uid: int, gid: int) -> tuple[int, ...]:
        try:
            user = pwd.getpwuid(uid)
        except KeyError:
            return (gid,)
        return tuple(sorted({gid} | set(
            os.getgrouplist(user.pw_name, user.pw_gid))))

    def user_name(self, uid: int) -> str | None:
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return None


Accounts = _FileAccounts | _SystemAccounts


def accounts(root: str = '/') -> Accounts:
    """The users and groups that count below a root."""
    return _SystemAccounts() if root == '/' else _FileAccounts(root)


def read_qemu_user(found: distribution.Distribution, known: Accounts,
                   root: str = '/') -> model.UserFacts:
    """The user of qemu.conf, else the one that libvirt was built with.

    QEMU's groups are those of the user, the primary one of /etc/passwd among
    them, and the one of qemu.conf (virGetGroupList in libvirt's
    src/util/virutil.c).
    """
    path = os.path.join(root, 'etc/libvirt/qemu.conf')
    settings, error, unreadable = {}, '', False
    try:
        with open(path, errors='replace') as f:
            settings = qemu_conf.parse(f.read())
    except FileNotFoundError:
        pass
    except OSError as e:
        error = f'/etc/libvirt/qemu.conf cannot be read: {e.strerror}'
        unreadable = True
    except ValueError as e:
        error = f'/etc/libvirt/qemu.conf, {errors.clean(e)}'
    user = settings.get('user', found.qemu_user)
    group = settings.get('group', found.qemu_group)
    said = [name for name in ('user', 'group') if name in settings]
    source = (f'{" and ".join(said)} in /etc/libvirt/qemu.conf' if said else
              f'the default of {found.name}')
    uid = None if user.startswith('+') else known.uid(user)
    gid = None if group.startswith('+') else known.gid(group)
    if uid is None:
        uid = qemu_conf.number(user)
    if gid is None:
        gid = qemu_conf.number(group)
    return model.UserFacts(
        errors.clean(user), errors.clean(group), source, uid, gid,
        known.groups(uid, gid) if uid is not None and gid is not None else (),
        error, unreadable)


def corrected(user: model.UserFacts, label: tuple[int, int] | None,
              known: Accounts) -> model.UserFacts:
    """QEMU's user as the running libvirt has it, where libvirt tells.

    qemu.conf is 0600 as packaged, so a service cannot read it; in another
    container it is another file; and libvirt reads it at its start only. The
    names and groups are this file system's for these numbers, if any.

    :param label: (uid, gid) of libvirt's security label ``dac``
    """
    if label is None:
        return user
    uid, gid = label
    if label == (user.uid, user.gid):
        return dataclasses.replace(user, by_libvirt=True)
    return dataclasses.replace(
        user, user=known.user_name(uid) or f'+{uid}',
        group=known.group_name(gid) or f'+{gid}',
        source='by libvirt\'s own label', uid=uid, gid=gid,
        groups=known.groups(uid, gid), by_libvirt=True)


def read_permissions(path: str) -> access.Permissions:
    """Owner, group, mode and ACL of a file.

    :raises OSError: there is none, or it cannot be checked
    """
    status = os.stat(path)
    return access.Permissions(
        status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode),
        read_acl(path) or None)


def read_acl(path: str) -> bytes:
    """The ACL of a file as the kernel keeps it, empty where there is none."""
    try:
        return os.getxattr(path, access.XATTR)
    except OSError:
        return b''


def read_use(path: str, user: model.UserFacts, root: str = '/', *,
             process: bool = True) -> model.UseFacts:
    """Open a device as QEMU's user, or judge from its permission bits.

    Only root can become that user. libvirt's control group and mount
    namespace, in which QEMU sees the device, are libvirt's own matter.

    :param process: False to start no process where root can open the device
        and its mode and ACL let that user in: what else keeps a process from
        it, as a control group does, prevents root from it too
    """
    real_path = os.path.join(root, path.lstrip('/'))
    if user.uid is None or user.gid is None:
        return model.UseFacts(path, False, 'EINVAL')
    if os.geteuid() == 0:
        version = None if process else _open_here(
            real_path, path == '/dev/kvm')
        if version is not None and _lets_in(real_path, user):
            return model.UseFacts(
                path, False, None, version if version >= 0 else None)
        try:
            answer = subprocess.run(
                [sys.executable, '-I', '-S', '-c', _OPEN, real_path,
                 'kvm' if path == '/dev/kvm' else 'none', str(user.uid),
                 str(user.gid), *map(str, user.groups)],
                capture_output=True, text=True, timeout=_OPEN_SECONDS,
                stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            return model.UseFacts(path, True, 'ETIMEDOUT')
        words = answer.stdout.split()
        if len(words) == 2:
            number, version = map(int, words)
            return model.UseFacts(
                path, True, errno.errorcode.get(number, str(number))
                if number else None, version if version >= 0 else None)
    try:
        allowed = _lets_in(real_path, user)
    except OSError as e:
        return model.UseFacts(
            path, False, errno.errorcode.get(e.errno or 0, str(e.errno)))
    return model.UseFacts(path, False, None if allowed else 'EACCES')


def _lets_in(path: str, user: model.UserFacts) -> bool:
    """Whether mode and ACL let a user read and write.

    :raises OSError: there is no such file, or it cannot be checked
    """
    assert user.uid is not None
    return access.may(access.READ | access.WRITE, read_permissions(path),
                      user.uid, user.groups)


def _open_here(path: str, is_kvm: bool) -> int | None:
    """Open a device in this process.

    :param is_kvm: whether to ask for the version of KVM
    :returns: that version, -1 where it was not asked for; None where the
        device does not open or does not answer
    """
    try:
        device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return fcntl.ioctl(device, _KVM_GET_API_VERSION) if is_kvm else -1
    except OSError:
        return None
    finally:
        os.close(device)


def read_barrier(path: str, user: model.UserFacts, root: str = '/') -> str:
    """The first directory on the way to a path that QEMU may not enter.

    :returns: its path, or '' where the way is free
    """
    if user.uid is None:
        return ''
    way = '/'
    for name in ['', *path.strip('/').split('/')]:
        way = os.path.join(way, name)
        try:
            permissions = read_permissions(
                os.path.join(root, way.lstrip('/')))
        except OSError:
            return ''
        if not access.may(access.ENTER, permissions, user.uid, user.groups):
            return way
    return ''
