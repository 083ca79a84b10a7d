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

"""The checks of Ceph."""

from nova_kvm_ext.cmd import findings
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import storage_model
from nova_kvm_ext.tests.unit.host.checks import case
from nova_kvm_ext.tests.unit.host.checks import faults

CODES = ('KVM601', 'KVM602', 'KVM603', 'KVM604', 'KVM605')


class StorageTestCase(case.ChecksTestCase):

    def results(self, host) -> dict[str, str]:
        return {code: result.result for code, result in
                self.check(host).items() if code in CODES}

    def test_faults(self):
        self.check_faults('KVM6')

    def test_disks_that_are_not_in_ceph(self):
        self.assertEqual(dict.fromkeys(CODES, verdict.SKIP),
                         self.results(self.host()))

    def test_volumes_alone(self):
        """They need QEMU and a secret; Nova asks Ceph nothing."""
        host = self.host()
        faults.ceph_volumes(asked=False, step='', key_error=None)(host)
        self.assertEqual(
            ['SKIP', 'PASS', 'PASS', 'SKIP', 'SKIP'],
            list(self.results(host).values()))
        self.assertIn('not tried', self.check(host)['KVM603'].details)
        for options in ({'rbd_user': None}, {'rbd_user': ''}):
            host.options |= options
            self.assertEqual('PASS', self.results(host)['KVM603'])
        host.options |= {'rbd_user': 'nova', 'rbd_secret': ''}
        self.assertEqual('SKIP', self.results(host)['KVM603'])

    def test_libvirt_elsewhere(self):
        """Its QEMU is another one; the rest is nova-compute's own."""
        host = self.host()
        host.connection.here = False
        host.ceph(driver=None)
        self.assertEqual(['PASS', 'SKIP', 'PASS', 'PASS', 'PASS'],
                         list(self.results(host).values()))
        host.ceph(driver=None, modules={'rados': 'no', 'rbd': ''}, step='',
                  secret=faults.NO_SECRET)
        self.assertEqual(['FAIL', 'SKIP', 'FAIL', 'SKIP', 'SKIP'],
                         list(self.results(host).values()))

    def test_nova_compute_elsewhere(self):
        host = self.host()
        host.ceph(modules={}, programs={}, step='', key_error=None,
                  unknown='it has a file system of its own', elsewhere=True)
        self.assertEqual(['SKIP', 'PASS', 'PASS', 'SKIP', 'SKIP'],
                         list(self.results(host).values()))
        self.assertIn('where nova-compute runs',
                      self.check(host)['KVM601'].remedy)

    def test_libvirt_that_does_not_answer(self):
        host = self.host()
        host.ceph(secret=storage_model.SecretFacts(), key_error=None)
        self.assertEqual('SKIP', self.results(host)['KVM603'])

    def test_libvirt_that_does_not_tell_of_secrets(self):
        host = self.host()
        host.ceph(secret=storage_model.SecretFacts(
            error='authentication denied'), key_error=None)
        found = self.check(host)['KVM603']
        self.assertEqual(verdict.SKIP, found.result)
        self.assertIn('libvirt says authentication denied', found.details)

    def test_secret_that_is_missing(self):
        """The remedy is shown as a sentence: it is no command to copy."""
        host = self.host()
        host.ceph(secret=faults.NO_SECRET)
        words, command = findings.parts(self.check(host)['KVM603'].remedy)
        self.assertIn('virsh secret-define', words)
        self.assertEqual('', command)

    def test_authentication_without_cephx(self):
        """It says nothing of the value of the secret."""
        host = self.host()
        host.ceph(step='connect', errno=13, error='denied', cephx=False,
                  key_errno=95, key_error='error')
        found = self.check(host)['KVM603']
        self.assertEqual(verdict.PASS, found.result)
        self.assertIn('not tried', found.details)

    def test_private_secret(self):
        host = self.host()
        host.ceph(secret=storage_model.SecretFacts(
            True, None, 'secret is private'), key_error=None)
        found = self.check(host)['KVM603']
        self.assertEqual(verdict.PASS, found.result)
        self.assertIn('private', found.details)

    def test_one_cause_is_said_once(self):
        host = self.host()
        host.ceph(step='connect', errno=22, error='invalid argument',
                  key_error='invalid argument', key_errno=22)
        self.assertEqual(['PASS', 'WARN', 'SKIP'],
                         list(self.results(host).values())[2:])
        self.assertIn('not tried', self.check(host)['KVM603'].details)
        host.ceph(step='connect', errno=13, error='denied')
        self.assertEqual(['FAIL', 'SKIP'],
                         list(self.results(host).values())[3:])

    def test_data_pool(self):
        host = self.host()
        host.ceph(data_pool='ec')
        found = self.check(host)['KVM605']
        self.assertEqual(verdict.PASS, found.result)
        self.assertIn('the pool ec, which holds the data', found.details)

    def test_hostile_text(self):
        host = self.host()
        host.ceph(step='pool', errno=2, error='\x1b[31m')
        host.options |= {'rbd_pool': 'a\x1b[2Jb', 'rbd_user': '\u202ex'}
        for result in self.check(host).values():
            self.assertTrue(result.details.isprintable(), result)
            self.assertTrue(result.remedy.isprintable(), result)
