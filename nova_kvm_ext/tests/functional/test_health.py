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

"""Each thing that nova-compute needs ends; how soon a probe sees it.

The driver runs in a process of its own on a private libvirt. Where minutes
would pass, the state that it really wrote is judged by a clock that has gone
on. With the name of a file in NOVA_KVM_EXT_HEALTH_TABLE the measured times are
appended to it.
"""

import json
import os
import signal
import subprocess
import sys
import time

from oslotest import base

from nova_kvm_ext.health import probe
from nova_kvm_ext.health import verdict
from nova_kvm_ext.tests.functional import libvirtd
from nova_kvm_ext.tests.functional import test_agent_driver


class HealthTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.libvirt = self.useFixture(libvirtd.PrivateLibvirt())
        top = self.libvirt.instances_path
        self.state_path = os.path.join(top, 'state')
        self.directory = os.path.join(top, 'nova')
        self.config = os.path.join(top, 'nova.conf')
        for path in self.state_path, self.directory:
            os.mkdir(path)
        with open(self.config, 'w') as f:
            f.write(f'[libvirt]\nconnection_uri = {self.libvirt.uri}\n'
                    f'virt_type = qemu\ncpu_mode = none\n')
        self.driver = test_agent_driver.DriverProcess(
            [self.directory, self.state_path, self.config],
            os.path.join(top, 'driver.log'))
        self.addCleanup(self.driver.end)

    def ask(self):
        """Exit code and first line of the real command."""
        done = subprocess.run(
            [sys.executable, '-m', 'nova_kvm_ext.cmd.entry', 'host', 'health',
             '--state-path', self.state_path], capture_output=True, text=True)
        self.assertEqual('', done.stderr)
        return done.returncode, done.stdout.splitlines()[0]

    def seen(self, what, code, words):
        """Wait until a probe says so.

        :returns: the seconds since this was called
        """
        began = time.monotonic()
        answer = self.ask()
        while answer[0] != code or words not in answer[1]:
            self.assertLess(time.monotonic() - began, 60, answer)
            time.sleep(0.1)
            answer = self.ask()
        seconds = time.monotonic() - began
        table = os.environ.get('NOVA_KVM_EXT_HEALTH_TABLE')
        if table:
            with open(table, 'a') as f:
                f.write(json.dumps([what, round(seconds, 2), *answer]) + '\n')
        return seconds

    def later(self, seconds):
        """Name and result of each part, were it as it is after so long."""
        state = probe.read(self.state_path)
        return {part.name: part.result for part in probe.judge_here(
            state, probe.clock() + seconds)}

    def running(self):
        self.driver.do('init_host')
        self.driver.do('settle')
        state = probe.read(self.state_path)
        self.assertEqual('PASS', self.later(0)[verdict.NOVA_COMPUTE])
        self.assertIs(True, state['libvirt']['answers'])
        return state

    def test_libvirt_killed_and_back(self):
        self.running()
        for pid in self.libvirt._libvirtd():
            os.kill(pid, signal.SIGKILL)
        # libvirt's client tells Nova at once.
        self.assertLess(
            self.seen('libvirtd killed', 2, 'FAIL libvirt: '), 30)
        self.assertRaises(test_agent_driver.DriverError, self.driver.do,
                          'settle')
        self.assertIn('FAIL libvirt: it does not answer, since',
                      self.ask()[1])
        # nova-compute itself is well.
        self.assertEqual('PASS', self.later(0)[verdict.NOVA_COMPUTE])
        self.libvirt.start_libvirtd()
        self.driver.do('settle')
        self.assertEqual('PASS', self.later(0)[verdict.LIBVIRT])

    def test_libvirt_hangs(self):
        self.running()
        pids = self.libvirt._libvirtd()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            # Nova asks libvirt for its nodes first, and hangs there.
            self.driver.send('settle')
            time.sleep(1)
            # The probe itself does not hang.
            self.ask()
            last = probe.read(self.state_path)['update']['finished']
            for seconds, result in ((120, 'PASS'), (122, 'WARN'),
                                    (182, 'FAIL')):
                parts = self.later(last + seconds - probe.clock() - 0.5)
                self.assertEqual(result, parts[verdict.NOVA_COMPUTE])
            self.assertEqual('UNKNOWN', parts[verdict.LIBVIRT])
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        self.driver.answer()
        self.assertEqual('PASS', self.later(0)[verdict.LIBVIRT])

    def test_nova_compute_stopped_killed_and_idle(self):
        state = self.running()
        pid = state['process']['pid']
        # Nobody calls the driver: RabbitMQ, nova-conductor or the database
        # is gone, or the service hangs.
        self.assertEqual('PASS', self.later(100)[verdict.NOVA_COMPUTE])
        self.assertEqual('WARN', self.later(121)[verdict.NOVA_COMPUTE])
        self.assertEqual('FAIL', self.later(181)[verdict.NOVA_COMPUTE])
        os.kill(pid, signal.SIGSTOP)
        self.seen('nova-compute stopped', 2, 'is stopped')
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGKILL)
        self.seen('nova-compute killed', 2, 'has ended')
        self.assertEqual('UNKNOWN', self.later(0)[verdict.LIBVIRT])

    def test_the_host_breaks_and_is_mended(self):
        state = self.running()
        self.assertGreater(len(state['host_check']['results']), 15)
        instances = os.path.join(self.directory, 'instances')
        os.rename(instances, instances + '-away')
        try:
            self.driver.send('settle')
            self.seen('host check FAIL, from the next update', 2, 'KVM404')
            try:
                self.driver.answer()
            except test_agent_driver.DriverError:
                # Nova needs the directory too.
                pass
        finally:
            os.rename(instances + '-away', instances)
        self.driver.do('settle')
        self.assertEqual('PASS', self.later(0)[verdict.HOST_CHECK])
