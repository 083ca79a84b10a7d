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

"""``guest dirty-rate`` on a real libvirt, with a guest that writes or not."""

import contextlib
import io
import json
import os
from typing import Any

import fixtures
import testtools
from testtools import content

from nova_kvm_ext.cmd import main
from nova_kvm_ext.tests.functional import migration_bed


class DirtyRateTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.bed = self.useFixture(migration_bed.Bed(hosts=1))
        self.domain = self.bed.domain
        self.config = os.path.join(
            self.useFixture(fixtures.TempDir()).path, 'nova.conf')
        with open(self.config, 'w') as f:
            f.write('[libvirt]\nvirt_type = qemu\n'
                    'live_migration_bandwidth = 3\n')

    def run_command(self, *arguments: str, domain: str = ''
                    ) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main.main([
                'guest', 'dirty-rate', domain or self.bed.uuid,
                '--config-file', self.config,
                '--connect', self.bed.hosts[0].uri, *arguments])
        self.addDetail('output', content.text_content(
            out.getvalue() + err.getvalue()))
        return code, out.getvalue(), err.getvalue()

    def found(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        code, out, err = self.run_command('-f', 'json', *arguments)
        return code, json.loads(out) if out else {'error': err}

    def test_of_a_guest(self):
        # Idle. QEMU looks at some pages only, so little is what it sees.
        code, idle = self.found('--seconds', '3', '--bandwidth', '50')
        self.assertEqual((0, 'will converge'),
                         (code, idle['verdict']), str(idle))
        self.assertEqual((128, 50, 0.5, 3), tuple(idle[name] for name in (
            'memory', 'bandwidth', 'downtime_allowed', 'seconds')))

        self.bed.write(40, 40)
        code, busy = self.found('--seconds', '3')
        self.assertEqual((2, 'will not converge'),
                         (code, busy['verdict']), str(busy))
        self.assertEqual(3, busy['bandwidth'])
        self.assertGreater(busy['dirty_rate_short'], 3)
        self.assertGreater(busy['downtime'], 0.5)
        self.assertGreater(busy['bandwidth_needed'],
                           busy['dirty_rate_short'])
        # The bandwidth that it names is enough.
        code, enough = self.found('--seconds', '3', '--bandwidth', str(
            round(3 * busy['bandwidth_needed'])))
        self.assertEqual((0, 'will converge'), (code, enough['verdict']),
                         str(enough))
        # For people. It is one guest's measurement of one moment.
        code, out, err = self.run_command('--seconds', '2')
        self.assertIn('MiB/s', out)
        self.assertLessEqual(max(map(len, out.splitlines())), 80)
        self.assertIn('for 2 s', err)

        # The guest has gone on, and does.
        self.bed.stop_writing()

        # One that stands still changes nothing; one that is not there.
        self.domain.suspend()
        code, still = self.found('--seconds', '2')
        self.assertEqual((0, 0), (code, still['dirty_rate_short']), str(still))
        self.assertIn('is paused', still['details'])
        self.domain.resume()
        code, _, err = self.run_command(domain='no-such-guest')
        self.assertEqual(3, code)
        self.assertIn('no-such-guest', err)
