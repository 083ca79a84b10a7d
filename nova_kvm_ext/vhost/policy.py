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

Pure: takes facts, returns a decision with its reason. Never opens a device,
reads the configuration or changes an interface.
"""

import dataclasses

from nova_kvm_ext.host import model

DEVICE = '/dev/vhost-net'

PREFER, REQUIRE, OFF = 'prefer', 'require', 'off'

# The interface types for which libvirt opens /dev/vhost-net: those with a tap
# or macvtap behind them (libvirt src/qemu/qemu_interface.c,
# qemuInterfaceOpenVhostNet and its callers). vhostuser, hostdev and vdpa
# have data paths of their own.
TAP_BACKED = frozenset({'bridge', 'ethernet', 'network', 'direct'})

# libvirt src/conf/domain_conf.c, virDomainNetIsVirtioModel.
VIRTIO_MODELS = frozenset(
    {'virtio', 'virtio-transitional', 'virtio-non-transitional'})

# Errors that say who asks, not what the device can do.
DENIED = frozenset({'EACCES', 'EPERM'})


@dataclasses.dataclass(frozen=True)
class HostState:
    """Whether a host can do vhost-net now, and why, or why not.

    :ivar reason: fits after a colon; with the remedy where it cannot
    """

    can: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class VhostDecision:
    """Which driver an interface names, and why.

    :ivar applies: whether vhost-net is a question for this interface
    :ivar driver: ``vhost`` or ``qemu``, or None to name none
    :ivar lost: whether vhost-net is wanted and cannot be had
    """

    applies: bool
    driver: str | None
    lost: bool
    reason: str


def opens(device: model.DeviceFacts) -> bool:
    """Whether a device is there and could be opened."""
    return device.present and device.open_error is None


def host_state(device: model.DeviceFacts, modprobe_said: str | None = None,
               root_error: str | None = None) -> HostState:
    """What the device says of the host.

    libvirt opens the device itself, as root, and hands it to QEMU, so what
    counts is what root sees.

    :param device: /dev/vhost-net as root sees it, or as this process does
        where root could not be asked
    :param modprobe_said: how modprobe failed to load vhost_net; empty where
        it succeeded, None where it did not run
    :param root_error: why root could not be asked
    """
    if opens(device):
        return HostState(True, f'{device.path} opens')
    if device.open_error in DENIED:
        if root_error:
            return HostState(
                False, f'this user may not open {device.path}, and root '
                f'cannot be asked ({root_error}): see that privsep-helper '
                f'runs as root for this user')
        return HostState(
            False, f'even root may not open {device.path} '
            f'({device.open_error}): let the container or the control group '
            f'of this service have the device')
    if device.present:
        # Opening the node loads the module, so this says that it cannot load.
        problem = f'{device.path} cannot be opened ({device.open_error})'
    else:
        problem = f'there is no {device.path}'
    if modprobe_said:
        remedy = ('run modprobe vhost_net as root'
                  if modprobe_said.endswith('not permitted')
                  else 'install a kernel that has the module')
        return HostState(
            False,
            f'{problem}, and modprobe vhost_net fails ({modprobe_said}): '
            f'{remedy}')
    if modprobe_said == '':
        return HostState(
            False, f'{problem}, though modprobe vhost_net succeeds: let the '
            f'container of this service have the device')
    if root_error:
        return HostState(
            False, f'{problem}, and its module could not be loaded as root '
            f'({root_error}): run modprobe vhost_net')
    return HostState(False, f'{problem}: run modprobe vhost_net')


def unfit(virt_type: str, net_type: str | None,
          nic_model: str | None) -> str | None:
    """Why vhost-net is no question for an interface; None where it is.

    :param virt_type: ``kvm`` or ``qemu``
    :param net_type: the type attribute of the interface's XML
    :param nic_model: model of the emulated card, ``virtio`` for example
    """
    if virt_type != 'kvm':
        return 'the guest does not run under KVM'
    if net_type not in TAP_BACKED:
        return f'interfaces of type {net_type} do not use it'
    if nic_model not in VIRTIO_MODELS:
        return f'the model {nic_model} is not virtio'
    return None


def decide(setting: str, virt_type: str, net_type: str | None,
           nic_model: str | None, host: HostState) -> VhostDecision:
    """Decide for one interface.

    :param setting: ``[kvm_ext] vhost_net``
    :param virt_type: ``kvm`` or ``qemu``
    :param net_type: the type attribute of the interface's XML
    :param nic_model: model of the emulated card, ``virtio`` for example
    :param host: of the host on which the guest will run
    """
    why_not = unfit(virt_type, net_type, nic_model)
    if why_not is not None:
        return VhostDecision(False, None, False, why_not)
    if setting == OFF:
        return VhostDecision(True, 'qemu', False, '[kvm_ext] vhost_net = off')
    if host.can:
        return VhostDecision(True, 'vhost', False, host.reason)
    # With require libvirt shall refuse what comes past our own refusal. With
    # prefer it may still find what was not found here.
    return VhostDecision(True, 'vhost' if setting == REQUIRE else None, True,
                         host.reason)
