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

"""Checks KVM4xx: Nova beside it."""

import dataclasses

from nova_kvm_ext.host.checks import runner
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.host import model
from nova_kvm_ext.tests.unit.host.checks import case


class NovaTestCase(case.ChecksTestCase):

    def test_faults(self):
        self.check_faults('KVM4')

    def test_space(self):
        def said(free: int, **kwargs) -> verdict.CheckResult:
            facts = self.host().facts(None)
            facts = dataclasses.replace(facts, directories=tuple(
                dataclasses.replace(directory, free=free, **kwargs)
                for directory in facts.directories))
            return {r.code: r for r in runner.run(facts)}['KVM405']

        gib = 1024 ** 3
        self.assertEqual(verdict.FAIL, said(1024).result)
        self.assertIn('no inode', said(9 * gib, free_files=0).details)
        self.assertEqual(verdict.WARN, said(gib, free_files=None).result)
        self.assertEqual(verdict.PASS, said(9 * gib, free_files=5).result)

    def test_read_only(self):
        facts = self.host().facts(None)
        facts = dataclasses.replace(facts, directories=tuple(
            dataclasses.replace(directory, read_only=True)
            for directory in facts.directories))
        results = {r.code: r for r in runner.run(facts)}
        self.assertIn('remount,rw', results['KVM404'].remedy)

    def test_not_beside_nova(self):
        host = self.host()
        host.install = model.InstallFacts(
            ('/usr/lib/python3/dist-packages/nova/virt',), '/opt/door', 'no')
        found = self.check(host)['KVM401']
        self.assertEqual(verdict.FAIL, found.result)
        self.assertEqual('ln -s /opt/door /usr/lib/python3/dist-packages/'
                         'nova/virt/', found.remedy)

    def test_no_nova_conf(self):
        host = self.host()
        host.options['files'] = ()
        results = self.check(host)
        for code in ('KVM402', 'KVM403', 'KVM404', 'KVM405'):
            self.assertEqual(verdict.SKIP, results[code].result)
