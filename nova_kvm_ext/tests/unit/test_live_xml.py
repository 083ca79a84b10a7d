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

"""No wait for the XML of a guest whose QEMU does not answer libvirt."""

from typing import Any
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext import live_xml

WAITS = 9_001_000


class Error(Exception):

    def get_error_code(self) -> int:
        return 55  # VIR_ERR_OPERATION_INVALID


class BusyTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.slept = self.useFixture(
            fixtures.MockPatchObject(live_xml.time, 'sleep')).mock

    def domain(self, *controls: Any, version: int = WAITS) -> mock.Mock:
        domain = mock.Mock()
        domain.XMLDesc.side_effect = lambda flags: f'<domain {flags}/>'
        domain.controlInfo.side_effect = controls
        domain.connect.return_value.getLibVersion.return_value = version
        return domain

    def test_a_guest_that_is_well(self):
        self.assertEqual('<domain 0/>', live_xml.read(self.domain((0, 0, 0))))
        self.assertEqual('<domain 2/>',
                         live_xml.read(self.domain((0, 0, 0)), 2))

    def test_qemu_hangs(self):
        for milliseconds in (1000, 60000):
            domain = self.domain((2, 0, milliseconds))
            self.assertIsNone(live_xml.read(domain))
            domain.XMLDesc.assert_not_called()

    def test_qemu_answers_a_moment_later(self):
        self.assertEqual('<domain 0/>', live_xml.read(
            self.domain((2, 0, 10), (2, 0, 60), (0, 0, 0))))
        self.assertEqual(2, self.slept.call_count)

    def test_qemu_answers_one_after_the_other(self):
        domain = self.domain()
        domain.controlInfo.side_effect = None
        domain.controlInfo.return_value = (2, 0, 10)
        self.assertEqual('<domain 0/>', live_xml.read(domain))

    def test_qemu_begins_to_hang(self):
        domain = self.domain((2, 0, 950), (2, 0, 999), (2, 0, 1000))
        self.assertIsNone(live_xml.read(domain))
        domain.XMLDesc.assert_not_called()

    def test_a_libvirt_that_gives_it_at_once(self):
        self.assertEqual('<domain 0/>', live_xml.read(
            self.domain((2, 0, 60000), version=WAITS - 1)))

    def test_other_states(self):
        """A job, as a migration, and a broken monitor."""
        for state in (1, 3):
            self.assertEqual('<domain 0/>', live_xml.read(
                self.domain((state, 0, 60000))))

    def test_libvirt_does_not_tell(self):
        self.assertEqual('<domain 0/>', live_xml.read(self.domain(Error())))
        self.assertEqual('<domain 0/>', live_xml.read(mock.Mock(
            spec=['XMLDesc'], XMLDesc=lambda flags: '<domain 0/>')))

    def test_what_is_not_of_libvirt_is_raised(self):
        self.assertRaises(ZeroDivisionError, live_xml.read,
                          self.domain(ZeroDivisionError()))
