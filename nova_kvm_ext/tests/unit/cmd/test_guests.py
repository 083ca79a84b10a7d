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
import dataclasses
import io
import json
from typing import Any
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext.cmd import agent
from nova_kvm_ext.cmd import base as cmd_base
from nova_kvm_ext.cmd import main
from nova_kvm_ext.guests import model
from nova_kvm_ext.guests import resumer
from nova_kvm_ext.guests import survey
from nova_kvm_ext.guests import verdicts
from nova_kvm_ext.tests.unit.guests import test_verdicts


class GuestsTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(
            cmd_base, 'libvirt_connection',
            return_value=contextlib.nullcontext(mock.Mock())))
        self.useFixture(fixtures.MockPatchObject(
            cmd_base, 'read_few', return_value=mock.Mock()))
        self.useFixture(fixtures.MockPatchObject(
            resumer, 'explain', return_value={}))
        self.guests = [test_verdicts.GUEST]
        self.look = self.useFixture(fixtures.MockPatchObject(
            survey, 'look', side_effect=lambda *args: survey.Survey(
                tuple(verdicts.judge_all(self.guests, test_verdicts.TODAY)),
                test_verdicts.TODAY))).mock

    def run_command(self, *arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with fixtures.MonkeyPatch('sys.stdout', out), fixtures.MonkeyPatch(
                'sys.stderr', err):
            code = main.main(['guest', *arguments])
        return code, out.getvalue(), err.getvalue()

    def add(self, name: str, **what: Any) -> None:
        self.guests.append(dataclasses.replace(
            test_verdicts.GUEST, name=name, uuid=name, **what))

    def names(self, *options: str) -> tuple[int, list[str]]:
        code, out, _ = self.run_command('list', '-f', 'json', *options)
        return code, [one['name'] for one in json.loads(out)]

    def test_nothing_to_look_into(self):
        code, out, _ = self.run_command('list')
        self.assertEqual(0, code)
        self.assertIn(
            '| instance-1 | running | 7.2.22 | q35-7.2 | ?   | -', out)

    def test_outdated_and_drift(self):
        self.add('old', machine='pc-i440fx-1.7')
        self.assertEqual((1, ['instance-1', 'old']), self.names())
        self.assertEqual((1, ['old']), self.names('--outdated'))
        self.assertEqual((0, []), self.names('--drift'))
        self.assertEqual((1, ['old']), self.names('--drift', '--outdated'))

    def test_what_is_wrong(self):
        for what in ({'process': model.Process(7, 'T')},
                     {'frozen': model.Frozen(1, 'by hand')},
                     {'paused': model.Paused('io_error', 'by an error')}):
            self.guests = []
            self.add('bad', **what)
            self.assertEqual(2, self.names()[0], str(what))

    def test_a_line_has_80_columns(self):
        self.guests = []
        self.add('instance-0000001a', machine='pc-i440fx-1.7', qemu='10.0.11',
                 process=model.Process(7, 'T', replaced=True, why='x'),
                 frozen=model.Frozen(1, 'x'), state=3, channel=True,
                 paused=model.Paused('io_error', 'by an I/O error',
                                     'no space (vda)'))
        _, out, _ = self.run_command('list')
        self.assertEqual([], [line for line in out.splitlines()
                              if len(line) > 80])

    def test_no_name_in_columns_is_lost(self):
        code, out, _ = self.run_command('list', '-f', 'json')
        self.assertEqual(
            {'name', 'uuid', 'hangs', 'qemu_old', 'cpu_drift', 'vhost',
             'agent', 'frozen_since'} - set(json.loads(out)[0]), set())

    def test_show(self):
        self.guests = []
        self.add('g', frozen=model.Frozen(0, 'snapshot'))
        with mock.patch.object(agent, 'find'):
            code, out, _ = self.run_command('show', 'g', '-f', 'json')
        found = json.loads(out)
        self.assertEqual((2, '1970-01-01T00:00:00Z', 'snapshot'),
                         (code, found['frozen_since'], found['frozen_why']))

    def test_the_disk_that_had_the_error(self):
        asked = []

        def explain(uri, uuids):
            asked.append(list(uuids))
            return {uuids[0]: resumer.Outcome(
                uuids[0], paused=True, words='paused by an I/O error: no '
                'space on disk vda (/i/disk); no space on disk vdb (/i/b)',
                cause='no space', disks=('vda', 'vdb'))}

        error = model.Paused('io_error', 'by an I/O error')
        self.guests = []
        self.add('full', state=3, paused=error)
        self.add('mute', state=3, paused=error)
        # A QEMU that hangs is not asked, and no guest that is well.
        self.add('hung', state=3, paused=error,
                 process=model.Process(7, 'T'))
        self.add('user', state=3, paused=model.Paused('user', 'by request'))
        self.add('well')
        with (mock.patch.object(agent, 'find'),
              mock.patch.object(resumer, 'explain', explain)):
            _, out, _ = self.run_command('list', '-f', 'json')
            found = {one['name']: one for one in json.loads(out)}
            self.assertEqual([['full', 'mute']], asked)
            self.assertEqual(
                'by an I/O error: no space on disk vda (/i/disk); no space on '
                'disk vdb (/i/b)', found['full']['paused'])
            self.assertEqual('paused', found['full']['state'])
            self.assertIn('no space on disk vda',
                          '\n'.join(found['full']['findings']))
            self.assertEqual('by an I/O error', found['mute']['paused'])
            _, out, _ = self.run_command('list')
            self.assertIn('| paused, no space (vda, vdb) |', out)
            self.guests = self.guests[:1]
            _, out, _ = self.run_command('show', 'g', '-f', 'json')
            self.assertIn('disk vda (/i/disk)', json.loads(out)['paused'])

    def test_process_that_cannot_be_started(self):
        self.guests = []
        self.add('full', state=3,
                 paused=model.Paused('io_error', 'by an I/O error'))
        with mock.patch.object(resumer, 'explain',
                               side_effect=OSError(12, 'No memory')):
            self.assertEqual((2, ['full']), self.names())

    def test_nobody_is_asked_where_no_guest_had_an_error(self):
        with mock.patch.object(resumer, 'explain') as explain:
            self.run_command('list')
        explain.assert_not_called()

    def test_show_of_one_that_does_not_run(self):
        self.guests = []
        with mock.patch.object(agent, 'find'):
            code, _, err = self.run_command('show', 'g')
        self.assertEqual(2, code)
        self.assertIn('g does not run', err)
