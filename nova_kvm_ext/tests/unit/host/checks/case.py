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

"""What the tests of the checks share."""

import re

from oslotest import base

from nova_kvm_ext.host.checks import runner
from nova_kvm_ext.host.checks import verdict
from nova_kvm_ext.tests.unit.host.checks import faults
from nova_kvm_ext.tests.unit.host import fake_host


class ChecksTestCase(base.BaseTestCase):

    def host(self, family='debian') -> fake_host.FakeHost:
        return self.useFixture(fake_host.FakeHost(family))

    def check(self, host, connect=True) -> dict[str, verdict.CheckResult]:
        return {result.code: result
                for result in runner.run(host.facts(connect))}

    def check_faults(self, group: str) -> None:
        """Break a host in every way of a group: ``KVM2`` ..."""
        wrong = []
        for fault in faults.FAULTS:
            if not fault.code.startswith(group):
                continue
            for family in (fake_host.DISTRIBUTIONS
                           if isinstance(fault.remedy, dict) else
                           ('debian',)):
                host = fake_host.FakeHost(family)
                with host:
                    fault.change(host)
                    found = self.check(host)[fault.code]
                remedy = (fault.remedy if isinstance(fault.remedy, str)
                          else fault.remedy[family])
                if fault.name == 'not in the group' and family == 'ubuntu':
                    self.assertEqual(verdict.PASS, found.result)
                    continue
                if (found.result != fault.result or
                        not re.search(fault.details, found.details) or
                        not re.search(remedy, found.remedy) or
                        fault.fix and fault.fix != found.fix):
                    wrong.append(f'{fault.name} on {family}: {found}')
        self.assertEqual([], wrong)
