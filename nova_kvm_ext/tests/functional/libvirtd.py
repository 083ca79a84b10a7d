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

"""A real libvirt that belongs to one test and dies with it.

A libvirtd of root has its paths compiled in, so the private one lives in a
mount namespace in which fresh directories cover them, and in a PID namespace
whose first process waits on a pipe from the test. When the test process ends,
however it ends, the pipe closes, that first process exits, and the kernel
kills libvirtd, virtlogd and every QEMU and drops the mounts. Only the
directory can outlive a killed test; the next fixture removes it.

Clients stay outside: they reach libvirtd's socket by
:attr:`PrivateLibvirt.uri` and see its QEMU processes and files like any other.
"""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import os
import pathlib
import platform
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import time
import unittest

import fixtures
from testtools import content
from testtools import content_type

from nova_kvm_ext.tests import namespaces

REQUIRE = 'NOVA_KVM_EXT_REQUIRE_FUNCTIONAL'
"""Environment variable: set to 1, what cannot run fails instead of skips."""

_PREFIX = 'nova-kvm-ext-libvirt-'

_TIMEOUT = 300.0
"""Seconds that anything may take on a busy host; most takes two.

Three guests and their agents took more than 60 s to start at a load of 9.
"""

# libvirt's compiled-in directories, and what stands for them in the fixture's.
COVERED = {
    'etc': '/etc/libvirt',
    'lib': '/var/lib/libvirt',
    'cache': '/var/cache/libvirt',
    'log': '/var/log/libvirt',
    'run': '/run/libvirt',
}

_CONFIGURATION = {
    # Sockets without authentication are for root alone. polkit could not name
    # a client outside the PID namespace anyway.
    'libvirtd.conf': {
        'auth_unix_ro': '"none"',
        'auth_unix_rw': '"none"',
        'unix_sock_ro_perms': '"0700"',
        'unix_sock_rw_perms': '"0700"',
        'log_outputs': '"3:file:/var/log/libvirt/libvirtd.log"',
    },
    'virtlogd.conf': {
        'log_outputs': '"3:file:/var/log/libvirt/virtlogd.log"',
    },
    # On the host's huge pages libvirtd would make a directory for its guests.
    # (The "" that qemu.conf says disables them keeps libvirt 9.0 from
    # starting.)
    'qemu.conf': {
        'hugetlbfs_mount': '[]',
        'security_driver': '"none"',
    },
}

# Clients are processes because a call to a libvirtd that hangs would hang us.
_CONNECT = """
import libvirt, sys
libvirt.open(sys.argv[1]).getLibVersion()
"""
_DESTROY = """
import libvirt, sys
connection = libvirt.open(sys.argv[1])
for domain in connection.listAllDomains():
    if domain.isActive():
        domain.destroy()
"""


def missing_requirement() -> str | None:
    """What keeps a private libvirt from running here; None when nothing."""
    if os.geteuid() != 0:
        return 'only root can give libvirtd namespaces of its own'
    qemu = f'qemu-system-{platform.machine()}'
    for program, package in (
        ('unshare', 'util-linux'),
        # A host that has only the modular virtqemud is not supported: Nova
        # needs the other drivers too, each a daemon of its own there.
        ('libvirtd', 'libvirt-daemon'),
        ('virtlogd', 'libvirt-daemon or libvirt-daemon-log'),
        (qemu, 'qemu-system-x86 on x86'),
    ):
        if shutil.which(program) is None:
            return f'{program} is not installed (package {package})'
    attempt = subprocess.run(
        [*namespaces.unshare(), 'true'], capture_output=True, text=True)
    if attempt.returncode != 0:
        return ('no permission to make mount and PID namespaces '
                f'(CAP_SYS_ADMIN): {attempt.stderr.strip()}')
    return None


def _make_directory(path: pathlib.Path) -> None:
    path.mkdir()
    path.chmod(0o755)  # whatever the umask


def processes_of(directory: str) -> dict[int, list[str]]:
    """Command lines by PID of the processes that live with a directory.

    Those whose mount namespace has it over libvirt's. The name is unique,
    while the kernel soon gives the number of a PID namespace to another.

    :param directory: a fixture's, which may be gone
    """
    name = os.path.basename(directory)
    found = {}
    for process in pathlib.Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if name in (process / 'mountinfo').read_text():
                arguments = (process / 'cmdline').read_text().split('\0')
                found[int(process.name)] = arguments
    return found


def is_monitored(pid: int) -> bool:
    """Whether a QEMU holds a connection to its monitor.

    A stopped QEMU counts as one without: it would close none.
    """
    process = pathlib.Path('/proc') / str(pid)
    with contextlib.suppress(OSError):  # the process ended meanwhile
        if '\nState:\tT' in (process / 'status').read_text():
            return False
        # proc(5): Num RefCount Protocol Flags Type St Inode Path. An
        # accepted socket (state 03) has the path of the listening one.
        connections = {
            f'socket:[{fields[6]}]' for line
            in (process / 'net' / 'unix').read_text().splitlines()[1:]
            if len(fields := line.split()) > 7 and fields[5] == '03'
            and fields[7].endswith('/monitor.sock')}
        return any(os.readlink(fd) in connections
                   for fd in (process / 'fd').iterdir())
    return False


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Poll until a condition holds.

    :param what: what is waited for, for the error
    :raises: TimeoutError
    """
    deadline = time.monotonic() + _TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f'No {what} within {_TIMEOUT:.0f} s')
        time.sleep(0.02)


class PrivateLibvirt(fixtures.Fixture):
    """libvirtd and virtlogd apart from the host's.

    :param qemu_user: user and group QEMU runs as; the distribution's if None.
        'root' opens a /dev/kvm that is root's alone.
    :param qemu_conf: further settings, values as qemu.conf spells them
        ('"text"', '1', '[]')
    :param host_uuid: by which libvirt tells one host from another; the
        machine's if None. Guests move only between hosts that differ.
    """

    uri: str
    """Where clients connect to."""

    directory: str
    """The fixture's own directory, which anyone can traverse."""

    instances_path: str
    """A directory for Nova's instances."""

    enter: list[str]
    """The start of a command that runs the rest where libvirtd runs."""

    def __init__(
        self, *,
        qemu_user: str | None = None,
        qemu_conf: Mapping[str, str] | None = None,
        host_uuid: str | None = None,
    ) -> None:
        super().__init__()
        self._conf = {
            'libvirtd.conf': {} if host_uuid is None else {
                'host_uuid': f'"{host_uuid}"'}}
        self._qemu_conf = self._conf['qemu.conf'] = dict(qemu_conf or {})
        if qemu_user is not None:
            self._qemu_conf.setdefault('user', f'"{qemu_user}"')
            self._qemu_conf.setdefault(
                'group', f'"+{pwd.getpwnam(qemu_user).pw_gid}"')

    def setUp(self) -> None:
        # Not in _setUp: there the skip would come out as an error.
        missing = missing_requirement()
        if missing is not None:
            reason = f'A private libvirt cannot run here: {missing}'
            if os.environ.get(REQUIRE) == '1':
                raise RuntimeError(f'{reason} ({REQUIRE} is set)')
            raise unittest.SkipTest(reason)
        super().setUp()

    def _setUp(self) -> None:
        lock = self._make_own_directory()
        self.addDetail('libvirt.log', content.Content(
            content_type.UTF8_TEXT, lambda: [self.log().encode()]))
        self._make_namespaces(lock)
        self.run(['sh', '-ec', '\n'.join(self._mounts())])
        self._start('virtlogd')
        self.start_libvirtd()
        self.addCleanup(self._destroy_domains)

    def log(self) -> str:
        """What libvirtd, virtlogd and the guests' QEMUs have logged."""
        return '\n'.join(
            f'{path}:\n{path.read_text(errors="replace")}'
            for path in sorted(self._path.glob('log/**/*.log')))

    def processes(self) -> list[int]:
        """PIDs, as the host counts, of the QEMU processes of guests."""
        # The name tells them from those that probe QEMU's capabilities.
        return [
            pid for pid, arguments in processes_of(self.directory).items()
            if any(argument.startswith('guest=') for argument in arguments)]

    def stop_libvirtd(self) -> None:
        """End libvirtd; guests keep running."""
        for pid in self._libvirtd():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not self._libvirtd(), 'end of libvirtd')
        # A QEMU that still holds the old connection refuses the next one,
        # and the next libvirtd then ends that guest.
        wait_for(lambda: not any(map(is_monitored, self.processes())),
                 'end of the connections to the monitors')

    def start_libvirtd(self) -> None:
        """Start libvirtd and wait until it answers."""
        self._start('libvirtd')
        self.run([sys.executable, '-c', _CONNECT, self.uri])

    def _make_own_directory(self) -> int:
        """Make the directory; returns the lock that says it is in use."""
        self._path, lock = namespaces.make_directory(_PREFIX)
        self.addCleanup(os.close, lock)
        self.addCleanup(shutil.rmtree, self._path)
        self._path.chmod(0o711)
        for name in ('instances', 'dev', *COVERED):
            _make_directory(self._path / name)
        for name, settings in _CONFIGURATION.items():
            settings = settings | self._conf.get(name, {})
            (self._path / 'etc' / name).write_text(''.join(
                f'{key} = {value}\n' for key, value in settings.items()))
        self.directory = str(self._path)
        self.instances_path = str(self._path / 'instances')
        self.uri = f'qemu+unix:///system?socket={self._path}/run/libvirt-sock'
        return lock

    def _make_namespaces(self, lock: int) -> None:
        # unshare ends when all in the PID namespace have.
        try:
            first = namespaces.start(namespaces.unshare(), lock)
        except OSError as e:
            raise RuntimeError(f'No namespaces for libvirt: {e}') from e
        # A line ends the first process. Closing the pipe would not if the
        # test has forked, for the child holds it open.
        self.addCleanup(first.communicate, '\n', timeout=_TIMEOUT)
        self.enter = namespaces.enter(first.pid)

    def _mounts(self) -> list[str]:
        """The commands that put the directories in place."""
        mount = namespaces.MOUNT
        commands = []
        for name, path in COVERED.items():
            if not os.path.isdir(path):
                commands += self._cover_parent(pathlib.Path(path))
            commands.append(f'{mount} --bind {self._path / name} {path}')
        if os.path.exists('/dev/kvm'):
            commands += namespaces.kvm_node(self._path / 'dev')
        if os.path.ismount('/sys/fs/cgroup'):
            # Guests' control groups would be made in the host's tree.
            commands.append('umount --no-mtab --lazy /sys/fs/cgroup')
        return commands

    def _cover_parent(self, missing: pathlib.Path) -> list[str]:
        """The commands that let a directory appear without making it.

        libvirtd makes /run/libvirt when it first runs, so a host where it has
        not lacks a place to mount on. A copy of the parent has it.
        """
        copy = self._path / f'{missing.parent.name}-copy'
        _make_directory(copy)
        _make_directory(copy / missing.name)
        commands = []
        for entry in missing.parent.iterdir():
            place = copy / entry.name
            if entry.is_symlink():
                place.symlink_to(entry.readlink())
                continue
            if entry.is_dir():
                _make_directory(place)
            else:
                place.touch()
            commands.append(
                f'{namespaces.MOUNT} --rbind {shlex.quote(str(entry))} '
                f'{shlex.quote(str(place))}')
        commands.append(f'{namespaces.MOUNT} --rbind {copy} {missing.parent}')
        return commands

    def _start(self, daemon: str) -> None:
        # It returns when its socket accepts connections.
        self.run([
            daemon, '--daemon', '--config', f'/etc/libvirt/{daemon}.conf',
            '--pid-file', f'/run/libvirt/{daemon}.pid'])

    def run(self, command: list[str], seconds: float = _TIMEOUT) -> None:
        """Run a command where libvirtd runs: with its directories and /dev.

        :param seconds: what the command may take
        :raises RuntimeError: it fails or does not end
        """
        # Without the bus libvirtd cannot tell systemd-machined about its
        # guests, whose PIDs are others outside.
        environment = os.environ | {
            'DBUS_SYSTEM_BUS_ADDRESS': f'unix:path={self._path}/no-bus'}
        try:
            result = subprocess.run(
                [*self.enter, *command], timeout=seconds,
                env=environment, umask=0o022, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT)
        except subprocess.TimeoutExpired:
            problem = f'no end after {seconds:.0f} s'
        else:
            if result.returncode == 0:
                return
            problem = f'exit code {result.returncode}: {result.stdout}'
        raise RuntimeError(f'{shlex.join(command)}: {problem}\n{self.log()}')

    def _libvirtd(self) -> list[int]:
        return [pid for pid, arguments in processes_of(self.directory).items()
                if os.path.basename(arguments[0]) == 'libvirtd']

    def _destroy_domains(self) -> None:
        # So that libvirt takes its guests' interfaces from the host's
        # bridges. The rest would go without, so a libvirtd that a test has
        # ended or broken is no error.
        if self.processes():
            with contextlib.suppress(RuntimeError):
                self.run([sys.executable, '-c', _DESTROY, self.uri])
