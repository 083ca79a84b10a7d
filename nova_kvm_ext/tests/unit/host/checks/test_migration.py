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


"""The checks KVM7xx."""

import dataclasses
from typing import Any
from unittest import mock

from oslotest import base

from nova_kvm_ext.host.checks import migration
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import model
from nova_kvm_ext.host import post_copy_facts
from nova_kvm_ext.tests.unit.host.checks import case

DEVICE = '/dev/userfaultfd'


class MigrationTestCase(case.ChecksTestCase):

    def test_faults(self):
        self.check_faults('KVM7')

    def said(self, place: Any = None, user: Any = None,
             qemu: tuple[int, int, int] | None = (7, 2, 22),
             libvirt: tuple[int, int, int] | None = (9, 0, 0),
             **found: Any) -> verdict.Said:
        host = self.host()
        facts = host.facts()
        facts = dataclasses.replace(
            facts, post_copy=model.PostCopyFacts(True, **found),
            libvirt=dataclasses.replace(
                facts.libvirt, qemu=qemu, version=libvirt),
            emulator=dataclasses.replace(facts.emulator, version=None),
            place=place or facts.place,
            qemu_user=dataclasses.replace(facts.qemu_user, **user or {}))
        return migration._post_copy(facts)

    def test_not_permitted(self):
        host = self.host()
        host.write('/proc/sys/vm/unprivileged_userfaultfd', '0')
        host.options['post_copy'] = False
        found = self.check(host)['KVM701']
        self.assertEqual(verdict.SKIP, found.result)

    def test_tried(self):
        for call, sysctl, result in (
                ('', '0', verdict.PASS), ('EPERM', '1', verdict.WARN),
                ('EPERM', '0', verdict.WARN), ('ENOSYS', '', verdict.WARN)):
            self.assertEqual(
                result, self.said(call=call, sysctl=sysctl).result, call)
        self.assertIn('no userfaultfd (ENOSYS)',
                      self.said(call='ENOSYS').details)

    def test_not_tried(self):
        self.assertEqual(verdict.PASS, self.said(sysctl='1').result)
        self.assertEqual(verdict.WARN, self.said(sysctl='0').result)
        self.assertEqual(verdict.SKIP, self.said(sysctl='').result)
        # root may have what others have not.
        self.assertEqual(verdict.SKIP, self.said(
            sysctl='0', user={'uid': 0}).result)

    def test_device(self):
        opens = model.UseFacts(DEVICE, True, None)
        for qemu, result in (((7, 2, 22), verdict.WARN),
                             ((8, 0, 0), verdict.PASS),
                             ((11, 1, 0), verdict.PASS),
                             (None, verdict.SKIP)):
            self.assertEqual(result, self.said(
                qemu=qemu, call='EPERM', sysctl='0', device=opens).result)
        closed = model.UseFacts(DEVICE, True, 'EACCES')
        self.assertEqual(verdict.WARN, self.said(
            qemu=(8, 0, 0), call='EPERM', device=closed).result)

    def test_device_that_libvirt_gives(self):
        """Debian 13 has such: a device of root alone, and the sysctl is 0."""
        closed = model.UseFacts(DEVICE, True, 'EACCES')
        for libvirt, qemu, result in (
                ((10, 1, 0), (8, 0, 0), verdict.PASS),
                ((11, 3, 0), (10, 0, 8), verdict.PASS),
                ((12, 8, 0), None, verdict.SKIP),
                ((10, 0, 0), (8, 0, 0), verdict.WARN),
                ((11, 3, 0), (7, 2, 22), verdict.WARN),
                (None, (8, 0, 0), verdict.SKIP),
                (None, (7, 2, 22), verdict.WARN)):
            self.assertEqual(result, self.said(
                libvirt=libvirt, qemu=qemu, call='EPERM', sysctl='0',
                device=closed).result, str((libvirt, qemu)))
        # Before Linux 6.1 there is none to give.
        self.assertEqual(verdict.WARN, self.said(
            libvirt=(11, 3, 0), qemu=(10, 0, 8), call='EPERM',
            sysctl='0').result)

    def test_libvirt_elsewhere(self):
        self.assertEqual(verdict.SKIP, self.said(
            place=model.LibvirtPlace(False, 'another container'),
            call='EPERM').result)

    def test_user_not_known(self):
        found = self.said(user={'error': 'x', 'by_libvirt': False},
                          call='EPERM')
        self.assertIn('is not known (KVM201)', found.details)


class ReadTestCase(base.BaseTestCase):

    USER = model.UserFacts('u', 'g', '', 107, 107, (107,))

    def ask(self, output: str = '', uid: int = 0, arch: str = 'x86_64',
            user: model.UserFacts = USER, **effect: Any) -> str | None:
        with (mock.patch('os.geteuid', return_value=uid),
              mock.patch('subprocess.run', return_value=mock.Mock(
                  stdout=output), **effect)):
            return post_copy_facts._ask(arch, user)

    def test_answers(self):
        self.assertEqual('', self.ask('0\n'))
        self.assertEqual('EPERM', self.ask('1\n'))
        self.assertEqual('ENOSYS', self.ask('38\n'))

    def test_nobody_asked(self):
        self.assertIsNone(self.ask('0', uid=1000))
        self.assertIsNone(self.ask('0', arch='alpha'))
        self.assertIsNone(self.ask('0', user=dataclasses.replace(
            self.USER, uid=None)))
        self.assertIsNone(self.ask(''))
        self.assertIsNone(self.ask('Traceback'))
        self.assertIsNone(self.ask(side_effect=OSError))
