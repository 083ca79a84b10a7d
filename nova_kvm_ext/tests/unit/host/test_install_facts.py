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

"""The Python of nova-compute, asked whether it finds the driver."""

import os
import subprocess
import sys
import textwrap
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext.host import door
from nova_kvm_ext.host import install
from nova_kvm_ext.host import install_facts
from nova_kvm_ext.host import model
from nova_kvm_ext.host import service

OURS = model.InstallFacts(('/ours/nova/virt',), '/ours/door', None)


class InstallTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(
            door, 'read_install', return_value=OURS))
        self.directory = self.useFixture(fixtures.TempDir()).path
        # As root the test would become the owner of what it makes.
        self.python = self.interpreter('')

    def interpreter(self, program: str) -> str:
        """Another Python: this one, by a link of another place."""
        path = os.path.join(self.directory, 'bin', 'python3')
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.lexists(path):
            os.unlink(path)
        if not program:
            os.symlink(os.path.realpath(sys.executable), path)
            return path
        with open(path, 'w') as f:
            f.write(f'#!/bin/sh\n{program}\n')
        os.chmod(path, 0o755)
        return path

    def package(self, path: str, text: str = '') -> None:
        """A module in a directory that this Python looks into."""
        path = os.path.join(self.directory, 'lib', path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w') as f:
            f.write(text)

    def ask(self, python: tuple[str, ...] | None = None,
            **kwargs) -> model.InstallFacts:
        kwargs.setdefault('environment', {
            'PYTHONPATH': os.path.join(self.directory, 'lib')})
        return install_facts.read(service.Service(
            how='process 7', pid=7,
            python=(self.python, '-S') if python is None else python,
            **kwargs))

    def test_finds_it(self):
        for path in ('nova/__init__.py', 'nova/virt/__init__.py',
                     'nova/virt/kvm_ext/__init__.py',
                     'nova_kvm_ext/__init__.py'):
            # Neither driver is imported.
            self.package(path, '1 / 0' if 'kvm_ext' in path else '')
        found = self.ask()
        self.assertIsNone(install.check(found))
        virt = os.path.join(self.directory, 'lib', 'nova', 'virt')
        self.assertEqual(
            ((virt,), f'{virt}/kvm_ext', f'{self.python} -S', 'process 7'),
            (found.nova_directories, found.door, found.python, found.how))

    def test_nova_without_it(self):
        """As in a virtual environment with --system-site-packages."""
        self.package('nova/virt/__init__.py')
        found = self.ask()
        self.assertFalse(found.has_package)
        self.assertIn(f'nova-compute runs with {self.python} -S (process 7)',
                      install.check(found))
        self.assertIn('Install nova-kvm-ext with', install.remedy(found))

    def test_a_link_to_a_package_that_is_not_found(self):
        self.package('nova/virt/__init__.py')
        self.package('nova/virt/kvm_ext/__init__.py')
        self.assertIn('no nova_kvm_ext', install.check(self.ask()))

    def test_another_site_directory(self):
        """As where pip puts it on Debian."""
        self.package('nova/virt/__init__.py')
        other = os.path.join(self.directory, 'other')
        for path in ('nova/virt/kvm_ext', 'nova_kvm_ext'):
            os.makedirs(os.path.join(other, path))
            with open(os.path.join(other, path, '__init__.py'), 'w'):
                pass
        self.package('nova/__init__.py')
        found = self.ask(environment={'PYTHONPATH': os.pathsep.join(
            (os.path.join(self.directory, 'lib'), other))})
        self.assertEqual(
            f'ln -s {other}/nova/virt/kvm_ext '
            f'{self.directory}/lib/nova/virt/', install.remedy(found))

    def test_no_nova(self):
        found = self.ask()
        self.assertEqual((), found.nova_directories)
        self.assertIn('Nova is not installed where', install.check(found))

    def test_not_where_it_is_asked(self):
        self.package('nova/virt/__init__.py')
        self.package('nova_kvm_ext/__init__.py')
        with mock.patch.object(subprocess, 'run',
                               wraps=subprocess.run) as run:
            self.ask()
        self.assertEqual('/', run.call_args.kwargs['cwd'])

    def test_no_answer_is_not_known(self):
        for program, words in (
                ('exit 3', 'gives no answer'), ('echo hello', 'gives no'),
                ('echo "[1]"', 'gives no answer'), ('echo "{}"', 'no answer'),
                ('echo no such module >&2; exit 1', 'no such module'),
                ('printf "\\033[31m\\n"; exit 1', '[31m')):
            found = self.ask((self.interpreter(program),))
            self.assertIn(words, found.unknown)
            self.assertTrue(found.unknown.isprintable())
            self.assertIsNone(install.check(found))

    def test_a_python_that_hangs(self):
        self.useFixture(fixtures.MockPatchObject(
            install_facts, '_SECONDS', 0.5))
        self.assertIn('within 0.5 s', self.ask(
            (self.interpreter('exec sleep 60'),)).unknown)

    def test_no_such_python(self):
        self.assertIn('does not answer', self.ask(('/no/python3',)).unknown)

    def test_a_python_that_is_not_known(self):
        self.assertIn('is not known', self.ask(()).unknown)

    def test_a_container(self):
        with mock.patch.object(subprocess, 'run') as run:
            found = self.ask(elsewhere=True)
        run.assert_not_called()
        self.assertTrue(found.elsewhere)
        self.assertIn('a file system of its own', found.unknown)

    def test_no_nova_compute_at_all(self):
        self.assertIs(OURS, install_facts.read(service.Service()))

    def test_the_python_of_this_process(self):
        with mock.patch.object(subprocess, 'run') as run:
            self.assertIs(OURS, self.ask((sys.executable,), environment={}))
        run.assert_not_called()
        # Its path is another one.
        self.assertIsNot(OURS, self.ask((sys.executable,)))

    def test_whom_root_becomes(self):
        python = self.interpreter('exit 1')
        wanted = (1234, 1235, (7, 8))
        for euid, user, owner, become in (
                (0, wanted, 0, wanted), (0, (0, 0, ()), 55, None),
                # Root runs nothing of another user.
                (0, None, 55, (55, 56, ())), (0, None, 0, None),
                (1000, wanted, 55, None)):
            with mock.patch('os.geteuid', return_value=euid), \
                    mock.patch('os.lstat', return_value=mock.Mock(
                        st_uid=owner, st_gid=owner + 1)), \
                    mock.patch.object(subprocess, 'run', side_effect=OSError(
                        'x')) as run:
                self.ask((python,), user=user)
            said = run.call_args.kwargs
            self.assertEqual(become or (None, None, None), (
                said['user'], said['group'], said['extra_groups']))

    def test_it_becomes_that_user(self):
        if os.geteuid() != 0:
            self.skipTest('only root can become another user')
        python = self.interpreter('id -u; id -g; id -G; exit 1')
        for path in (self.directory, os.path.dirname(self.directory),
                     os.path.dirname(python)):
            os.chmod(path, 0o755)
        said = self.ask((python,), user=(65534, 65533, (65532,))).unknown
        self.assertIn('65534 65533 65533 65532', said)

    def test_the_environment(self):
        """Nothing that this user's shell has."""
        self.useFixture(fixtures.EnvironmentVariable('PYTHONPATH', '/mine'))
        said = self.ask((self.interpreter('env; exit 1'),), environment={
            'PYTHONPATH': '/theirs', 'OS_PASSWORD': 'secret',
            'HOME': '/var/lib/nova'}).unknown
        self.assertIn('PYTHONPATH=/theirs', said)
        self.assertIn('HOME=/var/lib/nova', said)
        self.assertNotIn('secret', said)
        said = self.ask((self.interpreter('env; exit 1'),), environment={},
                        home='/var/lib/nova').unknown
        self.assertNotIn('/mine', said)
        self.assertIn('HOME=/var/lib/nova', said)


class VirtualEnvironmentTestCase(base.BaseTestCase):

    def test_system_site_packages(self):
        """A venv of ours sees the system's Nova, which sees nothing of it."""
        directory = self.useFixture(fixtures.TempDir()).path
        subprocess.run(
            [sys.executable, '-m', 'venv', '--without-pip',
             '--system-site-packages', directory], check=True, timeout=120)
        site = subprocess.run(
            [f'{directory}/bin/python', '-c', 'import sysconfig; print('
             'sysconfig.get_path("purelib"))'], check=True, timeout=60,
            capture_output=True, text=True).stdout.strip()
        system = self.useFixture(fixtures.TempDir()).path
        for path in (f'{system}/nova/virt', f'{site}/nova_kvm_ext',
                     f'{site}/nova/virt/kvm_ext'):
            os.makedirs(path)
        for path in (f'{system}/nova', f'{system}/nova/virt'):
            # Nova's wheel of 31 to 34 lets another directory add to it.
            with open(f'{path}/__init__.py', 'w') as f:
                f.write(textwrap.dedent("""
                    import pkgutil
                    __path__ = pkgutil.extend_path(__path__, __name__)
                    """))

        def asked(python: str) -> model.InstallFacts:
            return install_facts.read(service.Service(
                how='process 7', pid=7, python=(python, '-S')
                if python != f'{directory}/bin/python' else (python,),
                environment={'PYTHONPATH': system}))

        base_python = os.path.realpath(sys.executable)
        self.assertTrue(asked(f'{directory}/bin/python').has_package)
        self.assertIn('no nova_kvm_ext', install.check(asked(base_python)))
