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

"""Loggers that add a code to each warning and suppress repeated messages.

Write a message of level WARNING or above as follows::

    LOG = log.getLogger(__name__)
    LOG.warning('KVML403 The snapshot is not quiesced: %s', reason,
                instance=instance)

The code is a row of :mod:`nova_kvm_ext.log_codes`. A result of the host check
has its own code instead. The unit test ``test_log_codes`` checks both.

A message that repeats another one within a minute is suppressed. Callers need
do nothing for that. If the text about one subject varies, name the subject:
``subject=mac``.
"""

from collections.abc import Callable
import logging
import re
import threading
import time
from typing import Any

from oslo_context import context
from oslo_log import log as oslo_logging

from nova_kvm_ext import log_codes

CODE = re.compile(r'\bKVML?[0-9]{3}\b')
"""A code of ours, or one of the host check."""

QUIET = 60
"""Seconds for which a thing that was said is not said again, at first."""

LONGEST_QUIET = 3600
"""The same for a thing that continues: the time doubles up to this."""

KEPT = 2000
"""How many things are remembered. Beyond it the one that was seen least
recently is forgotten, and said again when it comes back."""


_listeners: list[Callable[[str], None]] = []


def listen(told: Callable[[str], None]) -> None:
    """Have a function told the code of each message, repeated ones too.

    :param told: called in the thread that logs; must not raise, and is taken
        once however often it is given
    """
    if told not in _listeners:
        _listeners.append(told)


def _tell(record: logging.LogRecord) -> None:
    """Tell who listens which code a message has.

    A code stands at the beginning, in the text or as its first argument.
    """
    if not _listeners:
        return
    try:
        found = CODE.search(str(record.msg)) or CODE.search(
            record.getMessage())
    except Exception:
        # Wrong arguments: the handler that formats the record says so.
        return
    if found:
        for told in _listeners:
            told(found[0])


class _Said:
    """A thing that was said, in seconds of the clock."""

    __slots__ = ('at', 'left_out', 'quiet', 'seen')

    def __init__(self, now: float, quiet: float) -> None:
        self.at = self.seen = now
        self.quiet = quiet
        self.left_out = 0


class Repeats(logging.Filter):
    """Leaves out a warning that says the same as one before.

    It is said at once, again after :data:`QUIET` seconds if it continues, then
    after twice as long, and so on. The next one that is said has the number
    of those left out. With debug logging these are written at level DEBUG.

    The same thing is the same code, with the same instance and the same
    ``subject``, or text where there is none. For a code that is said ``each``
    request it is also the same request: two snapshots are two things.

    :param quiet: the first time in seconds; 0 leaves nothing out
    :param clock: a clock in seconds that never goes back
    """

    def __init__(self, quiet: float = QUIET,
                 clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.quiet = quiet
        self._clock = clock
        self._lock = threading.Lock()
        self._said: dict[tuple[Any, ...], _Said] = {}

    def __len__(self) -> int:
        return len(self._said)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written; it may be changed."""
        if record.levelno < logging.WARNING:
            return True
        _tell(record)
        if not self.quiet:
            return True
        try:
            key = _key(record)
        except Exception:
            # Wrong arguments: the handler that formats the record says so.
            return True
        left_out, seconds = self._count(key)
        if left_out is None:
            record.levelno = logging.DEBUG
            record.levelname = logging.getLevelName(logging.DEBUG)
            return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)
        if left_out:
            record.msg = (f'{record.msg} (left out in the last {seconds:.0f} '
                          f's: {left_out} more of this)')
        return True

    def _count(self, key: tuple[Any, ...]) -> tuple[int | None, float]:
        """How many were left out before this one; None if this one is too.

        And the seconds since the last one that was said.
        """
        now = self._clock()
        with self._lock:
            said = self._said.pop(key, None)
            if said is None:
                while len(self._said) >= KEPT:
                    # The order is that of the last look.
                    del self._said[next(iter(self._said))]
                self._said[key] = _Said(now, self.quiet)
                return 0, 0
            self._said[key] = said
            goes_on = now - said.seen < 2 * said.quiet
            said.seen = now
            if now - said.at < said.quiet:
                said.left_out += 1
                return None, 0
            left_out, seconds = said.left_out, now - said.at
            said.at, said.left_out = now, 0
            said.quiet = (min(2 * said.quiet, LONGEST_QUIET) if goes_on
                          else self.quiet)
            return left_out, seconds


def _key(record: logging.LogRecord) -> tuple[Any, ...]:
    """What the record is about."""
    text = record.getMessage()
    found = CODE.search(text)
    code = found[0] if found else ''
    # oslo.log takes either.
    instance = (getattr(record, 'instance', None) or
                getattr(record, 'instance_uuid', None))
    row = log_codes.BY_CODE.get(code)
    request = (context.get_current() if row is not None and row.each_request
               else None)
    return (code, getattr(instance, 'uuid', instance),
            getattr(record, 'subject', text),
            getattr(request, 'request_id', None))


REPEATS = Repeats()
"""What this process has said: by every module of the package."""


def getLogger(name: str) -> oslo_logging.BaseLoggerAdapter:
    """oslo.log's logger of that name, which does not repeat itself.

    :param name: the module's
    """
    found = oslo_logging.getLogger(name)
    found.logger.addFilter(REPEATS)
    return found
