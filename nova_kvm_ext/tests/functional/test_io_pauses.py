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

"""Guests that find no space, through the real driver, libvirt and QEMU.

Their disks are on a small file system in the mount namespace of the test's own
libvirt, in which the driver runs, too. Each guest writes more than there is
space for, is paused, and is to finish once there is space: what it then reads
back is compared in the guest by checksums.

NOVA_KVM_EXT_IO_PAUSES is the number of pauses of the long test; without it
each guest is paused once.
"""

import collections
import hashlib
import json
import os
import re
import signal
import time
from typing import Any
import uuid

import libvirt
import libvirt_qemu
from testtools import content

from nova_kvm_ext.guests import hooks
from nova_kvm_ext.guests import pauses
from nova_kvm_ext.guests import reasons
from nova_kvm_ext.guests import resumer
from nova_kvm_ext.tests.functional import libvirtd
from nova_kvm_ext.tests.functional import test_agent_driver

MIB = 1 << 20

WRITTEN = 4
"""MiB that a guest writes in a round."""

# What there is to write is kept in memory, so that nothing but the disk that
# is read back can be compared with it.
_ROUND = """
dd if=/dev/urandom of=/tmp/data bs=1M count={size} 2> /dev/null
want=$(sha256sum < /tmp/data)
dd if=/tmp/data of=/dev/vdb bs=1M seek={offset} conv=fsync 2> /dev/null
rm /tmp/data
echo 3 > /proc/sys/vm/drop_caches
got=$(dd if=/dev/vdb bs=1M skip={offset} count={size} 2> /dev/null | sha256sum)
echo "@nke round {number} $want $got" > /dev/console
"""

# A file system in memory takes no direct I/O before Linux 6.6.
_DISK = """<disk type='file' device='disk'>
<driver name='qemu' type='raw' cache='writeback'/><source file='{path}'/>
<target dev='vdb' bus='virtio'/></disk>"""

IO_ERROR = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)


class Guest:
    """A guest with a second disk on the small file system."""

    def __init__(self, domain: Any, directory: str, disk: str) -> None:
        self.domain = domain
        self.uuid = domain.UUIDString()
        self.disk = disk
        self._console = os.path.join(
            directory, 'instances', self.uuid, 'console.log')
        self._offset = 0
        self.number = 0

    def write(self) -> None:
        """Begin a round, in space of the disk that nothing was written to."""
        self.number += 1
        script = _ROUND.format(size=WRITTEN, offset=self._offset,
                               number=self.number)
        libvirt_qemu.qemuAgentCommand(
            self.domain, json.dumps({
                'execute': 'guest-exec', 'arguments': {
                    'path': '/bin/busybox', 'arg': ['sh', '-c', script]}}),
            60, 0)
        self._offset += WRITTEN

    def console(self) -> str:
        with open(self._console, errors='replace') as f:
            return f.read()

    def verdict(self) -> bool | None:
        """Whether what was written is there; None while it is written."""
        found = re.search(rf'@nke round {self.number} (\w+) +- (\w+) +-',
                          self.console())
        return None if found is None else found[1] == found[2]

    def checksum(self) -> str:
        return re.findall(rf'@nke round {self.number} (\w+)',
                          self.console())[-1]

    def state(self) -> tuple[int, int]:
        return tuple(self.domain.state())

    def runs(self) -> bool:
        return self.state()[0] == libvirt.VIR_DOMAIN_RUNNING


class IOPauseTestCase(test_agent_driver.AgentDriverTestCase):

    SIZE = 64
    """MiB of the small file system."""

    def setUp(self):
        super().setUp()
        self.guests: list[Guest] = []
        self.small = os.path.join(self.libvirt.instances_path, 'small')
        os.mkdir(self.small)
        # In memory: a minimal root has no loop devices.
        self.libvirt.run(['mount', '--no-mtab', '-t', 'tmpfs', '-o',
                          f'size={self.SIZE}m,mode=0777', 'none', self.small])
        self.addCleanup(self.libvirt.run,
                        ['umount', '--no-mtab', '--lazy', self.small])
        self.addCleanup(self._end_guests)

    def _end_guests(self):
        for guest in self.guests:
            guest.domain.destroy()

    def start_driver(self):
        self.directory = os.path.join(
            self.libvirt.instances_path, f'nova-{uuid.uuid4().hex[:8]}')
        os.mkdir(self.directory)
        driver = test_agent_driver.DriverProcess(
            [self.directory, self.state_path, self.config], self.nova_log,
            enter=self.libvirt.enter)
        self.addCleanup(driver.end)
        driver.do('init_host')
        return driver

    def boot_guests(self, count: int) -> None:
        self.driver = self.start_driver()
        for _ in range(count):
            number = str(uuid.uuid4())
            self.driver.do('spawn', number, self.image, self.properties)
            self.driver.do('record', 'active')
            path = os.path.join(self.small, number)
            self.libvirt.run(['truncate', '--size', '2G', path])
            domain = self.connection.lookupByUUIDString(number)
            self.guests.append(Guest(domain, self.directory, path))
        for guest in self.guests:
            self.domain = guest.domain
            self.wait_for_agent()
            guest.domain.attachDevice(_DISK.format(path=guest.disk))

    def fill(self, but_mib: int = 1) -> None:
        """Take what space there is."""
        self.libvirt.run(['sh', '-ec', (
            f'cd {self.small}; touch filler; fallocate --length $(('
            f'$(stat -c %s filler) + $(df -B1 --output=avail . | tail -1)'
            f' - {but_mib} * 1048576)) filler')])

    def free(self) -> None:
        """Give back what :meth:`fill` took."""
        self.libvirt.run(['rm', f'{self.small}/filler'])

    def settle(self) -> float:
        """A periodic update; returns its seconds."""
        return self.driver.do('settle')[0]

    def stop_all(self) -> None:
        """Have each guest write until there is no more space."""
        self.fill()
        for guest in self.guests:
            guest.write()
        for guest in self.guests:
            libvirtd.wait_for(lambda: guest.state() == IO_ERROR,
                              'guest that is paused by an I/O error')

    def wait_until_written(self, guests: list[Guest]) -> None:
        for guest in guests:
            libvirtd.wait_for(lambda: guest.verdict() is not None,
                              'guest that has written all')
            self.assertTrue(guest.verdict(), guest.console()[-500:])

    def assert_stays(self, guest: Guest, state: tuple[int, int]) -> None:
        """A guest stays as it is while its periodic update is dealt with."""
        for _ in range(3):
            self.settle()
            time.sleep(2)
            self.assertEqual(state, guest.state())


class ResumeTestCase(IOPauseTestCase):

    def test_space_comes_back(self):
        self.boot_guests(3)
        first, second, third = self.guests
        self.stop_all()
        # There is none yet.
        self.assert_stays(first, IO_ERROR)
        found = pauses.read(first.domain)
        self.assertIs(reasons.Cause.NO_SPACE, found.cause)
        self.assertEqual([first.disk],
                         [error.disk.source for error in found.disks])
        # As "guest list" has it.
        self.assertEqual({
            guest.uuid: f'paused by an I/O error: no space on disk vdb '
                        f'({guest.disk})' for guest in self.guests}, {
            uuid: outcome.words for uuid, outcome in resumer.explain(
                self.libvirt.uri, [guest.uuid for guest in self.guests],
                60).items()})
        self.driver.do('of', first.uuid)
        told = self.driver.do('diagnostics')[1][hooks.DIAGNOSTICS_KEY]
        self.assertEqual(('no space', ['vdb']), (told['cause'], told['disks']))
        self.assertNotIn(self.small, str(told))
        self.assertIsNotNone(told['since'])
        # Nova pauses one of them, and libvirt's reason stays what it was.
        self.driver.do('of', second.uuid)
        self.driver.do('pause')
        self.driver.do('record', 'paused')
        # Another one hangs, and nobody waits for it.
        pid = self._pid(third)
        os.kill(pid, signal.SIGSTOP)
        self.addCleanup(os.kill, pid, signal.SIGCONT)
        self.free()
        longest = self.settle()
        self.wait_until_written([first])
        longest = max(longest, self.settle())
        self.assertLess(longest, 10)
        self.addDetail('seconds', content.text_content(f'{longest:.1f}'))
        self.assertEqual(IO_ERROR, third.state())
        self.assert_stays(second, IO_ERROR)
        os.kill(pid, signal.SIGCONT)
        self.driver.do('record', 'active')
        for guest in (second, third):
            libvirtd.wait_for(
                lambda: self.settle() is not None and guest.runs(),
                'guest that runs again')
        self.wait_until_written([second, third])
        # What was written is on the host, too.
        with open(f'/proc/{self.libvirt.processes()[0]}/root{first.disk}',
                  'rb') as f:
            self.assertEqual(first.checksum(), hashlib.sha256(
                f.read(WRITTEN * MIB)).hexdigest())
        log = self.said()
        for guest in self.guests:
            said = [line for line in log.splitlines() if guest.uuid in line]
            self.assertEqual(1, sum('paused by an I/O error: no space on disk '
                                    f'vdb ({guest.disk})' in line
                                    for line in said), str(said))

    def _pid(self, guest: Guest) -> int:
        """The QEMU of a guest, as the host counts."""
        name = f'guest={guest.domain.name()},'
        return next(
            pid for pid, arguments in libvirtd.processes_of(
                self.libvirt.directory).items()
            if any(argument.startswith(name) for argument in arguments))

    def test_paused_by_request(self):
        self.boot_guests(1)
        [guest] = self.guests
        by_user = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
        guest.domain.suspend()
        self.assert_stays(guest, by_user)
        # It finds no space when it runs again, and is then paused by request.
        guest.domain.resume()
        self.stop_all()
        guest.domain.resume()
        libvirtd.wait_for(lambda: guest.state() == IO_ERROR, 'error')
        self.free()
        self.driver.do('of', guest.uuid)
        for vm_state, task_state in (
                ('active', 'migrating'), ('active', 'image_snapshot'),
                ('suspended', None), ('error', None)):
            self.driver.do('record', vm_state, task_state)
            self.settle()
            time.sleep(3)
            self.assertEqual(IO_ERROR, guest.state(), vm_state)
        self.driver.do('record', 'active')
        self.settle()
        self.wait_until_written([guest])


class ManyTestCase(IOPauseTestCase):

    SIZE = 2048
    GUESTS = 5

    def setUp(self):
        self.wanted = int(os.environ.get('NOVA_KVM_EXT_IO_PAUSES', '0'))
        if not self.wanted:
            self.skipTest('NOVA_KVM_EXT_IO_PAUSES is not set')
        super().setUp()

    def test_many(self):
        """Paused, resumed within a minute or two, and no data lost.

        In each round Nova pauses one guest after the error, and one more
        guest stays suspended throughout: neither may be resumed.
        """
        self.boot_guests(self.GUESTS + 1)
        suspended = self.guests.pop()
        self.addCleanup(suspended.domain.destroy)
        suspended.domain.suspend()
        by_user = suspended.state()
        seconds: list[float] = []
        counts: collections.Counter[str] = collections.Counter()
        while counts['paused'] < self.wanted:
            self.stop_all()
            counts['paused'] += len(self.guests)
            paused = self.guests[counts['rounds'] % len(self.guests)]
            counts['rounds'] += 1
            self.driver.do('of', paused.uuid)
            self.driver.do('pause')
            self.driver.do('record', 'paused')
            # There is no space yet.
            self.settle()
            time.sleep(2)
            counts['wrong'] += sum(
                guest.state() != IO_ERROR for guest in self.guests)
            self.free()
            self._go_on({*self.guests} - {paused}, seconds, counts)
            counts['wrong'] += paused.state() != IO_ERROR
            self.driver.do('record', 'active')
            self._go_on({paused}, seconds, counts)
            counts['wrong'] += suspended.state() != by_user
        text = (f'{dict(counts)}, seconds to the last byte: '
                f'median {sorted(seconds)[len(seconds) // 2]:.1f}, '
                f'longest {max(seconds):.1f}')
        self.addDetail('counts', content.text_content(text))
        print(text, flush=True)
        self.assertEqual((counts['paused'], 0, 0),
                         (counts['right'], counts['lost'], counts['wrong']),
                         text)

    def _go_on(self, waiting: set[Guest], seconds: list[float],
               counts: collections.Counter[str]) -> None:
        """There is space: an update each minute, until all have written."""
        freed = time.monotonic()
        while waiting and time.monotonic() < freed + 240:
            started = time.monotonic()
            self.settle()
            while waiting and time.monotonic() < started + 60:
                for guest in list(waiting):
                    if guest.verdict() is not None:
                        waiting.discard(guest)
                        seconds.append(time.monotonic() - freed)
                        counts['right' if guest.verdict() else 'lost'] += 1
                time.sleep(0.2)
