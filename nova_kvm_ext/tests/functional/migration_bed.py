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


"""Two hosts on this machine and one guest that moves to and fro.

Two private libvirts, each a host to the other. The guest is that of
:mod:`nova_kvm_ext.tests.functional.writer`, emulated, which writes to its
memory as it is told. Its disk is shared by both, and only read.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import os
import socket
import tempfile
import threading
import time
from typing import Any
import uuid

import fixtures
import libvirt

from nova_kvm_ext.tests.functional import libvirtd
from nova_kvm_ext.tests.functional import writer

_DOMAIN = """
<domain type='qemu'>
  <name>{uuid}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{mib}</memory>
  <os><type>hvm</type></os>
  <features><acpi/></features>
  <cpu mode='custom'><model>qemu64</model></cpu>
  <devices>
    <controller type='usb' model='none'/>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='{image}'/>
      <target dev='vda' bus='virtio'/>
      <shareable/>
    </disk>
    <serial type='pty'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""

# As Nova moves a guest. The disk is the same file on both hosts, which libvirt
# cannot know.
FLAGS = (libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER |
         libvirt.VIR_MIGRATE_PERSIST_DEST |
         libvirt.VIR_MIGRATE_UNDEFINE_SOURCE | libvirt.VIR_MIGRATE_UNSAFE)

POLL = 0.5
"""Seconds between two looks at the job, as Nova looks."""


@dataclasses.dataclass
class Move:
    """What happened to a live migration.

    :ivar samples: what virDomainGetJobStats() said each time
    :ivar end: statistics with which libvirt said that it is completed
    :ivar error: libvirt's, where it failed or was aborted
    """

    samples: list[dict[str, Any]]
    end: dict[str, Any]
    error: str = ''


def serve_events() -> None:
    """Have libvirt's events served in a thread; before any connection."""
    # What fails is handled, and not printed.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()

    def serve() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=serve, daemon=True).start()


def _free_port() -> int:
    """Each libvirt here thinks that it has all of its ports for itself."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return int(probe.getsockname()[1])


class Bed(fixtures.Fixture):
    """The two hosts and the guest, which has booted.

    :param mib: the guest's memory
    :param hosts: 1 for a guest that is not moved
    """

    def __init__(self, mib: int = 128, hosts: int = 2) -> None:
        super().__init__()
        self._mib = mib
        self._count = hosts
        self.uuid = str(uuid.uuid4())

    def setUp(self) -> None:
        # Not in _setUp: there a skip would come out as an error.
        self.hosts = [
            libvirtd.PrivateLibvirt(qemu_user='root',
                                    host_uuid=str(uuid.uuid4()))
            for _ in range(self._count)]
        super().setUp()

    def _setUp(self) -> None:
        for host in self.hosts:
            self.useFixture(host)
        directory = tempfile.TemporaryDirectory(dir='/var/tmp')
        self.addCleanup(directory.cleanup)
        # Calls that wait, such as migrate and ask the agent, do not hold up
        # others of a connection of libvirt; but a host that hangs would.
        self.connections = [libvirt.open(host.uri) for host in self.hosts]
        for connection in self.connections:
            self.addCleanup(connection.close)
        self.at = 0
        self.addCleanup(self._destroy)
        image = os.path.join(directory.name, 'writer.raw')
        with open(image, 'wb') as file:
            file.write(writer.disk(self._mib))
        self.domain = self.connections[0].createXML(_DOMAIN.format(
            uuid=self.uuid, mib=self._mib, image=image))
        # It may take its time to be there.
        self.stop_writing()

    def _destroy(self) -> None:
        for connection in self.connections:
            for domain in connection.listAllDomains():
                with contextlib.suppress(libvirt.libvirtError):
                    domain.destroy()

    def write(self, mib: int, mib_per_second: float,
              at_random: bool = False) -> None:
        """Have the guest write to so much memory, again and again."""
        writer.tell(self.domain, mib, mib_per_second, at_random)

    def stop_writing(self) -> None:
        """Have it write nothing.

        :raises TimeoutError: it does not answer
        """
        writer.tell(self.domain, 1, 0)

    def move(self, bandwidth: int, look: Callable[[dict[str, Any]], None],
             flags: int = 0) -> Move:
        """Move the guest to the other host.

        :param bandwidth: MiB a second
        :param look: is called with the job's statistics each time
        """
        connection = self.connections[self.at]
        end: dict[str, Any] = {}
        callback = connection.domainEventRegisterAny(
            self.domain, libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
            lambda _connection, _domain, stats, _opaque: end.update(stats),
            None)
        move = Move([], end)

        def migrate() -> None:
            try:
                self.domain.migrateToURI3(self.hosts[1 - self.at].uri, {
                    libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: bandwidth,
                    libvirt.VIR_MIGRATE_PARAM_URI:
                        f'tcp://127.0.0.1:{_free_port()}',
                }, FLAGS | flags)
            except libvirt.libvirtError as e:
                move.error = str(e)

        thread = threading.Thread(target=migrate)
        thread.start()
        try:
            while thread.is_alive():
                with contextlib.suppress(libvirt.libvirtError):
                    stats = self.domain.jobStats()
                    move.samples.append(stats)
                    look(stats)
                time.sleep(POLL)
        finally:
            thread.join()
            # libvirt's word of the end may come after that of the call.
            until = time.monotonic() + 10
            while not (end or move.error or time.monotonic() > until):
                time.sleep(POLL)
            connection.domainEventDeregisterAny(callback)
        if not move.error:
            self.at = 1 - self.at
            self.domain = self.connections[self.at].lookupByUUIDString(
                self.uuid)
        return move
