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

"""Reads all facts for the host checks.

:func:`read_host` reads everything that the checks use. Readers of devices,
directories and programs are here, others in the modules ``*_facts``.

Returns frozen data; makes no decision and no remedy. Tests can replace the
root of all paths.
"""

import ast
from collections.abc import Callable
import contextlib
import dataclasses
import errno
import os
import re
import shutil
import stat
import subprocess
import sys
from typing import Any

from oslo_utils import uuidutils

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import choose
from nova_kvm_ext.cpu import reader as cpu_reader
from nova_kvm_ext import errors
from nova_kvm_ext.host import distribution
from nova_kvm_ext.host import door
from nova_kvm_ext.host import kernel_facts
from nova_kvm_ext.host import libvirt_facts
from nova_kvm_ext.host import libvirt_place
from nova_kvm_ext.host import model
from nova_kvm_ext.host import nova_python
from nova_kvm_ext.host import options
from nova_kvm_ext.host import post_copy_facts
from nova_kvm_ext.host import probe
from nova_kvm_ext.host import probe_answers
from nova_kvm_ext.host import storage_facts
from nova_kvm_ext.host import user_facts
from nova_kvm_ext.host import virt_type as virt_type_

_PROGRAM_SECONDS = 10

# nova.virt.libvirt.driver: a tuple of numbers each.
_NOVA_VERSIONS = {
    'libvirt': 'MIN_LIBVIRT_VERSION', 'qemu': 'MIN_QEMU_VERSION',
    'next_libvirt': 'NEXT_MIN_LIBVIRT_VERSION',
    'next_qemu': 'NEXT_MIN_QEMU_VERSION'}

# Where libvirt makes the sockets of guests' channels: in newer versions, in
# older ones, and the directory that it needs anyway.
_CHANNELS = ('/run/libvirt/qemu/channel', '/var/lib/libvirt/qemu/channel',
             '/var/lib/libvirt/qemu')

_KINDS = ((stat.S_ISREG, 'a plain file'), (stat.S_ISDIR, 'a directory'),
          (stat.S_ISBLK, 'a block device'), (stat.S_ISSOCK, 'a socket'),
          (stat.S_ISFIFO, 'a named pipe'))


def read_device(path: str, root: str = '/') -> model.DeviceFacts:
    """Check a character device and try to open it.

    Opening is the only honest test: a node can exist whose module cannot be
    loaded, and opening the node of a module that is not loaded loads it.
    """
    real_path = os.path.join(root, path.lstrip('/'))
    try:
        status = os.stat(real_path)
    except OSError:
        return model.DeviceFacts(path, present=False)
    if not stat.S_ISCHR(status.st_mode):
        return model.DeviceFacts(path, present=False, kind=next(
            (kind for is_it, kind in _KINDS if is_it(status.st_mode)),
            'something else'))
    open_error = None
    try:
        os.close(os.open(real_path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        open_error = errno.errorcode.get(e.errno or 0, str(e.errno))
    return model.DeviceFacts(
        path, present=True, mode=stat.S_IMODE(status.st_mode),
        owner=status.st_uid, group=status.st_gid, open_error=open_error,
        number=f'{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}',
        acl=user_facts.read_permissions(real_path).acl is not None)


def read_nova(install: model.InstallFacts) -> model.NovaFacts:
    """The versions that the installed Nova demands, without importing it.

    Its driver takes more than a second to import. The constants are a tuple
    of numbers on a line of their own in Nova 31 to 34.
    """
    versions: dict[str, tuple[int, int, int]] = {}
    for directory in install.nova_directories[:1]:
        text = kernel_facts.read(
            os.path.join(directory, 'libvirt', 'driver.py'), '/')
        for field, constant in _NOVA_VERSIONS.items():
            found = re.search(rf'^{constant} = (\([\d, ]+\))$', text,
                              re.MULTILINE)
            if found:
                major, minor, micro = ast.literal_eval(found[1])
                versions[field] = (major, minor, micro)
    return model.NovaFacts(**versions)


def read_program(name: str, root: str = '/') -> model.ProgramFacts:
    """A program as nova-compute would find it, and its interpreter.

    Looked for in PATH, where daemons have theirs, and beside this Python.
    """
    places = os.pathsep.join((
        os.environ.get('PATH', ''), '/usr/local/sbin', '/usr/local/bin',
        '/usr/sbin', '/usr/bin', '/sbin', '/bin',
        os.path.dirname(sys.executable)))
    if root != '/':
        places = os.pathsep.join(os.path.join(root, place.lstrip('/'))
                                 for place in places.split(os.pathsep))
        name = os.path.join(root, name[1:]) if name.startswith('/') else name
    found = shutil.which(name, path=places)
    if found is None:
        return model.ProgramFacts(name, None)
    first = b''
    # sudo may be run and not read on some distributions.
    with contextlib.suppress(OSError), open(found, 'rb') as f:
        first = f.readline(256)
    if first.startswith(b'#!') and first[2:].split():
        interpreter = os.fsdecode(first[2:].split()[0])
        if not os.access(os.path.join(root, interpreter.lstrip('/')),
                         os.X_OK):
            return model.ProgramFacts(name, None)
    return model.ProgramFacts(name, found)


def read_emulator(found: distribution.Distribution, arch: str,
                  root: str = '/', named: str = '',
                  vouched: str = '') -> model.EmulatorFacts:
    """The QEMU program and what it can.

    :param named: the program that libvirt names; '' for where this
        distribution has it
    :param vouched: the virt_type of which libvirt says that this program runs
        such guests, so that nothing need be run here; '' to run it
    """
    for path in (named,) if named else [
            pattern.format(arch=_QEMU_ARCHS.get(arch, arch))
            for pattern in found.emulators]:
        program = os.path.join(root, path.lstrip('/'))
        if os.path.exists(program):
            break
    else:
        return model.EmulatorFacts(None)
    if vouched:
        return model.EmulatorFacts(path, vouched=vouched)
    said, error = [], ''
    for argument in (('--version',), ('-accel', 'help')):
        try:
            said.append(subprocess.run(
                [program, *argument], capture_output=True, text=True,
                stdin=subprocess.DEVNULL, timeout=_PROGRAM_SECONDS,
                errors='replace').stdout)
        except (OSError, subprocess.TimeoutExpired) as e:
            return model.EmulatorFacts(path, error=errors.clean(e))
    version = re.search(r'version (\d+)\.(\d+)\.(\d+)', said[0])
    return model.EmulatorFacts(
        path, (int(version[1]), int(version[2]), int(version[3]))
        if version else None,
        # A heading ends with a colon.
        tuple(line.strip() for line in said[1].splitlines()
              if re.fullmatch(r'[a-z0-9]+', line.strip())), error)


# QEMU's names of architectures that it calls otherwise than uname does.
_QEMU_ARCHS = {'i686': 'i386', 'armv7l': 'arm', 'ppc64le': 'ppc64'}


def read_directory(path: str, what: str, user: model.UserFacts,
                   root: str = '/') -> model.DirectoryFacts:
    """A directory that guests need, and who may use it."""
    real_path = os.path.join(root, path.lstrip('/'))
    try:
        permissions = user_facts.read_permissions(real_path)
        space = os.statvfs(real_path)
        if not os.path.isdir(real_path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(
                errno.ENOTDIR))
    except OSError as e:
        return model.DirectoryFacts(
            path, what, errno.errorcode.get(e.errno or 0, str(e.errno)))
    return model.DirectoryFacts(
        path, what, None, permissions.mode, permissions.owner,
        permissions.group, os.access(real_path, os.W_OK | os.X_OK),
        user_facts.read_barrier(path, user, root),
        space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize,
        # File systems without inodes of their own, as btrfs, say 0 of 0.
        space.f_favail if space.f_files else None,
        bool(space.f_flag & os.ST_RDONLY))


def _read_distribution(root: str) -> distribution.Distribution:
    """This host's distribution, with the libvirt that runs here."""
    found = distribution.from_os_release(
        kernel_facts.read('/etc/os-release', root) or
        kernel_facts.read('/usr/lib/os-release', root))
    # The socket libvirt-sock may be virtproxyd's, so it comes second.
    for socket, service in (('virtqemud-sock', 'virtqemud'),
                            ('libvirt-sock', 'libvirtd')):
        if os.path.exists(os.path.join(root, 'run/libvirt', socket)):
            return dataclasses.replace(found, libvirt_service=service)
    return found


def _directories(settings: options.HostOptions, user: model.UserFacts,
                 root: str) -> tuple[model.DirectoryFacts, ...]:
    channels = next(
        (path for path in _CHANNELS
         if os.path.isdir(os.path.join(root, path.lstrip('/')))),
        _CHANNELS[-1])
    found = [read_directory(channels, 'libvirt\'s channels', user, root)]
    if settings.files:
        path = settings.instances_path
        guests, disks = _read_guests_directories(
            os.path.join(root, path.lstrip('/')))
        found.insert(0, dataclasses.replace(
            read_directory(path, '[DEFAULT] instances_path', user, root),
            guests=guests, disks=disks))
    return tuple(found)


def _read_guests_directories(path: str) -> tuple[int | None, int | None]:
    """How many guests have a directory in Nova's, and how many a disk there.

    A guest whose root disk is a volume has a directory without the file
    ``disk``.
    """
    guests = disks = 0
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if uuidutils.is_uuid_like(entry.name):
                    guests += 1
                    disks += os.path.lexists(os.path.join(entry, 'disk'))
    except OSError:
        return None, None
    return guests, disks


def _connect(uri: str, connect: Callable[[], Any] | None
             ) -> tuple[Any, model.LibvirtFacts]:
    """A connection, or None and what is known without one."""
    if connect is None:
        return None, model.LibvirtFacts(uri, unasked='libvirt was not asked')
    try:
        return connect(), model.LibvirtFacts(uri)
    except Exception as e:
        # A connection that is refused comes as libvirt's own error, as
        # Nova's, or as our HostError about libvirt's. This reader never
        # raises, and the checks say what it was.
        return None, model.LibvirtFacts(
            uri, error=errors.clean(e.__cause__ or e))


def _read_place(uri: str, connection: Any, arch: str,
                root: str) -> model.LibvirtPlace:
    """Whether libvirt sees the files that this process sees."""
    place = libvirt_place.read(uri, root)
    if place.here is None and connection is not None:
        return libvirt_place.ask(connection, arch, place, root)
    return place


def _virt_type_given(found: model.LibvirtFacts) -> str:
    """The virt_type of the domain capabilities that libvirt gave, or ''.

    libvirt refuses them for a QEMU without that accelerator
    (virQEMUCapsIsVirtTypeSupported in src/qemu/qemu_capabilities.c).
    """
    caps = found.domain_capabilities
    return caps.virt_type or '' if found.emulator and found.qemu else ''


def _read_guests(
        settings: options.HostOptions, found: model.LibvirtFacts,
        connection: Any, cache_dir: str | None, arch: str,
        use: model.UseFacts, proved: bool,
        known: model.ProbeFacts | None
) -> tuple[model.LibvirtFacts, model.ProbeFacts]:
    """What libvirt does with the probe guest, and what guests can have.

    :param proved: whether ``use`` is QEMU's own
    :param known: what happened to the probe guest before
    """
    wanted = settings.settings.virt_type if settings.settings else 'kvm'
    virt_type = 'kvm' if wanted == 'auto' else wanted

    def untried(reason: str) -> model.ProbeFacts:
        return model.ProbeFacts(virt_type, None, reason)

    if connection is None:
        return found, untried(found.unasked or 'libvirt cannot be reached')
    if found.unasked or found.error:
        return found, untried(found.unasked or
                              'libvirt gave no capabilities')
    tried = untried('the probe guest was not asked for')
    if settings.settings is None:
        tried = untried('nova.conf cannot be used')
    elif not probe.supported(arch):
        tried = untried(f'there is no probe guest for {arch}')
    elif virt_type == 'kvm' and not use.works and proved:
        tried = untried('QEMU\'s user cannot open /dev/kvm')
    elif known is not None:
        tried = known
    elif cache_dir is not None:
        tried = _probe(connection, settings, virt_type, found.models,
                       cache_dir)
    works = use.works if tried.runs is None else tried.runs
    in_use = 'qemu' if wanted == 'auto' and not works else virt_type
    for asked in dict.fromkeys((virt_type, in_use)):
        found = libvirt_facts.read_domain_capabilities(
            connection, found, arch, asked)
    return found, tried


def _probe(connection: Any, settings: options.HostOptions, virt_type: str,
           models: tuple[str, ...], cache_dir: str) -> model.ProbeFacts:
    assert settings.settings is not None
    try:
        choice = choose.as_configured(settings.settings, models)
        result = probe_answers.cached_run(
            connection, virt_type=virt_type, cpu_xml=choice.to_xml(),
            cache_file=_kept(cache_dir),
            directories=virt_type_.directories(
                settings.instances_path, settings.state_path)
            if settings.files else ('/var/tmp', '/dev/shm'))
    except errors.KVMExtError as e:
        return model.ProbeFacts(virt_type, None, errors.clean(e))
    return model.ProbeFacts(virt_type, result.runs, result.reason, True)


def read_early(settings: options.HostOptions,
               told: capabilities.DomainCapabilities | None,
               connect: Callable[[], Any], cache_dir: str | None,
               root: str = '/') -> model.EarlyFacts:
    """What tells whether a check can keep the service from starting.

    Some milliseconds: no process is started, and no guest.

    :param told: what libvirt has told that guests can have; None where it
        was not asked
    :param connect: as for :func:`read_host`
    :param cache_dir: where the probe guest's answer is kept; None where no
        such guest is needed
    """
    assert settings.settings is not None
    caps = told or capabilities.DomainCapabilities()
    tried = None
    if cache_dir is not None and caps.emulator:
        choice = choose.as_configured(
            settings.settings, [found.name for found in caps.models])
        kept = probe_answers.kept_run(
            connect(), virt_type=settings.settings.virt_type,
            cpu_xml=choice.to_xml(), cache_file=_kept(cache_dir))
        if kept is not None:
            tried = model.ProbeFacts(
                settings.settings.virt_type, kept.runs, kept.reason, True)
    return model.EarlyFacts(
        settings.settings.virt_type, caps.emulator or '', tried,
        settings.settings.vhost_net, tuple(
            read_program(word, root) for word in settings.helper[:1]))


def _kept(cache_dir: str) -> str:
    return os.path.join(cache_dir, 'kvm-ext-probe.json')


def read_host(settings: options.HostOptions, uri: str = 'qemu:///system',
              connect: Callable[[], Any] | None = None, *,
              cache_dir: str | None = None, service: bool = False,
              install: model.InstallFacts | None = None,
              python: nova_python.Python | None = None,
              tried: model.ProbeFacts | None = None,
              root: str = '/') -> model.HostFacts:
    """Everything that the checks look at.

    A tenth of a second without libvirt, the probe guest and Ceph.

    :param settings: nova.conf, as far as it matters
    :param uri: what ``connect`` connects to, for the report
    :param connect: gives an open connection that may write, or a proxy of
        one; called at most once. It may raise what it likes. None not to ask
        libvirt at all
    :param cache_dir: where the probe guest's answer is kept, a directory that
        only trusted users can write to; None not to start that guest
    :param install: what the Python of nova-compute finds; None where that is
        the Python of this process
    :param service: whether this process is nova-compute
    :param python: the Python of nova-compute; None for that of this process
    :param tried: what happened to the probe guest, where that is known
    :param root: directory below which files are looked up
    :returns: always something: what could not be read says so
    """
    arch = os.uname().machine
    known = user_facts.accounts(root)
    distro = _read_distribution(root)
    cpu = kernel_facts.read_cpu(arch, root)
    kernel = kernel_facts.read_kernel(
        cpu.vendor, arch, kernel_facts.read(
            '/proc/sys/kernel/osrelease', root).strip(), root)
    configured = user_facts.read_qemu_user(distro, known, root)
    connection, libvirt = _connect(uri, connect)
    place = _read_place(uri, connection, arch, root)
    use = user_facts.read_use('/dev/kvm', configured, root,
                              process=not service)
    # Seen with libvirt 9.0: while root may open /dev/kvm and QEMU's user may
    # not, every question about QEMU takes 45 s, in which libvirtd waits for a
    # QEMU that has hung. Only where that user and that device are known to be
    # QEMU's: else libvirt alone can tell.
    unasked = ('libvirt was not asked about QEMU: while QEMU\'s user may not '
               'open /dev/kvm it needs a minute for each answer'
               if use.error in ('EACCES', 'EPERM') and configured.known and
               place.here else '')
    if connection is not None:
        try:
            libvirt = libvirt_facts.read(connection, uri, arch, unasked)
        except Exception as e:
            # As Nova's proxy raises where it has lost its connection.
            libvirt = model.LibvirtFacts(
                uri, error=errors.clean(e.__cause__ or e))
    user = user_facts.corrected(configured, libvirt.user, known)
    if user.uid != configured.uid or user.gid != configured.gid:
        use = user_facts.read_use('/dev/kvm', user, root,
                                  process=not service)
    devices = {path: read_device(path, root)
               for path in ('/dev/kvm', '/dev/vhost-net')}
    udev = kernel_facts.read_udev(root)
    install = install or door.read_install()
    directories = _directories(settings, user, root)
    groups = {device.group for device in devices.values()} | {
        directory.group for directory in directories} | set(user.groups)
    libvirt, guest = _read_guests(
        settings, libvirt, connection, cache_dir, arch, use,
        user.known and bool(place.here), tried)
    emulator = read_emulator(
        distro, arch, root, libvirt.emulator,
        # libvirt has run QEMU to tell, and two more processes take 0.1 s.
        vouched=_virt_type_given(libvirt) if service else '')
    storage = storage_facts.read(
        settings, connection, python or nova_python.Python(),
        emulator.path and os.path.join(root, emulator.path.lstrip('/')),
        '' if place.here else 'libvirt may have another')
    return model.HostFacts(
        options=settings, distribution=distro, storage=storage,
        # sd_booted(3)
        systemd=os.path.isdir(os.path.join(root, 'run/systemd/system')),
        cpu=cpu, kernel=kernel, qemu_user=user, configured_user=configured,
        devices=devices, kvm_use=use, place=place, service=service,
        udev=udev, install=install, nova=read_nova(install),
        privsep=tuple(
            read_program(word, root) for number, word in
            enumerate(settings.helper) if number == 0 or os.path.basename(
                word) in ('nova-rootwrap', 'privsep-helper')),
        directories=directories,
        post_copy=post_copy_facts.read(arch, user, root)
        if settings.post_copy else model.PostCopyFacts(),
        emulator=emulator,
        libvirt=libvirt, probe=guest,
        group_names={gid: name for gid in sorted(groups)
                     if (name := known.group_name(gid))},
        root=os.geteuid() == 0, cpu_map=cpu_reader.read_map(root))


def read_again(known: model.HostFacts, root: str = '/') -> model.HostFacts:
    """The facts of a host whose files have been checked again.

    Some hundredths of a second. Neither libvirt nor QEMU is asked: theirs
    and all else are as they were.

    :param known: what :func:`read_host` gave
    """
    devices = {path: read_device(path, root) for path in known.devices}
    directories = _directories(known.options, known.qemu_user, root)
    accounts = user_facts.accounts(root)
    groups = {device.group for device in devices.values()} | {
        directory.group for directory in directories} | set(known.group_names)
    return dataclasses.replace(
        # A guest that ran when the service started is no proof of today.
        known, probe=known.probe if not known.probe.runs else
        dataclasses.replace(known.probe, runs=None, tried=False,
                            reason='the probe guest ran at the start'),
        devices=devices, directories=directories,
        kernel=kernel_facts.read_kernel(
            known.cpu.vendor, known.cpu.arch, known.kernel.release, root),
        kvm_use=user_facts.read_use('/dev/kvm', known.qemu_user, root,
                                    process=False),
        group_names={gid: name for gid in sorted(groups)
                     if (name := accounts.group_name(gid))})
