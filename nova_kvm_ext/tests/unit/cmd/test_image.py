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
import json
import os
import signal
from typing import Any
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext.cmd import base as cmd_base
from nova_kvm_ext.cmd import main
from nova_kvm_ext.exit_codes import ExitCode
from nova_kvm_ext.images import convert
from nova_kvm_ext.images import qemu_img
from nova_kvm_ext.images import verdict
from nova_kvm_ext.tests.unit.images import corpus

QED = corpus.qed().ljust(corpus._QED_SIZE, b'\0')


class ImageCommandTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path
        # The beginning of the disk is in a file without a name.
        self.info = self.useFixture(fixtures.MockPatchObject(
            qemu_img, 'info', side_effect=lambda f, limits: verdict.Info(
                'raw' if f.writable() else 'qcow2', 1 << 20))
        ).mock
        self.useFixture(fixtures.MockPatchObject(qemu_img, 'copy_head'))
        self.useFixture(fixtures.MockPatch(
            'nova_kvm_ext.host.install.check', return_value=None))
        self.which = self.useFixture(fixtures.MockPatch(
            'shutil.which', return_value='/usr/bin/qemu-img')).mock
        self.conf = self.useFixture(fixtures.MockPatchObject(
            cmd_base, 'read_conf', side_effect=self.read_conf)).mock

    def read_conf(self, files: Any) -> Any:
        """nova.conf of the tests' own process is left as it is."""
        from nova_kvm_ext import conf
        conf.register_opts(cmd_base.nova_conf.CONF)
        return cmd_base.nova_conf.CONF

    def file(self, name: str, content: bytes) -> str:
        path = os.path.join(self.directory, name)
        with open(path, 'wb') as f:
            f.write(content)
        return path

    def run_it(self, *arguments: str) -> int:
        self.out, self.err = io.StringIO(), io.StringIO()
        with fixtures.MonkeyPatch('sys.stdout', self.out), (
                fixtures.MonkeyPatch('sys.stderr', self.err)):
            return main.main(['image', *arguments])


class CheckTestCase(ImageCommandTestCase):

    def check(self, *arguments: str) -> dict[str, Any]:
        self.code = self.run_it('check', '-f', 'json', *arguments)
        return json.loads(self.out.getvalue())

    def test_accepted(self):
        found = self.check(self.file('x', QED))
        self.assertEqual(ExitCode.PASS, self.code)
        self.assertEqual(
            {'result': 'PASS', 'check': 'all', 'reason': '', 'remedy': '',
             'disk_format': 'qed', 'content': ['qed'],
             'file_size': len(QED), 'virtual_size': 1 << 20,
             'converted_to': 'raw'}, found)

    def test_declared(self):
        path = self.file('x', corpus.qcow2())
        self.assertEqual('PASS', self.check(
            path, '--disk-format', 'qcow2')['result'])
        found = self.check(path, '--disk-format', 'raw')
        self.assertEqual(ExitCode.FAIL, self.code)
        self.assertEqual('It is qcow2, not raw, as declared.',
                         found['reason'])

    def test_declared_as_anything(self):
        found = self.check(self.file('x', QED), '--disk-format', '\x1b[2J')
        self.assertEqual('[2J', found['disk_format'])
        self.assertEqual(ExitCode.FAIL, self.code)

    def test_standard_input(self):
        stdin = mock.Mock(buffer=io.BytesIO(QED))
        with fixtures.MonkeyPatch('sys.stdin', stdin):
            self.assertEqual('PASS', self.check('-')['result'])

    def test_for_people(self):
        self.assertEqual(ExitCode.FAIL, self.run_it(
            'check', self.file('x', corpus.descriptor())))
        self.assertIn('names other files', self.out.getvalue())

    def test_no_such_file(self):
        self.assertEqual(ExitCode.USAGE, self.run_it('check', '/no/such'))
        self.assertEqual('error: /no/such cannot be read: No such file or '
                         'directory.\n', self.err.getvalue())

    def test_no_qemu_img(self):
        self.which.return_value = None
        self.assertEqual(ExitCode.HOST, self.run_it(
            'check', self.file('x', QED)))
        self.assertIn('qemu-utils', self.err.getvalue())

    def test_no_regular_file(self):
        """A pipe without a writer does not block it either."""
        pipe = os.path.join(self.directory, 'pipe')
        os.mkfifo(pipe)
        for path in (pipe, self.directory, '/dev/null'):
            self.assertEqual(ExitCode.USAGE, self.run_it('check', path))
            self.assertIn('error: ', self.err.getvalue())

    def test_signal(self):
        self.info.side_effect = lambda *args: os.kill(
            os.getpid(), signal.SIGTERM)
        before = signal.getsignal(signal.SIGTERM)
        self.assertEqual(128 + signal.SIGTERM, self.run_it(
            'check', self.file('x', corpus.qcow2())))
        self.assertEqual(before, signal.getsignal(signal.SIGTERM))


class ConvertTestCase(ImageCommandTestCase):

    def setUp(self):
        super().setUp()
        self.source = self.file('source', QED)
        self.destination = os.path.join(self.directory, 'result')
        self.convert = self.useFixture(fixtures.MockPatchObject(
            convert, 'convert')).mock

    def test_done(self):
        self.assertEqual(ExitCode.PASS, self.run_it(
            'convert', self.source, self.destination))
        (_, decided, destination, limits), how = self.convert.call_args
        self.assertEqual(('qed', 'qcow2', self.destination), (
            decided.disk_format, decided.converted_to, destination))
        self.assertIsInstance(how.pop('direct'), bool)
        self.assertEqual({'overwrite': False, 'progress': self.err}, how)

    def test_overwrite(self):
        self.run_it('convert', '--overwrite', self.source, self.destination)
        self.assertTrue(self.convert.call_args.kwargs['overwrite'])

    def test_refused(self):
        self.assertEqual(ExitCode.FAIL, self.run_it(
            'convert', self.source, self.destination, '--disk-format', 'raw'))
        self.assertIn('refused by the check "content"', self.err.getvalue())
        self.convert.assert_not_called()

    def test_errors(self):
        for error, code, words in (
                (convert.ConversionError('No luck.'), ExitCode.FAIL,
                 'No luck'),
                (qemu_img.QemuImgFailure('Killed.', 'Make room.'),
                 ExitCode.HOST, 'Make room.'),
                (FileExistsError('the destination exists'), ExitCode.USAGE,
                 '--overwrite'),
                (PermissionError(13, 'Permission denied'), ExitCode.HOST,
                 'Permission denied')):
            self.convert.side_effect = error
            self.assertEqual(code, self.run_it(
                'convert', self.source, self.destination))
            self.assertIn(words, self.err.getvalue())
