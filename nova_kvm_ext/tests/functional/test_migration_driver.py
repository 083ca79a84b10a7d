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

"""Live migrations that the driver makes, and each policy seen to act.

The driver on one private libvirt moves a guest to another, over a link of some
MiB/s. This is what of Nova takes part in it without a cloud: the driver's
part, of the release that is installed.
"""

import os
import subprocess
import tempfile
import uuid

import libvirt
from oslotest import base
from testtools import content

from nova_kvm_ext.tests.functional import libvirtd
from nova_kvm_ext.tests.functional import test_agent_driver
from nova_kvm_ext.tests.functional import writer

DEST = '127.0.0.1'
"""What Nova takes for the destination's name and address."""

MIB = 64
"""Of the guest's memory."""

LINK = 8
"""MiB a second."""

_CONFIGURATION = """
[libvirt]
connection_uri = {uri}
live_migration_uri = qemu+unix:///system?socket={hosts}/%s/run/libvirt-sock
live_migration_bandwidth = {link}
live_migration_permit_post_copy = {post_copy}
virt_type = qemu
cpu_mode = none
"""


class PolicyTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        # QEMU keeps the capability that a userfaultfd takes, whatever the
        # host allows others.
        self.source, self.destination = (
            self.useFixture(libvirtd.PrivateLibvirt(
                qemu_user='root', host_uuid=str(uuid.uuid4()),
                qemu_conf={'clear_emulator_capabilities': '0'}))
            for _ in range(2))
        self.top = self.source.instances_path
        hosts = os.path.join(self.top, 'hosts')
        os.mkdir(hosts)
        os.symlink(self.destination.directory, os.path.join(hosts, DEST))
        self.hosts = hosts
        self.directory = tempfile.mkdtemp(dir=self.top)
        os.chmod(self.directory, 0o711)
        self.output = os.path.join(self.top, 'output')
        self.nova_log = os.path.join(self.directory, 'nova.log')
        self.addOnException(self.show)
        self.uuid = str(uuid.uuid4())

    def show(self, exc_info):
        for path in (self.output, self.nova_log):
            if os.path.exists(path):
                self.addDetail(path, content.text_content(self.read(path)))

    @staticmethod
    def read(path):
        with open(path, errors='replace') as f:
            return f.read()

    def log(self):
        return self.read(self.nova_log)

    def boot(self, post_copy=False):
        """A driver with a guest that answers."""
        config = os.path.join(self.top, 'nova.conf')
        with open(config, 'w') as f:
            f.write(_CONFIGURATION.format(
                uri=self.source.uri, hosts=self.hosts, link=LINK,
                post_copy=post_copy))
        raw = os.path.join(self.top, 'writer.raw')
        with open(raw, 'wb') as f:
            f.write(writer.disk(MIB))
        # Its code is where a raw disk would have its partitions.
        image = os.path.join(self.top, 'writer.qcow2')
        subprocess.run(['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2',
                        raw, image], check=True)
        state = os.path.join(self.top, 'state')
        os.mkdir(state)
        self.driver = test_agent_driver.DriverProcess(
            [self.directory, state, config], self.output)
        self.addCleanup(self.driver.end)
        self.driver.do('init_host')
        self.driver.do('spawn', self.uuid, image, {}, MIB, 'qcow2')
        self.tell(self.source, 0)

    def tell(self, host, mib_per_second):
        """Have the guest write, which it does only where it lives."""
        connection = libvirt.open(host.uri)
        try:
            domain = connection.lookupByUUIDString(self.uuid)
            self.assertEqual(libvirt.VIR_DOMAIN_RUNNING, domain.state()[0])
            writer.tell(domain, 32, mib_per_second)
        finally:
            connection.close()

    def migrate(self, policy, *ended):
        """Move the guest, and see how that ended."""
        self.driver.do('set_option', 'migration_stalled', policy)
        seconds, found = self.driver.do('migrate', DEST)
        self.addDetail(f'seconds until {policy}',
                       content.text_content(f'{seconds:.1f}'))
        self.assertIn(found['called'], [[one] for one in ended])
        return found

    def test_idle_is_left_alone(self):
        self.boot()
        found = self.migrate('abort', 'completed')
        self.tell(self.destination, 0)
        self.assertNotIn('kvm_ext_migration_will_not_converge',
                         found['events'])
        self.assertRegex(
            self.log(), r'Live migration completed: downtime [0-9.]+ s, '
            r'iterations [0-9]+, sent [0-9.]+ MiB')

    def test_abort_and_pause(self):
        self.boot()
        self.tell(self.source, 4 * LINK)
        # Which of the two depends on when Nova looks.
        found = self.migrate('abort', 'cancelled', 'failed')
        self.assertIn('kvm_ext_migration_will_not_converge', found['events'])
        self.assertIn('it is aborted', self.log())
        self.assertIn('Live migration aborted: the guest stays on this host',
                      self.log())
        # Nova has no error of it.
        self.assertNotIn('Error monitoring migration', self.log())
        self.tell(self.source, 4 * LINK)
        self.migrate('pause', 'completed')
        self.assertIn('the guest is paused until it has moved', self.log())
        self.tell(self.destination, 0)

    def test_post_copy(self):
        self.boot(post_copy=True)
        self.tell(self.source, 4 * LINK)
        found = self.migrate('post-copy', 'completed')
        self.assertIn('it is switched to post-copy', self.log())
        self.assertEqual('running (post-copy)', found['status'])
        self.tell(self.destination, 0)
