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

"""The namespaces in which a cloud runs on this machine, and nothing more.

The first process of a PID namespace holds a cloud together: when it ends, the
kernel ends every daemon and guest, and with them go mounts, network devices
and namespaces. Fresh directories cover those that libvirt and Open vSwitch
have compiled in, and the network is one of its own, so neither the host's
daemons nor another cloud's are met. Only the state directory outlives it.

Each compute but the first has mount, network and UTS namespaces of its own
inside. Two bridges join them: one for APIs and migrations, one for guests'
networks.

It starts no service and must not know OpenStack.
"""

from collections.abc import Sequence
import fcntl
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time

from nova_kvm_ext.tests import namespaces

COMPUTES = ('compute1', 'compute2', 'compute3')
"""Those that there can be; on the first are all other services too."""

ADDRESSES = {compute: f'198.51.100.{number}'
             for number, compute in enumerate(COMPUTES, 1)}
"""What each compute is reached at by the others (RFC 5737's TEST-NET-2)."""

PHYSICAL = {compute: f'phys{number}'
            for number, compute in enumerate(COMPUTES, 1)}
"""The network device of each that guests' networks go through."""

_API = {compute: f'api{number}' for number, compute in enumerate(COMPUTES, 1)}

# Compiled in; below /run everything is fresh.
_COVERED = {
    'libvirt-etc': '/etc/libvirt',
    'libvirt-lib': '/var/lib/libvirt',
    'libvirt-cache': '/var/cache/libvirt',
    'libvirt-log': '/var/log/libvirt',
    'libvirt-run': '/run/libvirt',
    'ovs-etc': '/etc/openvswitch',
    'ovs-lib': '/var/lib/openvswitch',
    'ovs-log': '/var/log/openvswitch',
}
# Where the package is installed.
_OPTIONAL = {'ceph-etc': '/etc/ceph'}

# On the host's huge pages libvirtd would make a directory for its guests.
_LIBVIRT = {
    'libvirtd.conf': """\
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_ro_perms = "0700"
unix_sock_rw_perms = "0700"
host_uuid = "00000000-0000-4000-8000-00000000000{number}"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
""",
    'virtlogd.conf': """\
log_outputs = "3:file:/var/log/libvirt/virtlogd.log"
""",
    'qemu.conf': """\
hugetlbfs_mount = []
security_driver = "none"
cgroup_controllers = []
migration_host = "{address}"
migration_address = "{address}"
""",
}

# Held by the first process.
_LOCK = 'lock'

_TIMEOUT = 60.0


class SandboxError(Exception):
    """The namespaces cannot be had; str() says why and what to do."""


class Sandbox:
    """The namespaces of one cloud.

    :param state: directory of the cloud, absolute; all its users may enter it
    """

    def __init__(self, state: str) -> None:
        self.state = pathlib.Path(state)
        self._pid_file = self.state / 'sandbox.pid'
        self._first: subprocess.Popen[str] | None = None

    def up(self) -> bool:
        """Whether the first process lives."""
        try:
            descriptor = os.open(self.state / _LOCK, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def make(self) -> None:
        """Make directories and namespaces; they end with this process.

        :raises SandboxError: there is a cloud already, or no permission
        """
        if os.geteuid() != 0:
            raise SandboxError(
                'Only root can make namespaces; run it as root.')
        if self.up():
            raise SandboxError(
                f'A cloud runs in {self.state} already; end it with --down, '
                f'or name another directory with --state.')
        self._make_directories()
        lock = os.open(self.state / _LOCK, os.O_RDONLY | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Standard input is a pipe from the command: the cloud ends with it,
        # unless it says otherwise.
        try:
            self._first = namespaces.start(
                namespaces.unshare('--net', '--uts', '--ipc'), lock,
                str(self.state))
        except OSError as e:
            raise SandboxError(f'No namespaces for the cloud: {e}; it needs '
                               f'CAP_SYS_ADMIN.') from e
        finally:
            os.close(lock)
        self._pid_file.write_text(f'{self._first.pid}\n')
        self._set_up()

    def stay(self) -> None:
        """Have what was made outlive this process."""
        assert self._first is not None
        self._first.stdin.write('stay\n')
        self._first.stdin.flush()

    def end(self) -> None:
        """End everything in the namespaces; none is no error."""
        if not self.up():
            return
        pid = int(self._pid_file.read_text())
        # The lock says that it lives, so the number is still its own; a state
        # directory that was copied does not.
        arguments = pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()
        if str(self.state).encode() not in arguments.split(b'\0'):
            raise SandboxError(
                f'{self._pid_file} names process {pid}, which is none of this '
                f'cloud; look for unshare with {self.state} in its command.')
        os.kill(pid, signal.SIGKILL)
        if self._first is not None:
            self._first.wait()
        deadline = time.monotonic() + _TIMEOUT
        while self.up():
            if time.monotonic() > deadline:
                raise SandboxError(
                    f'The processes of the cloud in {self.state} have not '
                    f'ended within {_TIMEOUT:.0f} s of being killed.')
            time.sleep(0.05)

    def remove(self, *, logs: bool) -> None:
        """Remove the state directory; none is no error.

        :param logs: whether to leave the services' logs
        :raises SandboxError: it is not that of a cloud
        """
        try:
            names = set(os.listdir(self.state))
        except FileNotFoundError:
            return
        if names and _LOCK not in names:
            raise SandboxError(
                f'{self.state} is not a directory of a cloud, so nothing in '
                'it is removed; name another with --state.')
        # The lock says whose directory it is, so it goes last.
        for name in names - ({_LOCK, 'logs'} if logs else {_LOCK}):
            path = self.state / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        if not logs:
            (self.state / _LOCK).unlink(missing_ok=True)
            self.state.rmdir()

    def enter(self, command: Sequence[str]) -> list[str]:
        """The command that runs another inside, on the first compute."""
        pid = int(self._pid_file.read_text())
        return [*namespaces.enter(pid, 'net', 'uts', 'ipc'), *command]

    def _run(self, script: Sequence[str]) -> None:
        result = subprocess.run(
            self.enter(['sh', '-ec', '\n'.join(script)]), umask=0o022,
            timeout=_TIMEOUT, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if result.returncode:
            raise SandboxError(
                f'The namespaces could not be set up: {result.stdout}')

    def _make_directories(self) -> None:
        self.remove(logs=False)
        self.state.mkdir(mode=0o755, parents=True)
        self.state.chmod(0o755)  # whatever the umask
        for name in ('instances', 'lib', 'logs', 'run', 'tmp'):
            (self.state / name).mkdir()
        hosts = '127.0.0.1 localhost\n'
        for number, compute in enumerate(COMPUTES, 1):
            hosts += f'{ADDRESSES[compute]} {compute}\n'
            top = self.state / compute
            top.mkdir()
            # Nova has the address alone for the URI of the other libvirt.
            (self.state / ADDRESSES[compute]).symlink_to(compute)
            for name in ('dev', 'instances'):
                (top / name).mkdir()
            for name in (*_COVERED, *_OPTIONAL):
                self._cover(compute, name).mkdir()
            for name, text in _LIBVIRT.items():
                (top / 'libvirt-etc' / name).write_text(text.format(
                    number=number, address=ADDRESSES[compute]))
        (self.state / 'hosts').write_text(hosts)

    def _set_up(self) -> None:
        first, *others = COMPUTES
        cables = ['ip link set lo up']
        for bridge, devices in ('api', _API), ('phys', PHYSICAL):
            cables += [f'ip link add {bridge} type bridge',
                       f'ip link set {bridge} up']
            for device in devices.values():
                cables += [
                    f'ip link add {device} type veth peer name {device}-port',
                    f'ip link set {device}-port master {bridge} up']
        self._run([*self._covers(first), *cables, *self._links(first)])
        for compute in others:
            holder = self.state / 'run' / f'{compute}.pid'
            self._run([
                # Whoever enters it finds it by its first process.
                'unshare --mount --propagation slave --net --uts sleep '
                'infinity > /dev/null 2>&1 &',
                f'echo $! > {holder}',
                # It has its own when it is no longer where this shell is.
                'while [ "$(readlink /proc/$!/ns/uts)" = '
                '"$(readlink /proc/self/ns/uts)" ]; do sleep 0.02; done',
                f'ip link set {_API[compute]} netns $!',
                f'ip link set {PHYSICAL[compute]} netns $!'])
            self._run([shlex.join(in_compute(self.state, compute, [
                'sh', '-ec', '\n'.join([
                    *self._covers(compute), 'ip link set lo up',
                    *self._links(compute)])]))])

    @staticmethod
    def _links(compute: str) -> list[str]:
        """The commands that bring a compute's network devices up."""
        return [f'ip link set {_API[compute]} up',
                f'ip link set {PHYSICAL[compute]} up',
                f'ip address add {ADDRESSES[compute]}/24 dev {_API[compute]}']

    def _cover(self, compute: str, name: str) -> pathlib.Path:
        """What stands for a directory; logs are to stay after the cloud."""
        if name.endswith('-log'):
            return self.state / 'logs' / f'{compute}-{name}'
        return self.state / compute / name

    def _covers(self, compute: str) -> list[str]:
        """The commands that put a compute's directories in place."""
        top = self.state / compute
        mount = namespaces.MOUNT
        commands = [
            f'hostname {compute}',
            # Of this network; and no control group is seen.
            f'{mount} -t sysfs none /sys',
            f'{mount} -t tmpfs -o mode=0755 none /run',
            'mkdir -p /run/netns /run/libvirt /run/openvswitch /run/lock',
            f'{mount} --bind {self.state}/hosts /etc/hosts']
        # Nova has the same path on each of its hosts.
        commands.append(
            f'{mount} --bind {top}/instances {self.state}/instances')
        for name, path in _COVERED.items():
            commands += [
                f'mkdir -p {path}',
                f'{mount} --bind {self._cover(compute, name)} {path}']
        for name, path in _OPTIONAL.items():
            if os.path.isdir(path):
                commands.append(
                    f'{mount} --bind {self._cover(compute, name)} {path}')
        if os.path.exists('/dev/kvm'):
            # Healthy, and one that tests may break.
            commands += namespaces.kvm_node(top / 'dev')
        return commands


def in_compute(
    state: pathlib.Path, compute: str, command: Sequence[str]
) -> list[str]:
    """The command that runs another on a compute, from inside the cloud."""
    if compute == COMPUTES[0]:
        return list(command)
    pid = int((state / 'run' / f'{compute}.pid').read_text())
    return ['nsenter', f'--target={pid}', '--mount', '--net', '--uts',
            *command]
