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

"""The part of the driver that brings images into Nova's image cache.

Replaces the one function that Nova passes to its cache,
``libvirt_utils.fetch_image``. Download, signature check, semaphore, lock and
cache names stay Nova's; :mod:`nova_kvm_ext.images.verdict` judges the file,
and Nova's own inspection also runs.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import os
from typing import Any
from typing import BinaryIO

from nova.compute import utils as compute_utils
from nova import conf as nova_conf
from nova import exception
from nova.privsep import utils as privsep_utils
from nova import utils
from nova.virt import images
from nova.virt.libvirt import imagecache
from nova.virt.libvirt import utils as libvirt_utils
from oslo_concurrency import processutils
from oslo_utils import fileutils

from nova_kvm_ext import counters
from nova_kvm_ext import errors
from nova_kvm_ext.images import answers
from nova_kvm_ext.images import convert
from nova_kvm_ext.images import facts
from nova_kvm_ext.images import qemu_img
from nova_kvm_ext.images import questions
from nova_kvm_ext.images import verdict
from nova_kvm_ext import log
from nova_kvm_ext.metrics import names
from nova_kvm_ext.settings import Settings
from nova_kvm_ext import traits

LOG = log.getLogger(__name__)
CONF = nova_conf.CONF

# What is replaced, as it was when Nova was imported. For rbd Nova hands over
# a function that clones inside Ceph, which is left alone.
_NOVAS_FETCH = libvirt_utils.fetch_image


def _counted_as(check: str) -> str:
    """The check of a verdict as a label: one word for all checks of a QED."""
    return 'qed' if check.startswith('qed ') else names.said(check)


def _was_killed(error: Exception) -> bool:
    """Whether Nova's exception is about a qemu-img that a signal ended."""
    cause = error.__cause__ or error.__context__
    return (isinstance(cause, processutils.ProcessExecutionError) and
            isinstance(cause.exit_code, int) and cause.exit_code < 0)


class ImageFetch:
    """Fetches images so that all that KVM can run boot, and no others.

    :param settings: the driver's
    """

    def __init__(self, settings: Settings) -> None:
        self._policy = verdict.Policy.from_conf(settings, CONF)
        self._limits = qemu_img.Limits.from_conf(CONF)
        self._answers = answers.Answers()

    def in_charge(self) -> bool:
        """Whether images are fetched here, not by Nova alone.

        With rbd they are cloned, and with the workaround the operator has
        asked for images to go unlooked at.
        """
        return (CONF.libvirt.images_type != 'rbd' and
                not CONF.workarounds.disable_deep_image_inspection)

    def capabilities(self) -> dict[str, bool]:
        """What ComputeDriver.capabilities has to say of image types."""
        return {'supports_image_type_vmdk':
                self.in_charge() and bool(self._policy.vmdk_types)}

    def traits(self) -> set[str]:
        """Custom traits for what os-traits has no name for."""
        if (not self.in_charge() or
                'qed' in CONF.compute.image_type_exclude_list):
            return set()
        return {traits.name('image_type', 'qed')}

    def instead_of(self, fetch: Callable[..., None], size: int | None
                   ) -> Callable[..., None]:
        """The function to hand to Nova's image cache.

        :param fetch: Nova's
        :param size: bytes of the disk that the flavor gives, None or 0 for
            as many as the image has
        """
        if fetch is not _NOVAS_FETCH or not self.in_charge():
            return fetch

        def fetch_image(context: Any, target: str, image_id: str,
                        trusted_certs: Any = None) -> None:
            self._fetch(context, target, image_id, trusted_certs, size)

        return fetch_image

    def cache(self, context: Any, image_id: str) -> bool:
        """Put an image into the cache before anyone boots from it.

        :returns: whether it was fetched; False where it was there, or Nova
            is to do it
        """
        if not self.in_charge():
            return False
        directory = os.path.join(CONF.instances_path,
                                 CONF.image_cache.subdirectory_name)
        name = imagecache.get_cache_fname(image_id)
        target = os.path.join(directory, name)
        if os.path.exists(target):
            return False
        fileutils.ensure_tree(directory)

        # The lock that imagebackend.Image.cache takes: a boot meanwhile waits
        # and then finds the image.
        @utils.synchronized(name, external=True, lock_path=os.path.join(
            CONF.instances_path, 'locks'))
        def fetch_locked() -> bool:
            if os.path.exists(target):
                return False
            self._fetch(context, target, image_id, None, None)
            return True

        return fetch_locked()

    def asked_once(self) -> contextlib.AbstractContextManager[None]:
        """Have Nova ask qemu-img once about each base image of its cache.

        While the image is the same. Ephemeral disks and swap have base images
        there, too.
        """
        return questions.remembered(os.path.join(
            CONF.instances_path, CONF.image_cache.subdirectory_name),
            self._answers)

    @contextlib.contextmanager
    def paths_hidden(self) -> Iterator[None]:
        """Take this host's directories out of what a tenant will read.

        :raises qemu_img.QemuImgFailure: qemu-img could not do its work, so
            that Nova tries another host
        """
        try:
            yield
        except qemu_img.QemuImgFailure as e:
            LOG.error('KVML601 %s', e)
            raise
        except (exception.ImageUnacceptable, exception.InvalidDiskInfo) as e:
            if _was_killed(e):
                # Nova gives up such a build, as it does with a bad image.
                LOG.error('KVML602 %s', errors.clean(e, 1000))
                raise qemu_img.QemuImgFailure(
                    'qemu-img was killed while Nova asked it about an image.',
                    'Check the load and the memory of this host, and '
                    '[libvirt] images_cpu_time_limit and '
                    'images_address_space_limit.') from e
            reason = str(e.kwargs.get('reason', ''))
            hidden = errors.without_paths(reason)
            if hidden == reason:
                raise
            LOG.error('KVML603 %s', errors.clean(e, 1000))
            raise type(e)(**e.kwargs | {'reason': hidden}) from e

    def _fetch(self, context: Any, target: str, image_id: str,
               trusted_certs: Any, size: int | None) -> None:
        """Download, look, and leave at target what a guest may boot from.

        :raises nova.exception.ImageUnacceptable: refused, and why
        :raises nova.exception.FlavorDiskSmallerThanImage: as Nova would
            raise it once the image had been converted
        :raises qemu_img.QemuImgFailure: nothing is known about the image;
            Nova tries another host on what is none of its own exceptions
            about images
        """
        part = target + '.part'
        images.fetch(context, image_id, part, trusted_certs)
        with fileutils.remove_path_on_error(part):
            image = images.get_info(context, image_id)
            with open(part, 'rb') as f:
                decided = self._judge(f, image, size)
                if decided.disk_format != 'qed':
                    # A second opinion, with whatever a newer Nova looks at.
                    self._novas_inspection(image, image_id, part)
                if self._policy.force_raw and 'raw' not in (
                        decided.disk_format, decided.converted_to):
                    LOG.info('Image %s is not made raw, because Nova would '
                             'not accept its disk as a raw file.', image_id)
                if decided.converted_to is None:
                    os.rename(part, target)
                    return
                self._convert(f, image_id, decided, target)
            os.unlink(part)

    @staticmethod
    def _novas_inspection(image: Any, image_id: str, part: str) -> None:
        try:
            images.do_image_deep_inspection(image, image_id, part)
        except exception.ImageUnacceptable:
            counters.COUNTERS.add(names.REFUSALS, names.OTHER)
            raise

    def _judge(self, f: BinaryIO, image: Any, size: int | None
               ) -> verdict.Verdict:
        declared = str(image['disk_format'])
        found = facts.read(f, declared, self._limits)
        decided = verdict.judge(
            found, declared, self._policy, size or None,
            kernel=bool((image.get('properties') or {}).get('kernel_id')))
        if decided.accepted:
            return decided
        counters.COUNTERS.add(names.REFUSALS, _counted_as(decided.check))
        LOG.error('KVML604 Image %(id)s, declared as %(declared)s, is refused '
                  'by the check "%(check)s": %(reason)s %(remedy)s',
                  {'id': image['id'], 'declared': errors.clean(declared, 40),
                   'check': decided.check, 'reason': decided.reason,
                   'remedy': decided.remedy})
        if decided.check == 'flavor':
            raise exception.FlavorDiskSmallerThanImage(
                flavor_size=size, image_size=found.virtual_size)
        raise exception.ImageUnacceptable(image_id=image['id'],
                                          reason=decided.said)

    def _convert(self, f: BinaryIO, image_id: str, decided: verdict.Verdict,
                 target: str) -> None:
        LOG.info('Converting image %(id)s from %(from)s to %(to)s.',
                 {'id': image_id, 'from': decided.disk_format,
                  'to': decided.converted_to})
        result = 'failed'
        try:
            # As Nova bounds the work on a host's disks.
            with compute_utils.disk_ops_semaphore:
                convert.convert(
                    f, decided, target, self._limits,
                    temporary=target + '.converted',
                    direct=privsep_utils.supports_direct_io(
                        os.path.dirname(target)))
            result = 'converted'
        except convert.ConversionError as e:
            LOG.error('KVML605 Image %(id)s cannot be converted: %(why)s',
                      {'id': image_id, 'why': e})
            raise exception.ImageUnacceptable(
                image_id=image_id, reason=errors.clean(
                    e, verdict.FAULT_LENGTH)) from e
        finally:
            counters.COUNTERS.add(
                names.CONVERSIONS, str(decided.disk_format), result)
