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

"""Reads what libvirt reports about this host.

Returns frozen data; makes no decision. Must not import libvirt or Nova: the
caller passes the connection, possibly Nova's proxy of one, and a libvirt error
is recognized by its get_error_code method.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from lxml import etree

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext import errors
from nova_kvm_ext.host import model

_XML_PARSER = etree.XMLParser(resolve_entities=False, no_network=True)


def _version(number: int) -> tuple[int, int, int]:
    """libvirt's 9000000 or 9_000_000 as (9, 0, 0)."""
    return number // 1_000_000, number // 1_000 % 1_000, number % 1_000


def _asked(question: Callable[[], Any]) -> tuple[Any, str]:
    """An answer, or None and why libvirt gives none."""
    try:
        return question(), ''
    except Exception as e:
        # Nova's proxy raises libvirt's errors, and its tests other classes
        # of that name.
        if errors.libvirt_error_code(e) is None:
            raise
        return None, errors.clean(e)


def read(connection: Any, uri: str, arch: str,
         unasked: str = '') -> model.LibvirtFacts:
    """What libvirt says of itself, QEMU and KVM, for one architecture.

    :param connection: libvirt.virConnect, or Nova's proxy of one
    :param arch: the host's architecture, as uname says it
    :param unasked: why not to ask what makes libvirt look at QEMU; '' to ask
    """
    version, error = _asked(connection.getLibVersion)
    facts = model.LibvirtFacts(
        uri, error, unasked=unasked,
        version=_version(version) if version else None)
    if error or unasked:
        return facts
    qemu, _ = _asked(connection.getVersion)
    text, error = _asked(connection.getCapabilities)
    if error:
        return dataclasses.replace(facts, error=error)
    models, _ = _asked(lambda: connection.getCPUModelNames(arch))
    root = etree.fromstring(text, _XML_PARSER)
    guest = root.find(f'guest/arch[@name="{arch}"]')
    label = next(
        (element.text or '' for element in root.iterfind(
            'host/secmodel[model="dac"]/baselabel[@type]')), '')
    uid, _, gid = label.partition(':')
    uid, gid = uid.removeprefix('+'), gid.removeprefix('+')
    return dataclasses.replace(
        facts, qemu=_version(qemu) if qemu else None,
        user=(int(uid), int(gid))
        if uid.isdecimal() and gid.isdecimal() else None,
        emulator='' if guest is None else guest.findtext('emulator', ''),
        offers_kvm=guest is not None and
        guest.find('domain[@type="kvm"]') is not None,
        machines=() if guest is None else tuple(dict.fromkeys(
            machine.text for machine in guest.iterfind('machine'))),
        models=tuple(models or ()))


def read_domain_capabilities(
        connection: Any, facts: model.LibvirtFacts, arch: str,
        virt_type: str) -> model.LibvirtFacts:
    """The facts with what guests of one virt_type can have.

    https://libvirt.org/formatdomaincaps.html
    """
    text, error = _asked(
        lambda: connection.getDomainCapabilities(
            None, arch, None, virt_type, 0))
    if error:
        return dataclasses.replace(
            facts, refuses=dict(facts.refuses) | {virt_type: error})
    return dataclasses.replace(
        facts, domain_capabilities=capabilities.parse(text))
