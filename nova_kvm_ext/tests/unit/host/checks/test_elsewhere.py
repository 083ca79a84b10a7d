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

"""libvirt in another file system, a busy one, and disks that are elsewhere."""

import dataclasses

from nova_kvm_ext.host.checks import runner
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import model
from nova_kvm_ext.tests.unit.host.checks import case
from nova_kvm_ext.tests.unit.host.checks import faults
from nova_kvm_ext.tests.unit.host import fake_host


def container(host):
    """nova-compute's container in Kolla: no QEMU, no account, no qemu.conf."""
    faults.no_emulator(host)
    host.write('/etc/passwd', 'root:x:0:0::/:/bin/sh\n')
    host.write('/etc/group', 'root:x:0:\n')
    host.remove('/etc/libvirt/qemu.conf')
    host.remove('/dev/kvm')
    host.remove('/run/libvirt/qemu/channel')
    host.connection.emulator = '/opt/qemu/bin/qemu-kvm'
    host.connection.user = (42436, 42436)
    host.connection.here = False


class ElsewhereTestCase(case.ChecksTestCase):

    def failed(self, host, *args) -> list[str]:
        return [code for code, result in self.check(host, *args).items()
                if result.result == verdict.FAIL]

    def test_container(self):
        for uri in ('qemu+tcp://10.0.0.1/system', 'qemu+tls://node/system',
                    'qemu+unix:///system?socket=/run/x', 'qemu:///system'):
            host = self.host()
            container(host)
            host.uri = uri
            results = self.check(host)
            self.assertEqual([], self.failed(host), uri)
            self.assertIn('/opt/qemu/bin/qemu-kvm 8.2.2, as libvirt says',
                          results['KVM501'].details)
            self.assertIn('42436', results['KVM201'].details)
            self.assertEqual(verdict.PASS, results['KVM201'].result)
            for code in ('KVM202', 'KVM406'):
                self.assertNotIn(results[code].result,
                                 (verdict.FAIL, verdict.PASS))
            self.assertRegex(results['KVM502'].details, 'file system')
            for result in results.values():
                self.assertNotRegex(result.remedy, 'apt-get|libvirtd')

    def test_container_in_which_kvm_does_not_run(self):
        """libvirt's word and the guest's are proof wherever libvirt is."""
        host = self.host()
        container(host)
        host.runs = False
        self.assertEqual(['KVM506', 'KVM508'], self.failed(host))
        host.connection.kvm = False
        self.assertIn('KVM508', self.failed(host))
        host.connection.emulator = ''
        found = self.check(host)['KVM501']
        self.assertEqual(verdict.FAIL, found.result)
        self.assertIn('where libvirt runs', found.remedy)

    def test_remote_libvirt_that_is_down(self):
        host = self.host()
        container(host)
        host.uri = 'qemu+tcp://10.0.0.1/system'
        results = self.check(host, fake_host.FakeLibvirtError(
            "unable to connect to server at '10.0.0.1:16509': Connection "
            'refused'))
        self.assertEqual(verdict.FAIL, results['KVM502'].result)
        self.assertIn('connection_uri', results['KVM502'].remedy)
        for result in results.values():
            self.assertNotRegex(result.remedy, 'migration|systemctl')
        self.assertEqual(['KVM502'], [
            code for code, result in results.items()
            if result.result == verdict.FAIL])

    def test_qemu_conf_that_cannot_be_read(self):
        host = self.host()
        host.connection.user = (64055, 109)
        known = dataclasses.replace(
            host.facts(), configured_user=model.UserFacts(
                'libvirt-qemu', 'kvm', 'the default', 107, 36, (),
                '/etc/libvirt/qemu.conf cannot be read: no', True))
        results = {r.code: r for r in runner.run(known)}
        self.assertEqual(verdict.PASS, results['KVM201'].result)
        self.assertIn('64055', results['KVM201'].details)
        self.assertEqual('', results['KVM201'].remedy)
        # libvirt did not say: not known, and no warning.
        facts = host.facts(None)
        facts = dataclasses.replace(
            facts, configured_user=known.configured_user,
            qemu_user=known.configured_user)
        results = {r.code: r for r in runner.run(facts)}
        self.assertEqual(verdict.SKIP, results['KVM201'].result)

    def test_a_guest_that_runs_is_proof_against_all(self):
        host = self.host()
        known = host.facts()
        closed = dataclasses.replace(
            known, kvm_use=model.UseFacts('/dev/kvm', False, 'EACCES'))
        self.assertEqual([], [r for r in runner.run(closed)
                              if r.result == verdict.FAIL])

    def test_busy(self):
        host = self.host()
        host.runs = None
        for virt_type in ('kvm', 'auto'):
            host.settings['virt_type'] = virt_type
            found = self.check(host)['KVM508']
            self.assertEqual(verdict.WARN, found.result)
            self.assertIn('not known: libvirt was too busy', found.details)
            self.assertEqual([], self.failed(host))

    def test_domain_capabilities_of_a_busy_libvirt(self):
        host = self.host()
        host.runs = None
        known = host.facts()
        for said, result in (
                ('Timed out during operation: cannot acquire state change '
                 'lock', verdict.WARN),
                ("the accel 'kvm' is not supported by 'x' on this host",
                 verdict.FAIL)):
            facts = dataclasses.replace(known, libvirt=dataclasses.replace(
                known.libvirt, refuses={'kvm': said}))
            found, = (r for r in runner.run(facts) if r.code == 'KVM506')
            self.assertEqual(result, found.result, said)

    def test_disks_elsewhere(self):
        """Neither the way to the directory nor its space counts."""
        for change in (lambda host: host.options.update(images_type='rbd'),
                       lambda host: host.options.update(images_type='lvm'),
                       lambda host: host.write(
                           '/var/lib/nova/instances/3f1c6a2e-0d3b-4bd4-9c59-'
                           '5d2d4c2f1a10/console.log')):
            host = self.host()
            faults.out_of_reach(host)
            change(host)
            facts = host.facts()
            facts = dataclasses.replace(facts, directories=tuple(
                dataclasses.replace(directory, free=1 << 20)
                for directory in facts.directories))
            results = {r.code: r for r in runner.run(facts)}
            for code in ('KVM404', 'KVM405'):
                self.assertEqual(verdict.PASS, results[code].result,
                                 results[code].details)
        host.write('/var/lib/nova/instances/3f1c6a2e-0d3b-4bd4-9c59-'
                   '5d2d4c2f1a10/disk')
        self.assertEqual(verdict.WARN, self.check(host)['KVM404'].result)

    def test_what_only_the_service_can_tell(self):
        for service, result in ((True, verdict.FAIL), (False, verdict.WARN)):
            host = self.host()
            host.service = service
            facts = host.facts()
            facts = dataclasses.replace(facts, directories=tuple(
                dataclasses.replace(directory, writable=False)
                for directory in facts.directories))
            found, = (r for r in runner.run(facts) if r.code == 'KVM404')
            self.assertEqual(result, found.result)
