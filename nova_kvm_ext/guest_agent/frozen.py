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

"""Freezes and thaws one guest, for one or several operations.

A guest is recorded before it is frozen, and a freeze that fails is undone.
Several operations may need one guest frozen at a time
(:mod:`nova_kvm_ext.guest_agent.holds`); each learns whether the guest was
frozen until the operation's end.
"""

from collections.abc import Callable
import contextvars
import functools
import time
from typing import Any

from nova import conf as nova_conf
from nova import exception

from nova_kvm_ext import counters
from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import client
from nova_kvm_ext.guest_agent import counting
from nova_kvm_ext.guest_agent import counts
from nova_kvm_ext.guest_agent import holds
from nova_kvm_ext.guest_agent import ledger
from nova_kvm_ext.guest_agent import limits
from nova_kvm_ext.guest_agent import thaws
from nova_kvm_ext import log
from nova_kvm_ext.metrics import names

LOG = log.getLogger(__name__)
CONF = nova_conf.CONF

UNREADABLE = (SystemError, ValueError)
"""What libvirt-python makes of an error message that is not UTF-8, which a
guest can write. Nova does not expect it."""


class Frozen:
    """The guests of a host that are frozen, or may be.

    :param host: nova.virt.libvirt.host.Host
    :ivar holds: which operations need which guest frozen
    :ivar thaws: thaws guests that nobody else is going to thaw
    """

    def __init__(self, host: Any, time_limits: limits.Limits) -> None:
        self._host = host
        self._limits = time_limits
        self.holds = holds.Holds()
        self.thaws = thaws.Thaws(host, time_limits)
        # Each thread and greenlet has its own.
        self._counted: contextvars.ContextVar[Any] = (
            contextvars.ContextVar('counted', default=None))
        self._thawing: contextvars.ContextVar[Any] = (
            contextvars.ContextVar('thawing', default=None))

    def _count(self, command: Callable[[], Any]) -> int | None:
        """Have Nova freeze or thaw: how many file systems, if it is known."""
        self._counted.set(None)
        command()
        return counts.number(self._counted.get())

    def acquire(self, uuid: str, domain: Any,
                freeze: Callable[[], Any] | None = None,
                lasting: bool = False, version: bool = False) -> holds.Hold:
        """Have a guest frozen, by this operation or by another one.

        :param freeze: Nova's, None for libvirt's own
        :param lasting: of :class:`holds.Hold`
        :param version: whether the agent is asked for its version before it
            is told to freeze
        :raises nova.exception.InstanceQuiesceFailed: it is not frozen
        """
        try:
            hold, first = self.holds.take(
                uuid, lasting, limits.WAIT_FOR_ANOTHER)
            # Somebody else may have thawed it, or it was reset.
            if not first and self.is_frozen(domain) is False:
                first = self.holds.again(hold, limits.WAIT_FOR_ANOTHER)
        except holds.NotFrozen as e:
            raise exception.InstanceQuiesceFailed(reason=str(e)) from None
        if first:
            self._freeze(
                hold, domain,
                freeze or (lambda: self._counted.set(domain.fsFreeze())),
                version)
        return hold

    def _freeze(self, hold: holds.Hold, domain: Any,
                freeze: Callable[[], Any], version: bool) -> None:
        """Recorded before, undone if it fails.

        :raises nova.exception.NovaException: the agent does not answer, the
            guest is frozen already, it cannot be recorded, or it is not
            wanted any more
        """
        state = hold.freeze
        state.domain = domain
        try:
            if state.entry is None:
                # One that froze late, perhaps.
                self.thaws.settle_one(state.uuid)
            state.foreign = self._frozen_by_others(domain)
            if version:
                state.version = self._version(domain)
            if not state.foreign:
                if state.entry is None:
                    state.entry = self.enter(
                        state.uuid, 'snapshot of its volumes' if hold.lasting
                        else 'snapshot')
                # Undone when the guest is thawed: it is not to wait for that.
                state.limit.enter_context(self._limits.patience(
                    domain, limits.VOLUME_FREEZE_TIMEOUT if hold.lasting
                    else client.FREEZE_TIMEOUT))
                state.asked = time.monotonic()
                state.count = self._count(freeze)
            elif hold.lasting:
                raise exception.InstanceQuiesceFailed(
                    reason='the guest is frozen already; nova-kvm-ext agent '
                    'thaw thaws it')
            wanted = self.holds.frozen(state)
        except limits.libvirt().libvirtError as e:
            self.holds.failed(state, errors.clean(e))
            self._undo(state)
            raise exception.InstanceQuiesceFailed(
                reason=errors.clean(e)) from None
        except BaseException as e:
            # However it ends: the freeze may be on its way, or the guest
            # frozen and the answer lost.
            self.holds.failed(state, why(e))
            self._undo(state)
            raise
        if not wanted:
            self._undo(state)
        if not hold.held:
            raise exception.InstanceQuiesceFailed(
                reason='it was to be thawed before it was frozen')

    def _frozen_by_others(self, domain: Any) -> bool:
        """Whether another program has frozen the guest, and is to thaw it.

        :raises nova.exception.InstanceQuiesceFailed: the agent does not
            answer: then no freeze is sent, which could come late
        """
        try:
            return self._limits.agent(domain).says_frozen() is True
        except errors.AgentError as e:
            raise exception.InstanceQuiesceFailed(reason=str(e)) from None

    def _version(self, domain: Any) -> str:
        """The agent's, as the agent says; '' where it does not say.

        :raises nova.exception.InstanceQuiesceFailed: the agent does not
            answer: then no freeze is sent, which could come late
        """
        try:
            return self._limits.agent(domain).info().version
        except errors.AgentError as e:
            if e.fault in (errors.AgentFault.UNSUPPORTED,
                           errors.AgentFault.REFUSED,
                           errors.AgentFault.NONSENSE):
                return ''
            raise exception.InstanceQuiesceFailed(reason=str(e)) from None

    def is_frozen(self, domain: Any) -> bool | None:
        """By the agent's word; None where it does not say."""
        try:
            return self._limits.agent(domain, min(
                limits.STATUS_TIMEOUT, CONF.kvm_ext.guest_agent_timeout)
            ).says_frozen()
        except errors.AgentError as e:
            if e.fault is errors.AgentFault.NO_GUEST:
                return False
            return None

    def _stood(self, hold: holds.Hold) -> bool | None:
        """Whether the guest is still frozen, None if not known."""
        try:
            domain = self._host.get_connection().lookupByUUIDString(
                hold.freeze.uuid)
        except (exception.NovaException, limits.libvirt().libvirtError) as e:
            gone = errors.libvirt_error_code(e) == (
                limits.libvirt().VIR_ERR_NO_DOMAIN)
            return False if gone else None
        return self.is_frozen(domain)

    def release(self, hold: holds.Hold,
                thaw: Callable[[], Any] | None = None,
                timeout: float = client.THAW_TIMEOUT) -> bool | None:
        """Need a guest frozen no longer: the last one thaws.

        The thaw's own answer tells whether the guest was frozen until then.
        The agent is asked before only where there is no such answer: a guest
        that waits is not to wait for a question.

        :param thaw: Nova's, None for ours
        :param timeout: seconds for ours
        :returns: whether the guest was frozen until now, None if not known
        :raises nova.exception.InstanceQuiesceFailed: it is not thawed
        """
        freeze = hold.freeze
        if not hold.held:
            hold.stood = False
        if freeze.answered is None:
            # Perhaps by another operation, which found the guest thawed.
            if self.holds.release(hold):
                self._end(freeze, None, thaw, timeout)
            LOG.info('Instance %s is being frozen, and is thawed as soon as '
                     'that ends.', freeze.uuid)
            return hold.stood
        counted = bool(freeze.count) and not freeze.foreign
        last = counted and self.holds.release_last(hold)
        try:
            if not last and hold.stood is None:
                # While others hold it, too, or it is held by this one.
                hold.stood = self._stood(hold)
        finally:
            if last or self.holds.release(hold):
                hold.stood = self._end(
                    freeze, hold.stood, thaw, timeout, counted)
        return hold.stood

    def release_quietly(self, hold: holds.Hold,
                        timeout: float = client.THAW_TIMEOUT) -> bool | None:
        """The same, where a thaw that fails is no reason to fail."""
        try:
            return self.release(hold, timeout=timeout)
        except exception.InstanceQuiesceFailed:
            # Said, and written down.
            return None

    def _end(self, freeze: holds.Freeze, stood: bool | None,
             thaw: Callable[[], Any] | None, timeout: float,
             counted: bool = False) -> bool | None:
        """Thaw a guest that nobody needs frozen.

        :param stood: whether the guest was frozen until now
        :param counted: whether the number of the thaw tells that, too
        :returns: the same, with what the thaw told
        :raises nova.exception.InstanceQuiesceFailed: it is not thawed
        """
        def judged(thawed: int | None, again: bool = False) -> bool | None:
            nonlocal stood
            if stood is not False and counted and freeze.count:
                told = counts.stood(freeze.count, thawed, again)
                stood = stood if told is None else told
            return stood

        reason, again = 'see the log', False
        if thaw is not None and not freeze.foreign:
            try:
                thawed = self._count(thaw)
            except (exception.NovaException, *UNREADABLE) as e:
                reason, again = why(e), True
                LOG.warning('KVML409 Instance %s is not thawed at once: %s',
                            freeze.uuid, reason)
            except BaseException:
                self._undo(freeze, timeout)
                raise
            else:
                self._thawed(freeze, judged(thawed))
                return stood
        if not self._undo(freeze, timeout, functools.partial(
                judged, again=again)):
            raise for_tenants(reason)
        return stood

    def _undo(self, freeze: holds.Freeze,
              timeout: float = client.THAW_TIMEOUT,
              stood: Callable[[int], bool | None] = lambda thawed: None
              ) -> bool:
        """Thaw a guest that we froze, or tried to; True if it is thawed.

        :param stood: whether the guest was frozen until now, by how many file
            systems this thawed
        """
        entry = freeze.entry
        if entry is None:
            # Never sent, or another program's.
            self._over(freeze)
            return True
        try:
            thawed = self.thaws.thaw(
                freeze.uuid, timeout, domain=freeze.domain)
        except errors.AgentError as e:
            if self.thaws.needless(freeze.uuid, e):
                self.thaws.remove(entry)
                self._over(freeze)
                stood(0)
                return True
            # Unlocked, it is what settle() looks for.
            self.thaws.leave(entry)
            self._over(freeze)
            LOG.error('KVML405 Instance %s may be frozen: %s It is tried '
                      'again every [DEFAULT] update_resources_interval, and '
                      'when this service starts.', freeze.uuid, e)
            return False
        except BaseException:
            # Nova tells the message bus of a connection that it cannot make,
            # and that may fail in its own way. settle() must find the guest.
            self.thaws.leave(entry)
            self._over(freeze)
            raise
        self._thawed(freeze, stood(thawed))
        return True

    def _thawed(self, freeze: holds.Freeze, stood: bool | None) -> None:
        """The agent says that a guest is thawed."""
        now = freeze.thawed = time.monotonic()
        if freeze.entry is not None:
            self.thaws.remove(freeze.entry)
        answered = freeze.answered
        self._over(freeze)
        if answered is None:
            LOG.info('Instance %(uuid)s is not frozen, %(time).2f s after a '
                     'freeze that failed was sent.',
                     {'uuid': freeze.uuid, 'time': now - freeze.asked})
        elif stood is not False:
            counters.COUNTERS.observe(names.FREEZES, now - answered)
            LOG.info('Instance %(uuid)s was frozen for %(frozen).2f s, after '
                     'a freeze that took %(freeze).2f s.',
                     {'uuid': freeze.uuid, 'frozen': now - answered,
                      'freeze': answered - freeze.asked})

    def _over(self, freeze: holds.Freeze) -> None:
        self.holds.over(freeze)
        freeze.limit.close()

    def enter(self, uuid: str, purpose: str) -> ledger.Entry:
        try:
            return self.thaws.book.enter(uuid, purpose)
        except ledger.Held:
            raise exception.InstanceQuiesceFailed(
                reason='it is being frozen or thawed already') from None
        except OSError as e:
            raise exception.InstanceQuiesceFailed(
                reason='a guest is frozen only when that could be recorded '
                f'under [DEFAULT] state_path ({errors.clean(e)})'
            ) from e

    # Nova's own commands.

    def counting(self, driver: Any) -> counting.CountingDriver:
        """A driver whose freeze, or thaw, tells how many file systems."""
        return counting.CountingDriver(
            driver, self._counted.set, self._thawing.get())

    def under_limit(self, instance: Any, thaw: Callable[[], Any],
                    domain: Any = None) -> Callable[[], Any]:
        """Nova's thaw with the time that a thaw has.

        :param domain: the guest's, where it is known: a guest that waits is
            not to wait until Nova has asked libvirt for it
        """
        def limited() -> None:
            with self._limits.patience(
                    domain or self._host.get_guest(instance)._domain,
                    client.THAW_TIMEOUT):
                token = self._thawing.set(domain)
                try:
                    thaw()
                finally:
                    self._thawing.reset(token)

        return limited


def for_tenants(reason: str) -> exception.InstanceQuiesceFailed:
    """What Nova is told, and shows as the fault of the instance."""
    return exception.InstanceQuiesceFailed(
        reason=errors.without_paths(reason))


def why(error: BaseException) -> str:
    """Why a freeze or thaw failed, without Nova's words before it.

    The guest's own words may be in it.
    """
    if isinstance(error, exception.InstanceQuiesceFailed):
        return errors.clean(error.kwargs.get('reason') or error)
    return errors.clean(error) or type(error).__name__
