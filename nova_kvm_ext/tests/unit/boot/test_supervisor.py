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

"""The supervisor with real worker processes that do what a test says."""

import errno
import json
import os
import pathlib
import signal
import stat
import sys
import textwrap
import time
from typing import Any
import unittest
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext.boot import leftovers
from nova_kvm_ext.boot.spec import Spec
from nova_kvm_ext.boot import supervisor
from nova_kvm_ext.boot import testguest
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode

# The supervisor runs in the command's own process, which Nova never patches.
# Under eventlet its signal handlers would run in the hub and not in a wait.
native_only = unittest.skipIf(
    'eventlet' in sys.modules and
    sys.modules['eventlet'].patcher.is_monkey_patched('thread'),
    'the supervisor never runs under eventlet')

WORKER = """\
import json, os, signal, sys, time

spec_path, fd, supervisor = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(spec_path) as f:
    spec = json.load(f)
directory, spec, record = (
    spec['record']['directory'], spec['spec'], spec['record'])


def write(text):
    os.write(fd, text.encode())


def emit(kind, **data):
    write(json.dumps({'event': kind, **data}) + '\\n')


"""
OPTIONS = Spec(
    config_files=['/etc/nova/nova.conf'],
    settings='[kvm_ext]\nvirt_type = qemu\n', image='/images/x.qcow2',
    disk_format='qcow2', properties={'hw_disk_bus': 'ide'},
    extra_specs={'a': 'b'}, vcpus=2, memory_mb=512, bridge=None, timeout=60,
    expect='login:', cache_dir='/no/such/cache', xml_only=False, keep=False)


def options(**changes: Any) -> Spec:
    return supervisor.dataclasses.replace(OPTIONS, **changes)


class SupervisorTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.base = self.useFixture(fixtures.TempDir()).path
        self.useFixture(fixtures.EnvironmentVariable('TMPDIR', self.base))
        self.out = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.useFixture(fixtures.MockPatchObject(
            leftovers, '_QEMU_LOGS', str(self.out)))
        self.python = sys.executable
        self.events: list[dict[str, Any]] = []
        self.handlers = [signal.getsignal(number)
                         for number in supervisor._SIGNALS]
        self.open_files = len(os.listdir('/proc/self/fd'))

    def worker(self, body: str) -> None:
        """Have a script stand for Python: it drops -m and the module."""
        script = self.out / 'worker.py'
        script.write_text(WORKER + f'out = {str(self.out)!r}\n' +
                          textwrap.dedent(body))
        python = self.out / 'python'
        python.write_text(f'#!/bin/sh\n'
                          f'[ "$1 $2" = "-m nova_kvm_ext.boot.worker" ] || '
                          f'exit 99\nshift 2\n'
                          f'exec "{self.python}" -IS "{script}" "$@"\n')
        python.chmod(0o755)
        self.useFixture(fixtures.MockPatchObject(
            sys, 'executable', str(python)))

    def boot(self, body: str, **changes: Any) -> int:
        self.worker(body)
        return supervisor.boot(options(**changes), self.events.append)

    def assertNothingLeft(self):
        self.assertEqual([], os.listdir(self.base))
        self.assertEqual(self.handlers, [
            signal.getsignal(number) for number in supervisor._SIGNALS])
        # Fewer is no fault: another test's garbage was collected.
        self.assertLessEqual(len(os.listdir('/proc/self/fd')),
                             self.open_files)

    def texts(self, kind: str) -> list[str]:
        return [event['text'] for event in self.events
                if event['event'] == kind]

    def noted(self, name: str) -> str:
        return (self.out / name).read_text()

    def assertEnded(self, name: str = 'pid'):
        """The process that wrote its id there is no more."""
        self.assertRaises(ProcessLookupError, os.kill,
                          int(self.noted(name)), 0)


@native_only
class BootTestCase(SupervisorTestCase):

    def test_events_and_code(self):
        self.assertEqual(0, self.boot("""
            emit('step', name='nova', details='release 34')
            emit('log', level='WARNING', text='old')
            emit('check', name='vcpus', result='PASS', details='2')
            emit('done', code=0)
            """))
        for event in self.events:
            event.pop('seconds', None)
        self.assertEqual(
            [{'event': 'step', 'name': 'image', 'details': '/images/x.qcow2'},
             {'event': 'step', 'name': 'nova', 'details': 'release 34'},
             {'event': 'log', 'level': 'WARNING', 'text': 'old'},
             {'event': 'check', 'name': 'vcpus', 'result': 'PASS',
              'details': '2'}], self.events)
        self.assertNothingLeft()

    def test_any_code(self):
        for code in ExitCode:
            self.assertEqual(code, self.boot(
                f"emit('error', text='x')\nemit('done', code={code:d})"))
        self.assertNothingLeft()

    def test_what_the_worker_is_told(self):
        self.boot("""
            import shutil
            os.mkdir(out + '/made')
            for name in os.listdir(directory):
                shutil.copy(os.path.join(directory, name), out + '/made/')
            print('to the log')
            json.dump([supervisor, os.getppid(), os.getsid(0) == os.getpid(),
                       sys.stdin.read(), oct(os.stat(directory).st_mode)],
                      open(out + '/seen', 'w'))
            emit('done', code=0)
            """, bridge='br0')
        made = self.out / 'made'
        self.assertEqual({'record.json', 'settings.conf',
                          'spec.json', 'worker.log'}, set(os.listdir(made)))
        self.assertEqual([os.getpid(), os.getpid(), True, '', '0o40711'],
                         json.loads(self.noted('seen')))
        self.assertEqual(OPTIONS.settings,
                         (made / 'settings.conf').read_text())
        told = json.loads((made / 'spec.json').read_text())
        record = json.loads((made / 'record.json').read_text())
        self.assertEqual(record, told['record'])
        self.assertRegex(record['tap'], '^nke[0-9a-f]{8}$')
        self.assertEqual(
            options(bridge='br0', config_files=[
                '/etc/nova/nova.conf',
                os.path.join(record['directory'], 'settings.conf')]),
            Spec(**told['spec']))

    def test_the_worker_holds_the_lock(self):
        self.boot("""
            import fcntl
            held = [name for name in os.listdir('/proc/self/fd')
                    if os.path.exists(f'/proc/self/fd/{name}') and
                    os.path.samefile(f'/proc/self/fd/{name}', directory)]
            json.dump(len(held), open(out + '/held', 'w'))
            emit('done', code=0)
            """)
        self.assertEqual('1', self.noted('held'))

    def test_events_in_pieces(self):
        self.assertEqual(0, self.boot("""
            text = json.dumps({'event': 'xml', 'text': '\\u00e9' * 100000})
            for start in range(0, len(text), 50000):
                write(text[start:start + 50000])
                time.sleep(0.01)
            write('\\n{"event": "do')
            time.sleep(0.05)
            write('ne", "code": 0}\\n')
            """))
        self.assertEqual(['\u00e9' * 100000], self.texts('xml'))

    def test_steps_are_timed(self):
        """Each by itself; a busy machine may hear late of one."""
        started = time.monotonic()
        self.boot("""
            time.sleep(0.3)
            emit('step', name='nova', details='')
            emit('log', level='INFO', text='x')
            emit('step', name='driver', details='')
            time.sleep(0.3)
            emit('step', name='spawn', details='')
            emit('done', code=0)
            """)
        elapsed = time.monotonic() - started
        image, nova, driver, spawn = (
            event['seconds'] for event in self.events
            if event['event'] == 'step')
        self.assertGreaterEqual(nova, 0.3)
        rounded = 4 * 0.005
        self.assertGreaterEqual(nova + driver + spawn, 0.6 - rounded)
        self.assertLessEqual(image + nova + driver + spawn, elapsed + rounded)

    def test_test_guest(self):
        def build(cache_dir, progress):
            progress('building')
            return testguest.TestGuest('/c/t.raw', '6.1', True, False)

        self.useFixture(fixtures.MockPatchObject(testguest, 'build', build))
        self.assertEqual(0, self.boot("""
            emit('log', level='INFO', text=spec['image'])
            emit('done', code=0)
            """, image=None))
        self.assertEqual(['building'], self.texts('progress'))
        self.assertEqual('test guest, kernel 6.1, with guest agent',
                         self.events[1]['details'])
        self.assertEqual(['/c/t.raw'], self.texts('log'))

    def channel(self, agent: bool, **changes: Any) -> str:
        """The property of a test guest with or without an agent."""
        self.events.clear()
        self.useFixture(fixtures.MockPatchObject(
            testguest, 'build', lambda cache_dir, progress:
            testguest.TestGuest('/c/t.raw', '6.1', agent, False)))
        self.boot("""
            emit('log', level='INFO', text=str((
                spec['properties'].get('hw_qemu_guest_agent'),
                spec['has_agent'])))
            emit('done', code=0)
            """, image=None, **changes)
        text, = self.texts('log')
        return text

    def test_a_channel_for_a_test_guest_that_has_an_agent(self):
        self.assertEqual("('yes', True)", self.channel(True))
        self.assertEqual("(None, False)", self.channel(False))
        self.assertIn('install qemu-guest-agent', self.events[0]['details'])
        # The user's word counts.
        for wanted in ('yes', 'no'):
            properties = {'hw_qemu_guest_agent': wanted}
            for agent in (True, False):
                self.assertEqual(
                    str((wanted, agent)),
                    self.channel(agent, properties=properties))

    def test_earlier_boots_are_swept_first(self):
        directory, lock = leftovers.make_directory()
        os.close(lock)
        leftovers.Record(directory, 'an-uuid', '').write()
        self.assertEqual(0, self.boot("emit('done', code=0)"))
        self.assertIn('an-uuid', self.events[0]['text'])
        self.assertEqual('left', self.events[0]['event'])
        self.assertNothingLeft()

    def test_keep(self):
        self.assertEqual(1, self.boot("emit('done', code=1)", keep=True))
        directory, = os.listdir(self.base)
        self.assertIn(f'rm -r {self.base}/{directory}', self.texts('kept')[0])

    def test_others_cannot_read_what_is_made(self):
        umask = os.umask(0)
        self.addCleanup(os.umask, umask)
        self.boot("""
            for name in ('nova.log', 'instances/disk'):
                path = os.path.join(directory, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, 'w') as f:
                    f.write('secret')
            emit('done', code=0)
            """, keep=True, settings='[database]\nconnection = secret\n')
        self.assertEqual(0, os.umask(0))
        found = {}
        for parent, directories, names in os.walk(self.base):
            for name in directories + names:
                path = os.path.join(parent, name)
                found[name] = stat.S_IMODE(os.stat(path).st_mode)
        directory, = os.listdir(self.base)
        # QEMU's user has to get to the disk, which libvirt gives to it.
        self.assertEqual({0o711}, {found.pop(directory),
                                   found.pop('instances')})
        self.assertLessEqual({'settings.conf', 'spec.json', 'worker.log',
                              'record.json', 'nova.log', 'disk'}, set(found))
        self.assertEqual({0o600}, set(found.values()), str(found))

    def test_leftovers(self):
        self.useFixture(fixtures.MockPatchObject(
            leftovers, 'clean', return_value=['It stays.']))
        for code, wanted in ((0, ExitCode.LEFTOVERS), (1, 1), (4, 4)):
            self.assertEqual(wanted, self.boot(f"emit('done', code={code})"))
        self.assertIn('It stays.', self.texts('left'))

    def test_what_the_worker_recorded_is_cleaned(self):
        clean = self.useFixture(fixtures.MockPatchObject(
            leftovers, 'clean', return_value=[])).mock
        self.boot("""
            path = os.path.join(directory, 'record.json')
            record = dict(record, uri='test:///worker')
            json.dump(record, open(path, 'w'))
            emit('done', code=0)
            """)
        self.boot("""
            with open(os.path.join(directory, 'record.json'), 'w'):
                emit('done', code=0)
            """)
        uris = [call.args[0].uri for call in clean.call_args_list]
        # The fake did not remove the first, so the second boot swept it.
        self.assertEqual(['test:///worker', 'test:///worker', ''], uris)


@native_only
class WorkerDiesTestCase(SupervisorTestCase):

    def test_crash(self):
        self.assertEqual(ExitCode.HOST, self.boot("""
            emit('step', name='nova', details='')
            raise RuntimeError('the moon\\x1b[2J is full')
            """))
        text, = self.texts('error')
        self.assertIn('ended with status 1 before it was done', text)
        self.assertIn('RuntimeError: the moon [2J is full', text)
        self.assertNotIn('\x1b', text)
        self.assertNothingLeft()

    def test_end_without_a_word(self):
        self.assertEqual(ExitCode.HOST, self.boot(''))
        self.assertIn('ended with status 0', self.texts('error')[0])
        self.assertNothingLeft()

    def test_killed(self):
        self.assertEqual(ExitCode.HOST, self.boot("""
            emit('step', name='nova', details='')
            os.kill(os.getpid(), signal.SIGKILL)
            """))
        self.assertIn('was killed by SIGKILL', self.texts('error')[0])
        self.assertNothingLeft()

    def test_killed_when_done(self):
        self.assertEqual(1, self.boot("""
            emit('done', code=1)
            os.kill(os.getpid(), signal.SIGKILL)
            """))
        self.assertEqual([], self.texts('error'))

    def test_an_unfinished_line(self):
        self.assertEqual(ExitCode.HOST,
                         self.boot("write('{\"event\": \"done\"')"))
        self.assertNothingLeft()

    def test_much_output(self):
        self.assertEqual(ExitCode.HOST, self.boot("""
            for number in range(5000):
                print('line', number, 'x' * 1000)
            sys.exit(7)
            """))
        text, = self.texts('error')
        self.assertIn('line 4999', text)
        self.assertLess(len(text), 2000)


@native_only
class WorkerHangsTestCase(SupervisorTestCase):

    HANG = """
        open(out + '/pid', 'w').write(str(os.getpid()))
        emit('step', name='nova', details='')
        %s
        time.sleep(60)
        emit('done', code=0)
        """

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(supervisor, '_GRACE', 0.4))
        self.started = time.monotonic()

    def assertQuick(self, seconds: float = 20):
        self.assertLess(time.monotonic() - self.started, seconds)

    def test_silence(self):
        self.useFixture(fixtures.MockPatchObject(
            supervisor, '_STEP_LIMIT', 1.5))
        self.assertEqual(ExitCode.HOST, self.boot(self.HANG % ''))
        self.assertIn('Nothing happened for 1.5 s', self.texts('error')[0])
        self.assertQuick()
        self.assertEnded()
        self.assertNothingLeft()

    def test_any_event_ends_silence(self):
        self.useFixture(fixtures.MockPatchObject(
            supervisor, '_STEP_LIMIT', 1.5))
        self.assertEqual(0, self.boot("""
            for _ in range(5):
                emit('log', level='INFO', text='x')
                time.sleep(0.5)
            emit('done', code=0)
            """))

    def test_a_guest_has_its_time_to_come_up(self):
        self.useFixture(fixtures.MockPatchObject(
            supervisor, '_STEP_LIMIT', 1.5))
        body = """
            emit('step', name='spawn', details='')
            time.sleep(2.5)
            emit('done', code=0)
            """
        self.assertEqual(0, self.boot(body, timeout=30))
        self.assertEqual(ExitCode.HOST, self.boot(body, timeout=0.1))
        self.assertEqual(ExitCode.HOST, self.boot(
            body.replace('spawn', 'driver'), timeout=30))

    def test_one_that_ends_when_told(self):
        self.useFixture(fixtures.MockPatchObject(supervisor, '_GRACE', 30))
        self.assertEqual(128 + signal.SIGTERM, self.boot(self.HANG % """
        def end(*args):
            open(out + '/ended', 'w').write('well')
            os._exit(0)


        signal.signal(signal.SIGTERM, end)
        os.kill(supervisor, signal.SIGTERM)
        """.strip()))
        self.assertEqual('well', self.noted('ended'))
        self.assertQuick()
        self.assertNothingLeft()

    def test_signals(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self.assertEqual(128 + number, self.boot(
                self.HANG % f'os.kill(supervisor, {number:d})'))
            self.assertEqual(f'{number.name}: stopping.',
                             self.texts('error')[-1])
            self.assertEnded()
            self.assertNothingLeft()
        self.assertQuick()

    def test_one_that_does_not_listen(self):
        self.assertEqual(130, self.boot(
            self.HANG % 'signal.signal(signal.SIGTERM, signal.SIG_IGN); '
            'os.kill(supervisor, signal.SIGINT)'))
        self.assertGreater(time.monotonic() - self.started, 0.4)
        self.assertQuick()
        self.assertEnded()
        self.assertNothingLeft()

    def test_impatience_changes_nothing(self):
        """Ctrl-C again and again, while the worker is being ended too."""
        self.assertEqual(130, self.boot(self.HANG % """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for _ in range(1000):
            os.kill(supervisor, signal.SIGINT)
            time.sleep(0.001)
        """.strip()))
        self.assertEqual(['SIGINT: stopping.'], self.texts('error'))
        self.assertEnded()
        self.assertNothingLeft()

    def test_a_signal_before_the_worker_is_there(self):
        def build(cache_dir, progress):
            os.kill(os.getpid(), signal.SIGTERM)
            return testguest.TestGuest('/c/t.raw', '6.1', True, False)

        self.useFixture(fixtures.MockPatchObject(testguest, 'build', build))
        self.assertEqual(143, self.boot('time.sleep(60)', image=None))
        self.assertQuick()
        self.assertNothingLeft()


@native_only
class HostErrorTestCase(SupervisorTestCase):

    def refused(self, **changes: Any) -> str:
        error = self.assertRaises(errors.HostError, self.boot, '', **changes)
        self.assertNothingLeft()
        return str(error)

    def test_the_test_guest_cannot_be_built(self):
        self.useFixture(fixtures.MockPatchObject(
            testguest, 'build',
            side_effect=testguest.BuildError('No busybox: install it.')))
        self.assertEqual('No busybox: install it.', self.refused(image=None))

    def test_no_space(self):
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for target, name in ((leftovers.Record, 'write'),
                             (supervisor, '_image'),
                             (supervisor.json, 'dump')):
            with mock.patch.object(target, name, side_effect=error):
                text = self.refused()
            self.assertIn('No space left on device', text)
            self.assertIn(self.base, text)

    def test_the_worker_cannot_be_started(self):
        error = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        with mock.patch.object(supervisor.subprocess, 'Popen',
                               side_effect=error):
            raised = self.assertRaises(errors.HostError, self.boot, '')
        self.assertIn('temporarily unavailable', str(raised))
        self.assertEqual([], os.listdir(self.base))

    def test_no_directory(self):
        self.useFixture(fixtures.EnvironmentVariable(
            'TMPDIR', os.path.join(self.base, 'missing')))
        self.assertIn('set TMPDIR', self.refused())

    def test_a_bug_leaves_nothing_either(self):
        self.assertRaises(ValueError, self.boot,
                          "write('garbage\\n'); time.sleep(60)")
        self.assertNothingLeft()
