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

"""Whether a guest gets a guest agent channel, and whether a domain has one.

Pure: takes what the image says, or a domain's XML. Never reads an instance,
the configuration or libvirt.
"""

import dataclasses
import re

from lxml import etree

from nova_kvm_ext import request

# The name that qemu-ga looks for among the guest's virtio ports.
# https://libvirt.org/formatdomain.html#channel
TARGET_NAME = 'org.qemu.guest_agent.0'

MASAKARI_DEFAULT = (r'/var/lib/libvirt/qemu/org\.qemu\.guest_agent\..*'
                    r'\.instance-.*\.sock')
"""Masakari's own default of [introspectiveinstancemonitor]
qemu_guest_agent_sock_path: by this expression of a channel's socket its
introspective instance monitor finds the guests that have an agent."""

MASAKARI_EXPRESSION = (r'/(var/lib|var/run|run)/libvirt/qemu/.*'
                       r'org\.qemu\.guest_agent\.0.*')
"""An expression that matches Nova's paths and libvirt's own."""

SOCKETS = (
    # Nova's own driver
    '/var/lib/libvirt/qemu/org.qemu.guest_agent.0.instance-0000001a.sock',
    # libvirt 9.0
    '/var/lib/libvirt/qemu/channel/target/domain-1-instance-0000001a/'
    'org.qemu.guest_agent.0',
    # later ones; cfg->channelTargetDir in libvirt's src/qemu/qemu_conf.c
    '/run/libvirt/qemu/channel/1-instance-0000001a/org.qemu.guest_agent.0',
)
"""Where the sockets of channels are."""


def not_found_by(expression: str) -> list[str]:
    """The sockets that Masakari does not take for a guest agent's.

    :param expression: its qemu_guest_agent_sock_path
    :raises re.error: it is no regular expression
    """
    # As Masakari does: from the beginning, not to the end.
    return [path for path in SOCKETS if not re.match(expression, path)]


@dataclasses.dataclass(frozen=True)
class ChannelDecision:
    """Whether there is a channel, and why.

    :ivar attach: whether the guest gets the channel
    :ivar understood: False where the image's value is no boolean at all
    """

    attach: bool
    reason: str
    understood: bool = True


def decide(image_value: bool | None, written: str | None = None,
           policy: str = 'image') -> ChannelDecision:
    """Decide on the image property ``hw_qemu_guest_agent``.

    :param image_value: the property as Nova reads it, or None where the image
        does not have it
    :param written: the property as the tenant wrote it, if known. Hostile
        input: any text. Nova reads what is no boolean as False.
    :param policy: ``[kvm_ext] guest_agent``: with ``always`` only an image
        that says no has none
    """
    if image_value is None:
        if policy == 'always':
            return ChannelDecision(True, '[kvm_ext] guest_agent = always')
        return ChannelDecision(
            False, 'the image does not have hw_qemu_guest_agent')
    if image_value:
        return ChannelDecision(True, 'the image says hw_qemu_guest_agent=yes')
    if not request.is_yes_or_no(written or 'no'):
        return ChannelDecision(
            policy == 'always',
            'the image says neither yes nor no in hw_qemu_guest_agent',
            understood=False)
    return ChannelDecision(False, 'the image says hw_qemu_guest_agent=no')


def connected(domain_xml: str) -> bool | None:
    """Whether something in the guest has the channel open, by libvirt's word.

    libvirt hears it from QEMU, so it is true without the guest being asked;
    that what has it open is an agent, and answers, it does not say.

    :param domain_xml: what virDomainGetXMLDesc gives for a running domain
    :returns: None where the domain has no channel
    """
    # libvirt wrote it, but the title and metadata in it are others' words.
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    return connected_of(etree.fromstring(domain_xml, parser))


def connected_of(domain: etree._Element) -> bool | None:
    """The same of a ``<domain>`` that is parsed already."""
    for target in domain.iterfind('devices/channel/target'):
        if target.get('type') == 'virtio' and (
                target.get('name') == TARGET_NAME):
            return target.get('state') == 'connected'
    return None
