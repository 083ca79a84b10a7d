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
import struct
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext.host import kernel_facts
from nova_kvm_ext.host import model


class KernelFactsTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.root = self.useFixture(fixtures.TempDir()).path

    def write(self, path: str, text: str | bytes) -> None:
        real = os.path.join(self.root, path.lstrip('/'))
        os.makedirs(os.path.dirname(real), exist_ok=True)
        with open(real, 'wb') as f:
            f.write(text if isinstance(text, bytes) else text.encode())

    def cpu(self, vendor: str = 'GenuineIntel', flags: str = 'fpu vmx'
            ) -> model.CPUFacts:
        self.write('/proc/cpuinfo', f'processor : 0\nvendor_id\t: {vendor}\n'
                                    f'flags\t\t: {flags}\n\nprocessor : 1\n')
        return kernel_facts.read_cpu('x86_64', self.root)

    def msr(self, values: dict[int, int]) -> None:
        """Let the MSRs have values: a file as long as theirs is no good."""
        self.write('/dev/cpu/0/msr', b'')

        def pread(descriptor: int, length: int, position: int) -> bytes:
            if position not in values:
                raise OSError(5, 'no such MSR')
            return struct.pack('<Q', values[position])

        self.useFixture(fixtures.MockPatch('os.pread', side_effect=pread))

    def test_flags(self):
        self.assertEqual('vmx', self.cpu().virtualization)
        found = self.cpu('AuthenticAMD', 'svm hypervisor')
        self.assertEqual('svm', found.virtualization)
        self.assertTrue(found.virtual)
        found = self.cpu(flags='fpu svmx')
        self.assertIsNone(found.virtualization)
        self.assertFalse(found.virtual)

    def test_another_architecture(self):
        found = kernel_facts.read_cpu('aarch64', self.root)
        self.assertIsNone(found.locked)

    def test_intels_register(self):
        # Locked without VMX is off; unlocked the kernel sets it itself.
        for value, locked in ((1, True), (5, False), (0, False), (3, True)):
            self.msr({0x3a: value})
            self.assertIs(locked, self.cpu().locked, hex(value))

    def test_amds_register(self):
        for value, locked in ((0, False), (0x10, True), (0x18, True),
                              (0x8, False)):
            self.msr({0xc0010114: value})
            self.assertIs(locked, self.cpu('AuthenticAMD').locked,
                          hex(value))

    def test_register_that_is_not_there(self):
        self.msr({})
        self.assertIsNone(self.cpu().locked)

    def test_kernels_message(self):
        for message in ('kvm: disabled by bios',
                        'x86/cpu: VMX (outside TXT) disabled by BIOS',
                        'kvm_intel: VMX not enabled (by BIOS) in '
                        'MSR_IA32_FEAT_CTL on CPU 0',
                        'kvm_amd: SVM disabled (by BIOS) in MSR_VM_CR on '
                        'CPU 3'):
            self.write('/dev/kmsg', f'6,1,1,-;BIOS-e820: x\n4,2,3,-;'
                                    f'{message}\n')
            found = self.cpu()
            self.assertTrue(found.locked, message)
            self.assertIn('BIOS', found.locked_source.replace('bios', 'BIOS'))
        # KVM has started, so that message is of another time.
        self.write('/sys/class/misc/kvm/dev', '10:232\n')
        self.assertIs(False, self.cpu().locked)
        os.unlink(os.path.join(self.root, 'sys/class/misc/kvm/dev'))
        self.write('/dev/kmsg', '6,1,1,-;ACPI: disabled by BIOS\n')
        self.assertIsNone(self.cpu().locked)

    def test_records_that_are_gone(self):
        self.write('/dev/kmsg', b'')
        answers = [OSError(32, 'overwritten'), b'kvm: disabled by bios\n',
                   None]
        with mock.patch('io.FileIO') as log:
            log.return_value.__enter__.return_value.read.side_effect = answers
            self.assertTrue(self.cpu().locked)

    def test_honest_where_it_cannot_be_known(self):
        found = self.cpu()
        self.assertIsNone(found.locked)
        self.assertIn('cannot be read', found.locked_source)

    def kernel(self, vendor: str = 'AuthenticAMD') -> model.KernelFacts:
        return kernel_facts.read_kernel(vendor, 'x86_64', '6.1', self.root)

    def test_states(self):
        self.write('/proc/modules', 'kvm 1 0 - Live 0x0\n')
        self.write('/lib/modules/6.1/modules.dep',
                   'kernel/arch/x86/kvm/kvm-amd.ko.zst: kernel/kvm.ko.zst\n')
        self.write('/lib/modules/6.1/modules.builtin',
                   'kernel/drivers/vhost/vhost_net.ko\n')
        found = self.kernel()
        self.assertEqual(
            {'kvm': 'loaded', 'kvm_amd': 'loadable', 'vhost_net': 'builtin'},
            {name: module.state for name, module in found.modules.items()})
        self.assertTrue(found.loads_modules)
        self.assertTrue(found.modules_installed)

    def test_builtin_that_has_parameters(self):
        self.write('/sys/module/kvm_other/parameters/nested', 'N\n')
        found = self.kernel()
        self.assertEqual('builtin', found.modules['kvm_other'].state)
        self.assertEqual('N', found.modules['kvm_other'].nested)
        self.assertFalse(found.loads_modules)
        self.assertFalse(found.modules_installed)

    def test_dependencies_are_no_modules_of_their_own(self):
        self.write('/lib/modules/6.1/modules.dep', 'a.ko: kvm.ko\n')
        self.assertEqual('missing', self.kernel().modules['kvm'].state)

    def test_unknown_vendor(self):
        self.assertEqual({'kvm', 'vhost_net'}, set(self.kernel('x').modules))

    def test_forbidden(self):
        self.write('/etc/modprobe.d/a.conf',
                   '#blacklist kvm\nblacklist kvm-amd # no\n')
        self.write('/usr/lib/modprobe.d/b.conf',
                   'install vhost_net /bin/true\ninstall kvm /sbin/x\n')
        found = self.kernel().modules
        self.assertEqual('/etc/modprobe.d/a.conf:2: blacklist kvm-amd',
                         found['kvm_amd'].blocked)
        self.assertIn('b.conf:1: install', found['vhost_net'].blocked)
        self.assertEqual('', found['kvm'].blocked)

    def test_a_system_file_of_the_kernel(self):
        """Reads of /proc/sys fail when they ask for 4 MiB or more."""
        self.assertNotEqual('', kernel_facts.read(
            '/proc/sys/kernel/osrelease', '/'))


class UdevTestCase(KernelFactsTestCase):

    def rules(self) -> list[tuple[str, str, str, str]]:
        return [(rule.file, rule.device, rule.group, rule.mode)
                for rule in kernel_facts.read_udev(self.root).rules]

    def test_rules(self):
        self.write('/lib/udev/rules.d/50.rules',
                   '# KERNEL=="kvm", MODE="0777"\n'
                   'KERNEL=="kvm", GROUP="kvm", \\\n  MODE="0660"\n'
                   'SUBSYSTEM=="misc", KERNEL=="kvm", TAG+="uaccess"\n'
                   'KERNEL=="kvm0", MODE="0600"\n')
        self.write('/etc/udev/rules.d/60.rules',
                   'KERNEL=="vhost-net|kvm", MODE:="0666"\n')
        self.assertEqual(
            [('/lib/udev/rules.d/50.rules', 'kvm', 'kvm', '0660'),
             ('/etc/udev/rules.d/60.rules', 'kvm', '', '0666'),
             ('/etc/udev/rules.d/60.rules', 'vhost-net', '', '0666')],
            self.rules())

    def test_a_file_in_etc_hides_its_namesake(self):
        self.write('/lib/udev/rules.d/50.rules', 'KERNEL=="kvm", MODE="0"\n')
        self.write('/etc/udev/rules.d/50.rules', '')
        self.assertEqual([], self.rules())

    def test_running(self):
        self.assertFalse(kernel_facts.read_udev(self.root).running)
        self.write('/run/udev/control', '')
        self.assertTrue(kernel_facts.read_udev(self.root).running)
