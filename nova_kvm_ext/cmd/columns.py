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

"""Values of tables: a short form for people, all data for programs.

Each is one of cliff's FormattableColumn: the table shows
``human_readable()``, ``-f json`` and ``yaml`` show ``machine_readable()``, and
the formats of :data:`PLAIN` show the latter as text without brackets or
quotes.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import textwrap
from typing import Any

from cliff import columns

from nova_kvm_ext.cmd import lazy

with lazy.imports():
    from nova_kvm_ext.cpu import usable

PLAIN = ('value', 'csv', 'shell')
"""Formats of cliff that would show lists as Python writes them."""

_SHOWN = 8

_NARROWEST = 8
"""Characters that a column of text has at least."""


def word(name: str) -> str:
    """A column's name as users may write it: cliff ignores these things."""
    return name.lower().strip().replace(' ', '_')


def wrapped(text: str, width: int, indent: str = '') -> str:
    """Lines of a text, not broken at hyphens, which names have."""
    return '\n'.join(textwrap.fill(
        line, max(width, _NARROWEST), subsequent_indent=indent,
        break_on_hyphens=False) for line in text.splitlines())


def plain(value: Any) -> Any:
    """A value as one text: ``a,b`` of a list, ``x=1,y=2`` of a mapping.

    Several mappings are parted by semicolons. A number or a truth stays one;
    None is empty.
    """
    if isinstance(value, columns.FormattableColumn):
        value = value.machine_readable()
    if value is None:
        return ''
    if isinstance(value, Mapping):
        return ','.join(f'{key}={plain(each)}' for key, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        parting = ';' if any(isinstance(each, Mapping) for each in value
                             ) else ','
        return parting.join(str(plain(each)) for each in value)
    return value


def plain_row(row: Iterable[Any]) -> list[Any]:
    return [plain(value) for value in row]


class Column(columns.FormattableColumn):
    """Sorted by what people see: not all values can be compared."""

    def __lt__(self, other: object) -> bool:
        return isinstance(other, columns.FormattableColumn) and (
            self.human_readable() < other.human_readable())


class Flowing(Column):
    """A text that is broken into lines where a table would be too wide.

    :ivar width: of its lines; None for lines as they are
    """

    width: int | None = None
    _indent = ''

    def text(self) -> str:
        """For people."""
        raise NotImplementedError

    def human_readable(self) -> str:
        text = self.text()
        return text if self.width is None else wrapped(
            text, self.width, self._indent)

    def machine_readable(self) -> Any:
        return self._value


class Text(Flowing):
    """A text or None."""

    def text(self) -> str:
        return self._value or ''


class Shown(Flowing):
    """A value with other words for people.

    :param value: for programs
    :param text: for people; lines are kept
    """

    _indent = '  '

    def __init__(self, value: Any, text: str) -> None:
        super().__init__(value)
        self._text = text

    def text(self) -> str:
        return self._text


class Words(Column):
    """A value with other words for people, which are never broken."""

    def __init__(self, value: Any, text: str) -> None:
        super().__init__(value)
        self._text = text

    def human_readable(self) -> str:
        return self._text

    def machine_readable(self) -> Any:
        return self._value


def as_json(value: Any) -> Any:
    """A value that has no better words for people than JSON."""
    if isinstance(value, (Mapping, list, tuple)):
        return Shown(value, json.dumps(value, ensure_ascii=False, indent=1))
    return value


class Names(Flowing):
    """Names of features or hosts, or None: some of them, or all.

    :param limit: how many people see, None for all
    """

    def __init__(self, value: Iterable[str] | None,
                 limit: int | None = _SHOWN) -> None:
        super().__init__(None if value is None else list(value))
        self._limit = limit

    def text(self) -> str:
        names = self._value or ()
        return ', '.join(names) if self._limit is None else (
            usable.some(names, self._limit))


class Counts(Column):
    """Values with how often each is there."""

    def human_readable(self) -> str:
        return '\n'.join(value if len(self._value) == 1 else
                         f'{value} ({number})'
                         for value, number in self._value.items())

    def machine_readable(self) -> dict[str, int]:
        return dict(self._value)


class Lines(Flowing):
    """Facts, each a line for people and an object for programs."""

    _indent = '  '

    def text(self) -> str:
        return '\n'.join(line for line, _ in self._value)

    def machine_readable(self) -> list[Any]:
        return [value for _, value in self._value]


def _width(value: Any) -> int:
    if isinstance(value, columns.FormattableColumn):
        value = value.human_readable()
    return max(map(len, str(value).splitlines()), default=0)


def fit(names: Sequence[str], rows: Sequence[Sequence[Any]], width: int
        ) -> None:
    """Break texts so that a table of these rows has at most this width.

    Texts share what is left by the other columns; a short one takes no more
    than it needs.
    """
    # Borders and separators, and a space at each side of a value.
    left = width - 1 - 3 * len(names)
    wanted = [max([len(name), *(_width(row[at]) for row in rows)])
              for at, name in enumerate(names)]
    flowing = [at for at in range(len(names)) if any(
        isinstance(row[at], Flowing) for row in rows)]
    left -= sum(wanted) - sum(wanted[at] for at in flowing)
    for number, at in enumerate(sorted(flowing, key=wanted.__getitem__)):
        given = min(wanted[at], left // (len(flowing) - number))
        left -= given
        for row in rows:
            if isinstance(row[at], Flowing):
                row[at].width = max(given, _NARROWEST)
