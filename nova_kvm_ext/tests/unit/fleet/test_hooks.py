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

import json
from unittest import mock

from nova import exception
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from oslotest import base

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import stored
from nova_kvm_ext.cpu import usable
from nova_kvm_ext.fleet import export
from nova_kvm_ext.fleet import hooks
from nova_kvm_ext.tests.unit.cpu import hosts
from nova_kvm_ext.tests.unit import driver_base
from nova_kvm_ext.tests.unit.fleet import fleets


class DriverTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.be_host()
        self.driver = self.started(virt_type='kvm')

    def test_published(self):
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, 'get_available_resource',
                return_value=PublishedTestCase.NOVAS):
            found = self.driver.get_available_resource('node')
        said = export.from_dict(
            json.loads(found['cpu_info'])[export.MARK], 'it')
        self.assertEqual('host', said.host)
        self.assertEqual(fleets.host('a').cpu.digest, said.cpu.digest)

    def test_diagnostics(self):
        cpu = objects.VirtCPUModel(
            mode='custom', model='EPYC', vendor='AMD', match='exact',
            topology=None, features=[objects.VirtCPUFeature(
                name='vme', policy='require')])
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, 'get_diagnostics',
                return_value={'memory': 1}):
            for kept, said in ((cpu, True), (None, False)):
                found = self.driver.get_diagnostics(
                    self.make_instance(vcpu_model=kept))
                self.assertEqual(1, found['memory'])
                self.assertIs(said, stored.DIAGNOSTICS_KEY in found)
                if said:
                    self.assertEqual(
                        (('vme', 'require'),), definition.CPU.parse(
                            found[stored.DIAGNOSTICS_KEY]).features)


class PublishedTestCase(base.BaseTestCase):

    NOVAS = {'cpu_info': '{"arch": "x86_64", "features": ["fpu"]}',
             'vcpus': 2}

    def setUp(self):
        super().setUp()
        self.published = hooks.Published()
        self.connection = mock.Mock(
            **{'getLibVersion.return_value': 9_000_000,
               'getVersion.return_value': 7_002_000})
        self.host = usable.Host(
            'kvm', capabilities.parse(hosts.capabilities()), hosts.MAP)

    def test_before_the_start(self):
        self.assertIs(self.NOVAS, self.published.add_to(self.NOVAS))

    def test_nothing_known(self):
        self.published.start(lambda: self.connection, lambda: None, 'me')
        self.assertIs(self.NOVAS, self.published.add_to(self.NOVAS))

    def test_libvirt_is_asked_once(self):
        self.published.start(lambda: self.connection, lambda: self.host, 'me')
        self.connection.getLibVersion.assert_not_called()
        for _ in range(2):
            self.published.add_to(self.NOVAS)
        self.connection.getLibVersion.assert_called_once_with()

    def test_libvirt_is_away(self):
        connect = mock.Mock(side_effect=[
            exception.HypervisorUnavailable(host='me'), self.connection])
        self.published.start(connect, lambda: self.host, 'me')
        self.assertIs(self.NOVAS, self.published.add_to(self.NOVAS))
        self.assertIsNot(self.NOVAS, self.published.add_to(self.NOVAS))

    def test_document(self):
        self.published.start(lambda: self.connection, lambda: self.host, 'me')
        before = dict(self.NOVAS)
        found = self.published.add_to(self.NOVAS)
        self.assertEqual(before, self.NOVAS)
        self.assertEqual(2, found['vcpus'])
        info = json.loads(found['cpu_info'])
        self.assertEqual(('x86_64', ['fpu']),
                         (info['arch'], info['features']))
        said = export.from_dict(info[export.MARK], 'it')
        self.assertEqual(('me', '9.0.0'), (said.host, said.libvirt))
        self.assertEqual(fleets.host('a').cpu.digest, said.cpu.digest)
        self.assertEqual(info[export.MARK]['digest'], said.cpu.digest)

    def test_what_nova_has_not_filled_in(self):
        self.published.start(lambda: self.connection, lambda: self.host, 'me')
        for odd in ({}, {'cpu_info': ''}, {'cpu_info': None},
                    {'cpu_info': '7'}, {'cpu_info': '{'}):
            self.assertIs(odd, self.published.add_to(odd))

    def test_what_would_not_fit(self):
        self.published.start(lambda: self.connection, lambda: self.host, 'me')
        size = len(self.published.add_to(self.NOVAS)['cpu_info'])
        with mock.patch.object(hooks, '_MOST_BYTES', size):
            self.assertIsNot(self.NOVAS, self.published.add_to(self.NOVAS))
        with mock.patch.object(hooks, '_MOST_BYTES', size - 1):
            self.assertIs(self.NOVAS, self.published.add_to(self.NOVAS))
