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

"""Whether a guest's network interface uses vhost-net.

Pure: takes facts, gives a decision with its reason. Never opens a device,
reads the configuration or touches an interface.
"""

import dataclasses

from nova_kvm_ext.host import model

# The interface types for which libvirt opens /dev/vhost-net: those with a tap
# or macvtap behind them (libvirt src/qemu/qemu_interface.c,
# qemuInterfaceOpenVhostNet and its callers). vhostuser, hostdev and vdpa
# have data paths of their own.
TAP_BACKED = frozenset({'bridge', 'ethernet', 'network', 'direct'})


@dataclasses.dataclass(frozen=True)
class VhostDecision:
    """Whether an interface names the vhost driver, and why.

    :ivar applies: whether vhost-net is a question for this interface
    :ivar vhost: whether the interface names the vhost driver
    """

    applies: bool
    vhost: bool
    reason: str


def decide(virt_type: str, net_type: str | None, nic_model: str | None,
           device: model.DeviceFacts) -> VhostDecision:
    """Decide for one interface.

    :param virt_type: ``kvm`` or ``qemu``
    :param net_type: the type attribute of the interface's XML
    :param nic_model: model of the emulated card, ``virtio`` for example
    :param device: /dev/vhost-net
    """
    if virt_type != 'kvm':
        return VhostDecision(False, False, 'the guest does not run under KVM')
    if net_type not in TAP_BACKED:
        return VhostDecision(
            False, False, f'interfaces of type {net_type} do not use it')
    if nic_model != 'virtio':
        return VhostDecision(
            False, False, f'the model {nic_model} is not virtio')
    if not device.present:
        return VhostDecision(
            True, False, f'there is no {device.path}: run modprobe vhost_net')
    # Opening the node loads the module, so these say that it cannot load.
    # libvirt opens the device itself, as root, and hands it to QEMU: that
    # this process may not open it (EACCES) says nothing about guests.
    if device.open_error not in (None, 'EACCES', 'EPERM'):
        return VhostDecision(
            True, False, f'{device.path} cannot be opened '
            f'({device.open_error}): run modprobe vhost_net to see why')
    return VhostDecision(True, True, f'{device.path} is there')
