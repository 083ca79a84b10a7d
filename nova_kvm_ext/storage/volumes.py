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

"""Snapshots of volumes that are files, which libvirt makes for Cinder."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import functools
from typing import Any

from nova import exception

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import frozen
from nova_kvm_ext.guest_agent import limits
from nova_kvm_ext import log
from nova_kvm_ext.storage import consistency
from nova_kvm_ext.storage import counting

LOG = log.getLogger(__name__)


@contextlib.contextmanager
def snapshotting(guests: frozen.Frozen, instance: Any, guest: Any,
                 required: bool) -> Iterator[Any]:
    """Around Nova's snapshot of a volume: the guest as Nova is to see it.

    Nova has libvirt freeze and thaw. libvirt knows nothing of others that
    need the guest frozen, does not thaw after a freeze that it gave up waiting
    for, and refuses a guest that is frozen already. So we freeze, and libvirt
    makes the snapshot alone.

    :param guest: nova.virt.libvirt.guest.Guest
    :param required: the image's os_require_quiesce
    """
    view = _Guest(guests, instance, guest, required)
    try:
        yield view
    except (exception.QemuGuestAgentNotEnabled,
            exception.InstanceQuiesceNotSupported) as e:
        if not view.tried:
            # Nova has asked for no snapshot, and does not say why.
            LOG.error('KVML402 The snapshot fails, because the image says '
                      'os_require_quiesce and the guest is not quiesced: %s',
                      frozen.why(e), instance=instance)
            _count(consistency.Reason.NO_AGENT, made=False)
        raise


class _Guest:
    """Nova's Guest, of which libvirt makes snapshots while we froze it.

    Nova asks for a snapshot of a quiesced guest first, where the guest has an
    agent, and for one that is not quiesced where that fails and the image
    allows it.

    :ivar tried: whether Nova has asked for a snapshot
    """

    def __init__(self, guests: frozen.Frozen, instance: Any,
                 guest: Any, required: bool) -> None:
        self._guests = guests
        self._instance = instance
        self._real = guest
        self._required = required
        self.tried = False
        # Of a snapshot that is not quiesced.
        self._reason = consistency.Reason.NO_AGENT

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def snapshot(self, *args: Any, quiesce: bool = False, **kwargs: Any
                 ) -> None:
        """Have libvirt make a snapshot, of the frozen guest if Nova asks so.

        :raises nova.exception.QemuGuestAgentNotEnabled: it is not frozen; of
            Nova's exceptions the one after which it snapshots without
            quiescing, where that is allowed
        """
        snapshot = functools.partial(
            self._real.snapshot, *args, quiesce=False, **kwargs)
        self.tried = True
        if self._is_off():
            # libvirt asks no agent then, whatever Nova wants.
            self._reason = consistency.Reason.NOT_RUNNING
        elif quiesce:
            self._quiesced(snapshot)
            return
        try:
            snapshot()
        except BaseException:
            _count(self._reason, made=False)
            raise
        _count(self._reason)

    def _is_off(self) -> bool:
        """Whether the guest has no memory, nor a saved one."""
        domain = self._real._domain
        try:
            return not domain.isActive() and not domain.hasManagedSaveImage(0)
        except limits.libvirt().libvirtError:
            return False

    def _quiesced(self, snapshot: Callable[[], Any]) -> None:
        try:
            hold = self._guests.acquire(
                self._instance.uuid, self._real._domain)
        except (exception.NovaException, *frozen.UNREADABLE) as e:
            reason = f'The guest is not quiesced: {frozen.why(e)}'
            if self._required:
                LOG.error('KVML402 The snapshot fails, because the image says '
                          'os_require_quiesce. %s', reason,
                          instance=self._instance)
            else:
                LOG.warning('KVML403 The snapshot of a volume is made without '
                            'quiescing. %s', reason, instance=self._instance)
            self._failed(consistency.Reason.NOT_FROZEN)
            raise exception.QemuGuestAgentNotEnabled(
                errors.without_paths(reason)) from None
        try:
            snapshot()
        except BaseException as e:
            self._guests.release_quietly(hold)
            self._failed(consistency.Reason.FROZEN,
                         errors.libvirt_error_code(e) is not None)
            raise
        # QEMU writes to the new file by now: an error from here on would have
        # Cinder throw that away.
        stood = self._guests.release_quietly(hold)
        _count(consistency.Reason.NOTHING
               if hold.freeze.count == 0 and stood is not False else
               {True: consistency.Reason.FROZEN,
                None: consistency.Reason.NOT_SAID,
                False: consistency.Reason.THAWED}[stood])
        if stood is False:
            LOG.error('KVML404 The guest did not stay frozen until the '
                      'snapshot of its volume was made. Do not rely on that '
                      'snapshot.', instance=self._instance)

    def _failed(self, reason: consistency.Reason, goes_on: bool = True
                ) -> None:
        """The quiesced snapshot failed.

        :param goes_on: whether Nova makes one that is not quiesced after
            such an error, where the image allows that
        """
        if self._required or not goes_on:
            _count(reason, made=False)
        self._reason = consistency.Reason.NOT_FROZEN


def _count(reason: consistency.Reason, made: bool = True) -> None:
    counting.snapshot('volume', consistency.Consistency(reason), made)
