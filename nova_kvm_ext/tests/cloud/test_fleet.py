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

"""What ``fleet`` says of a cloud, the scheduler's filter, and what Nova does.

One compute or two are given a CPU with fewer features: that of KVM on this
machine instead of the emulator's.
"""

import json
import os
import subprocess
import sys
import time

from nova.conf import CONF
from testtools import content

from nova_kvm_ext.tests.cloud import base
from nova_kvm_ext.tests.cloud import test_migration

_FILTER = 'nova_kvm_ext.scheduler.filters.KVMExtCPUFilter'
_REDUCED: base.configuration.Options = {'kvm_ext': {
    'virt_type': 'kvm', 'cpu_mode': 'none', 'host_check': 'warn'}}
_CHECK = 'compute_check_can_live_migrate_destination'


class FleetTestCase(test_migration.Migrating, base.HostTestCase):
    """On three computes, of which not all can take each guest."""

    def setUp(self):
        super().setUp()
        if len(self.hosts()) < 3:
            self.skipTest('It needs three computes: --computes 3')
        if not os.path.exists('/dev/kvm'):
            self.skipTest('Without KVM all computes have the same CPU, that '
                          'of the emulator')
        self.third = self.hosts()[2]
        self.figures: list[str] = []
        self.addDetail('figures', content.Content(
            content.ContentType('text', 'plain'),
            lambda: ['\n'.join(self.figures).encode()]))

    def fleet(self, *arguments, codes=(0,)):
        """What ``nova-kvm-ext fleet`` prints, from its JSON."""
        result = subprocess.run(
            [f'{sys.prefix}/bin/nova-kvm-ext', 'fleet', *arguments,
             '--os-cloud', os.environ['OS_CLOUD'], '-f', 'json'],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            timeout=base.TIMEOUT)
        self.assertIn(result.returncode, codes, result.stderr)
        return json.loads(result.stdout)

    def published(self, host):
        """The digest of the kind that a compute publishes; None for none."""
        found = self.cloud.compute.get(
            '/os-hypervisors/detail', microversion='2.87').json()
        for hypervisor in found['hypervisors']:
            if hypervisor['service']['host'] == host:
                return (hypervisor['cpu_info'].get('kvm_ext') or {}).get(
                    'digest')
        self.fail(f'No hypervisor {host}')

    def reduce(self, host):
        """Give a compute fewer features, and see that it publishes so."""
        before = self.published(host)
        self.change(host, _REDUCED)
        self.wait('other CPU that is published',
                  lambda: self.published(host) not in (None, before))

    def filter(self, enabled):
        """Have nova-scheduler run with or without the filter."""
        self.addCleanup(self._filter, False)
        self._filter(enabled)

    def _filter(self, enabled):
        options: base.configuration.Options = {'filter_scheduler': {
            'available_filters': _FILTER,
            'enabled_filters': ','.join([
                *CONF.filter_scheduler.enabled_filters,
                _FILTER.rpartition('.')[2]])}} if enabled else {}
        self.set_options('nova-scheduler', options)
        self.services.stop('nova-scheduler')
        self.services.start('nova-scheduler')
        before = time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime())
        self.wait('nova-scheduler that is up', lambda: any(
            service.state == 'up' and service.updated_at > before
            for service in self.cloud.compute.services(
                binary='nova-scheduler')))

    def tried(self, server):
        """The hosts that were asked whether they can take a server."""
        for taken in self.cloud.compute.server_actions(server.id):
            if taken.action == 'live-migration':
                full = self.cloud.compute.get_server_action(
                    taken.request_id, server.id)
                return [event['host'] for event in full.events
                        if event['event'] == _CHECK]
        return []

    def guest(self, mode):
        server = self.boot(host=self.first, flavor=self.make_flavor(
            extra_specs={'kvm_ext:cpu_mode': mode}))
        self.wait_for_agent(server)
        return server

    def test_right_host_at_the_first_try(self):
        self.reduce(self.second)
        # Nova likes the host with more free memory, the one that cannot.
        ballast = self.make_flavor(ram=1024)
        blank = self.make_blank_image()
        for _ in range(2):
            self.boot(host=self.third, image=blank, flavor=ballast)
        server = self.guest('maximum')
        for enabled, wanted in (
                (False, [self.second, self.third]), (True, [self.third])):
            self.filter(enabled)
            start = time.monotonic()
            self.move_anywhere(server, self.third)
            took = time.monotonic() - start
            tried = self.tried(server)
            self.figures.append(
                f'{"with" if enabled else "without"} the filter: asked '
                f'{", ".join(tried)}; {took:.0f} s')
            self.assertCountEqual(wanted, tried)
            if not enabled:
                self.move(server, self.first)

    def move_anywhere(self, server, host):
        """Migrate a server to where Nova likes, which should be that host."""
        self.assertEqual('completed', self.migrate(server, None))
        self.wait_for_status(server, 'ACTIVE')
        self.assertEqual(host, self.host_of(server))

    def test_drain_says_what_nova_does(self):
        servers = {self.guest(mode).id: mode for mode in (
            'maximum', 'host-model', 'none')}
        stopped = self.guest('maximum')
        self.cloud.compute.stop_server(stopped)
        self.wait_for_status(stopped, 'SHUTOFF')
        reduced = []
        for host in self.second, self.third:
            self.reduce(host)
            reduced.append(host)
            self._compare(servers, stopped, reduced)

    def _compare(self, servers, stopped, reduced):
        """Each verdict of a drain, and what Nova then does."""
        said = {row['guest'].rpartition('(')[2].rstrip(')'): row
                for row in self.fleet('drain', self.first, codes=(0, 2, 3))}
        self.assertEqual({*servers, stopped.id}, set(said))
        self.assertEqual('yes', said[stopped.id]['can_go'])
        for id, mode in servers.items():
            server = self.cloud.compute.get_server(id)
            takes = []
            for host in self.second, self.third:
                try:
                    done = self.migrate(server, host)
                except base.openstack.exceptions.BadRequestException:
                    continue
                self.assertEqual('completed', done)
                takes.append(host)
                self.assertEqual('completed', self.migrate(
                    server, self.first))
            self.figures.append(
                f'{" and ".join(reduced)} reduced, {mode}: '
                f'{said[id]["can_go"]}, {said[id]["hosts"]}; Nova: {takes}')
            self.assertEqual(takes, sorted(said[id]['hosts']), mode)
            self.assertEqual('yes' if takes else 'no', said[id]['can_go'])
            self.wait_for_agent(server)
