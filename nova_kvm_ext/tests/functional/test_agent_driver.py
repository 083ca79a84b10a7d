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

"""Guest agents through the real driver: real guests and the real qemu-ga.

The driver runs in a process of its own (driver_process.py), so that it can be
killed, and so that what it is made to wait for does not hold up the test.
"""

import contextlib
import json
import os
import re
import struct
import subprocess
import sys
import time
from typing import Any
import uuid

import libvirt
import libvirt_qemu
from lxml import etree
from oslotest import base
from testtools import content

from nova_kvm_ext.boot import inside
from nova_kvm_ext.boot import testguest
from nova_kvm_ext.guest_agent import channel
from nova_kvm_ext.tests.functional import libvirtd

# Emulated guests on busy machines: nothing waits this long when all is well.
_TIMEOUT = 120

# [kvm_ext] guest_agent_timeout of these tests, in seconds, and what libvirt
# may take on top of it to find out that nobody listens.
_LIMIT = 3
_HANDSHAKE = 5
# Of the machine, with an emulated guest on it: Nova's own work around it.
_SLACK = 4

# Counts in a file, each number on the disk before the next, and on the
# console, so that it can be seen from outside whether it stands still.
_WRITER = ('n=0; while :; do n=$((n+1)); echo $n >> /data/log; sync; '
           'echo "@nke tick $n" > /dev/console; done')


class DriverProcess:
    """The driver in its own process."""

    def __init__(self, arguments: list[str], log: str,
                 enter: list[str] | None = None) -> None:
        self.log = log
        self.longest = 0.0
        with open(log, 'ab') as output:
            self._process = subprocess.Popen(
                [*(enter or ()), sys.executable, '-m',
                 'nova_kvm_ext.tests.functional.driver_process', *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output,
                text=True)

    def send(self, step: str, *arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([step, *arguments]) + '\n')
        self._process.stdin.flush()

    def answer(self) -> tuple[float, Any]:
        """Seconds and result of the step that was sent.

        :raises DriverError: the step failed
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError('the driver process ended')
        seconds, result, *error = json.loads(line)
        if error:
            raise DriverError(seconds, *error)
        return seconds, result

    def do(self, step: str, *arguments: Any) -> tuple[float, Any]:
        self.send(step, *arguments)
        return self.answer()

    def kill(self) -> None:
        self._process.kill()
        self.end()

    def end(self) -> None:
        self._process.communicate(timeout=_TIMEOUT)


class DriverError(Exception):

    def __init__(self, seconds: float, name: str, text: str) -> None:
        super().__init__(f'{name}: {text}')
        self.seconds = seconds
        self.name = name
        self.text = text


class AgentDriverTestCase(base.BaseTestCase):

    properties = {'hw_qemu_guest_agent': 'yes'}

    def setUp(self):
        super().setUp()
        self.libvirt = self.useFixture(libvirtd.PrivateLibvirt())
        self.addOnException(self.show)
        self.numbers: dict[str, float] = {}
        top = self.libvirt.instances_path
        self.state_path = os.path.join(top, 'state')
        os.mkdir(self.state_path)
        self.nova_log = os.path.join(top, 'driver.log')
        self.config = os.path.join(top, 'nova.conf')
        with open(self.config, 'w') as f:
            f.write(f'[libvirt]\nconnection_uri = {self.libvirt.uri}\n'
                    f'virt_type = qemu\ncpu_mode = none\n'
                    f'[kvm_ext]\nguest_agent_timeout = {_LIMIT}\n')
        guest = testguest.build(os.path.join(top, 'cache'))
        if not guest.agent:
            self.skipTest('qemu-guest-agent is not installed')
        self.image = guest.path
        self.connection = libvirt.open(self.libvirt.uri)
        self.addCleanup(self.connection.close)
        self.uuid = str(uuid.uuid4())

    def show(self, exc_info: Any) -> None:
        for path in (lambda: self.nova_log, self.console_path):
            # What a test that fails early has not made. An error in here
            # would end the worker with all its tests.
            with contextlib.suppress(OSError, AttributeError):
                with open(path(), errors='replace') as f:
                    self.addDetail(os.path.basename(path()),
                                   content.text_content(f.read()[-60000:]))

    def start_driver(self) -> DriverProcess:
        """A service starts, with the state of the one before it."""
        self.directory = os.path.join(
            self.libvirt.instances_path, f'nova-{uuid.uuid4().hex[:8]}')
        os.mkdir(self.directory)
        driver = DriverProcess(
            [self.directory, self.state_path, self.config], self.nova_log)
        self.addCleanup(driver.end)
        driver.do('init_host')
        return driver

    def boot(self, **properties: str) -> DriverProcess:
        """A driver, and a guest whose agent answers and whose writer runs."""
        driver = self.start_driver()
        driver.do('spawn', self.uuid, self.image, self.properties | properties)
        self.guest_directory = self.directory
        self.domain = self.connection.lookupByUUIDString(self.uuid)
        self.wait_for_agent()
        return driver

    def wait_for_agent(self) -> None:
        agent = inside.Agent(self.domain, timeout=2)
        libvirtd.wait_for(
            lambda: channel.connected(self.domain.XMLDesc(0)) and
            agent.ping() is not None, 'agent that answers')

    def run_inside(self, script: str) -> None:
        """Start a shell script in the guest, by its agent."""
        libvirt_qemu.qemuAgentCommand(self.domain, json.dumps({
            'execute': 'guest-exec', 'arguments': {
                'path': '/bin/busybox', 'arg': ['sh', '-c', script]}}), 10, 0)

    def put_script(self, path: str, script: str) -> None:
        """Have the agent run another script for one of its commands."""
        self.run_inside(
            f'(echo "#!/bin/busybox sh"; echo \'{script}\') > {path}; '
            f'echo "@nke wrote {path}" > /dev/console')
        libvirtd.wait_for(lambda: f'@nke wrote {path}' in self.console(),
                          'script in the guest')

    def agent(self, command: str) -> Any:
        return json.loads(libvirt_qemu.qemuAgentCommand(
            self.domain, json.dumps({'execute': command}), 10, 0))['return']

    def stop_agent(self) -> None:
        """SIGSTOP: it is there and does not answer."""
        with contextlib.suppress(libvirt.libvirtError):
            self.run_inside('kill -STOP $(pidof qemu-ga); '
                            'echo "@nke stopped" > /dev/console')
        libvirtd.wait_for(lambda: '@nke stopped' in self.console(),
                          'agent that is stopped')

    def write(self) -> None:
        self.run_inside(_WRITER)
        self.wait_for_tick()

    def console_path(self) -> str:
        return os.path.join(self.guest_directory, 'instances', self.uuid,
                            'console.log')

    def console(self) -> str:
        with open(self.console_path(), errors='replace') as f:
            return f.read()

    def ticks(self) -> int:
        found = re.findall(r'@nke tick (\d+)', self.console())
        return int(found[-1]) if found else 0

    def wait_for_tick(self) -> None:
        before = self.ticks()
        libvirtd.wait_for(lambda: self.ticks() > before,
                          'writing in the guest')

    def stands_still(self) -> bool:
        """Whether nothing is written in the guest for two seconds."""
        # What was written when it froze may still be on its way.
        time.sleep(0.5)
        before = self.ticks()
        time.sleep(2)
        return self.ticks() == before

    def ledger(self) -> list[str]:
        return [name for _, _, names in os.walk(
            os.path.join(self.state_path, 'kvm-ext-frozen'))
            for name in names]

    def said(self) -> str:
        with open(os.path.join(self.directory, 'nova.log')) as f:
            return f.read()

    def thawed(self) -> None:
        self.assertEqual('thawed', self.agent('guest-fsfreeze-status'))
        self.assertEqual([], self.ledger())

    def check_snapshot(self, clean: bool) -> None:
        """Check the file system in the snapshot that was uploaded."""
        raw = os.path.join(self.libvirt.instances_path, 'snapshot.raw')
        subprocess.run(
            ['qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw',
             self.image + '.snapshot', raw], check=True)
        with open(raw, 'rb') as image:
            start, length = struct.unpack('<II', image.read(512)[470:478])
            image.seek(start * 512)
            data = raw + '.data'
            with open(data, 'wb') as output:
                output.write(image.read(length * 512))
        header = subprocess.run(['dumpe2fs', '-h', data], check=True,
                                capture_output=True, text=True).stdout
        # A file system that was not frozen has its last writes in the
        # journal only.
        self.assertEqual(clean, 'needs_recovery' not in header, header)
        if clean:
            found = subprocess.run(['e2fsck', '-fn', data],
                                   capture_output=True, text=True)
            self.assertEqual(0, found.returncode, found.stdout)
            written = subprocess.run(
                ['debugfs', '-R', 'cat log', data], check=True,
                capture_output=True, text=True).stdout.split()
            self.assertEqual([str(n + 1) for n in range(len(written))],
                             written)
            self.assertNotEqual([], written)

    def report(self, **numbers: float) -> None:
        """Numbers worth knowing, for who runs the test."""
        text = ', '.join(f'{key} {value:.2f} s'
                         for key, value in numbers.items())
        self.addDetail('numbers', content.text_content(text))
        path = os.environ.get('NOVA_KVM_EXT_NUMBERS')
        if path:
            with open(path, 'a') as f:
                f.write(f'{self.id()}: {text}\n')


class WorkingAgentTestCase(AgentDriverTestCase):

    def frozen_seconds(self) -> float:
        return float(re.findall(r'was frozen for ([0-9.]+) s',
                                self.said())[-1])

    def test_freeze_and_thaw(self):
        driver = self.boot()
        found = driver.do('diagnostics')[1]['guest_agent']
        self.assertEqual('connected', found['state'])
        self.assertTrue(found['version'])
        self.assertEqual(['/data'], [
            fs['mountpoint'] for fs in found['filesystems']])
        self.write()
        freeze, _ = driver.do('quiesce')
        self.assertEqual([self.uuid], self.ledger())
        self.assertEqual('frozen', self.agent('guest-fsfreeze-status'))
        self.assertTrue(self.stands_still())
        self.assertEqual(
            'frozen', driver.do('diagnostics')[1]['guest_agent']['state'])
        thaw, _ = driver.do('unquiesce')
        self.wait_for_tick()
        self.thawed()
        self.assertGreater(self.frozen_seconds(), 2)
        self.report(freeze=freeze, thaw=thaw)

    def test_snapshot_while_the_guest_writes(self):
        driver = self.boot()
        self.write()
        driver.do('snapshot')
        self.wait_for_tick()
        self.thawed()
        self.assertIn('@nke fsfreeze freeze', self.console())
        self.check_snapshot(clean=True)
        self.assertTrue(self.domain.isPersistent())
        frozen = self.frozen_seconds()
        self.assertLess(frozen, 5)
        self.report(frozen=frozen)

    def test_three_snapshots_at_once(self):
        """As of three volumes of a server: one freeze, one thaw."""
        driver = self.boot()
        self.write()
        directory = os.path.join(self.libvirt.instances_path, 'snapshots')
        os.mkdir(directory)
        os.chmod(directory, 0o777)
        seconds, problems = driver.do('snapshots_at_once', 3, directory)
        self.assertEqual(['', '', ''], problems, self.said())
        self.wait_for_tick()
        self.thawed()
        self.assertEqual(3, len(os.listdir(directory)))
        self.assertEqual(1, self.console().count('@nke fsfreeze freeze'))
        self.assertNotIn('Do not rely', self.said())
        self.report(all=seconds, frozen=self.frozen_seconds())

    def test_error_between_freeze_and_thaw(self):
        driver = self.boot()
        self.write()
        driver.do('break_next', 'abort_job')
        error = self.assertRaises(DriverError, driver.do, 'snapshot')
        self.assertIn('broken by the test', error.text)
        self.assertIn('@nke fsfreeze freeze', self.console())
        self.wait_for_tick()
        self.thawed()
        self.report(frozen=self.frozen_seconds())

    def test_guest_that_thaws_itself(self):
        """Its agent says that it is frozen still, and then thaws nothing."""
        driver = self.boot()
        # While it is frozen the agent starts no program.
        self.run_inside(
            'until fsfreeze --unfreeze /data; do sleep 1; done; '
            'echo "@nke unfrozen" > /dev/console')
        driver.do('quiesce')
        libvirtd.wait_for(lambda: '@nke unfrozen' in self.console(),
                          'thaw in the guest')
        self.assertEqual('frozen', self.agent('guest-fsfreeze-status'))
        driver.do('unquiesce')
        self.thawed()
        self.assertIn('Do not rely on that snapshot', self.said())

    def test_driver_killed_between_freeze_and_thaw(self):
        driver = self.boot()
        self.write()
        driver.do('quiesce')
        driver.kill()
        self.assertTrue(self.stands_still())
        self.assertEqual([self.uuid], self.ledger())
        started = time.monotonic()
        self.start_driver()
        self.wait_for_tick()
        self.report(start=time.monotonic() - started)
        self.thawed()
        self.assertIn('was left frozen', self.said())

    def test_libvirt_dies_between_freeze_and_thaw(self):
        driver = self.boot()
        self.write()
        driver.do('quiesce')
        self.libvirt.stop_libvirtd()
        self.assertRaises(DriverError, driver.do, 'unquiesce')
        self.assertEqual([self.uuid], self.ledger())
        self.libvirt.start_libvirtd()
        self.connection = libvirt.open(self.libvirt.uri)
        self.addCleanup(self.connection.close)
        self.domain = self.connection.lookupByUUIDString(self.uuid)

        def settled() -> bool:
            # Nova asks every minute. libvirt may know nothing of the agent
            # yet at the first time.
            driver.do('settle')
            return not self.ledger()

        libvirtd.wait_for(settled, 'guest that is thawed')
        self.wait_for_tick()
        self.thawed()

    def test_freeze_that_ends_late(self):
        driver = self.boot()
        self.write()
        # The agent runs it before it freezes.
        self.put_script('/etc/fsfreeze-hook', '[ $1 = thaw ] || sleep 12; '
                        'echo "@nke late $1" > /dev/console')
        driver.do('set_freeze_timeout', 4)
        error = self.assertRaises(DriverError, driver.do, 'quiesce')
        self.assertEqual('InstanceQuiesceFailed', error.name)
        self.assertEqual([self.uuid], self.ledger())
        libvirtd.wait_for(lambda: '@nke late freeze' in self.console(),
                          'late freeze')
        self.assertTrue(self.stands_still())
        driver.do('settle')
        self.wait_for_tick()
        self.thawed()
        self.report(block=error.seconds)

    def test_shutdown_by_the_agent(self):
        driver = self.boot()
        # So that nothing in the guest hears the power button.
        self.run_inside('kill $(pidof acpid)')
        seconds, down = driver.do('clean_shutdown', 30)
        self.assertTrue(down)
        # Nova counts a domain that libvirt is ending as down, too.
        libvirtd.wait_for(lambda: not self.domain.isActive(),
                          'end of the domain')
        self.report(shutdown=seconds)

    def test_always_and_an_image_that_says_nothing(self):
        with open(self.config, 'a') as f:
            f.write('guest_agent = always\n')
        self.properties = {}
        driver = self.boot()
        driver.do('can_quiesce')
        self.write()
        driver.do('snapshot')
        self.thawed()
        self.check_snapshot(clean=True)

    def test_guest_with_novas_own_socket_path(self):
        """One that Nova's own driver has started."""
        driver = self.boot()
        xml = etree.fromstring(self.domain.XMLDesc(
            libvirt.VIR_DOMAIN_XML_MIGRATABLE |
            libvirt.VIR_DOMAIN_XML_SECURE))
        agent, = xml.xpath('devices/channel[target/@name=$name]',
                           name=channel.TARGET_NAME)
        # libvirt's own path does not travel.
        self.assertIsNone(agent.find('source'))
        path = '/var/lib/libvirt/qemu/%s.instance-00000001.sock' % (
            channel.TARGET_NAME)
        agent.insert(0, etree.Element('source', mode='bind', path=path))
        self.domain.destroy()
        self.domain = self.connection.defineXML(
            etree.tostring(xml, encoding='unicode'))
        self.domain.create()
        self.wait_for_agent()
        self.assertIn(path, self.domain.XMLDesc(
            libvirt.VIR_DOMAIN_XML_MIGRATABLE))
        self.write()
        driver.do('quiesce')
        self.assertTrue(self.stands_still())
        driver.do('unquiesce')
        self.wait_for_tick()
        self.thawed()

    def test_clock_after_resume(self):
        driver = self.boot()
        driver.do('suspend_and_resume')
        self.domain = self.connection.lookupByUUIDString(self.uuid)
        self.wait_for_agent()
        now = self.agent('guest-get-time') / 1e9
        self.assertLess(abs(now - time.time()), 5)


class HungAgentTestCase(AgentDriverTestCase):
    """The agent is stopped: it has the channel open and does not answer."""

    def fails(self, driver: DriverProcess, step: str, *arguments: Any
              ) -> DriverError:
        error = self.assertRaises(DriverError, driver.do, step, *arguments)
        self.blocks[step] = error.seconds
        return error

    def setUp(self):
        super().setUp()
        self.blocks: dict[str, float] = {}

    def test_nothing_waits_longer_than_it_may(self):
        driver = self.boot()
        self.stop_agent()
        error = self.fails(driver, 'quiesce')
        self.assertEqual('InstanceQuiesceFailed', error.name)
        error = self.fails(driver, 'password', 'hunter2secret')
        self.assertEqual('InstanceAgentNotEnabled', error.name)
        self.assertIn('does not answer', error.text)
        for step in ('diagnostics', 'settle', 'snapshot', 'state'):
            self.blocks[step], result = driver.do(step)
            if step == 'diagnostics':
                self.assertEqual('not answering',
                                 result['guest_agent']['state'])
        self.report(**self.blocks)
        # Each asks at most twice: the freeze or the command, and a thaw.
        for step, seconds in self.blocks.items():
            if step != 'snapshot':
                self.assertLess(
                    seconds, 2 * (_HANDSHAKE + _LIMIT) + _SLACK, step)
        self.assertNotIn('hunter2secret', self.said())
        self.assertIn('The snapshot is not quiesced', self.said())
        self.check_snapshot(clean=False)
        self.assertEqual('running', driver.do('state')[1])

    def test_running_guests_when_the_service_starts(self):
        """libvirt would wait for ever; seen by a command that hangs."""
        driver = self.boot()
        driver.kill()
        self.domain.agentSetResponseTimeout(-2, 0)
        # Nova's first periodic update comes before the service takes requests.
        self.start_driver().do('settle')
        # The agent answers libvirt's first word and not the command.
        self.put_script('/etc/fsfreeze-hook', 'sleep 600')
        started = time.monotonic()
        error = self.assertRaises(libvirt.libvirtError, self.domain.fsFreeze)
        # In libvirt 9.0's words, or 11.3's.
        self.assertRegex(str(error), 'not responding|command timed out')
        seconds = time.monotonic() - started
        self.assertGreater(seconds, _LIMIT - 1)
        self.assertLess(seconds, _HANDSHAKE + _LIMIT + _SLACK)
        self.report(block=seconds)

    def test_required_quiesce_fails_with_the_reason(self):
        driver = self.boot()
        self.write()
        driver.do('require_quiesce')
        self.stop_agent()
        error = self.fails(driver, 'snapshot')
        self.assertEqual('InstanceQuiesceFailed', error.name)
        self.assertIn('Failed to quiesce instance', error.text)
        self.assertFalse(os.path.exists(self.image + '.snapshot'))
        self.assertEqual('running', driver.do('state')[1])
        self.assertTrue(self.domain.isPersistent())
        self.assertEqual({}, self.domain.blockJobInfo('vda', 0))
        self.wait_for_tick()
        self.report(**self.blocks)

    def test_shutdown_falls_back_to_the_power_button(self):
        driver = self.boot()
        self.stop_agent()
        seconds, down = driver.do('clean_shutdown', 30)
        self.assertTrue(down)
        self.assertLess(seconds, 30)
        self.report(shutdown=seconds)

    def test_shutdown_that_is_heard_and_not_done(self):
        """libvirt itself would wait for 60 s."""
        driver = self.boot()
        self.put_script('/sbin/shutdown', 'sleep 600')
        seconds, down = driver.do('clean_shutdown', 30)
        self.assertTrue(down)
        self.assertLess(seconds, _HANDSHAKE + _LIMIT + _SLACK)
        self.report(shutdown=seconds)


class DeadAgentTestCase(AgentDriverTestCase):

    def test_is_said_to_be_dead(self):
        driver = self.boot()
        self.write()
        # With the loop that would start it anew.
        with contextlib.suppress(libvirt.libvirtError):
            self.run_inside('rm /usr/sbin/qemu-ga; kill $(pidof qemu-ga)')
        libvirtd.wait_for(
            lambda: not channel.connected(self.domain.XMLDesc(0)),
            'end of the agent')
        error = self.assertRaises(DriverError, driver.do, 'password', 'secret')
        self.assertEqual('InstanceAgentNotEnabled', error.name)
        self.assertIn('does not answer', error.text)
        driver.do('require_quiesce')
        error = self.assertRaises(DriverError, driver.do, 'snapshot')
        self.assertIn('is not connected', error.text)
        self.assertEqual([], self.ledger())
        self.wait_for_tick()
        self.assertTrue(self.domain.isPersistent())
        seconds, down = driver.do('clean_shutdown', 30)
        self.assertTrue(down)
