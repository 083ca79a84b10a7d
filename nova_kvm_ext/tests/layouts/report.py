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
"""What was seen of each layout: a table for people, data for programs. Pure.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import textwrap
from typing import Any

YES, NO, LEFT_OUT = 'yes', 'NO', '-'


@dataclasses.dataclass
class Step:
    """One thing that was checked.

    :ivar result: :data:`YES`, :data:`NO`, or :data:`LEFT_OUT` where the
        layout has no such thing; ``said`` says why
    :ivar said: what was seen
    :ivar seconds: how long it took
    """

    result: str = NO
    said: str = ''
    seconds: float = 0.0


@dataclasses.dataclass
class Layout:
    """What was seen of one layout.

    :ivar name: what the table calls it
    :ivar starts: nova-compute registers with our driver, or refuses where it
        has to
    :ivar check: ``host check`` says the same
    :ivar boots: a guest boots
    :ivar missing: why the layout could not be tried at all
    """

    name: str
    starts: Step = dataclasses.field(default_factory=Step)
    check: Step = dataclasses.field(default_factory=Step)
    boots: Step = dataclasses.field(default_factory=Step)
    missing: str = ''

    @property
    def steps(self) -> dict[str, Step]:
        return {'nova-compute': self.starts, 'host check': self.check,
                'guest boot': self.boots}

    @property
    def good(self) -> bool:
        return not self.missing and all(
            step.result != NO for step in self.steps.values())


def looked(look: Callable[[], str], seconds: Callable[[], float]) -> Step:
    """A step: what a look returns is seen, what it raises is wrong.

    :param look: returns what was seen; raises an Exception where that is
        not as it should be, and :exc:`NotHere` where there is nothing to see
    :param seconds: a clock
    """
    started = seconds()
    try:
        result, said = YES, look()
    except NotHere as e:
        result, said = LEFT_OUT, str(e)
    except Exception as e:
        result, said = NO, str(e) or type(e).__name__
    return Step(result, said, seconds() - started)


class NotHere(Exception):
    """A layout has no such thing; str() says why."""


def table(layouts: Iterable[Layout]) -> str:
    """For people, at 80 columns."""
    lines = [f'{"layout":<29}{"nova-compute":>17}{"host check":>17}'
             f'{"guest boot":>17}']
    details: list[str] = []
    for layout in layouts:
        if layout.missing:
            lines.append(f'{layout.name:<29}{"not tried":>17}')
            details += ['', layout.name, *wrapped(layout.missing)]
            continue
        lines.append(f'{layout.name:<29}' + ''.join(
            f'{step.result + _seconds(step):>17}'
            for step in layout.steps.values()))
        details += ['', layout.name]
        for name, step in layout.steps.items():
            details += wrapped(f'{name}: {step.said}')
    return '\n'.join([*lines, *details])


def _seconds(step: Step) -> str:
    return f' {step.seconds:.0f} s' if step.result != LEFT_OUT else ''


def wrapped(text: str) -> list[str]:
    return [line for part in text.splitlines()
            for line in textwrap.wrap(
                part, 80, initial_indent='  ', subsequent_indent='    ',
                break_on_hyphens=False)]


def for_programs(layouts: Iterable[Layout]) -> list[dict[str, Any]]:
    """The same, for programs."""
    return [{**dataclasses.asdict(layout), 'good': layout.good}
            for layout in layouts]


def exit_code(layouts: Sequence[Layout]) -> int:
    """0 where all is as it should be, 1 where not, 2 where one lacks."""
    if any(not layout.good and not layout.missing for layout in layouts):
        return 1
    return 2 if not layouts or any(
        layout.missing for layout in layouts) else 0
