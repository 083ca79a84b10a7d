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

"""libvirt's qemu.conf: which user and group QEMU runs as.

Pure. The syntax is that of libvirt's src/util/virconf.c: ``name = value``
lines with strings in "", '' or three double quotes, numbers and [lists], and
comments from # to the end of the line. Strings have no escapes.
"""

import re

_GAP = re.compile(r'(?:\s|#[^\n]*)*')
_NAME = re.compile(r'([A-Za-z0-9_][A-Za-z0-9_.:-]*)[ \t]*=[ \t]*')
_VALUE = re.compile(
    r'"""(?P<long>.*?)"""|"(?P<double>[^"\n]*)"|\'(?P<single>[^\'\n]*)\''
    r'|(?P<number>-?\d+)', re.DOTALL)
_LIST_GAP = re.compile(r'(?:[\s,]|#[^\n]*)*')


def parse(text: str) -> dict[str, str]:
    """The settings that are a string or a number, each as text.

    :raises ValueError: libvirt could not read it either; names the line
    """
    settings = {}
    position = _skip(_GAP, text, 0)
    while position < len(text):
        name = _NAME.match(text, position)
        if name is None:
            raise _error(text, position, 'expecting a name and =')
        position = name.end()
        if text.startswith('[', position):
            position = _end_of_list(text, position + 1)
        else:
            value, position = _value(text, position)
            settings[name[1]] = value
        end = re.compile(r'[ \t]*(?:#[^\n]*)?(?:\n|\Z)').match(text, position)
        if end is None:
            raise _error(text, position, 'expecting the end of the line')
        position = _skip(_GAP, text, end.end())
    return settings


def number(name: str) -> int | None:
    """The id that a user's or group's name stands for where nobody has it.

    ``+64055`` is an id and never a name; ``64055`` is one if it is no name.
    """
    digits = name.removeprefix('+')
    return int(digits) if digits.isdecimal() and digits.isascii() else None


def _skip(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    return found.end() if found else position


def _value(text: str, position: int) -> tuple[str, int]:
    found = _VALUE.match(text, position)
    if found is None:
        raise _error(text, position, 'expecting a value')
    return next(v for v in found.groups() if v is not None), found.end()


def _end_of_list(text: str, position: int) -> int:
    position = _skip(_LIST_GAP, text, position)
    while not text.startswith(']', position):
        position = _skip(_LIST_GAP, text, _value(text, position)[1])
    return position + 1


def _error(text: str, position: int, what: str) -> ValueError:
    line = text.count('\n', 0, position) + 1
    return ValueError(f'line {line}: {what}')
