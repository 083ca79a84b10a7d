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

"""vhost-net. libvirtd opens the device and hands it to QEMU.

Codes KVM3xx. Pure.
"""

from nova_kvm_ext.host.checks import causes
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import model

GROUP = verdict.Group()

_REQUIRED = ('[kvm_ext] vhost_net = require is set: this driver refuses every '
             'guest that has a network card.')


def _no_vhost(facts: model.HostFacts, details: str, remedy: str,
              fix: tuple[str, ...] = ()) -> verdict.Said:
    if facts.virt_type == 'qemu':
        return verdict.skip(f'{details}; not relevant, because virt_type = '
                            'qemu uses no vhost-net')
    settings = facts.options.settings
    wanted = settings.vhost_net if settings else 'prefer'
    if wanted == 'off':
        return verdict.skip(f'{details}; not relevant, because [kvm_ext] '
                            'vhost_net = off uses none')
    if wanted == 'require':
        return verdict.fail(f'{details}, and [kvm_ext] vhost_net = require',
                            remedy, fix)
    return causes.weigh(facts, verdict.warn(
        f'{details}: network cards do not use vhost-net, slower', remedy,
        fix))


@GROUP.check('KVM301', 'Module vhost_net', proof=_REQUIRED)
def _vhost_module(facts: model.HostFacts) -> verdict.Said:
    module = facts.kernel.modules['vhost_net']
    device = facts.devices['/dev/vhost-net']
    if module.there:
        return verdict.passed(causes.state(module))
    if device.present and device.open_error is None:
        return verdict.passed(
            f'{causes.state(module)} until /dev/vhost-net is opened')
    if module.state == 'loadable':
        return _no_vhost(facts, *causes.load(facts, module))
    return _no_vhost(facts, *causes.missing_module(facts, module))


def _vhost_remedy(facts: model.HostFacts) -> tuple[str, tuple[str, ...]]:
    module = facts.kernel.modules['vhost_net']
    if module.state == 'loadable':
        return causes.load(facts, module)[1:]
    if module.there:
        number = facts.kernel.misc.get('vhost-net',
                                       causes.NUMBERS['/dev/vhost-net'])
        make = f'mknod -m 0660 /dev/vhost-net c {number.replace(":", " ")}'
        return make, (make,)
    return causes.missing_module(facts, module)[1], ()


@GROUP.check('KVM302', '/dev/vhost-net', proof=_REQUIRED)
def _vhost_node(facts: model.HostFacts) -> verdict.Said:
    device = facts.devices['/dev/vhost-net']
    file, _, _ = causes.rule(facts, 'vhost-net')
    if not device.present:
        found = (f'{device.kind} is in its place' if device.kind else
                 'it does not exist')
        if device.kind:
            return _no_vhost(facts, found, 'mv /dev/vhost-net '
                             '/dev/vhost-net.wrong && modprobe vhost_net')
        return _no_vhost(facts, found, *_vhost_remedy(facts))
    number = facts.kernel.misc.get('vhost-net',
                                   causes.NUMBERS['/dev/vhost-net'])
    if device.number != number:
        return _no_vhost(
            facts, f'it is the device {device.number}, vhost-net is {number}',
            f'rm /dev/vhost-net && mknod -m 0660 /dev/vhost-net c '
            f'{number.replace(":", " ")}')
    ruled = f', rule {file}' if file else ''
    return verdict.passed(f'a character device, {number}, '
                          f'{causes.permissions(facts, device)}{ruled}')


@GROUP.check('KVM303', 'Use of /dev/vhost-net', proof=_REQUIRED)
def _vhost_use(facts: model.HostFacts) -> verdict.Said:
    device = facts.devices['/dev/vhost-net']
    if not device.present:
        return verdict.skip('there is no node (KVM302)')
    if device.open_error is None:
        return verdict.passed('it opens')
    if not facts.root:
        return verdict.skip('libvirtd opens it as root, which only root can '
                            'try')
    remedy, fix = (_vhost_remedy(facts) if device.open_error in
                   ('ENODEV', 'ENXIO') else ('', ()))
    return _no_vhost(facts, f'it does not open ({device.open_error})',
                     remedy, fix)
