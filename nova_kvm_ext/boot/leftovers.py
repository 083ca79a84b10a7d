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

"""Records what a boot makes on this host, and removes it.

A :class:`Record` is written into the boot's directory before anything else is
made. The process that started the boot uses the record to clean up. If that
process was killed, the worker does; if both were killed, the next boot does.
Only what a record names is touched.
"""

import contextlib
import dataclasses
import fcntl
import glob
import json
import os
import shutil
import subprocess
import tempfile
import time

from nova_kvm_ext import errors

# The name of every domain begins so; one with another name is never touched.
DOMAIN_PREFIX = 'nova-kvm-ext-'

_DIRECTORY_PREFIX = 'nova-kvm-ext-boot-'
_RECORD = 'record.json'
_SPAWNING = 'spawning'

# Where a system libvirt keeps what QEMU says; it never removes a log.
_QEMU_LOGS = '/var/log/libvirt/qemu'

# libvirt include/libvirt/virterror.h
_VIR_ERR_NO_DOMAIN = 42
# A domain that was being defined when its client was killed appears a moment
# later: absence counts when it was seen twice, this many seconds apart.
_SETTLE = 0.5


@dataclasses.dataclass(frozen=True)
class Record:
    """What one boot has made or may make.

    :ivar directory: everything the boot keeps in files
    :ivar uuid: UUID of the domain
    :ivar uri: libvirt's connection URI
    :ivar tap: name of the tap device, or None
    :ivar keep: whether the user asked for it all to stay
    """

    directory: str
    uuid: str
    uri: str
    tap: str | None = None
    keep: bool = False

    def write(self) -> None:
        path = os.path.join(self.directory, _RECORD)
        with open(path + '.new', 'w') as f:
            json.dump(dataclasses.asdict(self), f)
        os.replace(path + '.new', path)

    def has_tap(self) -> bool:
        return bool(self.tap) and os.path.exists(f'/sys/class/net/{self.tap}')

    def has_spawned(self) -> bool:
        """Whether libvirt may know the domain."""
        return os.path.exists(os.path.join(self.directory, _SPAWNING))

    def describe_removal(self) -> str:
        """How the user removes what he asked to keep."""
        commands = []
        if self.has_spawned():
            commands += [f'virsh -c {self.uri} destroy {self.uuid}',
                         f'virsh -c {self.uri} undefine --nvram {self.uuid}']
        if self.has_tap():
            commands.append(f'ip link delete {self.tap}')
        commands.append(f'rm -r {self.directory}')
        return 'Kept. To remove it: ' + '; '.join(commands)

    def mark_spawning(self) -> None:
        """Note that from now on libvirt may know the domain."""
        with open(os.path.join(self.directory, _SPAWNING), 'w'):
            pass


def make_directory() -> tuple[str, int]:
    """A new directory that QEMU's user can traverse, and its held lock.

    It lies in $TMPDIR or /var/tmp: /tmp may be in memory, where QEMU cannot
    use direct I/O.

    :returns: path and the lock's file descriptor; who holds the lock owns the
        directory
    :raises errors.HostError: the directory cannot be made
    """
    try:
        while True:
            path = tempfile.mkdtemp(prefix=_DIRECTORY_PREFIX, dir=_base())
            lock = _lock(path)
            # Before it was locked, another boot's sweep may have found it.
            if lock is not None and os.path.isdir(path):
                os.chmod(path, 0o711)
                return path, lock
            if lock is not None:
                os.close(lock)
    except OSError as e:
        raise errors.HostError(
            f'No directory for the guest can be made in {_base()}: '
            f'{e.strerror}.',
            'Free some space there, or set TMPDIR to another directory.') \
            from e


def _base() -> str:
    return os.path.abspath(os.environ.get('TMPDIR') or '/var/tmp')


def _lock(directory: str) -> int | None:
    """Take a directory's lock.

    :returns: a file descriptor that holds it, or None if another process
        does or the directory is gone
    """
    try:
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY |
                       os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def read_record(directory: str) -> Record | None:
    """The record of a directory, None if it has none that can be read."""
    try:
        with open(os.path.join(directory, _RECORD)) as f:
            record = Record(**json.load(f))
    except (OSError, ValueError, TypeError):
        return None
    return dataclasses.replace(record, directory=directory)


def clean(record: Record) -> list[str]:
    """Remove everything a record names. Again does no harm.

    :returns: sentences about what could not be removed
    """
    problems = []
    try:
        _remove_domain(record)
    except Exception as e:
        if errors.libvirt_error_code(e) is None:
            raise
        problems.append(
            f'The domain {record.uuid} may still be there: '
            f'{errors.with_explanation(e)}')
    if record.tap and record.has_tap():
        try:
            subprocess.run(['ip', 'link', 'delete', record.tap], check=True,
                           capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.SubprocessError) as e:
            problems.append(
                f'The tap device {record.tap} is still there: '
                f'{errors.clean(getattr(e, "stderr", None) or e)}')
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(
            _QEMU_LOGS, f'{DOMAIN_PREFIX}{record.uuid}.log'))
    # The directory names the domain: it stays for the next boot to try again
    # where the domain could not be removed.
    if not problems:
        try:
            shutil.rmtree(record.directory)
        except FileNotFoundError:
            pass
        except OSError as e:
            problems.append(f'{record.directory} is still there: '
                            f'{e.strerror}')
    return problems


def _remove_domain(record: Record) -> None:
    """Destroy and undefine the domain, waiting out a creation under way."""
    if not record.has_spawned():
        return
    # Here, because the supervisor must answer signals while Nova's process
    # waits for libvirt; and without libvirt's own printing of each error.
    import libvirt
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    connection = libvirt.open(record.uri)
    try:
        absent = 0
        while absent < 2:
            try:
                domain = connection.lookupByUUIDString(record.uuid)
                absent = 0
                if not domain.name().startswith(DOMAIN_PREFIX):
                    return
                if domain.isActive():
                    domain.destroy()
                if domain.isPersistent():
                    domain.undefineFlags(
                        libvirt.VIR_DOMAIN_UNDEFINE_NVRAM |
                        libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE |
                        libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
            except libvirt.libvirtError as e:
                # Gone between two calls is as good. "Domain is not running"
                # (VIR_ERR_OPERATION_INVALID) is the same race.
                if e.get_error_code() == _VIR_ERR_NO_DOMAIN:
                    absent += 1
                elif (e.get_error_code() !=
                      libvirt.VIR_ERR_OPERATION_INVALID):
                    raise
            if absent == 1:
                time.sleep(_SETTLE)
    finally:
        connection.close()


def sweep() -> list[str]:
    """Remove what earlier boots left that were killed with their worker.

    A directory whose lock is held belongs to a boot that is running.

    :returns: sentences about what was found
    """
    messages = []
    for directory in glob.glob(os.path.join(
            glob.escape(_base()), _DIRECTORY_PREFIX + '*')):
        lock = _lock(directory)
        if lock is None:
            continue
        try:
            # Anybody may put a directory of this name there, with a record of
            # somebody's guest in it.
            if os.fstat(lock).st_uid != os.geteuid():
                continue
            record = read_record(directory)
            if record is None:
                # Killed before it made anything outside the directory.
                shutil.rmtree(directory, ignore_errors=True)
            elif not record.keep:
                messages.append(f'An earlier boot was killed: removing its '
                                f'guest {record.uuid}.')
                messages += clean(record)
        finally:
            os.close(lock)
    return messages
