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
  takes it two minutes; each run goes on from there
* this package, packed anew for each run

All but the last are kept in a cache directory and named by a hash of what
they are made of; what a run writes is thrown away. What the machine says
comes through virtio ports: results in subunit's format, lines of JSON for who
watches, an exit code. It has no network but, where two are joined, the one
between them.

``build`` needs root, to make the system; nothing else does. Whatever is
started dies with this process.
"""

import argparse
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import ctypes
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import pathlib
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time

from nova_kvm_ext.boot import testguest
from nova_kvm_ext.tests import roots

PACKAGES = (
    'linux-image-cloud-amd64', 'systemd-sysv', 'udev', 'kmod', 'dbus',
    'libvirt-daemon-system', 'libvirt-clients', 'qemu-system-x86',
    'qemu-utils', 'python3', 'e2fsprogs', 'iproute2', 'procps', 'sudo',
    'util-linux')

# Nova's user, and what in the machine mounts the other disks and starts the
# tests. The environment is a copy on write, so that this package can be put
# into it; what of an editable installation it has points to nowhere.
_SETUP = r"""
set -eu
useradd --root "$1" --system --create-home --home-dir /var/lib/nova \
    --groups libvirt,kvm nova
echo 'nova ALL=(root) NOPASSWD: /opt/venv/bin/privsep-helper *' \
    > "$1"/etc/sudoers.d/nova
mkdir -p "$1"/opt/venv "$1"/opt/base
echo kvm-host > "$1"/etc/hostname
echo '127.0.0.1 localhost kvm-host' > "$1"/etc/hosts
echo '/dev/vda / ext4 noatime 0 1' > "$1"/etc/fstab
touch "$1"/etc/nova-kvm-ext-machine
cat > "$1"/usr/local/sbin/nova-kvm-ext-tests <<'END'
#!/bin/sh
mount -o ro /dev/vdb /opt/base
mount -t tmpfs -o size=512m none /mnt
mkdir /mnt/new /mnt/work
mount -t overlay -o lowerdir=/opt/base,upperdir=/mnt/new,workdir=/mnt/work \
    none /opt/venv
cd /opt/venv
rm -rf lib/python3*/site-packages/*nova_kvm_ext*
find bin -maxdepth 1 -type f -exec \
    sed -i '1s,^#!.*python.*,#!/opt/venv/bin/python3,' {} +
for name in bin/python*; do ln -sf /usr/bin/python3 $name; done
echo 'home = /usr/bin' > pyvenv.cfg
udevadm settle
modprobe kvm_amd
virsh -q domcapabilities --virttype kvm > /dev/null
exec bin/python3 -W ignore /usr/local/lib/nova-kvm-ext-wait.py
END
cat > "$1"/usr/local/lib/nova-kvm-ext-wait.py <<'END'
# First of all, as in boot/worker.py.
import nova.cmd.compute

import mmap, os, subprocess, time
import cliff.app, libvirt, lxml.etree, oslo_upgradecheck.upgradecheck
import oslotest.base, subunit, testtools
import nova.compute.utils, nova.db.main.api, nova.virt.libvirt.driver
import nova.virt.fake
import sqlalchemy.dialects.sqlite.pysqlite, sqlalchemy.orm, sqlite3

nova.objects.register_all()
sqlalchemy.orm.configure_mappers()
with open('/dev/virtio-ports/exit', 'w') as port:
    port.write('ready\n')
# The state is that of a machine that waits here: the disk is still empty, and
# must be read past the kernel's memory of it.
disk = os.open('/dev/vdc', os.O_RDONLY | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
while not page[:].strip(b"\0"):
    time.sleep(0.2)
    os.preadv(disk, [page], 0)
subprocess.run('dd if=/dev/vdc iflag=direct bs=1M status=none | '
               'tar -x --no-same-owner -C /opt/venv', shell=True)
with open('/opt/venv/start.py') as f:
    exec(compile(f.read(), f.name, 'exec'))
END
chmod +x "$1"/usr/local/sbin/nova-kvm-ext-tests
cat > "$1"/etc/systemd/system/nova-kvm-ext-tests.service <<'END'
[Unit]
Description=Tests of nova-kvm-ext
After=libvirtd.service libvirtd.socket systemd-modules-load.service
Wants=libvirtd.socket
[Service]
Type=simple
ExecStart=/usr/local/sbin/nova-kvm-ext-tests
ExecStopPost=systemctl poweroff --force
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
Environment=PATH=/opt/venv/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
Environment=LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
Environment=OS_NOVA_DISABLE_EVENTLET_PATCHING=true
[Install]
WantedBy=multi-user.target
END
systemctl --quiet --root "$1" enable nova-kvm-ext-tests.service
systemctl --quiet --root "$1" mask apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer fstrim.timer getty.target \
    systemd-timesyncd.service
"""

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

_KEEP_SECONDS = 7 * 24 * 3600

# What a run may take. One that hangs must not hold up a gate for ever.
_DEADLINE = 45 * 60
_PORTS = ('results', 'said', 'exit')
_PR_SET_PDEATHSIG = 1  # Linux include/uapi/linux/prctl.h

_TOP = pathlib.Path(__file__).parents[3]


class MachineError(Exception):
    """It cannot be built or run; str() is a sentence with the remedy."""


def _say(text: str) -> None:
    print(f'==> {text}', flush=True)


def _run(command: Sequence[str | os.PathLike[str]], given: str = '') -> str:
    try:
        done = subprocess.run(command, input=given, text=True,
                              stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
    except FileNotFoundError as e:
        raise MachineError(f'{e.filename} is not installed: tools/prepare '
                           f'test installs what is needed.') from e
    if done.returncode:
        raise MachineError(f'{command[0]} failed: {done.stdout[-3000:]}')
    return done.stdout


# What it is made of


@dataclasses.dataclass(frozen=True)
class Disks:
    """The parts that are kept in the cache."""

    system: pathlib.Path
    python: pathlib.Path

    @property
    def guests(self) -> pathlib.Path:
        return self.system.parent

    @property
    def kernel(self) -> pathlib.Path:
        return self.system.with_suffix('.vmlinuz')

    @property
    def initrd(self) -> pathlib.Path:
        return self.system.with_suffix('.initrd')

    @classmethod
    def find(cls, cache: pathlib.Path) -> 'Disks':
        """Their places, whether they are there already or not."""
        return cls(cache / f'system-{_digest(_system_inputs())}.ext4',
                   cache / f'python-{_digest(_python_inputs())}.ext4')

    def there(self) -> bool:
        return all(path.exists() for path in (
            self.system, self.kernel, self.initrd, self.python))

    def touch(self) -> None:
        """Note that they are in use."""
        for path in (self.system, self.kernel, self.initrd, self.python):
            os.utime(path)


def _digest(inputs: object) -> str:
    return hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]


def _codename() -> str:
    return platform.freedesktop_os_release().get('VERSION_CODENAME', '')


def _system_inputs() -> object:
    """What the system's disk depends on, newer packages included."""
    versions = [line for line in _run(['apt-cache', 'policy', *PACKAGES])
                .splitlines() if not line.startswith('  ') or
                'Candidate:' in line]
    return _SETUP, roots.sources(_codename()), versions


def _python_inputs() -> object:
    """What the environment has in it, but for this package."""
    packages = sorted(
        path.name for path in _site().glob('*.dist-info')
        if not path.name.startswith('nova_kvm_ext-'))
    return sys.prefix, packages


def _site() -> pathlib.Path:
    return pathlib.Path(sysconfig.get_path('purelib'))


def _python() -> str:
    return f'python{sys.version_info.major}.{sys.version_info.minor}'


def _make_ext4(tree: pathlib.Path, path: pathlib.Path, label: str,
               size: str) -> None:
    with roots.made(path) as new:
        # Sparse: it is as big as what is in it.
        _run(['mke2fs', '-q', '-t', 'ext4', '-L', label, '-d', tree,
              '-m', '0', '-O', '^has_journal', new, size])


def _make_system(disks: Disks) -> None:
    codename = _codename()
    with tempfile.TemporaryDirectory(
            prefix='nova-kvm-ext-machine-', dir='/var/tmp') as work:
        root = pathlib.Path(work, 'root')
        setup = pathlib.Path(work, 'setup')
        setup.write_text(_SETUP)
        _run(['mmdebstrap', '--variant=apt', '--mode=root', '--quiet',
              f'--include={",".join(PACKAGES)}',
              '--aptopt=APT::Install-Recommends "false"',
              '--dpkgopt=force-unsafe-io',
              *(f'--dpkgopt=path-exclude=/usr/share/{name}/*'
                for name in ('doc', 'man', 'locale', 'info')),
              f'--customize-hook=sh {setup} "$1"', codename, root, '-'],
             given=roots.sources(codename))
        if not (root / 'usr' / 'bin' / _python()).exists():
            found = os.path.realpath(root / 'usr/bin/python3')
            raise MachineError(
                f'This environment has {_python()}, the machine '
                f'{os.path.basename(found)}: make the environment with the '
                f'distribution\'s own Python (PYTHON=/usr/bin/python3 '
                f'tools/prepare test).')
        for name, path in (('vmlinuz', disks.kernel),
                           ('initrd.img', disks.initrd)):
            with roots.made(path) as new:
                shutil.copyfile(next(root.glob(f'boot/{name}-*')), new)
        _make_ext4(root, disks.system, 'system', '6G')


def _tidy(cache: pathlib.Path) -> None:
    """Remove what has not been used for long."""
    for path in cache.glob('*-' + '[0-9a-f]' * 16 + '.*'):
        if time.time() - path.stat().st_mtime > _KEEP_SECONDS:
            path.unlink()


def build(disks: Disks) -> None:
    """Make what the cache lacks.

    :raises MachineError: it cannot be
    """
    started = time.monotonic()
    if not (disks.system.exists() and disks.kernel.exists() and
            disks.initrd.exists()):
        _say('Building the system of the machine (3 to 5 minutes)')
        _make_system(disks)
    if not disks.python.exists():
        _say(f'Packing {sys.prefix}')
        _make_ext4(pathlib.Path(sys.prefix), disks.python, 'python', '4G')
    _say(f'The machine is built ({time.monotonic() - started:.0f} s)')


# A run of it


def _pack(path: pathlib.Path, guest: str, told: dict[str, object]) -> None:
    """Write the disk with what changes from run to run: a tar.

    :param guest: the test guest's image
    :param told: for nova_kvm_ext.tests.kvm.inside
    """
    site = f'lib/{_python()}/site-packages'
    with tempfile.TemporaryDirectory() as tree, tarfile.open(
            path, 'w') as tar:
        for name in ('nova_kvm_ext', 'nova'):
            shutil.copytree(
                _TOP / name, pathlib.Path(tree, name),
                ignore=shutil.ignore_patterns(
                    '__pycache__', 'cloud', 'conformance', 'data', 'unit'))
        # Compiling them inside would take a minute.
        _run([sys.executable, '-m', 'compileall', '-q', '--invalidation-mode',
              'unchecked-hash', '-s', tree, tree])
        for name in ('nova_kvm_ext', 'nova'):
            # The clock in there has stood still since it booted.
            tar.add(pathlib.Path(tree, name), f'{site}/{name}',
                    filter=lambda entry: entry.replace(
                        mtime=0, deep=False))
        for information in _site().glob('nova_kvm_ext-*.dist-info'):
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
    """A kind of machine. All of one kind go on from the same state.

    It has one CPU and the host's clock. One that goes by instructions (QEMU's
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

    def _start(self, disks: Disks, disk: pathlib.Path, how: str,
               network: str, *more: str) -> subprocess.Popen[str]:
        # From within the cache, so that no path has what QEMU or a shell
        # would take for something else.
        cache = disks.system.parent

        def name(path: pathlib.Path) -> str:
            return os.path.relpath(path, cache)

        arguments = [*self._kind.arguments(), '-kernel', name(disks.kernel),
                     '-initrd', name(disks.initrd), '-serial',
                     'chardev:console']
        read_only = 'format=raw,readonly=on'
        for path, options in ((disk, how), (disks.python, read_only),
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

    def state(self, disks: Disks) -> tuple[pathlib.Path, pathlib.Path]:
        """Where its state is kept: disk and memory."""
        arguments = self._kind.arguments()
        name = _digest((disks.system.name, disks.python.name, arguments,
                        _run([arguments[0], '--version'])))
        disk = disks.system.with_name(f'state-{name}.qcow2')
        return disk, disk.with_suffix('.memory')

    def boot(self, disks: Disks) -> None:
        """Boot it, for :meth:`keep_state`."""
        _say(f'Booting {self._kind.hostname} (two minutes, and not again)')
        disk, _ = self.state(disks)
        with open(self.path('tar'), 'wb') as f:
            f.truncate(_TESTS_BYTES)
        _run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-b', disks.system,
              '-F', 'raw', disk])
        self._start(disks, disk, 'format=qcow2',
                    self._kind.network and 'hubport,hubid=0',
                    '-monitor', 'stdio')

    def keep_state(self, disks: Disks) -> None:
        """Wait until it has booted, and end it with its state kept.

        :raises MachineError: it does not boot
        """
        assert self._process is not None
        while not self.path('exit').read_text():
            if self._process.poll() is not None:
                raise MachineError(f'{self.name} does not boot: '
                                   f'{self.last_words()}')
            time.sleep(0.5)
        _, memory = self.state(disks)
        with roots.made(memory) as new:
            said, _ = self._process.communicate(
                'migrate_set_parameter max-bandwidth 10G\n'
                f'migrate "exec:cat > {new.name}"\n'
                'info migrate\nquit\n')
            if 'Migration status: completed' not in said:
                raise MachineError(f'The state of {self.name} cannot be '
                                   f'saved: {said}')

    def start(self, disks: Disks) -> None:
        """Start it from its state, to run its tests."""
        network = self._kind.network
        link = self._output / 'link'
        disk, memory = self.state(disks)
        for path in (disk, memory):
            os.utime(path)
        _pack(self.path('tar'), testguest.build(str(disks.guests)).path,
              self._told)
        if network:
            network += (',addr.type=unix,addr.path=' +
                        os.path.relpath(link, disks.system.parent))
        self._start(disks, disk, 'format=qcow2,snapshot=on', network,
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


def _as_row(machine: str, event: dict[str, object]) -> str:
    return (f'{machine}: {event["status"]:<8} {event["seconds"]:6.1f} s  '
            f'{str(event["id"]).removeprefix("nova_kvm_ext.tests.kvm.")}')


def _watch(machines: Sequence[Machine]) -> list[dict[str, object]]:
    """Say what machines say until all have ended; returns the fault table."""
    faults = []
    started = time.monotonic()
    over = False
    while not over:
        time.sleep(0.5)
        # Once more after the end, for what was said last.
        over = all([machine.ended() for machine in machines])
        if time.monotonic() - started > _DEADLINE:
            _say(f'Not done after {_DEADLINE / 60:.0f} minutes: given up')
            over = True
        for machine in machines:
            for event in machine.news():
                if event['event'] == 'fault':
                    faults.append(event)
                elif event['event'] == 'test':
                    print(_as_row(machine.name, event), flush=True)
                else:
                    print(f'{machine.name}: {event["text"]}', flush=True)
    return faults


def run(machines: Sequence[Machine], disks: Disks,
        output: pathlib.Path) -> bool:
    """Run machines side by side until all have switched themselves off.

    :param output: directory for what they say
    :returns: whether all tests of all machines passed
    :raises MachineError: one of them cannot run
    """
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        # Machines of the same kind have the same state.
        lacking = {}
        for machine in machines:
            stack.callback(machine.stop)
            _, memory = machine.state(disks)
            if not memory.exists():
                lacking[memory] = machine
        for machine in lacking.values():
            machine.boot(disks)
        for machine in lacking.values():
            machine.keep_state(disks)
        _say(f'Running {", ".join(m.name for m in machines)} '
             f'({time.monotonic() - started:.0f} s)')
        for machine in machines:
            machine.start(disks)
        faults = _watch(machines)
    with open(output / 'subunit', 'wb') as f:
        for machine in machines:
            f.write(machine.path('results').read_bytes())
    if faults:
        _print_faults(faults)
    codes = [machine.exit_code() for machine in machines]
    for machine, code in zip(machines, codes, strict=True):
        if code is None:
            _say(f'{machine.name} did not come to its end. Its last words:')
            print(machine.last_words(), flush=True)
    passed = set(codes) == {0}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    _say(f'{"Passed" if passed else "Failed"} after '
         f'{time.monotonic() - started:.0f} s, with '
         f'{used.ru_utime + used.ru_stime:.0f} s of CPU')
    return passed


def _print_faults(faults: Sequence[dict[str, object]]) -> None:
    """The states of a host: what we, libvirt and its validator say."""
    _say('Fault states')
    for fault in faults:
        print(f'{fault["state"]}\n'
              f'  host check           {fault["check"]}\n'
              f'  remedy               {fault["remedy"]}\n'
              f'  after --fix          {fault["fixed"]}\n'
              f'  libvirt              {fault["libvirt"]}\n'
              f'  virt-host-validate   {fault["validate"]}', flush=True)


_HOST = Kind('kvm-host', 'EPYC-Rome,+svm')
_NO_SVM = Kind('no-svm', 'EPYC-Rome,-svm', 1024)
_DESTINATION = Kind('destination', 'Opteron_G3,+svm',
                    network='stream,server=on')
_SOURCE = Kind('source', 'EPYC-Rome,+svm', network='stream,server=off')


_RUNS: dict[str, tuple[tuple[str, Kind, tuple[str, ...]], ...]] = {
    'main': (('guests', _HOST, ('test_guests',)),
             ('faults', _HOST, ('test_faults', 'test_driver')),
             ('no-svm', _NO_SVM, ('test_no_svm',))),
    # The first has no tests: it serves those of the other.
    'migration': (('destination', _DESTINATION, ()),
                  ('source', _SOURCE, ('test_migration',)))}


def _machines(what: str, pattern: re.Pattern[str],
              output: pathlib.Path) -> list[Machine]:
    """The machines of a run, which are side by side.

    :param what: key of _RUNS
    :raises MachineError: no test has that in its name
    """
    package = 'nova_kvm_ext.tests.kvm'
    found = [test for test in _run([
        sys.executable, '-W', 'ignore', '-m', 'testtools.run', '--list',
        *(f'{package}.{module}' for _, _, modules in _RUNS[what]
          for module in modules)]).split() if pattern.search(test)]
    if not found:
        raise MachineError(f'No test has {pattern.pattern} in its name.')
    machines = []
    for name, kind, modules in _RUNS[what]:
        starts = tuple(f'{package}.{module}.' for module in modules)
        tests = [test for test in found if test.startswith(starts)]
        if tests or not modules:
            machines.append(Machine(name, kind, {'tests': tests}, output))
    return machines


def _main(arguments: argparse.Namespace) -> int:
    arguments.cache = arguments.cache.resolve()
    with open(arguments.cache / '.lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f'Waiting for another run that uses {arguments.cache}')
            fcntl.flock(lock, fcntl.LOCK_EX)
        return _locked(arguments)


def _locked(arguments: argparse.Namespace) -> int:
    disks = Disks.find(arguments.cache)
    if arguments.action == 'built':
        return 0 if disks.there() else 1
    if arguments.action == 'build':
        build(disks)
        return 0
    if not disks.there():
        raise MachineError(f'There is no machine in {arguments.cache}: build '
                           f'it first.')
    disks.touch()
    _tidy(arguments.cache)
    output = arguments.cache / 'last-run'
    output.mkdir(exist_ok=True)
    for old in output.iterdir():
        old.unlink()
    machines = _machines(arguments.action, arguments.pattern, output)
    return 0 if run(machines, disks, output) else 1


def main() -> int:
    """Exit code: 0 done and passed, 1 not so, 2 it could not be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('cache', type=pathlib.Path)
    parser.add_argument('action', choices=('built', 'build', *_RUNS))
    parser.add_argument('pattern', nargs='?', default='',
                        type=re.compile)
    # So that what is started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return _main(parser.parse_args())
    except (MachineError, roots.RootError, testguest.BuildError, OSError,
            re.error) as e:
        print(e, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # As it ends a process, so that the shell script ends too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise


if __name__ == '__main__':
    sys.exit(main())
