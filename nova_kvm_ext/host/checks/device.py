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

"""Who may open /dev/kvm.

Codes KVM2xx. Pure.
"""

import shlex

from nova_kvm_ext.host.checks import causes
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import model

GROUP = verdict.Group()

_CLOSED = ('QEMU\'s user cannot open /dev/kvm as KVM: tried as that user, or '
           'judged by mode and ACL for the user that libvirt names. libvirt '
           'sees this /dev, virt_type = kvm is set, and no guest has run '
           'under KVM.')

KVM_API_VERSION = 12
"""What KVM_GET_API_VERSION has answered since Linux 2.6.22 (kvm/api.rst)."""


def _no_kvm(facts: model.HostFacts, details: str, remedy: str = '',
            fix: tuple[str, ...] = (), slow: bool = False) -> verdict.Said:
    """:func:`causes.no_kvm`, of what is seen in this file system."""
    if not facts.qemu_user.known:
        return verdict.warn(f'{details}; which user libvirt gives QEMU is '
                            f'not known (KVM201)', remedy, fix)
    return causes.no_kvm(facts, details, remedy, fix, slow, files=True)


@GROUP.check('KVM201', 'QEMU\'s user', proof='')
def _qemu_user(facts: model.HostFacts) -> verdict.Said:
    user, conf = facts.qemu_user, facts.configured_user
    said = f'{user.user}:{user.group}, {user.source}'
    if conf.unreadable and not user.by_libvirt:
        return verdict.skip(f'{conf.error}; {said} is assumed, because '
                            f'libvirt did not say')
    known = verdict.passed(f'{said}; uid {user.uid}, groups '
                           f'{causes.names(facts, user.groups)}')
    if conf.unreadable:
        return known
    found = _qemu_conf(facts)
    # libvirt's own answer is not shaken by what is missing elsewhere.
    if found is not None and (facts.place.here or not user.by_libvirt):
        return causes.weigh(facts, found)
    return known


def _qemu_conf(facts: model.HostFacts) -> verdict.Said | None:
    """What is wrong with qemu.conf; libvirt reads it when it starts."""
    conf, user = facts.configured_user, facts.qemu_user
    if conf.error:
        return verdict.warn(f'{conf.error}: libvirt cannot read it either '
                            f'when it starts', 'Correct that line, then ' +
                            causes.restart_libvirt(facts))
    for what, name, number in (('user', conf.user, conf.uid),
                               ('group', conf.group, conf.gid)):
        if number is None:
            default = (facts.distribution.qemu_user if what == 'user' else
                       facts.distribution.qemu_group)
            return verdict.warn(
                f'there is no {what} {name} ({conf.source}), which libvirt '
                f'needs when it starts',
                causes.install(facts, facts.distribution.libvirt_package)
                if name == default else
                f'sed -i \'s/^{what} *=.*/{what} = "{default}"/\' '
                f'/etc/libvirt/qemu.conf && {causes.restart_libvirt(facts)}')
    if (user.uid, user.gid) != (conf.uid, conf.gid):
        return verdict.warn(
            f'{conf.user}:{conf.group}, {conf.source}, but the running '
            f'libvirt still gives QEMU the user {user.uid} and the group '
            f'{user.gid}', causes.restart_libvirt(facts))
    return None


@GROUP.check('KVM202', '/dev/kvm', proof=_CLOSED)
def _kvm_node(facts: model.HostFacts) -> verdict.Said:
    device = facts.devices['/dev/kvm']
    number = facts.kernel.misc.get('kvm', causes.NUMBERS['/dev/kvm'])
    make = f'mknod /dev/kvm c {number.replace(":", " ")}'
    if device.present:
        if device.number == number:
            return verdict.passed(f'a character device, {number}')
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


# systemd's rules (50-udev-default.rules) set a group and a mode for this
# action only, not for "change", which is what udevadm does by default.
_TRIGGER = 'udevadm trigger --action=add --name-match=kvm'


def _permission_fix(facts: model.HostFacts) -> tuple[str, ...]:
    """What gives /dev/kvm back to its group."""
    file, group, mode = causes.rule(facts, 'kvm')
    if facts.udev.running and file:
        return (f'{_TRIGGER} --settle',)
    return (f'chgrp {shlex.quote(group or "kvm")} /dev/kvm',
            f'chmod {shlex.quote(mode or "0660")} /dev/kvm')


def _permission_command(facts: model.HostFacts) -> str:
    return ' && '.join(_permission_fix(facts))


@GROUP.check('KVM203', 'udev rule of /dev/kvm', proof='')
def _kvm_rule(facts: model.HostFacts) -> verdict.Said:
    file, group, mode = causes.rule(facts, 'kvm')
    where, package = facts.distribution.kvm_rules
    if file:
        return verdict.passed(
            f'{file}: group {group or "unset"}, mode {mode or "unset"}' + (
                '' if facts.udev.running else '; no udev runs to apply it'))
    if not facts.udev.running:
        return verdict.skip('no udev runs here, and no rule is there for it')
    said = _no_kvm(
        facts, f'no rule gives /dev/kvm to a group; {facts.distribution.name} '
        f'has one in {where}',
        f'{facts.distribution.reinstall} {package} && {_TRIGGER}')
    return said if said.result == verdict.SKIP else verdict.warn(
        said.details, said.remedy)


def _as_ruled(facts: model.HostFacts) -> bool:
    """Whether /dev/kvm has the group and mode that its rule gives it."""
    device = facts.devices['/dev/kvm']
    _, group, mode = causes.rule(facts, 'kvm')
    try:
        wanted = int(mode or '0660', 8)
    except ValueError:
        return True
    return device.mode == wanted and (
        facts.group_names.get(device.group) == (group or 'kvm'))


@GROUP.check('KVM204', 'Permissions of /dev/kvm', proof=_CLOSED)
def _kvm_permissions(facts: model.HostFacts) -> verdict.Said:
    device = facts.devices['/dev/kvm']
    if not device.present:
        return verdict.skip('there is no node (KVM202)')
    found = causes.permissions(facts, device)
    if facts.kvm_use.error not in ('EACCES', 'EPERM'):
        return verdict.passed(found)
    _, group, mode = causes.rule(facts, 'kvm')
    if _as_ruled(facts):
        return verdict.passed(f'{found}, as it should be')
    return _no_kvm(
        facts, f'{found} instead of group {group or "kvm"}, mode '
        f'{mode or "0660"}', _permission_command(facts),
        _permission_fix(facts), slow=True)


@GROUP.check('KVM205', 'Use of /dev/kvm', proof=_CLOSED)
def _kvm_use(facts: model.HostFacts) -> verdict.Said:
    use, user = facts.kvm_use, facts.qemu_user
    how = 'opened as' if use.tried else 'judged by its permissions for'
    who = f'{how} {user.user}'
    if not facts.devices['/dev/kvm'].present:
        return verdict.skip('there is no node (KVM202)')
    if user.uid is None or user.gid is None:
        return verdict.skip('QEMU\'s user is not known (KVM201)')
    if use.error is None:
        if use.api_version in (None, KVM_API_VERSION):
            version = ('' if use.api_version is None else
                       f', KVM_GET_API_VERSION = {use.api_version}')
            hint = ('' if use.tried or use.api_version is not None else
                    '; only root can try it')
            return verdict.passed(f'{who}{version}{hint}')
        return _no_kvm(
            facts, f'{who}, KVM_GET_API_VERSION = {use.api_version}, but '
            f'{KVM_API_VERSION} is what QEMU knows',
            'Boot a kernel that has KVM as QEMU knows it.')
    if use.error == 'EACCES':
        remedy, fix = _let_in(facts)
        return _no_kvm(
            facts, f'{who}: permission denied (EACCES), it is '
            f'{causes.permissions(facts, facts.devices["/dev/kvm"])} and the '
            f'user has the groups {causes.names(facts, user.groups)}',
            remedy, fix, slow=True)
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
                f'/etc/libvirt/qemu.conf && '
                f'{causes.restart_libvirt(facts)}'), ()
    return (f'usermod -a -G {shlex.quote(group)} {shlex.quote(user)} && '
            f'{causes.restart_libvirt(facts)}'), ()
