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

from unittest import mock
import uuid

import fixtures
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
        self.now += 0.1

    def test_a_share_of_novas_start(self):
        self.errands.begin([self.errand] * 30, 5)
        self.assertEqual(5, self.done)
        for done in (15, 25, 30, 30):
            self.errands.go_on()
            self.assertEqual(done, self.done)

    def test_one_at_least(self):
        self.errands.begin([self.errand] * 2, 0)
        self.assertEqual(1, self.done)

    def test_nothing_to_do(self):
        self.errands.begin([], 1)
        self.errands.go_on()


class DriverTestCase(driver_base.DriverTestCase):
    """400 guests, and Nova's start is over in no time."""

    def test_the_rest_is_done_in_the_periodic_update(self):
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
        self.useFixture(fixtures.MockPatchObject(errands, 'SHARE', 0))
        self.useFixture(fixtures.MockPatchObject(errands, 'ROUND', 60))
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, 'init_host'):
            drvr.init_host('host')
        self.assertEqual(1, len(asked))
        with mock.patch.object(libvirt_driver.LibvirtDriver,
                               'get_available_resource', return_value={}):
            drvr.get_available_resource('node')
        self.assertEqual(400, len(set(asked)))
        self.assertEqual(400, len(asked))
