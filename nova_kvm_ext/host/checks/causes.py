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

"""What the groups of checks share: causes, their weight and their remedies.

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
           fix: tuple[str, ...] = (), slow: bool = False) -> verdict.Said:
    """Something that keeps guests from KVM, as grave as nova.conf makes it.

    :param slow: whether it also makes libvirt wait over each look at QEMU,
        so that guests in software have to do with it too
    """
    settings = facts.options.settings
    wanted = settings.virt_type if settings else 'kvm'
    if wanted == 'auto':
        return verdict.warn(f'{details}; virt_type = auto: guests run in '
                            f'software', remedy, fix)
    if wanted == 'qemu' and slow:
        return verdict.warn(f'{details}; virt_type = qemu needs no KVM, but '
                            f'libvirt takes a minute over each look at QEMU',
                            remedy, fix)
    if wanted == 'qemu':
        return verdict.skip(f'{details}; of no importance, because '
                            f'virt_type = qemu needs no KVM')
    return verdict.fail(details, remedy, fix)


def restart_libvirt(facts: model.HostFacts) -> str:
    if facts.systemd:
        return f'systemctl restart {facts.distribution.libvirt_service}'
    return 'kill $(cat /run/libvirtd.pid) && libvirtd -d'


def start_libvirt(facts: model.HostFacts) -> str:
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
        return (f'{state(module)}, because a line keeps it from being '
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
