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

from unittest import mock

import ddt
from oslotest import base

from nova_kvm_ext.guest_agent import counts


@ddt.ddt
class CountsTestCase(base.BaseTestCase):

    @ddt.data((3, 3, False, True), (3, 4, False, True),
              (3, 2, False, False), (3, 0, False, False),
              (3, None, False, None),
              # Who knows what the first thaw thawed?
              (3, 3, True, True), (3, 2, True, None), (3, 0, True, None))
    @ddt.unpack
    def test_stood(self, frozen, thawed, again, expected):
        self.assertIs(expected, counts.stood(frozen, thawed, again))

    @ddt.data((0, 0), (7, 7), (-1, None), (True, None), (None, None),
              ('1', None), (mock.Mock(), None))
    @ddt.unpack
    def test_number(self, answer, expected):
        self.assertEqual(expected, counts.number(answer))
