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
import shutil
import subprocess
import sys
import time
from typing import Any

import libvirt
from oslotest import base
from testtools import content

from nova_kvm_ext.boot import testguest
from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import client
from nova_kvm_ext.tests.functional import libvirtd

Fault = errors.AgentFault
State = client.AgentState
XML = """
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
CHANNEL = ("<channel type='unix'><target type='virtio' "
           "name='org.qemu.guest_agent.0'/></channel>")

# What libvirt's own guest-sync may add to a time-out where the domain has no
# response time-out. Libvirt 11.3 (not 9.0) takes the command's own time-out
# where that is shorter.
SYNC = 5.0

# For a busy machine.
SLACK = 2.0


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

    def start(self, name: str = 'one', channel: str = CHANNEL
              ) -> libvirt.virDomain:
        disk = os.path.join(self.libvirt.instances_path, f'{name}.raw')
        shutil.copy(self.disk, disk)
        return self.connection.createXML(XML.format(
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
