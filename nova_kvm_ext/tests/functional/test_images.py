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

"""Images of every format, with real guests and real qemu-img."""

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
from typing import Any

import fixtures
from oslotest import base
from testtools import content

from nova_kvm_ext.boot import testguest
from nova_kvm_ext.images import answers
from nova_kvm_ext.tests.functional import libvirtd

_TIMEOUT = 500

# Name: format, and options of qemu-img convert.
_IMAGES = {
    'raw': ('raw', []),
    'qcow2': ('qcow2', []),
    'qed': ('qed', []),
    'vmdk-sparse': ('vmdk', ['-o', 'subformat=monolithicSparse']),
    'vmdk-stream': ('vmdk', ['-o', 'subformat=streamOptimized']),
    # As raw, Nova refuses it; made by the remedy for that.
    'hybrid': ('qcow2', []),
}


def _hybrid(raw: str, path: str) -> str:
    """A copy of a disk, with an entry for a GPT beside its partitions."""
    shutil.copyfile(raw, path)
    with open(path, 'r+b') as f:
        f.seek(446 + 2 * 16)
        f.write(bytes.fromhex('00000200eeffffff') +
                struct.pack('<II', 1, 2047))
    return path


class LifeTestCase(base.BaseTestCase):
    """Guests boot from every format, and stay bootable.

    NOVA_KVM_EXT_IMAGE_TABLE names a file that gets what was seen.
    """

    def setUp(self):
        super().setUp()
        self.libvirt = self.useFixture(libvirtd.PrivateLibvirt())
        self.directory = os.path.join(self.libvirt.instances_path, 'nova')
        os.mkdir(self.directory)
        os.chmod(self.directory, 0o711)

    def images(self) -> list[str]:
        raw = testguest.build(os.path.join(self.directory, 'cache')).path
        made = []
        hybrid = _hybrid(raw, os.path.join(self.directory, 'hybrid.raw'))
        for name, (disk_format, options) in _IMAGES.items():
            path = os.path.join(self.directory, name)
            subprocess.run(['qemu-img', 'convert', '-f', 'raw', '-O',
                            disk_format, *options,
                            hybrid if name == 'hybrid' else raw, path],
                           check=True)
            made.append(f'{disk_format}={path}')
        return made

    def life(self, force_raw: bool) -> dict[str, dict[str, Any]]:
        config_file = os.path.join(self.directory, 'nova.conf')
        with open(config_file, 'w') as f:
            f.write(f'[DEFAULT]\nforce_raw_images = {force_raw}\n'
                    f'[libvirt]\nconnection_uri = {self.libvirt.uri}\n'
                    f'[kvm_ext]\nvirt_type = qemu\ncpu_mode = none\n')
        done = subprocess.run(
            [sys.executable, '-m', 'nova_kvm_ext.tests.functional.image_life',
             self.directory, config_file, *self.images()],
            capture_output=True, text=True, timeout=_TIMEOUT)
        self.addDetail('stdout', content.text_content(done.stdout))
        self.addDetail('stderr', content.text_content(done.stderr))
        with contextlib.suppress(FileNotFoundError):
            with open(os.path.join(self.directory, 'nova.log')) as f:
                self.addDetail('nova.log', content.text_content(f.read()))
        seen = [json.loads(line.removeprefix('RESULT '))
                for line in done.stdout.splitlines()
                if line.startswith('RESULT ')]
        table = os.environ.get('NOVA_KVM_EXT_IMAGE_TABLE')
        if table:
            with open(table, 'a') as f:
                for row in seen:
                    f.write(json.dumps({'force_raw': force_raw} | row) + '\n')
        return {row['image']: row for row in seen}

    def check(self, force_raw: bool, bases: dict[str, str]) -> None:
        seen = self.life(force_raw)
        self.assertEqual(set(_IMAGES), set(seen))
        for name, row in seen.items():
            self.assertNotIn('error', row, name)
            for step in ('boot', 'reboot', 'boot_after_expiry'):
                self.assertEqual(bases[name], row[step], f'{name} {step}')
            self.assertEqual('qcow2', row['snapshot'])
            self.assertIn('boot_of_snapshot', row)
            self.assertEqual(2, row['resized_gb'])
            self.assertTrue(row['expired'])

    def test_force_raw(self):
        self.check(True, dict.fromkeys(_IMAGES, 'raw') | {'hybrid': 'qcow2'})

    def test_as_they_are(self):
        """What would be a VMDK base, or a QED one, is converted once."""
        self.check(False, dict.fromkeys(_IMAGES, 'qcow2') | {'raw': 'raw'})


class AnswersTestCase(base.BaseTestCase):
    """What images/answers takes for granted of QEMU."""

    @staticmethod
    def ask(path: str, disk_format: str | None = None) -> str:
        return subprocess.run(
            ['qemu-img', 'info', '--output=json', path], check=True,
            capture_output=True, text=True).stdout

    def test_nothing_behind_the_beginning_has_a_say(self):
        directory = self.useFixture(fixtures.TempDir()).path
        path = os.path.join(directory, 'image')
        for disk_format in ('raw', 'qcow2'):
            subprocess.run(['qemu-img', 'create', '-q', '-f', disk_format,
                            path, '64M'], check=True)
            if disk_format == 'raw':
                # Without holes, which a write would fill.
                with open(path, 'wb') as f:
                    f.write(bytes(1 << 20))
            size = os.path.getsize(path)
            known = answers.Answers()
            known.get(path, None, self.ask)
            seen = 0
            for offset in range(1 << 16, size, (size - (1 << 16)) // 15):
                with open(path, 'r+b') as f:
                    f.seek(offset)
                    byte = f.read(1)[0]
                    f.seek(offset)
                    f.write(bytes([byte ^ 0x80]))
                with contextlib.suppress(subprocess.CalledProcessError):
                    # QEMU may refuse it now; if not, it says the same.
                    fresh = self.ask(path)
                    self.assertEqual(fresh, known.get(
                        path, None, lambda *args: self.fail('asked')))
                    seen += 1
                with open(path, 'r+b') as f:
                    f.seek(offset)
                    f.write(bytes([byte]))
            self.assertGreater(seen, 5, disk_format)
