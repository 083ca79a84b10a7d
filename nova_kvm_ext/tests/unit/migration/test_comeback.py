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

import os
import subprocess
import sys
from unittest import mock

import fixtures
import libvirt
from oslotest import base

from nova_kvm_ext import errors
from nova_kvm_ext.guests import reasons
from nova_kvm_ext.migration import comeback

MOUNTS = """\
22 1 254:0 / / rw - ext4 /dev/root rw
30 22 0:25 / /var/lib/nova rw,relatime shared:1 - xfs /dev/sdb rw
31 30 0:26 / /var/lib/nova/instances rw - nfs4 server:/nova rw
32 22 0:27 / /with\\040space rw - ceph none rw
33 22 0:28 / /twice rw - ext4 /dev/a rw
34 22 0:29 / /twice rw - fuse.sshfs /dev/b rw
35 22 0:30 / /größe rw - nfs4 server:/x rw
36 22 0:31 / /back\\134slash rw - nfs4 server:/x rw
"""


class PlaceTestCase(base.BaseTestCase):

    def test_types(self):
        path = os.path.join(self.useFixture(fixtures.TempDir()).path, 'm')
        with open(path, 'wb') as f:
            f.write(MOUNTS.encode() +
                    b'37 22 0:32 / /latin-\xf6 rw - nfs4 server:/x rw\n')
        for place, expected in (
                ('/', 'ext4'), ('/etc', 'ext4'), ('/var/lib/nova', 'xfs'),
                ('/var/lib/nova/x', 'xfs'), ('/var/lib/novax', 'ext4'),
                ('/var/lib/nova/instances/u/disk', 'nfs4'),
                ('/with space/u', 'ceph'), ('/twice/u', 'fuse.sshfs'),
                # Taken for local, it would be removed.
                ('/größe/u', 'nfs4'), ('/back\\slash/u', 'nfs4'),
                (os.fsdecode(b'/latin-\xf6/u'), 'nfs4')):
            self.assertEqual(expected, comeback.file_system_type(place, path))
        self.assertEqual('', comeback.file_system_type('/', path + 'x'))

    def test_local(self):
        for kind, local in (('ext4', True), ('nfs', False), ('', None),
                            ('fuse.sshfs', None)):
            with mock.patch.object(comeback, 'file_system_type',
                                   return_value=kind):
                self.assertIs(local, comeback.is_local('/'), kind)

    def test_to_copy(self):
        disks = [reasons.Disk('vda', '', reasons.Place.FILE, '/l/disk'),
                 reasons.Disk('vdb', '', reasons.Place.FILE, '/n/disk'),
                 reasons.Disk('vdc', '', reasons.Place.BLOCK, '/dev/x'),
                 reasons.Disk('vdd', '', reasons.Place.NETWORK, 'p/i'),
                 reasons.Disk('sda', '', reasons.Place.FILE, ''),
                 # libvirt refuses to copy a configuration drive.
                 reasons.Disk('sdb', '', reasons.Place.FILE, '/l/disk.config',
                              fixed=True)]
        with mock.patch.object(comeback, 'is_local',
                               side_effect=lambda path: path[1] == 'l'):
            self.assertEqual(['vda'], comeback.to_copy(disks))
        with mock.patch.object(comeback, 'is_local', return_value=None):
            error = self.assertRaises(errors.HostError, comeback.to_copy,
                                      disks)
        self.assertIn('--copy-disks', str(error))


class FilesTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.top = self.useFixture(fixtures.TempDir()).path
        self.path = os.path.join(self.top, 'u')

    def test_none(self):
        self.assertEqual('', comeback.files(self.top, 'u').path)

    def test_disks(self):
        os.mkdir(self.path)
        for name in ('disk', 'disk.info', 'disk.config', 'console.log'):
            with open(os.path.join(self.path, name), 'w') as f:
                f.write('x' * 512)
        with mock.patch.object(comeback, '_is_free',
                               return_value=False) as free:
            found = comeback.files(self.top, 'u')
        self.assertEqual(('disk', 'disk.config'), found.in_use)
        self.assertEqual(2, free.call_count)

    def test_locks(self):
        path = os.path.join(self.top, 'disk')
        with open(path, 'wb') as f:
            f.write(bytes(512))
        self.assertTrue(comeback._is_free(path))
        # As QEMU has it: a lock that others may share, in another process.
        holder = subprocess.Popen([sys.executable, '-c', (
            'import fcntl, sys\n'
            'f = open(sys.argv[1], "rb")\n'
            'fcntl.lockf(f, fcntl.LOCK_SH, 1, 101)\n'
            'print("held", flush=True)\n'
            'sys.stdin.read()'), path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.assertEqual(b'held\n', holder.stdout.readline())
        with mock.patch.object(comeback.time, 'sleep') as sleep:
            self.assertFalse(comeback._is_free(path))
            self.assertEqual(comeback._LOCK_TRIES, sleep.call_count)
        holder.communicate()
        self.assertTrue(comeback._is_free(path))

    def test_lock_that_cannot_be_told(self):
        self.assertFalse(comeback._is_free('/no/such/file'))

    def test_remove(self):
        os.mkdir(self.path)
        self.assertRaises(OSError, comeback.remove, self.path, 'v')
        link = os.path.join(self.top, 'w')
        os.symlink(self.path, link)
        self.assertRaises(OSError, comeback.remove, link, 'w')
        comeback.remove(self.path, 'u')
        self.assertFalse(os.path.exists(self.path))


class LookTestCase(base.BaseTestCase):

    def look(self, control=(0, 0, 0), job=0, active=True,
             state=(libvirt.VIR_DOMAIN_RUNNING, 1)):
        domain = mock.Mock()
        domain.state.return_value = list(state)
        domain.isActive.return_value = active
        domain.controlInfo.return_value = control
        domain.connect.return_value.getLibVersion.return_value = 11_003_000
        domain.jobInfo.return_value = [job]
        domain.XMLDesc.return_value = (
            '<domain><devices><disk type="file"><source file="/d"/>'
            '<target dev="vda"/></disk></devices></domain>')
        connection = mock.Mock()
        connection.lookupByUUIDString.return_value = domain
        return comeback.look(connection, 'u'), domain

    def test_runs(self):
        found, _ = self.look()
        self.assertEqual((True, False, False, ['vda']), (
            found.runs, found.busy, found.hangs,
            [disk.target for disk in found.disks]))
        self.assertTrue(self.look(job=2)[0].busy)
        # It is not here yet.
        for reason, busy in (
                (libvirt.VIR_DOMAIN_PAUSED_MIGRATION, True),
                (libvirt.VIR_DOMAIN_PAUSED_STARTING_UP, True),
                (libvirt.VIR_DOMAIN_PAUSED_USER, False),
                (libvirt.VIR_DOMAIN_PAUSED_IOERROR, False)):
            self.assertIs(busy, self.look(
                state=(libvirt.VIR_DOMAIN_PAUSED, reason))[0].busy, reason)
        self.assertEqual(comeback.Here(False, shut_off=True),
                         self.look(active=False)[0])

    def test_post_copy(self):
        """libvirt has no statistics of a guest that arrives: an error."""
        class NotHere(libvirt.libvirtError):
            def get_error_code(self):
                return libvirt.VIR_ERR_OPERATION_UNSUPPORTED

        _, domain = self.look()
        connection = mock.Mock()
        connection.lookupByUUIDString.return_value = domain
        domain.jobInfo.side_effect = NotHere('only on the source host')
        domain.state.return_value = [
            libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY]
        found = comeback.look(connection, 'u')
        self.assertEqual((True, True, False),
                         (found.runs, found.busy, found.torn))
        for state in (
                [libvirt.VIR_DOMAIN_RUNNING,
                 libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED],
                [libvirt.VIR_DOMAIN_PAUSED,
                 libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED]):
            domain.state.return_value = state
            self.assertEqual(comeback.Here(True, torn=True),
                             comeback.look(connection, 'u'))
        domain.state.return_value = [libvirt.VIR_DOMAIN_RUNNING, 1]
        domain.jobInfo.side_effect = libvirt.libvirtError('another')
        self.assertRaises(libvirt.libvirtError, comeback.look, connection,
                          'u')

    def test_qemu_that_hangs(self):
        """A libvirt newer than 9.0 would wait 30 s before it fails."""
        found, domain = self.look((2, 0, 60_000))
        self.assertEqual(comeback.Here(True, hangs=True), found)
        domain.XMLDesc.assert_not_called()
        domain.jobInfo.assert_not_called()

    def test_not_here(self):
        class NoDomain(libvirt.libvirtError):
            def get_error_code(self):
                return libvirt.VIR_ERR_NO_DOMAIN

        connection = mock.Mock()
        connection.lookupByUUIDString.side_effect = NoDomain('x')
        self.assertFalse(comeback.look(connection, 'u').runs)
        connection.lookupByUUIDString.side_effect = libvirt.libvirtError('x')
        self.assertRaises(libvirt.libvirtError, comeback.look, connection,
                          'u')


class MoveTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.domain = mock.Mock()
        self.domain.jobInfo.return_value = [2, 0, 0, 9 << 20, 0, 4 << 20]
        self.connection = mock.Mock()
        self.connection.lookupByUUIDString.return_value = self.domain

    def move(self, disks=()):
        comeback.move(self.connection, 'u', 'uri', disks, lambda text: None)

    def test_flags(self):
        self.move()
        uri, params, flags = self.domain.migrateToURI3.call_args.args
        self.assertEqual(('uri', {}), (uri, params))
        self.assertFalse(flags & libvirt.VIR_MIGRATE_NON_SHARED_INC)
        for flag in (libvirt.VIR_MIGRATE_LIVE,
                     libvirt.VIR_MIGRATE_PEER2PEER,
                     libvirt.VIR_MIGRATE_PERSIST_DEST,
                     libvirt.VIR_MIGRATE_UNDEFINE_SOURCE):
            self.assertTrue(flags & flag)
        self.move(['vda'])
        _, params, flags = self.domain.migrateToURI3.call_args.args
        self.assertEqual({'migrate_disks': ['vda']}, params)
        self.assertTrue(flags & libvirt.VIR_MIGRATE_NON_SHARED_INC)

    def test_protection(self):
        both = libvirt.VIR_MIGRATE_TLS | libvirt.VIR_MIGRATE_TUNNELLED
        for way, flag, option in (
                (comeback.PLAIN, 0, ''),
                (comeback.TLS, libvirt.VIR_MIGRATE_TLS, '--tls '),
                (comeback.TUNNELLED, libvirt.VIR_MIGRATE_TUNNELLED,
                 '--tunnelled ')):
            comeback.move(self.connection, 'u', 'uri', (),
                          lambda text: None, way)
            self.assertEqual(
                flag, self.domain.migrateToURI3.call_args.args[2] & both)
            self.assertEqual(
                f'virsh migrate --live --p2p --persistent --undefinesource '
                f'{option}--copy-storage-inc --migrate-disks vda,vdb u uri',
                comeback.by_hand('u', 'uri', ['vda', 'vdb'], way))

    def test_fails(self):
        for error in (libvirt.libvirtError, TypeError):
            self.domain.migrateToURI3.side_effect = error('no')
            self.assertRaises(error, self.move)

    def test_interrupted(self):
        started = comeback.threading.Event()

        def migrate(*args):
            started.wait(60)

        self.domain.migrateToURI3.side_effect = migrate
        self.domain.abortJob.side_effect = started.set

        def say(text):
            raise KeyboardInterrupt

        with mock.patch.object(comeback, '_PROGRESS', 0):
            self.assertRaises(KeyboardInterrupt, comeback.move,
                              self.connection, 'u', 'uri', (), say)
        self.domain.abortJob.assert_called_once_with()
