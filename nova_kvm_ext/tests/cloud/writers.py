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


"""Servers that write to their memory as their agent is told to, and move.

The link has a few MiB/s.

QEMU's emulation may miss that a page was written while the page is copied
(QEMU, commit 9458a9a1df1a, "memory: fix race between TCG and accesses to dirty
bitmap", which narrows the race): a guest's kernel was seen to panic after a
migration. Others did not answer any more: the kernel of one looped, with its
interrupts disabled, in a tree of timers that had a node twice. A check whose
guest was harmed says so and takes another guest.
"""

import base64
import re
import time
from typing import Any

from testtools import content

from nova_kvm_ext.tests.cloud import base
from nova_kvm_ext.tests.cloud import test_migration

_OPTIONS: dict[str, object] = {
    # MiB/s: on a busy host a guest that writes as fast as it can writes little
    # more.
    'live_migration_bandwidth': '4',
    'live_migration_permit_auto_converge': 'false'}

_PREPARE = """
echo $$ > /tmp/writer
[ -s /tmp/block ] || head -c 1048576 /dev/urandom > /tmp/block
for i in $(seq 40); do cat /tmp/block; done > /tmp/written
"""

IDLE = ''
FAST = _PREPARE + """
while :; do dd if=/tmp/written of=/tmp/written bs=1M conv=notrunc; done
"""
# Each time to other pages: one that writes the same megabyte again leaves what
# can just be sent in the allowed downtime, or just not, and by the third
# iteration nobody can tell.
SLOW = _PREPARE + """
place=0
while :; do
    dd if=/tmp/block of=/tmp/written bs=1M seek=$place conv=notrunc
    place=$(((place + 1) % 40))
    sleep 2
done
"""
_STOP = 'kill $(cat /tmp/writer); rm -f /tmp/writer'


_HARM = re.compile(r'Kernel panic|\bOops\b|\bBUG: ')
"""What a kernel prints that was harmed. It may end its agent alone."""


_REGISTERS = 3
"""How often the registers of a guest that does not answer are read."""


class Harmed(Exception):
    """QEMU's emulation has harmed a guest."""


class Writing(test_migration.Migrating, base.HostTestCase):
    """With options of the computes changed, so such checks run alone."""

    def options(self, policy: str = 'wait', post_copy: bool = False,
                allowed: str = '', at_once: int = 1) -> None:
        """Have both hosts migrate slowly, with this policy.

        :param allowed: policies that a flavor may ask for
        :param at_once: how many guests may leave a host at once
        """
        for host in (self.first, self.second):
            self.change(host, {
                'DEFAULT': {'max_concurrent_live_migrations': at_once},
                'libvirt': _OPTIONS | {
                    'live_migration_permit_post_copy': str(post_copy)},
                'kvm_ext': {'migration_stalled': policy,
                            'migration_stalled_allowed': allowed}})

    def run_in(self, server: Any, script: str, wait: bool = True) -> str:
        """Run a script in a guest; returns what it printed."""
        pid = self.tell_agent(
            server, 'guest-exec', path='/bin/sh', arg=['-c', script],
            **{'capture-output': True})['pid']

        def ended() -> Any:
            status = self.tell_agent(server, 'guest-exec-status', pid=pid)
            return status if status['exited'] else None
        return base64.b64decode(self.wait(
            'end of a script in the guest', ended).get(
                'out-data', '')).decode() if wait else ''

    def writer(self, script: str) -> Any:
        """A server on the first host that writes to its memory."""
        server = self.boot(host=self.first)
        self.begin(server)
        self.write(server, script)
        return server

    def begin(self, server: Any) -> None:
        """Leave something in the memory of a server that has booted."""
        self.wait_for_agent(server)
        self.run_in(server, f'echo {server.id} > /tmp/mark')

    def write(self, server: Any, script: str) -> None:
        """Have a server write to its memory from now on."""
        if script:
            self.run_in(server, 'rm -f /tmp/written')
            self.run_in(server, script, wait=False)
            self.wait('memory that is written', lambda: self.run_in(
                server, 'du -m /tmp/written').startswith('40'))

    def stop_writing(self, server: Any) -> None:
        self.run_in(server, _STOP)

    def assert_lives(self, server: Any, host: str) -> None:
        """It runs there, and with the memory that it had.

        :raises Harmed: its kernel says that it is broken; or libvirt says
            that it runs and has the agent's channel open, and nothing in it
            answers
        """
        self.assertEqual(host, self.host_of(server))
        self.wait_for_status(server, 'ACTIVE')

        def lives() -> bool:
            if _HARM.search(self.console_file(server)):
                raise Harmed('its kernel is broken')
            return self.agent(server)['state'] == 'connected'
        try:
            self.wait('agent that answers', lives)
        except self.failureException:
            if self._is_silent(server, host):
                raise Harmed('it runs and does not answer') from None
            raise
        self.assertEqual(server.id, self.run_in(
            server, 'cat /tmp/mark').strip())

    def _is_silent(self, server: Any, host: str) -> bool:
        """Whether libvirt says that all is well with it.

        What there is to see of a guest that does not answer is kept.
        """
        name = self.domain(server)
        state = self.on_host(host, ['virsh', 'domstate', name]).strip()
        has_channel = "state='connected'" in self.on_host(
            host, ['virsh', 'dumpxml', name])
        seen = [f'{state}, channel open: {has_channel}']
        for _ in range(_REGISTERS):
            seen.append(self.on_host(
                host, ['virsh', 'domstats', '--vcpu', name], check=False))
            seen.append(self.on_host(
                host, ['virsh', 'qemu-monitor-command', name, '--hmp',
                       'info registers'], check=False))
            time.sleep(1)
        seen.append(self.console_file(server)[-2000:])
        self.addDetail(f'no answer of {server.id}',
                       content.text_content('\n'.join(seen)))
        return state == 'running' and has_channel
