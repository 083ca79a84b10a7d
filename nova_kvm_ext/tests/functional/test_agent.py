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

"""The commands of the guest agent, with a real agent in a guest."""

import os
import signal
import subprocess
import sys
import time

import libvirt
from testtools import content

from nova_kvm_ext.guest_agent import client
from nova_kvm_ext.tests.functional import agents
from nova_kvm_ext.tests.functional import libvirtd


class RealAgentTestCase(agents.AgentTestCase):

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
        self.assertEqual(
            agents.State.CONNECTED, client.look(self.domain).state)
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
        self.assertLess(self.times['first'], 2 + agents.SLACK)
        for name, what in (
                ('ping', agent.ping), ('freeze', agent.freeze),
                ('look', lambda: client.look(self.domain, 2)),
                ('fstrim', lambda: agent.fstrim(timeout=2))):
            found = self.timed(name, what)
            self.assertLess(self.times[name], 2 + agents.SYNC + agents.SLACK)
            if name == 'look':
                self.assertEqual(agents.State.NOT_ANSWERING, found.state)
            else:
                self.assertEqual(agents.Fault.NO_ANSWER, found.fault)
        # And with libvirt's response time-out, which the driver sets, the
        # sync is no longer than that.
        self.domain.agentSetResponseTimeout(1)
        self.timed('ping, response time-out 1', agent.ping)
        self.assertLess(
            self.times['ping, response time-out 1'], 1 + agents.SLACK)
        self.domain.agentSetResponseTimeout(
            libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_DEFAULT)
        libvirtd.wait_for(
            lambda: not isinstance(self.timed('x', agent.ping), Exception),
            'agent that continues')
        print('SIGSTOP, seconds blocked:', self.times, file=sys.stderr)
