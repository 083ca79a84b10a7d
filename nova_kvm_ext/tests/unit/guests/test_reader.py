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

import os
from typing import Any
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext.guests import model
from nova_kvm_ext.guests import reader
from nova_kvm_ext.vhost import process

UUID = 'c3f1a8e2-0f1b-4a53-9d3c-0123456789ab'

XML = f"""
<domain type='kvm' id='3'><name>instance-1</name><uuid>{UUID}</uuid>
<metadata><nova:instance
 xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
<nova:flavor name="m1"><nova:extraSpecs>
<nova:extraSpec name="kvm_ext:cpu_mode">host-model</nova:extraSpec>
</nova:extraSpecs></nova:flavor></nova:instance></metadata>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
<cpu mode='custom' match='exact' check='full'>
 <model fallback='forbid'>Nehalem</model></cpu>
<devices><emulator>/usr/bin/qemu</emulator>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'
 state='connected'/></channel></devices></domain>"""


class Error(Exception):
    """One of libvirt's."""

    def __init__(self, code: int) -> None:
        super().__init__('of libvirt')
        self.code = code

    def get_error_code(self) -> int:
        return self.code


class ReadGuestsTestCase(base.BaseTestCase):
    """A libvirt of mocks, and a /proc made of files."""

    def setUp(self):
        super().setUp()
        self.root = self.useFixture(fixtures.TempDir()).path
        self.domain = self.a_domain()
        self.stats: list[Any] = [
            (self.domain, {'state.state': 1, 'state.reason': 1})]
        self.connection = mock.Mock()
        self.connection.getAllDomainStats.side_effect = (
            lambda stats, flags: self.stats)
        self.write('usr/bin/qemu', 'new')
        self.write('proc/70/cmdline', f'qemu\0-uuid\0{UUID}\0')
        self.write('proc/70/stat', '70 (qemu ) T) S 1 70')
        self.write('proc/70/status', 'voluntary_ctxt_switches:\t5\n')
        os.mkdir(self.path('proc/70/fd'))
        self.useFixture(fixtures.MockPatchObject(reader.time, 'sleep'))

    @staticmethod
    def a_domain() -> mock.Mock:
        domain = mock.Mock()
        domain.UUIDString.return_value = UUID
        domain.name.return_value = 'instance-1'
        domain.XMLDesc.side_effect = lambda flags: XML
        domain.controlInfo.return_value = [0, 0, 0]
        return domain

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def write(self, name: str, text: str) -> None:
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), 'w') as f:
            f.write(text)

    def runs(self, path: str) -> None:
        os.symlink(path, self.path('proc/70/exe'))

    def read(self, **arguments: Any) -> model.Guest:
        guest, = reader.read_guests(
            self.connection, {}, root=self.root, **arguments)
        return guest

    def test_what_the_xml_says(self):
        guest = self.read()
        self.assertEqual(
            (UUID, 'kvm', 'x86_64', 'pc-q35-7.2', '/usr/bin/qemu', True,
             {'kvm_ext:cpu_mode': 'host-model'}, True, 'Nehalem', None),
            (guest.uuid, guest.domain_type, guest.arch, guest.machine,
             guest.emulator, guest.of_nova, guest.specs, guest.channel,
             guest.cpu.model, guest.paused))

    def test_one_call_that_waits_for_none(self):
        self.read()
        self.connection.getAllDomainStats.assert_called_once_with(
            1, 1 | 1 << 29)

    def test_a_guest_that_hangs(self):
        """Its XML, for which libvirt would wait, is not asked for."""
        self.domain.controlInfo.return_value = [2, 0, 60000]
        self.domain.connect.return_value.getLibVersion.return_value = (
            11_003_000)
        guest = self.read()
        self.domain.XMLDesc.assert_not_called()
        self.assertEqual(
            ('instance-1', model.Control(2, 60.0), None, None, 70),
            (guest.name, guest.control, guest.cpu, guest.channel,
             guest.process.pid))
        self.assertIn('waits', guest.odd)

    def test_why_it_is_paused(self):
        for number, reason, broken in ((1, 'user', False),
                                       (5, 'io_error', True),
                                       (14, 'api_error', True),
                                       (99, 'not_known', False)):
            self.stats[0] = (self.domain, {'state.state': 3,
                                           'state.reason': number})
            paused = self.read().paused
            self.assertEqual((reason, broken), (paused.reason, paused.broken))

    def test_the_program_is_still_there(self):
        self.runs(self.path('usr/bin/qemu'))
        found = self.read().process
        self.assertEqual((70, 'S', False),
                         (found.pid, found.state, found.replaced))

    def test_the_program_was_deleted(self):
        self.runs('/usr/bin/qemu (deleted)')
        found = self.read().process
        self.assertTrue(found.replaced)
        self.assertIn('/usr/bin/qemu (deleted) was replaced', found.why)

    def test_the_program_is_another_file(self):
        """As in a container that was made again while guests ran."""
        self.write('old/usr/bin/qemu', 'old')
        self.runs(self.path('old/usr/bin/qemu'))
        files = self.path('new')
        self.write('new/usr/bin/qemu', 'new')
        self.assertTrue(self.read(files=files).process.replaced)

    def test_the_emulator_is_a_script(self):
        self.write('usr/lib/qemu-real', '')
        os.symlink('/usr/lib/qemu-real', self.path('proc/70/exe'))
        real = os.stat(self.path('usr/lib/qemu-real'))
        identity = reader._identity
        with mock.patch.object(
                reader, '_identity', lambda path: (
                    (real.st_dev, real.st_ino) if path.endswith('exe')
                    else identity(path))):
            self.assertIs(False, self.read().process.replaced)

    def test_who_may_not_look(self):
        with mock.patch.object(reader.os, 'readlink',
                               side_effect=PermissionError(13, 'no')):
            found = self.read().process
        self.assertIsNone(found.replaced)
        self.assertIn('may not look', found.why)

    def test_no_process(self):
        os.unlink(self.path('proc/70/cmdline'))
        found = self.read().process
        self.assertEqual((None, None), (found.pid, found.replaced))

    def test_stuck_in_the_kernel(self):
        self.write('proc/70/stat', '70 (qemu) D 1')
        self.assertTrue(self.read().process.stuck)
        # It ran between the two looks.
        switches = iter((5, 6))
        with mock.patch.object(reader, '_switches',
                               lambda proc, pid: next(switches)):
            self.assertFalse(self.read().process.stuck)

    def test_version_by_the_last_start(self):
        self.write('var/log/libvirt/qemu/instance-1.log', (
            '2026-01-01 00:00:00.000+0000: starting up libvirt version: '
            '9.0.0, qemu version: 7.2.1Debian 1:7.2+dfsg, kernel: 6\n'
            '2026-02-01 00:00:00.000+0000: starting up libvirt version: '
            '9.0.0, qemu version: 7.2.22Debian 1:7.2+dfsg-7, kernel: 6\n'
            'char device; qemu version: 9.9.9\n'))
        with mock.patch.object(process, 'read_log',
                               side_effect=process.read_log) as read:
            guest = self.read()
        # It may have some MiB.
        read.assert_called_once()
        self.assertEqual(('7.2.22', 'Debian 1:7.2+dfsg-7'),
                         (guest.qemu, guest.package))

    def test_version_without_a_log(self):
        self.assertIsNone(self.read().qemu)

    def test_one_that_ended_meanwhile(self):
        self.domain.XMLDesc.side_effect = Error(42)
        self.assertEqual([], reader.read_guests(
            self.connection, {}, root=self.root))

    def test_one_of_which_libvirt_cannot_tell(self):
        other = self.a_domain()
        other.UUIDString.return_value = UUID.replace('c', 'd')
        other.XMLDesc.side_effect = Error(38)
        self.stats.append((other, {'state.state': 1}))
        well, odd = reader.read_guests(self.connection, {}, root=self.root)
        self.assertEqual(('', 'of libvirt'), (well.odd, odd.odd))

    def test_xml_that_cannot_be_read(self):
        self.domain.XMLDesc.side_effect = lambda flags: '<domain'
        self.assertIn('XML', self.read().odd)

    def test_a_libvirt_that_does_not_tell_about_control(self):
        self.domain.controlInfo.side_effect = Error(3)
        self.assertIsNone(self.read().control)


class TodayTestCase(base.BaseTestCase):

    def test_machines_and_version(self):
        connection = mock.Mock()
        connection.getVersion.return_value = 7002022
        connection.getCapabilities.return_value = """
            <capabilities><guest><arch name='x86_64'>
            <emulator>/usr/bin/qemu</emulator>
            <machine canonical='pc-q35-7.2'>q35</machine>
            <machine deprecated='yes'>pc-i440fx-1.7</machine>
            </arch></guest></capabilities>"""
        today = reader.read_today(connection, None, [])
        self.assertEqual('7.2.22', today.qemu)
        self.assertEqual({'x86_64': '/usr/bin/qemu'}, today.emulators)
        self.assertEqual(
            {'q35': model.Machine('q35', 'pc-q35-7.2', False),
             'pc-i440fx-1.7': model.Machine('pc-i440fx-1.7', None, True)},
            today.machines['x86_64'])

    def test_a_libvirt_that_tells_nothing(self):
        connection = mock.Mock()
        connection.getVersion.side_effect = Error(38)
        connection.getCapabilities.side_effect = Error(38)
        today = reader.read_today(connection, None, [])
        self.assertEqual((None, {}), (today.qemu, today.machines))
        connection.getCapabilities.side_effect = ['nonsense']
        self.assertEqual({}, reader.read_today(connection, None, []).machines)
