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

"""Asks another host's libvirt whether a guest runs there, within bounds.

A libvirt of another host may be far away, hang, or ask for a password, and a
call of libvirt's has no time-out. So a process of its own asks. It has no
terminal, so nothing can ask a person, and it is ended when time is up.
"""

from collections.abc import Iterable
import contextlib
import dataclasses
import subprocess
import sys
import tempfile
import time

import libvirt

from nova_kvm_ext import errors

SECONDS = 15.0
"""How long one libvirt may take to answer."""

_POLL = 0.05

_RUNS, _NOT_THERE, _UNKNOWN = 'runs', 'not-there', 'unknown'

_ARRIVING = (libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
             libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
"""Reasons for which a domain is there whose guest is not, or not yet."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What another host's libvirt said.

    :ivar runs: whether the guest runs there, or is paused there; None where
        nobody could tell
    :ivar why: what kept us from knowing, '' where it is known
    :ivar uri: that answered, or was asked last
    """

    runs: bool | None
    why: str = ''
    uri: str = ''


def ask(uris: Iterable[str], uuid: str, seconds: float = SECONDS) -> Found:
    """Ask about a guest by its UUID.

    :param uris: of the same host's libvirt, in the order in which they are
        tried; the first one that answers counts
    :param seconds: for each
    """
    found = Found(None, 'it is not known how to reach that libvirt')
    for uri in uris:
        found = _ask(uri, uuid, seconds)
        if found.runs is not None:
            break
    return found


def _ask(uri: str, uuid: str, seconds: float) -> Found:
    # A file: eventlet has a pipe of its own kind.
    with tempfile.TemporaryFile() as answers:
        # -P: what is installed, not what lies in this directory.
        process = subprocess.Popen(
            [sys.executable, '-P', '-m', __name__, uri, uuid],
            stdin=subprocess.DEVNULL, stdout=answers.fileno(),
            stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + seconds
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
                return Found(None, f'it did not answer within {seconds:g} s',
                             uri)
            time.sleep(_POLL)
        answers.seek(0)
        word, _, why = answers.read(4096).decode(
            errors='replace').strip().partition(' ')
    if word in (_RUNS, _NOT_THERE):
        return Found(word == _RUNS, uri=uri)
    return Found(None, errors.clean(why) or 'the process that asks it ended',
                 uri)


# In the process.


def look(uri: str, uuid: str) -> str:
    """A line: a word, and why where it is not known."""
    try:
        with contextlib.closing(libvirt.openReadOnly(uri)) as connection:
            domain = connection.lookupByUUIDString(uuid)
            if not domain.isActive():
                return _NOT_THERE
            state, reason = domain.state(0)
    except libvirt.libvirtError as e:
        if e.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return _NOT_THERE
        return f'{_UNKNOWN} {errors.clean(e)}'
    if state == libvirt.VIR_DOMAIN_PAUSED and reason in _ARRIVING:
        return f'{_UNKNOWN} the guest is arriving there'
    return _RUNS


def main(argv: list[str]) -> None:
    libvirt.registerErrorHandler(lambda *ignored: None, None)
    print(look(*argv), flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
