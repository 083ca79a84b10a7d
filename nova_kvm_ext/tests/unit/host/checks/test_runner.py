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

"""All checks: their order, their words, and that none raises."""

import os
import re
import shlex

import fixtures

import nova_kvm_ext
from nova_kvm_ext.host.checks import runner
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.tests.unit.host.checks import case
from nova_kvm_ext.tests.unit.host.checks import faults
from nova_kvm_ext.tests.unit.host import fake_host


class RunnerTestCase(case.ChecksTestCase):

    def test_healthy(self):
        for family in fake_host.DISTRIBUTIONS:
            host = self.host(family)
            host.ceph()
            results = self.check(host)
            self.assertEqual(
                [], [result for result in results.values()
                     if result.result not in (verdict.PASS, verdict.SKIP)],
                family)
            # Neither MSR nor message, but KVM has started.
            self.assertEqual([], [code for code, result in results.items()
                                  if result.result == verdict.SKIP], family)

    def test_remedies_are_complete(self):
        """Each WARN and FAIL has a remedy, or leads to the one that has."""
        for fault in faults.FAULTS:
            host = fake_host.FakeHost()
            with host:
                fault.change(host)
                for result in self.check(host).values():
                    if result.result in ('WARN', 'FAIL'):
                        self.assertTrue(
                            result.remedy or re.search(
                                r'KVM\d{3}', result.details),
                            f'{fault.name}: {result}')
                    else:
                        self.assertEqual((), result.fix)
                    for command in result.fix:
                        self.assertIn(shlex.split(command)[0], (
                            'modprobe', 'udevadm', 'chgrp', 'chmod',
                            'mknod'))
                        self.assertNotRegex(command, r'[|;&$<>`]')

    def test_none_raises_without_libvirt(self):
        for fault in faults.FAULTS:
            with fake_host.FakeHost() as host:
                fault.change(host)
                for connect in (None, fake_host.FakeLibvirtError('no')):
                    self.assertEqual(list(runner.codes()),
                                     list(self.check(host, connect)))

    def test_an_empty_root(self):
        """Nothing can be read, and nothing raises."""
        host = self.host()
        host.root = self.useFixture(fixtures.TempDir()).path
        results = self.check(host, None)
        self.assertEqual(verdict.FAIL, results['KVM103'].result)
        self.assertEqual(list(runner.codes()), list(results))

    def test_software_needs_no_kvm(self):
        host = self.host()
        host.settings['virt_type'] = 'qemu'
        faults.no_vhost(host)
        faults.unloaded(host)
        results = self.check(host)
        self.assertEqual(verdict.PASS, verdict.worst(list(results.values())))
        self.assertEqual(verdict.SKIP, results['KVM103'].result)
        self.assertEqual(verdict.SKIP, results['KVM301'].result)
        self.assertEqual(verdict.PASS, results['KVM508'].result)

    def test_hostile_text_is_made_harmless(self):
        host = self.host()
        host.write('/etc/libvirt/qemu.conf', 'user = "a\x1b[31mb"\n')
        self.assertTrue(self.check(host)['KVM201'].details.isprintable())


class CodesTestCase(case.ChecksTestCase):

    def test_order_and_names(self):
        codes = list(runner.codes())
        self.assertEqual(sorted(codes), codes)
        for code in codes:
            self.assertRegex(code, r'^KVM[1-7]\d\d$')

    def test_documentation_has_every_code(self):
        """A table of the code and the title each, in both pages."""
        top = os.path.dirname(os.path.dirname(nova_kvm_ext.__file__))
        for page in ('admin/troubleshooting.rst', 'cli/host.rst'):
            with open(os.path.join(top, 'doc/source', page)) as f:
                rows = dict(re.findall(
                    r'^   \* - ``(KVM\d{3})``\n     - (.*)$', f.read(),
                    re.MULTILINE))
            self.assertEqual(
                runner.codes(),
                {code: title.replace('``', '')
                 for code, title in rows.items()}, page)

    def test_documentation_has_every_proof(self):
        top = os.path.dirname(os.path.dirname(nova_kvm_ext.__file__))
        with open(os.path.join(top, 'doc/source/admin/host-check.rst')) as f:
            rows = {code: ' '.join(text.split()) for code, text in re.findall(
                r'^   \* - ``(KVM\d{3})``\n     - ((?:.+\n)(?:       .+\n)*)',
                f.read(), re.MULTILINE)}
        self.assertEqual({code: proof or 'Never a FAIL.' for code, proof
                          in runner.proofs().items()}, rows)

    def test_none_fails_without_proof(self):
        for fault in faults.FAULTS:
            with fake_host.FakeHost() as host:
                fault.change(host)
                for result in self.check(host).values():
                    if result.result == verdict.FAIL:
                        self.assertTrue(runner.proofs()[result.code], result)

    def test_worst(self):
        def results(*said: str) -> list[verdict.CheckResult]:
            return [verdict.CheckResult('', '', one, '') for one in said]

        self.assertEqual('PASS', verdict.worst(results('PASS', 'SKIP')))
        self.assertEqual('WARN', verdict.worst(results('PASS', 'WARN')))
        self.assertEqual('FAIL', verdict.worst(results('WARN', 'FAIL')))
