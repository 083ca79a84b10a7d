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

"""A running guest whose QEMU hangs: the service starts and works all the same.
"""

import contextlib
import os
import signal
import threading
import time
import uuid

import libvirt
from oslotest import base

from nova_kvm_ext.guests import descriptions
from nova_kvm_ext.tests.functional import libvirtd
from nova_kvm_ext.tests.functional import test_agent_driver

_DOMAIN = """
<domain type='qemu'>
  <name>{uuid}</name><uuid>{uuid}</uuid>
  <memory unit='MiB'>16</memory>
  <os><type>hvm</type></os>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""

_LONG = 60.0
"""Seconds that neither may take on a busy machine. With a call that waits for
that QEMU both would take for ever."""

_NOT_ASKED = 9_001_000
"""The libvirt from which on an update asks no QEMU, so that none holds it up
(guests/descriptions)."""


class HangingMonitorTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.libvirt = self.useFixture(libvirtd.PrivateLibvirt())
        connection = libvirt.open(self.libvirt.uri)
        self.addCleanup(connection.close)
        self.version = connection.getLibVersion()
        self.guests = [str(uuid.uuid4()) for _ in range(3)]
        for name in self.guests:
            connection.createXML(_DOMAIN.format(uuid=name),
                                 libvirt.VIR_DOMAIN_START_PAUSED)

    def stop_qemu(self, name: str) -> None:
        pid = next(
            pid for pid, arguments in libvirtd.processes_of(
                self.libvirt.directory).items()
            if any(f'guest={name},' in argument for argument in arguments))
        os.kill(pid, signal.SIGSTOP)
        # Else libvirt could not end it.
        self.addCleanup(os.kill, pid, signal.SIGCONT)

    def ask(self, name: str) -> None:
        """Have libvirt wait for a QEMU, for longer than any that is well."""
        connection = libvirt.open(self.libvirt.uri)
        domain = connection.lookupByName(name)

        def question() -> None:
            with contextlib.suppress(libvirt.libvirtError):
                connection.domainListGetStats(
                    [domain], libvirt.VIR_DOMAIN_STATS_VCPU)

        threading.Thread(target=question, daemon=True).start()
        time.sleep(descriptions.HANGS + 1)

    @staticmethod
    def said(directory: str) -> list[str]:
        """The lines that name guests whose QEMU hangs."""
        with open(os.path.join(directory, 'nova.log')) as f:
            return [line for line in f if 'KVML510' in line]

    def test_start_and_update_go_on(self):
        top = self.libvirt.instances_path
        directory = os.path.join(top, 'nova')
        os.mkdir(directory)
        config = os.path.join(top, 'nova.conf')
        with open(config, 'w') as f:
            f.write(f'[libvirt]\nconnection_uri = {self.libvirt.uri}\n'
                    f'virt_type = qemu\ncpu_mode = none\n')
        hanging = self.guests[1]
        self.stop_qemu(hanging)
        driver = test_agent_driver.DriverProcess(
            [directory, directory, config], os.path.join(top, 'driver.log'))
        self.addCleanup(driver.end)
        started, _ = driver.do('init_host')
        first, _ = driver.do('settle')
        # Time for libvirt to come to that guest.
        time.sleep(2)
        second, _ = driver.do('settle')
        for seconds in (started, first, second):
            self.assertLess(seconds, _LONG)
        said = self.said(directory)
        if self.version >= _NOT_ASKED:
            # Nobody waits for that QEMU, so that nobody knows.
            self.assertEqual([], said)
            self.ask(hanging)
            for _ in range(2):
                self.assertLess(driver.do('settle')[0], _LONG)
            said = self.said(directory)
        self.assertEqual(1, len(said))
        self.assertIn(hanging, said[0])
        self.assertNotIn(self.guests[0], said[0])
        self.assertNotIn(self.guests[2], said[0])
