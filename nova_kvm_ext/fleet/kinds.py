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

"""The kinds of host of a fleet.

Hosts whose guests can have the same CPUs are of one kind. A fleet of ten
thousand hosts has tens of kinds, so calculations use kinds, not hosts. Pure.
"""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import functools

from nova_kvm_ext.cpu import levels
from nova_kvm_ext.fleet import export


@dataclasses.dataclass(frozen=True)
class Kind:
    """Hosts whose guests can have the same CPUs.

    :ivar cpu: what these guests can have
    :ivar hosts: the hosts, in the order of their names
    """

    cpu: export.HostCPU
    hosts: tuple[export.Export, ...]

    @property
    def digest(self) -> str:
        return self.cpu.digest

    @property
    def count(self) -> int:
        return len(self.hosts)

    @property
    def model(self) -> str | None:
        """The CPU model that libvirt sees in the hosts."""
        found = self.cpu.caps.host_model
        return None if found is None else found.model

    @property
    def vendor(self) -> str | None:
        found = self.cpu.caps.host_model
        return None if found is None else found.vendor

    @functools.cached_property
    def level(self) -> str | None:
        """The highest level that guests can have; None for none of them."""
        if self.cpu.features is None or self.cpu.caps.arch != 'x86_64':
            return None
        found = levels.highest(self.cpu.features)
        return None if found is None else found.name

    def versions(self, of: str) -> Mapping[str, int]:
        """Values of one fact among the hosts, with counts, most first.

        :param of: ``libvirt``, ``qemu``, ``kernel``, ``microcode`` or
            ``nested``
        :returns: by value as text; ``not known`` is one
        """
        return counts(getattr(host, of) for host in self.hosts)


VARYING = ('libvirt', 'qemu', 'kernel', 'microcode', 'nested')


def counts(values: Iterable[object]) -> dict[str, int]:
    """How often each value is there, as text, most first."""
    found = collections.Counter(
        'not known' if value is None else
        {True: 'yes', False: 'no'}.get(value, str(value))
        if isinstance(value, bool) else str(value) for value in values)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def group(hosts: Iterable[export.Export]) -> tuple[Kind, ...]:
    """The kinds of these hosts, those of most hosts first.

    A host that is named twice counts once, as it was said last.
    """
    by_name = {host.host: host for host in hosts}
    by_digest: dict[str, list[export.Export]] = {}
    # Thousands of hosts share a few CPUs: their readers give them the same
    # object, of which the digest is worked out once.
    digests: dict[int, str] = {}
    for _, host in sorted(by_name.items()):
        digest = digests.setdefault(id(host.cpu), '') or host.cpu.digest
        digests[id(host.cpu)] = digest
        by_digest.setdefault(digest, []).append(host)
    found = [Kind(hosts[0].cpu, tuple(hosts))
             for hosts in by_digest.values()]
    return tuple(sorted(
        found, key=lambda kind: (-kind.count, kind.vendor or '',
                                 kind.model or '', kind.digest)))


def named(found: Iterable[Kind]) -> dict[str, Kind]:
    """The kinds by a name that people can tell apart: ``EPYC-Rome/3f9c``.

    The model and as much of the digest as makes the name unique, at least
    four characters.
    """
    listed = tuple(found)
    length = 4
    while len({kind.digest[:length] for kind in listed}) < len(listed) and (
            length < 16):
        length += 1
    return {f'{kind.model or "unknown"}/{kind.digest[:length]}': kind
            for kind in listed}
