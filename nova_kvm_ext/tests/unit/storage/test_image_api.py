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

import io
from typing import Any
from unittest import mock

import ddt
import fixtures
from nova import exception
from oslotest import base

from nova_kvm_ext.storage import consistency
from nova_kvm_ext.storage import image_api

KNOWN = consistency.Consistency(consistency.Reason.FROZEN, 0.2, '7.2.22')
NOVAS: dict[str, Any] = {'name': 'snap', 'properties': {
    'image_location': 'snapshot', 'kvm_ext_quiesced': 'of another image'}}


@ddt.ddt
class ImageAPITestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.real = mock.Mock()
        self.api = image_api.ImageAPI(
            self.real, {'snapshot': KNOWN}.get)
        self.log = self.useFixture(fixtures.FakeLogger(
            'nova_kvm_ext.storage'))

    def update(self, data=None, image='snapshot'):
        return self.api.update(mock.sentinel.context, image, NOVAS, data,
                               purge_props=False)

    def sent(self) -> list[dict[str, str]]:
        return [call.args[2]['properties']
                for call in self.real.update.call_args_list]

    def test_snapshot(self):
        self.assertIs(self.real.update.return_value, self.update())
        self.assertEqual([{'image_location': 'snapshot'} |
                          KNOWN.properties()], self.sent())
        self.assertEqual({'data': None, 'purge_props': False},
                         self.real.update.call_args.kwargs)
        self.assertIn('quiesced: yes', self.log.output)
        # Nova goes on with its own.
        self.assertEqual('of another image',
                         NOVAS['properties']['kvm_ext_quiesced'])

    def test_other_images(self):
        self.update(image='other')
        self.assertEqual([NOVAS['properties']], self.sent())
        self.assertIs(self.real.get.return_value, self.api.get('image'))

    @ddt.data(exception.ImageNotAuthorized(image_id='snapshot'),
              exception.ImageBadRequest(image_id='snapshot', response='no'),
              exception.ImageQuotaExceeded(image_id='snapshot'),
              exception.Forbidden('no'))
    def test_glance_that_refuses_the_properties(self, refusal):
        self.real.update.side_effect = [refusal, 'image']
        data = io.BytesIO(b'disk')
        self.assertEqual('image', self.update(data))
        self.assertEqual(NOVAS['properties'], self.sent()[1])
        self.assertIn('property_protection_file', self.log.output)
        self.assertIn('yes (frozen by the guest agent)', self.log.output)
        self.assertNotIn('says that', self.log.output)

    def test_glance_that_refuses_the_image(self):
        refusal = exception.ImageQuotaExceeded(image_id='snapshot')
        self.real.update.side_effect = refusal
        self.assertIs(refusal, self.assertRaises(
            exception.ImageQuotaExceeded, self.update))
        self.assertNotIn('property_protection_file', self.log.output)

    def test_glance_that_refuses_the_data(self):
        """What was read cannot be sent again: an image would be cut."""
        def update(context, image, info, data, **kwargs):
            data.read(2)
            raise exception.ImageQuotaExceeded(image_id=image)

        self.real.update.side_effect = update
        self.assertRaises(exception.ImageQuotaExceeded, self.update,
                          io.BytesIO(b'disk'))
        self.real.update.assert_called_once()

    def test_other_errors_are_not_tried_twice(self):
        self.real.update.side_effect = exception.ImageNotFound(image_id='s')
        self.assertRaises(exception.ImageNotFound, self.update)
        self.real.update.assert_called_once()
