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
from nova_kvm_ext import option_values
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

    def test_the_python_of_nova_compute(self):
        host = self.host()
        for install, result, words, remedy in (
                (model.InstallFacts(('/n',), None, 'nova.virt has no ...',
                                    '/usr/bin/python3', 'process 7', False),
                 verdict.FAIL, '/usr/bin/python3 (process 7), which finds '
                 'Nova in /n and no nova_kvm_ext',
                 'Install nova-kvm-ext with /usr/bin/python3.'),
                # The link is there, what it leads to is not found.
                (model.InstallFacts(('/n',), None, None,
                                    '/usr/bin/python3', 'process 7', False),
                 verdict.FAIL, 'no nova_kvm_ext', 'Install nova-kvm-ext'),
                (model.InstallFacts((), None, 'No module named nova',
                                    '/p', 'process 7'),
                 verdict.FAIL, 'not installed where /p (process 7)',
                 'Install nova-kvm-ext with /p.'),
                (model.InstallFacts(('/n',), '/d', 'no', '/p', 'process 7'),
                 verdict.FAIL, 'Link it', 'ln -s /d /n/'),
                (model.InstallFacts(('/n',), '/d', None, '/p', 'process 7'),
                 verdict.PASS, 'asked with /p (process 7)', ''),
                (model.InstallFacts(('/n',), '/d', None,
                                    unknown='/p does not answer'),
                 verdict.WARN, 'is not known: /p does not answer', 'log'),
                (model.InstallFacts(('/n',), '/d', 'no', elsewhere=True,
                                    unknown='a container'),
                 verdict.SKIP, 'is not known: a container',
                 'Run this command where')):
            host.install = install
            found = self.check(host)['KVM401']
            self.assertEqual(result, found.result, found.details)
            self.assertIn(words, found.details)
            self.assertIn(remedy, found.remedy)

    def test_what_was_read_and_what_is_overridden(self):
        host = self.host()
        host.options['files'] = ('/a.conf', '/b.conf')
        host.options['how'] = 'as process 7 reads them'
        host.settings['overrides'] = (option_values.Override(
            option_values.Value('[kvm_ext] virt_type', 'auto', '/a.conf'),
            option_values.Value('[libvirt] virt_type', 'kvm', '/b.conf')),)
        found = self.check(host)['KVM402']
        self.assertEqual(verdict.PASS, found.result)
        self.assertIn('/a.conf, /b.conf (as process 7 reads them): ',
                      found.details)
        self.assertIn('; [kvm_ext] virt_type = auto (/a.conf) overrides '
                      '[libvirt] virt_type = kvm (/b.conf)', found.details)

    def test_no_nova_conf(self):
        host = self.host()
        host.options['files'] = ()
        results = self.check(host)
        for code in ('KVM402', 'KVM403', 'KVM404', 'KVM405'):
            self.assertEqual(verdict.SKIP, results[code].result)
