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

"""What tools/next-nova prints about another Nova."""

from typing import Any

from oslotest import base

from nova_kvm_ext.tests import next_nova
from nova_kvm_ext.tests.unit import test_contract


def plain(self: Any, one: int, two: int = 2) -> int:
    """Says something."""
    found: int = one
    # Adds.
    return found + two


def same(self: Any, one: str, two: int = 2) -> str:
    found: str = one
    return found + two  # type: ignore[operator]


def other(self: Any, two: int = 2, *, three: int = 3) -> int:
    return self.one + two + three


class CompareTestCase(base.BaseTestCase):

    def described(self, function: Any) -> dict[str, Any]:
        return {'takes': next_nova._parameters(function),
                'body': next_nova._body(function), 'place': 'file.py:1'}

    def compare(self, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
        return next_nova.compare({'': {}, **old}, {'': {}, **new})

    def test_annotations_and_comments_are_no_change(self):
        self.assertEqual([], self.compare({'a': self.described(plain)},
                                          {'a': self.described(same)}))

    def test_a_changed_function(self):
        self.assertEqual(
            ['repair  a adds three=3; drops one',
             'read    a: +1 -2 of 2 lines; file.py:1'],
            self.compare({'a': self.described(plain)},
                         {'a': self.described(other)}))

    def test_another_order(self):
        self.assertEqual(
            ['repair  a has another order: b, a'],
            self.compare({'a': {'takes': ['a', 'b']}},
                         {'a': {'takes': ['b', 'a']}}))

    def test_names(self):
        self.assertEqual(
            ['gone    a', 'new     b'], self.compare({'a': {}}, {'b': {}}))

    def test_values(self):
        self.assertEqual(
            ['look at a adds (9, 0); drops (8, 0)'],
            self.compare({'a': {'is': ['(8, 0)']}}, {'a': {'is': ['(9, 0)']}}))

    def test_all_that_the_contract_names_is_there(self):
        """On every Nova that is supported."""
        described = next_nova.describe()
        self.assertEqual([], next_nova.compare(described, described))
        self.assertLessEqual(set(test_contract.CALLS), set(described))
        guest_config = described[
            f'{test_contract.LIBVIRT_DRIVER}._get_guest_config']
        self.assertIn('mdevs=None', guest_config['takes'])
        self.assertIn('virt/libvirt/driver.py:', guest_config['place'])
