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

"""Causes and remedies that several groups of checks share.

Pure.
"""

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import choose
from nova_kvm_ext.cpu import usable
from nova_kvm_ext import errors
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import model

# linux/miscdevice.h: KVM_MINOR, VHOST_NET_MINOR of the major number 10.
NUMBERS = {'/dev/kvm': '10:232', '/dev/vhost-net': '10:238'}


def no_kvm(facts: model.HostFacts, details: str, remedy: str = '',
           fix: tuple[str, ...] = (), slow: bool = False,
           files: bool = False) -> verdict.Said:
    """Something that prevents guests from KVM, as grave as nova.conf makes it.

    :param slow: whether it also makes libvirt wait over each look at QEMU,
        so that guests in software have to do with it too
    :param files: whether it was seen in this file system, which may not be
        libvirt's; else it is of the running kernel
    """
    settings = facts.options.settings
    wanted = settings.virt_type if settings else 'kvm'
    if facts.runs_kvm and wanted != 'qemu' and (
            facts.place.here or not files):
        return verdict.warn(f'{details}; yet a guest under KVM runs (KVM508)',
                            remedy, fix)
    if wanted == 'auto':
        said = verdict.warn(f'{details}; virt_type = auto: guests run in '
                            f'software', remedy, fix)
        return weigh(facts, said) if files else said
    if wanted == 'qemu' and slow:
        return verdict.warn(f'{details}; virt_type = qemu needs no KVM, but '
                            'libvirt needs a minute for each check of QEMU',
                            remedy, fix)
    if wanted == 'qemu':
        return verdict.skip(f'{details}; not relevant, because virt_type = '
                            'qemu needs no KVM')
    said = verdict.fail(details, remedy, fix)
    if files or facts.place.remote:
        return weigh(facts, said)
    return said


def weigh(facts: model.HostFacts, said: verdict.Said) -> verdict.Said:
    """What was seen in this file system, as grave as libvirt's place makes it.

    Only where libvirt has the same files it proves anything of its guests.
    Where libvirt does not answer nobody can tell, and it stays a hint.
    """
    if facts.place.here or said.result not in (verdict.WARN, verdict.FAIL):
        return said
    doubt = elsewhere(facts)
    if facts.libvirt.version is None and not facts.place.remote and (
            facts.place.here is None):
        return verdict.warn(f'{said.details}; {doubt}', said.remedy, said.fix)
    return verdict.skip(f'{said.details}; {doubt}')


def elsewhere(facts: model.HostFacts) -> str:
    """How libvirt's file system is related to this one, in words."""
    reason = facts.place.reason
    if facts.place.here:
        return f'libvirt sees this file system ({reason})'
    if facts.place.here is False:
        return f'libvirt runs in another file system ({reason})'
    return f'whether libvirt sees this file system is not known ({reason})'


def restart_libvirt(facts: model.HostFacts) -> str:
    if facts.place.remote or facts.place.here is False or (
            not facts.place.here and facts.libvirt.version is not None):
        return 'Restart libvirt where it runs.'
    if facts.systemd:
        return f'systemctl restart {facts.distribution.libvirt_service}'
    return 'kill $(cat /run/libvirtd.pid) && libvirtd -d'


def start_libvirt(facts: model.HostFacts) -> str:
    if facts.place.remote or facts.place.here is False:
        return (f'Start libvirt where it runs, with the socket that '
                f'{facts.libvirt.uri} needs, or correct [libvirt] '
                f'connection_uri.')
    if facts.systemd:
        return f'systemctl start {facts.distribution.libvirt_service}'
    return 'virtlogd -d; libvirtd -d'


def install(facts: model.HostFacts, package: str) -> str:
    return (f'{facts.distribution.install} '
            f'{package.format(release=facts.kernel.release)}')


def state(module: model.ModuleFacts) -> str:
    words = {'loaded': 'is loaded', 'builtin': 'is built into the kernel',
             'loadable': 'is not loaded', 'missing': 'is missing'}
    return f'{module.name} {words[module.state]}'


def missing_module(facts: model.HostFacts,
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
            install(facts, facts.distribution.kernel_modules))


def load(facts: model.HostFacts,
         module: model.ModuleFacts) -> tuple[str, str, tuple[str, ...]]:
    """How to load a module: details, remedy and fix."""
    command = f'modprobe {module.name}'
    if ': install ' in module.blocked:
        return (f'{state(module)}, and a line forbids it: {module.blocked}',
                f'Remove the line {module.blocked.split(": ")[0]}, then '
                f'{command}', ())
    if module.blocked:
        return (f'{state(module)}, because a line prevents it from being '
                f'loaded at boot: {module.blocked}',
                command, (command,))
    return state(module), command, (command,)


def names(facts: model.HostFacts, gids: tuple[int, ...]) -> str:
    return ', '.join(facts.group_names.get(gid, str(gid)) for gid in gids)


def rule(facts: model.HostFacts, device: str) -> tuple[str, str, str]:
    """File, group and mode that udev's rules give a device, '' for none."""
    file = group = mode = ''
    for one in facts.udev.rules:
        if one.device == device:
            file = one.file
            group, mode = one.group or group, one.mode or mode
    return file, group, mode


def owner(facts: model.HostFacts, uid: int) -> str:
    return ('root' if uid == 0 else facts.qemu_user.user
            if uid == facts.qemu_user.uid else str(uid))


def permissions(facts: model.HostFacts, device: model.DeviceFacts) -> str:
    return (f'{owner(facts, device.owner)}:'
            f'{names(facts, (device.group,))} {device.mode:04o}' +
            (' and an ACL' if device.acl else ''))


def chosen(facts: model.HostFacts, caps: capabilities.DomainCapabilities
           ) -> tuple[choose.CPUChoice | None, verdict.Said]:
    """The CPU of guests here as the driver chooses it, or its refusal."""
    assert facts.options.settings is not None
    try:
        return choose.choose(facts.options.settings, usable.Host(
            facts.virt_type, caps, facts.cpu_map)), verdict.passed('')
    except errors.KVMExtError as e:
        return None, verdict.fail(e.problem, e.remedy)
