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

"""Processor, firmware and kernel modules, as the kernel reports them.

Codes KVM1xx. Pure.
"""

from nova_kvm_ext.host.checks import causes
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import model

GROUP = verdict.Group()

_NO_KVM = ('The running kernel has no KVM: the misc device kvm is not '
           'registered, /dev/kvm does not open, and no guest has run under '
           'KVM. virt_type = kvm is set, and libvirt is on this machine.')


@GROUP.check('KVM101', 'CPU virtualization', proof=_NO_KVM)
def _cpu(facts: model.HostFacts) -> verdict.Said:
    cpu = facts.cpu
    if cpu.arch not in ('x86_64', 'i686'):
        return verdict.skip(f'{cpu.arch} shows it by no CPU flag')
    where = ' of this virtual machine' if cpu.virtual else ''
    if cpu.virtualization:
        return verdict.passed(f'{cpu.vendor}{where}: {cpu.virtualization}')
    shown = f'the CPU{where} ({cpu.vendor}) shows neither vmx nor svm'
    if facts.has_kvm:
        others = ', '.join(name for name, module in
                           facts.kernel.modules.items() if module.there and
                           name.startswith('kvm_'))
        said = causes.no_kvm(
            facts, f'{shown}, yet the kernel has KVM'
            f'{f" ({others})" if others else ""}: KVM508 tells what it is '
            f'worth')
        return said if said.result == verdict.SKIP else verdict.warn(
            said.details)
    if cpu.locked:
        return causes.no_kvm(
            facts, f'{shown}: the firmware has switched it off', _FIRMWARE)
    if cpu.virtual:
        return causes.no_kvm(
            facts, shown, 'On the host of this virtual machine, switch '
            'nested virtualization on (modprobe kvm_intel nested=1, or '
            'kvm_amd) and give this machine the CPU host-passthrough.')
    return causes.no_kvm(
        facts, f'{shown}: it has none, or the firmware hides it', _FIRMWARE)


_FIRMWARE = ('Enable virtualization (Intel VT-x, AMD SVM) in the firmware '
             'set-up, then switch the machine off and on.')


@GROUP.check('KVM102', 'Firmware', proof=_NO_KVM)
def _firmware(facts: model.HostFacts) -> verdict.Said:
    cpu = facts.cpu
    if facts.has_kvm:
        return verdict.passed('virtualization is not locked: KVM has started')
    if cpu.locked:
        return causes.no_kvm(
            facts, f'the firmware has switched virtualization off '
            f'({cpu.locked_source})', _FIRMWARE)
    if cpu.locked is False:
        return verdict.passed(f'virtualization is not locked '
                              f'({cpu.locked_source})')
    return verdict.skip(f'cannot be known: {cpu.locked_source}')


@GROUP.check('KVM103', 'Module kvm', proof=_NO_KVM)
def _kvm_module(facts: model.HostFacts) -> verdict.Said:
    module = facts.kernel.modules['kvm']
    if module.there:
        return verdict.passed(causes.state(module))
    if facts.has_kvm:
        return verdict.passed('the kernel has KVM')
    if module.state == 'loadable':
        return causes.no_kvm(facts, *causes.load(facts, module))
    return causes.no_kvm(facts, *causes.missing_module(facts, module))


@GROUP.check('KVM104', 'Module kvm_intel or kvm_amd', proof=_NO_KVM)
def _cpu_module(facts: model.HostFacts) -> verdict.Said:
    own = [module for name, module in facts.kernel.modules.items()
           if name.startswith('kvm_')]
    there = [module for module in own if module.there]
    if facts.has_kvm:
        return verdict.passed(', '.join(map(causes.state, there)) or
                              'the kernel has KVM')
    if facts.cpu.arch not in ('x86_64', 'i686'):
        return verdict.skip(f'on {facts.cpu.arch} it is the module kvm itself')
    if there:
        return causes.no_kvm(
            facts, f'{causes.state(there[0])}, but did not start KVM: dmesg '
            f'| grep -i kvm', _FIRMWARE if facts.cpu.locked else '')
    if not own:
        return causes.no_kvm(facts, f'no module is known for a CPU of '
                             f'{facts.cpu.vendor or "an unknown vendor"}')
    module = own[0]
    if module.state != 'loadable':
        return causes.no_kvm(facts, *causes.missing_module(facts, module))
    if not facts.cpu.virtualization:
        return causes.no_kvm(
            facts, f'{causes.state(module)}, and cannot be loaded without '
            f'the CPU\'s virtualization (KVM101)')
    return causes.no_kvm(facts, *causes.load(facts, module))


@GROUP.check('KVM105', 'Nested virtualization', proof='')
def _nested(facts: model.HostFacts) -> verdict.Said:
    for name, module in facts.kernel.modules.items():
        if module.nested is not None:
            on = module.nested in ('Y', '1')
            return verdict.passed(
                f'{name} has nested={module.nested}: guests '
                f'{"can" if on else "cannot"} run nested KVM guests')
    return verdict.skip('no module says whether guests can run nested KVM '
                        'guests')
