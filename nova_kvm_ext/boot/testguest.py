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

"""Builds the disk image of a small temporary test guest.

The guest is made of this host's own kernel, busybox and guest agent, so it
needs no download: a raw disk with an MBR, a FAT partition with SYSLINUX, the
kernel and an initramfs whose /init (testguest_init.sh) prints the report that
nova_kvm_ext.boot.report parses, and a small ext4 partition, so that there is a
file system that the guest agent can freeze.

This module only makes the file. It must not need root, a loop device or the
network, and must not start a guest.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import errno
import fcntl
import gzip
import hashlib
from importlib import resources
import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile

# Raise this when the image changes though none of its inputs does.
_FORMAT = 2

_PREFIX = 'testguest-'
_TEMPORARY = '.testguest-'
_LOCK = '.testguest.lock'
_INIT = 'testguest_init.sh'

_SECTOR = 512
_PARTITION_START = 2048
_FAT16_LBA = 0x0e
_LINUX = 0x83
_MIB = 1024 * 1024
# The least in which mke2fs makes a journal is 2 MiB.
_DATA_MIB = 4
_TOOL_TIMEOUT = 120

# In the order they are loaded. The console driver comes early because the
# kernel learns the names of its ports only some time after. A driver that
# this kernel has built in, or has not at all, is left out.
_MODULES = (
    'virtio_pci', 'virtio_console', 'cpuid', 'virtio_blk', 'virtio_net',
    'virtio_rng', 'sd_mod', 'virtio_scsi', 'ahci', 'ata_piix', 'e1000',
    'e1000e', 'button', 'evdev', 'crc32c_generic', 'ext4')

_BUSYBOX = ('usr/bin/busybox', 'usr/sbin/busybox', 'bin/busybox',
            'sbin/busybox')
_AGENT = ('usr/sbin/qemu-ga', 'usr/bin/qemu-ga')
_MBR = ('usr/lib/syslinux/mbr/mbr.bin', 'usr/share/syslinux/mbr.bin')
_KERNELS = ('boot/vmlinuz-{}', 'lib/modules/{}/vmlinuz')

# What is needed: its packages in Debian and in Fedora.
_PACKAGES = {
    'a readable kernel with its modules': ('linux-image-amd64',
                                           'kernel-core'),
    'busybox': ('busybox-static', 'busybox'),
    'mbr.bin of SYSLINUX': ('syslinux-common', 'syslinux-nonlinux'),
    'mformat': ('mtools', 'mtools'),
    'mcopy': ('mtools', 'mtools'),
    'syslinux': ('syslinux', 'syslinux'),
    'mke2fs': ('e2fsprogs', 'e2fsprogs'),
    'ldd': ('libc-bin', 'glibc-common'),
    'zstd': ('zstd', 'zstd'),
}
_TOOLS = ('mformat', 'mcopy', 'syslinux', 'mke2fs', 'ldd')
# mke2fs is there and in no ordinary user's PATH.
_SBIN = '/usr/sbin:/sbin'

# All but the console is there to save time: nothing of it changes what the
# guest can see of its hardware.
_BOOT_CONFIG = """\
DEFAULT testguest
PROMPT 0
LABEL testguest
  LINUX /vmlinuz
  INITRD /initrd
  APPEND console=ttyS0,115200 quiet nokaslr rdinit=/init audit=0 apparmor=0 \
selinux=0 no_timer_check tsc=reliable cryptomgr.notests
"""

# The guest agent runs this for guest-shutdown. There is no init system to
# ask, and no disk in use to take care of. The agent says "-h -r +0 ...".
_SHUTDOWN = """\
#!/bin/busybox sh
echo "@nke shutdown $*" > /dev/console
case " $* " in
    *" -r "*) reboot -f ;;
    *" -H "*) halt -f ;;
    *) poweroff -f ;;
esac
"""
_FSFREEZE_HOOK = """\
#!/bin/busybox sh
echo "@nke fsfreeze $1" > /dev/console
"""
_POWER_BUTTON = """\
#!/bin/busybox sh
poweroff -f
"""
_SCRIPTS = {
    'sbin/shutdown': _SHUTDOWN,
    'etc/fsfreeze-hook': _FSFREEZE_HOOK,
    # Where busybox acpid looks for what to do.
    'etc/acpi/PWRF/00000080': _POWER_BUTTON,
}
_DIRECTORIES = ('data', 'dev', 'proc', 'sys', 'run', 'tmp', 'var/log',
                'var/run')


class BuildError(Exception):
    """The image cannot be built; str() is one sentence with the remedy."""


@dataclasses.dataclass(frozen=True)
class TestGuest:
    """A finished image.

    :ivar path: absolute path of the raw image
    :ivar kernel: version of the kernel in it, as `uname -r` says it
    :ivar agent: whether the QEMU guest agent is in it
    :ivar cached: whether an earlier build's image was used as it is
    """

    path: str
    kernel: str
    agent: bool
    cached: bool


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """The host's files that go into the image, as absolute paths.

    :ivar modules: in load order
    :ivar libraries: path in the guest -> path on the host
    """

    version: str
    kernel: str
    modules: Sequence[str]
    busybox: str
    agent: str | None
    libraries: Mapping[str, str]
    mbr: str
    syslinux: str
    init: bytes

    def digest(self) -> str:
        """A name for what an image made of these would contain.

        Contents are hashed, of big files too: all are some 20 MB and take
        less time than one process of the build, and no package manager's way
        with time stamps can make a stale image look fresh. SYSLINUX's
        installer carries the boot loader in itself, so it counts.
        """
        digest = hashlib.sha256()
        texts = (_FORMAT, self.version, _BOOT_CONFIG, sorted(_SCRIPTS.items()),
                 self.agent is not None, sorted(self.libraries), self.init,
                 [os.path.basename(module) for module in self.modules])
        digest.update(repr(texts).encode())
        for path in (self.kernel, *self.modules, self.busybox, self.agent,
                     *(self.libraries[key] for key in sorted(self.libraries)),
                     self.mbr, self.syslinux):
            if path is not None:
                with open(path, 'rb') as content:
                    digest.update(
                        hashlib.file_digest(content, 'sha256').digest())
        return digest.hexdigest()[:16]


def build(
    cache_dir: str,
    *,
    root: str = '/',
    progress: Callable[[str], None] = lambda _: None,
) -> TestGuest:
    """Build the test guest's image, or find it already built.

    :param cache_dir: directory the image is kept in; made (mode 0755) when
        it is missing. Other images of this builder in it are removed once a
        new one is there.
    :param root: directory under which the kernel, modules, busybox, guest
        agent and mbr.bin are looked for; tools and the libraries that ldd
        names always come from the running system
    :param progress: told, in a few words each, the steps of a build; not
        called when the image is there already
    :returns: the image; safe to call from several processes at once
    :raises BuildError: something needed is missing, a tool failed, or
        cache_dir cannot be written
    """
    cache_dir = os.path.abspath(cache_dir)
    try:
        inputs = _find_inputs(root)
        path = os.path.join(cache_dir, f'{_PREFIX}{inputs.digest()}.raw')
        cached = os.path.exists(path)
        if not cached:
            _make_directory(cache_dir)
            with _locked(cache_dir):
                # Another process may have built it while this one waited.
                cached = os.path.exists(path)
                if not cached:
                    _build_locked(inputs, path, progress)
    except OSError as e:
        remedy = 'check the path and its permissions'
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = 'free 100 MB there or use another directory'
        where = f' ({e.filename})' if e.filename else ''
        raise BuildError(
            f'The test guest cannot be built in {cache_dir}: '
            f'{e.strerror}{where}; {remedy}.') from e
    return TestGuest(path=path, kernel=inputs.version,
                     agent=inputs.agent is not None, cached=cached)


def _build_locked(
    inputs: _Inputs, path: str, progress: Callable[[str], None]
) -> None:
    """Build the image at path; the caller holds the lock of its directory."""
    cache_dir = os.path.dirname(path)
    # No other build can be running: these are left over from killed ones.
    for name in os.listdir(cache_dir):
        if name.startswith(_TEMPORARY):
            shutil.rmtree(os.path.join(cache_dir, name))
    # In cache_dir itself, because a rename is atomic within a filesystem.
    with tempfile.TemporaryDirectory(
            prefix=_TEMPORARY, dir=cache_dir) as work_dir:
        progress(f'packing kernel {inputs.version} and its initramfs')
        initrd = _make_initrd(inputs, work_dir)
        progress('writing the disk image')
        image = _make_disk(inputs, initrd, work_dir)
        os.chmod(image, 0o644)
        os.replace(image, path)
    for name in os.listdir(cache_dir):
        if (re.fullmatch(re.escape(_PREFIX) + r'[0-9a-f]{16}\.raw', name) and
                name != os.path.basename(path)):
            os.unlink(os.path.join(cache_dir, name))


def _make_directory(path: str) -> None:
    # The mode of a directory that someone else made is theirs to choose.
    if not os.path.isdir(path):
        os.makedirs(path, exist_ok=True)
        # QEMU's user must get in, whatever this process's umask is.
        os.chmod(path, 0o755)


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    # The kernel drops the lock of a process that dies. The file stays: a
    # removed lock file would let two processes hold "the" lock.
    with open(os.path.join(directory, _LOCK), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _find_inputs(root: str) -> _Inputs:
    version, kernel = _find_kernel(root)
    busybox = _first_readable(root, _BUSYBOX)
    mbr = _first_readable(root, _MBR)
    found = {
        'a readable kernel with its modules': kernel,
        'busybox': busybox,
        'mbr.bin of SYSLINUX': mbr,
        **{tool: shutil.which(tool, path=_path()) for tool in _TOOLS},
    }
    missing = [what for what, path in found.items() if not path]
    agent = _first_readable(root, _AGENT)
    if missing:
        raise _missing(missing, agent=bool(agent))
    assert busybox and mbr and found['syslinux']
    libraries = _libraries(busybox)
    if agent:
        libraries |= _libraries(agent)
    return _Inputs(
        version=version, kernel=kernel,
        modules=_find_modules(os.path.join(root, 'lib/modules', version)),
        busybox=busybox, agent=agent, libraries=libraries, mbr=mbr,
        syslinux=found['syslinux'],
        init=resources.files(__package__).joinpath(_INIT).read_bytes())


def _path() -> str:
    return f'{os.environ.get("PATH", os.defpath)}:{_SBIN}'


def _missing(what: Sequence[str], agent: bool = True) -> BuildError:
    """An error that names everything to install at once.

    :param agent: whether there is a guest agent, which need not be
    """
    def packages(index: int) -> str:
        return ' '.join(sorted({_PACKAGES[name][index] for name in what}))

    return BuildError(
        f'The test guest cannot be built without {", ".join(what)}; install '
        f'{packages(0)} (Debian) or {packages(1)} (Fedora)'
        f'{"" if agent else ", and qemu-guest-agent for a guest with an "}'
        f'{"" if agent else "agent"}.')


def _first_readable(root: str, names: Sequence[str]) -> str | None:
    paths = (os.path.join(root, name) for name in names)
    return next((path for path in paths
                 if os.path.isfile(path) and os.access(path, os.R_OK)), None)


def _find_kernel(root: str) -> tuple[str, str]:
    """The newest usable kernel's version and path, or two empty strings."""
    try:
        versions = os.listdir(os.path.join(root, 'lib/modules'))
    except FileNotFoundError:
        versions = []
    for version in sorted(versions, key=_version_key, reverse=True):
        kernel = _first_readable(
            root, [name.format(version) for name in _KERNELS])
        if kernel and os.access(
                os.path.join(root, 'lib/modules', version, 'modules.dep'),
                os.R_OK):
            return version, kernel
    return '', ''


def _version_key(version: str) -> list[tuple[int, int, str]]:
    return [(1, int(part), '') if part.isdigit() else (0, 0, part)
            for part in re.findall(r'[0-9]+|[^0-9]+', version)]


def _find_modules(directory: str) -> list[str]:
    """Paths of the modules to load, each after those it depends on."""
    available = {}
    with open(os.path.join(directory, 'modules.dep')) as lines:
        for line in lines:
            path, _, dependencies = line.partition(':')
            name = os.path.basename(path).partition('.')[0].replace('-', '_')
            # depmod lists what a module needs last-to-load first.
            available[name] = [*reversed(dependencies.split()), path]
    paths = [path for name in _MODULES for path in available.get(name, ())]
    return [os.path.join(directory, path) for path in dict.fromkeys(paths)]


def _libraries(binary: str) -> dict[str, str]:
    """The shared libraries of binary: path in the guest -> path here."""
    result = _run_unchecked(['ldd', binary])
    if result.returncode:
        if b'not a dynamic executable' in result.stderr + result.stdout:
            return {}
        raise _failed(result)
    if b'not found' in result.stdout:
        raise BuildError(f'{binary} lacks a shared library; reinstall its '
                         f'package: {_one_line(result.stdout)}.')
    libraries = {}
    # "name => path (address)", or "path (address)" for the loader.
    for path in re.findall(r'(/\S+) \(0x', result.stdout.decode()):
        # The guest's CPU may lack what a variant built for this one needs.
        plain = re.sub(r'/glibc-hwcaps/[^/]+', '', path)
        libraries[plain] = plain if os.path.exists(plain) else path
    return libraries


def _make_initrd(inputs: _Inputs, work_dir: str) -> str:
    tree = os.path.join(work_dir, 'tree')

    def place(name: str) -> str:
        path = os.path.join(tree, name.lstrip('/'))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def script(name: str, content: bytes) -> None:
        with open(place(name), 'wb') as output:
            output.write(content)
        os.chmod(place(name), 0o755)

    for name in _DIRECTORIES:
        os.makedirs(os.path.join(tree, name))
    script('init', inputs.init)
    for name, text in _SCRIPTS.items():
        script(name, text.encode())
    script('bin/busybox', _read(inputs.busybox))
    for applet in _run([inputs.busybox, '--list']).decode().split():
        if applet != 'busybox':
            os.symlink('busybox', place(f'bin/{applet}'))
    if inputs.agent:
        script('usr/sbin/qemu-ga', _read(inputs.agent))
    for name, path in inputs.libraries.items():
        script(name, _read(path))
    # Decompressed, side by side and in a written order: the guest then needs
    # nothing but insmod, which every busybox has in the same form.
    order = []
    for path in inputs.modules:
        name, content = _read_module(path)
        with open(place(f'lib/modules/{name}'), 'wb') as output:
            output.write(content)
        order.append(f'{name}\n')
    with open(place('lib/modules/order'), 'w') as listing:
        listing.writelines(order)

    names = sorted(
        os.path.relpath(os.path.join(parent, name), tree)
        for parent, directories, files in os.walk(tree)
        for name in (*directories, *files))
    archive = _run([inputs.busybox, 'cpio', '-o', '-H', 'newc'], cwd=tree,
                   stdin='\n'.join(names).encode())
    initrd = os.path.join(work_dir, 'initrd')
    # Uncompressed it would be bigger and boot no faster.
    with gzip.open(initrd, 'wb', compresslevel=6) as compressed:
        compressed.write(archive)
    return initrd


def _read(path: str) -> bytes:
    with open(path, 'rb') as content:
        return content.read()


def _read_module(path: str) -> tuple[str, bytes]:
    """A module's file name and content, without its compression."""
    name, suffix = os.path.splitext(os.path.basename(path))
    if suffix == '.ko':
        return name + suffix, _read(path)
    if suffix == '.xz':
        return name, lzma.decompress(_read(path))
    if suffix == '.gz':
        return name, gzip.decompress(_read(path))
    return name, _run(['zstd', '-dcq', path])


def _make_disk(inputs: _Inputs, initrd: str, work_dir: str) -> str:
    content = os.path.getsize(inputs.kernel) + os.path.getsize(initrd)
    # The FAT itself, the boot loader and the partition's start fit in 3 MiB.
    size = (content // _MIB + 4) * _MIB
    sectors = size // _SECTOR - _PARTITION_START
    image = os.path.join(work_dir, 'image')
    with open(image, 'wb') as disk:
        # Every byte is written: no holes, and a full disk shows here.
        for _ in range(size // _MIB + _DATA_MIB):
            disk.write(bytes(_MIB))
        disk.seek(0)
        disk.write(_master_boot_record(
            _read(inputs.mbr), sectors, _DATA_MIB * _MIB // _SECTOR))

    config = os.path.join(work_dir, 'syslinux.cfg')
    with open(config, 'w') as text:
        text.write(_BOOT_CONFIG)
    offset = _PARTITION_START * _SECTOR
    partition = f'{image}@@{offset}'
    # 2 KiB clusters make it FAT16 from 8 to 128 MiB.
    _run(['mformat', '-i', partition, '-T', str(sectors), '-h', '255',
          '-s', '63', '-H', str(_PARTITION_START), '-c', '4', '::'])
    _run([inputs.syslinux, '--offset', str(offset), '--install', image])
    for source, name in ((config, 'syslinux.cfg'), (inputs.kernel, 'vmlinuz'),
                         (initrd, 'initrd')):
        _run(['mcopy', '-i', partition, source, f'::{name}'])
    # Complete and without holes, so that the guest writes nothing by itself.
    _run(['mke2fs', '-q', '-F', '-t', 'ext4', '-b', '1024', '-E',
          f'offset={size},nodiscard,lazy_itable_init=0,lazy_journal_init=0',
          image, f'{_DATA_MIB}M'])
    with open(image, 'rb+') as disk:
        os.fsync(disk)
    return image


def _master_boot_record(code: bytes, sectors: int, data_sectors: int) -> bytes:
    """Boot code, the active partition and the one for data behind it.

    Everything is addressed by LBA.
    """
    no_chs = b'\xfe\xff\xff'
    entries = b''.join(
        struct.pack('<B3sB3sII', active, no_chs, kind, no_chs, start, length)
        for active, kind, start, length in (
            (0x80, _FAT16_LBA, _PARTITION_START, sectors),
            (0, _LINUX, _PARTITION_START + sectors, data_sectors)))
    return struct.pack('<440s6x64sH', code, entries, 0xaa55)


def _run(
    command: Sequence[str], *, cwd: str | None = None, stdin: bytes = b''
) -> bytes:
    """Run a tool and return its output; BuildError unless it succeeds."""
    result = _run_unchecked(command, cwd=cwd, stdin=stdin)
    if result.returncode:
        raise _failed(result)
    return result.stdout


def _run_unchecked(
    command: Sequence[str], *, cwd: str | None = None, stdin: bytes = b''
) -> subprocess.CompletedProcess[bytes]:
    # Whatever the user has set for mtools must not change the image.
    environment = os.environ | {
        'LC_ALL': 'C', 'MTOOLSRC': os.devnull, 'PATH': _path()}
    try:
        return subprocess.run(
            command, cwd=cwd, input=stdin, env=environment,
            capture_output=True, timeout=_TOOL_TIMEOUT)
    except FileNotFoundError:
        raise _missing([os.path.basename(command[0])]) from None
    except subprocess.TimeoutExpired:
        raise BuildError(
            f'{command[0]} did not finish in {_TOOL_TIMEOUT} s; look at the '
            f'host\'s load and storage: {" ".join(command)}.') from None


def _failed(result: subprocess.CompletedProcess[bytes]) -> BuildError:
    said = _one_line(result.stderr or result.stdout)
    return BuildError(
        f'The test guest cannot be built: {" ".join(result.args)} failed with '
        f'status {result.returncode}, saying: {said or "nothing"}.')


def _one_line(output: bytes) -> str:
    return ' '.join(output.decode(errors='replace').split())[:500]
