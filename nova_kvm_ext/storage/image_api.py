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

"""Nova's image service, with the properties of a snapshot added."""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any

from nova import exception

from nova_kvm_ext import errors
from nova_kvm_ext import log
from nova_kvm_ext.storage import consistency

LOG = log.getLogger(__name__)

REFUSALS = (exception.ImageNotAuthorized, exception.ImageBadRequest,
            exception.ImageQuotaExceeded, exception.Forbidden)
"""What Nova makes of Glance's refusal of a property, among other things:
forbidden (property_protection_file), against Glance's schema, or too many
(image_property_quota)."""


class ImageAPI:
    """nova.image.glance.API, with our properties on images of snapshots.

    Nova makes the image's properties before it makes the snapshot, and sends
    them by :meth:`update` when the snapshot is made. By then it is known
    whether the guest was quiesced.

    :param known: what is known of the snapshot with this image ID, which this
        thread makes; None where it makes none
    """

    def __init__(self, api: Any, known: Callable[
            [str], consistency.Consistency | None]) -> None:
        self._real = api
        self._known = known

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def update(self, context: Any, image_id: Any, image_info: Any,
               data: Any = None, **kwargs: Any) -> Any:
        """Nova's.

        A Glance that refuses our properties gets the image without them: no
        snapshot may fail for what says what it is. What the image has of them
        already is corrected first: a tenant, or the image that the server was
        booted from, may have said so.
        """
        known = self._known(image_id)
        if known is None:
            return self._real.update(
                context, image_id, image_info, data=data, **kwargs)
        send = functools.partial(
            self._send, context, image_id, image_info, data, kwargs)
        ours = known.properties()
        try:
            found = send(ours)
        except REFUSALS as e:
            if _was_read(data):
                raise
            found = self._send_some(
                send, self._already_there(context, image_id, ours), data)
            LOG.warning(
                'KVML801 Glance does not take all of the properties '
                '%(names)s, so that image %(image)s may not say that its '
                'snapshot is '
                'quiesced: %(answer)s (%(reason)s). See '
                'property_protection_file and image_property_quota of '
                'Glance. Glance says: %(error)s',
                {'names': ', '.join(consistency.PROPERTIES),
                 'image': image_id, 'answer': known.answer,
                 'reason': known.reason.value, 'error': errors.clean(e)})
            return found
        LOG.info('Image %(image)s says that its snapshot is quiesced: '
                 '%(answer)s (%(reason)s); seconds that the guest was frozen: '
                 '%(seconds)s.',
                 {'image': image_id, 'answer': known.answer,
                  'reason': known.reason.value,
                  'seconds': known.frozen_seconds})
        return found

    def _send(self, context: Any, image_id: Any, image_info: Any, data: Any,
              kwargs: Mapping[str, Any], ours: Mapping[str, str]) -> Any:
        if ours:
            image_info = image_info | {'properties': {
                **image_info.get('properties', {}), **ours}}
        return self._real.update(
            context, image_id, image_info, data=data, **kwargs)

    @staticmethod
    def _send_some(send: Callable[[Mapping[str, str]], Any],
                   some: Mapping[str, str], data: Any) -> Any:
        """The same with some of our properties, or with none."""
        if some:
            try:
                return send(some)
            except REFUSALS:
                if _was_read(data):
                    raise
        return send({})

    def _already_there(self, context: Any, image_id: Any,
                       ours: Mapping[str, str]) -> dict[str, str]:
        """Those of our properties that an image has, as they should be."""
        try:
            there = self._real.get(context, image_id)['properties']
        except Exception as e:
            # Glance's client and its connection have errors of their own. The
            # snapshot must not fail because of them.
            LOG.debug('Which properties the image %s has is not known: %s',
                      errors.clean(image_id), errors.clean(e))
            return {}
        return {name: value for name, value in ours.items() if name in there}


def _was_read(data: Any) -> bool:
    """Whether Glance has taken the properties: they come before data.

    Data that was read cannot be sent again.
    """
    return data is not None and bool(data.tell())
