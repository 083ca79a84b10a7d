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

"""What is done once for each guest: within its time, and all of it in the end.
"""

from collections.abc import Iterator
import logging
from unittest import mock
import uuid

import fixtures
from nova import exception
from nova.virt.libvirt import driver as libvirt_driver
from oslotest import base

from nova_kvm_ext.guests import errands
from nova_kvm_ext.tests.unit import driver_base


class ErrandsTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.now = 0.0
        self.useFixture(fixtures.MockPatchObject(
            errands.time, 'monotonic', side_effect=lambda: self.now))
        self.done = 0
        self.errands = errands.Errands()

    def errand(self) -> None:
        self.done += 1
        self.now += 0.125

    def cut_short(self, number: int, error: Exception
                  ) -> Iterator[errands.Errand]:
        for _ in range(number):
            yield self.errand
        raise error

    def test_rounds(self):
        self.errands.begin(lambda: [self.errand] * 25,
                           lambda: [self.errand] * 5)
        self.assertEqual(0, self.done)
        for done in (8, 16, 24, 30, 30):
            self.errands.go_on()
            self.assertEqual(done, self.done)

    def test_a_round_does_one_thing_at_least(self):
        self.useFixture(fixtures.MockPatchObject(errands, 'ROUND', 0))
        self.errands.begin(lambda: [self.errand] * 2)
        self.errands.go_on()
        self.assertEqual(1, self.done)

    def test_nothing_to_do(self):
        self.errands.go_on()
        self.errands.begin(list, list)
        self.errands.go_on()
        self.assertFalse(self.errands._kinds)

    def test_an_error_ends_the_round_and_not_the_rest(self):
        log = self.useFixture(fixtures.FakeLogger())
        kinds = mock.Mock(side_effect=[
            exception.HypervisorUnavailable(host='me'), [self.errand]])
        self.errands.begin(kinds, lambda: [self.errand])
        for done in (0, 2, 2):
            self.errands.go_on()
            self.assertEqual(done, self.done)
        self.assertIn('KVML511', log.output)

    def test_one_guest_costs_itself_only(self):
        """It is tried again when the others are done."""
        log = self.useFixture(fixtures.FakeLogger(level=logging.DEBUG))
        odd = mock.Mock(side_effect=[ValueError('a'), KeyError('b'), None])
        listed = mock.Mock(return_value=[self.errand, odd, self.errand])
        self.errands.begin(listed, lambda: [self.errand])
        said = []
        for tried in (1, 2, 3, 3):
            self.errands.go_on()
            self.assertEqual((3, tried), (self.done, odd.call_count))
            said.append(log.output.count('KVML511'))
        self.assertEqual([1, 2, 2, 2], said)
        listed.assert_called_once_with()
        self.assertFalse(self.errands._kinds or self.errands._failed)
        # Nothing is left of them after another start.
        odd.side_effect = ValueError
        self.errands.begin(lambda: [odd])
        self.errands.go_on()
        self.errands.begin(list)
        for _ in range(3):
            self.errands.go_on()
        self.assertEqual(4, odd.call_count)

    def test_those_that_failed_have_rounds_too(self):
        def slow() -> None:
            self.now += 0.5
            raise ValueError

        self.errands.begin(lambda: [slow] * 5 + [self.errand])
        for _ in range(3):
            self.errands.go_on()
        self.assertEqual((1, 5), (self.done, len(self.errands._failed)))
        self.errands.go_on()
        # Two of five again, and the rest waits.
        self.assertEqual(2, len(self.errands._failed))

    def test_each_change_is_said_once(self):
        """And not in each of the many rounds of a host with many guests."""
        log = self.useFixture(fixtures.FakeLogger(level=logging.INFO))
        down = exception.HypervisorUnavailable(host='me')
        broken = mock.Mock(side_effect=[ValueError, ValueError, None])
        kinds = mock.Mock(side_effect=[
            down, down, self.cut_short(8, down), [self.errand, broken]])
        self.errands.begin(lambda: [self.errand] * 16, kinds)
        said = []
        for _ in range(9):
            self.errands.go_on()
            said.append((log.output.count('continues'),
                         log.output.count('KVML511')))
        # Two rounds, two errors, a round, an error, and one guest thrice.
        self.assertEqual([(1, 0)] * 2 + [(1, 1)] * 3 + [(1, 2)] * 4, said)
        self.assertFalse(self.errands._kinds or self.errands._failed)
        # After another start both are said again.
        self.errands.begin(lambda: [self.errand] * 9, mock.Mock(
            side_effect=down))
        for _ in range(3):
            self.errands.go_on()
        self.assertEqual((2, 3), (log.output.count('continues'),
                                  log.output.count('KVML511')))

    def test_no_second_round_beside_one(self):
        self.errands.begin(lambda: [self.errands.go_on, self.errand])
        self.errands.go_on()
        self.assertEqual(1, self.done)


class DriverTestCase(driver_base.DriverTestCase):

    def test_400_guests_cost_the_start_nothing(self):
        drvr = self.started()
        for _ in range(400):
            name = str(uuid.uuid4())
            drvr._host.get_connection().defineXML(
                f'<domain type="kvm"><name>{name}</name><uuid>{name}</uuid>'
                f'<memory>65536</memory><vcpu>1</vcpu>'
                f'<os><type>hvm</type></os><devices/></domain>'
            ).createWithFlags(0)
        asked: list[str] = []
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Domain.agentSetResponseTimeout',
            lambda domain, *args: asked.append(domain.UUIDString())))
        self.useFixture(fixtures.MockPatchObject(errands, 'ROUND', 60))
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, 'init_host'):
            drvr.init_host('host')
        self.assertEqual([], asked)
        with mock.patch.object(libvirt_driver.LibvirtDriver,
                               'get_available_resource', return_value={}):
            drvr.get_available_resource('node')
        self.assertEqual(400, len(set(asked)))
        self.assertEqual(400, len(asked))
