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
"""What was seen of each libvirt: tables for people, data for programs."""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import textwrap
from typing import Any

from nova_kvm_ext.tests.libvirt_matrix import exceptions
from nova_kvm_ext.tests.libvirt_matrix import verdicts

_OUTCOMES = (verdicts.AGREE, verdicts.UNKNOWN, verdicts.EXPECTED,
             verdicts.DIFFER)
# Of what differs in the same way, so many are printed.
_SHOWN = 8
_GROUPS = 25


@dataclasses.dataclass
class Bed:
    """What was seen of one libvirt.

    :ivar name: what the table calls it
    :ivar documents: how many were read
    :ivar started: how many guests were started
    :ivar missing: why there is nothing of it, or not all
    :ivar notes: what was seen and is nobody's verdict
    """

    name: str
    documents: int = 0
    started: int = 0
    judged: list[verdicts.Verdict] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def counts(self) -> dict[str, dict[str, int]]:
        """How often each outcome was, by kind of question."""
        found: dict[str, dict[str, int]] = {}
        for verdict in self.judged:
            row = found.setdefault(verdict.kind, dict.fromkeys(_OUTCOMES, 0))
            row[verdicts.outcome(verdict, exceptions.ALL)] += 1
        return found


def table(beds: Iterable[Bed]) -> str:
    """For people, at 80 columns."""
    lines = []
    head = f'{"":36}{"pairs":>7}{"agree":>8}{"not known":>10}' + (
        f'{"exception":>10}{"differ":>8}')
    for bed in beds:
        counted = [f'{bed.documents} documents']
        if bed.started:
            counted.append(f'{bed.started} guests started')
        lines.append(f'{bed.name}: {", ".join(counted)}'
                     if bed.judged else f'{bed.name}: nothing')
        for reason in (*bed.missing, *bed.notes):
            lines += _wrapped(reason, '  ')
        if bed.judged:
            lines.append(head)
            rows = bed.counts()
            rows['all'] = {outcome: sum(row[outcome] for row in rows.values())
                           for outcome in _OUTCOMES}
            lines += [
                f'  {kind:<34}{sum(row.values()):>7}'
                f'{row[verdicts.AGREE]:>8}{row[verdicts.UNKNOWN]:>10}'
                f'{row[verdicts.EXPECTED]:>10}{row[verdicts.DIFFER]:>8}'
                for kind, row in rows.items()]
        lines.append('')
    return '\n'.join(lines)


def _wrapped(text: str, indent: str = '') -> list[str]:
    return textwrap.wrap(
        text, 80, initial_indent=indent, subsequent_indent=indent + '  ',
        break_on_hyphens=False)


def _answer(answer: bool | None) -> str:
    return {True: 'yes', False: 'no', None: 'not known'}[answer]


def details(beds: Sequence[Bed]) -> str:
    """What differs, and the exceptions with their reasons."""
    lines: list[str] = []
    every = [v for bed in beds for v in bed.judged]
    alike: dict[tuple[str, str, str], list[verdicts.Verdict]] = {}
    for verdict in every:
        if verdicts.outcome(verdict, exceptions.ALL) == verdicts.DIFFER:
            alike.setdefault(
                (verdict.libvirt, verdict.kind, verdict.why), []
            ).append(verdict)
    for (version, kind, why), found in [*alike.items()][:_GROUPS]:
        first = found[0]
        lines.append(f'differ: libvirt {version}, {kind}: we say '
                     f'{_answer(first.ours)}, libvirt '
                     f'{_answer(first.theirs)}')
        for text in filter(None, (why, first.words)):
            lines += _wrapped(text, '    ')
        lines += [f'    - {v.name}' for v in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f'    and {len(found) - _SHOWN} more (-f json)')
    if len(alike) > _GROUPS:
        lines.append(f'and {len(alike) - _GROUPS} more kinds of difference '
                     f'(-f json)')
    for exception in exceptions.ALL:
        covered = [v for v in every if exception.covers(v) and
                   v.outcome == verdicts.DIFFER]
        if covered:
            lines += _wrapped(
                f'exception: {exception.kind} {exception.name}, '
                f'{len(covered)} times: {exception.reason}')
    for exception in verdicts.unused(every, exceptions.ALL):
        lines += _wrapped(
            f'no longer differs, remove it from the exceptions: '
            f'{exception.kind} {exception.name}')
    return '\n'.join(lines)


def for_programs(beds: Iterable[Bed]) -> list[dict[str, Any]]:
    """The counts, and every verdict that is not the same, for programs."""

    def every(bed: Bed, outcome: str) -> list[dict[str, Any]]:
        return [dataclasses.asdict(v) for v in bed.judged
                if verdicts.outcome(v, exceptions.ALL) == outcome]

    return [{'bed': bed.name, 'documents': bed.documents,
             'started': bed.started, 'missing': bed.missing,
             'notes': bed.notes,
             'counts': bed.counts(),
             'differ': every(bed, verdicts.DIFFER),
             'not_known': every(bed, verdicts.UNKNOWN)} for bed in beds]


def exit_code(beds: Sequence[Bed]) -> int:
    """0 where all agrees, 1 where something differs, 2 where a bed lacks."""
    every = [v for bed in beds for v in bed.judged]
    if verdicts.unused(every, exceptions.ALL) or any(
            verdicts.outcome(v, exceptions.ALL) == verdicts.DIFFER
            for v in every):
        return 1
    return 2 if not every or any(bed.missing for bed in beds) else 0
