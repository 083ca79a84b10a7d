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
import functools
from typing import Any

from nova import exception

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import freezes as guest_freezes
from nova_kvm_ext import log
from nova_kvm_ext.storage import consistency
from nova_kvm_ext.storage import counting

LOG = log.getLogger(__name__)


def guest_to_snapshot(freezes: guest_freezes.Freezes, instance: Any,
                      guest: Any, required: bool) -> Any:
    """The guest as Nova is to see it while it snapshots a volume.

    Nova has libvirt freeze and thaw. libvirt knows nothing of others that
    need the guest frozen, does not thaw after a freeze that it gave up waiting
    for, and refuses a guest that is frozen already. So we freeze, and libvirt
    makes the snapshot alone.

    :param guest: nova.virt.libvirt.guest.Guest
    :param required: the image's os_require_quiesce
    """
    return _Guest(guest, functools.partial(
        _snapshot, freezes, instance, guest, required))


def _snapshot(freezes: guest_freezes.Freezes, instance: Any, guest: Any,
              required: bool, snapshot: Callable[[], Any]) -> None:
    """Have libvirt make a snapshot of the frozen guest.

    :raises nova.exception.QemuGuestAgentNotEnabled: it is not frozen; of
        Nova's exceptions the one after which it snapshots without
        quiescing, where that is allowed
    """
    try:
        hold = freezes.acquire(instance.uuid, guest._domain)
    except (exception.NovaException, *guest_freezes.UNREADABLE) as e:
        reason = f'The guest is not quiesced: {guest_freezes.why(e)}'
        if required:
            LOG.error('KVML402 The snapshot fails, because the image says '
                      'os_require_quiesce. %s', reason, instance=instance)
        else:
            LOG.warning('KVML403 The snapshot of a volume is made without '
                        'quiescing. %s', reason, instance=instance)
        _count(consistency.Reason.NOT_FROZEN, made=not required)
        raise exception.QemuGuestAgentNotEnabled(
            errors.without_paths(reason)) from None
    try:
        snapshot()
    except BaseException:
        freezes.release_quietly(hold)
        _count(consistency.Reason.FROZEN, made=False)
        raise
    # QEMU writes to the new file by now: an error from here on would have
    # Cinder throw that away.
    stood = freezes.release_quietly(hold)
    _count(consistency.Reason.NOTHING
           if hold.freeze.count == 0 and stood is not False else
           {True: consistency.Reason.FROZEN, None: consistency.Reason.NOT_SAID,
            False: consistency.Reason.THAWED}[stood])
    if stood is False:
        LOG.error('KVML404 The guest did not stay frozen until the snapshot '
                  'of its volume was made. Do not count on that snapshot.',
                  instance=instance)


def _count(reason: consistency.Reason, made: bool = True) -> None:
    counting.snapshot('volume', consistency.Consistency(reason), made)


class _Guest:
    """Nova's Guest, of which libvirt makes snapshots while we froze it."""

    def __init__(self, guest: Any,
                 quiesced: Callable[[Callable[[], Any]], None]) -> None:
        self._real = guest
        self._quiesced = quiesced

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def snapshot(self, *args: Any, quiesce: bool = False, **kwargs: Any
                 ) -> None:
        snapshot = functools.partial(
            self._real.snapshot, *args, quiesce=False, **kwargs)
        if quiesce:
            self._quiesced(snapshot)
        else:
            snapshot()
