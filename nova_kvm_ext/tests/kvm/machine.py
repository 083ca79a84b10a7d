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


"""The machine with KVM in which these tests run: a Debian in QEMU's TCG.

QEMU emulates AMD's SVM without any KVM of the host, so in it the module
kvm_amd loads and real guests of type kvm run, everywhere. It is made of:

* the system, made by mmdebstrap of this host's Debian release: kernel,
  systemd, udev, libvirt, QEMU
* the Python environment that runs this module, as it is, read only
* a state: the machine as it is when it has booted and imported Nova, which
  takes it two minutes; each run continues from there
* this package, packed again for each run

All but the last are kept in a cache directory and named by a hash of what
they are made of; what a run writes is thrown away. What the machine says
comes through virtio ports: results in subunit's format, lines of JSON for who
watches, an exit code. It has no network but, where two are joined, the one
between them.

``build`` needs root, to make the system; nothing else does. Whatever is
started dies with this process.
"""

from collections.abc import Iterator
import contextlib
import ctypes
import dataclasses
import io
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

from nova_kvm_ext.boot import testguest
from nova_kvm_ext.tests.kvm import disks
from nova_kvm_ext.tests import roots

# What a machine does when it goes on from its state.
_START = r"""
import importlib, os, runpy, stevedore._cache, traceback
# This package has come since.
importlib.invalidate_caches()
stevedore._cache._c._internal.clear()
code = 3
try:
    runpy.run_module('nova_kvm_ext.tests.kvm.inside', run_name='__main__')
except SystemExit as e:
    code = e.code
except BaseException:
    traceback.print_exc()
with open('/dev/virtio-ports/exit', 'w') as port:
    port.write(f'{code}\n')
# Nova's threads are not daemons.
os._exit(0)
"""

_COMMAND = """\
#!/opt/venv/bin/python3
import sys
from nova_kvm_ext.cmd.main import main
sys.exit(main())
"""

_TESTS_BYTES = 128 * 2**20

_PORTS = ('results', 'said', 'exit')
_PR_SET_PDEATHSIG = 1  # Linux include/uapi/linux/prctl.h

_TOP = pathlib.Path(__file__).parents[3]


def _pack(path: pathlib.Path, guest: str, told: dict[str, object]) -> None:
    """Write the disk with what changes from run to run: a tar.

    :param guest: the test guest's image
    :param told: for nova_kvm_ext.tests.kvm.inside
    """
    site = f'lib/{disks.python()}/site-packages'
    with tempfile.TemporaryDirectory() as tree, tarfile.open(
            path, 'w') as tar:
        for name in ('nova_kvm_ext', 'nova'):
            shutil.copytree(
                _TOP / name, pathlib.Path(tree, name),
                ignore=shutil.ignore_patterns(
                    '__pycache__', 'cloud', 'conformance', 'data', 'unit'))
        # Compiling them inside would take a minute.
        disks.run([sys.executable, '-m', 'compileall', '-q',
                   '--invalidation-mode', 'unchecked-hash', '-s', tree, tree])
        for name in ('nova_kvm_ext', 'nova'):
            # The clock in there has stood still since it booted.
            tar.add(pathlib.Path(tree, name), f'{site}/{name}',
                    filter=lambda entry: entry.replace(
                        mtime=0, deep=False))
        for information in disks.site().glob('nova_kvm_ext-*.dist-info'):
            tar.add(information, f'{site}/{information.name}')
        tar.add(guest, 'testguest.raw')
        for name, text in (('bin/nova-kvm-ext', _COMMAND),
                           ('machine.json', json.dumps(told)),
                           ('start.py', _START)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o755
            tar.addfile(entry, io.BytesIO(text.encode()))
    # A disk does not change its size while it is there.
    os.truncate(path, _TESTS_BYTES)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of machine. All of one kind continue from the same state.

    It has one CPU and the host's clock. One that uses instructions (QEMU's
    ``-icount``) would suit a busy host, but with it guests hang: QEMU leaves
    the interrupt that it gives a guest in ``exception_index``, and gives it
    again, whatever the guest does then, when its loop ends for a timer before
    the guest has left for the machine (helper_vmrun; QEMU 7.2). Without, the
    loop ends for what makes the guest leave.

    :ivar hostname: as it calls itself
    :ivar cpu: as QEMU's option ``-cpu`` has it
    :ivar memory_mib: its memory
    :ivar network: the other side of its card, as QEMU's option ``-netdev``
        has it, but for the address; '' for no card
    """

    hostname: str
    cpu: str
    memory_mib: int = 2048
    network: str = ''

    def arguments(self) -> list[str]:
        """Those of QEMU which make the machine what its state is of."""
        arguments = [
            f'qemu-system-{platform.machine()}', '-nodefaults',
            '-no-user-config', '-display', 'none', '-machine', 'q35',
            '-accel', 'tcg', '-cpu', self.cpu, '-m', str(self.memory_mib),
            '-append', 'root=/dev/vda rw console=ttyS0 quiet audit=0 '
            'apparmor=0 mitigations=off cryptomgr.notests no_timer_check '
            # No waiting for a guest in a loop: emulated, that is slow.
            'tsc=reliable kvm.halt_poll_ns=0 systemd.show_status=0 '
            f'systemd.hostname={self.hostname}',
            '-object', 'rng-random,id=rng,filename=/dev/urandom',
            '-device', 'virtio-rng-pci,rng=rng', '-device', 'virtio-serial']
        for port in _PORTS:
            arguments += [
                '-device', f'virtserialport,chardev={port},name={port}']
        if self.network:
            arguments += ['-device', 'virtio-net-pci,netdev=network']
        return arguments


class Machine:
    """A machine that runs tests and then switches itself off.

    :param name: of its files
    :param told: what :mod:`nova_kvm_ext.tests.kvm.inside` is to do
    """

    def __init__(self, name: str, kind: Kind, told: dict[str, object],
                 output: pathlib.Path) -> None:
        self.name = name
        self._kind = kind
        self._told = told
        self._output = output
        self._read = 0
        self._process: subprocess.Popen[str] | None = None

    def _start(self, parts: disks.Disks, disk: pathlib.Path, how: str,
               network: str, *more: str) -> subprocess.Popen[str]:
        # From within the cache, so that no path has what QEMU or a shell
        # would take for something else.
        cache = parts.system.parent

        def name(path: pathlib.Path) -> str:
            return os.path.relpath(path, cache)

        arguments = [*self._kind.arguments(), '-kernel', name(parts.kernel),
                     '-initrd', name(parts.initrd), '-serial',
                     'chardev:console']
        read_only = 'format=raw,readonly=on'
        for path, options in ((disk, how), (parts.python, read_only),
                              (self.path('tar'), read_only)):
            arguments += ['-drive', f'file={name(path)},{options},if=virtio']
        for port in ('console', *_PORTS):
            self.path(port).write_bytes(b'')
            arguments += [
                '-chardev', f'file,id={port},path={name(self.path(port))}']
        if network:
            arguments += ['-netdev', f'{network},id=network']
        self._process = subprocess.Popen(
            [*arguments, *more], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=cache, preexec_fn=_die_with_parent,
            # Ctrl-C is for this process, which ends it.
            start_new_session=True)
        return self._process

    def state(self, parts: disks.Disks) -> tuple[pathlib.Path, pathlib.Path]:
        """Where its state is kept: disk and memory."""
        arguments = self._kind.arguments()
        name = disks.digest((parts.system.name, parts.python.name, arguments,
                             disks.run([arguments[0], '--version'])))
        disk = parts.system.with_name(f'state-{name}.qcow2')
        return disk, disk.with_suffix('.memory')

    def boot(self, parts: disks.Disks) -> None:
        """Boot it, for :meth:`keep_state`."""
        disks.say(
            f'Booting {self._kind.hostname} (two minutes, and not again)')
        disk, _ = self.state(parts)
        with open(self.path('tar'), 'wb') as f:
            f.truncate(_TESTS_BYTES)
        disks.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-b',
                   parts.system, '-F', 'raw', disk])
        self._start(parts, disk, 'format=qcow2',
                    self._kind.network and 'hubport,hubid=0',
                    '-monitor', 'stdio')

    def keep_state(self, parts: disks.Disks) -> None:
        """Wait until it has booted, and end it with its state kept.

        :raises MachineError: it does not boot
        """
        assert self._process is not None
        while not self.path('exit').read_text():
            if self._process.poll() is not None:
                raise disks.MachineError(f'{self.name} does not boot: '
                                         f'{self.last_words()}')
            time.sleep(0.5)
        _, memory = self.state(parts)
        with roots.made(memory) as new:
            said, _ = self._process.communicate(
                'migrate_set_parameter max-bandwidth 10G\n'
                f'migrate "exec:cat > {new.name}"\n'
                'info migrate\nquit\n')
            if 'Migration status: completed' not in said:
                raise disks.MachineError(f'The state of {self.name} cannot be '
                                         f'saved: {said}')

    def start(self, parts: disks.Disks) -> None:
        """Start it from its state, to run its tests."""
        network = self._kind.network
        link = self._output / 'link'
        disk, memory = self.state(parts)
        for path in (disk, memory):
            os.utime(path)
        _pack(self.path('tar'), testguest.build(str(parts.guests)).path,
              self._told)
        if network:
            network += (',addr.type=unix,addr.path=' +
                        os.path.relpath(link, parts.system.parent))
        self._start(parts, disk, 'format=qcow2,snapshot=on', network,
                    '-incoming', f'exec:cat {memory.name}')
        # The other one connects once.
        while ('server=on' in network and not self.ended() and
                not link.exists()):
            time.sleep(0.1)

    def path(self, port: str) -> pathlib.Path:
        return self._output / f'{self.name}.{port}'

    def news(self) -> Iterator[dict[str, object]]:
        """What it has said since the last time."""
        with open(self.path('said'), 'rb') as f:
            f.seek(self._read)
            for line in f:
                if not line.endswith(b'\n'):
                    break
                self._read += len(line)
                yield json.loads(line)

    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def stop(self) -> None:
        """End it, if it has not ended by itself."""
        if self._process is None:
            return
        if not self.ended():
            self._process.kill()
        self._process.wait()
        self.path('tar').unlink(missing_ok=True)

    def exit_code(self) -> int | None:
        """Of the tests; None where they did not come to their end."""
        with contextlib.suppress(OSError, ValueError):
            return int(self.path('exit').read_text())
        return None

    def last_words(self) -> str:
        """What QEMU said, and the end of the console."""
        assert self._process is not None
        assert self._process.stdout is not None
        console = ''
        with contextlib.suppress(OSError):
            console = self.path('console').read_text(errors='replace')
        return f'{self._process.stdout.read()}{console[-4000:]}'


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
