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
import shutil
import subprocess
import tempfile
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext.host import distribution
from nova_kvm_ext.host import model
from nova_kvm_ext.host import user_facts


class QEMUUserTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.root = self.useFixture(fixtures.TempDir()).path
        os.makedirs(os.path.join(self.root, 'etc/libvirt'))
        self.write('passwd', 'libvirt-qemu:x:107:36::/:/x\n'
                             '500:x:9:9::/:/x\nbroken\n')
        self.write('group', 'kvm:x:36:\nlibvirt-qemu:x:107:\n'
                            'disk:x:6:a,libvirt-qemu\n')

    def write(self, name: str, text: str) -> None:
        with open(os.path.join(self.root, 'etc', name), 'w') as f:
            f.write(text)

    def user(self, text: str | None = None) -> model.UserFacts:
        if text is not None:
            self.write('libvirt/qemu.conf', text)
        return user_facts.read_qemu_user(
            distribution.from_os_release('ID=debian'),
            user_facts.accounts(self.root), self.root)

    def test_default_of_the_distribution(self):
        found = self.user()
        self.assertEqual((107, 107), (found.uid, found.gid))
        # Of /etc/passwd, of /etc/group and of the default.
        self.assertEqual((6, 36, 107), found.groups)
        self.assertIn('default of Debian', found.source)

    def test_qemu_conf(self):
        found = self.user('group = "kvm"\n')
        self.assertEqual((107, 36), (found.uid, found.gid))
        self.assertEqual('group in /etc/libvirt/qemu.conf', found.source)

    def test_numbers_and_names(self):
        # 500 is a user's name here, and only without + it is taken for one.
        for name, uid in (('500', 9), ('+500', 500), ('501', 501),
                          ('+0', 0), ('none', None)):
            self.assertEqual(uid, self.user(f'user = "{name}"\n').uid, name)

    def test_a_user_without_an_account(self):
        self.assertEqual((77,), self.user(
            'user = "+99"\ngroup = "+77"\n').groups)

    def test_nonsense(self):
        self.assertIn('line 1', self.user('user = x').error)

    def test_this_hosts_own_accounts(self):
        known = user_facts.accounts('/')
        self.assertEqual(0, known.uid('root'))
        self.assertEqual(0, known.gid('root'))
        self.assertEqual('root', known.group_name(0))
        self.assertIsNone(known.uid('no-such-user'))
        self.assertIsNone(known.gid('no-such-group'))
        self.assertIsNone(known.group_name(2 ** 31 - 7))
        self.assertIn(0, known.groups(0, 5))
        self.assertIn(5, known.groups(0, 5))
        self.assertEqual((5,), known.groups(2 ** 31 - 7, 5))


class UseTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        # Not below the directory that this test has to itself: nobody else
        # can enter that.
        self.root = tempfile.mkdtemp(dir='/var/tmp')
        self.addCleanup(shutil.rmtree, self.root)
        os.chmod(self.root, 0o755)
        os.mkdir(os.path.join(self.root, 'dev'))
        os.chmod(os.path.join(self.root, 'dev'), 0o755)
        self.path = os.path.join(self.root, 'dev/kvm')
        self.user = model.UserFacts('u', 'g', '', 54321, 54321, (54321,))

    def use(self) -> model.UseFacts:
        return user_facts.read_use('/dev/kvm', self.user, self.root)

    def test_judged(self):
        self.useFixture(fixtures.MockPatch('os.geteuid', return_value=1000))
        self.assertEqual('ENOENT', self.use().error)
        with open(self.path, 'w'):
            pass
        os.chmod(self.path, 0o600)
        self.assertEqual(model.UseFacts('/dev/kvm', False, 'EACCES'),
                         self.use())
        os.chmod(self.path, 0o666)
        self.assertEqual(model.UseFacts('/dev/kvm', False, None), self.use())

    def test_tried(self):
        """Root may do all, and QEMU's user not: a real other user."""
        if os.geteuid() != 0:
            self.skipTest('only root can become another user')
        self.assertEqual(model.UseFacts('/dev/kvm', True, 'ENOENT'),
                         self.use())
        with open(self.path, 'w'):
            pass
        os.chmod(self.path, 0o600)
        self.assertEqual(model.UseFacts('/dev/kvm', True, 'EACCES'),
                         self.use())
        # It opens, and is not KVM.
        os.chmod(self.path, 0o666)
        self.assertEqual(model.UseFacts('/dev/kvm', True, 'ENOTTY'),
                         self.use())

    def test_without_a_process(self):
        """Only where root opens it, and its mode lets the user in."""
        self.useFixture(fixtures.MockPatch('os.geteuid', return_value=0))
        with open(self.path, 'w'):
            pass
        os.chmod(self.path, 0o666)
        run = self.useFixture(fixtures.MockPatch(
            'subprocess.run', side_effect=subprocess.TimeoutExpired(
                'python', 10))).mock
        for answer, version in ((12, 12), (11, 11)):
            with mock.patch('fcntl.ioctl', return_value=answer):
                self.assertEqual(
                    model.UseFacts('/dev/kvm', False, None, version),
                    user_facts.read_use('/dev/kvm', self.user, self.root,
                                        process=False))
        run.assert_not_called()
        # What is no KVM, what the mode forbids, and what is not there.
        user_facts.read_use('/dev/kvm', self.user, self.root, process=False)
        self.assertEqual(1, run.call_count)
        with mock.patch('fcntl.ioctl', return_value=12):
            os.chmod(self.path, 0o600)
            user_facts.read_use('/dev/kvm', self.user, self.root,
                                process=False)
            self.assertEqual(2, run.call_count)
            os.unlink(self.path)
            user_facts.read_use('/dev/kvm', self.user, self.root,
                                process=False)
        self.assertEqual(3, run.call_count)

    def test_an_open_that_hangs(self):
        self.useFixture(fixtures.MockPatch('os.geteuid', return_value=0))
        self.useFixture(fixtures.MockPatch(
            'subprocess.run',
            side_effect=subprocess.TimeoutExpired('python', 10)))
        self.assertEqual(model.UseFacts('/dev/kvm', True, 'ETIMEDOUT'),
                         self.use())

    def test_no_user(self):
        self.user = model.UserFacts('u', 'g', '', None, 1)
        self.assertFalse(self.use().works)

    def test_barrier(self):
        os.makedirs(os.path.join(self.root, 'a/b/c'))
        for path, mode in (('a', 0o755), ('a/b', 0o700), ('a/b/c', 0o755)):
            os.chmod(os.path.join(self.root, path), mode)

        def barrier(path: str) -> str:
            return user_facts.read_barrier(path, self.user, self.root)

        self.assertEqual('/a/b', barrier('/a/b/c'))
        self.assertEqual('', barrier('/a'))
        self.assertEqual('', barrier('/gone'))
