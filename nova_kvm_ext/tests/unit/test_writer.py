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

"""The guest that the migration tests move is what its source says."""

import os
import shutil
import subprocess

import fixtures
from oslotest import base

from nova_kvm_ext.tests.functional import writer


class WriterTestCase(base.BaseTestCase):

    def test_disk(self):
        disk = writer.disk(128)
        self.assertEqual(1024 * 1024, len(disk))
        self.assertEqual(b'\x55\xaa', disk[510:512])
        self.assertEqual(b'\x80\x00', disk[0x1f8:0x1fa])

    def test_is_what_the_source_assembles_to(self):
        for tool in ('gcc', 'ld'):
            if shutil.which(tool) is None:
                self.skipTest(f'There is no {tool}')
        if not subprocess.run(
                ['gcc', '-dumpmachine'], check=True, capture_output=True,
                text=True).stdout.startswith('x86_64'):
            self.skipTest('The compiler is for another architecture')
        directory = self.useFixture(fixtures.TempDir()).path
        linked = os.path.join(directory, 'writer.o')
        binary = os.path.join(directory, 'writer.bin')
        source = os.path.join(os.path.dirname(writer.__file__), 'writer.S')
        for command in (
                ['gcc', '-c', '-m32', '-Wa,-mx86-used-note=no', source,
                 '-o', linked],
                ['ld', '-m', 'elf_i386', '-Ttext=0x7c00',
                 '--oformat', 'binary', linked, '-o', binary]):
            subprocess.run(command, check=True, capture_output=True)
        with open(binary, 'rb') as file:
            self.assertEqual(file.read().hex(), writer.disk(0)[:512].hex())
