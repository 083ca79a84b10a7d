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

"""Faults of storage: what happens to guests, and what is said.

On the hosts of the cloud of tools/run-cloud-tests alone. After each fault no
guest is frozen, Nova's state is sane, and the error names its cause. What was
said is kept as figures: a table of the faults.
"""

import contextlib
import os
import re
import signal

from testtools import content

from nova_kvm_ext.tests.cloud import base
from nova_kvm_ext.tests.cloud import ceph
from nova_kvm_ext.tests.cloud import test_faults
from nova_kvm_ext.tests.cloud import volumes

# Seconds: limits.SNAPSHOT_FREEZE_LIMIT, and [DEFAULT]
# update_resources_interval.
_LIMIT = 120 + 60


class StorageFaultTestCase(test_faults.Faulty, volumes.HostVolumeTestCase):

    def setUp(self):
        super().setUp()
        if self.storage.kind != 'ceph':
            self.skipTest('Disks of guests are not in Ceph')
        self.host = self.hosts()[-1]
        self.nova_compute = f'nova-compute-{self.host}'

    def said(self, text):
        """Keep a line for the table of faults."""
        self.addDetail('figures', content.text_content(
            ' '.join(text.split())))

    @contextlib.contextmanager
    def stopped(self, name):
        """Stop a service, as if its host hangs."""
        pid = self.services.pid(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def frozen_for_ceph(self, server, what):
        """Ceph hangs, with a guest that is frozen for its snapshot.

        :param what: the OSD, for which the guest waits as well, or the
            monitor, which only the snapshot needs
        :returns: the image that is to be
        """
        self.slow_freezes(server)
        image = self.cloud.compute.create_server_image(
            server.id, f'kvm-ext-hangs-{server.id}')
        self.addCleanup(self.cloud.image.delete_image, image.id,
                        ignore_missing=True)
        self.wait_for_freeze(server)
        # It cannot go on to Ceph before that hangs, and the guest cannot write
        # out what it must when Ceph hangs already.
        with contextlib.ExitStack() as hanging:
            with self.stopped(self.nova_compute):
                self.wait('frozen guest',
                          lambda: self.frozen(server) == 'frozen')
                hanging.enter_context(self.stopped(what))
            yield image
        self._ceph_serves()

    def _ceph_serves(self):
        """Restart an OSD that does not serve requests after a stop.

        Where no other OSD confirms its lease, a placement group of Ceph 16.2
        can stay laggy for good.
        """
        def healthy():
            with ceph.Cluster() as cluster:
                return cluster.healthy()
        try:
            self.wait('Ceph that serves', healthy, 60)
        except self.failureException:
            self.services.stop('ceph-osd')
            self.services.start('ceph-osd')
            self.wait('Ceph that serves', healthy)

    def fails_to_boot(self):
        """A new server ends in ERROR; returns what the log says of it.

        With a host that was asked for, the API says no more than that there
        is no other one.
        """
        log = self.log_since(self.host)
        # Ceph's client waits 300 s for a monitor (client_mount_timeout).
        server = self.wait_for_status(
            self.ask_for(host=self.host), 'ERROR', 300 + base.TIMEOUT)
        self.remove(server)
        said = log()
        self.said(next(
            (line.partition('Failed to build and run instance: ')[2]
             for line in said.splitlines()
             if 'Failed to build and run instance: ' in line), said[-500:]))
        return said

    def boots_again(self, server):
        """All is well with a server, and with new ones."""
        self.assert_thawed(server)
        self.wait_for_status(server, 'ACTIVE')
        self.assert_sound()
        self.works()

    def test_nova_compute_killed_between_freeze_and_thaw(self):
        server = self.boot(host=self.host)
        self.wait_for_agent(server)
        with self.frozen_for_ceph(server, 'ceph-osd'):
            self.kill(self.nova_compute)
            self.assertEqual('frozen', self.frozen(server))
            log = self.log_since(self.host)
            self.services.start(self.nova_compute)
            # It is told to thaw, and does when its disk answers: ext4 writes
            # for that.
            self.wait('word of the guest', lambda: 'left frozen' in log())
        self.wait('thawed guest', lambda: self.frozen(server) == 'thawed')
        self.said(next(line for line in log().splitlines()
                       if 'left frozen' in line).partition('] ')[2])
        self.boots_again(server)
        self.assertIsNotNone(self.snapshot(server))

    def test_ceph_stalls_for_longer_than_the_limit(self):
        """The guest is told to thaw, and the snapshot does not count.

        The guest's own QEMU holds back what the guest writes until the
        snapshot is made, and so the thaw ends no sooner.
        """
        server = self.boot(host=self.host)
        self.wait_for_agent(server)
        log = self.log_since(self.host)
        with self.frozen_for_ceph(server, 'ceph-mon') as image:
            self.wait('word of the limit', lambda: 'KVML408' in log(),
                      timeout=volumes.base.TIMEOUT + _LIMIT)
        self.wait('end of the snapshot', lambda: (
            found := self.cloud.image.find_image(image.id)) is None or
            found.status in ('deleted', 'killed'))
        self.said(next(line for line in log().splitlines()
                       if 'did not stay frozen' in line).partition('] ')[2])
        self.boots_again(server)

    def test_osd_stops_while_a_guest_writes(self):
        server = self.boot(host=self.host)
        self.wait_for_agent(server)
        self.write_load(server, '/data')
        self.services.stop('ceph-osd')
        self.addCleanup(self.revive, 'ceph-osd')
        image = self.cloud.compute.create_server_image(
            server.id, f'kvm-ext-stopped-{server.id}')
        self.addCleanup(self.cloud.image.delete_image, image.id,
                        ignore_missing=True)
        self.wait_for_task(server, 'image_uploading')
        self.services.start('ceph-osd')
        self.wait('end of the snapshot', lambda: (
            found := self.cloud.image.find_image(image.id)) is None or
            found.status == 'active')
        self.assertEqual('clean', self.state_of_image(image))
        self.boots_again(server)

    def test_monitor_gone(self):
        server = self.boot(host=self.host)
        self.wait_for_agent(server)
        self.services.stop('ceph-mon')
        self.addCleanup(self.revive, 'ceph-mon')
        # What runs goes on.
        self.sh_wait(server, 'echo x > /data/x; sync')
        self.assertIn('ceph-no-answer', self.fails_to_boot())
        self.services.start('ceph-mon')
        self.boots_again(server)

    def test_wrong_key_of_libvirt(self):
        server = self.boot(host=self.host)
        self.wait_for_agent(server)
        secret = ceph.SECRETS['nova']
        right = self.on_host(self.host, [
            'virsh', '-q', 'secret-get-value', secret]).strip()

        def give(key):
            self.on_host(self.host, [
                'virsh', '-q', 'secret-set-value', secret, '--base64', key])
        self.addCleanup(give, right)
        give(ceph.new_key())
        self.assertIn('error connecting', self.fails_to_boot())
        give(right)
        self.boots_again(server)

    def test_wrong_key_of_nova(self):
        server = self.boot(host=self.host)
        self.wait_for_agent(server)
        keyring = (self.state / self.host / 'ceph-etc' /
                   'ceph.client.nova.keyring')
        right = keyring.read_text()
        self.addCleanup(keyring.write_text, right)
        keyring.write_text(re.sub('key = .*', f'key = {ceph.new_key()}',
                                  right))
        self.assertIn('ceph-key', self.fails_to_boot())
        keyring.write_text(right)
        self.boots_again(server)

    def test_pool_of_images_full(self):
        server = self.boot(host=self.host)
        self.wait_for_agent(server)

        def limit(pool, size):
            with ceph.Cluster() as cluster:
                cluster.tell('osd pool set-quota', pool=pool,
                             field='max_bytes', val=str(size))
                self.wait('word of it', lambda: any(
                    one['pool_name'] == pool and
                    ('full_quota' in one['flags_names']) == bool(size)
                    for one in cluster.tell('osd dump')['pools']))
        pool = ceph.POOLS['glance']
        self.addCleanup(limit, pool, 0)
        log = self.log_since(self.host)
        limit(pool, 1)
        image = self.cloud.compute.create_server_image(
            server.id, f'kvm-ext-full-{server.id}')
        self.addCleanup(self.cloud.image.delete_image, image.id,
                        ignore_missing=True)
        self.wait('thaw', lambda: 'was frozen for' in log())
        # Ceph has who writes wait for space. The guest does not.
        self.assert_thawed(server)
        limit(pool, 0)
        self.wait('end of the snapshot', lambda: (
            found := self.cloud.image.find_image(image.id)) is None or
            found.status == 'active')
        self.assertEqual('clean', self.state_of_image(image))
        self.boots_again(server)
