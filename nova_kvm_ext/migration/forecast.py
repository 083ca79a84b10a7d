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


"""Whether a guest that was measured would arrive in a live migration. Pure.

Goes by the same arithmetic as :mod:`nova_kvm_ext.migration.verdict`: a time
of measurement is what an iteration is there.
"""

import dataclasses

from nova_kvm_ext.migration import verdict

_MIB = 1024 * 1024

_ROUNDED = _MIB / 2
"""Bytes a second by which a rate in whole MiB may be wrong."""

_SAMPLE = 2 * _MIB
"""Bytes for which each page stands that QEMU looks at: 512 of each GiB
(DIRTYRATE_DEFAULT_SAMPLE_PAGES of its migration/dirtyrate.h)."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """How much memory a guest changes.

    :ivar seconds: for which it was looked at
    :ivar rate: bytes a second; what it changes twice counts once
    """

    seconds: float
    rate: float

    def changed(self, error: int) -> float:
        """Bytes changed in that time: -1 the fewest, 1 the most it can be."""
        wrong = max(_ROUNDED, _SAMPLE / self.seconds)
        return max(0, self.rate + error * wrong) * self.seconds


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a live migration would be like.

    :ivar first: seconds of the first iteration, over all of the memory, at
        most; None where the bandwidth is not known
    :ivar left: bytes that iterations leave in the end
    :ivar downtime: seconds that these take to send
    :ivar needed: a bandwidth, bytes a second, at which the guest arrives for
        certain
    """

    outcome: verdict.Outcome
    why: str
    first: float | None = None
    left: float | None = None
    downtime: float | None = None
    needed: float = 0


def forecast(long: Measured, short: Measured, memory: float,
             bandwidth: float, allowed: float) -> Forecast:
    """What a migration of a guest would be like, if it goes on as it does.

    :param memory: bytes
    :param bandwidth: bytes a second; 0 for not known
    :param allowed: downtime that is allowed, seconds
    """
    # In less time than the short one it changes no more than in that.
    needed = short.changed(1) / allowed
    if not bandwidth:
        return Forecast(
            verdict.Outcome.UNKNOWN,
            'how much the network takes is not known: [libvirt] '
            'live_migration_bandwidth is 0, which means no limit',
            needed=needed)
    enough = bandwidth * allowed
    lefts: dict[int, float] = {}
    ends = set()
    for error in (-1, 0, 1):
        few = short.changed(error)
        seen = (verdict.Iteration(
            # In more time it changes no less, whatever was measured.
            long.seconds, memory, max(long.changed(error), few * 1.001),
            bandwidth), verdict.Iteration(
            short.seconds, memory, few, bandwidth))
        found = []
        for writer in verdict.writers(seen):
            left = min(memory, writer.changes(memory / bandwidth))
            if left > enough:
                left = verdict.in_the_end(writer, bandwidth, left, enough)
            found.append(left)
            ends.add(left <= enough)
        lefts[error] = max(found)
    outcome = (verdict.Outcome.UNKNOWN if len(ends) > 1 else
               verdict.Outcome.CONVERGES if ends == {True} else
               verdict.Outcome.STALLS)
    why = {
        verdict.Outcome.CONVERGES: 'iterations leave what can be sent in '
                                   'the downtime that is allowed',
        verdict.Outcome.STALLS: 'iterations leave more than can be sent in '
                                'the downtime that is allowed',
        verdict.Outcome.UNKNOWN: 'the guest changes about as much as is sent, '
                                 'or about as much as can be sent in the '
                                 'downtime that is allowed',
    }[outcome]
    return Forecast(outcome, why, memory / bandwidth, lefts[0],
                    lefts[0] / bandwidth, needed)
