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

"""Servers that find no space on their host, and continue when there is some.

The instances of one compute are on a small file system. Servers fill it, are
paused by QEMU, and are to finish what they wrote once there is space. The
server's kernel compares what it reads back by checksums.

NOVA_KVM_EXT_CLOUD_IO_PAUSES is the number of pauses (4), rounded up to whole
rounds: 100 make 104. Eight of them take a minute or so.
"""

import collections
import os
import re
import sys
import time

from testtools import content

from nova_kvm_ext.tests.cloud import base

PAUSES = int(os.environ.get('NOVA_KVM_EXT_CLOUD_IO_PAUSES', '4'))

AT_ONCE = 4 if PAUSES < 20 else 8
"""Servers that are paused in a round; with two more it is Nova's quota."""

SIZE = 1600
"""MiB of the file system: it also has the image, and what is downloaded.

Placement is told whole GiB.
"""

WRITTEN = 3
"""MiB that a server writes in a round."""

FIRST = 200
"""MiB of the root disk behind which there is nothing."""

_ROUND = """
dd if=/dev/urandom of=/tmp/data bs=1M count={size} 2> /dev/null
want=$(sha256sum < /tmp/data)
dd if=/tmp/data of=/dev/vda bs=1M seek={offset} conv=fsync 2> /dev/null
rm /tmp/data
echo 3 > /proc/sys/vm/drop_caches
got=$(dd if=/dev/vda bs=1M skip={offset} count={size} 2> /dev/null | sha256sum)
echo "@nke round {number} $want $got" > /dev/console
"""


class IOPauseTestCase(base.HostTestCase):

    def setUp(self):
        super().setUp()
        if self.storage.kind != 'files':
            self.skipTest('Disks of guests are not on the disk of the host')
        self.host = self.hosts()[0]
        self.path = str(self.state / 'instances')
        image = str(self.state / 'small.ext4')
        self.on_host(self.host, ['sh', '-ec', (
            f'truncate --size {SIZE}M {image}; mkfs.ext4 -q -F -m 0 {image}; '
            f'mount --no-mtab -o loop {image} {self.path}; '
            f'chmod 0755 {self.path}')])
        self.addCleanup(self.wait, 'service that is enabled',
                        lambda: self.host in self.hosts())
        self.addCleanup(self.on_host, self.host, ['sh', '-c', (
            f'umount --no-mtab --lazy {self.path}; rm {image}')])
        self.number = 0
        # Ten servers of 1 GiB at most, which use far less.
        self.change(self.host, {'DEFAULT': {'disk_allocation_ratio': 16}})

    def fill(self):
        self.on_host(self.host, ['sh', '-ec', (
            f'cd {self.path}; touch filler; fallocate --length $(('
            f'$(stat -c %s filler) + $(df -B1 --output=avail . | tail -1)'
            f' - 1048576)) filler')])

    def free(self):
        self.on_host(self.host, ['rm', f'{self.path}/filler'])

    def write(self, server):
        self.tell_agent(server, 'guest-exec', path='/bin/busybox', arg=[
            'sh', '-c', _ROUND.format(
                size=WRITTEN, number=self.number,
                offset=FIRST + self.number * WRITTEN)])

    def verdict(self, server):
        """Whether what was written is there; None while it is written."""
        with open(f'{self.path}/{server.id}/console.log',
                  errors='replace') as f:
            found = re.search(
                rf'@nke round {self.number} (\w+) +- (\w+) +-', f.read())
        return None if found is None else found[1] == found[2]

    def reason(self, server):
        return self.on_host(self.host, [
            'virsh', 'domstate', '--reason', server.id]).strip()

    def stop(self, servers):
        """Have each write until there is no more space."""
        self.number += 1
        self.fill()
        for server in servers:
            self.write(server)
        for server in servers:
            self.wait('pause', lambda: self.reason(server) ==
                      'paused (I/O error)')

    def listed(self):
        """What "guest list" says of pauses."""
        # Its exit code says that guests were paused by an error.
        return self.on_host(self.host, [
            f'{sys.prefix}/bin/nova-kvm-ext', 'guest', 'list', '-f', 'value',
            '-c', 'paused', *(
                f'--config-file={self.state}/etc/{name}.conf'
                for name in ('nova-compute', self.host))], check=False)

    def test_space_comes_back(self):
        log = self.log_since(self.host)
        servers = [self.boot(host=self.host) for _ in range(AT_ONCE)]
        suspended, paused = (self.boot(host=self.host) for _ in range(2))
        for server in servers:
            self.wait_for_agent(server)
        self.on_host(self.host, ['virsh', 'suspend', suspended.id])
        self.cloud.compute.pause_server(paused)
        self.wait_for_status(paused, 'PAUSED')
        seconds: list[float] = []
        counts: collections.Counter[str] = collections.Counter()
        while counts['paused'] < PAUSES:
            self.stop(servers)
            counts['paused'] += len(servers)
            # It waits for a few seconds only, which may not do on a busy host.
            self.wait('list that names each disk', lambda: all(
                f'no space on disk vda ({self.path}/{server.id}/disk)' in
                listed for listed in [self.listed()] for server in servers))
            # One is paused by Nova after the error.
            also = servers[self.number % len(servers)]
            self.cloud.compute.pause_server(also)
            self.wait_for_status(also, 'PAUSED')
            # Two updates of the host's resources, without space.
            time.sleep(30)
            counts['wrong'] += sum(
                self.reason(server) != 'paused (I/O error)'
                for server in servers)
            self.free()
            freed = time.monotonic()
            waiting = [server for server in servers if server is not also]
            while waiting and time.monotonic() < freed + 180:
                for server in list(waiting):
                    if self.verdict(server) is not None:
                        waiting.remove(server)
                        seconds.append(time.monotonic() - freed)
                        counts['right' if self.verdict(server)
                               else 'lost'] += 1
                time.sleep(0.5)
            counts['wrong'] += (
                self.reason(also) != 'paused (I/O error)')
            counts['wrong'] += sum(
                self.reason(server) != 'paused (user)'
                for server in (suspended, paused))
            # What Nova pauses Nova can unpause.
            self.cloud.compute.unpause_server(also)
            self.wait('server that has written all',
                      lambda: self.verdict(also) is not None)
            counts['right' if self.verdict(also) else 'lost'] += 1
            self.wait_for_status(also, 'ACTIVE')
        text = (f'{dict(counts)}, seconds until all was written: median '
                f'{sorted(seconds)[len(seconds) // 2]:.1f}, longest '
                f'{max(seconds):.1f}')
        self.addDetail('figures', content.text_content(text))
        self.assertEqual((counts['paused'], 0, 0), (
            counts['right'], counts['lost'], counts['wrong']), text)
        said = log()
        for server in servers:
            self.assertIn('KVML811', said)
            self.assertIn(
                f'no space on disk vda ({self.path}/{server.id}/disk)', said)
