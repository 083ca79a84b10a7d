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

"""Makes sure that no guest stays frozen after Nova's freezes and thaws.

Nova sends both commands. :class:`Freezes` makes sure that a guest is thawed
after any failure between the two, also of the service itself, and that a
snapshot learns whether the guest was frozen until the snapshot's end.
:mod:`nova_kvm_ext.guest_agent.frozen` freezes and thaws a guest.

Has no thread and no timer: a thaw that fails is tried again when Nova next
asks for the host's resources (:mod:`nova_kvm_ext.guest_agent.thaws`).
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import contextvars
import time
from typing import Any

from nova import exception

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import frozen
from nova_kvm_ext.guest_agent import holds
from nova_kvm_ext.guest_agent import limits
from nova_kvm_ext.guest_agent import operations
from nova_kvm_ext.guest_agent import thaws
from nova_kvm_ext import log
from nova_kvm_ext.storage import consistency

LOG = log.getLogger(__name__)


class Freezes:
    """What Nova freezes and thaws on a host.

    :param host: nova.virt.libvirt.host.Host
    :ivar guests: those that are frozen, or may be
    """

    def __init__(self, host: Any, time_limits: limits.Limits) -> None:
        self._host = host
        self.guests = frozen.Frozen(host, time_limits)
        self._holds = self.guests.holds
        self._thaws = self.guests.thaws
        # Each thread and greenlet has its own.
        self._operation: contextvars.ContextVar[
            operations.Operation | None] = contextvars.ContextVar(
                'operation', default=None)

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
            hold = self.guests.acquire(
                instance.uuid, self._host.get_guest(instance)._domain, freeze,
                lasting=operation is None, version=operation is not None)
        except (exception.NovaException, *frozen.UNREADABLE) as e:
            no_agent = isinstance(e, (exception.QemuGuestAgentNotEnabled,
                                      exception.InstanceQuiesceNotSupported))
            if operation is not None:
                operation.listens = not no_agent
            reason = frozen.why(e)
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
            raise frozen.for_tenants(reason) from None
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
            stood = self.guests.release(hold, self.guests.under_limit(
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
            self.guests.under_limit(instance, thaw)()
        except (exception.NovaException, *frozen.UNREADABLE) as e:
            raise frozen.for_tenants(frozen.why(e)) from None
        # Perhaps frozen by a service that has been killed since.
        self._thaws.forget(uuid)

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
                self.guests.release_quietly(operation.hold)
            # A freeze whose answer came late may have come to its end now.
            if not self._holds.known(operation.uuid):
                self._thaws.settle_one(operation.uuid)

    def arrived(self, instance: Any, guest: Any) -> bool:
        """A guest has come here by live migration: was it frozen before?

        The source host, which froze the guest, cannot thaw it now. Nova's
        API, if it was that, thaws it here; if not, :meth:`settle` does.
        """
        if self.guests.is_frozen(guest._domain) is not True:
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
                hold.freeze.entry = self.guests.enter(
                    instance.uuid, 'frozen before it migrated here')
            except exception.InstanceQuiesceFailed as e:
                LOG.error('KVML407 %s', frozen.why(e), instance=instance)
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
            stood = self.guests.release_quietly(hold, thaws.FIRST_TIMEOUT)
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

    def _current(self, instance: Any) -> operations.Operation | None:
        operation = self._operation.get()
        return (operation if operation is not None and
                operation.uuid == instance.uuid else None)
