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

"""A stand-in for qemu-img: these tests need no QEMU."""

import contextlib
import os
import signal
import subprocess
import sys
from typing import Any
from unittest import mock

import fixtures
from oslotest import base
import testtools

from nova_kvm_ext.images import convert
from nova_kvm_ext.images import facts
from nova_kvm_ext.images import qemu_img
from nova_kvm_ext.images import verdict

LIMITS = qemu_img.Limits(cpu_time=2, memory=1 << 30)
QED = verdict.Verdict(True, 'all', disk_format='qed', converted_to='qcow2',
                      virtual_size=4096)


class QemuImgTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.path = os.path.join(self.directory, 'source')
        with open(self.path, 'wb') as f:
            f.write(b'content')
        self.source = open(self.path, 'rb')
        self.addCleanup(self.source.close)
        tools = self.useFixture(fixtures.TempDir()).path
        self.tool = os.path.join(tools, 'qemu-img')
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', f'{tools}:{os.environ["PATH"]}'))

    def does(self, script: str) -> None:
        with open(self.tool, 'w') as f:
            f.write('#!/bin/sh\n' + script)
        os.chmod(self.tool, 0o755)

    def fails(self, cls: type[Exception] = qemu_img.QemuImgError,
              **how: Any) -> str:
        error = self.assertRaises(cls, qemu_img.run, ['info'], LIMITS, **how)
        self.assertIs(cls, type(error))
        return str(error)


class RunTestCase(QemuImgTestCase):

    def test_answer_and_open_file(self):
        self.does('cat $1')
        self.assertEqual('content', qemu_img.run(
            [qemu_img.name(self.source)], LIMITS, files=[self.source]))

    def test_limits(self):
        self.does('exec bash -c "ulimit -d -s -t -c -f; ulimit -v"')
        said = qemu_img.run([], LIMITS).splitlines()
        self.assertEqual(
            {str(1 << 20), '2048', '2', '0', '1024', 'unlimited'},
            {line.split()[-1] for line in said}, ' '.join(said))

    def test_failure(self):
        self.does('echo "qemu-img: Could not open /var/lib/nova/_base/ab: '
                  'No such file" >&2; exit 1')
        self.assertEqual('Could not open ab: No such file', self.fails())

    def test_too_much_time(self):
        self.does('while :; do :; done')
        self.assertIn('more than 2 s of CPU time',
                      self.fails(qemu_img.QemuImgFailure))

    def test_too_much_output(self):
        self.does('exec dd if=/dev/zero bs=1M count=9 status=none')
        self.assertIn('File too large', self.fails())

    def test_it_hangs(self):
        self.does('exec sleep 1000')
        with mock.patch.object(qemu_img, '_WALL_FACTOR', 0.05):
            self.assertIn('has not ended within 0.1 s',
                          self.fails(qemu_img.QemuImgFailure))

    def test_signals(self):
        """None of them says anything about the image."""
        for number, words in (
                (6, 'SIGABRT: qemu_thread_create: oops. It may have needed '
                    'more than 1024 MiB'),
                (9, 'SIGKILL: qemu_thread_create: oops. It needed more than '
                    '2 s'),
                (11, 'SIGSEGV'), (15, 'SIGTERM'), (40, 'signal 40')):
            self.does(f'echo "qemu_thread_create: oops" >&2; kill -{number} '
                      f'$$')
            self.assertIn(words, self.fails(qemu_img.QemuImgFailure))

    def test_what_is_the_hosts_fault(self):
        for words in (
                'error while writing at byte 0: No space left on device',
                'error while writing at byte 0: Disk quota exceeded',
                'Could not open x: Too many open files',
                'Could not open x: Permission denied',
                'Could not allocate buffer: Cannot allocate memory',
                'x: error while loading shared libraries: y'):
            self.does(f'echo "qemu-img: {words}" >&2; exit 1')
            self.assertIn(words, self.fails(qemu_img.QemuImgFailure))

    def test_what_only_a_writer_cannot_help(self):
        for words, when_writing in (
                ('error while writing at byte 0: File too large',
                 qemu_img.QemuImgFailure),
                ('error while writing at byte 0: Input/output error',
                 qemu_img.QemuImgFailure),
                ('error while reading at byte 0: Input/output error',
                 qemu_img.QemuImgError)):
            self.does(f'echo "qemu-img: {words}" >&2; exit 1')
            self.assertIn(words, self.fails())
            self.assertIn(words, self.fails(when_writing, output=1 << 20))

    def test_no_tool(self):
        with fixtures.EnvironmentVariable('PATH', self.directory):
            self.assertIn('Install it', self.fails(qemu_img.QemuImgFailure))

    def test_it_cannot_be_started(self):
        with open(self.tool, 'wb') as f:
            f.write(b'no program')
        os.chmod(self.tool, 0o755)
        self.assertIn('cannot be started',
                      self.fails(qemu_img.QemuImgFailure))

    def test_a_module_in_the_working_directory(self):
        """It is not taken for oslo.concurrency."""
        with open(os.path.join(self.directory, 'oslo_concurrency.py'),
                  'w') as f:
            f.write('raise SystemExit("hostile")')
        self.does('echo good')
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        self.useFixture(fixtures.EnvironmentVariable(
            'PYTHONPATH', os.pathsep.join(p for p in sys.path if p)))
        os.chdir(self.directory)
        self.assertEqual('good\n', qemu_img.run([], LIMITS))

    def test_interrupted(self):
        """What it has started ends with it."""
        self.does('echo $$ > %s/pid; kill -USR1 $PPID; exec sleep 1000' %
                  self.directory)

        def raise_it(signum: int, frame: Any) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGUSR1, raise_it)
        self.addCleanup(signal.signal, signal.SIGUSR1, before)
        self.assertRaises(KeyboardInterrupt, qemu_img.run, [], LIMITS)
        with open(os.path.join(self.directory, 'pid')) as f:
            self.assertRaises(ProcessLookupError, os.kill, int(f.read()), 0)

    def test_info(self):
        self.does('echo \'{"format": "vmdk", "virtual-size": 4096, '
                  '"format-specific": {"data": {"create-type": "x"}}}\'')
        self.assertEqual(
            verdict.Info('vmdk', 4096, create_type='x'),
            qemu_img.info(self.source, LIMITS))

    def test_info_of_other_files(self):
        self.does('echo \'{"format": "qcow2", "virtual-size": 1, '
                  '"backing-filename": "x", '
                  '"format-specific": {"data": {"data-file": "y"}}}\'')
        found = qemu_img.info(self.source, LIMITS)
        self.assertTrue(found.backing_file and found.data_file)

    def test_info_without_sense(self):
        for answer in ('', '[]', '{', '{"format": "raw"}', 'null'):
            self.does(f"echo '{answer}'")
            self.assertRaises(qemu_img.QemuImgError, qemu_img.info,
                              self.source, LIMITS)

    def test_limits_of_a_conversion_grow_with_file_and_disk(self):
        self.assertEqual(2 + 120 + 60,
                         LIMITS.to_convert(2 << 30, 3 << 30).cpu_time)
        self.assertEqual(LIMITS, LIMITS.to_convert(0, 0))

    def test_the_beginning_of_a_disk(self):
        self.does('echo "$@" > %s/said' % self.directory)
        with open(os.path.join(self.directory, 'head'), 'wb') as f:
            qemu_img.copy_head(self.source, 'qed', f, 512, LIMITS)
            with open(os.path.join(self.directory, 'said')) as said:
                self.assertEqual(
                    f'dd --force-share -f qed -O raw bs=512 count=1 '
                    f'if=/dev/fd/{self.source.fileno()} '
                    f'of=/dev/fd/{f.fileno()}\n', said.read())


class ConvertTestCase(QemuImgTestCase):

    def setUp(self):
        super().setUp()
        self.destination = os.path.join(self.directory, 'result')
        # The last word is where to.
        self.does('for to; do :; done; echo "$@" > %s/said; '
                  'printf result > $to' % self.directory)
        self.facts = self.useFixture(fixtures.MockPatchObject(
            facts, 'read', return_value=verdict.Facts(
                1, ('qcow2',), info=verdict.Info('qcow2', 4096)))).mock

    def convert(self, **how: Any) -> None:
        convert.convert(self.source, QED, self.destination, LIMITS, **how)

    def left(self) -> set[str]:
        return set(os.listdir(self.directory)) - {'source', 'said'}

    def test_done(self):
        self.convert()
        self.assertEqual({'result'}, self.left())
        with open(os.path.join(self.directory, 'said')) as f:
            self.assertIn(' -f qed -O qcow2 /dev/fd/', f.read())

    def test_existing_destination(self):
        with open(self.destination, 'w') as f:
            f.write('theirs')
        self.assertRaises(FileExistsError, self.convert)
        with open(self.destination) as f:
            self.assertEqual('theirs', f.read())
        self.convert(overwrite=True)
        with open(self.destination) as f:
            self.assertEqual('result', f.read())
        self.assertEqual({'result'}, self.left())

    def test_destination_that_comes_in_between(self):
        def read(*args: Any) -> verdict.Facts:
            with open(self.destination, 'w') as f:
                f.write('theirs')
            return mock.DEFAULT

        self.facts.side_effect = read
        self.assertRaises(FileExistsError, self.convert)
        with open(self.destination) as f:
            self.assertEqual('theirs', f.read())
        self.assertEqual({'result'}, self.left())

    def test_never_its_source(self):
        link = os.path.join(self.directory, 'link')
        os.symlink(self.path, link)
        for destination in (self.path, link):
            self.assertRaises(
                FileExistsError, convert.convert, self.source, QED,
                destination, LIMITS, overwrite=True)
        self.assertEqual(b'content', self.source.read())

    def test_what_a_killed_one_left(self):
        temporary = self.destination + '.converted'
        with open(temporary, 'w') as f:
            f.write('old, and longer than the new one')
        self.convert(temporary=temporary)
        with open(self.destination) as f:
            self.assertEqual('result', f.read())
        self.assertEqual({'result'}, self.left())

    def test_failure(self):
        self.does('echo "qemu-img: Invalid argument" >&2; exit 1')
        error = self.assertRaises(convert.ConversionError, self.convert)
        self.assertEqual('qemu-img cannot convert it: Invalid argument.',
                         str(error))
        self.assertEqual(set(), self.left())

    def test_failure_of_the_host(self):
        """Which is nothing that is wrong with the image."""
        for script in ('echo "x: No space left on device" >&2; exit 1',
                       'kill -6 $$', 'kill -9 $$'):
            self.does(script)
            self.assertRaises(qemu_img.QemuImgFailure, self.convert)
            self.assertEqual(set(), self.left())

    def test_a_disk_below_the_image_that_fails(self):
        """QEMU says the same of damaged tables within the image."""
        self.does('echo "error while reading at byte 0: Input/output error" '
                  '>&2; exit 1')
        self.assertRaises(convert.ConversionError, self.convert)
        broken = mock.Mock(wraps=self.source)
        broken.read.side_effect = OSError(5, 'Input/output error')
        error = self.assertRaises(
            qemu_img.QemuImgFailure, convert.convert, broken, QED,
            self.destination, LIMITS)
        self.assertIn("this host's disk", str(error))

    def test_direct_io_where_it_works(self):
        for direct, wanted in ((True, '-t none '), (False, '-t writeback ')):
            self.convert(direct=direct, overwrite=True)
            with open(os.path.join(self.directory, 'said')) as f:
                self.assertIn(wanted, f.read())

    def test_raw_result_is_looked_at(self):
        """What is a sound raw base, and for whom."""
        found = self.useFixture(fixtures.MockPatchObject(
            facts, 'content')).mock
        for content, size, inspected, good in (
                (verdict.Content(('raw',), True, 'raw'), 6, True, True),
                (verdict.Content(('gpt',), True, 'raw'), 6, True, True),
                (verdict.Content(('gpt',), False, 'raw'), 6, False, True),
                (verdict.Content(('gpt',), False, 'raw'), 6, True, False),
                (verdict.Content(('raw',), True, 'raw'), 7, True, False),
                (verdict.Content(('qcow2',), True, 'qcow2'), 6, False, False),
                (verdict.Content((), False, None), 6, False, False)):
            found.return_value = content
            decided = verdict.Verdict(
                True, 'all', disk_format='qcow2', converted_to='raw',
                virtual_size=size, inspected=inspected)
            with contextlib.ExitStack() as stack:
                if not good:
                    stack.enter_context(testtools.ExpectedException(
                        convert.ConversionError))
                convert.convert(self.source, decided, self.destination,
                                LIMITS, overwrite=True)

    def test_interrupted(self):
        for error in (KeyboardInterrupt, SystemExit, GeneratorExit):
            with mock.patch.object(qemu_img, 'run', side_effect=error):
                self.assertRaises(error, self.convert)
            self.assertEqual(set(), self.left())

    def test_result_is_looked_at(self):
        for found in (
                verdict.Facts(1, ('qcow2', 'gpt')),
                verdict.Facts(1, (), unreadable=True),
                verdict.Facts(1, ('qcow2',), failed_checks=('backing_file',)),
                verdict.Facts(1, ('qcow2',), info=verdict.Info('raw', 4096)),
                verdict.Facts(1, ('qcow2',), info=verdict.Info('qcow2', 1))):
            self.facts.return_value = found
            self.assertRaises(convert.ConversionError, self.convert)
            self.assertEqual(set(), self.left())

    def test_progress(self):
        self.does('echo "$@"; for to; do :; done; printf result > $to')
        with open(os.path.join(self.directory, 'said'), 'w+') as f:
            self.convert(progress=f)
            f.seek(0)
            self.assertIn('convert -p ', f.read())

    def test_no_qemu_img(self):
        os.unlink(self.tool)
        with mock.patch.dict(os.environ, PATH=os.path.dirname(self.tool)):
            self.assertRaises(qemu_img.QemuImgFailure, self.convert)
        self.assertEqual(set(), self.left())

    def test_the_process_cannot_be_started(self):
        with mock.patch.object(
                subprocess, 'Popen', side_effect=FileNotFoundError):
            self.assertRaises(FileNotFoundError, self.convert)
        self.assertEqual(set(), self.left())
