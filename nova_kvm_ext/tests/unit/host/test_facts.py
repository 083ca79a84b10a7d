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

import fixtures
from oslotest import base

from nova_kvm_ext.host import facts
from nova_kvm_ext.host import install
from nova_kvm_ext.host import model


class ReadDeviceTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.root = self.useFixture(fixtures.TempDir()).path
        os.mkdir(os.path.join(self.root, 'dev'))

    def test_absent(self):
        self.assertFalse(facts.read_device('/dev/kvm', self.root).present)

    def test_a_plain_file_is_no_device(self):
        with open(os.path.join(self.root, 'dev', 'kvm'), 'w'):
            pass
        self.assertFalse(facts.read_device('/dev/kvm', self.root).present)

    def test_a_directory_in_its_place(self):
        os.mkdir(os.path.join(self.root, 'dev', 'kvm'))
        self.assertFalse(facts.read_device('/dev/kvm', self.root).present)

    def test_a_device_that_opens(self):
        os.symlink('/dev/null', os.path.join(self.root, 'dev', 'kvm'))
        found = facts.read_device('/dev/kvm', self.root)
        status = os.stat('/dev/null')
        self.assertEqual(
            model.DeviceFacts('/dev/kvm', True, status.st_mode & 0o7777,
                              status.st_uid, status.st_gid, None), found)

    def test_a_device_that_does_not_open(self):
        os.symlink('/dev/null', os.path.join(self.root, 'dev', 'kvm'))
        self.useFixture(fixtures.MockPatch(
            'os.open', side_effect=OSError(19, 'No such device')))
        self.assertEqual('ENODEV', facts.read_device(
            '/dev/kvm', self.root).open_error)


class ReadCPUMapTestCase(base.BaseTestCase):

    def test_no_files(self):
        root = self.useFixture(fixtures.TempDir()).path
        self.assertIsNone(facts.read_cpu_map(root))


class InstallTestCase(base.BaseTestCase):

    def problem(self, found: model.InstallFacts) -> str:
        return install.check(found) or ''

    def test_here(self):
        found = facts.read_install()
        self.assertIsNone(install.check(found), str(found))

    def test_another_site_directory(self):
        problem = self.problem(model.InstallFacts(
            ('/usr/lib/python3/dist-packages/nova/virt',),
            '/opt/venv/nova/virt/kvm_ext', 'nova.virt has no module kvm_ext'))
        self.assertIn('/usr/lib/python3/dist-packages/nova/virt', problem)
        self.assertIn('ln -s /opt/venv/nova/virt/kvm_ext '
                      '/usr/lib/python3/dist-packages/nova/virt/', problem)

    def test_no_nova(self):
        self.assertIn('Install nova-kvm-ext with the Python', self.problem(
            model.InstallFacts((), '/x/nova/virt/kvm_ext', 'no nova')))

    def test_incomplete(self):
        self.assertIn('incomplete', self.problem(
            model.InstallFacts(('/x/nova/virt',), None, 'no kvm_ext')))
