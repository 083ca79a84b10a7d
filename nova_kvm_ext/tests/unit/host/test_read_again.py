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

"""The look at a host's files while the service runs."""

import dataclasses
import os
from unittest import mock

from oslotest import base

from nova_kvm_ext.host.checks import runner
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import facts
from nova_kvm_ext.host import model
from nova_kvm_ext.tests.unit.host import fake_host


class ReadAgainTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.host = self.useFixture(fake_host.FakeHost())
        self.known = self.host.facts()

    def again(self) -> model.HostFacts:
        return facts.read_again(self.known, self.host.root)

    def failed(self) -> list[str]:
        return [result.code for result in runner.run(self.again())
                if result.result == verdict.FAIL]

    def test_nothing_has_changed(self):
        # But for the space, which is that of a real file system.
        self.assertEqual(
            # And for the guest that ran, which proves nothing of later.
            dataclasses.replace(self.known, directories=(), probe=None),
            dataclasses.replace(self.again(), directories=(), probe=None))
        self.assertTrue(self.known.probe.runs)
        self.assertIsNone(self.again().probe.runs)
        self.assertEqual([], self.failed())

    def test_permissions_taken_and_given_back(self):
        self.host.node('/dev/kvm', mode=0o600, group=0)
        self.assertIn('KVM204', self.failed())
        self.assertIn('KVM205', self.failed())
        self.host.node('/dev/kvm')
        self.assertEqual([], self.failed())

    def test_module_unloaded(self):
        self.host.loaded('vhost_net')
        self.host.remove('/dev/kvm')
        self.assertEqual('KVM103', self.failed()[0])

    def test_node_removed(self):
        self.host.remove('/dev/kvm')
        self.assertEqual('KVM202', self.failed()[0])

    def test_directory_closed(self):
        self.host.service = True
        self.known = self.host.facts()
        directory = self.host.path('/var/lib/nova/instances')
        os.rename(directory, directory + '.gone')
        self.assertEqual(['KVM404'], self.failed())

    def test_a_group_that_is_new(self):
        self.host.write('/etc/group', 'new:x:4711:\nkvm:x:'
                                      f'{fake_host.KVM_GID}:\n')
        self.host.node('/dev/kvm', group=4711)
        self.assertEqual('new', self.again().group_names[4711])

    def test_neither_libvirt_nor_a_program_is_asked(self):
        with mock.patch.object(self.host, 'connection', None), \
                mock.patch.object(facts.subprocess, 'run') as run:
            again = self.again()
        run.assert_not_called()
        for name in ('libvirt', 'place', 'emulator', 'nova', 'cpu'):
            self.assertIs(getattr(self.known, name), getattr(again, name))
