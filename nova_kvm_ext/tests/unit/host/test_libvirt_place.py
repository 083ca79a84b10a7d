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

"""Whether libvirt sees the files that this process sees."""

import os
import socket

import fixtures
from oslotest import base

from nova_kvm_ext.host import libvirt_place
from nova_kvm_ext.host import model
from nova_kvm_ext.tests.unit.host import fake_host


class PlaceTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        # Short: a socket's path has 108 bytes.
        self.root = self.useFixture(fixtures.TempDir()).path
        for path in ('run/libvirt', 'proc/self', 'usr', 'etc', 'dev'):
            os.makedirs(os.path.join(self.root, path))

    def serve(self, name: str = 'libvirt-sock') -> str:
        path = os.path.join(self.root, 'run/libvirt', name)
        # Kept as a whole: a socket of eventlet is closed when it is collected,
        # even if its method close() is still to be called.
        server = self.enterContext(socket.socket(socket.AF_UNIX))
        server.bind(path)
        server.listen(5)
        return path

    def process(self, pid: int, root: str, name: str = 'libvirtd') -> None:
        directory = os.path.join(self.root, 'proc', str(pid))
        os.makedirs(directory)
        os.symlink(root, os.path.join(directory, 'root'))
        with open(os.path.join(directory, 'comm'), 'w') as f:
            f.write(f'{name}\n')

    def read(self, uri: str = 'qemu:///system') -> model.LibvirtPlace:
        return libvirt_place.read(uri, self.root)

    def test_remote(self):
        for uri in ('qemu+tcp://10.0.0.1/system', 'qemu+tls://x/system',
                    'qemu://x/system', 'qemu+ssh://root@x/system',
                    'qemu+libssh2://x/system', 'qemu+tcp://[::1]:1/system'):
            self.assertTrue(libvirt_place.is_remote(uri), uri)
            self.assertIsNone(self.read(uri).here)
            self.assertTrue(self.read(uri).remote)
        for uri in ('qemu:///system', 'qemu+unix:///system?socket=/x',
                    'qemu:///session', ''):
            self.assertFalse(libvirt_place.is_remote(uri), uri)

    def test_no_socket(self):
        self.assertIsNone(self.read().here)

    def test_same(self):
        self.serve()
        self.process(os.getpid(), self.root)
        self.assertIs(True, self.read().here)

    def test_another_root(self):
        self.serve('virtqemud-sock')
        other = self.useFixture(fixtures.TempDir()).path
        self.process(os.getpid(), other)
        found = self.read()
        self.assertIs(False, found.here)
        self.assertIn('another /', found.reason)

    def test_named_socket(self):
        self.serve('x')
        self.process(os.getpid(), self.root)
        self.assertIs(True, self.read(
            'qemu+unix:///system?socket=/run/libvirt/x').here)

    def test_not_seen(self):
        """A server whose process is not in /proc, as with hidepid."""
        self.serve()
        self.assertIsNone(self.read().here)

    def test_systemd_made_the_socket(self):
        path = self.serve()
        self.useFixture(fixtures.MockPatch(
            'struct.unpack', return_value=(1, 0, 0)))
        self.process(1, self.useFixture(fixtures.TempDir()).path, 'systemd')
        found = self.read()
        self.assertIsNone(found.here)
        self.assertIn('systemd made the socket', found.reason)
        # The daemon to which systemd gave it.
        self.process(77, self.root, 'virtqemud')
        os.makedirs(os.path.join(self.root, 'proc/77/fd'))
        os.symlink('socket:[4711]', os.path.join(
            self.root, 'proc/77/fd/3'))
        os.makedirs(os.path.join(self.root, 'proc/net'))
        with open(os.path.join(self.root, 'proc/net/unix'), 'w') as f:
            f.write('Num RefCount Protocol Flags Type St Inode Path\n'
                    f'0: 2 0 00010000 0001 01 4711 {path}\n')
        self.assertIs(True, self.read().here)

    def test_other_pid_namespace(self):
        self.serve()
        self.useFixture(fixtures.MockPatch(
            'struct.unpack', return_value=(0, 0, 0)))
        found = self.read()
        self.assertIsNone(found.here)
        self.assertIn('another PID namespace', found.reason)

    def test_ask(self):
        os.makedirs(os.path.join(self.root, 'var/tmp'))
        unknown = model.LibvirtPlace(None, 'why', True)
        connection = fake_host.FakeConnection()
        found = libvirt_place.ask(connection, 'x86_64', unknown, self.root)
        self.assertIs(True, found.here)
        self.assertTrue(found.remote)
        connection.here = False
        self.assertIs(unknown, libvirt_place.ask(
            connection, 'x86_64', unknown, self.root))
        self.assertEqual([], os.listdir(os.path.join(self.root, 'var/tmp')))
        self.assertIs(unknown, libvirt_place.ask(
            connection, 'x86_64', unknown, '/nowhere'))
