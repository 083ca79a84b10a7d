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

"""Arguments of tools/bench, and a driver that fails in it."""

import contextlib
import io
import json
import os
import subprocess
import sys
from unittest import mock

import ddt
import fixtures
from oslotest import base

from nova_kvm_ext.tests import bench
from nova_kvm_ext.tests import bench_soak


@ddt.ddt
class BenchTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.more = self.useFixture(fixtures.MockPatchObject(
            bench, '_more', return_value=0)).mock

    def main(self, *arguments: str) -> int:
        with mock.patch.object(sys, 'argv', ['bench', *arguments]):
            return bench.main()

    @ddt.data(('--guests', '0'), ('--guests', '9', '--running', '-1'),
              ('--guests', '9', '--at-once', '-1'), ('--soak', '-2'),
              ('--guests', '9', '--save', '/nowhere/found.json'),
              ('--guests', '9', '--save', '/'))
    def test_refused_at_once(self, arguments):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            e = self.assertRaises(SystemExit, self.main, *arguments)
        self.assertEqual(2, e.code)
        self.assertIn(arguments[-2], said.getvalue())
        self.more.assert_not_called()

    def test_none_that_runs_and_none_at_once(self):
        file = os.path.join(self.directory, 'found.json')
        self.assertEqual(0, self.main(
            '--guests', '9', '--running', '0', '--at-once', '0', '--save',
            file))
        options = self.more.call_args.args[0]
        self.assertEqual((0, 0, file), (
            options.running, options.at_once, options.save))


class SoakTestCase(base.BaseTestCase):

    def listen(self, code: int) -> list[object]:
        told: list[object] = []
        process = subprocess.Popen(
            [sys.executable, '-c',
             f'print({json.dumps(json.dumps({"boots": 1}))}); exit({code})'],
            stdout=subprocess.PIPE, text=True)
        with contextlib.redirect_stdout(io.StringIO()):
            bench_soak._listen(process, told)
        return told

    def test_a_driver_that_fails_is_no_result(self):
        self.assertEqual([{'boots': 1}], self.listen(0))
        self.assertRaises(subprocess.CalledProcessError, self.listen, 1)
