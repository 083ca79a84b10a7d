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
itself included.

No thread and no timer of its own: what cannot be settled at once is tried
again when Nova next asks for the host's resources.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import time
from typing import Any

from nova import conf as nova_conf
from nova import exception
from nova.virt.libvirt import imagebackend
from oslo_log import log as logging

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import client
from nova_kvm_ext.guest_agent import ledger
from nova_kvm_ext.guest_agent import limits

LOG = logging.getLogger(__name__)
CONF = nova_conf.CONF

UNREADABLE = (SystemError, ValueError)
"""What libvirt-python makes of an error message that is no UTF-8, which a
guest can write. Nova does not expect it."""

VOLUME_FREEZE_TIMEOUT = 45
"""Seconds for the freeze of a volume-backed instance. Nova's API waits 60 s
for all of it ([DEFAULT] rpc_response_timeout), and before and after the freeze
libvirt may take 5 s each to find out whether the agent listens."""

VOLUME_FREEZE_LIMIT = 600
"""Seconds after which a volume-backed instance is thawed, though its snapshot
was not said to be done. Then the API that was to say so is gone, or the guest
has stood still so long that nothing in it counts on being saved."""

SETTLE_TIME = 30
"""Seconds that one round of thawing what is left behind may take, so that
agents that hang do not hold up Nova's periodic work."""


@dataclasses.dataclass
class _Freeze:
    """A guest that is, or may be, frozen by us.

    :ivar since: when the freeze was sent (time.monotonic)
    :ivar answered: when the agent said that it is frozen, None before
    :ivar unwanted: whether a thaw was asked for before that
    :ivar by_libvirt: whether libvirt froze it for a snapshot of its own
    """

    entry: ledger.Entry
    since: float
    answered: float | None = None
    unwanted: bool = False
    by_libvirt: bool = False


class Freezes:
    """The guests of a host that are frozen, or may be.

    :param host: nova.virt.libvirt.host.Host
    """

    def __init__(self, host: Any, time_limits: limits.Limits) -> None:
        self._host = host
        self._limits = time_limits
        # By instance UUID, all of them.
        self._freezes: dict[str, _Freeze] = {}
        self._live_snapshots: set[str] = set()
        self._volume_snapshots: dict[str, Any] = {}
        self._failures: dict[str, str] = {}
        self._last_tried: dict[str, float] = {}

    @contextlib.contextmanager
    def live_snapshot(self, instance: Any) -> Iterator[None]:
        """Around Nova's live snapshot: afterwards the guest is not frozen.

        Nova freezes near the end of it, in a ``finally``, and thaws only if
        nothing goes wrong between the two.
        """
        uuid = instance.uuid
        self._live_snapshots.add(uuid)
        try:
            yield
        finally:
            self._live_snapshots.discard(uuid)
            self._failures.pop(uuid, None)
            self._undo(uuid)
            # A freeze whose answer came late may have come to its end now.
            self._settle(uuid)

    @contextlib.contextmanager
    def failing_late(self, instance: Any, required: bool) -> Iterator[None]:
        """Around all that may fail of a freeze: say so, in time.

        In a live snapshot Nova goes on without the freeze, whatever the image
        says. Where it is required, Nova is told that it froze: it then puts
        its mirror and its domain in order before it thaws, and
        :meth:`thawing` raises the error. That is before the copy is converted
        and uploaded.

        :param required: the image's os_require_quiesce
        """
        uuid = instance.uuid
        try:
            yield
        except (exception.NovaException, *UNREADABLE) as e:
            # The guest's own words may be in it.
            reason = errors.clean(e)
            if uuid not in self._live_snapshots:
                LOG.warning('The guest is not quiesced: %s', reason,
                            instance=instance)
            elif required:
                LOG.error('The snapshot fails, because the image says '
                          'os_require_quiesce and the guest is not quiesced: '
                          '%s', reason, instance=instance)
                self._failures[uuid] = reason
                return
            else:
                LOG.warning('The snapshot is not quiesced: %s', reason,
                            instance=instance)
            if isinstance(e, (exception.QemuGuestAgentNotEnabled,
                              exception.InstanceQuiesceNotSupported)):
                raise
            raise exception.InstanceQuiesceFailed(reason=reason) from None

    @contextlib.contextmanager
    def freezing(self, instance: Any) -> Iterator[None]:
        """Around Nova's freeze: written down before, undone if it fails.

        :raises nova.exception.InstanceQuiesceFailed: the agent does not
            answer, the guest is frozen already, it cannot be written down, or
            it is not wanted any more
        """
        uuid = instance.uuid
        domain = self._host.get_guest(instance)._domain
        # One that froze late, perhaps.
        self._settle(uuid)
        self._check_before_freeze(domain)
        snapshot = uuid in self._live_snapshots
        entry = self._enter(
            uuid, 'snapshot' if snapshot else 'snapshot of its volumes')
        freeze = self._freezes[uuid] = _Freeze(entry, time.monotonic())
        try:
            with self._limits.patience(
                    domain, client.FREEZE_TIMEOUT if snapshot
                    else VOLUME_FREEZE_TIMEOUT):
                yield
            freeze.answered = time.monotonic()
            if freeze.unwanted:
                raise exception.InstanceQuiesceFailed(
                    reason='it was to be thawed before it was frozen')
        except BaseException:
            # However it ends: the freeze may be on its way, or the guest
            # frozen and the answer lost.
            self._undo(uuid)
            raise

    @contextlib.contextmanager
    def thawing(self, instance: Any) -> Iterator[None]:
        """Around Nova's thaw.

        :raises nova.exception.InstanceQuiesceFailed: what :meth:`failing_late`
            kept for later; or the guest is not thawed
        """
        uuid = instance.uuid
        if (failure := self._failures.pop(uuid, None)) is not None:
            raise exception.InstanceQuiesceFailed(reason=failure)
        freeze = self._freezes.get(uuid)
        if freeze is not None and freeze.answered is None:
            # Nova's API no longer waits for the freeze. This thaw may be
            # ahead of it, so whoever sent the freeze has to undo it.
            freeze.unwanted = True
        try:
            domain = self._host.get_guest(instance)._domain
            with self._limits.patience(domain, client.THAW_TIMEOUT):
                yield
        except (exception.NovaException, *UNREADABLE) as e:
            LOG.warning('The guest is not thawed at once: %s',
                        errors.clean(e), instance=instance)
            if freeze is None or freeze.unwanted or not self._undo(uuid):
                raise exception.InstanceQuiesceFailed(
                    reason=errors.clean(e)) from None
        except BaseException:
            self._undo(uuid)
            raise
        else:
            if freeze is None or not freeze.unwanted:
                self._thawed(uuid)

    @contextlib.contextmanager
    def volume_snapshot(self, instance: Any, guest: Any) -> Iterator[None]:
        """Around a snapshot for which libvirt itself freezes and thaws.

        libvirt does not thaw after a freeze that it gave up waiting for, nor
        when it is killed between the two.
        """
        uuid = instance.uuid
        self._volume_snapshots[uuid] = guest
        try:
            yield
        finally:
            del self._volume_snapshots[uuid]
            freeze = self._freezes.get(uuid)
            if freeze is not None and freeze.by_libvirt:
                self._undo(uuid)
                self._limits.apply(guest)

    def can_quiesce(self, instance: Any) -> None:
        """Nova may quiesce. In a volume's snapshot libvirt does so now.

        :raises nova.exception.QemuGuestAgentNotEnabled: it cannot be written
            down; of Nova's exceptions the one after which it snapshots without
            quiescing, where that is allowed
        """
        uuid = instance.uuid
        guest = self._volume_snapshots.get(uuid)
        # A guest may be frozen by Nova's API already, for all of its volumes.
        if guest is None or uuid in self._freezes:
            return
        try:
            entry = self._enter(uuid, 'snapshot of a volume')
        except exception.InstanceQuiesceFailed as e:
            raise exception.QemuGuestAgentNotEnabled(str(e)) from e
        self._freezes[uuid] = _Freeze(entry, time.monotonic(), by_libvirt=True)
        self._limits.set(guest._domain, max(
            client.FREEZE_TIMEOUT, CONF.kvm_ext.guest_agent_timeout))

    def quiesce_direct_snapshots(self, driver: Any) -> None:
        """Have RBD's own snapshots made of a quiesced guest.

        Nova makes those without a word to the guest. It is frozen while Ceph
        makes the snapshot, not while that is copied into the image's pool.

        :param driver: whose image backend is to be changed
        """
        by_libvirt_path = driver.image_backend.by_libvirt_path

        # Nova asks in this way for the disk that it takes a snapshot of, and
        # for no other.
        def quiesced_by_libvirt_path(instance: Any, *args: Any,
                                     **kwargs: Any) -> Any:
            disk = by_libvirt_path(instance, *args, **kwargs)
            if isinstance(disk, imagebackend.Rbd):
                disk.driver.create_snap = functools.partial(
                    self._create_rbd_snap, driver, instance, disk.rbd_name,
                    disk.driver.create_snap)
            return disk

        driver.image_backend.by_libvirt_path = quiesced_by_libvirt_path

    @staticmethod
    def _create_rbd_snap(driver: Any, instance: Any, own: str,
                         create_snap: Callable[..., None], volume: str,
                         *args: Any, **kwargs: Any) -> None:
        """Nova's, for its volume of this name with the guest frozen.

        :param own: the guest's volume: Nova also makes a snapshot of the copy
        :raises nova.exception.NovaException: the guest must be quiesced, and
            is not
        """
        quiesced = False
        image_meta = instance.image_meta
        context = instance._context
        if volume == own and driver._host.get_guest(instance).is_active():
            try:
                driver.quiesce(context, instance, image_meta)
                quiesced = True
            except exception.NovaException:
                if driver._requires_quiesce(image_meta):
                    raise
        try:
            create_snap(volume, *args, **kwargs)
        finally:
            if quiesced:
                try:
                    driver.unquiesce(context, instance, image_meta)
                except exception.NovaException as e:
                    # Raised here, it would leave the snapshot in Ceph. It has
                    # been written down, and is tried again.
                    LOG.error('%s', errors.clean(e), instance=instance)

    def settle(self) -> None:
        """Thaw what nobody else is going to.

        Guests that a service froze and did not live to thaw, that froze after
        they were given up, that nobody could reach, and volume-backed ones
        whose snapshot never ends.
        """
        until = time.monotonic() + SETTLE_TIME
        try:
            left = self._ledger.left_behind()
        except OSError as e:
            LOG.error('Guests that were left frozen cannot be found: %s. Look '
                      'at the directory and its permissions.',
                      errors.clean(e))
            return
        # Those that hang come last the next time.
        for uuid in sorted(left, key=lambda uuid: self._last_tried.get(
                uuid, 0)):
            if time.monotonic() > until:
                LOG.warning('More guests may have been left frozen; the rest '
                            'is seen to the next time.')
                break
            freeze = self._freezes.get(uuid)
            if freeze is None:
                self._settle(uuid)
            elif (freeze.answered is not None and
                  uuid not in self._live_snapshots and
                  time.monotonic() - freeze.answered > VOLUME_FREEZE_LIMIT):
                LOG.warning(
                    'Instance %s is thawed: it was frozen %d s ago for a '
                    'snapshot of its volumes that did not end. Do not count '
                    'on that snapshot.', uuid, VOLUME_FREEZE_LIMIT)
                self._undo(uuid)

    @property
    def _ledger(self) -> ledger.Ledger:
        return ledger.Ledger(CONF.state_path, CONF.host)

    def _enter(self, uuid: str, why: str) -> ledger.Entry:
        try:
            return self._ledger.enter(uuid, why)
        except ledger.Held:
            raise exception.InstanceQuiesceFailed(
                reason='it is being frozen or thawed already') from None
        except OSError as e:
            raise exception.InstanceQuiesceFailed(
                reason=f'a guest is frozen only when that could be written '
                f'down under [DEFAULT] state_path ({errors.clean(e)})'
            ) from e

    def _check_before_freeze(self, domain: Any) -> None:
        """Send no freeze that fails, or that is another's to thaw."""
        try:
            frozen = self._limits.agent(domain).is_frozen()
        except errors.AgentError as e:
            if e.fault is errors.AgentFault.UNSUPPORTED:
                return
            raise exception.InstanceQuiesceFailed(reason=str(e)) from None
        if frozen:
            raise exception.InstanceQuiesceFailed(
                reason='the guest is frozen already; nova-kvm-ext agent thaw '
                'thaws it')

    def _undo(self, uuid: str) -> bool:
        """Thaw a guest that we froze, or tried to; True if it is thawed."""
        freeze = self._freezes.get(uuid)
        if freeze is None:
            return True
        try:
            self._thaw(uuid)
        except errors.AgentError as e:
            self._freezes.pop(uuid, None)
            if self._cannot_be_frozen(uuid, e):
                self._remove(freeze.entry)
                return True
            # Unlocked, it is what settle() looks for.
            freeze.entry.release()
            self._last_tried[uuid] = time.monotonic()
            LOG.error('Instance %s may be frozen: %s It is tried again every '
                      '[DEFAULT] update_resources_interval, and when this '
                      'service starts.', uuid, e)
            return False
        except BaseException:
            # Nova tells the message bus of a connection that it cannot make,
            # and that may fail in its own way. settle() must find the guest.
            self._freezes.pop(uuid, None)
            freeze.entry.release()
            raise
        self._thawed(uuid)
        return True

    def _thawed(self, uuid: str) -> None:
        """The agent says that a guest is thawed."""
        freeze = self._freezes.pop(uuid, None)
        if freeze is None:
            # Frozen by a service that has been killed since.
            with contextlib.suppress(ledger.Held, OSError):
                entry = self._ledger.take(uuid)
                if entry is not None:
                    self._remove(entry)
            return
        now = time.monotonic()
        self._remove(freeze.entry)
        if freeze.answered is not None:
            LOG.info('Instance %(uuid)s was frozen for %(frozen).2f s, after '
                     'a freeze that took %(freeze).2f s.',
                     {'uuid': uuid, 'frozen': now - freeze.answered,
                      'freeze': freeze.answered - freeze.since})
        elif not freeze.by_libvirt:
            LOG.info('Instance %(uuid)s is not frozen, %(time).2f s after a '
                     'freeze that failed was sent.',
                     {'uuid': uuid, 'time': now - freeze.since})

    def _settle(self, uuid: str) -> None:
        """Thaw a guest of the ledger, unless somebody is at it."""
        try:
            entry = self._ledger.take(uuid)
        except ledger.Held:
            return
        except OSError as e:
            LOG.error('Instance %s may have been left frozen, but what was '
                      'written down of it cannot be read: %s. Remove it.',
                      uuid, errors.clean(e))
            return
        if entry is None:
            return
        try:
            count = self._thaw(uuid)
        except errors.AgentError as e:
            if self._cannot_be_frozen(uuid, e):
                self._remove(entry)
                return
            entry.release()
            # Said aloud the first time only: an agent may hang for weeks.
            (LOG.debug if uuid in self._last_tried else LOG.error)(
                'Instance %s may have been left frozen (%s): %s It is tried '
                'again.', uuid, errors.clean(entry.text), e)
            self._last_tried[uuid] = time.monotonic()
            return
        except BaseException:
            entry.release()
            raise
        self._remove(entry)
        if count:
            LOG.warning('Instance %s was left frozen (%s) and is thawed.',
                        uuid, errors.clean(entry.text))
        else:
            LOG.info('Instance %s is not frozen, as it might have been (%s).',
                     uuid, errors.clean(entry.text))

    def _remove(self, entry: ledger.Entry) -> None:
        self._last_tried.pop(entry.uuid, None)
        try:
            entry.remove()
        except OSError as e:
            LOG.warning('Instance %s is thawed, and it cannot be written '
                        'down: %s. It will be thawed once more, which does no '
                        'harm.', entry.uuid, errors.clean(e))

    def _cannot_be_frozen(self, uuid: str, error: errors.AgentError) -> bool:
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

    def _thaw(self, uuid: str) -> int:
        try:
            domain = self._host.get_connection().lookupByUUIDString(uuid)
        except (exception.NovaException, limits.libvirt().libvirtError) as e:
            gone = errors.libvirt_error_code(e) == (
                limits.libvirt().VIR_ERR_NO_DOMAIN)
            raise errors.AgentError(
                errors.clean(e), fault=errors.AgentFault.NO_GUEST if gone
                else errors.AgentFault.LIBVIRT) from None
        return self._limits.agent(domain).thaw()
