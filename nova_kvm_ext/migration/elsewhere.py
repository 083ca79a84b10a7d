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

"""Asks another host's libvirt whether a guest runs there, with a time limit.

A libvirt of another host may be slow to reach, hang, or ask for a password,
and a call of libvirt's has no time-out. So a separate process asks. It has no
terminal, so it can ask no person, and it is ended at the time limit.
"""

from collections.abc import Iterable
import contextlib
import dataclasses
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

import libvirt

from nova_kvm_ext import errors

SECONDS = 15.0
"""How long the host may take to answer, whichever of its addresses does."""

_POLL = 0.05

_RUNS, _SHUT_OFF, _NOT_THERE, _UNKNOWN = (
    'runs', 'shut-off', 'not-there', 'unknown')

_ITSELF = 'itself'
_HOST_UUID = re.compile(r'<host>\s*<uuid>([^<]+)</uuid>')
"""In what virConnectGetCapabilities gives
(https://libvirt.org/formatcaps.html)."""

ARRIVING = (libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
            libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
"""Reasons for which a domain is there whose guest is not, or not yet."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What another host's libvirt said.

    :ivar runs: whether the guest runs there, or is paused there; None where
        nobody could tell
    :ivar why: what kept us from knowing, '' where it is known
    :ivar uri: that answered, or was asked last
    :ivar shut_off: whether the guest is defined there and does not run
    :ivar late: whether time was up before anybody could tell
    :ivar itself: whether that libvirt is the one that must not be asked
    """

    runs: bool | None
    why: str = ''
    uri: str = ''
    shut_off: bool = False
    late: bool = False
    itself: bool = False


def host_uuid(capabilities: str) -> str:
    """What libvirt knows a host by, '' for nothing.

    libvirt moves no guest between two hosts with the same UUID.

    :param capabilities: of virConnectGetCapabilities
    """
    found = _HOST_UUID.search(capabilities)
    return found[1].strip() if found else ''


def ask(uris: Iterable[str], uuid: str, seconds: float = SECONDS,
        own: str = '') -> Found:
    """Ask about a guest by its UUID.

    :param uris: of the same host's libvirt; all are asked at once, and the
        first that can tell counts
    :param seconds: for all together
    :param own: UUID of the host that asks. An address that leads back to it,
        as 127.0.0.1 does, would answer about the wrong libvirt.
    """
    found = Found(None, 'it is not known how to reach that libvirt')
    with contextlib.ExitStack() as stack:
        asked = []
        for uri in uris:
            try:
                asked.append(stack.enter_context(_Question(uri, uuid, own)))
            except OSError as e:
                # No memory, or no space.
                found = Found(None, errors.clean(e), uri)
        deadline = time.monotonic() + seconds
        while asked:
            for question in list(asked):
                answer = question.answer()
                if answer is not None:
                    asked.remove(question)
                    found = answer
                    if found.runs is not None:
                        return found
            if asked and time.monotonic() > deadline:
                return Found(None, f'it did not answer within {seconds:g} s',
                             asked[-1].uri, late=True)
            if asked:
                time.sleep(_POLL)
    return found


class _Question:
    """A process that asks, and is ended with the block."""

    def __init__(self, uri: str, uuid: str, own: str) -> None:
        self.uri = uri
        # A file: eventlet has a pipe of its own kind.
        self._answers = tempfile.TemporaryFile()
        try:
            # -P: what is installed, not what lies in this directory.
            self._process = subprocess.Popen(
                [sys.executable, '-P', '-m', __name__, uri, uuid, own],
                stdin=subprocess.DEVNULL, stdout=self._answers.fileno(),
                stderr=subprocess.DEVNULL, start_new_session=True)
        except BaseException:
            self._answers.close()
            raise

    def __enter__(self) -> '_Question':
        return self

    def __exit__(self, *error: Any) -> None:
        self._answers.close()
        if self._process.poll() is None:
            self._process.kill()
            # Else a zombie would stay until the next process is started.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)

    def answer(self) -> Found | None:
        """What was answered; None until then."""
        if self._process.poll() is None:
            return None
        self._answers.seek(0)
        word, _, why = self._answers.read(4096).decode(
            errors='replace').strip().partition(' ')
        if word in (_RUNS, _SHUT_OFF, _NOT_THERE):
            return Found(word == _RUNS, uri=self.uri,
                         shut_off=word == _SHUT_OFF)
        if word == _ITSELF:
            return Found(None, f'{errors.clean(self.uri)} leads to this host '
                         f'itself', self.uri, itself=True)
        return Found(
            None, errors.clean(why) or 'the process that asks it ended',
            self.uri)


# In the process.


def look(uri: str, uuid: str, own: str) -> str:
    """A line: a word, and why where it is not known."""
    try:
        with contextlib.closing(libvirt.openReadOnly(uri)) as connection:
            if own and host_uuid(connection.getCapabilities()) == own:
                return _ITSELF
            domain = connection.lookupByUUIDString(uuid)
            if not domain.isActive():
                return _SHUT_OFF
            state, reason = domain.state(0)
    except libvirt.libvirtError as e:
        if e.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return _NOT_THERE
        return f'{_UNKNOWN} {errors.clean(e)}'
    if state == libvirt.VIR_DOMAIN_PAUSED and reason in ARRIVING:
        return f'{_UNKNOWN} the guest is arriving there'
    return _RUNS


def main(argv: list[str]) -> None:
    libvirt.registerErrorHandler(lambda *ignored: None, None)
    print(look(*argv), flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
