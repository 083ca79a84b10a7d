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

"""Where the guests of a host can go. Pure."""

from collections.abc import Iterable
import dataclasses

from nova_kvm_ext.cpu import definition
from nova_kvm_ext.fleet import fit


@dataclasses.dataclass(frozen=True)
class Guest:
    """A guest whose host is to be emptied.

    :ivar name: its name or UUID
    :ivar cpu: exactly what it runs with; None where that is not known
    :ivar why: why it is not known, or why it does not run; ''
    :ivar runs: whether it has a CPU to take along. One that does not run is
        moved cold, and gets the CPU of its new host
    """

    name: str
    cpu: definition.CPU | None
    why: str = ''
    runs: bool = True


@dataclasses.dataclass(frozen=True)
class Way:
    """Where one guest can go.

    :ivar guest: the guest
    :ivar possible: True where a host takes it, False where none does, None
        where that is not known
    :ivar takes: how many hosts take it
    :ivar unknown: of how many hosts that is not known
    :ivar hosts: names of some that take it
    :ivar keeping: features that keep the other hosts from taking it, each
        with the number of hosts that lack it, most first
    :ivar reason: a sentence
    """

    guest: Guest
    possible: bool | None
    takes: int
    unknown: int
    hosts: tuple[str, ...]
    keeping: tuple[tuple[str, int], ...]
    reason: str


_NAMED_HOSTS = 8


def ways(guests: Iterable[Guest], fleet: fit.Fleet,
         host: str | None = None) -> tuple[Way, ...]:
    """Where each guest can go; those that can go nowhere first.

    :param host: the host they leave, which does not count; None for none
    """
    without = () if host is None else (host,)
    reached: dict[definition.CPU, fit.Reach] = {}
    found = []
    for guest in guests:
        if guest.cpu is None:
            others = sum(other.host != host for kind in fleet.kinds
                         for other in kind.hosts)
            found.append(
                Way(guest, None, 0, others, (), (), guest.why)
                if guest.runs else
                Way(guest, True, others, 0, (), (), guest.why))
            continue
        if guest.cpu not in reached:
            # Guests of one flavor have the same CPU.
            reached[guest.cpu] = fit.reach(guest.cpu, fleet, without)
        found.append(_way(guest, reached[guest.cpu]))
    order = {False: 0, None: 1, True: 2}
    return tuple(sorted(found, key=lambda way: (
        order[way.possible], way.takes, way.guest.name)))


def _way(guest: Guest, reach: fit.Reach) -> Way:
    takes, unknown = reach.hosts(True), reach.hosts(None)
    hosts = tuple(host.host for kind, answer in reach.answers
                  if answer.possible for host in kind.hosts)
    keeping = tuple(reach.keeping().items())
    if takes:
        possible: bool | None = True
        reason = f'{takes} of {sum(map(reach.hosts, (True, False, None)))} ' \
                 f'hosts can run its CPU'
    elif unknown:
        possible = None
        reason = f'no host is known to run its CPU; of {unknown} that is ' \
                 f'not known'
    else:
        possible = False
        reason = 'no other host can run its CPU'
    return Way(guest, possible, takes, unknown, hosts[:_NAMED_HOSTS],
               keeping, reason)
