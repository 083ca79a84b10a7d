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

"""Errors with a cause and a remedy that an operator can use.

The project's exceptions, and :func:`explain`, which finds a libvirt error in
the table of :mod:`nova_kvm_ext.known_errors`. Pure: imports neither libvirt
nor Nova. A libvirt error is recognized by its ``get_error_code`` method,
because Nova wraps the libvirt module and its tests replace it.
"""

import enum
import re
from typing import Any
import unicodedata

from nova_kvm_ext import known_errors

# Characters that are looked at: libvirt quotes QEMU, which may say much.
_LONGEST = 20000


class KVMExtError(Exception):
    """A problem with its remedy, each a full sentence.

    :param problem: what is wrong, naming the option or file and the value
    :param remedy: what to do about it
    """

    def __init__(self, problem: str, remedy: str = '') -> None:
        super().__init__(f'{problem} {remedy}'.strip())
        self.problem = problem
        self.remedy = remedy


class InvalidOption(KVMExtError):
    """An option of nova.conf has a value that cannot work."""


class InvalidRequest(KVMExtError):
    """A flavor or an image asks for what is not allowed or cannot be."""


class HostError(KVMExtError):
    """This host lacks something that is needed."""


class AgentFault(enum.Enum):
    """Why a guest agent did not do what it was asked."""

    NO_GUEST = 'the guest does not run'
    PAUSED = 'the guest is paused'
    NO_CHANNEL = 'the guest has no agent channel'
    DISCONNECTED = 'no agent has the channel open'
    GIVEN_UP = 'libvirt has given up the channel'
    BUSY = 'libvirt waits for the agent already'
    NO_ANSWER = 'the agent does not answer'
    UNSUPPORTED = 'the agent does not know or allow the command'
    REFUSED = 'the agent answered with an error'
    NONSENSE = 'the agent answered what is no answer'
    LIBVIRT = 'libvirt failed'


class AgentError(KVMExtError):
    """A guest agent did not do what it was asked.

    The only exception of the agent's rooms. No text of it has a word of a
    request, which may hold a password, and the guest's own are cleaned.

    :ivar fault: what kind of failure it is
    :ivar left_frozen: whether the guest's filesystems may be frozen now
    """

    def __init__(self, problem: str, remedy: str = '', *, fault: AgentFault,
                 left_frozen: bool = False) -> None:
        super().__init__(problem, remedy)
        self.fault = fault
        self.left_frozen = left_frozen

    @property
    def may_have_acted(self) -> bool:
        """Whether the guest may have done what was asked anyway.

        Then a command with an effect, a freeze above all, must be undone. An
        error that the agent reports does not rule it out: the guest writes it.
        """
        return self.fault not in (
            AgentFault.NO_GUEST, AgentFault.PAUSED, AgentFault.NO_CHANNEL,
            AgentFault.DISCONNECTED, AgentFault.GIVEN_UP, AgentFault.BUSY)


def without_paths(text: str) -> str:
    """Text of libvirt, QEMU, Nova or qemu-img without directories of the host.

    Tenants read it, in an instance's fault or in server diagnostics.
    """
    return re.sub(r'''(?<![\w:/])/(?:[^/\s'",:;]+/)+''', '', text)


def libvirt_error_code(error: Any) -> int | None:
    """The libvirt error number of an exception.

    :returns: the number (virErrorNumber), or None where ``error`` is no
        libvirt error
    """
    get_error_code = getattr(error, 'get_error_code', None)
    return None if get_error_code is None else get_error_code()


def libvirt_error(error: BaseException | None) -> Any:
    """The libvirt error among an exception and its causes.

    :returns: the exception itself, one that it was made of, or None
    """
    while error is not None:
        if libvirt_error_code(error) is not None:
            return error
        error = error.__cause__ or error.__context__
    return None


def ceph_error(error: BaseException | None) -> Any:
    """The error of Ceph among an exception and its causes.

    Of Ceph's library, known by the module of its class: the library may not
    be installed. Where it is not, Nova's own RuntimeError says so. Or of a
    command of Ceph that Nova runs: of "ceph df", which fails first where Ceph
    does not answer, Nova says "Could not determine disk usage" and no more.

    :returns: the exception itself, one that it was made of, or None
    """
    while error is not None:
        if type(error).__module__ in ('rados', 'rbd') or (
                isinstance(error, RuntimeError) and
                str(error) == 'rbd python libraries not found') or (
                    command_said(error)):
            return error
        error = error.__cause__ or error.__context__
    return None


def command_said(error: Any) -> str:
    """What a command of Ceph said when it failed.

    :param error: oslo.concurrency's ProcessExecutionError, or another one
    :returns: '' where it is no such error
    """
    command, said = getattr(error, 'cmd', None), getattr(error, 'stderr', None)
    if type(error).__name__ != 'ProcessExecutionError' or not (
            isinstance(command, str) and isinstance(said, str)):
        return ''
    program = command.partition(' ')[0].rpartition('/')[2]
    return said if program in ('ceph', 'rbd') else ''


def explain(error: Any) -> known_errors.KnownError | None:
    """Look an error of libvirt or of Ceph's library up in the table.

    :param error: the exception, or its text
    :returns: None where the error is not a known one: its own words are then
        all there is to say
    """
    text = known_errors.without_names(
        (command_said(error) or str(error))[:_LONGEST])
    code = libvirt_error_code(error)
    return next((row for row in known_errors.TABLE if row.takes(text, code)),
                None)


# Characters that str.isprintable() lets pass though they show as nothing:
# what Unicode calls Default_Ignorable_Code_Point (DerivedCoreProperties.txt)
# outside the category Cf, and the empty Braille pattern.
_INVISIBLE = re.compile(
    '[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164'
    '\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]')
# Marks pile up on one character and cover the lines above and below. The
# orthographies of the living put at most three on one.
_PILED_UP = 3


def clean(text: Any, limit: int = 300) -> str:
    """Text from outside made fit for one line of a log or terminal.

    What is no printable character becomes a space: control characters (escape
    sequences among them), bidirectional and other format controls, zero-width
    characters, line separators, surrogates, private use, fillers that show as
    nothing. Runs of white space become one space. Marks beyond three on one
    character are dropped, and what is longer than ``limit`` characters is cut.
    """
    whole = str(text)
    # What follows sixteen times the limit would hardly be seen, and hostile
    # text can be megabytes long.
    text = whole[:limit * 16]
    if not (text.isascii() and text.isprintable()):
        kept, marks = [], 0
        for c in _INVISIBLE.sub(' ', text):
            marks = marks + 1 if unicodedata.category(c) in ('Mn', 'Me') else 0
            if marks <= _PILED_UP:
                kept.append(c if c.isprintable() else ' ')
        text = ''.join(kept)
    words = ' '.join(text.split())
    if len(words) <= limit and len(whole) <= limit * 16:
        return words
    return words[:limit - 3] + '...'


def with_explanation(error: Any) -> str:
    """libvirt's own words, with cause and remedy where they are known."""
    explanation = explain(error)
    if explanation is None:
        return clean(error)
    return (f'{explanation.cause} {explanation.remedy} '
            f'(libvirt says: {clean(error)})')
