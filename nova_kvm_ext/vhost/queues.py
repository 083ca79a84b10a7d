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

"""How many queues a network interface of a guest may have.

Pure: takes the values of flavor, image and host, returns the limit with its
reason, or refuses a value that cannot work. It limits the number that Nova
uses when multiqueue is enabled, and never enables multiqueue.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from nova_kvm_ext import errors
from nova_kvm_ext import request

NAME = 'vhost_queues'

# Linux include/linux/if_tap.h, MAX_TAP_QUEUES, since 4.0; tap and macvtap.
KERNEL_LIMIT = 256

# VIF types whose tap device Nova makes with one queue, whatever flavor and
# image say (nova.virt.libvirt.vif, plug_midonet and plug_iovisor).
ONE_QUEUE_TAPS = frozenset({'midonet', 'iovisor'})


@dataclasses.dataclass(frozen=True)
class QueueLimit:
    """The most queues of an interface, and who says so."""

    limit: int
    reason: str


def made_before(vif_type: str | None, details: Mapping[str, Any]) -> bool:
    """Whether Nova or os-vif makes the tap device, and not libvirt.

    Such a device has queues or has none, and an interface can only open it if
    it has them or has none too (Linux drivers/net/tun.c, tun_set_iff).

    :param vif_type: ``ovs`` and others, of the port's binding
    :param details: of the port's binding
    """
    return vif_type == 'tap' or (
        vif_type == 'ovs' and bool(details.get('ovs_create_tap')))


def decide(asked: request.GuestRequest, vcpus: int, multiqueue: bool,
           max_queues: int | None) -> QueueLimit:
    """The lowest of all limits.

    Each is a limit, not a number to be reached: an image serves flavors of
    all sizes, so one that allows more than the flavor has is no error.

    :param vcpus: of the flavor
    :param multiqueue: whether flavor or image enable it
    :param max_queues: ``[kvm_ext] max_vhost_queues``
    :raises errors.InvalidRequest: a value is not a number of queues, more than
        the kernel or the flavor can have, or set without multiqueue
    """
    limits = [QueueLimit(KERNEL_LIMIT, 'the most that a tap device has'),
              QueueLimit(vcpus, f'one for each of {vcpus} vCPUs')]
    if max_queues is not None:
        limits.append(QueueLimit(
            max_queues, f'[kvm_ext] max_vhost_queues = {max_queues}'))
    for values, by_tenant in ((asked.flavor, False), (asked.image, True)):
        if NAME in values:
            limits.append(_limit(
                request.Wish(NAME, values[NAME], by_tenant), vcpus,
                multiqueue))
    return min(limits, key=lambda limit: limit.limit)


def _limit(wish: request.Wish, vcpus: int, multiqueue: bool) -> QueueLimit:
    """The limit that a flavor or an image sets, if it can work."""
    # Nobody means a number of more digits, and int() is slow with them.
    if not re.fullmatch('0*[1-9][0-9]{0,8}', wish.value.strip()):
        raise errors.InvalidRequest(
            f'{wish.said} is not a number of queues.',
            f'Give an integer from 1 to {min(vcpus, KERNEL_LIMIT)}: an '
            'interface has at most one queue for each of the flavor\'s '
            f'{vcpus} vCPUs.')
    value = int(wish.value)
    if value > KERNEL_LIMIT:
        raise errors.InvalidRequest(
            f'{wish.said} is more than {KERNEL_LIMIT}, the most queues that '
            f'the kernel gives a tap device.', 'Lower it.')
    if value > vcpus and not wish.by_tenant:
        raise errors.InvalidRequest(
            f'{wish.said} is more than {vcpus}: an interface has at most one '
            f'queue for each of the flavor\'s vCPUs.', 'Lower it.')
    if value > 1 and vcpus > 1 and not multiqueue:
        raise errors.InvalidRequest(
            f'{wish.said} is more than 1: without multiqueue an interface '
            f'has one queue.',
            'Set the flavor extra spec hw:vif_multiqueue_enabled or the image '
            'property hw_vif_multiqueue_enabled to true, or remove it.')
    return QueueLimit(value, wish.said)
