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

"""Guest agents on real libvirt: a real one, and one that lies.

The liar sits between libvirt and QEMU. libvirt connects to the channel's
socket when something in the guest opens the port; before that happens, the
test moves QEMU's socket aside and listens in its place. So it is libvirt's
own agent code that meets the lies, in a guest whose real agent has the port
open.
"""

from collections.abc import Callable
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import fixtures
import libvirt
from oslotest import base
from testtools import content

from nova_kvm_ext.boot import testguest
from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import client
from nova_kvm_ext.tests.functional import libvirtd
from nova_kvm_ext.tests.unit.guest_agent import test_replies

Fault = errors.AgentFault
State = client.AgentState

_XML = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>256</memory>
  <os><type>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='{disk}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    {channel}
    <serial type='file'><source path='{console}'/></serial>
  </devices>
</domain>
"""
_CHANNEL = ("<channel type='unix'><target type='virtio' "
            "name='org.qemu.guest_agent.0'/></channel>")

# What libvirt's own guest-sync may add to a time-out where the domain has no
# response time-out. Libvirt 11.3 (not 9.0) takes the command's own time-out
# where that is shorter.
_SYNC = 5.0
_SHORT_SYNC = 11_003_000
# For a busy machine.
_SLACK = 2.0


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
            qemu.settimeout(_SYNC)
            qemu.connect(self._qemu)
            qemu.sendall(json.dumps({
                'execute': 'guest-exec', 'arguments': {
                    'path': '/bin/killall', 'arg': ['qemu-ga']}}
            ).encode() + b'\n')
            qemu.recv(1000)
        libvirtd.wait_for(lambda: self.connections > before,
                          'new connection of libvirt to the agent')


class AgentTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.libvirt = self.useFixture(libvirtd.PrivateLibvirt())
        # The ledger is below state_path.
        self.config = os.path.join(self.libvirt.instances_path, 'nova.conf')
        with open(self.config, 'w') as f:
            f.write(f'[DEFAULT]\nstate_path = '
                    f'{self.libvirt.instances_path}\nhost = here\n')
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        self.connection = libvirt.open(self.libvirt.uri)
        self.addCleanup(self.connection.close)
        self.disk = testguest.build(
            os.path.join(self.libvirt.instances_path, 'cache')).path
        self.times: dict[str, float] = {}
        self.addOnException(self.show_times)

    def show_times(self, exc_info: Any) -> None:
        self.addDetail('times', content.text_content(str(self.times)))

    def start(self, name: str = 'one', channel: str = _CHANNEL
              ) -> libvirt.virDomain:
        disk = os.path.join(self.libvirt.instances_path, f'{name}.raw')
        shutil.copy(self.disk, disk)
        return self.connection.createXML(_XML.format(
            name=name, disk=disk, channel=channel,
            console=self.console(name)))

    def console(self, name: str = 'one') -> str:
        return os.path.join(self.libvirt.instances_path, f'{name}.log')

    def connected(self, domain: libvirt.virDomain) -> None:
        libvirtd.wait_for(
            lambda: "state='connected'" in domain.XMLDesc(), 'agent')

    def answering(self, domain: libvirt.virDomain) -> None:
        """Wait for the real agent."""
        self.connected(domain)
        libvirtd.wait_for(lambda: client.look(domain).state is not
                          State.NOT_ANSWERING, 'answer of the agent')

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, '-m', 'nova_kvm_ext.cmd.main', 'agent',
                *arguments, '--config-file', self.config,
                '--connect', self.libvirt.uri, '-f', 'json']

    def run_command(self, *arguments: str) -> tuple[int, Any]:
        """Run ``agent ...``: exit code and the JSON it printed."""
        started = time.monotonic()
        done = subprocess.run(self.command(*arguments), capture_output=True,
                              text=True, timeout=120)
        self.times[' '.join(arguments)] = time.monotonic() - started
        self.said = done.stderr
        self.assertNotIn('Traceback', self.said)
        return done.returncode, json.loads(done.stdout or 'null')

    def timed(self, name: str, what: Callable[[], Any]) -> Any:
        """What it gives, or the AgentError it raises; the time is kept."""
        started = time.monotonic()
        try:
            return what()
        except errors.AgentError as e:
            return e
        finally:
            self.times[name] = time.monotonic() - started


class RealAgentTestCase(AgentTestCase):

    def setUp(self):
        super().setUp()
        self.domain = self.start()
        self.answering(self.domain)

    def in_guest(self, *command: str) -> None:
        """Have the agent run a program, and do not wait for it."""
        client.Agent(self.domain).ask(
            'guest-exec', lambda reply: reply, path=command[0],
            arg=list(command[1:]))

    def test_commands(self):
        uuid = self.domain.UUIDString()
        code, result = self.run_command('ping', 'one')
        self.assertEqual((0, True, uuid),
                         (code, result['answers'], result['uuid']))
        code, result = self.run_command('show', uuid)
        self.assertEqual(0, code, self.said)
        self.assertEqual(('connected', ''),
                         (result['state'], result['problem']))
        self.assertRegex(result['version'], r'^\d+\.\d+')
        self.assertEqual('lo', result['interfaces'][0]['name'])
        self.assertIsInstance(result['filesystems'], list)
        self.assertEqual(os.uname().machine, result['os']['machine'])

        self.start('two', channel='')
        code, rows = self.run_command('list')
        self.assertEqual(0, code, self.said)
        self.assertEqual(
            [('one', 'connected'), ('two', 'no channel')],
            [(row['name'], row['state']) for row in rows])
        code, result = self.run_command('ping', 'two')
        self.assertEqual((2, False), (code, result['answers']))
        code, _ = self.run_command('fstrim', 'one')
        self.assertEqual(0, code, self.said)
        code, result = self.run_command('thaw', 'one')
        self.assertEqual((0, 0), (code, result['thawed']))
        self.assertEqual(3, self.run_command('ping', 'three')[0])

        self.domain.destroy()
        self.assertEqual(3, self.run_command('ping', 'one')[0])

    def writes(self) -> int:
        """How often the guest has said that it wrote something."""
        with open(self.console(), errors='replace') as f:
            return f.read().count('@test wrote')

    def test_freeze(self):
        """Frozen as the guest sees it: who writes waits."""
        self.in_guest('/bin/sh', '-c', 'while :; do echo x > /data/x && sync; '
                                       'echo @test wrote > /dev/console; '
                                       'usleep 100000; done')
        libvirtd.wait_for(lambda: self.writes() > 2, 'writing guest')
        code, result = self.run_command('freeze', 'one')
        self.assertEqual((0, 1), (code, result['frozen']), self.said)
        before = self.writes()
        code, result = self.run_command('show', 'one')
        self.assertEqual((2, 'frozen'), (code, result['state']))
        code, result = self.run_command('ping', 'one')
        self.assertEqual((0, True), (code, result['answers']))
        # Not thawed for another's freeze either.
        self.assertEqual(2, self.run_command('freeze', 'one')[0])
        self.assertIn('frozen already', self.said)
        # What was on its way is one write at most.
        self.assertLessEqual(self.writes(), before + 1)
        code, result = self.run_command('thaw', 'one')
        self.assertEqual((0, 1), (code, result['thawed']), self.said)
        libvirtd.wait_for(lambda: self.writes() > before + 3,
                          'guest that writes again')
        self.assertEqual(State.CONNECTED, client.look(self.domain).state)
        with open(self.console(), errors='replace') as f:
            said = f.read()
        self.assertLess(said.index('@nke fsfreeze freeze'),
                        said.index('@nke fsfreeze thaw'))

    def start_writing(self) -> None:
        self.in_guest('/bin/sh', '-c', 'while :; do echo x > /data/x && sync; '
                                       'echo @test wrote > /dev/console; '
                                       'usleep 100000; done')
        libvirtd.wait_for(lambda: self.writes() > 2, 'writing guest')

    def frozen(self) -> bool:
        return client.Agent(self.domain, 10).is_frozen()

    def test_freeze_for(self):
        """And all is well again."""
        self.start_writing()
        code, result = self.run_command('freeze', 'one', '--for', '3')
        self.assertEqual((0, True, True), (
            code, result['frozen_until_the_end'], result['thawed']),
            self.said)
        self.assertGreaterEqual(result['frozen_seconds'], 3)
        self.assertFalse(self.frozen())
        before = self.writes()
        libvirtd.wait_for(lambda: self.writes() > before + 3,
                          'guest that writes again')

    def test_freeze_for_and_killed(self):
        """SIGKILL: the guest is thawed anyway."""
        self.start_writing()
        for number in (signal.SIGKILL, signal.SIGTERM):
            process = subprocess.Popen(
                self.command('freeze', 'one', '--for', '600'),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert process.stderr is not None
            self.assertIn('frozen for 600 s', process.stderr.readline())
            self.assertTrue(self.frozen())
            # A snapshot needs it, as far as another command knows.
            self.assertEqual(2, self.run_command('thaw', 'one')[0])
            self.assertIn('--force', self.said)
            started = time.monotonic()
            process.send_signal(number)
            libvirtd.wait_for(lambda: not self.frozen(), 'thaw')
            process.communicate()
            self.addDetail(f'thawed after signal {number}',
                           content.text_content(
                               f'{time.monotonic() - started:.2f} s'))
            before = self.writes()
            libvirtd.wait_for(lambda: self.writes() > before + 3,
                              'guest that writes again')

    def test_paused(self):
        self.domain.suspend()
        code, result = self.run_command('ping', 'one')
        self.assertEqual((2, False), (code, result['answers']))
        self.assertIn('The guest is paused', result['problem'])
        code, rows = self.run_command('list')
        self.assertEqual((0, [('one', 'paused')]), (
            code, [(row['name'], row['state']) for row in rows]))
        self.domain.resume()
        self.assertEqual(0, self.run_command('ping', 'one')[0])

    def test_stopped(self):
        """SIGSTOP: libvirt was in sync, so nothing but the answer lacks."""
        client.Agent(self.domain).ping()
        self.in_guest('/bin/sh', '-c', 'killall -STOP qemu-ga; sleep 25; '
                                       'killall -CONT qemu-ga')
        agent = client.Agent(self.domain, 2)
        # The kill may come after the first answer.
        libvirtd.wait_for(
            lambda: isinstance(self.timed('first', agent.ping), Exception),
            'stopped agent')
        self.assertLess(self.times['first'], 2 + _SLACK)
        for name, what in (
                ('ping', agent.ping), ('freeze', agent.freeze),
                ('look', lambda: client.look(self.domain, 2)),
                ('fstrim', lambda: agent.fstrim(timeout=2))):
            found = self.timed(name, what)
            self.assertLess(self.times[name], 2 + _SYNC + _SLACK)
            if name == 'look':
                self.assertEqual(State.NOT_ANSWERING, found.state)
            else:
                self.assertEqual(Fault.NO_ANSWER, found.fault)
        # And with libvirt's response time-out, which the driver sets, the
        # sync is no longer than that.
        self.domain.agentSetResponseTimeout(1)
        self.timed('ping, response time-out 1', agent.ping)
        self.assertLess(self.times['ping, response time-out 1'], 1 + _SLACK)
        self.domain.agentSetResponseTimeout(
            libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_DEFAULT)
        libvirtd.wait_for(
            lambda: not isinstance(self.timed('x', agent.ping), Exception),
            'agent that continues')
        print('SIGSTOP, seconds blocked:', self.times, file=sys.stderr)


class FakeAgentTestCase(AgentTestCase):

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
        self.assertLess(self.times[name], 2 + _SYNC + _SLACK, name)
        return found

    def recovered(self, name: str) -> None:
        """The agent is honest again; libvirt may have given it up."""
        found = self.lie(f'{name}, then honest', self.fake.honest)
        if isinstance(found, errors.AgentError):
            self.assertEqual(Fault.GIVEN_UP, found.fault, f'{name}: {found}')
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
            self.assertEqual(Fault.NONSENSE, found.fault, f'{name}: {found}')
            self.assertTrue(str(found).isprintable())
            self.recovered(name)
        error = self.lie('refusal', fake.raw(
            b'{"error": {"class": "GenericError", "desc": "\\u001b[31mno"}}'
            b'\n'))
        self.assertEqual(Fault.REFUSED, error.fault)
        self.assertTrue(str(error).endswith('It says: [31mno'), str(error))
        print('wrong answers, seconds blocked:', max(self.times.values()),
              file=sys.stderr)

    def test_times(self):
        """Late, never, endless, and wrong where libvirt itself asks."""
        fake = self.fake
        self.assertEqual('7.2.22', self.agent.info().version)
        sync = min(_SYNC, 2) if (
            self.connection.getLibVersion() >= _SHORT_SYNC) else _SYNC

        late = fake.raw(b'{"return": {"version": "late", '
                        b'"supported_commands": []}}\n')

        def after_time(request: dict[str, Any]) -> None:
            if request['execute'] != 'guest-sync':
                # Within the next question's wait for the sync.
                time.sleep(2 + sync / 4)
            late(request)

        self.assertEqual(Fault.NO_ANSWER,
                         self.lie('late', after_time).fault)
        self.assertLess(self.times['late'], 2 + _SLACK)
        # The late answer is not taken for that of the next question.
        self.assertEqual('7.2.22',
                         self.lie('after late', fake.honest).version)

        self.assertEqual(Fault.NO_ANSWER,
                         self.lie('never', fake.silent).fault)
        self.assertLess(self.times['never'], 2 + _SLACK)
        # Not in sync any more, so libvirt waits for the sync.
        self.assertEqual(Fault.NO_ANSWER,
                         self.lie('never again', fake.silent).fault)
        self.assertLess(self.times['never again'], sync + _SLACK)

        def wrong_sync(request: dict[str, Any]) -> None:
            if request['execute'] == 'guest-sync':
                time.sleep(sync - 1)
                fake.reply(1)

        self.assertEqual(Fault.NO_ANSWER,
                         self.lie('wrong sync', wrong_sync).fault)
        self.recovered('wrong sync')
        self.lie('never', fake.silent)

        def refused_sync(request: dict[str, Any]) -> None:
            if request['execute'] == 'guest-sync':
                time.sleep(sync - 1)
                fake.send(b'{"error": {"class": "x", "desc": "y"}}\n')

        self.assertEqual(Fault.NO_ANSWER,
                         self.lie('refused sync', refused_sync).fault)
        self.recovered('refused sync')
        self.lie('never', fake.silent)

        def slow_sync(request: dict[str, Any]) -> None:
            if request['execute'] == 'guest-sync':
                time.sleep(sync - 1)
                fake.honest(request)

        # The most that can be had: both waits, nearly in full.
        self.assertEqual(Fault.NO_ANSWER,
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
        self.assertEqual(Fault.NONSENSE, error.fault)
        # Until libvirt has hung up the next question meets the same answer.
        fake.answer = fake.honest
        libvirtd.wait_for(
            lambda: getattr(self.timed('after endless', self.agent.info),
                            'fault', None) is not Fault.NONSENSE,
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
        self.assertEqual((Fault.NO_ANSWER, False),
                         (error.fault, error.left_frozen))
        asked = [name for name in self.fake.requests if name != 'guest-sync']
        self.assertEqual(
            ['guest-fsfreeze-status', 'guest-fsfreeze-freeze',
             'guest-fsfreeze-thaw', 'guest-fsfreeze-status'], asked)
        self.assertLess(self.times['late freeze'], 4 + _SLACK)

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
        self.assertLess(self.times['dead freeze'], 2 + 6 + _SYNC + _SLACK)
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
                        2 + _SYNC + _SLACK + 3)
