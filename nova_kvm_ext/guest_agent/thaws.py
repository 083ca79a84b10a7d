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

"""Thaws guests that may have been left frozen.

These are guests that a service froze before it died, that froze after their
freeze had timed out, or that could not be reached for a thaw. They are in the
ledger, without a lock.

Nova's periodic work calls this, so it is short: an agent has at most two
seconds, an agent that timed out before has one and is tried less and less
often, and the whole call ends after a few seconds, for any number of guests.

Guests are thawed one after the other: the ledger only has guests whose
snapshots were running ([DEFAULT] max_concurrent_snapshots, five), an agent
that answers thaws in milliseconds, and each agent that hangs would hold one of
the five calls that libvirt accepts from Nova's connection at a time
(max_client_requests).
"""

from collections.abc import Callable
import dataclasses
import time
from typing import Any

from nova import conf as nova_conf
from nova import exception

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import client
from nova_kvm_ext.guest_agent import ledger
from nova_kvm_ext.guest_agent import limits
from nova_kvm_ext import log

LOG = log.getLogger(__name__)
CONF = nova_conf.CONF

SETTLE_TIME = 3
"""Seconds after which one round begins with no other guest."""

FIRST_TIMEOUT = 2
"""Seconds for the first thaw of a guest in a round. A thaw that was sent and
not answered in time may be at work: the next round sees that."""

NEXT_TIMEOUT = 1
"""Seconds for each thaw after one that was not answered in time."""

SYNC_TIMEOUT = 1
"""Seconds in which an agent must answer libvirt that it listens."""

BACK_OFF = 60
"""Seconds without a try after an agent let one pass; doubled each time."""

LONGEST_BACK_OFF = 600
"""Seconds between two tries at most: an agent may come back."""


@dataclasses.dataclass
class _Failure:
    """Thaws of a guest that failed.

    :ivar slow: how many in sequence cost time
    :ivar due: not before this is it tried again (time.monotonic)
    """

    slow: int = 0
    due: float = 0


class Thaws:
    """Thaws what the ledger has.

    :param host: nova.virt.libvirt.host.Host
    """

    def __init__(self, host: Any, time_limits: limits.Limits) -> None:
        self._host = host
        self._limits = time_limits
        # By instance UUID; those that the ledger no longer has are dropped.
        self._failures: dict[str, _Failure] = {}

    @property
    def book(self) -> ledger.Ledger:
        return ledger.Ledger(CONF.state_path, CONF.host)

    def settle(self, busy: Callable[[str], bool]) -> None:
        """Thaw those whose turn it is, within a few seconds.

        :param busy: whether an operation of this service handles a guest
        """
        started = time.monotonic()
        try:
            left = self.book.left_behind()
        except OSError as e:
            LOG.error('KVML410 Guests that were left frozen cannot be found: '
                      '%s. Check the directory and its permissions.',
                      errors.clean(e))
            return
        for uuid in self._failures.keys() - set(left):
            self._failures.pop(uuid, None)
        nothing = _Failure()
        # Those that cost time come last.
        for uuid in sorted(left, key=lambda uuid: dataclasses.astuple(
                self._failures.get(uuid, nothing))):
            if time.monotonic() - started > SETTLE_TIME:
                LOG.warning('KVML411 More guests may have been left frozen; '
                            'the rest follows in the next update.')
                break
            failure = self._failures.get(uuid, nothing)
            if busy(uuid) or failure.due > started:
                continue
            self.settle_one(uuid, NEXT_TIMEOUT if failure.slow
                            else FIRST_TIMEOUT)

    def settle_one(self, uuid: str, timeout: float = client.THAW_TIMEOUT
                   ) -> None:
        """Thaw a guest of the ledger, unless a program holds it.

        :param timeout: seconds for the agent's answer
        """
        try:
            entry = self.book.take(uuid)
        except ledger.Held:
            return
        except OSError as e:
            LOG.error('KVML412 Instance %s may have been left frozen, but '
                      'what was recorded of it cannot be read: %s. Remove it.',
                      uuid, errors.clean(e))
            return
        if entry is None:
            return
        started = time.monotonic()
        try:
            count = self.thaw(uuid, timeout, SYNC_TIMEOUT)
        except errors.AgentError as e:
            if self.needless(uuid, e):
                self.remove(entry)
                return
            entry.release()
            # Said aloud the first time only: an agent may hang for weeks.
            (LOG.debug if uuid in self._failures else LOG.error)(
                'KVML405 Instance %s may have been left frozen (%s): %s It is '
                'tried again.', uuid, errors.clean(entry.text), e)
            self._failed(uuid, time.monotonic() - started)
            return
        except BaseException:
            entry.release()
            raise
        self.remove(entry)
        if count:
            LOG.warning('KVML413 Instance %s was left frozen (%s) and is '
                        'thawed.',
                        uuid, errors.clean(entry.text))
        else:
            LOG.info('Instance %s is not frozen, as it might have been (%s).',
                     uuid, errors.clean(entry.text))

    @staticmethod
    def leave(entry: ledger.Entry) -> None:
        """Have :meth:`settle` find a guest that was not thawed at once.

        The next round tries it, without any back-off: an agent that was given
        up often freezes late, and answers then.
        """
        entry.release()

    def _failed(self, uuid: str, seconds: float) -> None:
        """Try it again: soon where libvirt said no at once, later if not.

        A guest that is paused, or whose agent is not connected, costs nothing
        to ask, and is to be thawed as soon as that is over.
        """
        failure = self._failures.setdefault(uuid, _Failure())
        if seconds < NEXT_TIMEOUT / 2:
            return
        failure.slow += 1
        failure.due = time.monotonic() + min(
            LONGEST_BACK_OFF, BACK_OFF * 2 ** (min(failure.slow, 10) - 1))

    def forget(self, uuid: str) -> None:
        """The guest is thawed: so whatever the ledger has of it is done."""
        try:
            entry = self.book.take(uuid)
        except (ledger.Held, OSError):
            return
        if entry is not None:
            self.remove(entry)

    def remove(self, entry: ledger.Entry) -> None:
        """The guest is thawed, or cannot be frozen."""
        self._failures.pop(entry.uuid, None)
        try:
            entry.remove()
        except OSError as e:
            LOG.warning('KVML414 Instance %s is thawed, and it cannot be '
                        'recorded: %s. It will be thawed once more, which '
                        'does no harm.', entry.uuid, errors.clean(e))

    def needless(self, uuid: str, error: errors.AgentError) -> bool:
        """Whether a thaw that failed was not needed."""
        if error.fault in (errors.AgentFault.UNSUPPORTED,
                           errors.AgentFault.NO_CHANNEL):
            # What cannot thaw cannot have frozen either.
            return True
        try:
            domain = self._host.get_connection().lookupByUUIDString(uuid)
            # One that was suspended to disk wakes up as it was.
            return not domain.isActive() and not domain.hasManagedSaveImage(0)
        except (exception.NovaException, limits.libvirt().libvirtError) as e:
            return errors.libvirt_error_code(e) == (
                limits.libvirt().VIR_ERR_NO_DOMAIN)

    def thaw(self, uuid: str, timeout: float = client.THAW_TIMEOUT,
             sync: float | None = None, domain: Any = None) -> int:
        """Thaw a guest, also one that another program froze.

        :param timeout: seconds for the agent's answer
        :param sync: seconds in which it must answer libvirt that it listens
        :param domain: the guest's, where it is known: a guest that waits is
            not to wait until it has been looked up
        :returns: how many file systems were thawed
        :raises errors.AgentError: it may still be frozen
        """
        if domain is not None:
            try:
                return self._limits.agent(domain).thaw(timeout)
            except errors.AgentError as e:
                # It may be of a connection that has broken since.
                if e.fault is not errors.AgentFault.LIBVIRT:
                    raise
        try:
            domain = self._host.get_connection().lookupByUUIDString(uuid)
        except (exception.NovaException, limits.libvirt().libvirtError) as e:
            gone = errors.libvirt_error_code(e) == (
                limits.libvirt().VIR_ERR_NO_DOMAIN)
            raise errors.AgentError(
                errors.clean(e), fault=errors.AgentFault.NO_GUEST if gone
                else errors.AgentFault.LIBVIRT) from None
        if sync is None:
            return self._limits.agent(domain).thaw(timeout)
        with self._limits.exactly(domain, sync):
            return self._limits.agent(domain, timeout).thaw(timeout)
