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

"""A soak: many boots and deletes on one compute, after which nothing is left.

On the hosts of the cloud of tools/run-cloud-tests alone. The guests have empty
disks: what is looked for are files, sockets, threads and memory that a boot or
a delete leaves in the service.
"""

from collections.abc import Mapping
from concurrent import futures
import os
import pathlib
import time

from testtools import content

from nova_kvm_ext.tests.cloud import base

COUNT = int(os.environ.get('NOVA_KVM_EXT_CLOUD_SOAK', '200'))
"""Boots and deletes; from an environment variable."""

_AT_ONCE = 8
# The pools of futurist, which nova-compute and oslo.messaging have on threads,
# take a thread for each piece of work until they are full, and keep them. The
# largest is full after 64 messages (executor_thread_pool_size); a boot and a
# delete bring two.
_WARM_UP = 6 * _AT_ONCE
# What pools and allocators may still take: descriptors and threads, and KiB.
_SLACK = {'descriptors': 8, 'sockets': 8, 'threads': 8, 'rss_kib': 40 * 1024}


class SoakTestCase(base.HostTestCase):

    def test_boots_and_deletes(self):
        self.image = self.make_blank_image()
        host = self.hosts()[0]
        self._rounds(host, _WARM_UP)
        before = self._figures(host)
        start = time.monotonic()
        self._rounds(host, COUNT)
        seconds = time.monotonic() - start
        self.assert_sound()
        after = self._figures(host)
        self.addDetail('figures', content.text_content('\n'.join(
            [f'{COUNT} boots and deletes, {_AT_ONCE} at a time, '
             f'{seconds:.0f} s'] +
            [f'{name}: {value} before, {after[name]} after'
             for name, value in before.items()])))
        for name, value in before.items():
            slack = _SLACK.get(name.split()[-1], 0)
            self.assertLessEqual(after[name], value + slack, name)

    def _rounds(self, host: str, count: int) -> None:
        def once(_: int) -> None:
            server = self.create(host=host)
            try:
                self.wait_for_status(server, 'ACTIVE')
            finally:
                self.remove(server)

        with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(once, range(count)):
                pass

    def _figures(self, host: str) -> Mapping[str, int]:
        """What there is, by name."""
        found: dict[str, int] = {}
        for service in (f'nova-compute-{host}', f'libvirtd-{host}',
                        f'virtlogd-{host}'):
            process = pathlib.Path(f'/proc/{self.services.pid(service)}')
            targets = [os.readlink(entry)
                       for entry in (process / 'fd').iterdir()
                       if os.path.lexists(entry)]
            status = dict(
                line.split(':', 1)
                for line in (process / 'status').read_text().splitlines())
            found |= {
                f'{service} descriptors': len(targets),
                f'{service} sockets': sum(
                    target.startswith('socket:') for target in targets),
                f'{service} threads': int(status['Threads']),
                f'{service} rss_kib': int(status['VmRSS'].split()[0])}
        top = self.state / host
        for name, path in (
                ('instances', top / 'instances'),
                ('libvirt files', top / 'libvirt-lib' / 'qemu'),
                ('libvirt run files', top / 'libvirt-run' / 'qemu'),
                ('libvirt definitions', top / 'libvirt-etc' / 'qemu')):
            # The image cache is Nova's to keep.
            found[f'{host} {name}'] = sum(
                1 for entry in path.rglob('*')
                if '_base' not in entry.parts and 'locks' not in entry.parts)
        found[f'{host} temporary files'] = sum(
            1 for _ in (self.state / 'tmp').iterdir())
        return found
