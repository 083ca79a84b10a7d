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

"""Prints the results of host checks on a terminal.

Faults come first, the most severe at the top. Each remedy that is a command
has its own line, which is never wrapped, so that users can copy it. Colour is
used on terminals that support it: https://no-color.org.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from importlib import metadata
import os
import re
import shutil
import textwrap
from typing import Any
from typing import TextIO

from cliff.formatters import base
import stevedore
from stevedore import extension

NAME = 'text'
"""The name of this format for ``-f``."""

_FINDINGS = ('FAIL', 'WARN')

# ECMA-48, "select graphic rendition": bold red, yellow, green, faint.
_COLOURS = {'FAIL': '1;31', 'WARN': '33', 'PASS': '32', 'SKIP': '2'}

_WORDS = {'FAIL': ('failure', 'failures'), 'WARN': ('warning', 'warnings'),
          'PASS': ('passed', 'passed'), 'SKIP': ('left out', 'left out')}


def has_colour(stdout: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether this is a terminal that shows colour, and may."""
    return (stdout.isatty() and not environ.get('NO_COLOR') and
            environ.get('TERM', 'dumb') not in ('', 'dumb'))


# "Correct that line, then systemctl restart libvirtd"
_WITH_COMMAND = re.compile(r'([A-Z].*(?:, then|, set|:)) (.*[^.])')


def parts(remedy: str) -> tuple[str, str]:
    """What a remedy says in words, and the command or option that it ends in.

    Either may be empty.
    """
    mixed = _WITH_COMMAND.fullmatch(remedy)
    if mixed:
        return mixed[1], mixed[2]
    if remedy[:1].isupper() or remedy.endswith('.'):
        return remedy, ''
    return '', remedy


def render(results: Sequence[Mapping[str, Any]], width: int, colour: bool,
           everything: bool) -> Iterable[str]:
    """The lines for results that have the columns of ``host check``."""
    for kind in _FINDINGS:
        for result in results:
            if result['result'] == kind:
                yield from _paragraph(result, width, colour)
                yield ''
    others = [result for result in results
              if result['result'] not in _FINDINGS]
    if everything:
        for result in others:
            yield from _paragraph(result, width, colour)
        if others:
            yield ''
    yield _count(results, colour)
    if others and not everything:
        yield 'With --all the checks without a finding are shown, too.'


def _paragraph(result: Mapping[str, Any], width: int, colour: bool
               ) -> Iterable[str]:
    kind = result['result']
    yield (f'{_coloured(kind, kind, colour)} {result["code"]} '
           f'{result["title"]}')
    yield from _lines(result['details'], width)
    remedy = result['remedy']
    if not remedy or kind not in _FINDINGS:
        return
    words, command = parts(remedy)
    yield from _lines(f'Remedy: {words}', width)
    if command:
        yield f'     {command}'


def _lines(text: str, width: int) -> Iterable[str]:
    return textwrap.wrap(
        text, max(width, 40), initial_indent='     ',
        subsequent_indent='     ', break_long_words=False,
        break_on_hyphens=False)


def _count(results: Sequence[Mapping[str, Any]], colour: bool) -> str:
    said = []
    for kind, (one, more) in _WORDS.items():
        number = sum(result['result'] == kind for result in results)
        if number:
            said.append(_coloured(
                f'{number} {one if number == 1 else more}', kind, colour))
    return f'{len(results)} checks: {", ".join(said) or "none"}.'


def _coloured(text: str, kind: str, colour: bool) -> str:
    return f'\033[{_COLOURS[kind]}m{text}\033[0m' if colour else text


class _Formatter(base.ListFormatter):
    """:func:`render` as one of cliff's formats."""

    def add_argument_group(self, parser: argparse.ArgumentParser) -> None:
        """It has no options."""

    def emit_list(self, column_names: Sequence[str],
                  data: Iterable[Sequence[Any]], stdout: TextIO,
                  parsed_args: argparse.Namespace) -> None:
        results = [dict(zip(column_names, row)) for row in data]
        for line in render(
                results, shutil.get_terminal_size((80, 24)).columns,
                has_colour(stdout, os.environ), parsed_args.all):
            print(line, file=stdout)


def added_to(formats: stevedore.ExtensionManager[Any]
             ) -> stevedore.ExtensionManager[Any]:
    """cliff's formats and this one."""
    return stevedore.ExtensionManager.make_test_instance([
        *formats, extension.Extension(
            NAME, metadata.EntryPoint(NAME, __name__, 'cliff.formatter.list'),
            _Formatter, _Formatter())])
