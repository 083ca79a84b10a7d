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

"""A guest moves back between two libvirts, as repair-migration has it move.

Two private libvirts stand for two hosts: each has a directory of its own in
the place of instances_path. The guest is one that its firmware keeps busy.
"""

import contextlib
import io
import os
import shutil
import subprocess
import tempfile
from unittest import mock
import uuid

import fixtures
import libvirt
from oslotest import base

from nova_kvm_ext.cmd import base as cmd_base
from nova_kvm_ext.cmd import main
from nova_kvm_ext.fleet import cloud
from nova_kvm_ext.migration import comeback
from nova_kvm_ext.migration import elsewhere
from nova_kvm_ext.migration import records
from nova_kvm_ext.tests.functional import libvirtd
from nova_kvm_ext.tests import namespaces
from nova_kvm_ext.tests.unit.cmd import test_repair

_XML = """<domain type='qemu'><name>nova-kvm-ext-{uuid}</name>
<uuid>{uuid}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os>
<devices><disk type='file' device='disk'>
<driver name='qemu' type='qcow2' cache='none'/><source file='{disk}'/>
<target dev='vda' bus='virtio'/></disk>
<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>
<source file='{disk}.config'/><target dev='hda' bus='ide'/></disk>
</devices></domain>"""


class ComebackTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.uuid = str(uuid.uuid4())
        # The same path, with another directory behind it on each host.
        self.instances = tempfile.mkdtemp(
            prefix='nova-kvm-ext-instances-', dir=namespaces.BASE)
        self.addCleanup(shutil.rmtree, self.instances)
        os.chmod(self.instances, 0o755)
        self.source, self.destination = (self.host() for _ in range(2))
        self.connections = [libvirt.open(host.uri) for host in (
            self.source, self.destination)]
        for connection in self.connections:
            self.addCleanup(self.close, connection)

    @staticmethod
    def close(connection):
        # A test ends the libvirtd of one.
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()

    def host(self):
        host = self.useFixture(libvirtd.PrivateLibvirt(
            qemu_user='root', host_uuid=str(uuid.uuid4())))
        directory = os.path.join(host.instances_path, self.uuid)
        os.mkdir(directory)
        # A guest has what its image has: the other host has the disk, too.
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2',
                        os.path.join(directory, 'disk'), '64M'], check=True)
        # A configuration drive, which Nova gives both, and libvirt copies not.
        with open(os.path.join(directory, 'disk.config'), 'wb') as drive:
            drive.truncate(64 * 1024)
        host.run(['mount', '--no-mtab', '--bind', host.instances_path,
                  self.instances])
        return host

    def start(self, connection):
        """The guest runs on a host: as if it had moved there."""
        domain = connection.defineXML(_XML.format(
            uuid=self.uuid, disk=f'{self.instances}/{self.uuid}/disk'))
        domain.create()
        return domain

    def runs(self, host):
        return elsewhere.ask([host.uri], self.uuid).runs

    def test_one_command(self):
        source, destination = self.connections
        self.start(destination)
        self.assertEqual((False, True), (self.runs(self.source),
                                         self.runs(self.destination)))
        records_ = test_repair.Cloud()
        records_.server['id'] = self.uuid
        nova = mock.Mock(host='dst', instances_path=os.path.join(
            self.destination.directory, 'instances'))
        nova.libvirt.live_migration_with_native_tls = False
        nova.libvirt.live_migration_tunnelled = False
        with (mock.patch.object(test_repair, 'UUID', self.uuid),
              mock.patch.object(cloud, 'connect', return_value=records_),
              mock.patch.object(records, 'neutron', return_value=records_),
              mock.patch.object(cmd_base, 'read_conf', return_value=nova)):
            records_.allocations[self.uuid] = {'dst-rp': 1}
            self.assertEqual(0, self.command(), self.said)
            # What it is about is mended, so it has nothing to do.
            self.assertEqual(0, self.command(), self.said)
        self.assertEqual((True, False), (self.runs(self.source),
                                         self.runs(self.destination)))
        self.assertTrue(source.lookupByUUIDString(self.uuid).isPersistent())
        self.assertEqual([], destination.listAllDomains())
        # Its files went with it.
        self.assertFalse(os.path.exists(os.path.join(
            nova.instances_path, self.uuid)))
        self.assertEqual({'src': 'ACTIVE'}, records_.bindings)

    def command(self):
        out, err = io.StringIO(), io.StringIO()
        with (fixtures.MonkeyPatch('sys.stdout', out),
              fixtures.MonkeyPatch('sys.stderr', err)):
            code = main.main([
                'guest', 'repair-migration', self.uuid, '--os-cloud', 'c',
                '--yes', '--connect', self.destination.uri, '--source-uri',
                self.source.uri, '--copy-disks', 'yes'])
        self.said = out.getvalue() + err.getvalue()
        return code

    def test_address_that_leads_back(self):
        self.start(self.connections[1])
        own = elsewhere.host_uuid(self.connections[1].getCapabilities())
        found = elsewhere.ask([self.destination.uri], self.uuid, own=own)
        self.assertEqual((None, True), (found.runs, found.itself))
        self.assertIs(False, elsewhere.ask(
            [self.source.uri], self.uuid, own=own).runs)

    def test_no_guest_runs_twice(self):
        source, destination = self.connections
        self.start(source)
        self.start(destination)
        error = self.assertRaises(
            libvirt.libvirtError, comeback.move, destination, self.uuid,
            self.source.uri, ['vda'], lambda text: None)
        self.assertIn('already active', str(error))
        self.assertEqual((True, True), (self.runs(self.source),
                                        self.runs(self.destination)))

    def test_disks_that_are_open(self):
        _, destination = self.connections
        domain = self.start(destination)
        top = os.path.join(self.destination.directory, 'instances')
        self.assertEqual(('disk', 'disk.config'),
                         comeback.files(top, self.uuid).in_use)
        domain.destroy()
        self.assertEqual((), comeback.files(top, self.uuid).in_use)

    def test_libvirt_that_is_down(self):
        self.start(self.connections[1])
        self.destination.stop_libvirtd()
        found = elsewhere.ask([self.destination.uri], self.uuid)
        self.assertIsNone(found.runs)
        self.destination.start_libvirtd()
        self.assertTrue(self.runs(self.destination))
