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

"""What qemu-img said is remembered, and forgotten in time. Files are real."""

import json
import os
import shutil
import threading
from typing import Any

import fixtures
from oslotest import base

from nova_kvm_ext.images import answers

RAW = {'format': 'raw', 'virtual-size': 1 << 20}
QCOW2 = {'format': 'qcow2', 'virtual-size': 1 << 30, 'cluster-size': 1 << 16,
         'encrypted': False,
         'format-specific': {'type': 'qcow2', 'data': {'compat': '1.1'}}}


class AnswersTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.answers = answers.Answers()
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.path = os.path.join(self.directory, 'base')
        with open(self.path, 'wb') as f:
            f.write(os.urandom(1 << 20))
        self.answer: Any = RAW
        self.asked = 0

    def ask(self, path: str, disk_format: str | None) -> str:
        self.asked += 1
        return json.dumps(self.answer)

    def get(self, path: str | None = None,
            disk_format: str | None = None) -> str:
        return self.answers.get(path or self.path, disk_format, self.ask)

    def assertAsksEachTime(self, path: str | None = None) -> None:
        self.asked = 0
        for _ in range(3):
            self.get(path)
        self.assertEqual(3, self.asked)

    def test_once(self):
        for answer in (RAW, QCOW2):
            self.answer = answer
            self.assertEqual(json.dumps(answer), self.get())
            self.answer = None
            self.assertEqual(json.dumps(answer), self.get())
            self.answers = answers.Answers()
        self.assertEqual(2, self.asked)

    def test_novas_touch_is_no_change(self):
        self.get()
        os.utime(self.path)
        self.get()
        self.assertEqual(1, self.asked)

    def test_written_to_in_place(self):
        """Neither size nor inode tell, and the times are put back."""
        self.get()
        for offset in (0, 511, (1 << 16) - 1):
            before = os.stat(self.path)
            with open(self.path, 'r+b') as f:
                f.seek(offset)
                byte = f.read(1)[0]
                f.seek(offset)
                f.write(bytes([byte ^ 1]))
            os.utime(self.path, ns=(before.st_atime_ns, before.st_mtime_ns))
            self.asked = 0
            self.get()
            self.assertEqual(1, self.asked, str(offset))

    def test_replaced(self):
        self.get()
        shutil.copy2(self.path, self.path + '.new')
        os.rename(self.path + '.new', self.path)
        self.get()
        self.assertEqual(2, self.asked)

    def test_other_size(self):
        self.get()
        for size in ((1 << 20) + 512, 1 << 19):
            self.asked = 0
            os.truncate(self.path, size)
            self.get()
            self.assertEqual(1, self.asked)

    def test_holes(self):
        """qemu-img tells how much of a disk a file takes up."""
        self.get()
        size = os.stat(self.path).st_blocks
        os.truncate(self.path, 1 << 16)
        os.truncate(self.path, 1 << 20)
        if os.stat(self.path).st_blocks == size:
            self.skipTest('This file system makes no holes.')
        self.get()
        self.assertEqual(2, self.asked)

    def test_format_is_part_of_the_question(self):
        self.get()
        self.get(disk_format='raw')
        self.get(disk_format='raw')
        self.assertEqual(2, self.asked)

    def test_another_name_is_another_image(self):
        """The answer has it."""
        os.link(self.path, self.path + '.link')
        self.get()
        self.get(self.path + '.link')
        self.assertEqual(2, self.asked)

    def test_replaced_while_asking(self):
        def ask(path: str, disk_format: str | None) -> str:
            with open(path, 'r+b') as f:
                f.write(b'QFI\xfb')
            return self.ask(path, disk_format)

        self.answers.get(self.path, None, ask)
        with open(self.path, 'r+b') as f:
            f.write(b'QFI\xfb')
        self.get()
        self.assertEqual(2, self.asked)

    def test_errors_are_not_remembered(self):
        def ask(path: str, disk_format: str | None) -> str:
            raise ValueError

        self.assertRaises(ValueError, self.answers.get, self.path, None, ask)
        self.get()
        self.get()
        self.assertEqual(1, self.asked)

    def test_never_remembered(self):
        answer: Any
        for answer in (
                QCOW2 | {'cluster-size': 1 << 17},
                QCOW2 | {'encrypted': True},
                QCOW2 | {'snapshots': [{'id': '1'}]},
                QCOW2 | {'backing-filename': 'x'},
                QCOW2 | {'format-specific': {'data': {'data-file': 'x'}}},
                QCOW2 | {'format-specific': {'data': {'bitmaps': []}}},
                QCOW2 | {'format-specific': None},
                QCOW2 | {'cluster-size': 'x'},
                {'format': 'vmdk', 'virtual-size': 1}, {'format': 'vpc'},
                {'format': ['raw']}, {}, [], None, 'raw', 7):
            self.answer = answer
            self.assertAsksEachTime()
        self.assertEqual({}, self.answers._answers)

    def test_no_answer_at_all(self):
        said = iter(('no JSON', '"raw"', ''))
        for answer in ('no JSON', '"raw"', ''):
            self.assertEqual(answer, self.answers.get(
                self.path, None, lambda path, disk_format: next(said)))

    def test_what_is_no_file(self):
        """A pipe would have its reader wait for ever."""
        pipe = os.path.join(self.directory, 'pipe')
        os.mkfifo(pipe)
        for path in (self.directory, pipe, '/no/such', '/dev/null',
                     'rbd:pool/image'):
            self.assertAsksEachTime(path)

    def test_bounded(self):
        names = [os.path.join(self.directory, str(n)) for n in range(300)]
        for name in names:
            with open(name, 'w') as f:
                f.write(name)
            self.get(name)
        self.assertEqual(answers._MOST, len(self.answers._answers))
        self.asked = 0
        self.get(names[-1])
        self.assertEqual(0, self.asked)
        self.get(names[0])
        self.assertEqual(1, self.asked)

    def test_threads(self):
        names = [os.path.join(self.directory, str(n)) for n in range(20)]
        for name in names:
            with open(name, 'w') as f:
                f.write(name)
        wrong = []

        def ask(path: str, disk_format: str | None) -> str:
            return json.dumps(RAW | {'filename': path})

        def work() -> None:
            for name in names * 20:
                answer = self.answers.get(name, None, ask)
                if json.loads(answer)['filename'] != name:
                    wrong.append(name)

        threads = [threading.Thread(target=work) for _ in range(8)]
        self.useFixture(fixtures.MockPatchObject(answers, '_MOST', 5))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual([], wrong)
        self.assertLessEqual(len(self.answers._answers), 5)
