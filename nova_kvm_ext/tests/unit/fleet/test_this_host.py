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

import os
from unittest import mock

import fixtures
import libvirt
from oslotest import base

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import usable
from nova_kvm_ext.fleet import this_host
from nova_kvm_ext.tests.unit.cpu import hosts
from nova_kvm_ext.tests.unit.fleet import fleets


class Error(libvirt.libvirtError):
    def get_error_code(self):
        return 38


class ReadTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.root = self.useFixture(fixtures.TempDir()).path
        self.connection = mock.Mock(
            spec=libvirt.virConnect,
            **{'getLibVersion.return_value': 11_003_000,
               'getVersion.return_value': 10_000_002})
        self.host = usable.Host(
            'kvm', capabilities.parse(hosts.capabilities()), hosts.MAP)

    def file(self, path, text):
        path = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w') as f:
            f.write(text)

    def read(self):
        return this_host.read(self.connection, self.host, 'me', self.root)

    def test_all(self):
        self.file('proc/cpuinfo', 'processor\t: 0\nmicrocode\t: 0x8301055\n'
                                  'processor\t: 1\nmicrocode\t: 0x1\n')
        self.file('sys/module/kvm_amd/parameters/nested', '1\n')
        found = self.read()
        self.assertEqual(
            ('me', '11.3.0', '10.0.2', os.uname().release, '0x8301055', True),
            (found.host, found.libvirt, found.qemu, found.kernel,
             found.microcode, found.nested))
        self.assertEqual(fleets.host('a').cpu.digest, found.cpu.digest)

    def test_nothing(self):
        self.connection.getLibVersion.side_effect = Error('x')
        self.connection.getVersion.side_effect = Error('x')
        found = self.read()
        self.assertEqual((None,) * 4, (found.libvirt, found.qemu,
                                       found.microcode, found.nested))

    def test_nested(self):
        for said, nested in (('Y', True), ('N', False), ('0', False),
                             ('', None)):
            self.file('sys/module/kvm_intel/parameters/nested', said)
            self.assertIs(nested, self.read().nested)

    def test_what_is_no_error_of_libvirt(self):
        self.connection.getLibVersion.side_effect = RuntimeError
        self.assertRaises(RuntimeError, self.read)
