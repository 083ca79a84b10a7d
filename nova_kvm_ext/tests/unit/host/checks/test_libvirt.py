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

"""Checks KVM5xx: libvirt and QEMU."""

import dataclasses

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.host.checks import runner
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import model
from nova_kvm_ext.tests.unit.cpu import hosts
from nova_kvm_ext.tests.unit.host.checks import case
from nova_kvm_ext.tests.unit.host.checks import faults
from nova_kvm_ext.tests.unit.host import fake_host


class LibvirtTestCase(case.ChecksTestCase):

    def test_faults(self):
        self.check_faults('KVM5')

    def test_libvirt_is_not_asked_what_takes_minutes(self):
        host = self.host()
        faults.closed(host)
        results = self.check(host)
        self.assertEqual([], host.connection.asked)
        self.assertEqual(verdict.PASS, results['KVM502'].result)
        for code in ('KVM505', 'KVM506', 'KVM507', 'KVM508'):
            self.assertEqual(verdict.SKIP, results[code].result)
            self.assertIn('needs a minute', results[code].details)

    def test_the_service_runs_no_qemu(self):
        """libvirt has, and it tells what guests of virt_type can have."""
        host = self.host()
        host.service = True
        found = self.check(host)['KVM501']
        self.assertEqual(verdict.PASS, found.result)
        self.assertIn('libvirt runs guests of virt_type kvm', found.details)
        # It does not tell: then QEMU is asked.
        host.connection.kvm = False
        self.assertIn('accelerators', self.check(host)['KVM501'].details)

    def test_libvirt_is_asked_when_the_node_is_gone(self):
        host = self.host()
        faults.unloaded(host)
        self.check(host)
        self.assertIn('getCapabilities', host.connection.asked)

    def test_dead_libvirt(self):
        error = fake_host.FakeLibvirtError(
            'Failed to connect socket to \'/x\': No such file or directory')
        for family, service in (('debian', 'libvirtd'),
                                ('rhel', 'virtqemud')):
            found = self.check(self.host(family), error)['KVM502']
            self.assertEqual(verdict.FAIL, found.result)
            self.assertEqual(f'systemctl start {service}', found.remedy)

    def test_libvirt_that_refuses_this_user(self):
        found = self.check(self.host(), fake_host.FakeLibvirtError(
            'Failed to connect socket to \'/x\': Permission denied'))
        self.assertIn('group', found['KVM502'].remedy)

    def test_libvirt_that_hangs(self):
        facts = self.host().facts(None)
        facts = dataclasses.replace(facts, libvirt=model.LibvirtFacts(
            'x', 'no answer within 3 s', hangs=True))
        [found] = [r for r in runner.run(facts) if r.code == 'KVM502']
        self.assertEqual('systemctl restart libvirtd', found.remedy)

    def test_without_systemd(self):
        host = self.host()
        host.remove('/run/systemd/system/x')
        host.remove('/run/systemd/system')
        found = self.check(host, OSError('no'))['KVM502']
        self.assertEqual('virtlogd -d; libvirtd -d', found.remedy)

    def test_auto_takes_software(self):
        host = self.host()
        host.settings['virt_type'] = 'auto'
        faults.unloaded(host)
        results = self.check(host)
        self.assertEqual(verdict.WARN, verdict.worst(list(results.values())))
        self.assertIn('guests run in software', results['KVM103'].details)
        self.assertIn('under qemu', results['KVM507'].details)

    def test_auto_goes_by_the_guest(self):
        host = self.host()
        host.settings |= {'virt_type': 'auto', 'cpu_mode': 'host-model'}
        host.runs = False
        results = self.check(host)
        self.assertEqual(verdict.WARN, results['KVM508'].result)
        self.assertIn('under qemu', results['KVM507'].details)
        host.runs = True
        self.assertIn('under kvm', self.check(host)['KVM507'].details)


class VulnerabilitiesTestCase(case.ChecksTestCase):

    def said(self, has=('ibpb', 'amd-ssbd'), virt_type='kvm', model='EPYC',
             **settings) -> verdict.CheckResult:
        host = self.host()
        host.settings |= {'virt_type': virt_type, **settings}
        facts = host.facts(True)
        known = dataclasses.replace(
            hosts.MAP, register_features=frozenset(has))
        facts = dataclasses.replace(
            facts, cpu_map=known, libvirt=dataclasses.replace(
                facts.libvirt, domain_capabilities=capabilities.parse(
                    hosts.capabilities(virt_type, model, has=has))))
        return {one.code: one for one in runner.run(facts)}['KVM509']

    def test_a_model_without_them(self):
        found = self.said(cpu_mode='custom', cpu_models=('EPYC',),
                          extra_flags=('vme', '-pcid'))
        self.assertEqual(verdict.WARN, found.result)
        self.assertIn('ibpb (Spectre v2, CVE-2017-5715), amd-ssbd',
                      found.details)
        self.assertIn('[libvirt] cpu_model_extra_flags = vme, -pcid, ibpb, '
                      'amd-ssbd', found.remedy)

    def test_flags_that_add_them(self):
        for settings in (
                {'cpu_mode': 'custom', 'cpu_models': ('EPYC',)}, {
                    'cpu_mode': 'custom', 'cpu_models': ('x86-64-v2',)}):
            found = self.said(extra_flags=('ibpb', 'amd-ssbd'), **settings)
            self.assertEqual(verdict.PASS, found.result, str(found))

    def test_modes_that_have_them(self):
        for mode in None, 'host-model', 'host-passthrough', 'maximum':
            found = self.said(cpu_mode=mode)
            self.assertEqual(verdict.PASS, found.result, mode)
            self.assertIn('every feature', found.details)

    def test_one_that_is_taken_away_on_purpose(self):
        found = self.said(cpu_mode='custom', cpu_models=('EPYC',),
                          extra_flags=('-ibpb', '-amd-ssbd'))
        self.assertEqual(verdict.PASS, found.result)

    def test_what_costs_time_alone_is_no_warning(self):
        found = self.said(has=('pcid',), model='Nehalem', cpu_mode='custom',
                          cpu_models=('Nehalem',))
        self.assertEqual(verdict.PASS, found.result)
        self.assertIn('pcid (cost of the fix for Meltdown', found.details)
        self.assertIn('= pcid', found.remedy)

    def test_no_cpu_element(self):
        found = self.said(cpu_mode='none')
        self.assertEqual(verdict.WARN, found.result)
        self.assertIn('another than none', found.remedy)

    def test_emulated_guests(self):
        found = self.said(virt_type='qemu', cpu_mode='custom',
                          cpu_models=('EPYC',))
        self.assertEqual(verdict.SKIP, found.result)

    def test_nothing_told(self):
        host = self.host()
        host.remove('/usr/share/libvirt/cpu_map/x86_Nehalem.xml')
        self.assertEqual(verdict.SKIP, self.check(host)['KVM509'].result)
