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

"""The parts of the cloud's tests that can be wrong without a cloud."""

import configparser
import os
import pathlib
import re
import shutil
import subprocess

import fixtures
from oslotest import base

from nova_kvm_ext.migration import completed
from nova_kvm_ext.migration import verdict
from nova_kvm_ext.tests.cloud import configuration
from nova_kvm_ext.tests.cloud import sandbox
from nova_kvm_ext.tests.cloud import services
from nova_kvm_ext.tests.cloud import storage
from nova_kvm_ext.tests.cloud import test_frozen_times
from nova_kvm_ext.tests.cloud import test_verdicts
from nova_kvm_ext.tests.cloud import told
from nova_kvm_ext.tests.cloud import volumes


class ConfigurationTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.state = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        for name in ('lib', 'run'):
            (self.state / name).mkdir()
        for compute in sandbox.COMPUTES:
            (self.state / compute / 'libvirt-etc').mkdir(parents=True)
        self.storage = storage.Storage('ceph', volumes=True)
        self.venv = pathlib.Path('/venv')
        configuration.Configuration(
            self.state, self.venv, 's3cret%',
            self.storage).write()

    def test_every_file_that_a_service_names_is_there(self):
        table = services.table(self.state, self.venv)
        named = {
            pathlib.Path(found) for service in table.values()
            for text in (*service.command, *service.environment.values())
            for found in re.findall(rf'{self.state}/etc/[\w./-]+', text)}
        # RabbitMQ adds the suffix by itself.
        named = {path.with_suffix('.conf') if path.name == 'rabbitmq'
                 else path for path in named}
        self.assertGreater(len(named), 10)
        self.assertEqual([], [path for path in named if not path.exists()])

    def test_files_keep_values_as_they_are(self):
        parser = configparser.ConfigParser(
            interpolation=None, default_section='')
        parser.read(self.state / 'etc' / 'nova.conf')
        self.assertEqual('s3cret%', parser['placement']['password'])
        self.assertEqual('kvm_ext.KVMDriver',
                         parser['DEFAULT']['compute_driver'])

    def test_a_compute_has_no_database(self):
        parser = configparser.ConfigParser(
            interpolation=None, default_section='')
        parser.read(self.state / 'etc' / 'nova-compute.conf')
        self.assertNotIn('database', parser)
        self.assertNotIn('api_database', parser)

    def test_its_storage_is_written_down(self):
        self.assertEqual(self.storage, storage.of(self.state))

    def test_each_service_knows_its_own_pool_alone(self):
        def options(name):
            parser = configparser.ConfigParser(
                interpolation=None, default_section='')
            parser.read(self.state / 'etc' / f'{name}.conf')
            return parser
        self.assertEqual('images', options('glance-api')['ceph'][
            'rbd_store_pool'])
        self.assertEqual('vms', options('nova-compute')['libvirt'][
            'images_rbd_pool'])
        cinder = options('cinder')
        self.assertEqual('volumes', cinder['rbd']['rbd_pool'])
        # A compute has the key of Cinder's user under the name that Cinder
        # tells Nova.
        for compute in sandbox.COMPUTES:
            key = (self.state / compute / 'libvirt-etc' / 'secrets' /
                   f'{cinder["rbd"]["rbd_secret_uuid"]}.base64').read_text()
            keyring = self.state / compute / 'ceph-etc'
            self.assertIn(key, (
                keyring / 'ceph.client.cinder.keyring').read_text())

    def test_files_alone_need_no_ceph(self):
        alone = storage.Storage()
        self.assertFalse(alone.has_ceph)
        self.assertNotIn('ceph', alone.glance(self.state))
        self.assertEqual({'libvirt': {}}, alone.nova(self.state))
        # Volumes are of both kinds, whatever disks are.
        self.assertTrue(storage.Storage('files', volumes=True).has_ceph)

    def test_the_stand_in_for_nfs_mounts_its_own_share_alone(self):
        mount = str(self.state / 'bin' / 'mount')
        result = subprocess.run(
            [mount, '-t', 'nfs', '-o', 'vers=4', '192.0.2.9:/other',
             '/mnt'], capture_output=True, text=True)
        self.assertEqual(32, result.returncode)
        self.assertIn('192.0.2.9:/other', result.stderr)

    def test_only_its_owner_reads_the_files(self):
        for name in ('etc', 'lib', 'run'):
            mode = (self.state / name).stat().st_mode
            self.assertEqual(0, mode & 0o077, name)


_LIBVIRT_LOG = '''
10:00:00.000+0000: 1: info : libvirt version: 9.0.0
10:00:01.000+0000: 132: debug : qemuAgentCommandFull:1039 : Send command \
'{"execute":"guest-fsfreeze-status"}' for write, seconds = 10
10:00:01.010+0000: 132: debug : qemuAgentCommandFull:1043 : Receive command \
reply ret=0 rxObject=0x7f16e4011890
10:00:02.000+0000: 132: debug : qemuAgentCommandFull:1039 : Send command \
'{"execute":"guest-fsfreeze-freeze"}' for write, seconds = 60
10:00:02.900+0000: 28767: debug : qemuAgentIOProcessData:294 : Total used 14
10:00:02.925+0000: 132: debug : qemuAgentCommandFull:1043 : Receive command \
reply ret=0 rxObject=0x7f16e4011890
10:00:03.000+0000: 132: debug : qemuAgentCommandFull:1039 : Send command \
'{"execute":"guest-fsfreeze-status"}' for write, seconds = 3
10:00:03.100+0000: 132: debug : qemuAgentCommandFull:1043 : Receive command \
reply ret=0 rxObject=0x7f16e4011890
10:00:03.100+0000: 132: debug : qemuAgentCommandFull:1039 : Send command \
'{"execute":"guest-fsfreeze-thaw"}' for write, seconds = 30
10:00:03.425+0000: 132: debug : qemuAgentCommandFull:1043 : Receive command \
reply ret=0 rxObject=0x7f16e40179c0
10:00:04.000+0000: 132: debug : qemuAgentCommandFull:1039 : Send command \
'{"execute":"guest-fsfreeze-thaw"}' for write, seconds = 30
10:00:04.100+0000: 132: debug : qemuAgentCommandFull:1043 : Receive command \
reply ret=0 rxObject=0x7f16e40179c0
'''.replace('\\\n', '').replace('\n10:', '\n2026-11-27 10:')


class FrozenTimesTestCase(base.BaseTestCase):

    def test_from_the_answer_to_that_of_the_thaw(self):
        [(freeze, frozen)] = test_frozen_times.frozen_times(_LIBVIRT_LOG)
        self.assertAlmostEqual(0.925, freeze)
        self.assertAlmostEqual(0.5, frozen)

    def test_never_frozen(self):
        self.assertEqual([], test_frozen_times.frozen_times(''))

    def test_a_guest_that_is_not_thawed_yet(self):
        lines = _LIBVIRT_LOG.splitlines(keepends=True)
        freeze, thaw = (next(
            number for number, line in enumerate(lines) if word in line)
            for word in ('guest-fsfreeze-freeze', 'guest-fsfreeze-thaw'))
        self.assertEqual(
            [number <= freeze for number in range(thaw + 2)],
            [test_frozen_times.is_over(''.join(lines[:number]))
             for number in range(thaw + 2)])
        self.assertTrue(test_frozen_times.is_over(_LIBVIRT_LOG))


class MoveTestCase(base.BaseTestCase):
    """Whether the verdict about a migration counts as right."""

    def told(self, *verdicts, more=''):
        """What the log tells where these were said, of this server."""
        lines = [f'[instance: one] Live migration: '
                 f'{verdict.Verdict(outcome, iteration, 1, 1, 1)}.'
                 for iteration, outcome in verdicts]
        return told.Told.read('\n'.join((
            f'[instance: two] Live migration: '
            f'{verdict.Verdict(verdict.Outcome.CONVERGES, 1)}.', *lines,
            *([f'[instance: one] {more}'] if more else ()))), 'one')

    def move(self, kind, *verdicts, status='completed', more='',
             stopped=False):
        return test_verdicts.Move(
            test_verdicts.Guest(None, kind, 'wait'), 'a', 'b',
            self.told(*verdicts, more=more), status=status, stopped=stopped)

    def test_the_log(self):
        found = self.told((2, verdict.Outcome.STALLS), more=(
            f'Live migration completed: '
            f'{completed.Completed(9, 0.2, 5, 3 << 30, 4 << 20)}; 0.5 s.'))
        self.assertEqual(((2, verdict.Outcome.STALLS),), found.verdicts)
        self.assertTrue(found.completed.startswith(
            'downtime 0.200 s, iterations 5, sent 3072 MiB'))
        self.assertEqual('', found.acted)
        self.assertEqual('it is aborted (x)', self.told(more=(
            'KVML705 The live migration will not converge: it is aborted '
            '(x).')).acted)
        # What it took is to be told, not that it is not known.
        self.assertEqual('', self.told(more=(
            f'Live migration completed: {completed.Completed()}.')).completed)

    def test_the_verdict_by_the_third_iteration(self):
        stalls, ends, unknown = (verdict.Outcome.STALLS,
                                 verdict.Outcome.CONVERGES,
                                 verdict.Outcome.UNKNOWN)
        for outcome, *verdicts in (
                (None,), (stalls, (2, stalls)),
                (ends, (2, stalls), (3, ends), (4, stalls)),
                (unknown, (3, unknown), (4, stalls)),
                (ends, (5, ends), (6, stalls))):
            self.assertIs(outcome, self.told(*verdicts).outcome,
                          str(verdicts))

    def test_right(self):
        stalls, ends = verdict.Outcome.STALLS, verdict.Outcome.CONVERGES
        acted = ('KVML705 The live migration will not converge: it is '
                 'aborted (x).')
        for result, move in (
                ('right', self.move('idle')),
                ('right', self.move('idle', (3, ends))),
                ('WRONG', self.move('slow', (3, stalls))),
                ('right', self.move('fast', (3, stalls), more=acted)),
                ('not known', self.move('fast', stopped=True)),
                # It has arrived, and nobody has touched it.
                ('WRONG', self.move('fast', (3, stalls))),
                ('right', self.move('stops', (3, stalls), stopped=True)),
                ('WRONG', self.move('stops', (3, ends), stopped=True))):
            self.assertEqual(result, move.result, str(move))


class FilesystemTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        directory = self.useFixture(fixtures.TempDir()).path
        self.disk = pathlib.Path(directory, 'disk')
        if not shutil.which('mke2fs', path=volumes.environment()['PATH']):
            self.skipTest('There is no mke2fs')

    def _make(self, *, start=0, needs_recovery=False):
        with open(self.disk, 'wb') as disk:
            disk.truncate(start + 4 * 1024 * 1024)
        subprocess.run(
            ['mke2fs', '-q', '-F', '-t', 'ext4', '-O', '^metadata_csum',
             '-E', f'offset={start}', self.disk, '4M'],
            env=volumes.environment(), check=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL)
        if start:
            self._write(446, bytes(8) + (start // 512).to_bytes(4, 'little') +
                        (8192).to_bytes(4, 'little'))
            self._write(510, b'\x55\xaa')
        if needs_recovery:
            # s_feature_incompat in ext4's documentation of its superblock.
            with open(self.disk, 'rb') as disk:
                disk.seek(start + 1024 + 96)
                flags = int.from_bytes(disk.read(4), 'little') | 4
            self._write(start + 1024 + 96, flags.to_bytes(4, 'little'))

    def _write(self, where, what):
        with open(self.disk, 'rb+') as disk:
            disk.seek(where)
            disk.write(what)

    def test_clean(self):
        self._make()
        self.assertEqual('clean', volumes.state_of_filesystem(self.disk))

    def test_clean_partition(self):
        self._make(start=1024 * 1024)
        self.assertEqual('clean', volumes.state_of_filesystem(self.disk))

    def test_journal_is_needed(self):
        self._make(needs_recovery=True)
        self.assertEqual('needs recovery',
                         volumes.state_of_filesystem(self.disk))

    def test_broken(self):
        self._make()
        # The bitmap of blocks that are in use, wherever it is.
        with open(self.disk, 'rb') as disk:
            content = disk.read()
        at = content.index(b'\xff' * 64, 4096)
        self._write(at, bytes(64))
        self.assertNotEqual('clean', volumes.state_of_filesystem(self.disk))

    def test_no_filesystem(self):
        self.disk.write_bytes(bytes(1024 * 1024))
        self.assertIn('no ext4', volumes.state_of_filesystem(self.disk))


class SandboxTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.state = self.useFixture(fixtures.TempDir()).path

    def test_is_not_up_without_a_first_process(self):
        self.assertFalse(sandbox.Sandbox(self.state).up())
        # The file of one that was killed.
        pathlib.Path(self.state, 'lock').touch()
        self.assertFalse(sandbox.Sandbox(self.state).up())

    def test_removes_all_but_logs(self):
        for name in ('logs', 'lib/keystone', 'run'):
            pathlib.Path(self.state, name).mkdir(parents=True)
        for name in ('hosts', 'lock'):
            pathlib.Path(self.state, name).touch()
        sandbox.Sandbox(self.state).remove(logs=True)
        self.assertEqual({'lock', 'logs'}, set(os.listdir(self.state)))
        sandbox.Sandbox(self.state).remove(logs=False)
        self.assertFalse(pathlib.Path(self.state).exists())
        # Again is no error.
        sandbox.Sandbox(self.state).remove(logs=False)

    def test_removes_nothing_of_another_directory(self):
        precious = pathlib.Path(self.state, 'logs')
        precious.touch()
        error = self.assertRaises(
            sandbox.SandboxError, sandbox.Sandbox(self.state).remove,
            logs=False)
        self.assertIn(self.state, str(error))
        self.assertTrue(precious.exists())
