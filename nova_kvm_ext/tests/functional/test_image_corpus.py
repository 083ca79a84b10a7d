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

"""Hostile images against the real qemu-img, with every open() traced."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import unittest

import fixtures
import hypothesis
from hypothesis import strategies
from oslotest import base
from testtools import content

from nova_kvm_ext.images import convert
from nova_kvm_ext.images import facts
from nova_kvm_ext.images import qemu_img
from nova_kvm_ext.images import verdict
from nova_kvm_ext.tests.functional import libvirtd
from nova_kvm_ext.tests.unit.images import corpus

POLICY = verdict.Policy(
    max_virtual_size=1 << 40, force_raw=True, raw_only=False,
    vmdk_types=('streamOptimized', 'monolithicSparse'))
LIMITS = qemu_img.Limits(cpu_time=30, memory=2 << 30)

# Judges what it is told to, and says what that took.
_JUDGE = """
import json, logging, os, resource, sys, time
logging.disable(logging.CRITICAL)
from nova_kvm_ext.images import facts, verdict
from nova_kvm_ext.tests.functional import test_image_corpus as test
from nova_kvm_ext.tests.unit.images import corpus
def judge(path, declared):
    started = time.monotonic()
    with open(path, 'rb') as f:
        found = facts.read(f, declared, test.LIMITS)
    decided = verdict.judge(found, declared, test.POLICY)
    return decided.accepted, time.monotonic() - started
results = {}
for disk_format in sys.argv[1:]:
    results[disk_format] = judge(disk_format, disk_format)
    # qemu-img fails, too, at something that is not hostile.
    with open('image', 'wb') as f:
        f.write(corpus.HEADS['qcow2'][0][:104])
    judge('image', 'qcow2')
if not results:
    for image in corpus.images():
        image.write('image')
        results[image.name] = judge('image', image.declared)
print(json.dumps({'results': results, 'kib': [
    resource.getrusage(who).ru_maxrss
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]}))
"""

_FORMATS = {'raw': [], 'qcow2': [], 'qed': [], 'vdi': [],
            'vmdk': ['-o', 'subformat=streamOptimized']}


class CorpusTestCase(base.BaseTestCase):
    """NOVA_KVM_EXT_IMAGE_TABLE names a file that gets what it took."""

    def setUp(self):
        super().setUp()
        for tool in ('qemu-img', 'strace'):
            if shutil.which(tool) is None:
                reason = f'{tool} is not installed'
                if os.environ.get(libvirtd.REQUIRE) == '1':
                    raise RuntimeError(reason)
                raise unittest.SkipTest(reason)
        self.directory = self.useFixture(fixtures.TempDir()).path

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def make(self) -> None:
        """A sound image of each format, named by it."""
        with open(self.path('raw'), 'wb') as f:
            f.write(b'\xeb\x63\x90' + bytes(509) + os.urandom(1 << 20))
        for disk_format, options in _FORMATS.items():
            if disk_format != 'raw':
                subprocess.run(
                    ['qemu-img', 'convert', '-f', 'raw', '-O', disk_format,
                     *options, 'raw', disk_format], check=True,
                    cwd=self.directory)

    def judged(self, *formats: str) -> tuple[dict, set[str]]:
        """What the judge prints, and the paths that it tries to open."""
        trace = self.path('trace')
        os.makedirs(self.path('tmp'), exist_ok=True)
        done = subprocess.run(
            ['strace', '-f', '-qq', '-s', '4096', '-o', trace, '-e',
             'trace=open,openat,openat2,creat,connect,stat,lstat,access',
             sys.executable, '-c', _JUDGE, *formats],
            cwd=self.directory, capture_output=True, text=True,
            env=os.environ | {'PYTHONDONTWRITEBYTECODE': '1',
                              'TMPDIR': self.path('tmp'),
                              'PYTHONPATH': os.pathsep.join(sys.path)},
            timeout=300)
        self.addDetail('stderr', content.text_content(done.stderr))
        with open(trace) as f:
            opened = set(re.findall(r'"([^"]*)"', f.read()))
        return json.loads(done.stdout), opened

    def test_nothing_outside_is_opened(self):
        self.make()
        for name in ('neighbour', '../neighbour'):
            with open(self.path(name), 'wb') as f:
                f.write(os.urandom(4096))
            self.addCleanup(os.unlink, self.path(name))
        harmless, usual = self.judged(*_FORMATS)
        self.assertEqual({name: True for name in _FORMATS}, {
            name: accepted for name, (accepted, _)
            in harmless['results'].items()})
        hostile, opened = self.judged()
        self.assertEqual([], [name for name, (accepted, _)
                              in hostile['results'].items() if accepted])
        # Number of descriptors and processes, and temporary files, differ.
        self.assertEqual([], sorted(
            path for path in opened - usual
            if not re.fullmatch(r'/dev/fd/\d+|/proc/(self|\d+)/.*', path) and
            path != 'image' and 'corpus' not in path and
            not path.startswith(self.path('tmp'))))
        name, seconds = max(((name, seconds) for name, (_, seconds)
                             in hostile['results'].items()),
                            key=lambda item: item[1])
        self.assertLess(seconds, 20, name)
        own, childs = hostile['kib']
        self.assertLess(own, 512 * 1024)
        self.assertLess(childs, 256 * 1024)
        table = os.environ.get('NOVA_KVM_EXT_IMAGE_TABLE')
        if table:
            with open(table, 'a') as f:
                f.write(json.dumps({
                    'corpus': len(hostile['results']), 'slowest': name,
                    'seconds_under_strace': round(seconds, 2),
                    'own_kib': own, 'qemu_img_kib': childs}) + '\n')

    def test_the_trace_would_tell(self):
        """QEMU, shown a hostile image, does open what that names."""
        with open(self.path('hostile'), 'w') as f:
            f.write('# Disk DescriptorFile\nversion=1\nCID=1\n'
                    'parentCID=ffffffff\ncreateType="monolithicFlat"\n'
                    'RW 8 FLAT "neighbour" 0\n')
        trace = self.path('trace')
        subprocess.run(['strace', '-f', '-o', trace, 'qemu-img', 'info',
                        'hostile'], cwd=self.directory, capture_output=True)
        with open(trace) as f:
            self.assertIn('"neighbour"', f.read())

    def test_mutations(self):
        """Whatever the bytes: a verdict, and what passes can be converted."""
        self.make()
        sound = {}
        for disk_format in _FORMATS:
            with open(self.path(disk_format), 'rb') as f:
                sound[disk_format] = f.read()
        seen = set()

        @hypothesis.settings(max_examples=200, deadline=None, database=None)
        @hypothesis.given(strategies.sampled_from(sorted(sound)),
                          strategies.data())
        def mutate(disk_format: str, data: strategies.DataObject) -> None:
            mutated = bytearray(sound[disk_format])
            for place, value in data.draw(strategies.lists(strategies.tuples(
                    strategies.one_of(strategies.integers(0, 127),
                                      strategies.integers(0, 2047)),
                    strategies.integers(0, 255)), max_size=4)):
                mutated[place] = value
            if data.draw(strategies.booleans()):
                del mutated[data.draw(strategies.integers(
                    0, len(mutated))):]
            with open(self.path('mutated'), 'wb') as f:
                f.write(mutated)
            with open(self.path('mutated'), 'rb') as f:
                found = facts.read(f, disk_format, LIMITS)
                decided = verdict.judge(found, disk_format, POLICY)
                seen.add((disk_format, decided.accepted))
                if decided.accepted and decided.converted_to:
                    try:
                        convert.convert(f, decided, self.path('result'),
                                        LIMITS, overwrite=True)
                    except convert.ConversionError:
                        pass
            self.assertEqual([], [name for name in os.listdir(self.directory)
                                  if 'converted' in name])

        mutate()
        self.assertEqual(
            {(name, accepted) for name in sound
             for accepted in (True, False)} - {('raw', False)},
            seen - {('raw', False)})

    def test_image_within_an_image(self):
        """It does not become a raw base, which QEMU would look into."""
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-F',
                        'raw', '-b', '/etc/passwd', 'inner', '1M'],
                       cwd=self.directory, check=True)
        os.truncate(self.path('inner'), 1 << 20)
        with open(self.path('text'), 'wb') as f:
            f.write(corpus.descriptor('monolithicFlat', 'RW 8 FLAT "raw" 0')
                    .ljust(1 << 20, b'\0'))
        for inner in ('inner', 'text'):
            for disk_format in ('qed', 'vmdk', 'qcow2', 'vdi', 'vhdx'):
                self.outer(inner, disk_format)

    def outer(self, inner: str, disk_format: str) -> None:
        subprocess.run(['qemu-img', 'convert', '-f', 'raw', '-O',
                        disk_format, inner, 'outer'],
                       cwd=self.directory, check=True)
        with open(self.path('outer'), 'rb') as f:
            found = facts.read(f, disk_format, LIMITS)
            refused = verdict.judge(found, disk_format, dataclasses.replace(
                POLICY, overlays=False))
            self.assertEqual('inside', refused.check)
            self.assertIn('image within an image', refused.said)
            # As the base of an overlay it is what it says that it is.
            decided = verdict.judge(found, disk_format, POLICY)
            self.assertTrue(decided.accepted)
            self.assertNotEqual('raw', decided.converted_to)
            error = self.assertRaises(
                convert.ConversionError, convert.convert, f,
                decided.into('raw'), self.path('result'), LIMITS)
            self.assertIn('image within an image', str(error))
            self.assertFalse(os.path.exists(self.path('result')))
            convert.convert(f, decided.into('qcow2'), self.path('result'),
                            LIMITS)
            os.unlink(self.path('result'))
