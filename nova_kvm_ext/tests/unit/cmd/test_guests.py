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
from nova_kvm_ext.guests import pauses
from nova_kvm_ext.guests import reasons
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
                 paused=model.Paused('io_error', 'by an I/O error'))
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

    def test_show_with_the_disk_that_had_the_error(self):
        self.guests = []
        self.add('g', paused=model.Paused('io_error', 'by an I/O error'))
        pause = reasons.Pause(reasons.Reason.IO_ERROR, (reasons.DiskError(
            'vda', reasons.Cause.NO_SPACE),))
        with (mock.patch.object(agent, 'find'),
              mock.patch.object(pauses, 'read', return_value=pause) as read):
            _, out, _ = self.run_command('show', 'g', '-f', 'json')
            self.assertEqual('by an I/O error: no space on disk vda',
                             json.loads(out)['paused'])
            # A QEMU that hangs is never asked.
            read.reset_mock()
            self.guests = []
            self.add('g', process=model.Process(7, 'T'),
                     paused=model.Paused('io_error', 'by an I/O error'))
            self.run_command('show', 'g')
            read.assert_not_called()

    def test_show_of_one_that_does_not_run(self):
        self.guests = []
        with mock.patch.object(agent, 'find'):
            code, _, err = self.run_command('show', 'g')
        self.assertEqual(2, code)
        self.assertIn('g does not run', err)
