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


"""What the log of a nova-compute tells of a live migration. Pure."""

import dataclasses
import re

from nova_kvm_ext.migration import verdict

BY_ITERATION = 3
"""The iteration by which a verdict must be there."""

_VERDICT = re.compile(
    r'Live migration: (will converge|will not converge|not known), '
    r'iteration ([0-9]+)')
_ACTED = re.compile(r'KVML705 The live migration will not converge: (.*)\.')
_COMPLETED = re.compile(
    r'Live migration completed: (downtime [0-9.]+ s, iterations [0-9]+, '
    r'sent [0-9.]+ MiB, .*)\.')


@dataclasses.dataclass(frozen=True)
class Told:
    """A live migration, as the log has it.

    :ivar verdicts: iteration and verdict of each line of the log that has one
    :ivar acted: what was done by policy, '' for nothing
    :ivar completed: what it took, '' where it has not completed
    """

    verdicts: tuple[tuple[int, verdict.Outcome], ...] = ()
    acted: str = ''
    completed: str = ''

    @classmethod
    def read(cls, log: str, uuid: str) -> 'Told':
        """By the lines about a server since its migration began."""
        lines = [line for line in log.splitlines()
                 if f'[instance: {uuid}]' in line]

        def last(pattern: re.Pattern[str]) -> str:
            return next((match[1] for line in reversed(lines)
                         if (match := pattern.search(line))), '')

        return cls(
            tuple((int(match[2]), verdict.Outcome(match[1]))
                  for line in lines if (match := _VERDICT.search(line))),
            last(_ACTED), last(_COMPLETED))

    @property
    def outcome(self) -> verdict.Outcome | None:
        """The verdict by the third iteration; None where none was said.

        Iterations may be too short to be seen: then it is that of the first
        one that was seen after it.
        """
        early = [outcome for iteration, outcome in self.verdicts
                 if iteration <= BY_ITERATION]
        return early[-1] if early else next(
            (outcome for _, outcome in self.verdicts), None)
