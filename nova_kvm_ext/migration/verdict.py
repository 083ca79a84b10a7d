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


"""Whether a live migration will end, from the statistics of its job.

QEMU copies a guest's memory in iterations. The first sends all of it, each
later one the memory that the guest has changed during the one before. QEMU
stops the guest and sends the rest once that takes no longer than the allowed
downtime (QEMU, docs/devel/migration/main.rst, "Stream structure"; QMP,
MigrationStats). So the amount that an iteration leaves for the next one
counts, not the number of bytes that are left at a moment: that number goes up
and down without end.

The memory that a guest changes in a time has a ceiling, because many programs
write to the same pages again. The longer an iteration, the smaller the rate
seems, and after the first and longest iteration the rate says little. Two
iterations of different length give both ceiling and rate, and both give what
later iterations will leave.

Pure: takes the dictionary of virDomainGetJobStats()
(https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainGetJobStats);
any entry may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import enum
import math
from typing import Any

_MIB = 1024 * 1024
_PAGE = 4096

_KEPT = 2
"""Finished iterations that a verdict is made of."""

_STEADY = 0.9
"""An iteration that leaves this part of what the one before left gains next
to nothing: a steady state is reached."""

_BRIEF = 1.0
"""Seconds. Nova looks twice in that, so of shorter iterations it is not seen
well what they leave. QEMU's own dirty rate is over a longer time."""

_SPAN = 2.5
"""Seconds between the samples that are kept while iterations are brief."""

_SPANS = 2

_DOUBT = 0.1
"""How wrong the measured rates may be. A verdict must hold for rates that are
as much lower and higher; where it does not, it is not known."""

_NOTHING = 0.1
"""Seconds. What is sent in less is hardly an iteration: QEMU limits its rate
in steps of as much (XFER_LIMIT_RATIO in its migration/qemu-file.h)."""

_STEPS = 1000
"""Iterations that are worked out ahead."""

_MIGRATION_OUT = 5
"""VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT of virDomainJobOperation."""

_FULL_THROTTLE = 99
"""Percent; QEMU's max-cpu-throttle, which libvirt and Nova leave alone."""


def of_a_migration(stats: Mapping[str, Any]) -> bool:
    """Whether statistics are of a migration to another host.

    libvirt does one job after the other: the migration may wait for another
    one, a backup or a dump of memory, which has the same statistics.

    :param stats: of virDomainGetJobStats(), or of a completed job
    """
    operation = stats.get('operation')
    # 0 is VIR_DOMAIN_JOB_OPERATION_UNKNOWN.
    return not isinstance(operation, int) or operation in (0, _MIGRATION_OUT)


class Outcome(enum.Enum):
    """What will happen to a live migration if the guest continues so."""

    CONVERGES = 'will converge'
    STALLS = 'will not converge'
    UNKNOWN = 'not known'


@dataclasses.dataclass(frozen=True)
class Sample:
    """The job at one moment.

    :ivar time: seconds since the migration began
    :ivar iteration: the one under way, from 1
    :ivar total: bytes of the guest's memory
    :ivar remaining: bytes still to be sent in this iteration
    :ivar processed: bytes sent since the migration began
    :ivar rate: bytes that were sent in the last second, as QEMU measured; 0
        for not known
    :ivar throttle: percent of its time that QEMU takes from the guest's
        virtual CPUs (auto-converge)
    :ivar allowed: the downtime that is allowed at the moment, seconds. An
        iteration ends when what remains can be sent in that.
    :ivar changed: bytes that the guest changes in a second, as QEMU measured
        in a second or more; 0 for not known
    """

    time: float
    iteration: int
    total: int
    remaining: int
    processed: int
    rate: int = 0
    throttle: int = 0
    allowed: float = 0
    changed: float = 0

    @classmethod
    def read(cls, stats: Mapping[str, Any],
             allowed: float = 0) -> Sample | None:
        """From virDomainGetJobStats().

        :returns: None where memory is not copied yet, or for another job
        """
        def number(name: str) -> int:
            value = stats.get(name)
            return (int(value) if isinstance(value, (int, float)) and
                    0 <= value < math.inf else 0)

        sample = cls(
            number('time_elapsed') / 1000, number('memory_iteration'),
            number('memory_total'), number('memory_remaining'),
            number('memory_processed'), number('memory_bps'),
            number('auto_converge_throttle'), allowed,
            number('memory_dirty_rate') *
            (number('memory_page_size') or _PAGE))
        return sample if sample.iteration and sample.total and (
            of_a_migration(stats)) else None


@dataclasses.dataclass(frozen=True)
class Iteration:
    """A finished iteration.

    :ivar seconds: that it took
    :ivar work: bytes that were sent in it
    :ivar left: bytes that the guest has changed meanwhile
    :ivar bandwidth: bytes of the guest's memory sent in a second
    :ivar kept: bytes that were not sent, because they can be in the downtime
    """

    seconds: float
    work: float
    left: float
    bandwidth: float
    kept: float = 0


@dataclasses.dataclass(frozen=True)
class Course:
    """A migration so far: what a verdict needs of all its samples.

    :ivar last: the newest sample
    :ivar began: time at which the iteration under way began; None where its
        beginning was not seen
    :ivar work: bytes that it has to send
    :ivar sent: bytes sent before it
    :ivar fastest: the highest rate seen in it, bytes a second
    :ivar finished: the last iterations that have ended, oldest first
    :ivar marks: samples of some seconds ago and since, oldest first, while
        iterations are brief
    """

    last: Sample | None = None
    began: float | None = None
    work: float = 0
    sent: float = 0
    fastest: int = 0
    finished: tuple[Iteration, ...] = ()
    marks: tuple[Sample, ...] = ()

    @property
    def stays(self) -> bool:
        """Whether the guest has changed as much in some seconds as was sent.

        So what is to be sent did not get less. QEMU 11.1 begins an iteration
        ten times a second where post-copy is permitted, while much of the one
        before is still to be sent: then neither its dirty rate, which leaves
        out what was to be sent already, nor an iteration tells that.
        """
        if self.last is None or len(self.marks) <= _SPANS:
            return False
        then = self.marks[0]
        sent = self.last.processed - then.processed
        return sent > 0 and (
            self.last.remaining >= then.remaining - _DOUBT * sent)

    def add(self, sample: Sample) -> Course:
        """The course with one more sample, which must be newer."""
        last = self.last
        if last is None or sample.iteration < last.iteration or (
                sample.time < last.time):
            return self._first(sample)
        if sample.iteration == last.iteration:
            return dataclasses.replace(
                self, last=sample, fastest=max(self.fastest, sample.rate))
        if sample.iteration == last.iteration + 1:
            return self._next(last, sample)
        return self._several(last, sample)

    @staticmethod
    def _first(sample: Sample) -> Course:
        # The first iteration alone has a beginning that is known: when
        # nothing was sent.
        if sample.iteration != 1:
            return Course(last=sample, fastest=sample.rate)
        before = sample.processed / sample.rate if sample.rate else 0
        return Course(last=sample, began=max(0, sample.time - before),
                      work=sample.total, fastest=sample.rate)

    def _next(self, last: Sample, sample: Sample) -> Course:
        """Between two samples one iteration has ended and the next begun.

        What was sent between them, and is more than was left to send, was
        sent in the new one.
        """
        sent = max(0, sample.processed - last.processed)
        if sample.throttle and last.remaining - sent > max(
                self.work * _DOUBT, sample.rate * last.allowed):
            return self._cut(sample, last.remaining - sent)
        kept = min(last.remaining, sample.rate * last.allowed)
        of_new = max(0, sent - (last.remaining - kept))
        left = max(0, sample.remaining + of_new - kept)
        passed = sample.time - last.time
        began = sample.time - (passed * of_new / sent if sent else 0)
        finished = self.finished
        if self.began is not None and began > self.began:
            seconds = began - self.began
            whole = sample.processed - of_new - self.sent
            finished += (Iteration(
                seconds, self.work, left, self._bandwidth(whole, seconds),
                kept),)
        return Course(last=sample, began=began, work=left,
                      sent=sample.processed - of_new, fastest=sample.rate,
                      finished=finished[-_KEPT:])

    def _unseen(self, last: Sample, sample: Sample, count: int) -> Course:
        """Iterations that have passed while Nova did not look.

        Nova waits for its conductor, for one. How long each of them was is
        not known, but the sum of what each has left for the next one is: it
        was sent, or remains. Their mean is taken, which is more than the last
        one has left if these amounts get less.
        """
        sent = max(0, sample.processed - last.processed)
        bandwidth = sent / (sample.time - last.time)
        if not bandwidth:
            return Course(last=sample, fastest=sample.rate)
        kept = min(last.remaining, sample.rate * last.allowed)
        rest = min(sent, last.remaining - kept)
        left = max(0, sent - rest + sample.remaining - kept) / count
        finished = self.finished
        if self.began is not None:
            first = max(0, last.time + rest / bandwidth - self.began)
            seconds = (first + (count - 1) * left / bandwidth) / count
            if seconds > 0:
                finished += (Iteration(
                    seconds, self.work, left, bandwidth, kept),)
        of_new = min(sent, max(0, left - sample.remaining))
        return Course(last=sample, began=sample.time - of_new / bandwidth,
                      work=max(left, sample.remaining),
                      sent=sample.processed - of_new, fastest=sample.rate,
                      finished=finished[-_KEPT:])

    def _cut(self, sample: Sample, unsent: int) -> Course:
        """An iteration that has ended before all its work was sent.

        QEMU 9.2 and later begin one every five seconds while they slow the
        virtual CPUs (CPU_THROTTLE_DIRTY_SYNC_TIMESLICE_MS of its
        migration/cpu-throttle.c). What was not sent is no change of memory.
        """
        finished = self.finished
        if self.began is not None and sample.time > self.began:
            seconds = sample.time - self.began
            work = max(0, self.work - unsent)
            finished += (Iteration(
                seconds, work, max(0, sample.remaining - unsent),
                max(work, sample.processed - self.sent) / seconds),)
        return Course(last=sample, began=sample.time, work=sample.remaining,
                      sent=sample.processed, fastest=sample.rate,
                      finished=finished[-_KEPT:])

    def _bandwidth(self, whole: float, seconds: float) -> float:
        """Bytes of memory sent in a second, in an iteration that has ended.

        :param whole: bytes that went over the network in it
        """
        if self.last is not None and self.last.iteration == 1:
            # It is full of pages of zeros, which are hardly sent. While QEMU
            # looks for the others the link is idle.
            return max(whole / seconds, self.fastest)
        # The work is worked out: it counts where pages of zeros are many.
        return (self.work if whole < self.work / 2 else whole) / seconds

    def _several(self, last: Sample, sample: Sample) -> Course:
        """Iterations shorter than the time between two samples."""
        count = sample.iteration - last.iteration
        seconds = (sample.time - last.time) / count
        if seconds >= _BRIEF:
            return self._unseen(last, sample, count)
        work = max(0, sample.processed - last.processed) / count
        kept = min(sample.remaining, sample.rate * sample.allowed)
        finished = self.finished
        if seconds > 0:
            finished += (Iteration(
                seconds, work, max(work, sample.remaining - kept),
                max(work / seconds, sample.rate), kept),)
        marks = self.marks
        if not marks or sample.time >= marks[-1].time + _SPAN:
            marks += (sample,)
        return Course(last=sample, began=sample.time, work=sample.remaining,
                      sent=sample.processed, fastest=sample.rate,
                      finished=finished[-_KEPT:], marks=marks[-_SPANS - 1:])


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a migration is allowed.

    :ivar downtime: seconds for which the guest may be paused in the end:
        ``[libvirt] live_migration_downtime``, to which Nova goes up in steps
    :ivar auto_converge: whether QEMU slows the guest's virtual CPUs
    """

    downtime: float
    auto_converge: bool = False


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What will happen to a migration, and the numbers that say so.

    :ivar iteration: the one under way; 0 before memory is copied
    :ivar changed: bytes of memory that the guest changed in a second of the
        last iteration, those changed twice counted once; None where no
        iteration has ended
    :ivar bandwidth: bytes that are sent in a second
    :ivar left: bytes that the last iteration has left
    :ivar remaining: bytes that the iteration under way has still to send
    :ivar allowed: the downtime that is allowed, seconds
    :ivar why: what else there is to say
    """

    outcome: Outcome = Outcome.UNKNOWN
    iteration: int = 0
    changed: float | None = None
    bandwidth: float = 0
    left: float = 0
    remaining: float = 0
    allowed: float = 0
    why: str = ''

    @property
    def pause(self) -> tuple[float, float] | None:
        """The least and the most seconds that the guest waits if paused now.

        A paused guest waits for the end of the iteration under way, and then
        until that is sent which it has changed since this began. A guest that
        writes fast may have changed all of it already.
        """
        if not self.bandwidth:
            return None
        return (self.remaining / self.bandwidth,
                (self.remaining + self.left) / self.bandwidth)

    @property
    def downtime(self) -> float | None:
        """Seconds for which the guest would be paused now, or None."""
        if self.changed is None or not self.bandwidth:
            return None
        return self.left / self.bandwidth

    def __str__(self) -> str:
        said = f'{self.outcome.value}, iteration {self.iteration}'
        if self.changed is not None:
            said += (
                f': the guest changed {size(self.changed)}/s of its memory, '
                f'{size(self.bandwidth)}/s were sent, and {size(self.left)} '
                f'were left by the last iteration')
            if self.downtime is not None:
                said += (f'; to send these takes {self.downtime:.2f} s, and '
                         f'{self.allowed:.2f} s of downtime are allowed')
        return f'{said} ({self.why})' if self.why else said


def size(number: float) -> str:
    """Bytes as MiB, with as many digits as matter."""
    mib = number / _MIB
    return f'{mib:.0f} MiB' if mib >= 100 else f'{mib:.3g} MiB'


@dataclasses.dataclass(frozen=True)
class Writer:
    """How much memory a guest changes in a time: a model of two numbers.

    :ivar rate: bytes a second, in a short time
    :ivar ceiling: bytes that it writes to at all; infinite where no end of
        them is seen
    :ivar at_random: whether it writes anywhere in these, and so the more often
        to the same page the longer it writes, or to one page after the other
    """

    rate: float
    ceiling: float = math.inf
    at_random: bool = False

    def changes(self, seconds: float) -> float:
        """Bytes changed in a time."""
        written = self.rate * seconds
        if not self.at_random:
            return min(self.ceiling, written)
        return self.ceiling * -math.expm1(-written / self.ceiling)

    def faster(self, factor: float) -> Writer:
        """One that writes faster, or slower, to the same pages."""
        return dataclasses.replace(self, rate=self.rate * factor)


def writers(finished: tuple[Iteration, ...]) -> tuple[Writer, ...]:
    """The writers that would have done what was seen of the guest."""
    new = finished[-1]
    plain = Writer(new.left / new.seconds)
    if len(finished) < 2:
        return (plain,)
    short, long = sorted(
        finished[-2:], key=lambda iteration: iteration.seconds)
    if not 0 < short.left < long.left or (
            long.left / long.seconds >= short.left / short.seconds):
        # No ceiling is seen, or the guest did not write alike in the two:
        # the newer one counts.
        return (plain,)
    return (Writer(short.left / short.seconds, long.left),
            _at_random(short, long))


def _at_random(short: Iteration, long: Iteration) -> Writer:
    """The one at random that has left what it has in both iterations."""
    ratio = long.left / short.left

    def of(speed: float) -> float:
        # Falls from the ratio of the times to 1.
        return (math.expm1(-speed * long.seconds) /
                math.expm1(-speed * short.seconds))

    low, high = 1e-9 / long.seconds, 700 / short.seconds
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if of(middle) > ratio else (low, middle)
    ceiling = short.left / -math.expm1(-low * short.seconds)
    return Writer(low * ceiling, ceiling, at_random=True)


def in_the_end(writer: Writer, bandwidth: float, left: float,
               enough: float) -> float:
    """What iterations leave when they leave no less, or enough is reached.

    :param left: bytes that the last one has left
    :param enough: bytes at which the migration ends
    """
    for _ in range(_STEPS):
        after = writer.changes(left / bandwidth)
        if after <= enough or after >= left * (1 - 1e-6):
            return after
        left = after
    return left


def judge(course: Course, limits: Limits) -> Verdict:
    """What will happen to a migration, by what has been seen of it."""
    if course.last is None:
        return Verdict(allowed=limits.downtime,
                       why='memory is not copied yet')
    verdict = Verdict(iteration=course.last.iteration,
                      allowed=limits.downtime)
    if not course.finished or not course.finished[-1].bandwidth:
        return dataclasses.replace(
            verdict, why='no iteration has been seen from its beginning to '
            'its end')
    new = course.finished[-1]
    enough = new.bandwidth * limits.downtime
    verdict = dataclasses.replace(
        verdict, changed=new.left / new.seconds, bandwidth=new.bandwidth,
        left=new.left + new.kept, remaining=course.last.remaining)
    enough = max(enough - new.kept, new.bandwidth * _NOTHING)
    if new.left <= enough:
        return dataclasses.replace(verdict, outcome=Outcome.CONVERGES)
    found = _outcome(course.finished, enough)
    if found is Outcome.STALLS and new.seconds < _BRIEF and (
            course.last.changed < new.bandwidth * (1 - _DOUBT) and
            not course.stays):
        found = Outcome.UNKNOWN
    if found is Outcome.STALLS and limits.auto_converge and (
            course.last.throttle < _FULL_THROTTLE):
        return dataclasses.replace(
            verdict, why=f'QEMU slows its virtual CPUs, by '
            f'{course.last.throttle} % so far')
    return dataclasses.replace(verdict, outcome=found)


def _outcome(finished: tuple[Iteration, ...], enough: float) -> Outcome:
    """Whether iterations will leave enough or less; the last has left more."""
    new = finished[-1]
    if new.left >= new.work * (1 + _DOUBT) or (
            len(finished) > 1 and new.left >= new.work * _STEADY):
        # The rate over a shorter time is as high or higher, and what is left
        # now is too much. So what is left gets no less.
        return Outcome.STALLS
    if len(finished) < 2:
        return Outcome.UNKNOWN
    ends = {
        in_the_end(writer.faster(factor), new.bandwidth, new.left,
                   enough) <= enough
        for writer in writers(finished)
        for factor in (1 - _DOUBT, 1 + _DOUBT)}
    if len(ends) > 1:
        return Outcome.UNKNOWN
    return Outcome.CONVERGES if ends.pop() else Outcome.STALLS
