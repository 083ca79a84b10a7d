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

"""Thaws guests whose freezing process died, or hangs.

``nova-kvm-ext agent freeze --for`` starts a watchdog before it freezes
anything, and tells it of each guest before the guest is frozen. The watchdog
is a process with its own session: SIGKILL or a closed terminal ends the
command and not the watchdog. The end of its standard input shows the end of
the command.

If both are killed, nova-compute thaws the guests by the ledger.
"""

from concurrent import futures
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import libvirt

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import client
from nova_kvm_ext.guest_agent import ledger

START_TIMEOUT = 60
"""Seconds for the process to start and to reach libvirt."""

GRACE = client.THAW_TIMEOUT + client.FREEZE_TIMEOUT
"""Seconds that the command has for its own thaws, once their time is up."""

_AT_ONCE = 10


class Watchdog:
    """The other end, in the process that freezes.

    :param uri: of libvirt
    :param state_path: of the ledger
    :param service: of the ledger
    """

    def __init__(self, uri: str, state_path: str, service: str) -> None:
        self._arguments = [uri, state_path, service]

    def __enter__(self) -> 'Watchdog':
        # A socket, not a pipe: eventlet's os.write tries again forever where
        # nobody reads the pipe any more (EPIPE).
        self._messages, stdin = socket.socketpair()
        try:
            # -P: what is installed, not what lies in this directory.
            self._process = subprocess.Popen(
                [sys.executable, '-P', '-m', __name__, *self._arguments],
                stdin=stdin.fileno(), stdout=subprocess.PIPE,
                start_new_session=True)
        except BaseException:
            self._messages.close()
            raise
        finally:
            stdin.close()
        assert self._process.stdout is not None
        ready, _, _ = select.select(
            [self._process.stdout], [], [], START_TIMEOUT)
        if not ready or not self._process.stdout.readline():
            self._process.kill()
            self._close()
            raise errors.HostError(
                'The process that thaws the guests if this one is killed did '
                'not start, so nothing is frozen.',
                'Check the errors before this one.')
        return self

    def watch(self, uuid: str, seconds: float) -> None:
        """Have a guest thawed if this process dies, or forgets it.

        :param seconds: from now on, after which this process is to have
            thawed it
        :raises errors.HostError: there is nobody to do so
        """
        self._tell({'guest': uuid, 'seconds': seconds})

    def done(self) -> None:
        """All are thawed."""
        with contextlib.suppress(errors.HostError):
            self._tell({'done': True})

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            self._messages.sendall(json.dumps(message).encode() + b'\n')
        except OSError:
            raise errors.HostError(
                'The process that thaws the guests if this one is killed has '
                'ended.', 'Try again.') from None

    def __exit__(self, *exc_info: object) -> None:
        self._close()

    def _close(self) -> None:
        assert self._process.stdout is not None
        self._messages.close()
        self._process.stdout.close()
        # What it still has to thaw is its own business, and may take a while.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)


def _listen(descriptor: int) -> list[str]:
    """Wait for the end of the other process, or of its time.

    :returns: UUIDs of guests that may be frozen
    """
    watched: dict[str, float] = {}
    text = b''
    while True:
        until = max(watched.values(), default=None)
        left = None if until is None else max(
            0, until + GRACE - time.monotonic())
        if not select.select([descriptor], [], [], left)[0]:
            return list(watched)
        read = os.read(descriptor, 65536)
        if not read:
            return list(watched)
        *lines, text = (text + read).split(b'\n')
        for line in lines:
            message = json.loads(line)
            if message.get('done'):
                return []
            watched[message['guest']] = time.monotonic() + message['seconds']


def _thaw(connection: Any, written: ledger.Ledger, uuid: str) -> str:
    """Thaw one guest; what went wrong, or ''."""
    try:
        client.Agent(connection.lookupByUUIDString(uuid)).thaw(
            patience=client.FREEZE_TIMEOUT)
    except libvirt.libvirtError as e:
        return errors.clean(e)
    except errors.AgentError as e:
        if e.left_frozen:
            return str(e)
    # Whoever holds it otherwise sees to it.
    with contextlib.suppress(ledger.Held, OSError):
        entry = written.take(uuid)
        if entry is not None:
            entry.remove()
    return ''


def main(uri: str, state_path: str, service: str) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP,
                   signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as e:
        print(f'error: {errors.with_explanation(e)}', file=sys.stderr)
        return 1
    print('ready', flush=True)
    left = _listen(0)
    if not left:
        return 0
    written = ledger.Ledger(state_path, service)
    with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        problems = list(pool.map(
            lambda uuid: _thaw(connection, written, uuid), left))
    for uuid, problem in zip(left, problems):
        # The terminal may be gone.
        with contextlib.suppress(OSError):
            print(f'error: guest {uuid} may still be frozen: {problem}'
                  if problem else f'The guest {uuid} is thawed.',
                  file=sys.stderr, flush=True)
    return 1 if any(problems) else 0


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
