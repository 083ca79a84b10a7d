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

import fixtures
from oslotest import base

from nova_kvm_ext.host import model
from nova_kvm_ext.vhost import process
from nova_kvm_ext.vhost import proof


class ReadVhostTestCase(base.BaseTestCase):
    """A /proc made of files."""

    UUID = 'c3f1a8e2-0f1b-4a53-9d3c-0123456789ab'
    GUEST = proof.Running(UUID, 'g')

    def setUp(self):
        super().setUp()
        self.root = self.useFixture(fixtures.TempDir()).path
        os.mkdir(os.path.join(self.root, 'proc'))
        self.write('meminfo')
        self.write('2/cmdline')
        self.write('2/comm', 'kthreadd\n')

    def write(self, name: str, text: str = '') -> None:
        path = os.path.join(self.root, 'proc', name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w') as f:
            f.write(text)

    def qemu(self, pid: int = 70, descriptors: int = 1,
             own_workers: int = 0, uuid: str = UUID) -> None:
        self.write(f'{pid}/cmdline', '\0'.join(
            ['/usr/bin/qemu-system-x86_64', '-name', 'guest=g', '-uuid',
             uuid, '']))
        self.write(f'{pid}/comm', 'qemu-system-x86')
        self.write(f'{pid}/task/{pid}/comm', 'qemu-system-x86\n')
        self.write(f'{pid}/task/{pid + 1}/comm', 'CPU 0/KVM\n')
        for number in range(own_workers):
            self.write(f'{pid}/task/{pid + 5 + number}/comm',
                       f'vhost-{pid}\n')
        os.mkdir(os.path.join(self.root, 'proc', str(pid), 'fd'))
        for number, target in enumerate(
                ['/dev/kvm', '/dev/net/tun', 'socket:[1]'] +
                descriptors * ['/dev/vhost-net']):
            os.symlink(target, os.path.join(
                self.root, 'proc', str(pid), 'fd', str(number)))

    def kernel_thread(self, pid: int, name: str) -> None:
        self.write(f'{pid}/cmdline')
        self.write(f'{pid}/comm', f'{name}\n')

    def pid_file(self, text: str) -> None:
        """What libvirt has written."""
        directory = os.path.join(self.root, 'run', 'libvirt', 'qemu')
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, 'g.pid'), 'w') as f:
            f.write(text)

    def log(self, text: str, name: str = 'g.log') -> None:
        directory = os.path.join(self.root, 'var', 'log', 'libvirt', 'qemu')
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, name), 'w') as f:
            f.write(text)

    def read(self) -> model.VhostFacts:
        return process.read_vhost([self.GUEST], self.root)[self.UUID]

    def test_threads_of_the_kernel(self):
        """Before Linux 6.4."""
        self.qemu(descriptors=2)
        self.kernel_thread(80, 'vhost-70')
        self.kernel_thread(81, 'vhost-70')
        self.kernel_thread(82, 'vhost-7')
        self.assertEqual(model.VhostFacts(70, 2, 2), self.read())
        # A kernel that lists them.
        self.write('2/task/2/children', '80 81 83 82 ')
        self.assertEqual(model.VhostFacts(70, 2, 2), self.read())

    def test_threads_of_qemu(self):
        """From Linux 6.4 on."""
        self.qemu(descriptors=4, own_workers=4)
        self.assertEqual(model.VhostFacts(70, 4, 4), self.read())

    def test_none(self):
        self.qemu(descriptors=0)
        self.assertEqual(model.VhostFacts(70, 0, 0), self.read())

    def test_no_such_guest(self):
        self.qemu(uuid='another')
        self.assertEqual(model.VhostFacts(), self.read())

    def test_many_guests_in_one_walk(self):
        self.qemu()
        self.qemu(90, descriptors=0, uuid='another')
        self.assertEqual(
            {self.UUID: 70, 'another': 90, 'third': None},
            {uuid: found.pid for uuid, found in process.read_vhost(
                [self.GUEST, proof.Running('another', 'a'),
                 proof.Running('third', 't')], self.root).items()})

    def test_someone_who_says_that_he_is_the_guest_too(self):
        self.qemu()
        self.write('99/cmdline', f'sleep\0-uuid\0{self.UUID}')
        self.assertEqual(model.VhostFacts(), self.read())
        self.write('99/cmdline', 'sleep\0-uuid')
        self.assertEqual(70, self.read().pid)

    def test_descriptors_of_another_user(self):
        self.qemu(own_workers=1)
        listdir = os.listdir

        def denied(path: str) -> list[str]:
            if path.endswith('/fd'):
                raise PermissionError(13, 'Permission denied')
            return listdir(path)

        self.useFixture(fixtures.MockPatch('os.listdir', denied))
        self.assertEqual(model.VhostFacts(70, None, 1), self.read())

    def test_links_of_another_user(self):
        self.qemu(own_workers=1)
        self.useFixture(fixtures.MockPatch(
            'os.readlink', side_effect=PermissionError(13, 'denied')))
        self.assertIsNone(self.read().descriptors)

    def test_in_a_pid_namespace_kernel_threads_are_not_seen(self):
        self.kernel_thread(2, 'sh')
        self.qemu()
        self.assertEqual(model.VhostFacts(70, 1, None), self.read())

    def test_opened_in_another_mount_namespace(self):
        self.qemu(descriptors=0)
        os.symlink('/vhost-net', os.path.join(
            self.root, 'proc', '70', 'fd', '30'))
        self.assertEqual(1, self.read().descriptors)

    def test_this_machine(self):
        found = process.read_vhost([proof.Running('no-such-guest', 'n')])
        self.assertEqual({'no-such-guest': model.VhostFacts()}, found)

    def test_by_libvirts_file_no_other_process_is_looked_at(self):
        self.qemu(own_workers=1)
        self.write('99/cmdline', f'sleep\0-uuid\0{self.UUID}')
        self.pid_file('70')
        self.useFixture(fixtures.MockPatchObject(
            process, '_search', side_effect=AssertionError))
        self.assertEqual(model.VhostFacts(70, 1, 1), self.read())

    def test_a_file_that_is_of_no_use(self):
        """Of another PID namespace, of a guest that ended, or broken."""
        self.qemu()
        self.write('71/cmdline', 'sleep\0001000')
        for text in ('71', '72', '', 'seventy', '-70', '9' * 4000):
            self.pid_file(text)
            self.assertEqual(70, self.read().pid, text)

    def test_a_process_in_another_pid_namespace_is_not_known(self):
        self.pid_file('70')
        self.assertEqual(model.VhostFacts(), self.read())

    def test_switches(self):
        self.qemu(descriptors=2, own_workers=2)
        for task, count in ((75, 3), (76, 4)):
            self.write(f'70/task/{task}/status',
                       f'Name:\tvhost-70\nvoluntary_ctxt_switches:\t{count}\n'
                       f'nonvoluntary_ctxt_switches:\t9\n')
        self.assertEqual(7, self.read().switches)

    STARTED = ('2026-11-26 22:44:36.057+0000: starting up libvirt version: '
               '9.0.0, package: 9.0.0-4\nLC_ALL=C \\\n')
    FELL = ('2026-11-26T22:45:01.1Z qemu-system-x86_64: unable to start vhost '
            'net: 7: falling back on userspace virtio\n')

    def test_fall_backs(self):
        self.qemu()
        self.assertIsNone(self.read().fall_backs)
        for text, count in (
                (self.STARTED, 0),
                (self.STARTED + self.FELL, 1),
                (self.STARTED + self.FELL + 'char device\n' + self.FELL, 2),
                # Of a QEMU that has ended since.
                (self.STARTED + self.FELL + self.STARTED, 0),
                # Without time stamps, by another name of the program.
                (self.STARTED + 'qemu-kvm: ' + self.FELL.partition(': ')[2],
                 1),
                # As the name of something.
                (self.STARTED + f'-drive file={self.FELL}', 0),
                ('', 0)):
            self.log(text)
            self.assertEqual(count, self.read().fall_backs, text)

    def test_a_log_that_was_rotated(self):
        self.qemu()
        self.log(self.FELL)
        self.log(self.FELL, 'g.log.0')
        self.log(self.FELL + self.STARTED + self.FELL, 'g.log.1')
        self.log(self.FELL, 'g.log.2')
        self.assertEqual(3, self.read().fall_backs)

    def test_a_name_that_is_a_path(self):
        self.assertIsNone(process.read_fall_backs('../../g', self.root))
