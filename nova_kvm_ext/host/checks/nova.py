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

"""Nova on this host: its driver, its options and its directories.

Codes KVM4xx. Pure.
"""

import os
import shlex

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext import errors
from nova_kvm_ext.host.checks import causes
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import install
from nova_kvm_ext.host import model

GROUP = verdict.Group()

_MIB = 1024 ** 2
# Below the first scheduling stops; below the second it is time to look.
_NO_SPACE, _LITTLE_SPACE = 100 * _MIB, 2048 * _MIB
# Sockets, logs and a domain's files are small.
_NO_CHANNEL_SPACE = 8 * _MIB


_DRIVER = 'kvm_ext.KVMDriver'
_SET_DRIVER = f'Set [DEFAULT] compute_driver = {_DRIVER}.'


@GROUP.check('KVM401', 'Driver found by Nova', proof=(
    'nova-compute\'s Python does not find nova.virt.kvm_ext, so that '
    'nova-compute ends; or compute_driver names another driver.'))
def _driver(facts: model.HostFacts) -> verdict.Said:
    """FAIL: nova-compute ends, or runs another driver, on every host."""
    options = facts.options
    named, found = options.compute_driver, facts.install
    if named is not None and named != _DRIVER:
        return verdict.fail(
            f'nova-compute runs another driver: '
            f'{options.compute_driver_source or "nova.conf"} sets '
            f'compute_driver = {errors.clean(named)}', _SET_DRIVER[:-1] + (
                f' in {options.compute_driver_source}, or remove it there.'
                if os.path.isabs(options.compute_driver_source) else '.'))
    if found.unknown:
        said = (f'whether nova-compute finds the driver is not known: '
                f'{found.unknown}')
        return verdict.skip(said, 'Run this command where nova-compute '
                            'runs.') if found.elsewhere else verdict.warn(
            said, 'Start nova-compute: its log names a driver that it does '
            'not find.')
    problem = install.check(found)
    if problem is not None:
        return verdict.fail(problem, install.remedy(found))
    where = (f'Nova in {", ".join(found.nova_directories)} finds it' + (
        f', asked with {found.python} ({found.how})' if found.python else ''))
    if named is None and options.files:
        return verdict.warn(
            f'{where}, but {_files(facts)} sets no compute_driver: '
            f'nova-compute does not start', _SET_DRIVER)
    return verdict.passed(where)


def _files(facts: model.HostFacts) -> str:
    """What the options are from."""
    files = facts.options.files
    return (', '.join(files) or 'no nova.conf') + (
        f' ({facts.options.how})' if files and facts.options.how else '')


@GROUP.check('KVM402', 'nova.conf', proof=(
    'The driver refuses these options at its start, by the same function.'))
def _conf(facts: model.HostFacts) -> verdict.Said:
    """FAIL: the driver refuses to start with these options on any host."""
    settings = facts.options.settings
    if settings is None or facts.options.problem:
        return verdict.fail(
            f'{_files(facts)}: {facts.options.problem}', facts.options.remedy)
    if settings.virt_type not in ('kvm', 'qemu', 'auto'):
        return verdict.fail(
            f'{_files(facts)}: {settings.virt_type_option} = '
            f'{settings.virt_type} is nothing that compute_driver = '
            f'{_DRIVER} runs', 'Set [kvm_ext] virt_type to kvm, qemu or auto.')
    # By itself: what libvirt says of this host comes later.
    choice, refused = causes.chosen(facts, capabilities.DomainCapabilities())
    if choice is None:
        return verdict.fail(f'{_files(facts)}: {refused.details}',
                            refused.remedy)
    said = (f'virt_type = {settings.virt_type}, cpu_mode = '
            f'{settings.cpu_mode or "unset"}' + ''.join(
                f' {model_}' for model_ in settings.cpu_models) + ''.join(
                f'; {override}' for override in settings.overrides))
    if not facts.options.files:
        return verdict.skip(f'no nova.conf was read; Nova\'s defaults are '
                            f'assumed: {said}',
                            'nova-kvm-ext host check --config-file '
                            '/etc/nova/nova.conf')
    return verdict.passed(f'{_files(facts)}: {said}')


@GROUP.check('KVM403', 'privsep helper', proof=(
    'The first program of the command that oslo.privsep runs is not '
    'installed. Nova needs it for each guest, as for the owner of its disks '
    'and its network.'))
def _privsep(facts: model.HostFacts) -> verdict.Said:
    command = ' '.join(facts.options.helper)
    said = f'{command} ({facts.options.helper_option})'
    if not facts.options.files:
        return verdict.skip(f'no nova.conf says what it is; by default '
                            f'{said}')
    missing = [program.name for program in facts.privsep
               if program.path is None]
    if not missing:
        return verdict.passed(said)
    remedy = (causes.install(facts, 'sudo') if missing == ['sudo'] else
              'Install Nova whole, or correct [nova_sys_admin] '
              'helper_command.')
    if facts.privsep[0].path is None:
        return verdict.fail(
            f'{", ".join(missing)} of {said} is not installed or cannot be '
            f'run: nova-compute can do nothing that needs root', remedy)
    # sudo and nova-rootwrap look in directories of their own.
    return verdict.warn(
        f'{", ".join(missing)} of {said} is not found or cannot be run; '
        f'without it nova-compute can do nothing that needs root', remedy)


def _instances_directory(facts: model.HostFacts
                         ) -> model.DirectoryFacts | None:
    return next((d for d in facts.directories if 'instances' in d.what),
                None)


def _disks_elsewhere(facts: model.HostFacts) -> str:
    """Why guests' disks are no files in instances_path, or ''."""
    if not facts.options.local_disks:
        return f'[libvirt] images_type = {facts.options.images_type}'
    directory = _instances_directory(facts)
    if directory and directory.guests and directory.disks == 0:
        return 'every guest here boots from a volume'
    return ''


@GROUP.check('KVM404', 'Directory of instances', proof=(
    'Nova makes a directory for each guest in instances_path, whatever its '
    'disks are. Its file system is read-only, or it is not there and Nova '
    'reports no disk space, or nova-compute itself cannot write to it. '
    'Disables scheduling; the service starts.'))
def _instances(facts: model.HostFacts) -> verdict.Said:
    directory = _instances_directory(facts)
    if directory is None:
        return verdict.skip('no nova.conf says where it is')
    path = shlex.quote(directory.path)
    said = f'{directory.path} ({directory.what})'
    # What this process may not do, only the service itself has proved.
    judge = verdict.fail if facts.service else verdict.warn
    if directory.error == 'ENOENT':
        remedy = f'install -d -o nova -g nova {path}'
        if not facts.options.local_disks:
            return verdict.warn(f'{said} does not exist; Nova makes it with '
                                f'the first guest if it may', remedy)
        return verdict.fail(f'{said} does not exist', remedy)
    if directory.error:
        return judge(f'{said} cannot be checked: {directory.error}',
                     f'ls -ld {path}')
    if directory.read_only:
        return verdict.fail(
            f'{said} is on a file system that is mounted read-only',
            f'mount -o remount,rw "$(findmnt -n -o TARGET -T {path})"')
    if not directory.writable:
        return judge(f'{said} cannot be written to by this process',
                     f'chown nova {path}')
    mode = (f'{said}: owner {causes.owner(facts, directory.owner)}, group '
            f'{causes.names(facts, (directory.group,))}, mode '
            f'{directory.mode:04o}')
    elsewhere = _disks_elsewhere(facts)
    if directory.barrier and not elsewhere and not facts.runs_kvm and (
            facts.qemu_user.known):
        return causes.weigh(facts, verdict.warn(
            f'{said}: QEMU\'s user {facts.qemu_user.user} may not enter '
            f'{directory.barrier}: only guests that boot from a volume start',
            f'chmod o+x {shlex.quote(directory.barrier)}'))
    return verdict.passed(f'{mode}; {elsewhere}' if elsewhere else mode)


@GROUP.check('KVM405', 'Space for instances', proof=(
    'Guests\' disks are files in instances_path, and its file system has '
    'less than 100 MiB or no inode left: what there is belongs to the disks '
    'of the guests that run. Disables scheduling; the service starts.'))
def _space(facts: model.HostFacts) -> verdict.Said:
    directory = _instances_directory(facts)
    if directory is None or directory.error:
        return verdict.skip('there is no directory to look at (KVM404)')
    said = (f'{directory.path}: {directory.free / 1024 ** 3:.1f} GiB of '
            f'{directory.total / 1024 ** 3:.1f} GiB are free')
    remedy = (f'Remove what is not needed below {directory.path}, or give it '
              f'a larger file system.')
    elsewhere = _disks_elsewhere(facts)
    full = directory.free < _NO_SPACE or directory.free_files == 0
    if elsewhere:
        said = f'{said}; {elsewhere}'
        # Nova's own small files are there all the same.
        return (verdict.warn(said, remedy)
                if directory.free == 0 or directory.free_files == 0 else
                verdict.passed(said))
    if full:
        return verdict.fail(
            f'{said}, but no inode' if directory.free >= _NO_SPACE else
            f'{said}: there is no space for another guest', remedy)
    reserved = facts.options.reserved_disk_mb * _MIB
    if directory.free < max(_LITTLE_SPACE, reserved):
        return verdict.warn(said + (
            f', less than [DEFAULT] reserved_host_disk_mb = '
            f'{facts.options.reserved_disk_mb}'
            if directory.free < reserved else ''), remedy)
    return verdict.passed(said)


@GROUP.check('KVM406', 'Directory of agent sockets', proof='')
def _channels(facts: model.HostFacts) -> verdict.Said:
    return causes.weigh(facts, _channels_here(facts))


def _channels_here(facts: model.HostFacts) -> verdict.Said:
    directory = next(d for d in facts.directories
                     if 'instances' not in d.what)
    path = shlex.quote(directory.path)
    said = f'{directory.path} ({directory.what})'
    if directory.error == 'ENOENT':
        return verdict.warn(f'{directory.path} does not exist: libvirt has '
                            f'not run here yet', causes.start_libvirt(facts))
    if not facts.root and (directory.error == 'EACCES' or (
            directory.error is None and not directory.writable)):
        return verdict.skip(f'{directory.path}: only root can look into it')
    if directory.error:
        return verdict.warn(f'{said} cannot be checked: {directory.error}',
                            f'ls -ld {path}')
    if directory.free < _NO_CHANNEL_SPACE:
        return verdict.warn(f'{directory.path}: its file system is full',
                            'Remove what is not needed there: '
                            f'du -x {path}')
    if directory.read_only:
        return verdict.warn(
            f'{said} is on a file system that is mounted read-only',
            f'mount -o remount,rw "$(findmnt -n -o TARGET -T {path})"')
    if directory.barrier:
        return verdict.warn(
            f'{said}: QEMU\'s user {facts.qemu_user.user} may not enter '
            f'{directory.barrier}',
            f'chmod o+x {shlex.quote(directory.barrier)}')
    return verdict.passed(
        f'{said}: owner {causes.owner(facts, directory.owner)}, group '
        f'{causes.names(facts, (directory.group,))}, mode '
        f'{directory.mode:04o}')
