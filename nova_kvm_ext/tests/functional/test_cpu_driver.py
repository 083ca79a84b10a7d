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

"""The CPUs of real guests on real libvirt: wished for, kept and compared."""

import json
import os
import subprocess
import sys
from typing import Any

from oslotest import base
from testtools import content

from nova_kvm_ext.exit_codes import ExitCode
from nova_kvm_ext.tests.functional import libvirtd
from nova_kvm_ext.tests.functional import test_guest_boot

_TIMEOUT = 240


class BootTestCase(test_guest_boot.GuestBootTestCase):
    """Booted to user space, the flags read inside the guest.

    The other modes are in test_guest_boot.
    """

    def level(self, *arguments: str) -> None:
        result = self.passes(*arguments)
        self.assertEqual('custom', result['cpu_mode'])
        self.assertEqual('kvm64', result['cpu_model'])
        self.assertEqual('PASS', self.check(result, 'cpu flags')['result'])

    def test_levels(self):
        """Every level that TCG can do; QEMU emulates no AVX-512."""
        for level in ('x86-64-v2', 'x86-64-v2-AES', 'x86-64-v3'):
            self.level('--set', 'kvm_ext.cpu_mode=custom',
                       '--set', f'kvm_ext.cpu_model={level}')

    def test_level_that_tcg_cannot_do(self):
        error = self.fails(ExitCode.USAGE,
                           '--set', 'kvm_ext.cpu_mode=custom',
                           '--set', 'kvm_ext.cpu_model=x86-64-v4')
        self.assertIn('[kvm_ext] cpu_model = x86-64-v4', error)
        self.assertIn('avx512f', error)
        self.assertIn('Use x86-64-v3', error)

    def test_level_that_a_flavor_asks_for(self):
        self.level('--set', 'kvm_ext.cpu_mode=host-model',
                   '--extra-spec', 'kvm_ext:cpu_model=x86-64-v2')


class DriverTestCase(base.BaseTestCase):
    """Nova's driver and ours, in a process of their own."""

    def setUp(self):
        super().setUp()
        self.libvirt = self.useFixture(libvirtd.PrivateLibvirt())

    def session(self, scenario: str) -> dict[str, Any]:
        directory = os.path.join(self.libvirt.instances_path, scenario)
        os.mkdir(directory)
        done = subprocess.run(
            [sys.executable, '-m',
             'nova_kvm_ext.tests.functional.cpu_session', scenario,
             self.libvirt.uri, directory],
            capture_output=True, text=True, timeout=_TIMEOUT)
        self.addOnException(lambda exc_info: self.addDetail(
            'session', content.text_content(done.stdout + done.stderr)))
        self.assertEqual(0, done.returncode)
        return json.loads(done.stdout.splitlines()[-1])

    def test_kept_after_the_start_and_by_hard_reboots(self):
        seen = self.session('kept')
        for name in ('host-model', 'none', 'Nehalem', 'x86-64-v2',
                     'x86-64-v2-AES', 'x86-64-v3'):
            stored, live = seen[name]['stored'], seen[name]['live']
            self.assertEqual('custom', live['mode'], name)
            self.assertIsNotNone(stored['model'])
            self.assertFalse(stored['topology'])
            for key in ('model', 'vendor', 'features'):
                self.assertEqual(live[key], stored[key], name)
            self.assertEqual('exact', stored['match'])
        self.assertEqual('maximum', seen['maximum']['live']['mode'])
        self.assertEqual('minimum', seen['maximum']['stored']['match'])
        self.assertEqual(seen['host-model']['stored']['model'],
                         seen['maximum']['stored']['model'])

        kept, new = seen['keep=True'], seen['keep=False']
        self.assertEqual(seen['Nehalem']['live'], kept['live'])
        self.assertEqual(seen['Nehalem']['stored'], kept['stored'])
        self.assertEqual([], kept['logged'])
        for key in ('live', 'stored'):
            self.assertEqual(seen['host-model'][key], new[key])
        said, = new['logged']
        self.assertIn('The guest has another CPU than before: model Nehalem '
                      'is now', said)
        self.assertIn('gained', said)
        self.assertIn('avx2', said)

    def test_guests_of_plain_libvirt_driver(self):
        seen = self.session('before')
        self.assertIsNone(seen['plain']['model'])
        self.assertEqual(seen['live']['model'], seen['ours']['model'])
        self.assertEqual(seen['live']['features'], seen['ours']['features'])
        # Plain LibvirtDriver, on the other side, takes the guest back.
        self.assertGreater(seen['plain compares'], 0)

    def test_wishes(self):
        seen = self.session('wishes')
        self.assertEqual('Penryn', seen['flavor model']['model'])
        self.assertEqual('maximum', seen['flavor mode']['mode'])
        self.assertEqual('kvm64', seen['image level']['model'])
        self.assertIn(['sse4.2', 'require'], seen['image level']['features'])
        for name, kind, words in (
                ('image not allowed', 'InvalidInput',
                 'image property kvm_ext_cpu_mode = maximum'),
                ('contradiction', 'InvalidInput', 'contradict each other'),
                ('impossible here', 'InvalidCPUInfo', 'avx512f')):
            self.assertEqual(kind, seen[name].get('refused'), seen[name])
            self.assertIn(words, seen[name]['words'])

    def test_migration_check_agrees_with_libvirt(self):
        seen = self.session('pairs')
        self.addDetail('counts', content.text_content(
            '{pairs} pairs, {yes} yes, pure answers {pure}'.format(**seen)))
        self.assertEqual([], seen['wrong'])
        self.assertEqual([], seen['pure wrong'])
        self.assertEqual([], seen['unnamed'])
        self.assertGreater(seen['pairs'], 200)
        # Both answers occurred.
        self.assertGreater(seen['yes'], 50)
        self.assertGreater(seen['pairs'] - seen['yes'], 50)
        self.assertIn('Migration pre-check error', seen['error'])
        self.assertIn('avx512f', seen['error'])
