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


"""Predicts whether a live migration of a measured guest would end. Pure.

Uses the algorithm of :mod:`nova_kvm_ext.migration.verdict`: a measurement
period here corresponds to an iteration there.

QEMU measures only some pages, so its result is a sample. A guest that writes
at a constant rate relates the two measurements: in the shorter one it changes
no more memory than in the longer one, and at no lower rate.
"""

import dataclasses
import math

from nova_kvm_ext.migration import verdict

_MIB = 1024 * 1024

_ROUNDED = _MIB / 2
"""Bytes a second by which a rate in whole MiB may be wrong."""

_SAMPLE = 2 * _MIB
"""Bytes for which each page stands that QEMU looks at: 512 of each GiB
(DIRTYRATE_DEFAULT_SAMPLE_PAGES of its migration/dirtyrate.h)."""

_UNSEEN = 1.5 * _SAMPLE
"""Bytes that may be changed and not be seen: with a chance of 5 %, exp(-2 *
1.5), neither of two looks sees a page of so many."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """How much memory a guest changes.

    :ivar seconds: for which it was checked
    :ivar rate: bytes a second; what it changes twice counts once
    """

    seconds: float
    rate: float

    def changed(self, error: int) -> float:
        """Bytes changed in that time: -1 the fewest, 1 the most it can be.

        The pages that are seen to have changed are as good as counted by
        chance: twice the root of their number is as wrong as 95 of 100 are.
        """
        seen = self.rate * self.seconds
        wrong = max(_ROUNDED * self.seconds, _UNSEEN,
                    2 * math.sqrt(seen * _SAMPLE))
        return max(0, seen + error * wrong)


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a live migration would be like.

    :ivar first: seconds of the first iteration, over all of the memory, at
        most; None where the bandwidth is not known
    :ivar left: bytes that iterations leave in the end
    :ivar downtime: seconds that these take to send
    :ivar needed: a bandwidth, bytes a second, at which the guest arrives
        certainly
    """

    outcome: verdict.Outcome
    why: str
    first: float | None = None
    left: float | None = None
    downtime: float | None = None
    needed: float = 0


def forecast(long: Measured, short: Measured, memory: float,
             bandwidth: float, allowed: float, paused: bool = False
             ) -> Forecast:
    """What a migration of a guest would be like, if it continues as it does.

    :param memory: bytes
    :param bandwidth: bytes a second; 0 for not known
    :param allowed: downtime that is allowed, seconds
    :param paused: whether the guest is paused, so that nothing was to see
    """
    if paused:
        return Forecast(
            verdict.Outcome.CONVERGES, 'the guest is paused and changes '
            'nothing; what it changes when it runs is not known',
            memory / bandwidth if bandwidth else None, 0, 0)
    # What the long look tells of the time of the short one.
    part = short.seconds / long.seconds
    fewest = max(short.changed(-1), long.changed(-1) * part)
    most = min(short.changed(1), long.changed(1))
    alike = fewest <= most
    if not alike:
        # It has written more at another time than in the short look.
        fewest, most = most, max(fewest, long.changed(1) * part)
    fewest, most = min(fewest, memory), min(most, memory)
    # In less time than the short one it changes no more than in that.
    needed = most / allowed
    if not bandwidth:
        return Forecast(
            verdict.Outcome.UNKNOWN,
            'how much the network takes is not known: [libvirt] '
            'live_migration_bandwidth is 0, which means no limit',
            needed=needed)
    enough = bandwidth * allowed
    lefts: dict[int, float] = {}
    ends = set()
    for error, few in ((-1, fewest), (0, min(max(
            fewest, short.changed(0)), most)), (1, most)):
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
        verdict.Outcome.UNKNOWN:
            'the guest changes about as much as is sent, or as can be sent in '
            'the downtime that is allowed, as far as the few pages tell that '
            'QEMU looks at' if alike else
            'the guest changed less in the short look than in a part of the '
            'long one: it does not write alike all the time',
    }[outcome]
    return Forecast(outcome, why, memory / bandwidth, lefts[0],
                    lefts[0] / bandwidth, needed)
