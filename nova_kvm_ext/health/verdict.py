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

"""What the state file of nova-compute says about the health of this host.

Pure. A probe runs this every few seconds, so nothing is imported that takes
more than a few milliseconds (no typing, no dataclasses).

Times are seconds of CLOCK_BOOTTIME (clock_gettime(2)), which no step of the
wall clock changes, and which is the same in every container of a host.
"""

from __future__ import annotations

import collections

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Mapping
    from typing import Any

DIRECTORY = 'kvm-ext-health'
"""Below [DEFAULT] state_path; it has a file for each [DEFAULT] host."""

VERSION = 1
"""Of the file. A new member does not change it, a new meaning does."""

PASS, WARN, FAIL, UNKNOWN = 'PASS', 'WARN', 'FAIL', 'UNKNOWN'

CODES = {PASS: 0, WARN: 1, FAIL: 2, UNKNOWN: 3}
"""See nova_kvm_ext.exit_codes."""

_WORST_FIRST = (FAIL, WARN, UNKNOWN, PASS)

NOVA_COMPUTE, LIBVIRT, PLACEMENT, HOST_CHECK = (
    'nova-compute', 'libvirt', 'Placement', 'host check')

START_LIMIT = 300
"""Seconds that nova-compute may take to start. Longer is a FAIL."""

LOOK_WARN, LOOK_LIMIT = 60, 120
"""Seconds that a check of this host may take: a WARN, a FAIL."""

SPARE = 60
"""Seconds that an update may be late."""

RUNS, STOPPED, ENDED, NOT_SEEN = 'runs', 'stopped', 'ended', ''
"""What the kernel says of the process; not seen from another container."""

Part = collections.namedtuple('Part', ('name', 'result', 'details'))
"""What is known of one part: its name, PASS, WARN, FAIL or UNKNOWN, and a
sentence."""

_SAFE = frozenset('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'
                  '0123456789._-~')


def file_name(host: str) -> str:
    """The name of the state file of a nova-compute.

    :param host: its ``[DEFAULT] host``
    """
    return 'of-' + ''.join(
        char if char in _SAFE else ''.join(
            f'%{byte:02X}' for byte in char.encode('utf-8', 'surrogateescape'))
        for char in host) + '.json'


def late(interval: float) -> tuple[float, float]:
    """Seconds since the last update after which it is a WARN, and a FAIL."""
    return interval + SPARE, 2 * interval + SPARE


def worst(parts: Iterable[Part]) -> str:
    """The result of all parts together."""
    found = {part.result for part in parts}
    return next((result for result in _WORST_FIRST if result in found),
                UNKNOWN)


def ordered(parts: Iterable[Part]) -> list[Part]:
    """The worst part first."""
    return sorted(parts, key=lambda part: _WORST_FIRST.index(part.result))


def judge(state: Mapping[str, Any], clock: float, boot_id: str,
          process: str) -> list[Part]:
    """Each part's health.

    :param state: what the file says, well-formed
    :param clock: now
    :param boot_id: of the kernel now, '' where not known
    :param process: RUNS, STOPPED, ENDED or NOT_SEEN
    """
    if boot_id and state['boot_id'] and boot_id != state['boot_id']:
        nova = Part(NOVA_COMPUTE, FAIL,
                    'it has not started since this host was booted')
        return [nova, *(Part(name, UNKNOWN, 'nova-compute does not run')
                        for name in (LIBVIRT, PLACEMENT, HOST_CHECK))]
    nova = _nova_compute(state, clock, process)
    parts = [nova, _libvirt(state, clock), _placement(state, clock),
             _host_check(state, clock)]
    if nova.result != FAIL:
        return parts
    # What was well when nova-compute last looked need not be so now.
    return [part if part.result != PASS else Part(
        part.name, UNKNOWN, f'before nova-compute failed: {part.details}')
        for part in parts]


def _nova_compute(state: Mapping[str, Any], clock: float,
                  process: str) -> Part:
    update = state['update']
    pid = state['process']['pid']
    if process == ENDED:
        return Part(NOVA_COMPUTE, FAIL, f'its process {pid} has ended; it '
                    f'wrote last {_ago(clock, state["clock"])}')
    if process == STOPPED:
        return Part(NOVA_COMPUTE, FAIL, f'its process {pid} is stopped, by a '
                    f'signal or a debugger')
    since = clock - state['since']
    if state['phase'] == 'starting':
        return Part(
            NOVA_COMPUTE, FAIL if since > START_LIMIT else WARN,
            f'it has been starting for {_seconds(since)}')
    began, finished = update['began'], update['finished']
    if began is not None and (finished is None or began > finished):
        lasts = clock - began
        if lasts > LOOK_WARN:
            return Part(
                NOVA_COMPUTE, FAIL if lasts > LOOK_LIMIT else WARN,
                f'its look at this host has lasted {_seconds(lasts)}: '
                f'libvirt or a file system does not answer')
    interval = state['interval']
    last = finished if finished is not None else state['since']
    said = ('last update ' if finished is not None else
            'no update yet, started ') + _ago(clock, last)
    if interval is None:
        return Part(NOVA_COMPUTE, PASS, f'it runs; {said}; whether it hangs '
                    f'is not known, because [DEFAULT] '
                    f'update_resources_interval switches updates off')
    warn, limit = late(interval)
    age = clock - last
    if age > warn:
        return Part(
            NOVA_COMPUTE, FAIL if age > limit else WARN,
            f'{said}, and one is due each {_seconds(interval)}: it hangs, or '
            f'libvirt, the message bus, nova-conductor or the database does '
            f'not answer')
    if update['error'] and state['libvirt']['answers'] is not False:
        good = update['succeeded']
        failing = clock - (good if good is not None else state['since'])
        return Part(NOVA_COMPUTE, FAIL if failing > limit else WARN,
                    f'its updates fail: {update["error"]}')
    return Part(NOVA_COMPUTE, PASS, f'it runs; {said}')


def _libvirt(state: Mapping[str, Any], clock: float) -> Part:
    libvirt, update = state['libvirt'], state['update']
    if libvirt['answers'] is None:
        return Part(LIBVIRT, UNKNOWN, 'it has not been asked yet')
    if not libvirt['answers']:
        return Part(LIBVIRT, FAIL, f'it does not answer, since '
                    f'{_seconds(clock - libvirt["since"])}: '
                    f'{libvirt["reason"]}')
    began, finished = update['began'], update['finished']
    if began is not None and (finished is None or began > finished) and (
            clock - began > LOOK_WARN):
        return Part(LIBVIRT, UNKNOWN, f'it was asked {_ago(clock, began)} '
                    f'and there is no answer so far')
    said = f'it answered {_ago(clock, libvirt["seen"])}'
    interval = state['interval']
    if interval is not None and clock - libvirt['seen'] > late(interval)[0]:
        return Part(LIBVIRT, UNKNOWN, f'{said}, and not since')
    return Part(LIBVIRT, PASS, said)


def _placement(state: Mapping[str, Any], clock: float) -> Part:
    """Nova asks Placement after each look at this host that succeeds."""
    answered, interval = state['placement']['answered'], state['interval']
    looked = state['update']['succeeded']
    if looked is not None and interval is not None:
        # Looks were made for so long without an answer; one may be on its
        # way.
        waits = looked - (state['since'] if answered is None else answered)
        if waits > 1.5 * interval:
            return Part(PLACEMENT, FAIL if waits > 2.5 * interval else WARN,
                        'it does not answer nova-compute' + (
                            '' if answered is None else
                            f', last {_ago(clock, answered)}'))
    if answered is None:
        return Part(PLACEMENT, UNKNOWN, 'it has not been asked yet')
    return Part(PLACEMENT, PASS, f'it answered {_ago(clock, answered)}')


def _host_check(state: Mapping[str, Any], clock: float) -> Part:
    check = state['host_check']
    if check['mode'] == 'off':
        return Part(HOST_CHECK, PASS,
                    'it is switched off by [kvm_ext] host_check')
    if check['at'] is None:
        return Part(HOST_CHECK, UNKNOWN, 'it has not run yet')
    if check['fault']:
        # With `warn` the operator has guests run all the same.
        return Part(HOST_CHECK, FAIL if check['mode'] == 'enforce' else WARN,
                    check['fault'])
    return Part(HOST_CHECK, PASS, f'{len(check["results"])} checks, no '
                f'failure {_ago(clock, check["at"])}')


def _seconds(seconds: float) -> str:
    return f'{max(0, seconds):.0f} s'


def _ago(clock: float, then: float) -> str:
    return f'{_seconds(clock - then)} ago'
