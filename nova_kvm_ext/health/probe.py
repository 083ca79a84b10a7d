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

"""Reads the state file of nova-compute, and asks the kernel for its process.

Imports as little as :mod:`nova_kvm_ext.health.verdict`, and never asks
libvirt: a probe must not hang with the service that it checks. Any user could
have written the file: its size is limited, and every member is checked.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time

from nova_kvm_ext.health import verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STATE_PATH = '/var/lib/nova'
"""[DEFAULT] state_path of packages, Kolla and OpenStack-Helm."""

_LARGEST = 64 << 10
_LONGEST = 400

_NUMBER = (int, float)
_NONE = type(None)
_TIME = (*_NUMBER, _NONE)

_SHAPE: dict[str, Any] = {
    'version': int, 'host': str, 'written': _NUMBER, 'clock': _NUMBER,
    'boot_id': str, 'phase': str, 'since': _NUMBER, 'interval': _TIME,
    'process': {'pid': int, 'started': (int, _NONE), 'namespace': str},
    'update': {'began': _TIME, 'finished': _TIME, 'succeeded': _TIME,
               'error': str},
    'libvirt': {'answers': (bool, _NONE), 'since': _TIME, 'seen': _TIME,
                'reason': str},
    'placement': {'answered': _TIME},
    'host_check': {'mode': str, 'at': _TIME, 'results': dict, 'fault': str}}


class NotKnown(Exception):
    """There is no state that can be judged; says why, and the remedy."""


class NoFile(NotKnown):
    """There is no state file at this place."""


def boot_id() -> str:
    """Of the running kernel; '' where it cannot be read."""
    try:
        with open('/proc/sys/kernel/random/boot_id') as f:
            return f.read(64).strip()
    except OSError:
        return ''


def clock() -> float:
    """Now, in seconds of CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def namespace() -> str:
    """The PID namespace of this process; '' where it cannot be read."""
    try:
        return os.readlink('/proc/self/ns/pid')
    except OSError:
        return ''


def _stat(pid: int) -> list[bytes]:
    """Fields 3 and following of /proc/PID/stat (proc_pid_stat(5))."""
    with open(f'/proc/{pid}/stat', 'rb') as f:
        # The name of the program, in parentheses, may have anything in it.
        return f.read(4096).rpartition(b')')[2].split()


def started(pid: int) -> int | None:
    """When a process started, in ticks since the boot; None if not known."""
    try:
        return int(_stat(pid)[19])
    except (OSError, ValueError, IndexError):
        return None


def process(state: dict[str, Any]) -> str:
    """What the kernel says of the process that wrote the state."""
    found = state['process']
    if not found['namespace'] or found['namespace'] != namespace():
        return verdict.NOT_SEEN
    if not 0 < found['pid'] < 1 << 31:
        # To kill(2) these are groups, or nothing.
        return verdict.ENDED
    try:
        # Also answered where /proc hides the processes of others.
        os.kill(found['pid'], 0)
    except ProcessLookupError:
        return verdict.ENDED
    except PermissionError:
        pass
    try:
        fields = _stat(found['pid'])
        if found['started'] not in (None, int(fields[19])) or (
                fields[0] in (b'Z', b'X')):
            return verdict.ENDED
        return verdict.STOPPED if fields[0] in (b'T', b't') else verdict.RUNS
    except (OSError, ValueError, IndexError):
        return verdict.RUNS


def path(state_path: str = STATE_PATH, host: str | None = None) -> str:
    """The state file.

    :param state_path: ``[DEFAULT] state_path`` of nova-compute
    :param host: its ``[DEFAULT] host``; None for the only one, or where there
        are several the one with the name of this machine
    :raises NotKnown: there is none, or it may not be looked for
    """
    directory = os.path.join(state_path, verdict.DIRECTORY)
    if host is not None:
        return os.path.join(directory, verdict.file_name(host))
    try:
        names = [name for name in os.listdir(directory)
                 if name.startswith('of-') and name.endswith('.json')]
    except FileNotFoundError:
        names = []
    except OSError as e:
        raise NotKnown(f'{clean(directory)} cannot be read: '
                       f'{e.strerror}.') from None
    if len(names) == 1:
        return os.path.join(directory, names[0])
    if not names:
        raise NoFile(f'nova-compute has written no state below '
                     f'{clean(directory)}. Has it started, with this driver? '
                     f'--state-path names another [DEFAULT] state_path.')
    mine = verdict.file_name(os.uname().nodename)
    if mine in names:
        return os.path.join(directory, mine)
    raise NotKnown(f'{clean(directory)} has the states of {len(names)} '
                   f'services. Name one with --host ([DEFAULT] host).')


def read(state_path: str = STATE_PATH, host: str | None = None
         ) -> dict[str, Any]:
    """The state that nova-compute wrote last.

    :param state_path: ``[DEFAULT] state_path`` of nova-compute
    :param host: its ``[DEFAULT] host``, see :func:`path`
    :raises NotKnown: there is none, or it cannot be read or understood
    """
    file = path(state_path, host)
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW |
                             os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, 'rb') as f:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotKnown(f'{clean(file)} is not a regular file.')
            text = f.read(_LARGEST + 1)
    except OSError as e:
        if e.errno == errno.ENOENT:
            raise NoFile(f'nova-compute has not written {clean(file)}. Has '
                         f'it started, with this driver?') from None
        raise NotKnown(f'{clean(file)} cannot be read: '
                       f'{e.strerror}.') from None
    try:
        state = json.loads(text) if len(text) <= _LARGEST else None
    except (ValueError, RecursionError):
        state = None
    if isinstance(state, dict) and type(state.get('version')) is int and (
            state['version'] > verdict.VERSION):
        raise NotKnown(f'{clean(file)} is of a newer nova-kvm-ext.')
    if not _fits(state, _SHAPE):
        raise NotKnown(f'{clean(file)} is not a state of nova-compute. '
                       'Restart nova-compute, which writes it again.')
    return state  # type: ignore[return-value]


def _fits(value: Any, shape: Any) -> bool:
    """Whether a value has all that a shape names."""
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(
            name in value and _fits(value[name], inner)
            for name, inner in shape.items())
    if isinstance(value, bool):
        return bool in (shape if isinstance(shape, tuple) else (shape,))
    if isinstance(value, _NUMBER):
        # Neither nan, nor what cannot be a process or a time.
        return isinstance(value, shape) and abs(value) < 1 << 53
    return isinstance(value, shape) and (
        not isinstance(value, str) or len(value) <= _LONGEST)


def judge_here(state: dict[str, Any], clock_now: float | None = None
               ) -> list[verdict.Part]:
    """Each part's health now, on this host."""
    return verdict.judge(
        state, clock() if clock_now is None else clock_now, boot_id(),
        process(state))


def unix(state: dict[str, Any], value: float) -> float:
    """A time of the state as seconds since 1970."""
    return state['written'] - state['clock'] + value


def clean(text: str) -> str:
    """Text from outside without what a terminal would obey."""
    return ''.join(char if char.isprintable() else '?'
                   for char in text[:_LONGEST])
