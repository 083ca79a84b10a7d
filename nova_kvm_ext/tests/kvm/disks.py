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


"""The disks of the machine with KVM: its system, and its Python environment.

Both are kept in a cache directory and named by a hash of what they are made
of: packages and their versions for the one, what is installed for the other.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time

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

_KEEP_SECONDS = 7 * 24 * 3600


class MachineError(Exception):
    """It cannot be built or run; str() is a sentence with the remedy."""


def say(text: str) -> None:
    """Tell the person who waits which step begins."""
    print(f'==> {text}', flush=True)


def run(command: Sequence[str | os.PathLike[str]], given: str = '') -> str:
    """Run a command to its end; returns what it prints.

    :param given: its standard input
    :raises MachineError: it is not installed or fails
    """
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
        return cls(cache / f'system-{digest(_system_inputs())}.ext4',
                   cache / f'python-{digest(_python_inputs())}.ext4')

    def there(self) -> bool:
        return all(path.exists() for path in (
            self.system, self.kernel, self.initrd, self.python))

    def touch(self) -> None:
        """Note that they are in use."""
        for path in (self.system, self.kernel, self.initrd, self.python):
            os.utime(path)


def digest(inputs: object) -> str:
    """A name for what is made of these inputs, 16 digits."""
    return hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]


def _codename() -> str:
    return platform.freedesktop_os_release().get('VERSION_CODENAME', '')


def _system_inputs() -> object:
    """What the system's disk depends on, newer packages included."""
    versions = [line for line in run(['apt-cache', 'policy', *PACKAGES])
                .splitlines() if not line.startswith('  ') or
                'Candidate:' in line]
    return _SETUP, roots.sources(_codename()), versions


def _python_inputs() -> object:
    """What the environment has in it, but for this package."""
    packages = sorted(
        path.name for path in site().glob('*.dist-info')
        if not path.name.startswith('nova_kvm_ext-'))
    return sys.prefix, packages


def site() -> pathlib.Path:
    """The directory of this environment's packages."""
    return pathlib.Path(sysconfig.get_path('purelib'))


def python() -> str:
    """The name of its Python, as of the directory in lib."""
    return f'python{sys.version_info.major}.{sys.version_info.minor}'


def _make_ext4(tree: pathlib.Path, path: pathlib.Path, label: str,
               size: str) -> None:
    with roots.made(path) as new:
        # Sparse: it is as big as what is in it.
        run(['mke2fs', '-q', '-t', 'ext4', '-L', label, '-d', tree,
             '-m', '0', '-O', '^has_journal', new, size])


def _make_system(disks: Disks) -> None:
    codename = _codename()
    with tempfile.TemporaryDirectory(
            prefix='nova-kvm-ext-machine-', dir='/var/tmp') as work:
        root = pathlib.Path(work, 'root')
        setup = pathlib.Path(work, 'setup')
        setup.write_text(_SETUP)
        run(['mmdebstrap', '--variant=apt', '--mode=root', '--quiet',
             f'--include={",".join(PACKAGES)}',
             '--aptopt=APT::Install-Recommends "false"',
             '--dpkgopt=force-unsafe-io',
             *(f'--dpkgopt=path-exclude=/usr/share/{name}/*'
               for name in ('doc', 'man', 'locale', 'info')),
             f'--customize-hook=sh {setup} "$1"', codename, root, '-'],
            given=roots.sources(codename))
        if not (root / 'usr' / 'bin' / python()).exists():
            found = os.path.realpath(root / 'usr/bin/python3')
            raise MachineError(
                f'This environment has {python()}, the machine '
                f'{os.path.basename(found)}: make the environment with the '
                f'distribution\'s own Python (PYTHON=/usr/bin/python3 '
                f'tools/prepare test).')
        for name, path in (('vmlinuz', disks.kernel),
                           ('initrd.img', disks.initrd)):
            with roots.made(path) as new:
                shutil.copyfile(next(root.glob(f'boot/{name}-*')), new)
        _make_ext4(root, disks.system, 'system', '6G')


def tidy(cache: pathlib.Path) -> None:
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
        say('Building the system of the machine (3 to 5 minutes)')
        _make_system(disks)
    if not disks.python.exists():
        say(f'Packing {sys.prefix}')
        _make_ext4(pathlib.Path(sys.prefix), disks.python, 'python', '4G')
    say(f'The machine is built ({time.monotonic() - started:.0f} s)')
