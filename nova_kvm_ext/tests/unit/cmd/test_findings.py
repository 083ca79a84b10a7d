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

import io
from typing import Any
from unittest import mock

from oslotest import base

from nova_kvm_ext.cmd import findings


def result(kind: str, code: str = 'KVM101', remedy: str = ''
           ) -> dict[str, Any]:
    return {'code': code, 'title': 'A title', 'result': kind,
            'details': 'what was found ' * 8, 'remedy': remedy, 'fix': []}


class FindingsTestCase(base.BaseTestCase):

    COMMAND = 'usermod -aG ' + 'a-long-group-name,' * 6 + 'kvm nova'

    def render(self, *results: Any, colour: bool = False,
               everything: bool = False) -> list[str]:
        return list(findings.render(results, 80, colour, everything))

    def test_the_worst_first(self):
        lines = self.render(
            result('PASS', 'KVM101'), result('WARN', 'KVM102'),
            result('SKIP', 'KVM103'), result('FAIL', 'KVM104', self.COMMAND),
            result('FAIL', 'KVM105', 'Do this and that.'))
        heads = [line[:11] for line in lines if 'KVM' in line]
        self.assertEqual(['FAIL KVM104', 'FAIL KVM105', 'WARN KVM102'], heads)
        # Whole, whatever the width.
        self.assertIn(self.COMMAND, [line.strip() for line in lines])
        self.assertIn('     Remedy: Do this and that.', lines)
        self.assertEqual([], [line for line in lines if len(line) > 80 and
                              self.COMMAND not in line])
        self.assertIn('5 checks: 2 failures, 1 warning, 1 passed, 1 left '
                      'out.', lines)
        self.assertIn('--all', lines[-1])

    def test_words_and_commands(self):
        for remedy, wanted in (
                ('modprobe kvm', ('', 'modprobe kvm')),
                ('Boot a kernel that has kvm.', (
                    'Boot a kernel that has kvm.', '')),
                ('Correct that line, then systemctl restart libvirtd',
                 ('Correct that line, then', 'systemctl restart libvirtd')),
                ('Remove what is not needed there: du -x /run',
                 ('Remove what is not needed there:', 'du -x /run')),
                ('Start nova-compute: its log has more.',
                 ('Start nova-compute: its log has more.', '')),
                ('nova-kvm-ext cpu model list has what is usable.',
                 ('nova-kvm-ext cpu model list has what is usable.', ''))):
            self.assertEqual(wanted, findings.parts(remedy))

    def test_all(self):
        lines = self.render(result('PASS', 'KVM101'), result('SKIP', 'KVM103'),
                            everything=True)
        self.assertEqual(
            ['PASS KVM101', 'SKIP KVM103'],
            [line[:11] for line in lines if 'KVM' in line])
        self.assertNotIn('--all', lines[-1])

    def test_nothing_wrong(self):
        self.assertEqual('1 checks: 1 passed.', self.render(
            result('PASS'))[0])

    def test_colour(self):
        line = self.render(result('FAIL'), colour=True)[0]
        self.assertEqual('\033[1;31mFAIL\033[0m KVM101 A title', line)

    def test_where_there_is_colour(self):
        terminal = mock.Mock(**{'isatty.return_value': True})
        for out, environ, wanted in (
                (terminal, {'TERM': 'xterm'}, True),
                (terminal, {'TERM': 'xterm', 'NO_COLOR': ''}, True),
                (terminal, {'TERM': 'xterm', 'NO_COLOR': '1'}, False),
                (terminal, {'TERM': 'dumb'}, False),
                (terminal, {}, False),
                (io.StringIO(), {'TERM': 'xterm'}, False)):
            self.assertEqual(wanted, findings.has_colour(out, environ),
                             str(environ))
