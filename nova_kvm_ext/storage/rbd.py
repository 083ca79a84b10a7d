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

"""Direct snapshots in Ceph, of a quiesced guest.

Nova has RBD snapshot the guest's disk and clone the snapshot into the pool of
images, without a message to the guest.
"""

from collections.abc import Callable
import functools
from typing import Any

from nova import exception
from nova.storage import rbd_utils
from nova.virt.libvirt import imagebackend

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import freezes
from nova_kvm_ext.guest_agent import operations
from nova_kvm_ext import log
from nova_kvm_ext.storage import consistency

LOG = log.getLogger(__name__)

_THAWED = consistency.Reason.THAWED.value

Learn = Callable[[operations.Operation | None], None]
"""Is told what happened to the freeze; None where the guest does not run."""


def quiesce_direct_snapshots(driver: Any, guests: freezes.Freezes,
                             learn: Learn) -> None:
    """Have RBD's own snapshots made of a quiesced guest.

    The guest is frozen while Ceph makes the snapshot, not while Nova opens the
    disk in Ceph, and not while the snapshot is protected and copied into the
    pool of images.

    :param driver: whose image backend is to be changed
    """
    by_libvirt_path = driver.image_backend.by_libvirt_path

    # Nova asks in this way for the disk that it takes a snapshot of, and for
    # no other.
    def quiesced_by_libvirt_path(instance: Any, *args: Any, **kwargs: Any
                                 ) -> Any:
        disk = by_libvirt_path(instance, *args, **kwargs)
        if isinstance(disk, imagebackend.Rbd):
            disk.driver.create_snap = functools.partial(
                _create_snap, driver, guests, learn, instance, disk,
                disk.driver.create_snap)
        return disk

    driver.image_backend.by_libvirt_path = quiesced_by_libvirt_path


def _create_snap(driver: Any, guests: freezes.Freezes, learn: Learn,
                 instance: Any, disk: Any, create_snap: Callable[..., None],
                 volume: str, name: str, pool: str | None = None,
                 protect: bool = False) -> None:
    """Nova's, for its volume of this name with the guest frozen.

    :param disk: nova.virt.libvirt.imagebackend.Rbd, the guest's own
    :raises nova.exception.NovaException: the guest must be quiesced, and
        is not
    """
    # Nova also makes a snapshot of the copy.
    if volume != disk.rbd_name:
        create_snap(volume, name, pool=pool, protect=protect)
        return
    if not driver._host.get_guest(instance).is_active():
        learn(None)
        create_snap(volume, name, pool=pool, protect=protect)
        return
    make = functools.partial(
        _snapshot_frozen, driver, guests, learn, instance)
    try:
        driver._can_quiesce(instance, instance.image_meta)
    except exception.NovaException:
        # It is not going to be frozen, which make() says.
        good = make(functools.partial(
            create_snap, volume, name, pool=pool, protect=protect))
    else:
        # The guest waits for the snapshot alone: not for a connection to
        # Ceph, which can take minutes, and not while the snapshot is
        # protected, so that it can be cloned. All of that is in Nova's
        # create_snap().
        with rbd_utils.RBDVolumeProxy(disk.driver, volume, pool=pool) as ceph:
            good = make(functools.partial(ceph.create_snap, name))
            if good and protect and not ceph.is_protected_snap(name):
                ceph.protect_snap(name)
    if not good:
        disk.driver.remove_snap(volume, name, ignore_errors=True, force=True)
        raise exception.InstanceQuiesceFailed(reason=_THAWED)


def _snapshot_frozen(driver: Any, guests: freezes.Freezes, learn: Learn,
                     instance: Any, snapshot: Callable[[], Any]) -> bool:
    """Make a snapshot of the frozen guest.

    :returns: False where the guest must be quiesced, and the snapshot was
        made and is not
    :raises nova.exception.NovaException: the guest must be quiesced, and is
        not; no snapshot was made
    """
    image_meta = instance.image_meta
    context = instance._context
    required = driver._requires_quiesce(image_meta)
    with guests.operating(instance) as operation:
        try:
            driver.quiesce(context, instance, image_meta)
        except exception.NovaException:
            if required:
                # The metrics count the snapshots that failed, and why.
                learn(operation)
                raise
        try:
            snapshot()
        finally:
            if operation.hold is not None:
                try:
                    driver.unquiesce(context, instance, image_meta)
                except exception.NovaException as e:
                    # Raised here, it would leave the snapshot in Ceph. It
                    # has been written down, and is tried again.
                    LOG.error('KVML405 %s', errors.clean(e),
                              instance=instance)
            learn(operation)
    if operation.stood is not False:
        return True
    if required:
        LOG.error('KVML402 The snapshot fails, because the image says '
                  'os_require_quiesce and the guest is not quiesced: %s',
                  _THAWED, instance=instance)
        return False
    LOG.warning('KVML403 The snapshot is not quiesced: %s', _THAWED,
                instance=instance)
    return True
