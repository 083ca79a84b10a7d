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

"""What agents can answer, and when, through a real libvirt."""

from collections.abc import Callable
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import fixtures
import libvirt

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import client
from nova_kvm_ext.tests.functional import agents
from nova_kvm_ext.tests.functional import libvirtd
from nova_kvm_ext.tests.unit.guest_agent import test_replies

_SHORT_SYNC = 11_003_000


class FakeAgent(fixtures.Fixture):
    """An agent of the test's own on the channel of a domain.

    :ivar answer: what it does with a request; may be exchanged at any time
    :ivar requests: what libvirt asked, guest-sync included
    """

    def __init__(self, domain: libvirt.virDomain, directory: str) -> None:
        super().__init__()
        path = re.search(r"<source mode='bind' path='([^']+)'",
                         domain.XMLDesc())[1]
        [self._path] = [
            path.replace(there, f'{directory}/{here}', 1)
            for here, there in libvirtd.COVERED.items()
            if path.startswith(there + '/')]
        # The whole path must fit into 108 bytes.
        self._qemu = f'{directory}/{domain.ID()}.qemu'
        self.answer: Callable[[dict[str, Any]], None] = self.honest
        self.requests: list[str] = []
        self.connections = 0
        self._connection: socket.socket | None = None

    def _setUp(self) -> None:
        os.rename(self._path, self._qemu)
        self._listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(self._listener.close)
        self._listener.bind(self._path)
        os.chmod(self._path, 0o777)
        self._listener.listen()
        thread = threading.Thread(target=self._serve)
        thread.start()
        # The accept() ends with it, and so does the thread.
        self.addCleanup(thread.join)
        self.addCleanup(self._hang_up)
        self.addCleanup(self._listener.shutdown, socket.SHUT_RDWR)

    def _hang_up(self) -> None:
        if self._connection is not None:
            try:
                self._connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass   # libvirt had closed it

    def _serve(self) -> None:
        while True:
            try:
                self._connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with self._connection:
                try:
                    for line in self._connection.makefile('rb'):
                        request = json.loads(line.lstrip(b'\xff'))
                        self.requests.append(request['execute'])
                        self.answer(request)
                except OSError:
                    pass   # libvirt has closed the connection

    def send(self, raw: bytes) -> None:
        self._connection.sendall(raw)

    def reply(self, value: Any) -> None:
        self.send(json.dumps({'return': value}).encode() + b'\n')

    def honest(self, request: dict[str, Any]) -> None:
        name = request['execute']
        self.reply(request['arguments']['id'] if name == 'guest-sync'
                   else test_replies.HONEST[name])

    def raw(self, *lines: bytes) -> Callable[[dict[str, Any]], None]:
        """Does the sync right, and says this to all else."""
        def answer(request: dict[str, Any]) -> None:
            if request['execute'] == 'guest-sync':
                self.honest(request)
            for line in lines:
                if request['execute'] != 'guest-sync':
                    self.send(line)
        return answer

    def after(self, seconds: float, *names: str
              ) -> Callable[[dict[str, Any]], None]:
        """Answers these commands honestly, and late."""
        def answer(request: dict[str, Any]) -> None:
            if request['execute'] in names:
                time.sleep(seconds)
            self.honest(request)
        return answer

    def silent(self, request: dict[str, Any]) -> None:
        """Answers nothing."""

    def reopen(self) -> None:
        """Have the guest's real agent close and open the port."""
        before = self.connections
        with socket.socket(socket.AF_UNIX) as qemu:
            qemu.settimeout(agents.SYNC)
            qemu.connect(self._qemu)
            qemu.sendall(json.dumps({
                'execute': 'guest-exec', 'arguments': {
                    'path': '/bin/killall', 'arg': ['qemu-ga']}}
            ).encode() + b'\n')
            qemu.recv(1000)
        libvirtd.wait_for(lambda: self.connections > before,
                          'new connection of libvirt to the agent')


class FakeAgentTestCase(agents.AgentTestCase):

    def setUp(self):
        super().setUp()
        self.domain = self.start()
        self.fake = self.useFixture(
            FakeAgent(self.domain, self.libvirt.directory))
        libvirtd.wait_for(lambda: self.fake.connections == 1,
                          'connection of libvirt to the agent')
        self.agent = client.Agent(self.domain, 2)

    def lie(self, name: str, answer: Callable[[dict[str, Any]], None]
            ) -> Any:
        self.fake.answer = answer
        found = self.timed(name, self.agent.info)
        self.assertLess(self.times[name], 2 + agents.SYNC + agents.SLACK, name)
        return found

    def recovered(self, name: str) -> None:
        """The agent is honest again; libvirt may have given it up.

        libvirt's thread that read the answer tells the waiting call first,
        and only then says of the domain that its agent is given up. A
        question between the two gets the error of that answer once more.
        """
        found = self.lie(f'{name}, then honest', self.fake.honest)
        if isinstance(found, errors.AgentError):
            self.assertIn(
                found.fault, (agents.Fault.GIVEN_UP, agents.Fault.NONSENSE),
                f'{name}: {found}')
            self.fake.reopen()
            found = self.agent.info()
        self.assertEqual('7.2.22', found.version)

    def test_wrong_answers(self):
        fake = self.fake
        for name, lines in {
                'type': [b'{"return": [1, 2]}\n'],
                'deep': [b'{"return":' + b'[' * 9999 + b']' * 9999 + b'}\n'],
                'number': [b'{"return": ' + b'9' * 9999 + b'}\n'],
                'three megabytes': [
                    b'{"return": "' + b'x' * 3 * 2 ** 20 + b'"}\n'],
                'two members': [b'{"return": {}, "return": {}}\n'],
                'no JSON': [b'\x1b[2Jhello\n'],
                'no UTF-8': [b'{"return": "\xff\xfe"}\n'],
                'no UTF-8 in an error': [
                    b'{"error": {"class": "\xff", "desc": "\xfe"}}\n'],
                'empty': [b'{}\n'],
                'interleaved': [b'{"return": {"ver', b'{"return": {}}\n'],
                'surrogate': [b'{"return": "\\ud800"}\n'],
        }.items():
            found = self.lie(name, fake.raw(*lines))
            self.assertIsInstance(found, errors.AgentError, name)
            self.assertEqual(
                agents.Fault.NONSENSE, found.fault, f'{name}: {found}')
            self.assertTrue(str(found).isprintable())
            self.recovered(name)
        error = self.lie('refusal', fake.raw(
            b'{"error": {"class": "GenericError", "desc": "\\u001b[31mno"}}'
            b'\n'))
        self.assertEqual(agents.Fault.REFUSED, error.fault)
        self.assertTrue(str(error).endswith('It says: [31mno'), str(error))
        print('wrong answers, seconds blocked:', max(self.times.values()),
              file=sys.stderr)

    def test_times(self):
        """Late, never, endless, and wrong where libvirt itself asks."""
        fake = self.fake
        self.assertEqual('7.2.22', self.agent.info().version)
        sync = min(agents.SYNC, 2) if (
            self.connection.getLibVersion() >= _SHORT_SYNC) else agents.SYNC

        late = fake.raw(b'{"return": {"version": "late", '
                        b'"supported_commands": []}}\n')

        def after_time(request: dict[str, Any]) -> None:
            if request['execute'] != 'guest-sync':
                # Within the next question's wait for the sync.
                time.sleep(2 + sync / 4)
            late(request)

        self.assertEqual(agents.Fault.NO_ANSWER,
                         self.lie('late', after_time).fault)
        self.assertLess(self.times['late'], 2 + agents.SLACK)
        # The late answer is not taken for that of the next question.
        self.assertEqual('7.2.22',
                         self.lie('after late', fake.honest).version)

        self.assertEqual(agents.Fault.NO_ANSWER,
                         self.lie('never', fake.silent).fault)
        self.assertLess(self.times['never'], 2 + agents.SLACK)
        # Not in sync any more, so libvirt waits for the sync.
        self.assertEqual(agents.Fault.NO_ANSWER,
                         self.lie('never again', fake.silent).fault)
        self.assertLess(self.times['never again'], sync + agents.SLACK)

        def wrong_sync(request: dict[str, Any]) -> None:
            if request['execute'] == 'guest-sync':
                time.sleep(sync - 1)
                fake.reply(1)

        self.assertEqual(agents.Fault.NO_ANSWER,
                         self.lie('wrong sync', wrong_sync).fault)
        self.recovered('wrong sync')
        self.lie('never', fake.silent)

        def refused_sync(request: dict[str, Any]) -> None:
            if request['execute'] == 'guest-sync':
                time.sleep(sync - 1)
                fake.send(b'{"error": {"class": "x", "desc": "y"}}\n')

        self.assertEqual(agents.Fault.NO_ANSWER,
                         self.lie('refused sync', refused_sync).fault)
        self.recovered('refused sync')
        self.lie('never', fake.silent)

        def slow_sync(request: dict[str, Any]) -> None:
            if request['execute'] == 'guest-sync':
                time.sleep(sync - 1)
                fake.honest(request)

        # The most that can be had: both waits, nearly in full.
        self.assertEqual(agents.Fault.NO_ANSWER,
                         self.lie('slow sync, then never', slow_sync).fault)
        self.assertGreater(self.times['slow sync, then never'], 2 + sync - 2)
        self.recovered('slow sync, then never')

        def endless(request: dict[str, Any]) -> None:
            if request['execute'] == 'guest-sync':
                fake.honest(request)
            else:
                # Until libvirt hangs up, which is when the port closes.
                fake.send(b'x' * 11 * 2 ** 20)

        fake.answer = endless
        # Time enough for ten megabytes on a busy machine.
        error = self.timed('endless', lambda: self.agent.info(60))
        self.assertEqual(agents.Fault.NONSENSE, error.fault)
        # Until libvirt has hung up the next question meets the same answer.
        fake.answer = fake.honest
        libvirtd.wait_for(
            lambda: getattr(self.timed('after endless', self.agent.info),
                            'fault', None) is not agents.Fault.NONSENSE,
            'end of the endless answer')
        self.recovered('endless')

        def flood(request: dict[str, Any]) -> None:
            if request['execute'] != 'guest-sync':
                for _ in range(20000):
                    fake.reply({})
            else:
                fake.honest(request)

        self.lie('flood', flood)
        # What is left of it passes for answers to the next questions: libvirt
        # cannot tell, and it was the guest's word in any case.
        fake.answer = fake.honest
        libvirtd.wait_for(
            lambda: not isinstance(self.timed('after flood', self.agent.info),
                                   Exception), 'end of the flood')
        print('times, seconds blocked:', self.times, file=sys.stderr)

    def test_a_freeze_that_comes_late_is_thawed(self):
        self.fake.answer = self.fake.after(4, 'guest-fsfreeze-freeze')
        error = self.timed('late freeze',
                           lambda: self.agent.freeze(2, patience=20))
        self.assertEqual((agents.Fault.NO_ANSWER, False),
                         (error.fault, error.left_frozen))
        asked = [name for name in self.fake.requests if name != 'guest-sync']
        self.assertEqual(
            ['guest-fsfreeze-status', 'guest-fsfreeze-freeze',
             'guest-fsfreeze-thaw', 'guest-fsfreeze-status'], asked)
        self.assertLess(self.times['late freeze'], 4 + agents.SLACK)

        code, _ = self.run_command('freeze', 'one', '--timeout', '2')
        self.assertEqual(2, code)
        self.assertIn('did not answer guest-fsfreeze-freeze within 2 s',
                      self.said)
        self.assertNotIn('left frozen', self.said)
        self.assertEqual('guest-fsfreeze-status', self.fake.requests[-1])
        self.assertEqual(2, self.fake.requests.count('guest-fsfreeze-thaw'))

    def test_a_freeze_that_is_never_answered(self):
        def answer(request: dict[str, Any]) -> None:
            if request['execute'] == 'guest-fsfreeze-freeze':
                self.fake.answer = self.fake.silent
            else:
                self.fake.honest(request)

        self.fake.answer = answer
        error = self.timed('dead freeze',
                           lambda: self.agent.freeze(2, patience=6))
        self.assertTrue(error.left_frozen)
        self.assertIn('may have been left frozen', str(error))
        self.assertLess(self.times['dead freeze'],
                        2 + 6 + agents.SYNC + agents.SLACK)
        # It is thawed when it can be.
        self.fake.answer = self.fake.honest
        self.assertEqual(2, self.agent.thaw(patience=10))

    def test_interrupted_freeze(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self.fake.requests.clear()
            self.fake.answer = self.fake.after(3, 'guest-fsfreeze-freeze')
            with subprocess.Popen(
                    self.command('freeze', 'one'), stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, text=True) as process:
                libvirtd.wait_for(
                    lambda: 'guest-fsfreeze-freeze' in self.fake.requests,
                    'freeze')
                process.send_signal(number)
                _, said = process.communicate(timeout=60)
            self.assertEqual(128 + number, process.returncode, said)
            self.assertIn('guest-fsfreeze-thaw', self.fake.requests)
            self.assertIn('The guest is thawed.', said)
            self.assertNotIn('stays frozen', said)

    def test_freeze_says_that_it_stays(self):
        code, result = self.run_command('freeze', 'one')
        self.assertEqual((0, 2), (code, result['frozen']))
        self.assertEqual('nova-kvm-ext agent thaw one', result['thaw_with'])
        self.assertIn('stays frozen until: nova-kvm-ext agent thaw one',
                      self.said)

    def test_list_with_one_that_hangs(self):
        """The others are there, and all of it takes one time-out."""
        two = self.start('two')
        self.answering(two)
        self.fake.answer = self.fake.silent
        code, rows = self.run_command('list', '--timeout', '2')
        self.assertEqual(
            [('one', 'not answering'), ('two', 'connected')],
            [(row['name'], row['state']) for row in rows])
        self.assertEqual(2, code)
        # Python and Nova's options take two seconds to load.
        self.assertLess(self.times['list --timeout 2'],
                        2 + agents.SYNC + agents.SLACK + 3)
