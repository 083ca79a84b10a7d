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

"""Consistent backups of several guests by hand, as the guide has them.

A database and its replica are frozen together by ``nova-kvm-ext agent freeze``
while Cinder makes the snapshots of their volumes.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import ddt

from nova_kvm_ext.tests.cloud import storage
from nova_kvm_ext.tests.cloud import volumes

_SCRIPT = (pathlib.Path(__file__).parents[3] / 'doc' / 'source' / 'admin' /
           'consistent-backup.sh')


@ddt.ddt
class HostBackupTestCase(volumes.HostVolumeTestCase):

    @ddt.data(*storage.TYPES)
    def test_database_and_replica(self, kind):
        self.host = self.hosts()[0]
        servers = [self.boot(host=self.host) for _ in range(2)]
        several = []
        for server in servers:
            self.wait_for_agent(server)
            volume = self.volume(kind, image=self.filesystem)
            self.attach(server, volume)
            several.append(volume)
            self.write_load(server, self.mount(server, volume))
        result = self._back_up(servers, several)
        self.assertEqual(0, result.returncode, result.stderr)
        made = result.stdout.split()
        self.addCleanup(self.remove_snapshots, made)
        self.assertEqual(2, result.stderr.count('guest is thawed'),
                         result.stderr)
        for server in servers:
            self.assert_thawed(server)
        self.assertEqual(['clean'] * 2, [
            self.state_of_snapshot(one) for one in made])
        # One that cannot be frozen, and the other is not left so.
        self.sh(servers[1], (
            'agent=$PPID; sleep 3; kill -STOP $agent; '
            'echo "@nke stopped" > /dev/console; '
            'sleep 60; kill -CONT $agent'))
        self.wait('agent that is stopped', lambda: '@nke stopped' in
                  self.console_file(servers[1]))
        result = self._back_up(servers, several)
        self.assertEqual(1, result.returncode, result.stderr)
        self.assertEqual('', result.stdout)
        self.assert_thawed(servers[0])
        self.assert_thawed(servers[1])

    def _back_up(self, servers, several):
        """Run the guide's script as an operator does on the host."""
        with tempfile.TemporaryDirectory() as directory:
            # There nova.conf is where nova-compute looks by itself.
            command = os.path.join(directory, 'nova-kvm-ext')
            etc = self.state / 'etc'
            with open(command, 'w') as file:
                file.write(
                    '#!/bin/sh\n'
                    f'exec {os.path.dirname(sys.executable)}'
                    f'/nova-kvm-ext "$@" --config-file '
                    f'{etc}/nova-compute.conf --config-file '
                    f'{etc}/{self.host}.conf\n')
            os.chmod(command, 0o755)
            return subprocess.run(
                [str(_SCRIPT), 'backup', *map(self.domain, servers), '--',
                 *(volume.id for volume in several)],
                env=os.environ | {
                    'PATH': f'{directory}:{os.environ["PATH"]}'},
                text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE)
