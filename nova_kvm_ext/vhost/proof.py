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

"""Whether a running guest's network interface really uses vhost-net.

Pure: takes the running domain's XML and the kernel's facts about its QEMU,
returns a verdict for each interface. A fact that this process may not read is
unknown, never no.

The kernel shows how many queues of a guest it serves, not the interfaces that
they belong to. So interfaces that name the vhost driver come first: libvirt
starts none of them without it.
"""

from collections.abc import Sequence
import dataclasses

from lxml import etree

from nova_kvm_ext.host import model
from nova_kvm_ext.vhost import policy

# A vhost worker that has never moved a packet has waited this often at most:
# it is woken to be put into control groups and to be flushed when QEMU's
# attempt to start it fails.
_IDLE_SWITCHES = 16


@dataclasses.dataclass(frozen=True)
class Nic:
    """A network interface of a domain's XML.

    https://libvirt.org/formatdomain.html#network-interfaces

    :ivar driver: the driver name, or None where the XML has none
    :ivar queues: how many it has; 1 where the XML does not say
    :ivar unfit: why vhost-net is no question for it, or None
    """

    mac: str
    net_type: str
    model: str
    driver: str | None
    queues: int
    unfit: str | None


@dataclasses.dataclass(frozen=True)
class Running:
    """A running domain, by the names that libvirt gives its process."""

    uuid: str
    name: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What an interface was promised and what it has.

    :ivar promised: whether its XML names the vhost driver
    :ivar uses: whether the kernel serves it; None where that can't be told
    :ivar details: what the answer comes from
    """

    nic: Nic
    promised: bool
    uses: bool | None
    details: str

    @property
    def broken(self) -> bool:
        """Whether it lacks what it was promised."""
        return self.promised and self.uses is False


def nics(domain_xml: str) -> list[Nic]:
    """The network interfaces of a domain."""
    return nics_of(etree.fromstring(domain_xml))


def nics_of(root: etree._Element) -> list[Nic]:
    """The same of a ``<domain>`` that is parsed already."""
    found = []
    for element in root.findall('devices/interface'):
        def attribute(child: str, name: str,
                      element: etree._Element = element) -> str | None:
            inner = element.find(child)
            return None if inner is None else inner.get(name)

        net_type = element.get('type', '')
        nic_model = attribute('model', 'type') or ''
        driver = attribute('driver', 'name')
        found.append(Nic(
            mac=attribute('mac', 'address') or '', net_type=net_type,
            model=nic_model, driver=driver,
            queues=int(attribute('driver', 'queues') or 1),
            unfit=policy.unfit(root.get('type', ''), net_type, nic_model)))
    return found


def running(domain_xml: str) -> Running | None:
    """Whose XML it is; None where the domain does not run."""
    root = etree.fromstring(domain_xml)
    # Only running ones have an id.
    if root.get('id') is None:
        return None
    return Running(root.findtext('uuid', ''), root.findtext('name', ''))


def judge(found: Sequence[Nic], kernel: model.VhostFacts) -> list[Verdict]:
    """A verdict for each interface of one running domain."""
    served = _served(kernel)
    named = sum(nic.queues for nic in found if _promised(nic))
    possible = sum(nic.queues for nic in found if _possible(nic))
    return [_verdict(nic, kernel, served, named, possible) for nic in found]


def _promised(nic: Nic) -> bool:
    return nic.unfit is None and nic.driver == 'vhost'


def _possible(nic: Nic) -> bool:
    """libvirt tries vhost-net for what does not name another driver."""
    return nic.unfit is None and nic.driver in (None, 'vhost')


def _served(kernel: model.VhostFacts) -> int | None:
    """How many queues the kernel serves.

    A descriptor without a thread moves no packet.
    """
    known = [count for count in (kernel.descriptors, kernel.threads)
             if count is not None]
    return min(known) if known else None


def _verdict(nic: Nic, kernel: model.VhostFacts, served: int | None,
             named: int, possible: int) -> Verdict:
    promised = _promised(nic)
    if nic.unfit is not None:
        return Verdict(nic, False, False, nic.unfit)
    if not _possible(nic):
        return Verdict(nic, False, False, f'the XML names {nic.driver}')
    if served is None:
        if kernel.pid is None:
            return Verdict(nic, promised, None,
                           'its QEMU process cannot be seen')
        return Verdict(nic, promised, None,
                       f'this user may not look into QEMU (PID {kernel.pid})')
    seen = _seen(kernel)
    if served and kernel.fall_backs:
        # QEMU tries again whenever the guest's driver starts, and says
        # nothing when it succeeds. Nor does it name the card.
        idle = (kernel.switches is not None and
                kernel.switches <= served * _IDLE_SWITCHES)
        return Verdict(nic, promised, False if idle else None, seen)
    if promised:
        if served >= named:
            return Verdict(nic, True, True, seen)
        if served == 0 or nic.queues == named:
            return Verdict(nic, True, False, seen)
        return Verdict(
            nic, True, None,
            f'{seen}; interfaces of this guest that name vhost need {named}')
    if served >= possible:
        return Verdict(nic, False, True, seen)
    if served <= named:
        return Verdict(nic, False, False, seen)
    return Verdict(nic, False, None,
                   f'{seen}; interfaces of this guest could use {possible}')


def _seen(kernel: model.VhostFacts) -> str:
    """What the kernel shows, in words."""
    descriptors = ('descriptors not to be seen' if kernel.descriptors is None
                   else f'{kernel.descriptors} descriptor(s)')
    threads = ('threads not to be seen' if kernel.threads is None
               else f'{kernel.threads} thread(s)')
    said = ''
    if kernel.fall_backs:
        said = (f'; QEMU\'s log has {kernel.fall_backs} times since its start '
                f'"unable to start vhost net ... falling back on userspace '
                f'virtio"')
    return (f'vhost-net of QEMU (PID {kernel.pid}): {descriptors}, {threads}'
            f'{said}')
