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

"""Live migration between two computes, and what must be refused.

That a guest moves both ways is checked through the public APIs alone. Hosts
that differ are made by giving one compute other options.
"""

import os

from nova_kvm_ext.tests.cloud import base


class Migrating(base.CloudTestCase):
    """What the checks of migrations share."""

    def setUp(self):
        super().setUp()
        hosts = self.hosts()
        if len(hosts) < 2:
            self.skipTest('It needs two computes')
        self.first, self.second = hosts[:2]

    def migrate(self, server, host):
        """Ask for a live migration; returns what happened to it."""
        self.cloud.compute.live_migrate_server(
            server, host=host, block_migration='auto')
        return self.wait('end of the migration', lambda: self.ended(server))

    def ended(self, server):
        """Status of the newest migration, if it has ended."""
        newest = max(self.cloud.compute.migrations(instance_uuid=server.id),
                     key=lambda migration: migration.created_at, default=None)
        # The server's task ends a little later.
        if newest is not None and newest.status in (
                'completed', 'error', 'failed', 'cancelled') and (
                self.cloud.compute.get_server(server.id).task_state is None):
            return newest.status
        return None

    def move(self, server, host):
        """Migrate a server and see that it lives there."""
        self.assertEqual(
            'completed', self.migrate(server, host),
            self.events(server, 'live-migration'))
        self.wait_for_status(server, 'ACTIVE')
        self.assertEqual(
            host, self.cloud.compute.get_server(server.id).compute_host)
        self.wait_for_agent(server)


class MigrationTestCase(Migrating):

    def test_both_ways(self):
        server = self.boot(nics=1, host=self.first)
        self.wait_for_agent(server)
        self.move(server, self.second)
        # There it would print its report again only if it had restarted.
        self.assertNotIn('@nke begin', self.console(server))
        self.move(server, self.first)


class HostMigrationTestCase(Migrating, base.HostTestCase):
    """Between computes that are made to differ."""

    def wait_for_agent(self, server):
        """Wait until a server's agent answers, whatever driver it is under."""
        self.wait('agent that answers', lambda: 'return' in self.on_host(
            self.host_of(server), [
                'virsh', 'qemu-agent-command', self.domain(server),
                '{"execute": "guest-ping"}'], check=False))

    def test_both_ways_with_plain_libvirt_driver(self):
        self.change(self.second, {
            'DEFAULT': {'compute_driver': 'libvirt.LibvirtDriver'},
            'libvirt': {'virt_type': 'qemu', 'cpu_mode': 'host-model'}})
        server = self.boot(nics=1, host=self.first)
        self.wait_for_agent(server)
        cpu = self.cpu(server)
        self.move(server, self.second)
        self.assertEqual(cpu, self.cpu(server))
        self.move(server, self.first)
        self.assertEqual(cpu, self.cpu(server))

    def cpu(self, server):
        """The CPU in a server's live XML."""
        xml = self.on_host(self.host_of(server), [
            'virsh', 'dumpxml', self.domain(server), '--xpath', '/domain/cpu'])
        return ''.join(xml.split())

    def test_refusal_names_missing_features(self):
        if not os.path.exists('/dev/kvm'):
            self.skipTest('Without KVM both computes have the same CPU, that '
                          'of the emulator')
        # What KVM gives here is another CPU than the emulator's.
        self.change(self.second, {'kvm_ext': {
            'virt_type': 'kvm', 'cpu_mode': 'none', 'host_check': 'warn'}})
        server = self.boot(host=self.first, flavor=self.make_flavor(
            extra_specs={'kvm_ext:cpu_mode': 'maximum'}))
        self.wait_for_agent(server)
        # The API says no more than that there is no other host.
        self.assertRaises(
            base.openstack.exceptions.BadRequestException,
            self.migrate, server, self.second)
        found = self.cloud.compute.get_server(server.id)
        self.assertEqual(('ACTIVE', self.first),
                         (found.status, found.compute_host))
        # Nova cuts it at 255 characters.
        self.assertRegex(self.events(server, 'live-migration'),
                         r'lacks [0-9]+ of its features: .*\bavx2\b')
        self.wait_for_agent(server)
        self.assert_sound()
