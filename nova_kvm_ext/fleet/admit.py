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

"""Whether a kind of host may join a fleet, and what that would cost.

Pure.
"""

import dataclasses

from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import levels
from nova_kvm_ext.fleet import baseline
from nova_kvm_ext.fleet import fit
from nova_kvm_ext.fleet import kinds


@dataclasses.dataclass(frozen=True)
class Admission:
    """What comes of it that a kind joins.

    :ivar kind: the new kind
    :ivar answer: whether its hosts can run the fleet's CPU
    :ivar lost: features that all hosts have now and would not have any more
    :ivar level: the level of the common features now
    :ivar level_after: the same with the new kind
    :ivar gives: on how many hosts of the fleet its host-model guests run
    :ivar takes: of how many hosts of the fleet it takes host-model guests
    """

    kind: kinds.Kind
    answer: fit.Answer
    lost: tuple[str, ...]
    level: str | None
    level_after: str | None
    gives: int
    takes: int


def admit(kind: kinds.Kind, fleet: fit.Fleet,
          cpu: definition.CPU) -> Admission:
    """Whether a new kind may join.

    :param kind: the new host's
    :param fleet: the others
    :param cpu: what the fleet's guests have, or its baseline
    """
    before = baseline.common(fleet.kinds)
    after = baseline.common((*fleet.kinds, kind))

    def level(features: frozenset[str]) -> str | None:
        found = levels.highest(features)
        return None if found is None else found.name

    return Admission(
        kind, fleet.fits(cpu, kind), tuple(sorted(before - after)),
        level(before), level(after),
        gives=sum(other.count for other in fleet.kinds
                  if fleet.takes(kind, other).possible),
        takes=sum(other.count for other in fleet.kinds
                  if fleet.takes(other, kind).possible))
