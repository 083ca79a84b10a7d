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
import signal

from testtools import content

from nova_kvm_ext.tests.cloud import ceph
from nova_kvm_ext.tests.cloud import test_faults
from nova_kvm_ext.tests.cloud import volumes


class StorageFaultTestCase(test_faults.Faulty, volumes.HostVolumeTestCase):

    def setUp(self):
        super().setUp()
        if self.storage.kind != 'ceph':
            self.skipTest('Disks of guests are not in Ceph')

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
    def frozen_for_ceph(self, server):
        """Ceph hangs, with a guest that is frozen for its snapshot."""
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
                hanging.enter_context(self.stopped('ceph-osd'))
            yield

    def fails_to_boot(self):
        """A new server ends in ERROR; returns what the log says of it.

        With a host that was asked for, the API says no more than that there
        is no other one.
        """
        log = self.log_since(self.host)
        server = self.wait_for_status(self.ask_for(host=self.host), 'ERROR')
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
        with self.frozen_for_ceph(server):
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
