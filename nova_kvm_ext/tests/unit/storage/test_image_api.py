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
        self.real.get.return_value = {'properties': {'os_type': 'linux'}}
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

    def test_what_a_tenant_said_is_corrected(self):
        """An image with as many properties as there may be takes no more."""
        self.real.get.return_value = {'properties': {
            'kvm_ext_quiesced': 'a lie', 'kvm_ext_frozen_seconds': '-1'}}
        refusal = exception.ImageQuotaExceeded(image_id='snapshot')
        self.real.update.side_effect = [refusal, 'image']
        self.assertEqual('image', self.update(io.BytesIO(b'disk')))
        self.assertEqual({
            'image_location': 'snapshot', 'kvm_ext_quiesced': 'yes',
            'kvm_ext_frozen_seconds': '0.20'}, self.sent()[1])
        self.assertIn('KVML801', self.log.output)

    @ddt.data(exception.ImageNotAuthorized(image_id='snapshot'),
              exception.ImageNotFound(image_id='snapshot'),
              OSError('Glance is away'))
    def test_what_a_tenant_said_is_protected(self, of_get):
        refusal = exception.ImageNotAuthorized(image_id='snapshot')
        self.real.get.return_value = {'properties': {
            'kvm_ext_quiesced': 'a lie'}}
        self.real.update.side_effect = [refusal, refusal, 'image']
        self.assertEqual('image', self.update())
        self.assertEqual(NOVAS['properties'], self.sent()[2])
        self.real.get.side_effect = of_get
        self.real.update.side_effect = [refusal, 'image']
        self.assertEqual('image', self.update())

    def test_data_that_is_refused_after_the_correction(self):
        refusal = exception.ImageQuotaExceeded(image_id='snapshot')

        def update(context, image, info, data, **kwargs):
            if self.real.update.call_count == 2:
                data.read(2)
            raise refusal

        self.real.get.return_value = {'properties': {
            'kvm_ext_quiesced': 'a lie'}}
        self.real.update.side_effect = update
        self.assertRaises(exception.ImageQuotaExceeded, self.update,
                          io.BytesIO(b'disk'))
        self.assertEqual(2, self.real.update.call_count)

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
