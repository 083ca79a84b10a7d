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

"""Applies a decision to Nova's libvirt configuration objects.

Each function changes one object that Nova has built. It holds no policy:
what to apply is decided elsewhere. Nothing here reads the configuration or
talks to libvirt.
"""

from typing import Any

from nova.virt.libvirt import config as vconfig

from nova_kvm_ext.cpu import definition
from nova_kvm_ext.guest_agent import channel
from nova_kvm_ext.vhost import policy


class GuestAgentChannel(vconfig.LibvirtConfigGuestChannel):
    """A guest agent channel whose socket path libvirt chooses.

    Nova's class always writes a ``<source path=...>``; a fixed path breaks
    with long instance names and other state directories.
    """

    def __init__(self) -> None:
        super().__init__()
        self.type = 'unix'
        self.target_name = channel.TARGET_NAME
        self.source_path = ''

    def format_dom(self) -> Any:
        dev = super().format_dom()
        for source in dev.findall('source'):
            dev.remove(source)
        return dev


def set_cpu(cpu: Any, wanted: definition.CPU | None) -> None:
    """Give a guest exactly this CPU; topology and NUMA cells stay.

    :param cpu: nova.virt.libvirt.config.LibvirtConfigGuestCPU
    :param wanted: None for QEMU's default CPU
    """
    wanted = wanted or definition.CPU()
    cpu.mode, cpu.model, cpu.vendor = wanted.mode, wanted.model, wanted.vendor
    cpu.features = {
        vconfig.LibvirtConfigGuestCPUFeature(name, policy=policy)
        for name, policy in wanted.features}


def set_guest_agent_channel(
        guest: Any, decision: channel.ChannelDecision) -> None:
    """Leave a guest with exactly one agent channel, or with none.

    :param guest: nova.virt.libvirt.config.LibvirtConfigGuest
    """
    def is_agent_channel(dev: Any) -> bool:
        return (isinstance(dev, vconfig.LibvirtConfigGuestChannel) and
                dev.target_name == channel.TARGET_NAME)

    guest.devices = [
        dev for dev in guest.devices if not is_agent_channel(dev)]
    if decision.attach:
        guest.add_device(GuestAgentChannel())


def set_vhost(interface: Any, decision: policy.VhostDecision) -> None:
    """Name the driver that was decided.

    :param interface: nova.virt.libvirt.config.LibvirtConfigGuestInterface
    """
    if not decision.applies:
        return
    if decision.driver is not None:
        interface.driver_name = decision.driver
    elif interface.driver_name is not None:
        # Nova names vhost for the sake of queues and ring sizes, which it
        # leaves out of an interface without a driver. QEMU's own has them too.
        interface.driver_name = 'qemu'


def set_queues(interface: Any, queues: int) -> None:
    """Give an interface this many queues.

    :param interface: nova.virt.libvirt.config.LibvirtConfigGuestInterface
    """
    interface.vhost_queues = queues if queues > 1 else None
