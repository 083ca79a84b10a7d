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

"""The private libvirt itself: it works, keeps apart, and leaves nothing."""

from collections.abc import Callable
import os
import pathlib
import shlex
import subprocess
import sys
import unittest

import fixtures
import libvirt
import testtools

from nova_kvm_ext.tests.functional import libvirtd

_ROOT = pathlib.Path(__file__).parents[3]

# A TCG guest without a disk. Its BIOS talks to the serial port.
_DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>16</memory>
  <os><type>hvm</type><bios useserial='yes'/></os>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='pty'><log file='{console}'/></serial>
  </devices>
</domain>
"""

# What another process does with a fixture: a domain, then what is asked.
_HOLDER = """
import signal
from nova_kvm_ext.tests.functional import libvirtd
from nova_kvm_ext.tests.functional import test_libvirtd
with libvirtd.PrivateLibvirt() as private:
    connection = test_libvirtd.connect(private)
    test_libvirtd.create(connection, 'held', {console!r})
    print(private.directory, flush=True)
    {then}
"""


def connect(private: libvirtd.PrivateLibvirt) -> libvirt.virConnect:
    return libvirt.open(private.uri)


def create(
    connection: libvirt.virConnect, name: str, console: str,
) -> libvirt.virDomain:
    return connection.createXML(_DOMAIN.format(name=name, console=console))


def _names(connection: libvirt.virConnect) -> list[str]:
    return [domain.name() for domain in connection.listAllDomains()]


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(errors='replace')
    except OSError:
        return ''  # the process ended meanwhile


class PrivateLibvirtTest(testtools.TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.private = self.useFixture(libvirtd.PrivateLibvirt())
        self.connection = self._connect(self.private)
        self.console = f'{self.private.instances_path}/console.log'

    def _connect(
        self, private: libvirtd.PrivateLibvirt,
    ) -> libvirt.virConnect:
        connection = connect(private)
        self.addCleanup(connection.close)
        return connection

    def _assert_nothing_remains(self, directory: str) -> None:
        self.assertEqual({}, libvirtd.processes_of(directory))
        self.assertEqual([], [
            path for path in pathlib.Path('/proc').glob('[0-9]*/cmdline')
            if directory in _read(path)])
        self.assertFalse(os.path.exists(directory))

    def test_answers(self) -> None:
        self.assertGreater(self.connection.getLibVersion(), 8_000_000)
        self.assertEqual([], self.connection.listAllDomains())

    def test_domain(self) -> None:
        domain = create(self.connection, 'one', self.console)

        self.assertEqual(['one'], _names(self.connection))
        [pid] = self.private.processes()
        # libvirtd and the /proc it sees agree about the PID.
        root = pathlib.Path(f'/proc/{pid}/root')
        inside = (root / 'run/libvirt/qemu/one.pid').read_text()
        self.assertNotEqual(str(pid), inside)
        self.assertEqual(
            pathlib.Path(f'/proc/{pid}/cmdline').read_text(),
            (root / 'proc' / inside / 'cmdline').read_text())

        # A QEMU nobody reaps would make this fail after some 15 seconds.
        domain.destroy()
        self.assertEqual([], self.private.processes())

    def test_user(self) -> None:
        create(self.connection, 'one', self.console)
        [pid] = self.private.processes()
        self.assertNotEqual(0, os.stat(f'/proc/{pid}').st_uid)

        other = self.useFixture(libvirtd.PrivateLibvirt(qemu_user='root'))
        create(self._connect(other), 'one',
               f'{other.instances_path}/console.log')
        [pid] = other.processes()
        self.assertEqual(0, os.stat(f'/proc/{pid}').st_uid)

    def test_console_log(self) -> None:
        create(self.connection, 'one', self.console)

        def log() -> str:
            return pathlib.Path(self.console).read_text(errors='replace')

        libvirtd.wait_for(lambda: 'SeaBIOS' in log(), 'word from the BIOS')

    def test_nothing_remains(self) -> None:
        with libvirtd.PrivateLibvirt() as private:
            connection = self._connect(private)
            create(connection, 'one', f'{private.instances_path}/console.log')
            programs = {
                os.path.basename(arguments[0]) for arguments
                in libvirtd.processes_of(private.directory).values()}
            self.assertGreaterEqual(programs, {'libvirtd', 'virtlogd'})

        self._assert_nothing_remains(private.directory)

    def test_nothing_remains_of_failed_setup(self) -> None:
        private = libvirtd.PrivateLibvirt(qemu_conf={'user': 'no quotes'})
        error = self.assertRaises(testtools.MultipleExceptions, private.setUp)

        # libvirtd's log says why.
        self.assertIn('qemu.conf', str(error.args[0][1]))
        self._assert_nothing_remains(private.directory)

    def test_host_untouched(self) -> None:
        name = pathlib.Path(self.private.directory).name
        create(self.connection, name, self.console)

        touched = [
            path for host in libvirtd.COVERED.values()
            for path in pathlib.Path(host).rglob(f'*{name}*')]
        self.assertEqual([], touched)
        self.assertEqual([], [
            line for line in pathlib.Path('/proc/self/mountinfo').open()
            if name in line])

    def test_two_at_once(self) -> None:
        create(self.connection, 'same', self.console)
        mine = self.private.processes()

        with libvirtd.PrivateLibvirt() as other:
            create(self._connect(other), 'same',
                   f'{other.instances_path}/console.log')
            self.assertEqual(mine, self.private.processes())
            self.assertNotIn(mine[0], other.processes())

        self.assertEqual(['same'], _names(self.connection))
        self.assertEqual(mine, self.private.processes())

    def test_restart(self) -> None:
        create(self.connection, 'one', self.console)
        before = self.private.processes()

        self.private.stop_libvirtd()
        self.assertRaises(libvirt.libvirtError, connect, self.private)
        self.assertEqual(before, self.private.processes())
        self.assertFalse(libvirtd.is_monitored(*before))

        self.private.start_libvirtd()
        libvirtd.wait_for(
            lambda: libvirtd.is_monitored(*before), "libvirtd's connection")
        connection = self._connect(self.private)
        self.assertEqual(['one'], _names(connection))
        self.assertEqual(before, self.private.processes())
        connection.lookupByName('one').destroy()
        self.assertEqual([], self.private.processes())

    def test_killed_test(self) -> None:
        holder = subprocess.Popen(
            [sys.executable, '-c',
             _HOLDER.format(console=self.console, then='signal.pause()')],
            cwd=_ROOT, stdout=subprocess.PIPE, text=True)
        self.addCleanup(holder.communicate)
        self.addCleanup(holder.kill)
        assert holder.stdout is not None
        directory = holder.stdout.readline().strip()
        self.assertNotEqual({}, libvirtd.processes_of(directory))

        holder.kill()
        libvirtd.wait_for(
            lambda: not libvirtd.processes_of(directory), 'end of it all')
        self.useFixture(libvirtd.PrivateLibvirt())
        self._assert_nothing_remains(directory)

    def test_host_without_run_libvirt(self) -> None:
        # As on a host where libvirtd has not run since it was booted. The
        # guest's console goes through the file system to show that the rest
        # of /run is there.
        script = '\n'.join((
            'mount --no-mtab -t tmpfs none /run',
            'mkdir /run/other',
            'ln -s other /run/link',
            'touch /run/file',
            shlex.join([sys.executable, '-c', _HOLDER.format(
                console='/run/link/console.log', then='')]),
            'cat /run/other/console.log >/dev/null',
            'ls /run'))
        result = subprocess.run(
            ['unshare', '--mount', 'sh', '-ec', script],
            cwd=_ROOT, capture_output=True, text=True)

        self.assertEqual('', result.stderr)
        self.assertEqual(['file', 'link', 'other'],
                         result.stdout.splitlines()[1:])


class RequirementTest(testtools.TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.private = libvirtd.PrivateLibvirt()

    def _without(self, name: str, replacement: Callable[..., object]) -> None:
        self.useFixture(fixtures.MonkeyPatch(name, replacement))

    def test_not_root(self) -> None:
        self._without('os.geteuid', lambda: 1000)
        self.useFixture(fixtures.EnvironmentVariable(libvirtd.REQUIRE))
        error = self.assertRaises(unittest.SkipTest, self.private.setUp)
        self.assertIn('only root', str(error))

    def test_no_program(self) -> None:
        self._without('os.geteuid', lambda: 0)
        self._without('shutil.which', lambda name: None)
        self.useFixture(fixtures.EnvironmentVariable(libvirtd.REQUIRE))
        error = self.assertRaises(unittest.SkipTest, self.private.setUp)
        self.assertIn('package', str(error))

    def test_required(self) -> None:
        self._without('os.geteuid', lambda: 1000)
        self.useFixture(fixtures.EnvironmentVariable(libvirtd.REQUIRE, '1'))
        error = self.assertRaises(RuntimeError, self.private.setUp)
        self.assertIn('only root', str(error))
