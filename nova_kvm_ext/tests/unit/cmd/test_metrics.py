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

import contextlib
import io
import os
import threading
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext.cmd import base as cmd_base
from nova_kvm_ext.cmd import main
from nova_kvm_ext import errors
from nova_kvm_ext.guests import survey
from nova_kvm_ext.guests import verdicts
from nova_kvm_ext.health import probe
from nova_kvm_ext.health import verdict as health
from nova_kvm_ext.tests.unit.guests import test_verdicts


class MetricsTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.connect = self.useFixture(fixtures.MockPatchObject(
            cmd_base, 'libvirt_connection',
            side_effect=lambda *args: contextlib.nullcontext())).mock
        self.useFixture(fixtures.MockPatchObject(
            cmd_base, 'read_few', return_value=mock.Mock(
                state_path=self.directory, host='h')))
        self.look = self.useFixture(fixtures.MockPatchObject(
            survey, 'look', return_value=survey.Survey(
                (verdicts.judge(test_verdicts.GUEST, test_verdicts.TODAY),),
                test_verdicts.TODAY, libvirt='9.0.0'))).mock

    def run_command(self, *arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with fixtures.MonkeyPatch('sys.stdout', out), fixtures.MonkeyPatch(
                'sys.stderr', err):
            code = main.main(['metrics', *arguments])
        return code, out.getvalue(), err.getvalue()

    def test_printed(self):
        code, out, _ = self.run_command()
        self.assertEqual(0, code)
        self.assertIn('nova_kvm_ext_libvirt_up 1.0\n', out)
        self.assertIn('nova_kvm_ext_guests{state="running"} 1.0\n', out)
        self.assertNotIn('nova_kvm_ext_image_refusals', out)

    def test_what_nova_compute_counted(self):
        os.mkdir(os.path.join(self.directory, 'kvm-ext-counters'))
        with open(os.path.join(self.directory, 'kvm-ext-counters',
                               'of-h.json'), 'w') as f:
            f.write('{"since": 5, "nova_kvm_ext_image_refusals_total": '
                    '[[["mbr"], 3]]}')
        _, out, _ = self.run_command()
        self.assertIn(
            'nova_kvm_ext_image_refusals_total{check="mbr"} 3.0\n', out)

    def test_what_nova_compute_wrote_down(self):
        state = {'written': 100, 'clock': 50, 'host_check': {
            'at': 40, 'results': {'KVM101': 'FAIL', 'KVM102': 'PASS'}}}
        with (mock.patch.object(probe, 'read', return_value=state),
              mock.patch.object(probe, 'judge_here', return_value=[
                  health.Part(health.LIBVIRT, health.FAIL, 'gone')])):
            _, out, _ = self.run_command()
        for line in ('host_check{code="KVM101",result="FAIL"} 1.0',
                     'host_checks{result="PASS"} 1.0',
                     'host_check_timestamp_seconds 90.0',
                     'service_health{part="libvirt",result="FAIL"} 1.0'):
            self.assertIn(f'nova_kvm_ext_{line}\n', out)

    def test_a_state_that_is_none(self):
        with mock.patch.object(probe, 'read',
                               side_effect=probe.NotKnown('odd')):
            code, out, err = self.run_command()
        self.assertEqual(0, code)
        self.assertIn('nova_kvm_ext_libvirt_up 1.0\n', out)
        self.assertIn('odd', err)

    def test_a_libvirt_that_is_down(self):
        self.connect.side_effect = errors.HostError('down')
        code, out, err = self.run_command()
        self.assertEqual(0, code)
        self.assertIn('nova_kvm_ext_libvirt_up 0.0\n', out)
        self.assertNotIn('nova_kvm_ext_guests', out)
        self.assertIn('down', err)

    def test_a_libvirt_that_hangs(self):
        over = threading.Event()
        self.addCleanup(over.set)
        self.look.side_effect = lambda *args: over.wait(60)
        code, out, err = self.run_command('--timeout', '1')
        self.assertEqual(0, code)
        self.assertIn('nova_kvm_ext_libvirt_up 0.0\n', out)
        self.assertIn('does not answer within 1 s', err)

    def test_a_defect_is_no_silence(self):
        self.look.side_effect = KeyError('x')
        self.assertEqual(3, self.run_command()[0])

    def test_textfile(self):
        path = os.path.join(self.directory, 'n.prom')
        code, out, _ = self.run_command('--textfile', path)
        self.assertEqual((0, ''), (code, out))
        with open(path) as f:
            self.assertIn('nova_kvm_ext_libvirt_up 1.0\n', f.read())

    def test_a_name_that_node_exporter_does_not_take(self):
        code, _, err = self.run_command('--textfile', '/tmp/x.txt')
        self.assertEqual(3, code)
        self.assertIn('.prom', err)
        self.look.assert_not_called()

    def test_a_directory_that_is_not_there(self):
        code, _, err = self.run_command('--textfile', '/none/x.prom')
        self.assertEqual(3, code)
        self.assertIn('/none/x.prom cannot be written', err)
