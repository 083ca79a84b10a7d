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

from typing import Any

from oslotest import base

from nova_kvm_ext import errors
from nova_kvm_ext import request
from nova_kvm_ext.vhost import queues


def decide(flavor: str | None = None, image: str | None = None,
           vcpus: int = 8, multiqueue: bool = True,
           max_queues: int | None = None) -> queues.QueueLimit:
    return queues.decide(
        request.GuestRequest(
            {} if flavor is None else {'vhost_queues': flavor},
            {} if image is None else {'vhost_queues': image}),
        vcpus, multiqueue, max_queues)


class MadeBeforeTestCase(base.BaseTestCase):

    def test_who_makes_the_tap_device(self):
        for vif_type, details, wanted in (
                ('tap', {}, True), ('ovs', {'ovs_create_tap': True}, True),
                ('ovs', {'ovs_create_tap': False}, False), ('ovs', {}, False),
                ('bridge', {'ovs_create_tap': True}, False),
                (None, {}, False)):
            self.assertIs(wanted, queues.made_before(vif_type, details))


class QueuesTestCase(base.BaseTestCase):

    def refused(self, **kwargs: Any) -> str:
        return str(self.assertRaises(errors.InvalidRequest, decide, **kwargs))

    def test_the_lowest_limit_counts(self):
        cases: tuple[tuple[int, dict[str, Any]], ...] = (
            (8, {}), (256, {'vcpus': 300}), (4, {'max_queues': 4}),
            (8, {'max_queues': 16}), (2, {'flavor': '2'}),
            (2, {'flavor': '4', 'image': '2'}),
            (3, {'flavor': '4', 'image': '6', 'max_queues': 3}),
            (1, {'flavor': '1'}), (1, {'image': ' 1 '}),
            (8, {'image': '16'}), (4, {'image': '8', 'flavor': '4'}),
            (256, {'vcpus': 300, 'max_queues': 256}))
        for wanted, kwargs in cases:
            self.assertEqual(wanted, decide(**kwargs).limit, str(kwargs))

    def test_it_says_whose_limit_it_is(self):
        self.assertIn('8 vCPUs', decide().reason)
        self.assertIn('a tap device', decide(vcpus=300).reason)
        self.assertIn('[kvm_ext] max_vhost_queues = 3',
                      decide(max_queues=3).reason)
        self.assertIn('kvm_ext_vhost_queues = 2', decide(image='2').reason)

    def test_a_tenant_never_gets_more(self):
        without = decide(flavor='4', max_queues=3).limit
        for value in ('1', '2', '3', '4', '5', '200', '256'):
            self.assertLessEqual(
                decide(flavor='4', image=value, max_queues=3).limit, without)

    def test_no_number(self):
        for value in ('0', '00', '-1', '', ' ', 'all', '1.5', '0x4', '1e2',
                      '\u0664', '4 4', '9' * 5000, '\x1b[31m'):
            for where, name in (('flavor', 'kvm_ext:vhost_queues'),
                                ('image', 'kvm_ext_vhost_queues')):
                text = self.refused(**{where: value})
                self.assertIn(name, text)
                self.assertIn('from 1 to 8', text)
                self.assertIn('8 vCPUs', text)
                self.assertLess(len(text), 400)
                self.assertTrue(text.isprintable())

    def test_more_than_the_kernel_has(self):
        for where in ('flavor', 'image'):
            text = self.refused(**{where: '257'}, vcpus=300)
            self.assertIn('= 257 is more than 256', text)
            self.assertIn('the kernel', text)

    def test_a_flavor_of_more_queues_than_vcpus(self):
        text = self.refused(flavor='9')
        self.assertIn('kvm_ext:vhost_queues = 9 is more than 8', text)
        self.assertIn('vCPUs', text)

        self.assertEqual(8, decide(flavor='8').limit)

    def test_without_multiqueue(self):
        for where in ('flavor', 'image'):
            text = self.refused(**{where: '2'}, multiqueue=False)
            self.assertIn('more than 1', text)
            self.assertIn('hw:vif_multiqueue_enabled', text)
        for found in (decide(flavor='1', multiqueue=False),
                      decide(image='1', multiqueue=False)):
            self.assertEqual(1, found.limit)

    def test_one_vcpu_is_never_multiqueue(self):
        """For Nova; that the image allows more is no error."""
        self.assertEqual(
            1, decide(image='4', vcpus=1, multiqueue=False).limit)
