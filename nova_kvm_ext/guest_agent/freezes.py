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

"""No guest stays frozen: around Nova's freezes and thaws.

Nova gives both commands. :class:`Freezes` writes a guest down before it is
frozen and sees that it is thawed, whatever fails between the two, the service
itself included. Several operations may need one guest frozen at a time
(:mod:`nova_kvm_ext.guest_agent.holds`); each learns whether the guest was
frozen until its end.

No thread and no timer of its own: what cannot be settled at once is tried
again when Nova next asks for the host's resources
(:mod:`nova_kvm_ext.guest_agent.thaws`).
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
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
from nova_kvm_ext.guest_agent import operations
from nova_kvm_ext.guest_agent import thaws
from nova_kvm_ext import log
from nova_kvm_ext.metrics import names
from nova_kvm_ext.storage import consistency

LOG = log.getLogger(__name__)
CONF = nova_conf.CONF

UNREADABLE = (SystemError, ValueError)
"""What libvirt-python makes of an error message that is not UTF-8, which a
guest can write. Nova does not expect it."""


class Freezes:
    """The guests of a host that are frozen, or may be.

    :param host: nova.virt.libvirt.host.Host
    """

    def __init__(self, host: Any, time_limits: limits.Limits) -> None:
        self._host = host
        self._limits = time_limits
        self._holds = holds.Holds()
        self._thaws = thaws.Thaws(host, time_limits)
        # Each thread and greenlet has its own.
        self._operation: contextvars.ContextVar[
            operations.Operation | None] = contextvars.ContextVar(
                'operation', default=None)
        self._counted: contextvars.ContextVar[Any] = (
            contextvars.ContextVar('counted', default=None))
        self._thawing: contextvars.ContextVar[Any] = (
            contextvars.ContextVar('thawing', default=None))

    # What Nova calls.

    def quiesce(self, instance: Any, required: bool, check: Callable[[], Any],
                freeze: Callable[[], Any]) -> None:
        """Freeze a guest, or see that it is frozen already.

        In a live snapshot Nova continues without the freeze, whatever the
        image says. Where it is required, Nova is told that it froze: it then
        puts its mirror and its domain in order before it thaws, and
        :meth:`unquiesce` raises the error. That is before the copy is
        converted and uploaded.

        :param required: the image's os_require_quiesce
        :param check: Nova's, whether the guest can be frozen
        :param freeze: Nova's freeze
        :raises nova.exception.NovaException: the guest is not frozen
        """
        operation = self._current(instance)
        if operation is not None:
            operation.asked = True
        try:
            check()
            hold = self.acquire(
                instance.uuid, self._host.get_guest(instance)._domain, freeze,
                lasting=operation is None, version=operation is not None)
        except (exception.NovaException, *UNREADABLE) as e:
            no_agent = isinstance(e, (exception.QemuGuestAgentNotEnabled,
                                      exception.InstanceQuiesceNotSupported))
            if operation is not None:
                operation.listens = not no_agent
            reason = why(e)
            what = 'guest' if operation is None else 'snapshot'
            if required:
                LOG.error('KVML402 The snapshot fails, because the image says '
                          'os_require_quiesce and the guest is not quiesced: '
                          '%s', reason, instance=instance)
            else:
                LOG.warning('KVML403 The %s is not quiesced: %s', what, reason,
                            instance=instance)
            if required and operation is not None and operation.late:
                operation.failure = errors.without_paths(reason)
                return
            if no_agent:
                raise
            raise for_tenants(reason) from None
        if hold.freeze.count == 0:
            LOG.warning('KVML403 It is not known whether the snapshot is '
                        'quiesced: %s', consistency.Reason.NOTHING.value,
                        instance=instance)
        if operation is not None:
            operation.hold = hold
            operation.required = required
            operation.was_frozen = True
            operation.version = hold.freeze.version
            operation.count = hold.freeze.count

    def unquiesce(self, instance: Any, thaw: Callable[[], Any]) -> None:
        """Thaw a guest, unless another operation needs it frozen.

        An operation that has ended it already learns nothing new.

        :param thaw: Nova's thaw
        :raises nova.exception.InstanceQuiesceFailed: what was kept for
            later; the guest is not thawed; or it was not frozen all
            the time, and that is required
        """
        uuid = instance.uuid
        operation = self._current(instance)
        if operation is None:
            hold = self._holds.lasting(uuid)
        elif operation.failure:
            reason, operation.failure = operation.failure, ''
            raise exception.InstanceQuiesceFailed(reason=reason)
        elif operation.hold is None and operation.was_frozen:
            # Thawed as soon as it could be.
            return
        else:
            hold, operation.hold = operation.hold, None
        if hold is None:
            self._thaw_of_nobody(instance, thaw)
            return
        frozen_at = max(hold.since, hold.freeze.answered or hold.since)
        try:
            stood = self._release(hold, self._under_limit(
                instance, thaw, hold.freeze.domain))
        finally:
            if operation is not None:
                operation.stood = hold.stood
        if operation is None:
            if stood is False:
                LOG.error('KVML404 The guest did not stay frozen until its '
                          'snapshot was done. Do not rely on that snapshot.',
                          instance=instance)
            return
        operation.seconds = (
            hold.freeze.thawed or time.monotonic()) - frozen_at
        if stood is False and operation.late:
            reason = consistency.Reason.THAWED.value
            if operation.required:
                LOG.error('KVML402 The snapshot fails, because the image says '
                          'os_require_quiesce, and the guest did not stay '
                          'frozen.', instance=instance)
                raise exception.InstanceQuiesceFailed(reason=reason)
            LOG.warning('KVML403 The snapshot is not quiesced: %s', reason,
                        instance=instance)

    def _thaw_of_nobody(self, instance: Any, thaw: Callable[[], Any]) -> None:
        """Nova thaws a guest that no operation here has frozen for it."""
        uuid = instance.uuid
        if self._holds.known(uuid):
            LOG.info('The guest stays frozen for another snapshot.',
                     instance=instance)
            return
        try:
            self._under_limit(instance, thaw)()
        except (exception.NovaException, *UNREADABLE) as e:
            raise for_tenants(why(e)) from None
        # Perhaps frozen by a service that has been killed since.
        self._thaws.forget(uuid)

    def _under_limit(self, instance: Any, thaw: Callable[[], Any],
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

    @contextlib.contextmanager
    def operating(self, instance: Any, late: bool = False
                  ) -> Iterator[operations.Operation]:
        """Around a snapshot: afterwards it keeps no guest frozen.

        :param late: of :class:`operations.Operation`
        """
        operation = operations.Operation(instance.uuid, late)
        token = self._operation.set(operation)
        try:
            yield operation
        finally:
            self._operation.reset(token)
            if operation.hold is not None:
                self.release_quietly(operation.hold)
            # A freeze whose answer came late may have come to its end now.
            if not self._holds.known(operation.uuid):
                self._thaws.settle_one(operation.uuid)

    def arrived(self, instance: Any, guest: Any) -> bool:
        """A guest has come here by live migration: was it frozen before?

        The source host, which froze the guest, cannot thaw it now. Nova's
        API, if it was that, thaws it here; if not, :meth:`settle` does.
        """
        if self._is_frozen(guest._domain) is not True:
            return False
        LOG.warning('KVML406 The guest was frozen when it migrated here. The '
                    'driver thaws it in %d s if it is still frozen then.',
                    limits.VOLUME_FREEZE_LIMIT,
                    instance=instance)
        try:
            hold, first = self._holds.take(instance.uuid, True, 0)
        except holds.NotFrozen:
            return True
        if first:
            try:
                hold.freeze.entry = self._enter(
                    instance.uuid, 'frozen before it migrated here')
            except exception.InstanceQuiesceFailed as e:
                LOG.error('KVML407 %s', why(e), instance=instance)
            self._holds.frozen(hold.freeze)
        return True

    def settle(self) -> None:
        """Thaw what nobody else is going to.

        Guests of :mod:`nova_kvm_ext.guest_agent.thaws`, and those whose
        snapshot does not end.
        """
        for hold in self._holds.expired(
                limits.SNAPSHOT_FREEZE_LIMIT, limits.VOLUME_FREEZE_LIMIT):
            uuid = hold.freeze.uuid
            limit = (limits.VOLUME_FREEZE_LIMIT if hold.lasting else
                     limits.SNAPSHOT_FREEZE_LIMIT)
            stood = self.release_quietly(hold, thaws.FIRST_TIMEOUT)
            if stood is False:
                # It has been stopped, or has moved to another host.
                LOG.info('Instance %s, which was frozen more than %d s ago '
                         'for a snapshot, is not frozen any more.',
                         uuid, limit)
            else:
                LOG.warning(
                    'KVML408 Instance %s was frozen more than %d s ago for a '
                    'snapshot that has not ended. It was told to thaw. Do not '
                    'rely on that snapshot.', uuid, limit)
        self._thaws.settle(self._holds.known)

    def since(self, uuid: str) -> float | None:
        """Since when a guest is recorded as frozen, in Unix time."""
        written = self._thaws.book.written().get(uuid)
        return None if written is None else written[0]

    # How a guest is frozen and thawed.

    def counting(self, driver: Any) -> counting.CountingDriver:
        """A driver whose freeze, or thaw, tells how many file systems."""
        return counting.CountingDriver(
            driver, self._counted.set, self._thawing.get())

    def _count(self, command: Callable[[], Any]) -> int | None:
        """Have Nova freeze or thaw: how many file systems, if it is known."""
        self._counted.set(None)
        command()
        return counts.number(self._counted.get())

    def _current(self, instance: Any) -> operations.Operation | None:
        operation = self._operation.get()
        return (operation if operation is not None and
                operation.uuid == instance.uuid else None)

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
            hold, first = self._holds.take(
                uuid, lasting, limits.WAIT_FOR_ANOTHER)
            # Somebody else may have thawed it, or it was reset.
            if not first and self._is_frozen(domain) is False:
                first = self._holds.again(hold, limits.WAIT_FOR_ANOTHER)
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
                self._thaws.settle_one(state.uuid)
            state.foreign = self._frozen_by_others(domain)
            if version:
                state.version = self._version(domain)
            if not state.foreign:
                if state.entry is None:
                    state.entry = self._enter(
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
            wanted = self._holds.frozen(state)
        except limits.libvirt().libvirtError as e:
            self._holds.failed(state, errors.clean(e))
            self._undo(state)
            raise exception.InstanceQuiesceFailed(
                reason=errors.clean(e)) from None
        except BaseException as e:
            # However it ends: the freeze may be on its way, or the guest
            # frozen and the answer lost.
            self._holds.failed(state, why(e))
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

    def _is_frozen(self, domain: Any) -> bool | None:
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
        return self._is_frozen(domain)

    def _release(self, hold: holds.Hold,
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
        if freeze.answered is None:
            if self._holds.release(hold):
                self._end(freeze, None, thaw, timeout)
            LOG.info('Instance %s is being frozen, and is thawed as soon as '
                     'that ends.', freeze.uuid)
            return None
        if not hold.held:
            hold.stood = False
        counted = bool(freeze.count) and not freeze.foreign
        last = counted and self._holds.release_last(hold)
        try:
            if not last and hold.stood is None:
                # While others hold it, too, or it is held by this one.
                hold.stood = self._stood(hold)
        finally:
            if last or self._holds.release(hold):
                hold.stood = self._end(
                    freeze, hold.stood, thaw, timeout, counted)
        return hold.stood

    def release_quietly(self, hold: holds.Hold,
                        timeout: float = client.THAW_TIMEOUT) -> bool | None:
        """The same, where a thaw that fails is no reason to fail."""
        try:
            return self._release(hold, timeout=timeout)
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
            thawed = self._thaws.thaw(
                freeze.uuid, timeout, domain=freeze.domain)
        except errors.AgentError as e:
            if self._thaws.needless(freeze.uuid, e):
                self._thaws.remove(entry)
                self._over(freeze)
                stood(0)
                return True
            # Unlocked, it is what settle() looks for.
            self._thaws.leave(entry)
            self._over(freeze)
            LOG.error('KVML405 Instance %s may be frozen: %s It is tried '
                      'again every [DEFAULT] update_resources_interval, and '
                      'when this service starts.', freeze.uuid, e)
            return False
        except BaseException:
            # Nova tells the message bus of a connection that it cannot make,
            # and that may fail in its own way. settle() must find the guest.
            self._thaws.leave(entry)
            self._over(freeze)
            raise
        self._thawed(freeze, stood(thawed))
        return True

    def _thawed(self, freeze: holds.Freeze, stood: bool | None) -> None:
        """The agent says that a guest is thawed."""
        now = freeze.thawed = time.monotonic()
        if freeze.entry is not None:
            self._thaws.remove(freeze.entry)
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
        self._holds.over(freeze)
        freeze.limit.close()

    def _enter(self, uuid: str, purpose: str) -> ledger.Entry:
        try:
            return self._thaws.book.enter(uuid, purpose)
        except ledger.Held:
            raise exception.InstanceQuiesceFailed(
                reason='it is being frozen or thawed already') from None
        except OSError as e:
            raise exception.InstanceQuiesceFailed(
                reason='a guest is frozen only when that could be recorded '
                f'under [DEFAULT] state_path ({errors.clean(e)})'
            ) from e


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
