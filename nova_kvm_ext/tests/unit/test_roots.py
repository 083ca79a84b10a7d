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

"""The parts of the roots that can be wrong without making one."""

import argparse
import os
import pathlib
import subprocess
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext.tests import roots

_TARGETS = """\
Debian deb http://deb/debian/ bookworm main|bookworm
Debian deb http://deb/debian/ bookworm-updates main|bookworm-updates
Debian deb http://deb/security/ bookworm-security main|bookworm-security
Another deb http://elsewhere/ nodistro main|nodistro
"""


class SourcesTestCase(base.BaseTestCase):

    def _sources(self, targets, release):
        with mock.patch.object(roots, 'architecture', return_value='amd64'), \
                mock.patch.object(subprocess, 'run') as run:
            run.return_value.stdout = targets
            return roots.sources(release).splitlines()

    def test_own_release(self):
        self.assertEqual(
            ['deb http://deb/debian/ bookworm main',
             'deb http://deb/debian/ bookworm-updates main',
             'deb http://deb/security/ bookworm-security main'],
            self._sources(_TARGETS, 'bookworm'))

    def test_another_release(self):
        self.assertEqual(
            ['deb http://deb/debian/ trixie main',
             'deb http://deb/debian/ trixie-updates main',
             'deb http://deb/security/ trixie-security main'],
            self._sources(_TARGETS, 'trixie'))

    def test_sid_is_one_archive(self):
        self.assertEqual(['deb http://deb/debian/ sid main'],
                         self._sources(_TARGETS, 'sid'))

    def test_suite_instead_of_codename(self):
        self.assertEqual(
            ['deb http://deb/debian/ trixie main'],
            self._sources('Debian deb http://deb/debian/ oldstable main|'
                          'bookworm\n', 'trixie'))

    def test_no_debian(self):
        e = self.assertRaises(
            roots.RootError, self._sources,
            'Ubuntu deb http://ubuntu/ noble main|noble\n', 'trixie')
        self.assertIn('apt-get update', str(e))


class RootTestCase(base.BaseTestCase):

    def test_environment(self):
        for name, value in (('https_proxy', 'http://proxy'),
                            ('PIP_INDEX_URL', 'https://index'),
                            ('PIP_TARGET', '/elsewhere'),
                            ('VIRTUAL_ENV', '/venv'), ('HOME', '/home/me')):
            self.useFixture(fixtures.EnvironmentVariable(name, value))
        found = roots._environment()
        self.assertEqual('http://proxy', found['https_proxy'])
        self.assertEqual('https://index', found['PIP_INDEX_URL'])
        self.assertEqual('/root', found['HOME'])
        self.assertNotIn('PIP_TARGET', found)
        self.assertNotIn('VIRTUAL_ENV', found)

    def test_only_ways_to_archives_of_apts_settings(self):
        with mock.patch.object(subprocess, 'run') as run:
            run.return_value.stdout = (
                'Acquire "";\n'
                'Acquire::http "";\n'
                'Acquire::http::Proxy "http://proxy:3142";\n'
                'Acquire::https::CaInfo "/etc/ca.crt";\n'
                'Acquire::Check-Date "false";\n'
                'Acquire::GzipIndexes "true";\n')
            self.assertEqual(
                ['Acquire::http::Proxy "http://proxy:3142"',
                 'Acquire::https::CaInfo "/etc/ca.crt"',
                 'Acquire::Check-Date "false"'], roots._apt_settings())

    def test_cache_directory(self):
        for name in 'NOVA_KVM_EXT_CACHE', 'XDG_CACHE_HOME':
            self.useFixture(fixtures.EnvironmentVariable(name))
        self.useFixture(fixtures.EnvironmentVariable('HOME', '/home/me'))
        self.assertEqual(pathlib.Path('/home/me/.cache/nova-kvm-ext'),
                         roots.cache_directory())
        self.useFixture(fixtures.EnvironmentVariable(
            'NOVA_KVM_EXT_CACHE', '/elsewhere'))
        self.assertEqual(pathlib.Path('/elsewhere'), roots.cache_directory())

    def test_device_of_its_own(self):
        with mock.patch.object(os.path, 'exists', return_value=True):
            self.assertIn('mknod --mode=0600 dev/kvm c 10 232',
                          roots.Root('trixie')._devices())
            self.assertIn('mknod --mode=0660 dev/kvm c 10 232',
                          roots.Root('trixie', kvm_mode=0o660)._devices())
            self.assertNotIn(
                'dev/kvm',
                ' '.join(roots.Root('trixie', kvm_mode=None)._devices()))

    def test_what_is_shown(self):
        path = self.useFixture(fixtures.TempDir()).path
        self.useFixture(fixtures.MonkeyPatch(
            'nova_kvm_ext.tests.roots.Root._given', lambda self: []))
        root = roots.Root('trixie', binds=[(path, '/opt/a b', 'ro')])
        self.assertEqual(
            ['mkdir -p "$(dirname \'./opt/a b\')"', "mkdir -p './opt/a b'",
             f"mount --no-mtab --rbind {path} './opt/a b'",
             "mount --no-mtab -o remount,bind,ro './opt/a b'"], root._shown())

    def test_network(self):
        other = roots.Root('trixie', network=True)
        other.pid = 4711
        for network, start, more in (
                (False, 'unshare', False), (True, 'unshare', True),
                (other, 'nsenter', False)):
            root = roots.Root('trixie', network=network)
            root.tree = pathlib.Path('/tree')
            root._directory, root._lock = pathlib.Path('/'), 0
            with mock.patch.object(roots.namespaces, 'start') as started, \
                    mock.patch.object(subprocess, 'run') as run:
                run.return_value.returncode = 0
                started.return_value.pid = 12
                root._enter_namespaces()
            command = started.call_args[0][0]
            self.assertEqual(start, command[0])
            self.assertEqual(more, '--net' in command)
            self.assertEqual(network is other,
                             '--net=/proc/4711/ns/net' in command)
            # Whose network it is in does not change how it is entered.
            self.assertEqual(bool(network), '--net=/proc/12/ns/net' in
                             root.enter(['true']))


class CommandTestCase(base.BaseTestCase):

    def test_bind(self):
        self.assertEqual(['/tmp', '/tmp'], roots._bind('/tmp'))
        self.assertEqual(['/tmp', '/x', 'ro'], roots._bind('/tmp:/x:ro'))
        for text in ('/not-there', '/tmp:x', '/tmp:/x:rw', '/tmp:/x:ro:/y'):
            self.assertRaises(argparse.ArgumentTypeError, roots._bind, text)

    def test_mode(self):
        self.assertEqual(0o660, roots._mode('0660'))
        self.assertIsNone(roots._mode('none'))
        for text in ('', '8', '0999', 'rw'):
            self.assertRaises(argparse.ArgumentTypeError, roots._mode, text)

    def test_command(self):
        with mock.patch.object(roots, 'Root') as made:
            root = made.return_value.__enter__.return_value
            root.run.return_value.returncode = 7
            self.assertEqual(7, roots.main([
                'sid', '--package', 'a,b c', '--package', 'd', '--kvm',
                'none', '--env', 'A=B', '--', 'sh', '-c', 'true -- x']))
        made.assert_called_once_with(
            'sid', ['a', 'b', 'c', 'd'], binds=[], kvm_mode=None,
            network=False, anew=False)
        root.run.assert_called_once_with(
            ['env', '--chdir=/root', 'A=B', 'sh', '-c', 'true -- x'],
            check=False)

    def test_cannot_be_made(self):
        with mock.patch.object(roots, 'make',
                               side_effect=roots.RootError('why')):
            self.assertEqual(125, roots.main(['sid']))
