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

"""One row of the table of known errors."""

import dataclasses
import functools
import re


@dataclasses.dataclass(frozen=True)
class KnownError:
    """One row.

    :ivar name: what documentation and logs call it
    :ivar pattern: what the text contains (regular expression; ``.`` takes
        line ends too)
    :ivar cause: why, in sentences
    :ivar remedy: what an operator can do about it, in sentences
    :ivar seen: the version of libvirt that said it when the fault was made,
        or ``reported`` and where
    :ivar said: texts as they came, each whole
    """

    name: str
    pattern: str
    cause: str
    remedy: str
    seen: str
    said: tuple[str, ...]

    @functools.cached_property
    def codes(self) -> frozenset[int]:
        """Numbers (virErrorNumber) of the errors that the row may be of.

        Those with which its texts came, and the four that libvirt gives to
        what it passes on from the kernel, QEMU and other hosts: releases
        differ in which of them.
        """
        return _PASSED_ON | {
            code for text in self.said for prefix, code in _CODES.items()
            if text.startswith(prefix)}

    def takes(self, text: str, code: int | None = None) -> bool:
        """Whether an error is of this row.

        :param text: without names, see :func:`without_names`
        :param code: its number, or None where there is only the text
        """
        return ((code is None or code in self.codes) and
                re.search(self.pattern, text, re.DOTALL | re.IGNORECASE)
                is not None)


# How libvirt begins an error of each number (src/util/virerror.c,
# virErrorMsg), for those numbers that rows have.
_CODES = {
    'invalid argument: ': 8,
    'XML error: ': 27,
    'Network not found: ': 43,
    'authentication failed: ': 45,
    'Requested operation is not valid: ': 55,
    'Secret not found: ': 66,
    'unsupported configuration: ': 67,
    'Timed out during operation: ': 68,
    'authentication unavailable: ': 94,
    'authentication cancelled: ': 79,
    'Unsafe migration: ': 81,
    'Operation not supported: ': 84,
    'the CPU is incompatible with host CPU': 91,
}
# VIR_ERR_INTERNAL_ERROR, _OPERATION_FAILED, _SYSTEM_ERROR and _RPC
_PASSED_ON = frozenset({1, 9, 38, 39})

# Values in single quotes, and QEMU's arguments that are JSON. An apostrophe
# within a word opens nothing, and what a program said (oslo.concurrency quotes
# it) is no name.
_QUOTED = re.compile(
    r"(?<!\w)(?<!Stderr: )(?<!Stdout: )'([^'\n]*)'(?!\w)")
_JSON = re.compile(r'(?<= )\{"[^\n]*\}(?=: )')


def without_names(text: str) -> str:
    """A text without what could be a name with words of an error in it.

    Files, guests and images may have any name. What is quoted and has a space
    in it is left out, and so are QEMU's arguments in JSON.
    """
    return _QUOTED.sub(
        lambda found: "''" if ' ' in found[1] else found[0],
        _JSON.sub('{}', text))


HOST_CHECK = ('Run nova-kvm-ext host check: it names the cause and the '
              'command for this host.')

# What libvirt puts before the last words of a QEMU that ended. 10.0 and later
# add "(vm='NAME')".
DIED = 'internal error: process exited while connecting to monitor: '
CLOSED = 'internal error: qemu unexpectedly closed the monitor: '
