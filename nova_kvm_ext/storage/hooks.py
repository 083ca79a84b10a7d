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

"""The part of the driver for snapshots: what knows Nova.

The driver creates :class:`Snapshots` and calls it from its overrides.
:mod:`nova_kvm_ext.guest_agent.frozen` freezes and thaws a guest; this module
decides when, for each type of snapshot: live of a file, direct in Ceph
(:mod:`nova_kvm_ext.storage.rbd`), cold, and of a volume by libvirt
(:mod:`nova_kvm_ext.storage.volumes`).
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import contextvars
import dataclasses
from typing import Any

from nova.compute import task_states
from nova.compute import vm_states
from nova import exception

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import freezes as guest_freezes
from nova_kvm_ext.guest_agent import frozen
from nova_kvm_ext.guest_agent import operations
from nova_kvm_ext import log
from nova_kvm_ext import request
from nova_kvm_ext.storage import consistency
from nova_kvm_ext.storage import counting
from nova_kvm_ext.storage import image_api
from nova_kvm_ext.storage import mirrors
from nova_kvm_ext.storage import rbd
from nova_kvm_ext.storage import volumes

LOG = log.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class _Taken:
    """A snapshot that this thread makes.

    :ivar image_id: of its image
    :ivar known: of the last way in which Nova tried to make it
    """

    image_id: str
    known: consistency.Consistency = consistency.Consistency()


class Snapshots:
    """The snapshots that Nova makes on this host.

    :param driver: whose image backend is changed, so that RBD's own snapshots
        are of a quiesced guest, and whose image service, so that images say
        whether they are
    """

    def __init__(self, driver: Any, freezes: guest_freezes.Freezes) -> None:
        self._freezes = freezes
        # Each thread and greenlet has its own.
        self._taken: contextvars.ContextVar[_Taken | None] = (
            contextvars.ContextVar('taken', default=None))
        rbd.quiesce_direct_snapshots(
            driver, freezes, self._learn_of_freeze)
        driver._image_api = image_api.ImageAPI(
            driver._image_api, self._known_of)

    @contextlib.contextmanager
    def taking(self, image_id: str) -> Iterator[None]:
        """Around all that Nova does for an image of a server's disk."""
        taken = _Taken(image_id)
        token = self._taken.set(taken)
        try:
            yield
        except BaseException:
            counting.snapshot('image', taken.known, made=False)
            raise
        else:
            counting.snapshot('image', taken.known)
        finally:
            self._taken.reset(token)

    def _learn(self, known: consistency.Consistency) -> None:
        """How the snapshot that this thread makes was made."""
        taken = self._taken.get()
        if taken is not None:
            taken.known = known

    def of_guest_that_is_off(self) -> None:
        """Nova is about to copy the disk of a guest that does not run."""
        self._learn(consistency.Consistency(consistency.Reason.NOT_RUNNING))

    def _learn_of_freeze(self, operation: operations.Operation | None
                         ) -> None:
        """What happened to a freeze; None where the guest does not run."""
        if operation is not None:
            self._learn(consistency_of(operation))
        elif not self._suspended():
            self.of_guest_that_is_off()

    def _suspended(self) -> bool:
        """Whether Nova has suspended the guest for this snapshot.

        With live snapshots disabled it does so before Ceph makes one.
        """
        taken = self._taken.get()
        return (taken is not None and
                taken.known.reason is consistency.Reason.COLD)

    def _known_of(self, image_id: str) -> consistency.Consistency | None:
        taken = self._taken.get()
        return (taken.known if taken is not None and
                taken.image_id == image_id else None)

    @staticmethod
    def guest_started(instance: Any) -> None:
        """Look at what the server's image says of snapshots.

        What it says of itself is not true of the server. Nova's API gives a
        snapshot's image all properties of the image that the server was booted
        from, and overwrites none of ours where another driver, or Cinder,
        makes the snapshot.
        """
        if not instance.obj_attr_is_set('system_metadata'):
            return  # as in none of Nova's calls
        metadata = instance.system_metadata
        for name in consistency.PROPERTIES:
            metadata.pop(f'image_{name}', None)
        written = metadata.get('image_os_require_quiesce')
        if written and not request.is_yes_or_no(written):
            # Nobody would miss it until a backup is needed.
            LOG.warning('KVML401 Snapshots that are not quiesced do not fail: '
                        'the image says neither yes nor no in '
                        'os_require_quiesce (%s).', errors.clean(written, 80),
                        instance=instance)

    @contextlib.contextmanager
    def live(self, instance: Any, guest: Any, thaw: Callable[[], Any]
             ) -> Iterator[mirrors.MirroredGuest]:
        """Around Nova's live snapshot: afterwards the guest is not frozen.

        Nova freezes near the end of it, in a ``finally``, and thaws only if
        nothing goes wrong between the two.

        :param guest: nova.virt.libvirt.guest.Guest
        :param thaw: the driver's, of this guest
        :returns: the guest that Nova is to be given
        """
        with self._freezes.operating(instance, late=True) as operation:
            def stopped() -> None:
                # Before Nova's own first job there is nothing to thaw.
                if operation.hold is None:
                    return
                try:
                    thaw()
                except exception.InstanceQuiesceFailed as e:
                    # Nova is told when it thaws: by then it has put its own
                    # things in order.
                    operation.failure = frozen.why(e)

            try:
                yield mirrors.MirroredGuest(guest, stopped)
            except (exception.QemuGuestAgentNotEnabled,
                    exception.InstanceQuiesceNotSupported):
                # Nova asks for no freeze where there is no agent.
                operation.asked, operation.listens = True, False
                raise
            finally:
                self._learn_of_freeze(operation)

    def of_volume(self, instance: Any, guest: Any, required: bool
                  ) -> contextlib.AbstractContextManager[Any]:
        """See :func:`nova_kvm_ext.storage.volumes.snapshotting`."""
        return volumes.snapshotting(
            self._freezes.guests, instance, guest, required)

    @staticmethod
    def is_suspended(instance: Any) -> bool:
        """Whether a server is suspended: its memory is saved on the disk."""
        return (instance.obj_attr_is_set('vm_state') and
                instance.vm_state == vm_states.SUSPENDED)

    def cold(self, instance: Any, required: bool, check: Callable[[], Any],
             suspended: bool) -> None:
        """Nova is about to suspend a guest for a snapshot.

        What the guest has not written out then is in its memory alone, so the
        copy is that of a disk after a power failure.

        :param required: the image's os_require_quiesce
        :param check: Nova's, whether the guest can be frozen
        :param suspended: whether the guest was suspended before. A server
            that is shelved then is not refused: Nova has ended the guest.
        :raises nova.exception.InstanceQuiesceFailed: the guest must be
            quiesced
        """
        self._learn(consistency.Consistency(consistency.Reason.COLD))
        reason = (
            'the server is suspended, and what the guest has not written yet '
            'is in its saved memory. Resume the server first') if suspended \
            else ('Nova makes a cold snapshot: it suspends the guest and '
                  'copies the disk, and what the guest has not written yet is '
                  'missing. See [workarounds] disable_libvirt_livesnapshot; '
                  'images_type = lvm and [ephemeral_storage_encryption] allow '
                  'no other snapshots; for disks in Ceph, '
                  'whether the image is in the same Ceph, '
                  'its direct URL is shown (show_multiple_locations or '
                  'show_image_direct_url of Glance) and Nova\'s Ceph user '
                  'may write to the pool of images')
        if required and not (
                suspended and instance.task_state == task_states.SHELVING):
            LOG.error('KVML402 The snapshot fails, because the image says '
                      'os_require_quiesce and the guest is not quiesced: %s.',
                      reason, instance=instance)
            raise exception.InstanceQuiesceFailed(
                reason=consistency.Reason.COLD.value)
        try:
            check()
        except exception.NovaException:
            # Without an agent nobody expects more.
            return
        LOG.warning('KVML403 The snapshot is not quiesced: %s.', reason,
                    instance=instance)


def consistency_of(operation: operations.Operation
                   ) -> consistency.Consistency:
    """What is known of a snapshot by what happened to its freeze."""
    if not operation.asked:
        reason = consistency.Reason.NOT_ASKED
    elif not operation.listens:
        reason = consistency.Reason.NO_AGENT
    elif not operation.was_frozen:
        reason = consistency.Reason.NOT_FROZEN
    elif operation.count == 0 and operation.stood is not False:
        reason = consistency.Reason.NOTHING
    elif operation.stood is None:
        reason = consistency.Reason.NOT_SAID
    else:
        reason = (consistency.Reason.FROZEN if operation.stood else
                  consistency.Reason.THAWED)
    return consistency.Consistency(
        reason, operation.seconds, operation.version)
