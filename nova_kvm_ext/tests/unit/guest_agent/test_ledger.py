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

"""The ledger: what a process that dies at any moment leaves behind."""

import fcntl
import os
import signal
import subprocess
import sys
from unittest import mock

import fixtures
import hypothesis
from hypothesis import strategies
from oslotest import base

from nova_kvm_ext.guest_agent import ledger

UUID = 'c1c2c3c4-0000-4000-8000-000000000000'
OTHER = 'c1c2c3c4-0000-4000-8000-000000000001'

# Enters a guest, says so, and stays until it is killed.
_HOLD = """
import sys
from nova_kvm_ext.guest_agent import ledger
entry = ledger.Ledger(sys.argv[1], 'host').enter(sys.argv[2], 'test')
print('entered', flush=True)
sys.stdin.read()
"""


class LedgerTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.state_path = self.useFixture(fixtures.TempDir()).path
        self.ledger = ledger.Ledger(self.state_path, 'host')
        self.directory = os.path.join(
            self.state_path, 'kvm-ext-frozen', 'of-host')

    def hold(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, '-c', _HOLD, self.state_path, UUID],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.communicate)
        assert process.stdout is not None
        self.assertEqual('entered\n', process.stdout.readline())
        return process

    def put(self, name: str, content: bytes = b'') -> str:
        os.makedirs(self.directory, exist_ok=True)
        path = os.path.join(self.directory, name)
        with open(path, 'wb') as f:
            f.write(content)
        return path


class EntryTestCase(LedgerTestCase):

    def test_empty(self):
        self.assertEqual([], self.ledger.left_behind())
        self.assertIsNone(self.ledger.take(UUID))

    def test_enter_and_remove(self):
        entry = self.ledger.enter(UUID, 'snapshot')
        self.assertEqual([UUID], self.ledger.left_behind())
        entry.remove()
        entry.remove()
        self.assertEqual([], self.ledger.left_behind())
        self.assertEqual([], os.listdir(self.directory))

    def test_for_people(self):
        self.ledger.enter(UUID, 'snapshot').release()
        entry = self.ledger.take(UUID)
        self.assertRegex(entry.text, r'^\d{4}-.* UTC, snapshot\n$')
        entry.release()

    def test_private(self):
        umask = os.umask(0)
        self.addCleanup(os.umask, umask)
        self.ledger.enter(UUID, 'snapshot').release()
        self.assertEqual(0o700, os.stat(self.directory).st_mode & 0o777)
        self.assertEqual(0o600, os.stat(os.path.join(
            self.directory, UUID)).st_mode & 0o777)

    def test_held_by_this_process(self):
        entry = self.ledger.enter(UUID, 'snapshot')
        self.assertRaises(ledger.Held, self.ledger.enter, UUID, 'again')
        self.assertRaises(ledger.Held, self.ledger.take, UUID)
        entry.release()
        self.ledger.take(UUID).remove()

    def test_entered_again_where_one_was_left(self):
        self.ledger.enter(UUID, 'a much longer reason than later').release()
        self.ledger.enter(UUID, 'later').release()
        entry = self.ledger.take(UUID)
        self.assertTrue(entry.text.endswith(', later\n'), entry.text)
        entry.remove()

    def test_on_the_disk_before_it_returns(self):
        """File and directory both: one without the other is no entry."""
        synced = []
        fsync = os.fsync

        def remember(descriptor):
            synced.append(os.readlink(f'/proc/self/fd/{descriptor}'))
            fsync(descriptor)

        with mock.patch.object(os, 'fsync', remember):
            entry = self.ledger.enter(UUID, 'snapshot')
            self.assertEqual(
                [os.path.join(self.directory, UUID), self.directory], synced)
            entry.remove()
            self.assertEqual(self.directory, synced[-1])

    def test_disk_full(self):
        for name in ('pwrite', 'fsync', 'ftruncate'):
            with mock.patch.object(os, name, side_effect=OSError(28, 'full')):
                self.assertRaises(OSError, self.ledger.enter, UUID, 'why')
            self.assertEqual([], self.ledger.left_behind(), name)

    def test_not_a_uuid(self):
        for name in ('..', '', 'a/b', UUID.upper(), UUID + '\n'):
            self.assertRaises(ValueError, self.ledger.enter, name, 'why')


class TwoServicesTestCase(LedgerTestCase):

    def test_a_live_one_is_left_alone(self):
        self.hold()
        self.assertEqual([UUID], self.ledger.left_behind())
        self.assertRaises(ledger.Held, self.ledger.take, UUID)

    def test_a_killed_one_is_not(self):
        process = self.hold()
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.ledger.take(UUID).remove()

    def test_of_another_name_in_one_directory(self):
        """They have other domains, and know nothing of these."""
        self.ledger.enter(UUID, 'why').release()
        for name in ('other', '..', '.', 'of/host', '\u00e9', 'x' * 80):
            other = ledger.Ledger(self.state_path, name)
            self.assertEqual([], other.left_behind())
            other.enter(OTHER, 'why').release()
            self.assertEqual([OTHER], other.left_behind())
        self.assertEqual([UUID], self.ledger.left_behind())

    def test_removed_between_look_and_lock(self):
        """The file that is locked then is not the one in the directory."""
        self.ledger.enter(UUID, 'why').release()
        flock = fcntl.flock
        path = os.path.join(self.directory, UUID)

        def remove_first(descriptor, flags):
            if os.path.exists(path):
                os.unlink(path)
            flock(descriptor, flags)

        with mock.patch.object(fcntl, 'flock', remove_first):
            self.assertIsNone(self.ledger.take(UUID))
        calls: list[int] = []

        def remove_once(descriptor, flags):
            if not calls:
                os.unlink(path)
            calls.append(1)
            flock(descriptor, flags)

        with mock.patch.object(fcntl, 'flock', remove_once):
            entry = self.ledger.enter(UUID, 'why')
        self.assertEqual([UUID], self.ledger.left_behind())
        entry.remove()


class KilledTestCase(LedgerTestCase):
    """Killed at each system call, it has entered the guest or it has not.

    What must never be: enter() has returned, so the freeze is sent, and
    nothing is there.
    """

    CALLS = ('open', 'ftruncate', 'pwrite', 'fsync', 'unlink', 'close')

    def run_and_die(self, at: int) -> str:
        """Enter and remove in a child that dies before its n-th call."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            left = [at]

            def or_die(function):
                def call(*args, **kwargs):
                    if not left[0]:
                        os._exit(1)
                    left[0] -= 1
                    return function(*args, **kwargs)
                return call

            try:
                say = os.write
                for name in self.CALLS:
                    setattr(os, name, or_die(getattr(os, name)))
                entry = self.ledger.enter(UUID, 'why')
                say(write, b'frozen ')
                entry.remove()
                say(write, b'removed')
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(pid, 0)
        with os.fdopen(read) as f:
            return f.read()

    def test_at_each_call(self):
        seen = set()
        for at in range(100):
            said = self.run_and_die(at)
            seen.add(said)
            left = self.ledger.left_behind()
            if said == 'frozen ':
                # Between the removal's system calls either is right: the
                # guest is thawed by then.
                self.assertIn(left, ([], [UUID]))
                if at < 8:
                    self.assertEqual([UUID], left, f'{at} calls')
            if left:
                self.ledger.take(UUID).remove()
            if said == 'frozen removed':
                self.assertEqual([], left)
                break
        self.assertEqual({'', 'frozen ', 'frozen removed'}, seen)


class HostileTestCase(LedgerTestCase):

    def test_names_that_are_no_guests(self):
        for name in ('notes', UUID + '.tmp', UUID.upper(), '.' + UUID, '\x1b'):
            self.put(name)
        self.assertEqual([], self.ledger.left_behind())

    def test_what_is_no_file(self):
        os.makedirs(self.directory)
        path = os.path.join(self.directory, UUID)
        target = self.put('target', b'precious')
        for make in (lambda: os.mkdir(path), lambda: os.mkfifo(path),
                     lambda: os.symlink(target, path),
                     lambda: os.symlink('/dev/zero', path),
                     lambda: os.symlink('/no/such', path)):
            make()
            self.assertEqual([UUID], self.ledger.left_behind())
            self.assertRaises(OSError, self.ledger.take, UUID)
            self.assertRaises(OSError, self.ledger.enter, UUID, 'why')
            if os.path.isdir(path):
                os.rmdir(path)
            else:
                os.unlink(path)
        with open(target, 'rb') as f:
            self.assertEqual(b'precious', f.read())

    def test_a_file_in_the_place_of_the_directory(self):
        os.makedirs(os.path.dirname(self.directory))
        with open(self.directory, 'w'):
            pass
        self.assertRaises(OSError, self.ledger.left_behind)
        self.assertRaises(OSError, self.ledger.enter, UUID, 'why')

    @hypothesis.given(strategies.binary(max_size=1000))
    @hypothesis.settings(max_examples=50, deadline=None)
    def test_any_content_is_an_entry(self, content):
        self.put(UUID, content)
        entry = self.ledger.take(UUID)
        self.assertLessEqual(len(entry.text), 200)
        entry.remove()
        self.assertEqual([], self.ledger.left_behind())

    def test_a_file_without_end(self):
        path = self.put(UUID)
        os.truncate(path, 1 << 40)
        entry = self.ledger.take(UUID)
        self.assertEqual(200, len(entry.text))
        entry.remove()
