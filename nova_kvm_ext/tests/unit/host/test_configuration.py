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

"""The files that nova-compute reads, and what can be wrong with one."""

import os
import stat
import subprocess
import sys
import textwrap
from typing import Any
from unittest import mock

import fixtures
from oslo_config import cfg
from oslotest import base

from nova_kvm_ext import errors
from nova_kvm_ext.host import configuration
from nova_kvm_ext.host import service
from nova_kvm_ext.tests.unit.host import fake_proc


class ConfigurationTestCase(base.BaseTestCase):
    """oslo.config's own search, by its directories below ~."""

    def setUp(self):
        super().setUp()
        self.proc = self.useFixture(fake_proc.FakeProc())
        self.home = self.useFixture(fixtures.TempDir()).path
        os.chmod(self.home, 0o755)
        for name, value in (('HOME', self.home), ('PATH', '/none'),
                            ('SNAP', None), ('SNAP_COMMON', None)):
            self.useFixture(fixtures.EnvironmentVariable(name, value))
        # Where the account nova has its files on this machine is not ours.
        self.useFixture(fixtures.MockPatchObject(
            service, '_home', return_value=''))

    def write(self, path: str, text: str | bytes = '') -> str:
        path = os.path.join(self.home, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'wb') as f:
            f.write(text if isinstance(text, bytes) else
                    textwrap.dedent(text).encode())
        return path

    def find(self, given: list[str] | None = None
             ) -> configuration.Configuration:
        return configuration.find(given, proc=self.proc.path,
                                  root=self.home)

    def found(self) -> list[str]:
        return [os.path.relpath(file, self.home) for file in
                self.find().files]

    def runs(self, *arguments: str, **kwargs: Any) -> None:
        self.proc.clear()
        self.proc.add(7, ['/p/python3', '/usr/bin/nova-compute', *arguments],
                      environment={'HOME': self.home} | kwargs.pop(
                          'environment', {}), **kwargs)

    def load(self, *files: str) -> cfg.ConfigOpts:
        conf = cfg.ConfigOpts()
        conf.register_opt(cfg.StrOpt('compute_driver'))
        conf.register_opt(cfg.IntOpt('number'))
        conf.register_cli_opt(cfg.BoolOpt('debug'))
        self.find(list(files)).load(conf)
        return conf


class FindTestCase(ConfigurationTestCase):

    def test_nothing(self):
        self.assertEqual([], self.found())

    def test_as_oslo_config_finds_them_for_nova_compute(self):
        for path in ('.nova/nova-compute.conf.d/b.conf',
                     '.nova/nova.conf.d/b.conf', '.nova/nova.conf',
                     '.nova/nova-compute.conf', '.nova/nova.conf.d/a.conf',
                     '.nova/nova.conf.d/no', 'nova-compute.conf',
                     '.nova/nova-kvm-ext.conf', '.nova/nova-api.conf'):
            self.write(path)
        self.assertEqual(
            ['.nova/nova.conf', '.nova/nova-compute.conf',
             '.nova/nova.conf.d/a.conf', '.nova/nova.conf.d/b.conf',
             '.nova/nova-compute.conf.d/b.conf'], self.found())
        self.assertEqual('as oslo.config finds them for nova-compute',
                         self.find().how)

    def test_the_same_as_oslo_config(self):
        """What counts in the end is what counts for nova-compute."""
        for number, path in enumerate((
                '.nova/nova.conf', '.nova/nova-compute.conf',
                '.nova/nova.conf.d/a.conf', '.nova/nova-compute.conf.d/a.conf',
                'other.conf', 'dir/x.conf')):
            self.write(path, f'[DEFAULT]\nnumber = {number}\n')
        other, directory = (os.path.join(self.home, name)
                            for name in ('other.conf', 'dir'))
        for arguments in (
                [], ['--config-file', other], [f'--config-file={other}'],
                ['--config-dir', directory], [f'--config-dir={directory}'],
                ['--config-dir', directory, '--config-file', other],
                ['--config-file', other, '--config-dir', directory],
                ['--log-file', '/x', f'--config-file={other}', '--debug'],
                ['--config-file', '~/other.conf']):
            self.runs(*arguments)
            theirs = cfg.ConfigOpts()
            ours = cfg.ConfigOpts()
            for conf in (theirs, ours):
                conf.register_opt(cfg.IntOpt('number'))
            theirs.register_cli_opts([cfg.StrOpt('log-file'),
                                      cfg.BoolOpt('debug')])
            theirs(arguments, project='nova', prog='nova-compute')
            found = self.find()
            found.load(ours)
            self.assertEqual(theirs.number, ours.number,
                             str(arguments))
            if arguments:
                self.assertEqual('as nova-compute, process 7, reads them',
                                 found.how)

    def test_debian(self):
        """nova-compute-kvm's file comes after nova.conf."""
        self.write('.nova/nova.conf', """
            [DEFAULT]
            compute_driver = kvm_ext.KVMDriver
            """)
        last = self.write('.nova/nova-compute.conf', """
            [DEFAULT]
            compute_driver=libvirt.LibvirtDriver
            """)
        conf = cfg.ConfigOpts()
        conf.register_opt(cfg.StrOpt('compute_driver'))
        self.find().load(conf)
        self.assertEqual('libvirt.LibvirtDriver', conf.compute_driver)
        self.assertEqual(last, conf.get_location('compute_driver').detail)

    def test_what_the_user_names_is_all_that_is_read(self):
        self.write('.nova/nova.conf.d/a.conf', '[DEFAULT]\nnumber = 1\n')
        given = self.write('given.conf')
        self.assertIsNone(self.load(given).number)
        self.assertIsNone(self.find([given]).service)

    def test_relative_to_the_directory_of_the_process(self):
        self.write('x.conf')
        self.runs('--config-file', 'x.conf', directory=self.home)
        self.assertEqual(['x.conf'], self.found())

    def test_home_of_the_process(self):
        other = self.useFixture(fixtures.TempDir()).path
        self.write(f'{other}/.nova/nova.conf')
        self.write('.nova/nova.conf')
        self.runs(environment={'HOME': other})
        self.assertEqual((f'{other}/.nova/nova.conf',), self.find().files)
        self.assertEqual(self.home, os.environ['HOME'])

    def test_environment_of_the_process(self):
        names = {'OS_DEFAULT__NUMBER': '5', 'OS_DEFAULT__DEBUG': 'true',
                 'OS_AUTH_URL': 'x', 'LD_PRELOAD': 'x'}
        for name in names:
            self.useFixture(fixtures.EnvironmentVariable(name))
        # This user's own word.
        os.environ['OS_DEFAULT__DEBUG'] = 'false'
        self.runs(environment=names)
        conf = cfg.ConfigOpts()
        conf.register_opts([cfg.IntOpt('number'), cfg.BoolOpt('debug')])
        self.find().load(conf)
        self.assertEqual((5, False), (conf.number, conf.debug))
        self.assertNotIn('OS_AUTH_URL', os.environ)
        self.assertNotIn('LD_PRELOAD', os.environ)

    def test_words_that_are_not_understood(self):
        self.write('.nova/nova.conf')
        for arguments in (['--config-file'], ['--config'], ['--', '-x']):
            self.runs(*arguments)
            self.find()

    def test_a_directory_that_is_not_there(self):
        self.runs('--config-dir', '/no/such')
        self.assertIn('--config-dir /no/such', str(self.assertRaises(
            errors.InvalidOption, self.find)))

    def test_whether_the_same_files_are_seen_is_not_known(self):
        self.write('.nova/nova.conf')
        self.runs(mount=None)
        found = self.find()
        self.assertEqual(1, len(found.files))
        self.assertIn('not known to this user', found.notes[0])

    def test_a_container_that_this_user_cannot_enter(self):
        self.write('.nova/nova.conf')
        self.runs(mount='mnt:[9]')
        with mock.patch('os.chroot', side_effect=PermissionError(
                1, 'Operation not permitted')):
            found = self.find()
        self.assertEqual((f'{self.home}/.nova/nova.conf',), found.files)
        self.assertIn('Operation not permitted', found.notes[0])

    def test_a_container(self):
        if os.geteuid() != 0:
            self.skipTest('only root can change its root')
        container = self.useFixture(fixtures.TempDir()).path
        self.write(f'{container}/etc/nova/nova.conf')
        self.write(f'{container}/etc/kolla/x.conf')
        os.symlink('/etc/kolla/x.conf',
                   f'{container}/etc/nova/nova-compute.conf')
        self.write(f'{container}/srv/y.conf')
        for arguments, wanted in (
                ([], ['etc/nova/nova.conf', 'etc/kolla/x.conf']),
                (['--config-file', '/srv/y.conf'], ['srv/y.conf'])):
            self.runs(*arguments, root=container, mount='mnt:[9]',
                      environment={'HOME': '/root'})
            found = self.find()
            there = f'{self.proc.path}/7/root/'
            self.assertEqual(tuple(there + path for path in wanted),
                             found.files)
            self.assertIn('in its own file system', found.how)
            self.assertTrue(all(map(os.path.isfile, found.files)))


class ClosedTestCase(ConfigurationTestCase):
    """What an ordinary user is kept from."""

    def setUp(self):
        super().setUp()
        # Of the test's own; only what a test closes is closed.
        for path in (self.home, self.proc.path):
            os.chmod(path, 0o755)
            os.chmod(os.path.dirname(path), 0o755)

    def as_nobody(self, program: str) -> str:
        """Standard output of a program that an ordinary user runs.

        The modules are imported first: that user may not reach them.
        """
        if os.geteuid() != 0:
            self.skipTest('only root can become another user')
        done = subprocess.run(
            [sys.executable, '-c', textwrap.dedent("""
                import os, sys
                from oslo_config import cfg
                from nova_kvm_ext import errors
                from nova_kvm_ext.host import configuration
                os.setgroups([]); os.setgid(65534); os.setuid(65534)
                conf = cfg.ConfigOpts()
                proc, path = sys.argv[1:]
                """) + textwrap.dedent(program), self.proc.path, self.home],
            capture_output=True, text=True, timeout=60,
            # As it is imported here.
            env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)})
        self.assertEqual(('', 0), (done.stderr, done.returncode))
        return done.stdout

    def test_file(self):
        path = self.write('nova.conf', '[DEFAULT]\n')
        os.chmod(path, 0o640)
        self.assertEqual(
            f'The configuration file {path} may not be read by the user '
            f'nobody. Run this command with sudo, or as a user who may read '
            f'the configuration of nova-compute.\n', self.as_nobody("""
                try:
                    configuration.find([path + '/nova.conf']).load(conf)
                except errors.InvalidOption as e:
                    print(e)
                """))

    def test_directories(self):
        self.write('.nova/nova.conf.d/a.conf')
        closed = os.path.join(self.home, '.nova/nova.conf.d')
        os.chmod(os.path.dirname(closed), 0o755)
        os.chmod(closed, 0o750)
        self.assertIn(
            f'{closed}, where nova-compute finds its configuration, is '
            f'closed to the user nobody.', self.as_nobody("""
                try:
                    configuration.find(proc=proc, root=path)
                except errors.InvalidOption as e:
                    print(e)
                """))

    def test_directory_of_all(self):
        """A file that is hidden is none that is not there."""
        closed = os.path.join(self.home, 'etc')
        os.makedirs(closed)
        os.chmod(closed, 0o750)
        self.assertIn('etc, where nova-compute finds', self.as_nobody("""
            configuration._DIRECTORIES = (path + '/etc',)
            try:
                configuration.find(proc=proc, root=path)
            except errors.InvalidOption as e:
                print(e)
            """))


class ParsedTestCase(ConfigurationTestCase):

    def refused(self, *files: str) -> str:
        return str(self.assertRaises(errors.InvalidOption, self.load, *files))

    def test_no_such_file(self):
        self.assertIn('/no/such.conf does not exist. Name',
                      self.refused('/no/such.conf'))

    def test_directory(self):
        self.assertIn(f'{self.home} is a directory.', self.refused(self.home))

    def test_nonsense(self):
        for text, words in (
                ('x', "cannot be parsed: at"), ('[x\n', 'cannot be parsed'),
                ('a = b\n', 'Section must be started'),
                (b'[DEFAULT]\na = \xff\n', 'is not text in utf-8'),
                (b'\x00\xff', 'is not text in utf-8'),
                ('[DEFAULT]\ndebug = perhaps\n', 'perhaps')):
            path = self.write('x.conf', text)
            good = self.write('good.conf', '[DEFAULT]\n')
            said = self.refused(good, path)
            self.assertIn(path, said)
            self.assertIn(words, said)
            self.assertNotIn('\n', said)

    def test_no_path(self):
        for path in (self.write('x.conf') + '/y', 'a\0b', 'x' * 300):
            self.assertIn('The configuration', self.refused(path))

    def test_a_loop(self):
        path = os.path.join(self.home, 'loop')
        os.symlink(path, path)
        self.assertIn(f'{path} cannot be read', self.refused(path))

    def test_a_device(self):
        self.assertTrue(stat.S_ISCHR(os.stat('/dev/null').st_mode))
        self.load('/dev/null')

    def test_a_wrong_command_line_is_not_ours(self):
        conf = cfg.ConfigOpts()
        found = configuration.Configuration(())
        with fixtures.StringStream('stderr') as said, \
                fixtures.MonkeyPatch('sys.stderr', said.stream):
            error = self.assertRaises(SystemExit, found.load, conf, ['--no'])
        self.assertEqual(2, error.code)


class NamedTestCase(ConfigurationTestCase):

    def test_none(self):
        self.assertIsNone(configuration.named(['upgrade', 'check']))

    def test_files_and_directories(self):
        self.write('b/x.conf')
        directory = os.path.join(self.home, 'b')
        found = configuration.named([
            '--config-file', '/a', f'--config-dir={directory}', 'upgrade'])
        self.assertEqual(('/a', f'{directory}/x.conf'), found.files)
