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

from oslotest import base

from nova_kvm_ext import errors
from nova_kvm_ext import request
from nova_kvm_ext.storage import consistency


class TraitsTestCase(base.BaseTestCase):

    def test_required(self):
        self.assertEqual(
            frozenset({'HW_A', 'CUSTOM_B', 'C'}), request.required_traits({
                'trait:HW_A': 'required', 'trait1:CUSTOM_B': 'required',
                'trait_x-Y:C': 'required', 'trait:D': 'forbidden',
                'traits:E:': 'no', 'hw:trait:F': 'required',
                'trait' + 'x' * 65 + ':G': 'required', 'trait:': 'required',
                'trait ' + ':H': 'required'}))
        self.assertEqual(frozenset(), request.required_traits({}))


class LongTestCase(base.BaseTestCase):
    """A tenant may write what it likes."""

    def test_a_value(self):
        for by_tenant, where in (
                (True, 'image property kvm_ext_cpu_mode'),
                (False, 'flavor extra spec kvm_ext:cpu_mode')):
            for length, shown in ((80, 'x' * 80), (81, 'x' * 77 + '...')):
                self.assertEqual(f'{where} = {shown}', request.Wish(
                    'cpu_mode', 'x' * length, by_tenant).said)

    def test_a_name(self):
        long = request.GuestRequest({'y' * 81: ''}, {'x' * 81: ''})
        self.assertEqual(
            ['flavor extra spec kvm_ext:' + 'y' * 77 + '...',
             'image property kvm_ext_' + 'x' * 77 + '...'], long.unknown())
        self.assertEqual(
            ['image property kvm_ext_' + 'x' * 80],
            request.GuestRequest({}, {'x' * 80: ''}).unknown())


class GuestRequestTestCase(base.BaseTestCase):

    def test_only_what_is_ours(self):
        found = request.GuestRequest.read(
            {'kvm_ext:cpu_mode': 'custom', 'hw:cpu_policy': 'shared',
             'kvm_ext': 'x'},
            {'image_kvm_ext_cpu_model': 'Nehalem', 'image_hw_vif_model': 'x',
             'kvm_ext_cpu_mode': 'not from the image'})
        self.assertEqual({'cpu_mode': 'custom'}, found.flavor)
        self.assertEqual({'cpu_model': 'Nehalem'}, found.image)

    def test_nobody_asks(self):
        self.assertIsNone(request.GuestRequest().wish('cpu_mode'))

    def test_who_asks(self):
        found = request.GuestRequest({'cpu_mode': 'none'},
                                     {'cpu_model': 'Nehalem'})
        self.assertEqual('flavor extra spec kvm_ext:cpu_mode = none',
                         found.wish('cpu_mode').said)
        self.assertFalse(found.wish('cpu_mode').by_tenant)
        self.assertEqual('image property kvm_ext_cpu_model = Nehalem',
                         found.wish('cpu_model').said)
        self.assertTrue(found.wish('cpu_model').by_tenant)

    def test_both_ask_for_the_same(self):
        found = request.GuestRequest({'cpu_model': 'EPYC'},
                                     {'cpu_model': 'epyc'})
        self.assertFalse(found.wish('cpu_model').by_tenant)

    def test_contradiction(self):
        found = request.GuestRequest({'cpu_mode': 'custom'},
                                     {'cpu_mode': 'none'})
        error = self.assertRaises(
            errors.InvalidRequest, found.wish, 'cpu_mode')
        self.assertIn('flavor extra spec kvm_ext:cpu_mode = custom',
                      error.problem)
        self.assertIn('image property kvm_ext_cpu_mode = none', error.problem)

    def test_what_a_snapshot_says_of_itself_is_no_wish(self):
        found = request.GuestRequest({}, {
            'quiesced': 'yes', 'quiesced_reason': 'frozen by the guest agent',
            'frozen_seconds': '0.20', 'guest_agent_version': '7.2.22'})
        self.assertEqual([], found.unknown())
        self.assertEqual(consistency.PROPERTIES, tuple(
            request.IMAGE_PREFIX + name for name in found.image))

    def test_hostile_text_is_made_harmless(self):
        wish = request.GuestRequest(
            {}, {'cpu_mode': '\x1b[2J\n' + 'x' * 1000}).wish('cpu_mode')
        self.assertTrue(wish.said.isprintable())
        self.assertLess(len(wish.said), 150)

    def test_misspelt(self):
        found = request.GuestRequest({'cpu_mod': 'x'}, {'cpu_\nmodle': 'x'})
        self.assertEqual(['flavor extra spec kvm_ext:cpu_mod',
                          'image property kvm_ext_cpu_ modle'],
                         found.unknown())
