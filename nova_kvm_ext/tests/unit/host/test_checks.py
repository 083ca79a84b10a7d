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


"""Every check, on trees that are broken in one way each."""

from collections.abc import Callable
import dataclasses
import os
import re
import shlex

import fixtures
from oslotest import base

import nova_kvm_ext
from nova_kvm_ext.host import checks
from nova_kvm_ext.host import model
from nova_kvm_ext.tests.unit.host import fake_host

MODEL_OPTIONS = {'cpu_mode': 'custom', 'cpu_models': ('Icelake-Server',)}


def no_virtualization(host):
    host.loaded()
    host.remove('/dev/kvm')
    host.write('/proc/cpuinfo', 'vendor_id : AuthenticAMD\nflags : fpu\n')


def no_nested(host):
    no_virtualization(host)
    host.write('/proc/cpuinfo',
               'vendor_id : AuthenticAMD\nflags : fpu hypervisor\n')


def locked(host):
    host.loaded()
    host.remove('/dev/kvm')
    host.write('/dev/kmsg', '6,1,2,-;x86/cpu: VMX (outside TXT) disabled by '
                            'BIOS\n')


def unloaded(host):
    host.loaded()
    host.remove('/dev/kvm')


def cpu_module_unloaded(host):
    unloaded(host)
    host.write('/proc/modules', 'kvm 1 0 - Live 0x0\n')


def forbidden_module(host):
    unloaded(host)
    host.write('/proc/modules', 'kvm 1 0 - Live 0x0\n')
    host.write('/etc/modprobe.d/no.conf',
               '# no KVM here\ninstall kvm-intel /bin/false\n')


def no_module(host):
    unloaded(host)
    host.write(f'/lib/modules/{fake_host.RELEASE}/modules.dep', 'a.ko:\n')


def upgraded_kernel(host):
    unloaded(host)
    host.remove(f'/lib/modules/{fake_host.RELEASE}/modules.dep')


def closed(host):
    host.node('/dev/kvm', mode=0o600, group=0)


def wrong_group(host):
    host.node('/dev/kvm', group=65534)


def not_in_group(host):
    user = host.user
    host.write('/etc/passwd', f'{user}:x:107:107::/:/bin/false\n')


def closed_without_udev(host):
    closed(host)
    host.remove('/run/udev/control')


def wrong_user(host):
    host.write('/etc/libvirt/qemu.conf', 'user = "nobody"\n'
                                         'group = "nogroup"\n')
    host.connection.user = (65534, 65534)


def in_its_place(host):
    host.remove('/dev/kvm')
    host.write('/dev/kvm')


def directory_in_its_place(host):
    host.remove('/dev/kvm')
    os.mkdir(host.path('/dev/kvm'))


EMULATORS = '/usr/bin/qemu-system-x86_64', '/usr/libexec/qemu-kvm'


def no_emulator(host):
    for path in EMULATORS:
        host.remove(path)


def emulator_without_kvm(host):
    for path in EMULATORS:
        host.program(path, 'tcg')


def emulator_that_does_not_run(host):
    for path in EMULATORS:
        os.chmod(host.path(path), 0o644)


def no_vhost(host):
    host.write('/proc/modules', 'kvm_intel 1 0 - Live 0x0\n'
                                'kvm 1 1 kvm_intel, Live 0x0\n')
    host.remove('/sys/class/misc/vhost-net/dev')
    host.remove('/dev/vhost-net')


def setting(**settings):
    def change(host):
        host.settings |= settings
    return change


def option(**options):
    def change(host):
        host.options |= options
    return change


def connection(**attributes):
    def change(host):
        for name, value in attributes.items():
            setattr(host.connection, name, value)
    return change


def removed(path):
    return lambda host: host.remove(path)


def written(path, text):
    return lambda host: host.write(path, text)


@dataclasses.dataclass(frozen=True)
class Fault:
    """One way of breaking a host, and what must be said.

    :ivar details: regular expression
    :ivar remedy: regular expression; a dict has one by family
    """

    name: str
    change: Callable[[fake_host.FakeHost], object]
    code: str
    result: str
    details: str
    remedy: str | dict[str, str] = ''
    fix: tuple[str, ...] = ()


_TRIGGER = 'udevadm trigger --action=add --name-match=kvm --settle'

FAULTS = (
    Fault('no virtualization', no_virtualization, 'KVM101', 'FAIL',
          'AuthenticAMD.*neither vmx nor svm', 'firmware'),
    Fault('not nested', no_nested, 'KVM101', 'FAIL',
          'virtual machine.*neither', 'nested'),
    Fault('locked by the firmware', locked, 'KVM102', 'FAIL',
          'VMX .outside TXT. disabled by BIOS', 'firmware set-up'),
    Fault('nothing loaded', unloaded, 'KVM103', 'FAIL',
          'kvm is not loaded', '^modprobe kvm$', ('modprobe kvm',)),
    Fault('kvm_intel not loaded', cpu_module_unloaded, 'KVM104', 'FAIL',
          'kvm_intel is not loaded', '^modprobe kvm_intel$',
          ('modprobe kvm_intel',)),
    Fault('module forbidden', forbidden_module, 'KVM104', 'FAIL',
          '/etc/modprobe.d/no.conf:2: install kvm-intel',
          'Remove the line /etc/modprobe.d/no.conf:2'),
    Fault('no module', no_module, 'KVM103', 'FAIL',
          f'not among the modules of the kernel {fake_host.RELEASE}', {
              'debian': 'apt-get install linux-image-amd64',
              'ubuntu': f'apt-get install linux-modules-extra-'
                        f'{fake_host.RELEASE}',
              'fedora': f'dnf install kernel-modules-core-'
                        f'{fake_host.RELEASE}',
              'rhel': f'dnf install kernel-modules-core-{fake_host.RELEASE}',
              'suse': 'zypper install kernel-default'}),
    Fault('modules gone after an upgrade', upgraded_kernel, 'KVM103', 'FAIL',
          'running kernel.*are not installed', '^reboot$'),
    Fault('/dev/kvm closed', closed, 'KVM204', 'FAIL',
          'root:root 0600 instead of group kvm, mode 0660',
          f'^{_TRIGGER}$', (_TRIGGER,)),
    Fault('/dev/kvm closed, no udev', closed_without_udev, 'KVM204', 'FAIL',
          'root:root 0600',
          '^chgrp kvm /dev/kvm && chmod 0660 /dev/kvm$',
          ('chgrp kvm /dev/kvm', 'chmod 0660 /dev/kvm')),
    Fault('wrong group', wrong_group, 'KVM204', 'FAIL',
          'root:nogroup 0660', f'^{_TRIGGER}$', (_TRIGGER,)),
    Fault('not in the group', not_in_group, 'KVM205', 'FAIL',
          'root:kvm 0660', {
              'debian': '^usermod -a -G kvm libvirt-qemu && systemctl restart '
                        'libvirtd$',
              # Its group is kvm by qemu_group.
              'ubuntu': '',
              'fedora': '^usermod -a -G kvm qemu && systemctl restart '
                        'virtqemud$',
              'rhel': '^usermod -a -G kvm qemu && systemctl restart '
                      'virtqemud$',
              'suse': '^usermod -a -G kvm qemu && systemctl restart '
                      'libvirtd$'}),
    Fault('wrong user', wrong_user, 'KVM205', 'FAIL',
          'nobody: permission denied', {
              'debian': 'user = "libvirt-qemu".*systemctl restart libvirtd',
              'ubuntu': 'user = "libvirt-qemu"',
              'fedora': 'user = "qemu".*systemctl restart virtqemud',
              'rhel': 'user = "qemu"', 'suse': 'user = "qemu"'}),
    Fault('no such user', written('/etc/libvirt/qemu.conf', 'user = "x"\n'),
          'KVM201', 'FAIL', 'there is no user x .user in ',
          'sed -i .*/etc/libvirt/qemu.conf'),
    Fault('no such group', written('/etc/libvirt/qemu.conf', 'group="x"\n'),
          'KVM201', 'FAIL', 'there is no group x'),
    Fault('no user, libvirt is not installed', written(
        '/etc/passwd', 'root:x:0:0::/:/bin/sh\n'), 'KVM201', 'FAIL',
        'there is no user', {
            'debian': 'apt-get install libvirt-daemon-system',
            'ubuntu': 'apt-get install libvirt-daemon-system',
            'fedora': 'dnf install libvirt-daemon-kvm',
            'rhel': 'dnf install libvirt-daemon-kvm',
            'suse': 'zypper install libvirt-daemon-qemu'}),
    Fault('qemu.conf is nonsense', written(
        '/etc/libvirt/qemu.conf', '\n\nuser = qemu\n'), 'KVM201', 'FAIL',
        'line 3', 'Correct that line'),
    Fault('libvirt not restarted', connection(user=(0, 0)), 'KVM201', 'WARN',
          'still gives QEMU the user 0', {
              'debian': '^systemctl restart libvirtd$',
              'ubuntu': '^systemctl restart libvirtd$',
              'fedora': '^systemctl restart virtqemud$',
              'rhel': '^systemctl restart virtqemud$',
              'suse': '^systemctl restart libvirtd$'}),
    Fault('/dev/kvm missing', removed('/dev/kvm'), 'KVM202', 'FAIL',
          'has been removed', '^mknod /dev/kvm c 10 232 && ',
          ('mknod /dev/kvm c 10 232', _TRIGGER)),
    Fault('/dev/kvm is a file', in_its_place, 'KVM202', 'FAIL',
          'a plain file', '^mv /dev/kvm /dev/kvm.wrong && mknod '),
    Fault('/dev/kvm is a directory', directory_in_its_place, 'KVM202',
          'FAIL', 'a directory'),
    Fault('/dev/kvm is another device', lambda host: host.node(
        '/dev/kvm', number=(1, 3)), 'KVM202', 'FAIL', '1:3, KVM is 10:232',
        '^rm /dev/kvm && mknod'),
    Fault('no udev rule', written(
        '/usr/lib/udev/rules.d/50-udev-default.rules', 'KERNEL=="tun"\n'),
        'KVM203', 'WARN', 'no rule', {
            'debian': '^apt-get install --reinstall udev && udevadm trigger '
                      '--action=add --name-match=kvm$',
            'ubuntu': '^apt-get install --reinstall udev && ',
            'fedora': '^dnf reinstall systemd-udev && ',
            'rhel': '^dnf reinstall systemd-udev && ',
            'suse': '^zypper install --force udev && '}),
    Fault('vhost_net not loaded', no_vhost, 'KVM301', 'WARN',
          'vhost_net is not loaded', '^modprobe vhost_net$',
          ('modprobe vhost_net',)),
    Fault('no /dev/vhost-net', no_vhost, 'KVM302', 'WARN',
          'does not exist', '^modprobe vhost_net$', ('modprobe vhost_net',)),
    Fault('/dev/vhost-net removed', removed('/dev/vhost-net'), 'KVM302',
          'WARN', 'does not exist', '^mknod -m 0660 /dev/vhost-net c 10 238'),
    Fault('other compute_driver', option(
        compute_driver='libvirt.LibvirtDriver'), 'KVM401', 'WARN',
        'compute_driver = libvirt.LibvirtDriver', 'kvm_ext.KVMDriver'),
    Fault('refused options', option(
        settings=None, problem='A and B contradict.', remedy='Remove A.'),
        'KVM402', 'FAIL', 'contradict', '^Remove A.$'),
    Fault('foreign virt_type', setting(virt_type='lxc'), 'KVM402', 'FAIL',
          'virt_type = lxc', 'kvm, qemu or auto'),
    Fault('no sudo', removed('/usr/bin/sudo'), 'KVM403', 'FAIL',
          '^sudo of sudo nova-rootwrap', {
              'debian': '^apt-get install sudo$',
              'ubuntu': '^apt-get install sudo$',
              'fedora': '^dnf install sudo$', 'rhel': '^dnf install sudo$',
              'suse': '^zypper install sudo$'}),
    Fault('helper of a moved venv', written(
        '/usr/bin/privsep-helper', '#!/gone/bin/python\n'), 'KVM403', 'FAIL',
        '^privsep-helper of ', 'helper_command'),
    Fault('no instances_path', removed('/var/lib/nova/instances'), 'KVM404',
          'FAIL', 'does not exist',
          '^install -d -o nova -g nova /var/lib/nova/instances$'),
    Fault('instances_path out of reach', lambda host: os.chmod(
        host.path('/var/lib/nova'), 0o700), 'KVM404', 'FAIL',
        'may not enter /var/lib/nova$', '^chmod o.x /var/lib/nova$'),
    Fault('no directory of channels', lambda host: (
        host.remove('/run/libvirt/qemu/channel')), 'KVM406', 'WARN',
        'has not run', {
            'debian': '^systemctl start libvirtd$',
            'ubuntu': '^systemctl start libvirtd$',
            'fedora': '^systemctl start virtqemud$',
            'rhel': '^systemctl start virtqemud$',
            'suse': '^systemctl start libvirtd$'}),
    Fault('no QEMU', no_emulator, 'KVM501', 'FAIL', 'where it is not', {
        'debian': '^apt-get install qemu-system-x86$',
        'ubuntu': '^apt-get install qemu-system-x86$',
        'fedora': '^dnf install qemu-kvm$', 'rhel': '^dnf install qemu-kvm$',
        'suse': '^zypper install qemu-x86$'}),
    Fault('QEMU without kvm', emulator_without_kvm, 'KVM501', 'FAIL',
          'built without kvm'),
    Fault('QEMU that does not run', emulator_that_does_not_run, 'KVM501',
          'FAIL', 'does not run'),
    Fault('old libvirt', connection(version=7_010_000), 'KVM503', 'FAIL',
          '7.10.0 is older than 8.0.0', '8.0.0'),
    Fault('libvirt soon too old', connection(version=9_000_000), 'KVM503',
          'WARN', 'will need 10.0.0', '10.0.0'),
    Fault('old QEMU', connection(qemu=6_001_000), 'KVM504', 'FAIL',
          '6.1.0 is older than 6.2.0'),
    Fault('QEMU soon too old', connection(qemu=8_002_001), 'KVM504', 'WARN',
          'will need 8.2.2'),
    Fault('unknown machine type', option(
        machine_types=(('x86_64', 'pc-9.9'), ('aarch64', 'x'))), 'KVM505',
        'FAIL', 'x86_64=pc-9.9', '-machine help'),
    Fault('stale libvirt', connection(kvm=False), 'KVM506', 'FAIL',
          'offers no KVM, though.*out of date.*the accel', {
              'debian': '^systemctl restart libvirtd$',
              'ubuntu': '^systemctl restart libvirtd$',
              'fedora': '^systemctl restart virtqemud$',
              'rhel': '^systemctl restart virtqemud$',
              'suse': '^systemctl restart libvirtd$'}),
    Fault('libvirt offers what is not there', unloaded, 'KVM506', 'FAIL',
          'libvirt offers KVM, which is wrong', 'restart'),
    Fault('libvirt offers what does not work', lambda host: setattr(
        host, 'runs', False), 'KVM506', 'FAIL',
        'libvirt offers KVM, but a 64-bit guest does not run', 'qemu or auto'),
    Fault('no guest runs', lambda host: setattr(host, 'runs', False),
          'KVM508', 'FAIL', 'the guest did not run', 'qemu or auto'),
    Fault('model that this CPU cannot be', setting(**MODEL_OPTIONS),
          'KVM507', 'FAIL', 'Icelake-Server: this host', 'cpu model list'),
    Fault('one of two models', setting(
        cpu_mode='custom', cpu_models=('Nehalem', 'Icelake-Server')),
        'KVM507', 'FAIL', 'Icelake-Server: this host'),
    Fault('unknown model', setting(
        cpu_mode='custom', cpu_models=('Nehalen',)), 'KVM507', 'FAIL',
        'knows no such', 'Is Nehalem meant'),
    Fault('no model', setting(cpu_mode='custom'), 'KVM402', 'FAIL',
          'names no CPU model'),
    Fault('mode that needs KVM', setting(
        virt_type='qemu', cpu_mode='host-passthrough'), 'KVM402', 'FAIL',
        'no such CPU mode'),
)


class ChecksTestCase(base.BaseTestCase):

    def host(self, family='debian') -> fake_host.FakeHost:
        return self.useFixture(fake_host.FakeHost(family))

    def check(self, host, connect=True) -> dict[str, checks.CheckResult]:
        return {result.code: result
                for result in checks.run(host.facts(connect))}

    def test_healthy(self):
        for family in fake_host.DISTRIBUTIONS:
            results = self.check(self.host(family))
            self.assertEqual(
                [], [result for result in results.values()
                     if result.result not in (checks.PASS, checks.SKIP)],
                family)
            # Neither MSR nor message, but KVM has started.
            self.assertEqual([], [code for code, result in results.items()
                                  if result.result == checks.SKIP], family)

    def test_faults(self):
        wrong = []
        for fault in FAULTS:
            for family in (fake_host.DISTRIBUTIONS
                           if isinstance(fault.remedy, dict) else
                           ('debian',)):
                host = fake_host.FakeHost(family)
                with host:
                    fault.change(host)
                    found = self.check(host)[fault.code]
                remedy = (fault.remedy if isinstance(fault.remedy, str)
                          else fault.remedy[family])
                if fault.name == 'not in the group' and family == 'ubuntu':
                    self.assertEqual(checks.PASS, found.result)
                    continue
                if (found.result != fault.result or
                        not re.search(fault.details, found.details) or
                        not re.search(remedy, found.remedy) or
                        fault.fix and fault.fix != found.fix):
                    wrong.append(f'{fault.name} on {family}: {found}')
        self.assertEqual([], wrong)

    def test_remedies_are_complete(self):
        """Each WARN and FAIL has a remedy, or leads to the one that has."""
        for fault in FAULTS:
            host = fake_host.FakeHost()
            with host:
                fault.change(host)
                for result in self.check(host).values():
                    if result.result in ('WARN', 'FAIL'):
                        self.assertTrue(
                            result.remedy or re.search(
                                r'KVM\d{3}', result.details),
                            f'{fault.name}: {result}')
                    else:
                        self.assertEqual((), result.fix)
                    for command in result.fix:
                        self.assertIn(shlex.split(command)[0], (
                            'modprobe', 'udevadm', 'chgrp', 'chmod',
                            'mknod'))
                        self.assertNotRegex(command, r'[|;&$<>`]')

    def test_none_raises_without_libvirt(self):
        for fault in FAULTS:
            with fake_host.FakeHost() as host:
                fault.change(host)
                for connect in (None, fake_host.FakeLibvirtError('no')):
                    self.assertEqual(list(checks.codes()),
                                     list(self.check(host, connect)))

    def test_an_empty_root(self):
        """Nothing can be read, and nothing raises."""
        host = self.host()
        host.root = self.useFixture(fixtures.TempDir()).path
        results = self.check(host, None)
        self.assertEqual(checks.FAIL, results['KVM103'].result)
        self.assertEqual(list(checks.codes()), list(results))

    def test_libvirt_is_not_asked_what_takes_minutes(self):
        host = self.host()
        closed(host)
        results = self.check(host)
        self.assertEqual([], host.connection.asked)
        self.assertEqual(checks.PASS, results['KVM502'].result)
        for code in ('KVM505', 'KVM506', 'KVM507', 'KVM508'):
            self.assertEqual(checks.SKIP, results[code].result)
            self.assertIn('takes a minute', results[code].details)

    def test_libvirt_is_asked_when_the_node_is_gone(self):
        host = self.host()
        unloaded(host)
        self.check(host)
        self.assertIn('getCapabilities', host.connection.asked)

    def test_dead_libvirt(self):
        error = fake_host.FakeLibvirtError(
            'Failed to connect socket to \'/x\': No such file or directory')
        for family, service in (('debian', 'libvirtd'),
                                ('rhel', 'virtqemud')):
            found = self.check(self.host(family), error)['KVM502']
            self.assertEqual(checks.FAIL, found.result)
            self.assertEqual(f'systemctl start {service}', found.remedy)

    def test_libvirt_that_refuses_this_user(self):
        found = self.check(self.host(), fake_host.FakeLibvirtError(
            'Failed to connect socket to \'/x\': Permission denied'))
        self.assertIn('group', found['KVM502'].remedy)

    def test_libvirt_that_hangs(self):
        facts = self.host().facts(None)
        facts = dataclasses.replace(facts, libvirt=model.LibvirtFacts(
            'x', 'no answer within 3 s', hangs=True))
        [found] = [r for r in checks.run(facts) if r.code == 'KVM502']
        self.assertEqual('systemctl restart libvirtd', found.remedy)

    def test_without_systemd(self):
        host = self.host()
        host.remove('/run/systemd/system/x')
        host.remove('/run/systemd/system')
        found = self.check(host, OSError('no'))['KVM502']
        self.assertEqual('virtlogd -d; libvirtd -d', found.remedy)

    def test_vhost_net_is_as_grave_as_it_is_wanted(self):
        for wanted, result, said in (
                ('prefer', checks.WARN, 'slower'),
                ('require', checks.FAIL, 'vhost_net = require'),
                ('off', checks.SKIP, 'vhost_net = off')):
            host = self.host()
            no_vhost(host)
            host.settings |= {'vhost_net': wanted}
            found = self.check(host)['KVM301']
            self.assertEqual(result, found.result)
            self.assertIn(said, found.details)

    def test_software_needs_no_kvm(self):
        host = self.host()
        host.settings['virt_type'] = 'qemu'
        no_vhost(host)
        unloaded(host)
        results = self.check(host)
        self.assertEqual(checks.PASS, checks.worst(list(results.values())))
        self.assertEqual(checks.SKIP, results['KVM103'].result)
        self.assertEqual(checks.SKIP, results['KVM301'].result)
        self.assertEqual(checks.PASS, results['KVM508'].result)

    def test_software_and_a_closed_node(self):
        """libvirt waits for KVM all the same."""
        host = self.host()
        host.settings['virt_type'] = 'qemu'
        closed(host)
        found = self.check(host)['KVM204']
        self.assertEqual(checks.WARN, found.result)
        self.assertEqual((_TRIGGER,), found.fix)

    def test_software_and_a_user_who_is_kept_out(self):
        host = self.host()
        host.settings['virt_type'] = 'qemu'
        not_in_group(host)
        results = self.check(host)
        self.assertEqual(checks.PASS, results['KVM204'].result)
        self.assertEqual(checks.WARN, results['KVM205'].result)
        self.assertIn('usermod', results['KVM205'].remedy)

    def test_auto_takes_software(self):
        host = self.host()
        host.settings['virt_type'] = 'auto'
        unloaded(host)
        results = self.check(host)
        self.assertEqual(checks.WARN, checks.worst(list(results.values())))
        self.assertIn('guests run in software', results['KVM103'].details)
        self.assertIn('under qemu', results['KVM507'].details)

    def test_auto_goes_by_the_guest(self):
        host = self.host()
        host.settings |= {'virt_type': 'auto', 'cpu_mode': 'host-model'}
        host.runs = False
        results = self.check(host)
        self.assertEqual(checks.WARN, results['KVM508'].result)
        self.assertIn('under qemu', results['KVM507'].details)
        host.runs = True
        self.assertIn('under kvm', self.check(host)['KVM507'].details)

    def test_kvm_without_vmx_or_svm(self):
        host = self.host()
        host.write('/proc/cpuinfo', 'vendor_id : GenuineIntel\nflags : fpu\n')
        found = self.check(host)['KVM101']
        self.assertEqual(checks.WARN, found.result)
        self.assertIn('yet the kernel has KVM', found.details)

    def test_other_architectures_have_no_flag(self):
        host = self.host()
        facts = host.facts(None)
        facts = dataclasses.replace(
            facts, cpu=model.CPUFacts('s390x', locked_source='none'),
            kernel=dataclasses.replace(facts.kernel, modules={
                name: facts.kernel.modules[name]
                for name in ('kvm', 'vhost_net')}))
        results = {r.code: r for r in checks.run(facts)}
        self.assertEqual(checks.SKIP, results['KVM101'].result)
        self.assertEqual(checks.PASS, results['KVM104'].result)

    def test_space(self):
        def said(free: int, **kwargs) -> checks.CheckResult:
            facts = self.host().facts(None)
            facts = dataclasses.replace(facts, directories=tuple(
                dataclasses.replace(directory, free=free, **kwargs)
                for directory in facts.directories))
            return {r.code: r for r in checks.run(facts)}['KVM405']

        gib = 1024 ** 3
        self.assertEqual(checks.FAIL, said(1024).result)
        self.assertIn('no inode', said(9 * gib, free_files=0).details)
        self.assertEqual(checks.WARN, said(gib, free_files=None).result)
        self.assertEqual(checks.PASS, said(9 * gib, free_files=5).result)

    def test_read_only(self):
        facts = self.host().facts(None)
        facts = dataclasses.replace(facts, directories=tuple(
            dataclasses.replace(directory, read_only=True)
            for directory in facts.directories))
        results = {r.code: r for r in checks.run(facts)}
        self.assertIn('remount,rw', results['KVM404'].remedy)

    def test_device_errors(self):
        facts = self.host().facts(None)
        for error, words in (('ENODEV', 'not in the kernel'),
                             ('EPERM', 'control group'),
                             ('ENOTTY', 'not KVM that answers'),
                             ('EIO', 'EIO')):
            use = model.UseFacts('/dev/kvm', True, error)
            results = {r.code: r for r in checks.run(
                dataclasses.replace(facts, kvm_use=use))}
            self.assertEqual(checks.FAIL, results['KVM205'].result)
            self.assertIn(words, results['KVM205'].details)
        use = model.UseFacts('/dev/kvm', True, None, 11)
        results = {r.code: r for r in checks.run(
            dataclasses.replace(facts, kvm_use=use))}
        self.assertEqual(checks.FAIL, results['KVM205'].result)

    def test_not_beside_nova(self):
        host = self.host()
        host.install = model.InstallFacts(
            ('/usr/lib/python3/dist-packages/nova/virt',), '/opt/door', 'no')
        found = self.check(host)['KVM401']
        self.assertEqual(checks.FAIL, found.result)
        self.assertEqual('ln -s /opt/door /usr/lib/python3/dist-packages/'
                         'nova/virt/', found.remedy)

    def test_no_nova_conf(self):
        host = self.host()
        host.options['files'] = ()
        results = self.check(host)
        for code in ('KVM402', 'KVM403', 'KVM404', 'KVM405'):
            self.assertEqual(checks.SKIP, results[code].result)

    def test_hostile_text_is_made_harmless(self):
        host = self.host()
        host.write('/etc/libvirt/qemu.conf', 'user = "a\x1b[31mb"\n')
        self.assertTrue(self.check(host)['KVM201'].details.isprintable())


class CodesTestCase(base.BaseTestCase):

    def test_order_and_names(self):
        codes = list(checks.codes())
        self.assertEqual(sorted(codes), codes)
        for code in codes:
            self.assertRegex(code, r'^KVM[1-5]\d\d$')

    def test_documentation_has_every_code(self):
        """A table of the code and the title each, in both pages."""
        top = os.path.dirname(os.path.dirname(nova_kvm_ext.__file__))
        for page in ('admin/troubleshooting.rst', 'cli/host.rst'):
            with open(os.path.join(top, 'doc/source', page)) as f:
                rows = dict(re.findall(
                    r'^   \* - ``(KVM\d{3})``\n     - (.*)$', f.read(),
                    re.MULTILINE))
            self.assertEqual(
                checks.codes(),
                {code: title.replace('``', '')
                 for code, title in rows.items()}, page)

    def test_worst(self):
        def results(*said: str) -> list[checks.CheckResult]:
            return [checks.CheckResult('', '', one, '') for one in said]

        self.assertEqual('PASS', checks.worst(results('PASS', 'SKIP')))
        self.assertEqual('WARN', checks.worst(results('PASS', 'WARN')))
        self.assertEqual('FAIL', checks.worst(results('WARN', 'FAIL')))
