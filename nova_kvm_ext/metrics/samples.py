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

"""The samples of all metrics, from the facts of other modules.

Pure: takes frozen facts, returns samples. Reads nothing itself.
"""

import collections
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
from typing import Any

from nova_kvm_ext.guests import verdicts
from nova_kvm_ext.metrics import names


@dataclasses.dataclass(frozen=True)
class Sample:
    """A value of a metric.

    :ivar labels: values, in the order of the metric's labels
    """

    metric: names.Metric
    labels: tuple[str, ...]
    value: float


def of_guests(found: Iterable[verdicts.Verdict], now: float
              ) -> Iterator[Sample]:
    """What is counted of running guests.

    Each value of a label that has a fixed list is there, 0 where no guest
    has it, so that a series does not vanish when its last guest does.

    :param now: seconds since 1970
    """
    found = list(found)

    def counted(metric: names.Metric, keys: Iterable[tuple[str, ...]]
                ) -> Iterator[Sample]:
        tally = collections.Counter(
            tuple(metric.value(label, value)
                  for label, value in zip(metric.labels, key))
            for key in keys)
        tally.update(dict.fromkeys(metric.series, 0))
        for key, number in sorted(tally.items()):
            yield Sample(metric, key, number)

    yield from counted(names.GUESTS, (
        (names.said(one.state),) for one in found))
    yield from counted(names.PAUSED, (
        (one.guest.paused.reason,) for one in found if one.guest.paused))
    yield from counted(names.HUNG, ((one.hangs.word,) for one in found))
    yield from counted(names.AGENTS, (
        (names.said(one.agent or 'unknown'),) for one in found))
    yield Sample(names.FROZEN, (), sum(
        one.guest.frozen is not None for one in found))
    yield from counted(names.OLD_QEMU, (
        (one.old_qemu.word,) for one in found))
    yield from counted(names.QEMU, (
        (one.qemu or 'unknown',) for one in found))
    yield from counted(names.OLD_MACHINE, (
        (one.old_machine.word,) for one in found))
    yield from counted(names.DRIFT, (
        (verdicts.Answer(one.cpu.drift).word,) for one in found))
    yield from counted(names.CARDS, (
        ('yes' if card.promised else 'no', verdicts.Answer(card.uses).word)
        for one in found for card in one.cards))
    for one in found:
        for problem in problems(one):
            yield Sample(names.PROBLEM, (one.guest.uuid, problem), 1)
        if one.guest.frozen is not None:
            yield Sample(names.FROZEN_SECONDS, (one.guest.uuid,),
                         max(0.0, now - one.guest.frozen.since))


def problems(one: verdicts.Verdict) -> list[str]:
    """What there is to look into, by the values of the label ``problem``."""
    return [name for name, true in (
        ('hung', one.hangs.value), ('paused_by_error', one.broken),
        ('frozen', one.guest.frozen is not None),
        ('vhost_lost', bool(one.lacks_vhost)),
        ('qemu_outdated', one.old_qemu.value),
        ('machine_outdated', one.old_machine.value),
        ('cpu_drift', one.cpu.drift), ('not_read', bool(one.guest.odd)),
    ) if true]


def of_checks(results: Mapping[str, Any], at: float | None
              ) -> Iterator[Sample]:
    """The host check that nova-compute ran last.

    :param results: PASS, WARN, FAIL or SKIP by the code of the check
    :param at: when, in seconds since 1970
    """
    tally = collections.Counter(dict.fromkeys(
        names.CHECKS.labels['result'], 0))
    for code, result in sorted(results.items()):
        if result in tally:
            tally[result] += 1
        if result in names.CHECK.labels['result']:
            yield Sample(names.CHECK, (
                names.CHECK.value('code', code), result), 1)
    for result, number in tally.items():
        yield Sample(names.CHECKS, (result,), number)
    if at is not None:
        yield Sample(names.CHECK_TIME, (), at)


def of_health(parts: Iterable[tuple[str, str]]) -> Iterator[Sample]:
    """What host health says.

    :param parts: name and result of each part
    """
    for name, result in parts:
        for value in names.HEALTH.labels['result']:
            yield Sample(names.HEALTH, (names.said(name), value),
                         int(value == result))
