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


"""The checks of a KVM host, in their order.

Pure: takes :class:`~nova_kvm_ext.host.model.HostFacts`, gives results. No
check prints, none raises, none looks at the host. Cheap facts and causes come
first, what follows from them later, so that the first FAIL is the one to
mend.

A code never changes its meaning, and one that is given up is not given again.
Every code is in doc/source/admin/troubleshooting.rst and
doc/source/cli/host.rst.
"""

from collections.abc import Callable
import dataclasses
import os
import shlex

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import choose
from nova_kvm_ext.cpu import usable
from nova_kvm_ext import errors
from nova_kvm_ext.host import install
from nova_kvm_ext.host import model

PASS, WARN, FAIL, SKIP = 'PASS', 'WARN', 'FAIL', 'SKIP'

KVM_API_VERSION = 12
"""What KVM_GET_API_VERSION has answered since Linux 2.6.22 (kvm/api.rst)."""

# linux/miscdevice.h: KVM_MINOR, VHOST_NET_MINOR of the major number 10.
_NUMBERS = {'/dev/kvm': '10:232', '/dev/vhost-net': '10:238'}

_MIB = 1024 ** 2
# Below the first no image fits, not even a test's; below the second it is
# time to look.
_NO_SPACE, _LITTLE_SPACE = 100 * _MIB, 2048 * _MIB
# Sockets, logs and a domain's files are small.
_NO_CHANNEL_SPACE = 8 * _MIB


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """What a check says.

    :ivar code: ``KVM101`` ...
    :ivar title: what was looked at, a few words
    :ivar result: ``PASS``; ``WARN``, guests run but not as they could;
        ``FAIL``, no guest runs as nova.conf asks; ``SKIP``, not looked at or
        of no importance here, ``details`` says why
    :ivar details: the fact found, one clean line
    :ivar remedy: the exact command that mends it, or where no command does,
        a sentence; '' where there is nothing to mend
    :ivar fix: commands that mend it, or a part of it, and can do no harm:
        each one line of shell words without pipes or variables; they need
        root
    """

    code: str
    title: str
    result: str
    details: str
    remedy: str = ''
    fix: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Said:
    """A result without its code and title."""

    result: str
    details: str
    remedy: str = ''
    fix: tuple[str, ...] = ()


_Check = Callable[[model.HostFacts], _Said]
_CHECKS: list[tuple[str, str, _Check]] = []


def _check(code: str, title: str) -> Callable[[_Check], _Check]:
    """Add a function to the checks, in the order of the source."""
    def add(function: _Check) -> _Check:
        _CHECKS.append((code, title, function))
        return function
    return add


def codes() -> dict[str, str]:
    """The title of each check by its code, in their order."""
    return {code: title for code, title, _ in _CHECKS}


def run(facts: model.HostFacts) -> list[CheckResult]:
    """Every check once, ordered by code. Never raises."""
    results = []
    for code, title, function in _CHECKS:
        said = function(facts)
        results.append(CheckResult(
            code, title, said.result, errors.clean(said.details, 500),
            said.remedy, said.fix))
    return results


def worst(results: list[CheckResult]) -> str:
    """FAIL if a result is that, else WARN likewise, else PASS."""
    said = {result.result for result in results}
    return FAIL if FAIL in said else WARN if WARN in said else PASS


def _no_kvm(facts: model.HostFacts, details: str, remedy: str = '',
            fix: tuple[str, ...] = (), slow: bool = False) -> _Said:
    """Something that keeps guests from KVM, as grave as nova.conf makes it.

    :param slow: whether it also makes libvirt wait over each look at QEMU,
        so that guests in software have to do with it too
    """
    settings = facts.options.settings
    wanted = settings.virt_type if settings else 'kvm'
    if wanted == 'auto':
        return _Said(WARN, f'{details}; virt_type = auto: guests run in '
                           f'software', remedy, fix)
    if wanted == 'qemu' and slow:
        return _Said(WARN, f'{details}; virt_type = qemu needs no KVM, but '
                           f'libvirt takes a minute over each look at QEMU',
                     remedy, fix)
    if wanted == 'qemu':
        return _Said(SKIP, f'{details}; of no importance, because '
                           f'virt_type = qemu needs no KVM')
    return _Said(FAIL, details, remedy, fix)


def _restart_libvirt(facts: model.HostFacts) -> str:
    if facts.systemd:
        return f'systemctl restart {facts.distribution.libvirt_service}'
    return 'kill $(cat /run/libvirtd.pid) && libvirtd -d'


def _start_libvirt(facts: model.HostFacts) -> str:
    if facts.systemd:
        return f'systemctl start {facts.distribution.libvirt_service}'
    return 'virtlogd -d; libvirtd -d'


def _install(facts: model.HostFacts, package: str) -> str:
    return (f'{facts.distribution.install} '
            f'{package.format(release=facts.kernel.release)}')


def _state(module: model.ModuleFacts) -> str:
    words = {'loaded': 'is loaded', 'builtin': 'is built into the kernel',
             'loadable': 'is not loaded', 'missing': 'is missing'}
    return f'{module.name} {words[module.state]}'


def _missing_module(facts: model.HostFacts,
                    module: model.ModuleFacts) -> tuple[str, str]:
    """Why a module that is in no list is not there, and the remedy."""
    kernel = facts.kernel
    if not kernel.loads_modules:
        return (f'{module.name} is not in this kernel ({kernel.release}), '
                f'which loads no modules',
                f'Boot a kernel that has {module.name}.')
    if not kernel.modules_installed:
        return (f'the modules of the running kernel {kernel.release} are not '
                f'installed (no /lib/modules/{kernel.release}/modules.dep), '
                f'as after an upgrade of the kernel', 'reboot')
    return (f'{module.name} is not among the modules of the kernel '
            f'{kernel.release}',
            _install(facts, facts.distribution.kernel_modules))


def _load(facts: model.HostFacts,
          module: model.ModuleFacts) -> tuple[str, str, tuple[str, ...]]:
    """How to load a module: details, remedy and fix."""
    command = f'modprobe {module.name}'
    if ': install ' in module.blocked:
        return (f'{_state(module)}, and a line forbids it: {module.blocked}',
                f'Remove the line {module.blocked.split(": ")[0]}, then '
                f'{command}', ())
    if module.blocked:
        return (f'{_state(module)}, because a line keeps it from being '
                f'loaded at boot: {module.blocked}',
                command, (command,))
    return _state(module), command, (command,)


# What the kernel says of the processor, its firmware and its modules.


@_check('KVM101', 'CPU virtualization')
def _cpu(facts: model.HostFacts) -> _Said:
    cpu = facts.cpu
    if cpu.arch not in ('x86_64', 'i686'):
        return _Said(SKIP, f'{cpu.arch} shows it by no CPU flag')
    where = ' of this virtual machine' if cpu.virtual else ''
    if cpu.virtualization:
        return _Said(PASS, f'{cpu.vendor}{where}: {cpu.virtualization}')
    shown = f'the CPU{where} ({cpu.vendor}) shows neither vmx nor svm'
    if 'kvm' in facts.kernel.misc:
        others = ', '.join(name for name, module in
                           facts.kernel.modules.items() if module.there and
                           name.startswith('kvm_'))
        said = _no_kvm(
            facts, f'{shown}, yet the kernel has KVM'
            f'{f" ({others})" if others else ""}: KVM508 tells what it is '
            f'worth')
        return said if said.result == SKIP else _Said(WARN, said.details)
    if cpu.locked:
        return _no_kvm(facts, f'{shown}: the firmware has switched it off',
                       _FIRMWARE)
    if cpu.virtual:
        return _no_kvm(
            facts, shown, 'On the host of this virtual machine, switch '
            'nested virtualization on (modprobe kvm_intel nested=1, or '
            'kvm_amd) and give this machine the CPU host-passthrough.')
    return _no_kvm(
        facts, f'{shown}: it has none, or the firmware hides it', _FIRMWARE)


_FIRMWARE = ('Enable virtualization (Intel VT-x, AMD SVM) in the firmware '
             'set-up, then switch the machine off and on.')


@_check('KVM102', 'Firmware')
def _firmware(facts: model.HostFacts) -> _Said:
    cpu = facts.cpu
    if cpu.locked:
        return _no_kvm(
            facts, f'the firmware has switched virtualization off '
            f'({cpu.locked_source})', _FIRMWARE)
    if cpu.locked is False:
        return _Said(PASS, f'virtualization is not locked '
                           f'({cpu.locked_source})')
    if cpu.virtualization and 'kvm' in facts.kernel.misc:
        return _Said(PASS, 'virtualization is not locked: KVM has started')
    return _Said(SKIP, f'cannot be known: {cpu.locked_source}')


@_check('KVM103', 'Module kvm')
def _kvm_module(facts: model.HostFacts) -> _Said:
    module = facts.kernel.modules['kvm']
    if module.there:
        return _Said(PASS, _state(module))
    if 'kvm' in facts.kernel.misc:
        return _Said(PASS, 'the kernel has KVM')
    if module.state == 'loadable':
        return _no_kvm(facts, *_load(facts, module))
    return _no_kvm(facts, *_missing_module(facts, module))


@_check('KVM104', 'Module of the CPU')
def _cpu_module(facts: model.HostFacts) -> _Said:
    own = [module for name, module in facts.kernel.modules.items()
           if name.startswith('kvm_')]
    there = [module for module in own if module.there]
    if 'kvm' in facts.kernel.misc:
        return _Said(PASS, ', '.join(map(_state, there)) or
                     'the kernel has KVM')
    if facts.cpu.arch not in ('x86_64', 'i686'):
        return _Said(SKIP, f'on {facts.cpu.arch} it is the module kvm itself')
    if there:
        return _no_kvm(
            facts, f'{_state(there[0])}, but did not start KVM: dmesg | grep '
            f'-i kvm', _FIRMWARE if facts.cpu.locked else '')
    if not own:
        return _no_kvm(facts, f'no module is known for a CPU of '
                              f'{facts.cpu.vendor or "an unknown vendor"}')
    module = own[0]
    if module.state != 'loadable':
        return _no_kvm(facts, *_missing_module(facts, module))
    if not facts.cpu.virtualization:
        return _no_kvm(facts, f'{_state(module)}, and cannot be loaded '
                              f'without the CPU\'s virtualization (KVM101)')
    return _no_kvm(facts, *_load(facts, module))


@_check('KVM105', 'Nested virtualization')
def _nested(facts: model.HostFacts) -> _Said:
    for name, module in facts.kernel.modules.items():
        if module.nested is not None:
            on = module.nested in ('Y', '1')
            return _Said(PASS, f'{name} has nested={module.nested}: guests '
                               f'{"can" if on else "cannot"} run KVM guests '
                               f'of their own')
    return _Said(SKIP, 'no module says whether guests can run KVM guests of '
                       'their own')


# Who may use /dev/kvm.


def _names(facts: model.HostFacts, gids: tuple[int, ...]) -> str:
    return ', '.join(facts.group_names.get(gid, str(gid)) for gid in gids)


@_check('KVM201', 'QEMU\'s user')
def _qemu_user(facts: model.HostFacts) -> _Said:
    user = facts.qemu_user
    said = f'{user.user}:{user.group}, {user.source}'
    if 'cannot be read' in user.error:
        return _Said(WARN, f'{user.error}; {said} is assumed',
                     'Run this as root.')
    if user.error:
        return _Said(FAIL, f'{user.error}: libvirt cannot read it either',
                     'Correct that line, then ' + _restart_libvirt(facts))
    for what, name, number in (('user', user.user, user.uid),
                               ('group', user.group, user.gid)):
        if number is None:
            default = (facts.distribution.qemu_user if what == 'user' else
                       facts.distribution.qemu_group)
            return _Said(
                FAIL, f'there is no {what} {name} ({user.source})',
                _install(facts, facts.distribution.libvirt_package)
                if name == default else
                f'sed -i \'s/^{what} *=.*/{what} = "{default}"/\' '
                f'/etc/libvirt/qemu.conf && {_restart_libvirt(facts)}')
    if facts.libvirt.user not in (None, (user.uid, user.gid)):
        uid, gid = facts.libvirt.user or (0, 0)
        return _Said(
            WARN, f'{said}, but the running libvirt still gives QEMU the '
            f'user {uid} and the group {gid}', _restart_libvirt(facts))
    return _Said(PASS, f'{said}; uid {user.uid}, groups '
                       f'{_names(facts, user.groups)}')


@_check('KVM202', '/dev/kvm')
def _kvm_node(facts: model.HostFacts) -> _Said:
    device = facts.devices['/dev/kvm']
    number = facts.kernel.misc.get('kvm', _NUMBERS['/dev/kvm'])
    make = f'mknod /dev/kvm c {number.replace(":", " ")}'
    if device.present:
        if device.number == number:
            return _Said(PASS, f'a character device, {number}')
        return _no_kvm(
            facts, f'it is the device {device.number}, KVM is {number}',
            f'rm /dev/kvm && {make} && {_permission_command(facts)}')
    if device.kind:
        return _no_kvm(
            facts, f'{device.kind} is in its place',
            f'mv /dev/kvm /dev/kvm.wrong && {make} && '
            f'{_permission_command(facts)}')
    if 'kvm' in facts.kernel.misc:
        return _no_kvm(
            facts, 'the kernel has KVM, but the node has been removed',
            f'{make} && {_permission_command(facts)}',
            (make, *_permission_fix(facts)))
    return _no_kvm(facts, 'it does not exist, because KVM is not in the '
                          'kernel (KVM101 to KVM104)')


def _rule(facts: model.HostFacts, device: str) -> tuple[str, str, str]:
    """File, group and mode that udev's rules give a device, '' for none."""
    file = group = mode = ''
    for rule in facts.udev.rules:
        if rule.device == device:
            file = rule.file
            group, mode = rule.group or group, rule.mode or mode
    return file, group, mode


# systemd's rules (50-udev-default.rules) set a group and a mode for this
# action only, not for "change", which is what udevadm does by default.
_TRIGGER = 'udevadm trigger --action=add --name-match=kvm'


def _permission_fix(facts: model.HostFacts) -> tuple[str, ...]:
    """What gives /dev/kvm back to its group."""
    file, group, mode = _rule(facts, 'kvm')
    if facts.udev.running and file:
        return (f'{_TRIGGER} --settle',)
    return (f'chgrp {shlex.quote(group or "kvm")} /dev/kvm',
            f'chmod {shlex.quote(mode or "0660")} /dev/kvm')


def _permission_command(facts: model.HostFacts) -> str:
    return ' && '.join(_permission_fix(facts))


@_check('KVM203', 'udev rule of /dev/kvm')
def _kvm_rule(facts: model.HostFacts) -> _Said:
    file, group, mode = _rule(facts, 'kvm')
    where, package = facts.distribution.kvm_rules
    if file:
        return _Said(PASS, f'{file}: group {group or "unset"}, mode '
                           f'{mode or "unset"}' + (
                               '' if facts.udev.running else
                               '; no udev runs to apply it'))
    if not facts.udev.running:
        return _Said(SKIP, 'no udev runs here, and no rule is there for it')
    said = _no_kvm(
        facts, f'no rule gives /dev/kvm to a group; {facts.distribution.name} '
        f'has one in {where}',
        f'{facts.distribution.reinstall} {package} && {_TRIGGER}')
    return said if said.result == SKIP else _Said(
        WARN, said.details, said.remedy)


def _owner(facts: model.HostFacts, uid: int) -> str:
    return ('root' if uid == 0 else facts.qemu_user.user
            if uid == facts.qemu_user.uid else str(uid))


def _permissions(facts: model.HostFacts, device: model.DeviceFacts) -> str:
    return (f'{_owner(facts, device.owner)}:'
            f'{_names(facts, (device.group,))} {device.mode:04o}' +
            (' and an ACL' if device.acl else ''))


def _as_ruled(facts: model.HostFacts) -> bool:
    """Whether /dev/kvm has the group and mode that its rule gives it."""
    device = facts.devices['/dev/kvm']
    _, group, mode = _rule(facts, 'kvm')
    try:
        wanted = int(mode or '0660', 8)
    except ValueError:
        return True
    return device.mode == wanted and (
        facts.group_names.get(device.group) == (group or 'kvm'))


@_check('KVM204', 'Permissions of /dev/kvm')
def _kvm_permissions(facts: model.HostFacts) -> _Said:
    device = facts.devices['/dev/kvm']
    if not device.present:
        return _Said(SKIP, 'there is no node (KVM202)')
    found = _permissions(facts, device)
    if facts.kvm_use.error not in ('EACCES', 'EPERM'):
        return _Said(PASS, found)
    _, group, mode = _rule(facts, 'kvm')
    if _as_ruled(facts):
        return _Said(PASS, f'{found}, as it should be')
    return _no_kvm(
        facts, f'{found} instead of group {group or "kvm"}, mode '
        f'{mode or "0660"}', _permission_command(facts),
        _permission_fix(facts), slow=True)


@_check('KVM205', 'Use of /dev/kvm')
def _kvm_use(facts: model.HostFacts) -> _Said:
    use, user = facts.kvm_use, facts.qemu_user
    how = 'opened as' if use.tried else 'judged by its permissions for'
    who = f'{how} {user.user}'
    if not facts.devices['/dev/kvm'].present:
        return _Said(SKIP, 'there is no node (KVM202)')
    if user.uid is None or user.gid is None:
        return _Said(SKIP, 'QEMU\'s user is not known (KVM201)')
    if use.error is None:
        if use.api_version in (None, KVM_API_VERSION):
            version = ('' if use.api_version is None else
                       f', KVM_GET_API_VERSION = {use.api_version}')
            hint = '' if use.tried else '; only root can try it'
            return _Said(PASS, f'{who}{version}{hint}')
        return _no_kvm(
            facts, f'{who}, KVM_GET_API_VERSION = {use.api_version}, but '
            f'{KVM_API_VERSION} is what QEMU knows',
            'Boot a kernel that has KVM as QEMU knows it.')
    if use.error == 'EACCES':
        remedy, fix = _let_in(facts)
        return _no_kvm(
            facts, f'{who}: permission denied (EACCES), it is '
            f'{_permissions(facts, facts.devices["/dev/kvm"])} and the '
            f'user has the groups {_names(facts, user.groups)}', remedy, fix,
            slow=True)
    if use.error == 'EPERM':
        return _no_kvm(
            facts, f'{who}: not permitted (EPERM), as in a container whose '
            f'control group forbids the device',
            'Allow the container the device c 10:232 rwm.', slow=True)
    if use.error in ('ENODEV', 'ENXIO'):
        return _no_kvm(
            facts, f'{who}: no such device ({use.error}), KVM is not in the '
            f'kernel (KVM101 to KVM104)')
    if use.error == 'ENOTTY':
        return _no_kvm(facts, f'{who}: it is not KVM that answers '
                              f'(ENOTTY, KVM202)')
    return _no_kvm(facts, f'{who}: {use.error}')


def _let_in(facts: model.HostFacts) -> tuple[str, tuple[str, ...]]:
    """Remedy and fix for a user who may not open /dev/kvm."""
    if not _as_ruled(facts):
        return _permission_command(facts), _permission_fix(facts)
    group = facts.group_names.get(facts.devices['/dev/kvm'].group, 'kvm')
    user = facts.qemu_user.user.removeprefix('+')
    if user != facts.distribution.qemu_user and (
            'qemu.conf' in facts.qemu_user.source):
        # Its own user is in the group on every distribution.
        return (f'sed -i \'s/^user *=.*/user = '
                f'"{facts.distribution.qemu_user}"/\' '
                f'/etc/libvirt/qemu.conf && {_restart_libvirt(facts)}'), ()
    return (f'usermod -a -G {shlex.quote(group)} {shlex.quote(user)} && '
            f'{_restart_libvirt(facts)}'), ()


# vhost-net. libvirtd opens the device and hands it to QEMU.


def _no_vhost(facts: model.HostFacts, details: str, remedy: str,
              fix: tuple[str, ...] = ()) -> _Said:
    if facts.virt_type == 'qemu':
        return _Said(SKIP, f'{details}; of no importance, because '
                           f'virt_type = qemu uses no vhost-net')
    settings = facts.options.settings
    wanted = settings.vhost_net if settings else 'prefer'
    if wanted == 'off':
        return _Said(SKIP, f'{details}; of no importance, because '
                           f'[kvm_ext] vhost_net = off uses none')
    if wanted == 'require':
        return _Said(FAIL, f'{details}, and [kvm_ext] vhost_net = require',
                     remedy, fix)
    return _Said(WARN, f'{details}: network cards go without vhost-net, '
                       f'slower', remedy, fix)


@_check('KVM301', 'Module vhost_net')
def _vhost_module(facts: model.HostFacts) -> _Said:
    module = facts.kernel.modules['vhost_net']
    device = facts.devices['/dev/vhost-net']
    if module.there:
        return _Said(PASS, _state(module))
    if device.present and device.open_error is None:
        return _Said(PASS, f'{_state(module)} until /dev/vhost-net is opened')
    if module.state == 'loadable':
        return _no_vhost(facts, *_load(facts, module))
    return _no_vhost(facts, *_missing_module(facts, module))


def _vhost_remedy(facts: model.HostFacts) -> tuple[str, tuple[str, ...]]:
    module = facts.kernel.modules['vhost_net']
    if module.state == 'loadable':
        return _load(facts, module)[1:]
    if module.there:
        number = facts.kernel.misc.get('vhost-net',
                                       _NUMBERS['/dev/vhost-net'])
        make = f'mknod -m 0660 /dev/vhost-net c {number.replace(":", " ")}'
        return make, (make,)
    return _missing_module(facts, module)[1], ()


@_check('KVM302', '/dev/vhost-net')
def _vhost_node(facts: model.HostFacts) -> _Said:
    device = facts.devices['/dev/vhost-net']
    file, _, _ = _rule(facts, 'vhost-net')
    if not device.present:
        found = (f'{device.kind} is in its place' if device.kind else
                 'it does not exist')
        if device.kind:
            return _no_vhost(facts, found, 'mv /dev/vhost-net '
                             '/dev/vhost-net.wrong && modprobe vhost_net')
        return _no_vhost(facts, found, *_vhost_remedy(facts))
    number = facts.kernel.misc.get('vhost-net', _NUMBERS['/dev/vhost-net'])
    if device.number != number:
        return _no_vhost(
            facts, f'it is the device {device.number}, vhost-net is {number}',
            f'rm /dev/vhost-net && mknod -m 0660 /dev/vhost-net c '
            f'{number.replace(":", " ")}')
    ruled = f', rule {file}' if file else ''
    return _Said(PASS, f'a character device, {number}, '
                       f'{_permissions(facts, device)}{ruled}')


@_check('KVM303', 'Use of /dev/vhost-net')
def _vhost_use(facts: model.HostFacts) -> _Said:
    device = facts.devices['/dev/vhost-net']
    if not device.present:
        return _Said(SKIP, 'there is no node (KVM302)')
    if device.open_error is None:
        return _Said(PASS, 'it opens')
    if not facts.root:
        return _Said(SKIP, 'libvirtd opens it as root, which only root can '
                           'try')
    remedy, fix = (_vhost_remedy(facts) if device.open_error in
                   ('ENODEV', 'ENXIO') else ('', ()))
    return _no_vhost(facts, f'it does not open ({device.open_error})',
                     remedy, fix)


# Nova beside it.


@_check('KVM401', 'Driver beside Nova')
def _driver(facts: model.HostFacts) -> _Said:
    problem = install.check(facts.install)
    if problem is not None:
        return _Said(FAIL, problem, install.remedy(facts.install) or
                     'Install nova-kvm-ext with the Python that runs '
                     'nova-compute.')
    named = facts.options.compute_driver
    where = f'Nova in {", ".join(facts.install.nova_directories)} finds it'
    if named is not None and named != 'kvm_ext.KVMDriver':
        return _Said(WARN, f'{where}, but nova.conf has compute_driver = '
                           f'{named}',
                     'Set [DEFAULT] compute_driver = kvm_ext.KVMDriver.')
    return _Said(PASS, where)


def _chosen(facts: model.HostFacts, caps: capabilities.DomainCapabilities
            ) -> tuple[choose.CPUChoice | None, _Said]:
    """The CPU of guests here as the driver chooses it, or its refusal."""
    assert facts.options.settings is not None
    try:
        return choose.choose(facts.options.settings, usable.Host(
            facts.virt_type, caps, facts.cpu_map)), _Said(PASS, '')
    except errors.KVMExtError as e:
        return None, _Said(FAIL, e.problem, e.remedy)


@_check('KVM402', 'nova.conf')
def _conf(facts: model.HostFacts) -> _Said:
    settings = facts.options.settings
    if settings is None or facts.options.problem:
        return _Said(FAIL, facts.options.problem, facts.options.remedy)
    if settings.virt_type not in ('kvm', 'qemu', 'auto'):
        return _Said(
            FAIL, f'{settings.virt_type_option} = {settings.virt_type} is '
            f'nothing that compute_driver = kvm_ext.KVMDriver runs',
            'Set [kvm_ext] virt_type to kvm, qemu or auto.')
    # By itself: what libvirt says of this host comes later.
    choice, refused = _chosen(facts, capabilities.DomainCapabilities())
    if choice is None:
        return refused
    said = (f'virt_type = {settings.virt_type}, cpu_mode = '
            f'{settings.cpu_mode or "unset"}' + ''.join(
                f' {model_}' for model_ in settings.cpu_models))
    if not facts.options.files:
        return _Said(SKIP, f'no nova.conf was read; Nova\'s defaults are '
                           f'assumed: {said}',
                     'nova-kvm-ext host check --config-file '
                     '/etc/nova/nova.conf')
    return _Said(PASS, f'{", ".join(facts.options.files)}: {said}')


@_check('KVM403', 'Helper of privsep')
def _privsep(facts: model.HostFacts) -> _Said:
    command = ' '.join(facts.options.helper)
    said = f'{command} ({facts.options.helper_option})'
    if not facts.options.files:
        return _Said(SKIP, f'no nova.conf says what it is; by default '
                           f'{said}')
    missing = [program.name for program in facts.privsep
               if program.path is None]
    if not missing:
        return _Said(PASS, said)
    return _Said(
        FAIL, f'{", ".join(missing)} of {said} is not installed or cannot be '
        f'run: nova-compute can do nothing that needs root',
        _install(facts, 'sudo') if missing == ['sudo'] else
        'Install Nova whole, or correct [nova_sys_admin] helper_command.')


@_check('KVM404', 'Directory of instances')
def _instances(facts: model.HostFacts) -> _Said:
    directory = next((d for d in facts.directories if 'instances' in d.what),
                     None)
    if directory is None:
        return _Said(SKIP, 'no nova.conf says where it is')
    return _fit(facts, directory, 'nova')


def _fit(facts: model.HostFacts, directory: model.DirectoryFacts,
         owner: str) -> _Said:
    path = shlex.quote(directory.path)
    said = f'{directory.path} ({directory.what})'
    if directory.error == 'ENOENT':
        return _Said(FAIL, f'{said} does not exist',
                     f'install -d -o {owner} -g {owner} {path}')
    if directory.error:
        return _Said(FAIL, f'{said} cannot be looked at: {directory.error}',
                     f'ls -ld {path}')
    if directory.read_only:
        return _Said(FAIL, f'{said} is on a file system that is mounted '
                           f'read-only',
                     f'mount -o remount,rw "$(findmnt -n -o TARGET -T '
                     f'{path})"')
    if directory.barrier:
        return _Said(
            FAIL, f'{said}: QEMU\'s user {facts.qemu_user.user} may not '
            f'enter {directory.barrier}',
            f'chmod o+x {shlex.quote(directory.barrier)}')
    if not directory.writable:
        return _Said(FAIL, f'{said} cannot be written to by this process',
                     f'chown {owner} {path}')
    return _Said(PASS, f'{said}: owner '
                       f'{_owner(facts, directory.owner)}, group '
                       f'{_names(facts, (directory.group,))}, mode '
                       f'{directory.mode:04o}')


@_check('KVM405', 'Space for instances')
def _space(facts: model.HostFacts) -> _Said:
    directory = next((d for d in facts.directories if 'instances' in d.what),
                     None)
    if directory is None or directory.error:
        return _Said(SKIP, 'there is no directory to look at (KVM404)')
    said = (f'{directory.path}: {directory.free / 1024 ** 3:.1f} GiB of '
            f'{directory.total / 1024 ** 3:.1f} GiB are free')
    remedy = (f'Remove what is not needed below {directory.path}, or give it '
              f'a larger file system.')
    if directory.free < _NO_SPACE:
        return _Said(FAIL, f'{said}: no image fits', remedy)
    if directory.free_files == 0:
        return _Said(FAIL, f'{said}, but no inode', remedy)
    reserved = facts.options.reserved_disk_mb * _MIB
    if directory.free < max(_LITTLE_SPACE, reserved):
        return _Said(WARN, said + (
            f', less than [DEFAULT] reserved_host_disk_mb = '
            f'{facts.options.reserved_disk_mb}'
            if directory.free < reserved else ''), remedy)
    return _Said(PASS, said)


@_check('KVM406', 'Directory of channels')
def _channels(facts: model.HostFacts) -> _Said:
    directory = next(d for d in facts.directories
                     if 'instances' not in d.what)
    if directory.error == 'ENOENT':
        return _Said(WARN, f'{directory.path} does not exist: libvirt has '
                           f'not run here yet', _start_libvirt(facts))
    if not facts.root and directory.error is None and (
            not directory.writable):
        return _Said(SKIP, f'{directory.path}: only root can look into it')
    if directory.error == 'EACCES':
        return _Said(SKIP, f'{directory.path}: only root can look into it')
    if directory.error is None and directory.free < _NO_CHANNEL_SPACE:
        return _Said(FAIL, f'{directory.path}: its file system is full',
                     'Remove what is not needed there: '
                     f'du -x {shlex.quote(directory.path)}')
    return _fit(facts, directory, facts.qemu_user.user)


# libvirt and QEMU.


@_check('KVM501', 'QEMU')
def _emulator(facts: model.HostFacts) -> _Said:
    emulator = facts.emulator
    if emulator.path is None:
        return _Said(
            FAIL, f'{facts.distribution.name} has it in '
            f'{" or ".join(facts.distribution.emulators)}, where it is not'
            .format(arch=facts.cpu.arch),
            _install(facts, facts.distribution.qemu_package(facts.cpu.arch)))
    package = facts.distribution.qemu_package(facts.cpu.arch)
    again = f'{facts.distribution.reinstall} {package}'
    if emulator.error:
        return _Said(FAIL, f'{emulator.path} does not run: {emulator.error}',
                     again)
    if not emulator.accelerators:
        return _Said(FAIL, f'{emulator.path} does not list its accelerators '
                           f'(-accel help)', again)
    version = '.'.join(map(str, emulator.version or ())) or 'unknown version'
    said = (f'{emulator.path} {version}, accelerators '
            f'{", ".join(emulator.accelerators)}')
    if facts.virt_type == 'qemu' and 'tcg' not in emulator.accelerators:
        return _Said(FAIL, f'{said}: virt_type = qemu needs tcg',
                     'Set [kvm_ext] virt_type = kvm.')
    if 'kvm' not in emulator.accelerators:
        return _no_kvm(facts, f'{said}: it is built without kvm',
                       _install(facts, package))
    return _Said(PASS, said)


@_check('KVM502', 'libvirt')
def _libvirt(facts: model.HostFacts) -> _Said:
    libvirt = facts.libvirt
    if libvirt.error:
        known = errors.explain(libvirt.error)
        if libvirt.hangs:
            return _Said(FAIL, f'{libvirt.uri}: {libvirt.error}',
                         _restart_libvirt(facts))
        denied = 'denied' in libvirt.error or 'authentic' in libvirt.error
        return _Said(FAIL, f'{libvirt.uri}: {libvirt.error}',
                     known.remedy if known and denied else
                     _start_libvirt(facts))
    if libvirt.version is None:
        return _Said(SKIP, libvirt.unasked)
    return _Said(PASS, f'{libvirt.uri} answers')


def _version(facts: model.HostFacts, what: str,
             found: tuple[int, int, int] | None,
             minimum: tuple[int, int, int] | None,
             following: tuple[int, int, int] | None) -> _Said:
    if found is None:
        return _Said(SKIP, facts.libvirt.unasked or
                     f'{what} did not say (KVM502)')
    said = '.'.join(map(str, found))
    if minimum is None or following is None:
        return _Said(SKIP, f'{what} {said}; Nova\'s source does not tell '
                           f'what it needs')
    upgrade = f'Upgrade {what}, with a release of the distribution that has '
    if found < minimum:
        least = '.'.join(map(str, minimum))
        return _Said(FAIL, f'{what} {said} is older than {least}, and Nova '
                           f'does not start with it', f'{upgrade}{least}.')
    if found < following:
        least = '.'.join(map(str, following))
        return _Said(
            WARN, f'{what} {said}: this Nova needs '
            f'{".".join(map(str, minimum))}, a later one will need {least}',
            f'{upgrade}{least}, before Nova is upgraded.')
    return _Said(PASS, f'{what} {said}')


@_check('KVM503', 'Version of libvirt')
def _libvirt_version(facts: model.HostFacts) -> _Said:
    return _version(facts, 'libvirt', facts.libvirt.version,
                    facts.nova.libvirt, facts.nova.next_libvirt)


@_check('KVM504', 'Version of QEMU')
def _qemu_version(facts: model.HostFacts) -> _Said:
    return _version(facts, 'QEMU',
                    facts.libvirt.qemu or facts.emulator.version,
                    facts.nova.qemu, facts.nova.next_qemu)


def _unasked(facts: model.HostFacts) -> str:
    """Why libvirt's answers about QEMU are not there, or ''."""
    if facts.libvirt.error:
        return 'libvirt did not answer (KVM502)'
    if facts.libvirt.unasked.startswith('libvirt was not asked about'):
        return f'{facts.libvirt.unasked} (KVM205)'
    return facts.libvirt.unasked


@_check('KVM505', 'Machine types')
def _machines(facts: model.HostFacts) -> _Said:
    unasked = _unasked(facts)
    if unasked:
        return _Said(SKIP, unasked)
    arch, machines = facts.cpu.arch, facts.libvirt.machines
    if not machines:
        package = facts.distribution.qemu_package(arch)
        return _Said(FAIL, f'libvirt knows no machine type for {arch}',
                     f'{_install(facts, package)} && '
                     f'{_restart_libvirt(facts)}')
    for wanted, machine in facts.options.machine_types:
        if wanted == arch and machine not in machines:
            return _Said(
                FAIL, f'[libvirt] hw_machine_type has {arch}={machine}, '
                f'which QEMU on this host does not know',
                f'Choose one of {facts.emulator.path} -machine help, or '
                f'remove the option.')
    said = dict(facts.options.machine_types).get(arch)
    return _Said(PASS, f'{len(machines)} for {arch}' + (
        f', {said} of hw_machine_type among them' if said else ''))


@_check('KVM506', 'KVM in libvirt\'s eyes')
def _libvirt_kvm(facts: model.HostFacts) -> _Said:
    unasked = _unasked(facts)
    if unasked:
        return _Said(SKIP, unasked)
    refused = facts.libvirt.refuses.get('kvm')
    offers = bool(facts.libvirt.offers_kvm) and refused is None
    words = f': {refused}' if refused else ''
    if offers and not facts.kvm_use.works:
        return _no_kvm(
            facts, f'libvirt offers KVM, which is wrong or out of date: '
            f'QEMU\'s user cannot open /dev/kvm ({facts.kvm_use.error})',
            _restart_libvirt(facts))
    if offers and facts.probe.virt_type == 'kvm' and (
            facts.probe.runs is False):
        return _no_kvm(
            facts, 'libvirt offers KVM, but a 64-bit guest does not run '
            'under it (KVM508)', _SOFTWARE)
    if offers:
        return _Said(PASS, 'libvirt offers KVM')
    if facts.kvm_use.works:
        return _no_kvm(
            facts, f'libvirt offers no KVM, though QEMU\'s user can open '
            f'/dev/kvm: its answer is out of date{words}',
            _restart_libvirt(facts))
    return _Said(SKIP, f'libvirt offers no KVM, and there is none{words}')


_SOFTWARE = 'Set [kvm_ext] virt_type = qemu or auto.'


@_check('KVM507', 'CPU of guests')
def _guest_cpu(facts: model.HostFacts) -> _Said:
    unasked = _unasked(facts)
    if unasked:
        return _Said(SKIP, unasked)
    settings = facts.options.settings
    if settings is None or settings.virt_type not in ('kvm', 'qemu', 'auto'):
        return _Said(SKIP, 'nova.conf cannot be used (KVM402)')
    if _chosen(facts, capabilities.DomainCapabilities())[0] is None:
        return _Said(SKIP, 'nova.conf cannot be used (KVM402)')
    if facts.virt_type in facts.libvirt.refuses:
        return _Said(SKIP, f'libvirt gives no domain capabilities: '
                           f'{facts.libvirt.refuses[facts.virt_type]}')
    choice, refused = _chosen(facts, facts.libvirt.domain_capabilities)
    if choice is None:
        return refused
    mode = choice.mode or choose.default_mode(facts.cpu.arch)
    said = (f'{mode}{"".join(f" {m}" for m in choice.models)} under '
            f'{facts.virt_type}')
    if choice.warnings:
        return _Said(WARN, f'{said}: {" ".join(choice.warnings)}')
    return _Said(PASS, said)


@_check('KVM508', '64-bit guest')
def _probe(facts: model.HostFacts) -> _Said:
    probe = facts.probe
    if probe.runs is None:
        return _Said(SKIP, probe.reason)
    if probe.runs:
        return _Said(PASS, probe.reason)
    if probe.virt_type == 'qemu':
        log = os.path.join('/var/log/libvirt/qemu', 'nova-kvm-ext-probe-*')
        return _Said(FAIL, probe.reason, f'Read {log}')
    return _no_kvm(facts, probe.reason, _SOFTWARE)
