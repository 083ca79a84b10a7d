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

"""Nova beside it: its driver, its options and its directories.

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
# Below the first no image fits, not even a test's; below the second it is
# time to look.
_NO_SPACE, _LITTLE_SPACE = 100 * _MIB, 2048 * _MIB
# Sockets, logs and a domain's files are small.
_NO_CHANNEL_SPACE = 8 * _MIB


_DRIVER = 'kvm_ext.KVMDriver'
_SET_DRIVER = f'Set [DEFAULT] compute_driver = {_DRIVER}.'


@GROUP.check('KVM401', 'Driver beside Nova')
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


@GROUP.check('KVM402', 'nova.conf')
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


@GROUP.check('KVM403', 'Helper of privsep')
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
    return verdict.fail(
        f'{", ".join(missing)} of {said} is not installed or cannot be '
        f'run: nova-compute can do nothing that needs root',
        causes.install(facts, 'sudo') if missing == ['sudo'] else
        'Install Nova whole, or correct [nova_sys_admin] helper_command.')


@GROUP.check('KVM404', 'Directory of instances')
def _instances(facts: model.HostFacts) -> verdict.Said:
    directory = next((d for d in facts.directories if 'instances' in d.what),
                     None)
    if directory is None:
        return verdict.skip('no nova.conf says where it is')
    return _fit(facts, directory, 'nova')


def _fit(facts: model.HostFacts, directory: model.DirectoryFacts,
         owner: str) -> verdict.Said:
    path = shlex.quote(directory.path)
    said = f'{directory.path} ({directory.what})'
    if directory.error == 'ENOENT':
        return verdict.fail(f'{said} does not exist',
                            f'install -d -o {owner} -g {owner} {path}')
    if directory.error:
        return verdict.fail(f'{said} cannot be looked at: {directory.error}',
                            f'ls -ld {path}')
    if directory.read_only:
        return verdict.fail(f'{said} is on a file system that is mounted '
                            f'read-only',
                            f'mount -o remount,rw "$(findmnt -n -o TARGET -T '
                            f'{path})"')
    if directory.barrier:
        return verdict.fail(
            f'{said}: QEMU\'s user {facts.qemu_user.user} may not enter '
            f'{directory.barrier}',
            f'chmod o+x {shlex.quote(directory.barrier)}')
    if not directory.writable:
        return verdict.fail(f'{said} cannot be written to by this process',
                            f'chown {owner} {path}')
    return verdict.passed(f'{said}: owner '
                          f'{causes.owner(facts, directory.owner)}, group '
                          f'{causes.names(facts, (directory.group,))}, mode '
                          f'{directory.mode:04o}')


@GROUP.check('KVM405', 'Space for instances')
def _space(facts: model.HostFacts) -> verdict.Said:
    directory = next((d for d in facts.directories if 'instances' in d.what),
                     None)
    if directory is None or directory.error:
        return verdict.skip('there is no directory to look at (KVM404)')
    said = (f'{directory.path}: {directory.free / 1024 ** 3:.1f} GiB of '
            f'{directory.total / 1024 ** 3:.1f} GiB are free')
    remedy = (f'Remove what is not needed below {directory.path}, or give it '
              f'a larger file system.')
    if directory.free < _NO_SPACE:
        return verdict.fail(f'{said}: no image fits', remedy)
    if directory.free_files == 0:
        return verdict.fail(f'{said}, but no inode', remedy)
    reserved = facts.options.reserved_disk_mb * _MIB
    if directory.free < max(_LITTLE_SPACE, reserved):
        return verdict.warn(said + (
            f', less than [DEFAULT] reserved_host_disk_mb = '
            f'{facts.options.reserved_disk_mb}'
            if directory.free < reserved else ''), remedy)
    return verdict.passed(said)


@GROUP.check('KVM406', 'Directory of channels')
def _channels(facts: model.HostFacts) -> verdict.Said:
    directory = next(d for d in facts.directories
                     if 'instances' not in d.what)
    if directory.error == 'ENOENT':
        return verdict.warn(f'{directory.path} does not exist: libvirt has '
                            f'not run here yet', causes.start_libvirt(facts))
    if not facts.root and directory.error is None and (
            not directory.writable):
        return verdict.skip(f'{directory.path}: only root can look into it')
    if directory.error == 'EACCES':
        return verdict.skip(f'{directory.path}: only root can look into it')
    if directory.error is None and directory.free < _NO_CHANNEL_SPACE:
        return verdict.fail(f'{directory.path}: its file system is full',
                            'Remove what is not needed there: '
                            f'du -x {shlex.quote(directory.path)}')
    return _fit(facts, directory, facts.qemu_user.user)
