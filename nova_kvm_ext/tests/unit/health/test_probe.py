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

"""The state file and its process, as a probe meets them."""

import copy
import json
import os
import signal
import stat
import subprocess
import sys
from typing import Any

import fixtures
from oslotest import base

import nova_kvm_ext
from nova_kvm_ext.cmd import entry
from nova_kvm_ext.cmd import quick
from nova_kvm_ext.health import probe
from nova_kvm_ext.health import record
from nova_kvm_ext.health import verdict
from nova_kvm_ext.tests.unit.health import test_verdict


class ProbeTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.state_path = self.useFixture(fixtures.TempDir()).path
        self.file = record.StateFile(self.state_path, 'a')

    def fresh(self):
        """A state of this process that is well."""
        state = record.new_state('a', 'enforce')
        now = probe.clock()
        state.update(phase='running', interval=60, clock=now, written=1e9)
        state['update'].update(began=now, finished=now, succeeded=now)
        state['libvirt'].update(answers=True, since=now, seen=now)
        state['placement'].update(answered=now)
        state['host_check'].update(at=now, results={'KVM101': 'PASS'})
        return state

    def run_quick(self, *argv):
        with fixtures.StringStream('stdout') as out:
            with fixtures.MonkeyPatch('sys.stdout', out.stream):
                code = quick.run(['--state-path', self.state_path, *argv])
            out.stream.seek(0)
            return code, out.stream.read()

    def test_written_and_read(self):
        state = self.fresh()
        self.file.write(state)
        self.assertEqual(state, probe.read(self.state_path))
        self.assertEqual(state, probe.read(self.state_path, 'a'))
        self.assertEqual(['PASS'] * 4, [
            part.result for part in probe.judge_here(state)])
        self.assertEqual(1e9 - 5, probe.unix(state, state['clock'] - 5))

    def test_a_new_state_has_the_shape(self):
        self.file.write(record.new_state('a' * 500, 'off'))
        probe.read(self.state_path)

    def test_others_may_read_it_whatever_the_umask(self):
        before = os.umask(0o077)
        self.addCleanup(os.umask, before)
        self.file.write(self.fresh())
        self.assertEqual(0o644, stat.S_IMODE(os.stat(self.file.path).st_mode))
        self.assertEqual(0o755, stat.S_IMODE(os.stat(
            os.path.dirname(self.file.path)).st_mode))

    def test_whole_or_not_at_all(self):
        self.file.write(self.fresh())
        broken = self.fresh() | {'host': object()}
        self.assertRaises(TypeError, self.file.write, broken)
        probe.read(self.state_path)
        self.assertEqual(['of-a.json'],
                         os.listdir(os.path.dirname(self.file.path)))

    def test_what_a_killed_writer_left(self):
        self.file.write(self.fresh())
        victim = os.path.join(self.state_path, 'victim')
        os.symlink(victim, self.file.path + '.new')
        self.file.write(self.fresh())
        self.assertFalse(os.path.exists(victim))
        probe.read(self.state_path)

    def test_small(self):
        state = self.fresh()
        state['host_check']['results'] = {
            f'KVM{number}': 'PASS' for number in range(101, 161)}
        state['host_check']['fault'] = 'x' * 300
        self.assertLess(len(json.dumps(state)), 4096)

    def test_which_file(self):
        self.assertRaises(probe.NoFile, probe.read, self.state_path)
        self.assertRaises(probe.NoFile, probe.read, self.state_path, 'a')
        self.file.write(self.fresh())
        record.StateFile(self.state_path, 'b').write(self.fresh())
        error = self.assertRaises(probe.NotKnown, probe.read, self.state_path)
        self.assertIn('--host', str(error))
        record.StateFile(self.state_path, os.uname().nodename).write(
            self.fresh())
        probe.read(self.state_path)

    def put(self, data):
        self.file.write(self.fresh())
        with open(self.file.path, 'wb') as f:
            f.write(data)

    def test_odd_files(self):
        well = self.fresh()
        odd = [b'', b'{', b'[]', b'null', b'\xff', b'[' * 60000,
               b'{"version": 1}', json.dumps(well).encode() + b' ' * 70000]
        changes: tuple[dict[str, Any], ...] = (
            {'version': True}, {'clock': '1'}, {'clock': 1e300},
            {'clock': float('nan')}, {'clock': None}, {'process': {}},
            {'process': 7}, {'host_check': {'mode': 'off'}},
            {'phase': 'x' * 999}, {'interval': True})
        for change in changes:
            odd.append(json.dumps(well | change).encode())
        for pid in ('7', 1 << 60, None, 1.5):
            changed = copy.deepcopy(well)
            changed['process']['pid'] = pid
            odd.append(json.dumps(changed).encode())
        for data in odd:
            self.put(data)
            code, text = self.run_quick()
            self.assertEqual(3, code, repr(data[:80]))
            self.assertIn('UNKNOWN nova-compute: ', text)

    def test_any_process_number(self):
        for pid in (0, -1, 1 << 40, -(1 << 40)):
            state = self.fresh()
            state['process']['pid'] = pid
            self.put(json.dumps(state).encode())
            self.assertIn(self.run_quick()[0], (2, 3), str(pid))

    def test_a_newer_one(self):
        self.put(json.dumps(self.fresh() | {'version': 2}).encode())
        self.assertIn('newer', self.run_quick()[1])

    def test_no_regular_file(self):
        self.put(b'')
        os.unlink(self.file.path)
        os.mkfifo(self.file.path)
        self.assertEqual(3, self.run_quick()[0])
        os.unlink(self.file.path)
        os.symlink('/etc/passwd', self.file.path)
        self.assertEqual(3, self.run_quick()[0])

    def test_text_obeys_no_terminal(self):
        state = self.fresh()
        state['host_check']['fault'] = '\x1b[2Jx\n\u202e'
        self.put(json.dumps(state).encode())
        code, text = self.run_quick()
        self.assertEqual((2, 'FAIL host check: ?[2Jx??'),
                         (code, text.splitlines()[0]))

    def test_the_process(self):
        child = subprocess.Popen(
            [sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        state = self.fresh()
        state['process'].update(pid=child.pid,
                                started=probe.started(child.pid))
        self.assertEqual(verdict.RUNS, probe.process(state))
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        self.assertEqual(verdict.STOPPED, probe.process(state))
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        # Not reaped yet.
        self.assertEqual(verdict.ENDED, probe.process(state))
        child.wait()
        self.assertEqual(verdict.ENDED, probe.process(state))

    def test_the_number_of_a_process_is_given_again(self):
        state = self.fresh()
        state['process']['started'] -= 1
        self.assertEqual(verdict.ENDED, probe.process(state))

    def test_a_process_of_another_container(self):
        state = self.fresh()
        state['process'].update(pid=1 << 22, namespace='pid:[1]')
        self.assertEqual(verdict.NOT_SEEN, probe.process(state))
        self.put(json.dumps(state).encode())
        self.assertEqual(0, self.run_quick()[0])

    def test_alive_is_about_nova_compute_alone(self):
        state = self.fresh()
        state['libvirt'].update(answers=False, reason='lost')
        self.put(json.dumps(state).encode())
        self.assertEqual(2, self.run_quick()[0])
        code, text = self.run_quick('--alive')
        self.assertEqual((0, 1), (code, len(text.splitlines())))

    def test_json(self):
        self.put(json.dumps(self.fresh()).encode())
        code, text = self.run_quick('-f', 'json')
        found = json.loads(text)
        self.assertEqual(0, code)
        self.assertEqual('PASS', found['result'])
        self.assertEqual(
            ['nova-compute', 'libvirt', 'Placement', 'host check'],
            [part['name'] for part in found['parts']])
        self.assertEqual({'name', 'result', 'details'},
                         set(found['parts'][0]))

    def test_what_the_whole_command_answers(self):
        for argv in (['--help'], ['-f'], ['-f', 'yaml'], ['x'],
                     ['--state-path'], ['--host', '--alive'], ['--host='],
                     ['--config-file', '/x'], ['--al'], ['-fjson']):
            self.assertIsNone(quick.run(argv), str(argv))
        self.useFixture(fixtures.MonkeyPatch(
            'nova_kvm_ext.cmd.quick.STATE_PATH', self.state_path))
        self.assertIsNone(quick.run([]))
        self.file.write(self.fresh())
        with fixtures.MonkeyPatch('sys.stdout', open(os.devnull, 'w')):
            self.assertEqual(0, quick.run(['--host=a']))
            self.assertEqual(0, entry.main(['host', 'health']))

    def test_the_whole_command_says_the_same(self):
        self.file.write(self.fresh())
        for argv in ([], ['--alive'], ['-f', 'json']):
            done = [subprocess.run(
                [sys.executable, '-m', f'nova_kvm_ext.cmd.{module}', 'host',
                 'health', '--state-path', self.state_path, *argv],
                capture_output=True, text=True)
                for module in ('entry', 'main')]
            self.assertEqual([0, 0], [one.returncode for one in done],
                             done[1].stderr)
            self.assertEqual(
                [part.split(':')[0] for part in done[0].stdout.splitlines()],
                [part.split(':')[0] for part in done[1].stdout.splitlines()])

    def test_a_reader_that_has_gone(self):
        self.file.write(self.fresh())
        reading, writing = os.pipe()
        os.close(reading)
        with open(writing, 'wb') as out:
            done = subprocess.run(
                [sys.executable, '-m', 'nova_kvm_ext.cmd.entry', 'host',
                 'health', '--state-path', self.state_path],
                stdout=out, stderr=subprocess.PIPE)
        self.assertEqual((0, b''), (done.returncode, done.stderr))

    def test_light(self):
        """What takes the time is what is imported."""
        self.file.write(self.fresh())
        done = subprocess.run(
            # -S: what an editable installation adds is not ours.
            [sys.executable, '-I', '-S', '-c',
             'import sys; before = set(sys.modules); '
             'sys.path.insert(0, sys.argv.pop(1)); '
             'from nova_kvm_ext.cmd import entry; '
             'code = entry.main(sys.argv[1:]); '
             'print(*sorted(set(sys.modules) - before), file=sys.stderr); '
             'sys.exit(code)',
             os.path.dirname(os.path.dirname(nova_kvm_ext.__file__)),
             'host', 'health', '--state-path', self.state_path],
            capture_output=True, text=True)
        self.assertEqual(0, done.returncode, done.stderr)
        loaded = set(done.stderr.split())
        self.assertEqual(
            set(), loaded & {'typing', 'dataclasses', 'inspect', 'argparse',
                             'logging', 'cliff', 'subprocess', 'pathlib',
                             'importlib.metadata', 'libvirt', 'nova'})
        # The standard library of Python 3.13 loads a few more than 3.11.
        self.assertLess(len(loaded), 50, sorted(loaded))

    def test_the_table_of_states_fits_the_shape(self):
        self.assertTrue(probe._fits(test_verdict.WELL, probe._SHAPE))
