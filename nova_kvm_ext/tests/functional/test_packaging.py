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

"""The package, built, installed beside Nova, and removed again.

The checkout is copied before it is built. Nova comes from the environment
that runs the tests: a scratch environment gets hard links to its files, which
is safe because pip never writes into a file but puts another in its place.
"""

from collections.abc import Mapping
import configparser
from importlib import metadata
import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from typing import NoReturn
import unittest
import venv
import zipfile

from packaging import requirements
import testtools

from nova_kvm_ext.tests.functional import libvirtd

_ROOT = pathlib.Path(__file__).parents[3]
_VERSION = '9.8.7'
_TIMEOUT = 300.0

# As the command prints what is wrong with the installation.
_WARNING = 'warning: '

# setuptools before 70.1 can build wheels only with the package "wheel".
_CAN_BUILD = """
from setuptools import dist
for command in 'bdist_wheel', 'editable_wheel':
    dist.Distribution().get_command_class(command)
"""

# Where Nova's own loader, which exits if it cannot, finds the driver.
_LOAD = """
from nova.virt import driver
loaded = driver.load_compute_driver(None, 'kvm_ext.KVMDriver')
import nova
import nova_kvm_ext.driver
assert isinstance(loaded, nova_kvm_ext.driver.KVMDriver), loaded
print(nova.__file__)
print(nova_kvm_ext.__file__)
"""

# With packages beside the project's file setuptools makes Nova known by a
# finder, not by a directory in Python's path.
_EDITABLE_NOVA = """
[build-system]
requires = ["setuptools>=64.0.0"]
build-backend = "setuptools.build_meta"
[project]
name = "editable-nova"
version = "1"
[tool.setuptools]
packages = ["nova"]
"""


def _cannot_run(why: str) -> NoReturn:
    reason = f'The package cannot be built and installed here: {why}'
    if os.environ.get(libvirtd.REQUIRE) == '1':
        raise RuntimeError(f'{reason} ({libvirtd.REQUIRE} is set)')
    raise unittest.SkipTest(reason)


def _attempt(
    *command: str | pathlib.Path, cwd: pathlib.Path,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess:
    variables = {
        name: value for name, value in os.environ.items()
        if name not in ('PBR_VERSION', 'PYTHONHOME', 'PYTHONPATH')}
    variables |= {
        'PIP_DISABLE_PIP_VERSION_CHECK': '1',
        'PIP_NO_INPUT': '1',
        'PIP_ROOT_USER_ACTION': 'ignore',
        'PYTHONNOUSERSITE': '1',
    }
    return subprocess.run(
        command, cwd=cwd, env=variables | dict(environment or {}),
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=_TIMEOUT)


def _run(
    *command: str | pathlib.Path, cwd: pathlib.Path,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess:
    result = _attempt(*command, cwd=cwd, environment=environment)
    if result.returncode != 0:
        raise RuntimeError(
            f'{shlex.join(map(str, command))}: exit code {result.returncode}\n'
            f'{result.stdout}{result.stderr}')
    return result


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        pass  # the directory that Python searches first has one
    except OSError:  # another file system, or not permitted
        shutil.copy2(source, target)


def _files(directory: pathlib.Path) -> set[str]:
    """The files below a directory, save those Python writes at any time."""
    return {
        os.path.relpath(os.path.join(path, name), directory)
        for path, _, names in os.walk(directory) for name in names
        if not name.endswith('.pyc')}


class PackagingTest(testtools.TestCase):

    base: pathlib.Path
    """Everything these tests write is in here."""

    tracked: list[str]
    """The files in git that are here, relative to the checkout."""

    checkout: pathlib.Path
    """A copy of the checkout."""

    build_options: list[str]
    """How pip can build here."""

    wheel: pathlib.Path
    """The package, built."""

    prefix: pathlib.Path
    """An environment with Nova and without this package."""

    site: pathlib.Path
    """The directory of Nova in that environment."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if shutil.which('git') is None:
            _cannot_run('git is not installed')
        if importlib.util.find_spec('pip') is None:
            _cannot_run(f'{sys.executable} has no pip')
        # Rather where the environment may be too than in a small memory disk.
        cls.base = pathlib.Path(tempfile.mkdtemp(
            prefix='nova-kvm-ext-packaging-', dir='/var/tmp'))
        cls.addClassCleanup(shutil.rmtree, cls.base)
        cls._copy_checkout()
        cls._build()
        cls._make_environment()

    @classmethod
    def _copy_checkout(cls) -> None:
        listing = _attempt('git', '-c', 'safe.directory=*', 'ls-files', '-z',
                           cwd=_ROOT)
        if listing.returncode != 0:
            _cannot_run(f'{_ROOT} is no git checkout: {listing.stderr}')
        cls.tracked = [name for name in listing.stdout.split('\0')
                       if name and (_ROOT / name).is_file()]
        cls.checkout = cls.base / 'checkout'
        for name in cls.tracked:
            copy = cls.checkout / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(_ROOT / name, copy)

    @classmethod
    def _build(cls) -> None:
        cls.build_options = ['--no-deps']
        # With pip's isolation the tools to build with come from the index.
        if cls._has_build_tools():
            cls.build_options.append('--no-build-isolation')
        # Not in the copy, where setuptools would leave its build directory.
        source = shutil.copytree(cls.checkout, cls.base / 'source')
        _run(sys.executable, '-m', 'pip', 'wheel', *cls.build_options,
             '--wheel-dir', cls.base / 'wheels', source,
             cwd=cls.base, environment={'PBR_VERSION': _VERSION})
        [cls.wheel] = (cls.base / 'wheels').iterdir()

    @classmethod
    def _has_build_tools(cls) -> bool:
        project = tomllib.loads((cls.checkout / 'pyproject.toml').read_text())
        for line in project['build-system']['requires']:
            requirement = requirements.Requirement(line)
            try:
                version = metadata.version(requirement.name)
            except metadata.PackageNotFoundError:
                return False
            if version not in requirement.specifier:
                return False
        able = _attempt(sys.executable, '-c', _CAN_BUILD, cwd=cls.base)
        return able.returncode == 0

    @classmethod
    def _make_environment(cls) -> None:
        cls.prefix = cls.base / 'environment'
        venv.create(cls.prefix, symlinks=True)
        cls.site = pathlib.Path(sysconfig.get_path(
            'purelib', 'venv', {'base': str(cls.prefix)}))
        for directory in filter(os.path.isdir, site.getsitepackages()):
            shutil.copytree(
                directory, cls.site, symlinks=True, dirs_exist_ok=True,
                copy_function=_link,
                # This package, however it is installed there.
                ignore=shutil.ignore_patterns('*nova_kvm_ext*', 'kvm_ext'))
        if not (cls.site / 'nova/virt/__init__.py').is_file():
            _cannot_run(f'Nova is not in {site.getsitepackages()}')

    def setUp(self):
        super().setUp()
        self.before = _files(self.prefix)
        self.addCleanup(self._clean)

    def _python(self, *arguments: str | pathlib.Path, **kwargs):
        kwargs.setdefault('cwd', self.base)
        return _run(self.prefix / 'bin/python', *arguments, **kwargs)

    def _install(self, *arguments: str | pathlib.Path):
        return self._python(
            '-m', 'pip', 'install', '--no-deps', '--no-index', *arguments)

    def _install_editable(self, source: pathlib.Path):
        # Not by _install: isolated, pip needs the index here.
        return self._python(
            '-m', 'pip', 'install', *self.build_options, '--editable', source,
            environment={'PBR_VERSION': _VERSION})

    def _attempt_to_load(self) -> subprocess.CompletedProcess:
        return _attempt(self.prefix / 'bin/python', '-c', _LOAD, cwd=self.base)

    def _uninstall(self) -> str:
        return self._python(
            '-m', 'pip', 'uninstall', '--yes', 'nova-kvm-ext').stdout

    def _clean(self) -> None:
        # A test that failed must not fail the next.
        if any(self.site.glob('*nova_kvm_ext*')):
            self._uninstall()

    def _assert_loads_from(
        self, directory: pathlib.Path, novas: pathlib.Path | None = None,
        **kwargs,
    ) -> None:
        nova, ours = self._python('-c', _LOAD, **kwargs).stdout.splitlines()
        self.assertEqual(f'{novas or self.site}/nova/__init__.py', nova)
        self.assertEqual(str(directory / 'nova_kvm_ext/__init__.py'), ours)

    def _assert_commands_work(self, **kwargs) -> None:
        command = self.prefix / 'bin/nova-kvm-ext'
        kwargs.setdefault('cwd', self.base)
        result = _run(command, '--version', **kwargs)
        self.assertEqual(f'nova-kvm-ext {_VERSION}\n', result.stdout)
        self.assertNotIn(_WARNING, result.stderr)
        result = _run(command, 'guest', 'boot', '--help', **kwargs)
        self.assertIn('usage: nova-kvm-ext guest boot', result.stdout)
        self.assertNotIn(_WARNING, result.stderr)

    def _assert_uninstalls(self) -> None:
        self.assertIn('Successfully uninstalled', self._uninstall())
        self.assertEqual(self.before, _files(self.prefix))
        for directory in 'nova_kvm_ext', 'nova/virt/kvm_ext':
            self.assertFalse((self.site / directory).exists(), directory)
        imported = self._python(
            '-c', 'from nova.virt.libvirt import driver as d; '
            'print(d.__file__)')
        self.assertEqual(f'{self.site}/nova/virt/libvirt/driver.py\n',
                         imported.stdout)

    def test_wheel(self):
        with zipfile.ZipFile(self.wheel) as archive:
            names = set(archive.namelist())
            entry_points = archive.read(
                f'nova_kvm_ext-{_VERSION}.dist-info/entry_points.txt')
        packaged = {name for name in names
                    if name.startswith(('nova/', 'nova_kvm_ext/'))}
        self.assertEqual(
            {name for name in self.tracked
             if name.startswith(('nova/', 'nova_kvm_ext/'))}, packaged)
        self.assertEqual(
            {'nova/virt/kvm_ext/__init__.py'},
            {name for name in packaged if name.startswith('nova/')})
        for name in ('nova_kvm_ext/boot/testguest_init.sh',
                     'nova_kvm_ext/host/probe.S',
                     'nova_kvm_ext/tests/unit/test_driver.py'):
            self.assertIn(name, packaged)
        self.assertEqual(
            set(),
            {name for name in names - packaged if not name.startswith(
                (f'nova_kvm_ext-{_VERSION}.dist-info/',
                 f'nova_kvm_ext-{_VERSION}.data/'))})
        # As pip reads it.
        parser = configparser.ConfigParser(delimiters='=')
        parser.read_string(entry_points.decode())
        self.assertEqual(
            {'nova-kvm-ext': 'nova_kvm_ext.cmd.entry:main',
             'nova-kvm-ext-status': 'nova_kvm_ext.cmd.status:main'},
            dict(parser['console_scripts']))
        self.assertEqual(
            {'kvm_ext': 'nova_kvm_ext.extra_specs'},
            dict(parser['nova.api.extra_spec_validators']))
        self.assertEqual(
            {'nova_kvm_ext': 'nova_kvm_ext.conf:list_opts'},
            dict(parser['oslo.config.opts']))
        self.assertIn('guest_boot', parser['nova_kvm_ext.commands'])

    def test_wheel_has_sample_configuration(self):
        sample = 'etc/nova-kvm-ext/nova-kvm-ext.conf.sample'
        with zipfile.ZipFile(self.wheel) as archive:
            name = f'nova_kvm_ext-{_VERSION}.data/data/{sample}'
            self.assertIn(name, archive.namelist())
            self.assertEqual((self.checkout / sample).read_bytes(),
                             archive.read(name))

    def test_install_and_uninstall(self):
        self._install(self.wheel)
        self._assert_loads_from(self.site)
        self._assert_commands_work()
        self._assert_uninstalls()

    def test_editable(self):
        self._install_editable(self.checkout)
        self._assert_loads_from(self.checkout)
        self._assert_commands_work()
        # Where "import nova" first comes upon the checkout's own nova/.
        self._assert_loads_from(self.checkout, cwd=self.checkout)
        self._assert_commands_work(cwd=self.checkout)
        self._assert_uninstalls()

    def test_beside_editable_nova(self):
        # Nova by pip install -e, as devstack has it. By another name, because
        # pip would uninstall the one that is there.
        source = self.base / 'source-of-nova'
        source.mkdir()
        (source / 'pyproject.toml').write_text(_EDITABLE_NOVA)
        (self.site / 'nova').rename(source / 'nova')
        self.addCleanup((source / 'nova').rename, self.site / 'nova')
        self.addCleanup(shutil.rmtree, self.site / 'nova', ignore_errors=True)
        self._install_editable(source)
        self.addCleanup(self._python, '-m', 'pip', 'uninstall', '--yes',
                        'editable-nova')
        self.addCleanup(self._clean)
        self._install_editable(self.checkout)

        # Python finds a directory named nova of ours, and asks no further.
        loading = self._attempt_to_load()
        self.assertNotEqual(0, loading.returncode)
        self.assertIn("cannot import name 'driver' from 'nova.virt' (unknown "
                      "location)", loading.stderr)

        # What devstack's plugin does about it.
        path_file = self.site / 'nova-kvm-ext-devstack.pth'
        self.addCleanup(path_file.unlink)
        path_file.write_text(f'{source}\n')
        self._assert_loads_from(self.checkout, novas=source)
        self._assert_commands_work()

        # Why it does not install from a wheel.
        self.assertIn('Successfully uninstalled', self._uninstall())
        self._install(self.wheel)
        loading = self._attempt_to_load()
        self.assertNotEqual(0, loading.returncode)
        self.assertIn("No module named 'nova.virt.kvm_ext'", loading.stderr)

    def test_upgrade_of_nova(self):
        [nova] = metadata.distributions(name='nova', path=[str(self.site)])
        downloads = self.base / 'downloads'
        download = _attempt(
            sys.executable, '-m', 'pip', 'download', '--no-deps',
            '--only-binary', ':all:', '--dest', downloads,
            f'nova=={nova.version}', cwd=self.base)
        if download.returncode != 0:
            _cannot_run(f'no wheel of Nova to install: {download.stderr}')
        [wheel] = downloads.iterdir()
        self._install(self.wheel)
        result = self._install('--force-reinstall', '--no-compile', wheel)
        self.assertIn(f'Successfully uninstalled nova-{nova.version}',
                      result.stdout)
        self._assert_loads_from(self.site)
        # Programs and the like have come back with it.
        self.before |= {
            os.path.relpath(file.locate(), self.prefix)
            for file in nova.files if not file.name.endswith('.pyc')}
        self._assert_uninstalls()

    def test_other_directory(self):
        other = self.base / 'other'
        self._install('--target', other, self.wheel)
        environment = {'PYTHONPATH': str(other)}
        # A command that runs, and has nothing to do.
        command = ['-m', 'nova_kvm_ext.cmd.main', 'image', 'check',
                   '/no/such']
        beside_nova = self.site / 'nova/virt'
        door = other / 'nova/virt/kvm_ext'

        # Nova's loader does not find the driver, and the command says so.
        loading = _attempt(self.prefix / 'bin/python', '-c', _LOAD,
                           cwd=self.base, environment=environment)
        self.assertNotEqual(0, loading.returncode)
        self.assertIn("No module named 'nova.virt.kvm_ext'", loading.stderr)
        warning = _attempt(self.prefix / 'bin/python', *command,
                           cwd=self.base, environment=environment).stderr
        self.assertIn(
            f'{_WARNING}compute_driver = kvm_ext.KVMDriver cannot load: Nova '
            f'is installed in {beside_nova} ', warning)
        self.assertIn(f'this package is in {door}.', warning)

        # The remedy, as one would paste it, is one.
        [remedy] = re.findall(r'ln -s .*', warning)
        self.addCleanup((beside_nova / 'kvm_ext').unlink, missing_ok=True)
        _run('sh', '-ec', remedy, cwd=self.base)
        self._assert_loads_from(other, environment=environment)
        healthy = _attempt(self.prefix / 'bin/python', *command,
                           cwd=self.base, environment=environment)
        self.assertNotIn(_WARNING, healthy.stderr)

        # pip install --target is none: it passes over a nova/ that exists,
        # and with --upgrade replaces it, so that Nova is gone.
        self.assertNotIn('--target', warning)
