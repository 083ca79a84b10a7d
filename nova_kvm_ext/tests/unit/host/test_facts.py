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

import os
import sys

import fixtures
from oslotest import base

from nova_kvm_ext.host import door
from nova_kvm_ext.host import facts
from nova_kvm_ext.host import install
from nova_kvm_ext.host import model
from nova_kvm_ext.host import options
from nova_kvm_ext.tests.unit.host import fake_host


class ReadDeviceTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.root = self.useFixture(fixtures.TempDir()).path
        os.mkdir(os.path.join(self.root, 'dev'))

    def test_absent(self):
        self.assertFalse(facts.read_device('/dev/kvm', self.root).present)

    def test_a_plain_file_is_no_device(self):
        with open(os.path.join(self.root, 'dev', 'kvm'), 'w'):
            pass
        self.assertFalse(facts.read_device('/dev/kvm', self.root).present)

    def test_a_directory_in_its_place(self):
        os.mkdir(os.path.join(self.root, 'dev', 'kvm'))
        self.assertFalse(facts.read_device('/dev/kvm', self.root).present)

    def test_a_device_that_opens(self):
        os.symlink('/dev/null', os.path.join(self.root, 'dev', 'kvm'))
        found = facts.read_device('/dev/kvm', self.root)
        status = os.stat('/dev/null')
        self.assertEqual(
            model.DeviceFacts('/dev/kvm', True, status.st_mode & 0o7777,
                              status.st_uid, status.st_gid, None,
                              number='1:3'), found)

    def test_a_device_that_does_not_open(self):
        os.symlink('/dev/null', os.path.join(self.root, 'dev', 'kvm'))
        self.useFixture(fixtures.MockPatch(
            'os.open', side_effect=OSError(19, 'No such device')))
        self.assertEqual('ENODEV', facts.read_device(
            '/dev/kvm', self.root).open_error)


class InstallTestCase(base.BaseTestCase):

    def problem(self, found: model.InstallFacts) -> str:
        return install.check(found) or ''

    def test_here(self):
        found = door.read_install()
        self.assertIsNone(install.check(found), str(found))

    def test_another_site_directory(self):
        problem = self.problem(model.InstallFacts(
            ('/usr/lib/python3/dist-packages/nova/virt',),
            '/opt/venv/nova/virt/kvm_ext', 'nova.virt has no module kvm_ext'))
        self.assertIn('/usr/lib/python3/dist-packages/nova/virt', problem)
        self.assertIn('ln -s /opt/venv/nova/virt/kvm_ext '
                      '/usr/lib/python3/dist-packages/nova/virt/', problem)

    def test_no_nova(self):
        self.assertIn('Install nova-kvm-ext with the Python', self.problem(
            model.InstallFacts((), '/x/nova/virt/kvm_ext', 'no nova')))

    def test_incomplete(self):
        self.assertIn('incomplete', self.problem(
            model.InstallFacts(('/x/nova/virt',), None, 'no kvm_ext')))


class NovaTestCase(base.BaseTestCase):

    def test_the_installed_one(self):
        """Read from its source, the constants are Nova's own."""
        from nova.virt.libvirt import driver
        self.assertEqual(
            model.NovaFacts(
                driver.MIN_LIBVIRT_VERSION, driver.MIN_QEMU_VERSION,
                driver.NEXT_MIN_LIBVIRT_VERSION,
                driver.NEXT_MIN_QEMU_VERSION),
            facts.read_nova(door.read_install()))

    def test_no_nova(self):
        self.assertEqual(model.NovaFacts(), facts.read_nova(
            model.InstallFacts((), None, 'no')))
        self.assertEqual(model.NovaFacts(), facts.read_nova(
            model.InstallFacts(('/nowhere',), None, None)))


class ProgramTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.root = self.useFixture(fixtures.TempDir()).path
        os.makedirs(os.path.join(self.root, 'usr/bin'))

    def program(self, text: str, mode: int = 0o755) -> None:
        path = os.path.join(self.root, 'usr/bin/helper')
        with open(path, 'w') as f:
            f.write(text)
        os.chmod(path, mode)

    def found(self, name: str = 'helper') -> str | None:
        return facts.read_program(name, self.root).path

    def test_found_by_name_and_by_path(self):
        self.program('\x7fELF')
        path = os.path.join(self.root, 'usr/bin/helper')
        self.assertEqual(path, self.found())
        self.assertEqual(path, self.found('/usr/bin/helper'))

    def test_not_there(self):
        self.assertIsNone(self.found())
        self.program('\x7fELF', 0o644)
        self.assertIsNone(self.found())

    def test_a_script_without_its_interpreter(self):
        self.program('#!/opt/gone/bin/python -I\n')
        self.assertIsNone(self.found())
        self.program('#!\n')
        self.assertIsNotNone(self.found())

    def test_a_program_that_may_be_run_and_not_read(self):
        self.program('\x7fELF', 0o111)
        self.useFixture(fixtures.MockPatch(
            'builtins.open', side_effect=PermissionError(13, 'no')))
        self.assertIsNotNone(self.found())

    def test_here(self):
        self.assertEqual(sys.executable,
                         facts.read_program(sys.executable).path)


class HostTestCase(base.BaseTestCase):

    def test_this_host(self):
        """Whatever this host is, it can be checked."""
        settings = options.HostOptions(
            files=(), settings=None, helper=('no-such-program',))
        found = facts.read_host(settings)
        self.assertEqual('libvirt was not asked', found.libvirt.unasked)
        self.assertEqual('kvm', found.virt_type)

    def test_the_guests_answer_is_kept_where_it_is_said(self):
        host = self.useFixture(fake_host.FakeHost())
        asked = self.useFixture(fixtures.MockPatch(
            'nova_kvm_ext.host.probe_answers.cached_run',
            side_effect=facts.probe_answers.cached_run)).mock
        self.assertTrue(host.facts().probe.runs)
        said = asked.call_args.kwargs
        self.assertEqual('/nowhere/kvm-ext-probe.json', said['cache_file'])
        self.assertEqual('/var/lib/nova/instances', said['directories'][0])

    def test_a_connection_that_is_refused(self):
        host = self.useFixture(fake_host.FakeHost())
        cause = fake_host.FakeLibvirtError('Failed to\nconnect')
        error = OSError('said otherwise')
        error.__cause__ = cause
        self.assertEqual('Failed to connect', host.facts(error).libvirt.error)

    def test_the_libvirt_that_runs(self):
        host = self.useFixture(fake_host.FakeHost('fedora'))

        def service() -> str:
            return host.facts().distribution.libvirt_service

        self.assertEqual('virtqemud', service())
        host.write('/run/libvirt/libvirt-sock')
        self.assertEqual('libvirtd', service())
        host.write('/run/libvirt/virtqemud-sock')
        self.assertEqual('virtqemud', service())

    def test_file_systems_without_inodes(self):
        host = self.useFixture(fake_host.FakeHost())
        self.useFixture(fixtures.MockPatch('os.statvfs', return_value=(
            os.statvfs_result((4096, 4096, 10, 5, 4, 0, 0, 0, 1, 255)))))
        found = host.facts().directories[0]
        self.assertIsNone(found.free_files)
        self.assertEqual(4 * 4096, found.free)
        self.assertTrue(found.read_only)

    def test_a_file_in_a_directorys_place(self):
        host = self.useFixture(fake_host.FakeHost())
        host.remove('/var/lib/nova/instances')
        host.write('/var/lib/nova/instances')
        self.assertEqual('ENOTDIR', host.facts().directories[0].error)


class EmulatorTestCase(base.BaseTestCase):

    def test_one_that_libvirt_vouches_for(self):
        """It is not run, but it must be there."""
        root = self.useFixture(fixtures.TempDir()).path
        debian = facts.distribution.from_os_release('ID=debian')
        run = self.useFixture(fixtures.MockPatch('subprocess.run')).mock
        self.assertIsNone(facts.read_emulator(
            debian, 'x86_64', root, '/qemu', 'kvm').path)
        with open(os.path.join(root, 'qemu'), 'w'):
            pass
        self.assertEqual(
            model.EmulatorFacts('/qemu', vouched='kvm'), facts.read_emulator(
                debian, 'x86_64', root, '/qemu', 'kvm'))
        run.assert_not_called()

    def test_a_program(self):
        """Run for real: what it prints is what is read."""
        root = self.useFixture(fixtures.TempDir()).path
        os.makedirs(os.path.join(root, 'usr/libexec'))
        path = os.path.join(root, 'usr/libexec/qemu-kvm')
        with open(path, 'w') as f:
            f.write('#!/bin/sh\ncase $1 in\n'
                    '--version) echo "QEMU emulator version 8.2.2 (x)" ;;\n'
                    '*) echo "Accelerators supported in QEMU binary:"\n'
                    'echo kvm ;;\nesac\n')
        os.chmod(path, 0o755)
        rhel = facts.distribution.from_os_release('ID=rhel')
        self.assertEqual(
            model.EmulatorFacts('/usr/libexec/qemu-kvm', (8, 2, 2), ('kvm',)),
            facts.read_emulator(rhel, 'x86_64', root))
        # Where libvirt names it, wherever that is.
        os.makedirs(os.path.join(root, 'opt/q{x}'))
        os.rename(path, os.path.join(root, 'opt/q{x}/qemu'))
        self.assertIsNone(
            facts.read_emulator(rhel, 'x86_64', root).path)
        self.assertEqual('/opt/q{x}/qemu', facts.read_emulator(
            rhel, 'x86_64', root, '/opt/q{x}/qemu').path)
        self.assertIsNone(facts.read_emulator(
            facts.distribution.from_os_release('ID=debian'), 'x86_64',
            root).path)
