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

import fcntl
import json
import os
import stat
import subprocess
import sys
from typing import Any
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext.boot import leftovers
from nova_kvm_ext import errors

UUID = 'd1ce32b0-ed0d-40c8-8944-3d7122e9c5a7'
NO_DOMAIN, OPERATION_INVALID, RPC, INTERNAL = 42, 55, 39, 1


class LibvirtError(Exception):

    def __init__(self, code: int, text: str = 'it went wrong') -> None:
        super().__init__(text)
        self.code = code

    def get_error_code(self) -> int:
        return self.code


class FakeDomain:
    """A domain, and what happens when it is touched: errors by method."""

    def __init__(self, name: str = f'nova-kvm-ext-{UUID}',
                 errors: dict[str, list[int]] | None = None) -> None:
        self._name = name
        self.errors = errors or {}
        self.active = self.persistent = True
        self.calls: list[str] = []

    def _call(self, method: str) -> None:
        self.calls.append(method)
        if self.errors.get(method):
            raise LibvirtError(self.errors[method].pop(0))

    def name(self) -> str:
        self._call('name')
        return self._name

    def isActive(self) -> bool:
        return self.active

    def isPersistent(self) -> bool:
        return self.persistent

    def destroy(self) -> None:
        self._call('destroy')
        self.active = False

    def undefineFlags(self, flags: int) -> None:
        assert flags == 1 | 2 | 4, flags
        self._call('undefine')
        self.persistent = False

    def gone(self) -> bool:
        return not self.active and not self.persistent


class FakeLibvirt:
    """Stands for the module and for its one connection.

    :ivar seen: what each lookup finds, the last again and again
    """

    libvirtError = LibvirtError
    VIR_ERR_OPERATION_INVALID = OPERATION_INVALID
    VIR_DOMAIN_UNDEFINE_MANAGED_SAVE = 1
    VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA = 2
    VIR_DOMAIN_UNDEFINE_NVRAM = 4

    def __init__(self) -> None:
        self.seen: list[Any] = [NO_DOMAIN]
        self.lookups = 0
        self.uris: list[str] = []
        self.open_error: int | None = None
        self.closed = 0

    def registerErrorHandler(self, handler: Any, context: Any) -> None:
        pass

    def open(self, uri: str) -> 'FakeLibvirt':
        self.uris.append(uri)
        if self.open_error is not None:
            raise LibvirtError(
                self.open_error, "Failed to connect socket to "
                "'/var/run/libvirt/libvirt-sock': No such file or directory")
        return self

    def close(self) -> None:
        self.closed += 1

    def lookupByUUIDString(self, uuid: str) -> FakeDomain:
        assert uuid == UUID, uuid
        self.lookups += 1
        found = self.seen.pop(0) if len(self.seen) > 1 else self.seen[0]
        if isinstance(found, FakeDomain) and not found.gone():
            return found
        raise LibvirtError(found if isinstance(found, int) else NO_DOMAIN)


class LeftoversTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.base = self.useFixture(fixtures.TempDir()).path
        self.useFixture(fixtures.EnvironmentVariable('TMPDIR', self.base))
        self.logs = self.useFixture(fixtures.TempDir()).path
        self.useFixture(fixtures.MockPatchObject(
            leftovers, '_QEMU_LOGS', self.logs))
        self.libvirt = FakeLibvirt()
        before = sys.modules.get('libvirt')
        module: Any = self.libvirt
        sys.modules['libvirt'] = module
        self.addCleanup(self.put_back, before)
        self.sleep = self.useFixture(fixtures.MockPatchObject(
            leftovers, 'time', mock.Mock())).mock.sleep
        self.ip = self.useFixture(fixtures.MockPatchObject(
            leftovers.subprocess, 'run')).mock

    @staticmethod
    def put_back(module):
        del sys.modules['libvirt']
        if module is not None:
            sys.modules['libvirt'] = module

    def made(self, spawning: bool = True, **changes: Any) -> leftovers.Record:
        """A boot's directory with its record, whose owner is dead."""
        directory, lock = leftovers.make_directory()
        os.close(lock)
        record = leftovers.Record(directory, UUID, 'test:///x', **changes)
        record.write()
        if spawning:
            record.mark_spawning()
        return record

    def names(self) -> list[str]:
        return sorted(os.listdir(self.base))


class MakeDirectoryTestCase(LeftoversTestCase):

    def test_made(self):
        umask = os.umask(0o077)
        self.addCleanup(os.umask, umask)
        path, lock = leftovers.make_directory()
        self.addCleanup(os.close, lock)
        self.assertEqual(self.base, os.path.dirname(path))
        self.assertTrue(os.path.basename(path).startswith(
            'nova-kvm-ext-boot-'))
        # QEMU's user passes through and sees nothing.
        self.assertEqual(0o711, stat.S_IMODE(os.stat(path).st_mode))

    def test_locked(self):
        path, lock = leftovers.make_directory()
        other = os.open(path, os.O_RDONLY)
        self.addCleanup(os.close, other)
        self.assertRaises(BlockingIOError, fcntl.flock, other,
                          fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(lock)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_each_has_its_own(self):
        (one, lock), (other, lock2) = (leftovers.make_directory(),
                                       leftovers.make_directory())
        self.addCleanup(os.close, lock)
        self.addCleanup(os.close, lock2)
        self.assertNotEqual(one, other)

    def test_it_cannot_be_made(self):
        missing = os.path.join(self.base, 'missing')
        self.useFixture(fixtures.EnvironmentVariable('TMPDIR', missing))
        error = self.assertRaises(errors.HostError, leftovers.make_directory)
        self.assertIn(missing, str(error))
        self.assertIn('No such file or directory', str(error))
        self.assertIn('set TMPDIR', str(error))

    def test_default(self):
        self.useFixture(fixtures.EnvironmentVariable('TMPDIR', None))
        self.assertEqual('/var/tmp', leftovers._base())


class RecordTestCase(LeftoversTestCase):

    def write(self, content: bytes) -> str:
        with open(os.path.join(self.base, 'record.json'), 'wb') as f:
            f.write(content)
        return self.base

    def test_round_trip(self):
        for tap, keep in ((None, False), ('nke12345678', True)):
            record = leftovers.Record(self.base, UUID, 'qemu:///system',
                                      tap, keep)
            record.write()
            self.assertEqual(record, leftovers.read_record(self.base))
        self.assertEqual(['record.json'], self.names())

    def test_the_directory_is_the_one_it_lies_in(self):
        self.write(json.dumps({'directory': '/home', 'uuid': UUID,
                               'uri': 'test:///x'}).encode())
        self.assertEqual(self.base,
                         leftovers.read_record(self.base).directory)

    def test_unreadable(self):
        self.assertIsNone(leftovers.read_record(self.base))
        self.assertIsNone(leftovers.read_record('/no/such/directory'))
        for content in (b'', b'{', b'[]', b'null', b'"x"', b'\xff\xfe', b'{}',
                        b'{"uuid": "x"}', b'["a", "b", "c"]',
                        b'{"directory": "", "uuid": "", "uri": "", "x": 1}'):
            self.assertIsNone(
                leftovers.read_record(self.write(content)), repr(content))

    def test_removal_is_described(self):
        record = self.made(tap='lo', keep=True)
        text = record.describe_removal()
        for command in (f'virsh -c {record.uri} destroy {UUID}',
                        f'virsh -c {record.uri} undefine --nvram {UUID}',
                        'ip link delete lo', f'rm -r {record.directory}'):
            self.assertIn(command, text)

    def test_only_what_is_there_is_described(self):
        record = self.made(spawning=False, tap='nosuchtap', keep=True)
        self.assertEqual(
            f'Kept. To remove it: rm -r {record.directory}',
            record.describe_removal())


class CleanDomainTestCase(LeftoversTestCase):

    def clean(self, *seen: Any, **changes: Any) -> list[str]:
        if seen:
            self.libvirt.seen = list(seen)
        self.record = self.made(**changes)
        return leftovers.clean(self.record)

    def assertClean(self, problems: list[str]):
        self.assertEqual([], problems)
        self.assertEqual([], self.names())
        self.assertEqual(len(self.libvirt.uris), self.libvirt.closed)

    def test_removed(self):
        domain = FakeDomain()
        self.assertClean(self.clean(domain))
        self.assertEqual(['name', 'destroy', 'undefine'], domain.calls)
        self.assertEqual(['test:///x'], self.libvirt.uris)

    def test_only_defined(self):
        domain = FakeDomain()
        domain.active = False
        self.assertClean(self.clean(domain))
        self.assertEqual(['name', 'undefine'], domain.calls)

    def test_transient(self):
        domain = FakeDomain()
        domain.persistent = False
        self.assertClean(self.clean(domain))
        self.assertEqual(['name', 'destroy'], domain.calls)

    def test_again_does_no_harm(self):
        self.assertClean(self.clean())
        self.assertClean(leftovers.clean(self.record))

    def test_a_foreign_name_is_never_touched(self):
        for name in ('instance-00000001', 'nova-kvm-ext', '',
                     f'my-nova-kvm-ext-{UUID}'):
            domain = FakeDomain(name)
            self.assertClean(self.clean(domain))
            self.assertEqual(['name'], domain.calls)

    def test_absence_is_looked_at_twice(self):
        self.assertClean(self.clean(NO_DOMAIN))
        self.assertEqual(2, self.libvirt.lookups)
        self.sleep.assert_called_once_with(0.5)

    def test_a_domain_that_appears_late(self):
        domain = FakeDomain()
        self.assertClean(self.clean(NO_DOMAIN, domain, NO_DOMAIN, NO_DOMAIN))
        self.assertTrue(domain.gone())
        self.assertEqual(4, self.libvirt.lookups)

    def test_gone_between_two_calls(self):
        for method in ('name', 'destroy', 'undefine'):
            domain = FakeDomain(errors={method: [NO_DOMAIN]})
            self.assertClean(self.clean(domain, NO_DOMAIN))
            self.assertEqual(method, domain.calls[-1])

    def test_no_longer_running(self):
        domain = FakeDomain(errors={'destroy': [OPERATION_INVALID]})
        self.assertClean(self.clean(domain))
        self.assertTrue(domain.gone())
        self.assertEqual(2, domain.calls.count('destroy'))

    def test_it_cannot_be_removed(self):
        problems = self.clean(FakeDomain(errors={'destroy': [INTERNAL]}))
        self.assertEqual(
            [f'The domain {UUID} may still be there: it went wrong'],
            problems)
        self.assertTrue(os.path.isdir(self.record.directory))
        self.assertEqual(1, self.libvirt.closed)
        # The next boot does it.
        self.libvirt.seen = [NO_DOMAIN]
        self.assertEqual(1, len(leftovers.sweep()))
        self.assertEqual([], self.names())

    def test_libvirt_is_gone(self):
        self.libvirt.open_error = RPC
        problem, = self.clean()
        self.assertIn(f'The domain {UUID} may still be there', problem)
        self.assertIn('libvirt is not running', problem)
        self.assertEqual(self.record,
                         leftovers.read_record(self.record.directory))

    def test_our_own_mistakes_are_not_hidden(self):
        self.useFixture(fixtures.MockPatchObject(
            self.libvirt, 'open', side_effect=AttributeError))
        self.assertRaises(AttributeError, self.clean)

    def test_libvirt_is_not_asked_before_there_can_be_a_domain(self):
        self.libvirt.open_error = RPC
        self.assertClean(self.clean(spawning=False))
        self.assertEqual([], self.libvirt.uris)


class CleanRestTestCase(LeftoversTestCase):

    def test_no_tap(self):
        leftovers.clean(self.made())
        self.ip.assert_not_called()

    def test_tap_that_is_not_there(self):
        self.assertEqual([], leftovers.clean(self.made(tap='nkenosuchtap')))
        self.ip.assert_not_called()

    def test_tap(self):
        # lo is there on every Linux, and nothing touches it.
        self.ip.return_value = subprocess.CompletedProcess([], 0, '', '')
        self.assertEqual([], leftovers.clean(self.made(tap='lo')))
        self.assertEqual(['ip', 'link', 'delete', 'lo'],
                         self.ip.call_args.args[0])
        self.assertEqual([], self.names())

    def test_tap_that_stays(self):
        self.ip.side_effect = subprocess.CalledProcessError(
            2, [], '', 'RTNETLINK answers: Operation not permitted\n')
        record = self.made(tap='lo')
        self.assertEqual(
            ['The tap device lo is still there: RTNETLINK answers: '
             'Operation not permitted'], leftovers.clean(record))
        self.assertTrue(os.path.isdir(record.directory))

    def test_qemus_log(self):
        for name in (f'nova-kvm-ext-{UUID}.log', 'instance-1.log'):
            with open(os.path.join(self.logs, name), 'w'):
                pass
        leftovers.clean(self.made())
        self.assertEqual(['instance-1.log'], os.listdir(self.logs))

    def test_a_directory_that_stays(self):
        record = self.made()
        with mock.patch.object(leftovers.shutil, 'rmtree',
                               side_effect=OSError(16, 'Busy')):
            self.assertEqual([f'{record.directory} is still there: Busy'],
                             leftovers.clean(record))


class SweepTestCase(LeftoversTestCase):

    def setUp(self):
        super().setUp()
        self.domain = FakeDomain()
        self.libvirt.seen = [self.domain]

    def assertLeftAlone(self, names: list[str] | None = None):
        before = names or self.names()
        self.assertTrue(before)
        self.assertEqual([], leftovers.sweep())
        self.assertEqual(before, self.names())
        self.assertEqual([], self.libvirt.uris)
        self.assertEqual([], self.domain.calls)

    def test_nothing(self):
        self.assertEqual([], leftovers.sweep())

    def test_a_killed_boot(self):
        self.made()
        self.assertEqual(
            [f'An earlier boot was killed: removing its guest {UUID}.'],
            leftovers.sweep())
        self.assertTrue(self.domain.gone())
        self.assertEqual([], self.names())

    def test_problems_are_told(self):
        self.made()
        self.libvirt.open_error = RPC
        self.assertEqual(2, len(leftovers.sweep()))
        self.assertEqual(1, len(self.names()))

    def test_each_is_looked_at(self):
        for _ in range(3):
            self.made(spawning=False)
        self.assertEqual(3, len(leftovers.sweep()))
        self.assertEqual([], self.names())

    def test_a_running_boot(self):
        record = self.made()
        lock = os.open(record.directory, os.O_RDONLY)
        self.addCleanup(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self.assertLeftAlone()

    def test_a_running_boot_does_not_hide_a_killed_one(self):
        running, lock = leftovers.make_directory()
        self.addCleanup(os.close, lock)
        for _ in range(4):
            self.made(spawning=False)
        self.assertEqual(4, len(leftovers.sweep()))
        self.assertEqual([os.path.basename(running)], self.names())

    def test_a_kept_one(self):
        self.made(keep=True)
        self.assertLeftAlone()

    def test_no_record(self):
        directory, lock = leftovers.make_directory()
        os.close(lock)
        self.assertEqual([], leftovers.sweep())
        self.assertFalse(os.path.exists(directory))
        self.assertEqual([], self.libvirt.uris)

    def test_killed_before_it_was_locked(self):
        os.mkdir(os.path.join(self.base, 'nova-kvm-ext-boot-x'))
        self.assertEqual([], leftovers.sweep())
        self.assertEqual([], self.names())

    def test_swept_before_it_was_locked(self):
        """Another boot's sweep may find a directory that is being made."""
        def sweep(*args: Any, **kwargs: Any) -> str:
            path = real(*args, **kwargs)
            if len(made) < 2:
                leftovers.sweep()
            made.append(path)
            return path

        made: list[str] = []
        real = leftovers.tempfile.mkdtemp
        self.useFixture(fixtures.MockPatchObject(
            leftovers.tempfile, 'mkdtemp', side_effect=sweep))
        directory, lock = leftovers.make_directory()
        self.addCleanup(os.close, lock)
        self.assertEqual(3, len(made))
        self.assertEqual([os.path.basename(directory)], self.names())

    def test_other_names(self):
        record = self.made()
        os.rename(record.directory, os.path.join(self.base, 'my-boot'))
        self.assertLeftAlone()

    def test_somebody_elses(self):
        self.made()
        self.useFixture(fixtures.MockPatch(
            'os.geteuid', return_value=os.geteuid() + 1))
        self.assertLeftAlone()

    def test_symbolic_link(self):
        record = self.made()
        os.rename(record.directory, os.path.join(self.base, 'elsewhere'))
        os.symlink('elsewhere', record.directory)
        self.assertLeftAlone()

    def test_file(self):
        with open(os.path.join(self.base, 'nova-kvm-ext-boot-x'), 'w'):
            pass
        self.assertLeftAlone()

    def test_locks_are_let_go(self):
        self.made(keep=True)
        before = len(os.listdir('/proc/self/fd'))
        leftovers.sweep()
        self.assertEqual(before, len(os.listdir('/proc/self/fd')))
