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


import fixtures
from oslotest import base

from nova_kvm_ext.host import libvirt_facts
from nova_kvm_ext.tests.unit.host import fake_host


class LibvirtFactsTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.connection = fake_host.FakeConnection()

    def read(self, **kwargs):
        return libvirt_facts.read(self.connection, 'x', 'x86_64', **kwargs)

    def test_all(self):
        found = self.read()
        self.assertEqual(((10, 0, 0), (8, 2, 2)),
                         (found.version, found.qemu))
        self.assertEqual((107, 36), found.user)
        self.assertTrue(found.offers_kvm)
        self.assertEqual(('pc-i440fx-8.2', 'pc', 'q35'), found.machines)
        self.assertEqual(('Nehalem', 'Icelake-Server'), found.models)

    def test_versions(self):
        for number, version in ((9_000_000, (9, 0, 0)),
                                (10_000_001, (10, 0, 1)),
                                (7_002_022, (7, 2, 22))):
            self.connection.version = number
            self.assertEqual(version, self.read().version)

    def test_another_architecture(self):
        found = libvirt_facts.read(self.connection, 'x', 's390x')
        self.assertFalse(found.offers_kvm)
        self.assertEqual((), found.machines)

    def test_not_asked(self):
        found = self.read(unasked='it takes minutes')
        self.assertEqual((10, 0, 0), found.version)
        self.assertIsNone(found.offers_kvm)
        self.assertEqual([], self.connection.asked)

    def test_an_answer_that_fails(self):
        self.useFixture(fixtures.MockPatchObject(
            self.connection, 'getCapabilities',
            side_effect=fake_host.FakeLibvirtError('it is broken')))
        self.assertEqual('it is broken', self.read().error)

    def test_a_defect_is_not_hidden(self):
        self.useFixture(fixtures.MockPatchObject(
            self.connection, 'getVersion', side_effect=ZeroDivisionError))
        self.assertRaises(ZeroDivisionError, self.read)

    def capabilities(self, virt_type):
        return libvirt_facts.read_domain_capabilities(
            self.connection, self.read(), 'x86_64', virt_type)

    def test_domain_capabilities(self):
        found = self.capabilities('qemu')
        self.assertEqual({'maximum', 'host-model', 'custom'},
                         found.domain_capabilities.modes)
        self.assertEqual(
            [('Nehalem', 'yes'), ('Icelake-Server', 'no')],
            [(m.name, m.usable) for m in found.domain_capabilities.models])
        self.assertIn('host-passthrough',
                      self.capabilities('kvm').domain_capabilities.modes)

    def test_refused(self):
        self.connection.kvm = False
        found = self.capabilities('kvm')
        self.assertIn('the accel', found.refuses['kvm'])
        self.assertIsNone(found.domain_capabilities.modes)
