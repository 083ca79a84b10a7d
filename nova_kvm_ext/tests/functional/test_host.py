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


"""``nova-kvm-ext host check`` on hosts that are broken for real.

The command runs inside the private libvirt's mount namespace, where /dev/kvm,
/etc/libvirt and the rest can be broken and repaired without touching this
host's. With the name of a file in NOVA_KVM_EXT_FAULT_TABLE, each fault state
is also given to a boot, and a row about it is appended to the file, as a line
of JSON.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any

import fixtures
import libvirt
from oslotest import base
from testtools import content

import nova_kvm_ext
from nova_kvm_ext.tests.functional import libvirtd

TABLE = 'NOVA_KVM_EXT_FAULT_TABLE'

# The command without an installation.
_MAIN = ('import sys; from nova_kvm_ext.cmd import main; '
         'sys.exit(main.main(sys.argv[1:]))')
_BOOT_SECONDS = 900

_VMX = """
sed 's/^flags.*/& vmx/' /proc/cpuinfo >{file}
mount --no-mtab --bind {file} /proc/cpuinfo
"""

# A /dev of our own, but for the directories in it. Nobody outside sees it.
_OWN_DEV = """
mkdir {own}
mount --no-mtab -t tmpfs -o mode=0755 none {own}
cd /dev
for name in *; do
    if [ "$name" = kvm ]; then
        continue
    elif [ -d "$name" ] && [ ! -L "$name" ]; then
        mkdir {own}/"$name"
        mount --no-mtab --rbind "$name" {own}/"$name"
    else
        cp -a "$name" {own}/"$name"
    fi
done
mount --no-mtab --rbind {own} /dev
"""


class HostCheckTestCase(base.BaseTestCase):

    qemu_user: str | None = None
    virt_type = 'qemu'

    def setUp(self):
        super().setUp()
        self.outputs: dict[str, str] = {}
        self.addOnException(self.show_outputs)
        self.libvirt = self.useFixture(
            libvirtd.PrivateLibvirt(qemu_user=self.qemu_user))
        self.state = os.path.join(self.libvirt.directory, 'state')
        os.mkdir(self.state)
        self.instances = self.libvirt.instances_path
        self.configure()

    def show_outputs(self, exc_info: Any) -> None:
        for name, text in self.outputs.items():
            self.addDetail(name, content.text_content(text))

    def configure(self, **ours: str) -> None:
        """Write nova.conf, with these options in [kvm_ext]."""
        self.conf = os.path.join(self.libvirt.directory, 'nova.conf')
        helper = os.path.join(os.path.dirname(sys.executable),
                              'privsep-helper')
        self.options = {'virt_type': self.virt_type} | ours
        with open(self.conf, 'w') as f:
            f.write(textwrap.dedent(f"""\
                [DEFAULT]
                compute_driver = kvm_ext.KVMDriver
                instances_path = {self.instances}
                state_path = {self.state}
                [libvirt]
                connection_uri = {self.libvirt.uri}
                [nova_sys_admin]
                helper_command = {helper}
                [kvm_ext]
                """) + ''.join(f'{name} = {value}\n'
                               for name, value in self.options.items()))

    def inside(self, *command: str) -> tuple[int, str, str]:
        """Run a command where libvirtd runs: exit code and outputs."""
        files = [os.path.join(self.state, f'command.{name}')
                 for name in ('code', 'stdout', 'stderr')]
        self.libvirt.run(['sh', '-c', (
            f'{shlex.join(command)} >{files[1]} 2>{files[2]}; '
            f'echo $? >{files[0]}')])
        found = []
        for path in files:
            with open(path, errors='replace') as f:
                found.append(f.read())
            os.unlink(path)
        return int(found[0]), found[1], found[2]

    def shell(self, script: str) -> None:
        """Run a script there that must succeed."""
        self.libvirt.run(['sh', '-ec', script])

    def check(self, *arguments: str, main: tuple[str, ...] = ('-c', _MAIN)
              ) -> dict[str, dict[str, Any]]:
        """What host check says, by code."""
        started = time.monotonic()
        self.code, out, self.said = self.inside(
            sys.executable, *main, 'host', 'check', '-f', 'json',
            '--config-file', self.conf, *arguments)
        self.seconds = time.monotonic() - started
        self.outputs |= {'stdout': out, 'stderr': self.said}
        self.assertNotIn('defect of', self.said)
        results = json.loads(out)
        said = {result['result'] for result in results}
        self.assertEqual(
            2 if 'FAIL' in said else 1 if 'WARN' in said else 0, self.code)
        return {result['code']: result for result in results}

    def fault(self, state: str, code: str, boot: bool = True
              ) -> dict[str, Any]:
        """The first FAIL there is, which must be this one."""
        results = self.check()
        failed = [result for result in results.values()
                  if result['result'] == 'FAIL']
        self.assertEqual(code, failed[0]['code'] if failed else None)
        self.assertEqual(2, self.code)
        self.assertTrue(failed[0]['remedy'])
        if os.environ.get(TABLE):
            self.record(state, failed, boot)
        return failed[0]

    def warning(self, code: str) -> dict[str, Any]:
        """What is no proof that every guest fails: no FAIL, and a remedy."""
        results = self.check()
        self.assertEqual('WARN', results[code]['result'], str(results[code]))
        self.assertTrue(results[code]['remedy'])
        return results[code]

    def record(self, state: str, failed: list[dict[str, Any]],
               boot: bool) -> None:
        row = {'state': state, 'check': [
            f'{r["code"]}: {r["details"]} | {r["remedy"]}' for r in failed],
            'check_seconds': round(self.seconds, 1)}
        # It looks no further where the CPU shows no virtualization.
        self.shell(_VMX.format(file=os.path.join(self.state, 'cpuinfo')))
        try:
            _, out, err = self.inside('virt-host-validate', 'qemu')
        finally:
            self.shell('umount --no-mtab /proc/cpuinfo')
            os.unlink(os.path.join(self.state, 'cpuinfo'))
        row['validate'] = [
            ' '.join(line.split()) for line in (out + err).splitlines()
            if 'hardware' in line or '/dev/kvm' in line]
        command = [
            sys.executable, '-c', _MAIN, 'guest', 'boot', '-f', 'json',
            '--cache-dir', self.state, '--timeout', '60', '--set',
            f'libvirt.connection_uri={self.libvirt.uri}', *(
                word for name, value in self.options.items()
                for word in ('--set', f'kvm_ext.{name}={value}'))]
        started = time.monotonic()
        if boot:
            done = subprocess.run(
                command, env=os.environ | {'TMPDIR': self.instances},
                capture_output=True, text=True, timeout=_BOOT_SECONDS)
            code, out = done.returncode, done.stdout
        else:
            # What is broken is broken only in there.
            code, out, _ = self.inside(
                'env', f'TMPDIR={self.instances}', *command)
        result = json.loads(out)
        row |= {'boot': result['error'], 'boot_code': code, 'boot_checks': [
            check for check in result['checks'] if check['result'] == 'FAIL'],
            'boot_seconds': round(time.monotonic() - started, 1)}
        with open(os.environ[TABLE], 'a') as f:
            f.write(json.dumps(row) + '\n')

    def own_dev(self) -> None:
        """Give the namespace a /dev of its own, without kvm."""
        self.shell(_OWN_DEV.format(
            own=os.path.join(self.libvirt.directory, 'own-dev')))

    def need_kvm(self) -> None:
        if not os.path.exists('/dev/kvm'):
            self.skipTest('This host has no /dev/kvm')


class SoftwareTestCase(HostCheckTestCase):
    """Guests that run in software: nothing is wrong but versions."""

    def test_healthy(self):
        results = self.check()
        self.assertEqual([], [r for r in results.values()
                              if r['result'] == 'FAIL'])
        for code in ('KVM201', 'KVM401', 'KVM402', 'KVM403', 'KVM404',
                     'KVM405', 'KVM406', 'KVM501', 'KVM502', 'KVM505',
                     'KVM507', 'KVM508'):
            self.assertEqual('PASS', results[code]['result'],
                             str(results[code]))
        # The guest's answer is kept now.
        results = self.check()
        self.assertIn('kept in', results['KVM508']['details'])
        self.assertLess(self.seconds, 10)
        self.assertEqual(['kvm-ext-probe.json'], os.listdir(self.state))
        self.assertEqual([], os.listdir(self.instances))

    def test_libvirt_and_check_agree_on_the_user(self):
        """The default of this distribution is the one in our table."""
        results = self.check()
        self.assertEqual('PASS', results['KVM201']['result'],
                         str(results['KVM201']))
        connection = libvirt.open(self.libvirt.uri)
        self.addCleanup(connection.close)
        self.assertIn('dac', connection.getCapabilities())

    def test_impossible_mode(self):
        self.configure(cpu_mode='host-passthrough')
        found = self.fault('cpu_mode = host-passthrough, virt_type = qemu',
                           'KVM402')
        self.assertIn('host-passthrough', found['details'])

    def test_unknown_model(self):
        self.configure(cpu_mode='custom', cpu_model='Nehalen')
        found = self.fault('cpu_model = Nehalen', 'KVM507')
        self.assertIn('Is Nehalem or', found['remedy'])

    def test_unusable_model(self):
        # TCG gives no AVX-512.
        self.configure(cpu_mode='custom', cpu_model='Icelake-Server')
        found = self.check()['KVM507']
        # libvirt starts such a guest, without what is missing.
        self.assertEqual('WARN', found['result'])
        self.assertIn('avx512', found['details'])

    def test_dead_libvirt(self):
        self.libvirt.stop_libvirtd()
        found = self.fault('libvirtd is not running', 'KVM502')
        self.assertIn('libvirtd', found['remedy'])

    def test_libvirt_that_hangs(self):
        [pid] = self.libvirt._libvirtd()
        os.kill(pid, signal.SIGSTOP)
        self.addCleanup(os.kill, pid, signal.SIGCONT)
        results = self.check('--timeout', '3')
        self.assertIn('no answer within 3 s', results['KVM502']['details'])
        self.assertEqual('SKIP', results['KVM508']['result'])
        # It may be busy, for all that anybody knows.
        self.assertEqual(1, self.code)

    def test_full_disk(self):
        self.shell(f'mount --no-mtab -t tmpfs -o size=1m none '
                   f'{self.instances} && chmod 0755 {self.instances}')
        found = self.fault('1 MiB for instances', 'KVM405', boot=False)
        self.assertIn('no space for another guest', found['details'])

    def test_read_only_instances(self):
        self.shell(f'mount --no-mtab -t tmpfs -o ro,mode=0755 none '
                   f'{self.instances}')
        self.fault('instances_path is read-only', 'KVM404', boot=False)

    def test_instances_that_qemu_cannot_reach(self):
        os.chmod(self.instances, 0o700)
        found = self.warning('KVM404')
        self.assertEqual(f'chmod o+x {self.instances}', found['remedy'])
        self.shell(found['remedy'])
        self.assertEqual('PASS', self.check()['KVM404']['result'])

    def test_no_instances(self):
        self.instances += '/gone'
        self.configure()
        found = self.fault('instances_path does not exist', 'KVM404',
                           boot=False)
        self.assertTrue(found['remedy'].startswith('install -d'))

    def test_no_user(self):
        with open(os.path.join(self.libvirt.directory,
                               'etc/qemu.conf'), 'a') as f:
            f.write('user = "no-such-user"\n')
        # libvirt runs with another one until it starts again.
        found = self.warning('KVM201')
        self.assertIn('no-such-user', found['details'])
        self.shell(found['remedy'].partition(' && ')[0])
        self.assertEqual('PASS', self.check()['KVM201']['result'])

    def test_libvirt_has_another_user(self):
        with open(os.path.join(self.libvirt.directory,
                               'etc/qemu.conf'), 'a') as f:
            f.write('user = "root"\ngroup = "root"\n')
        found = self.check()['KVM201']
        self.assertEqual('WARN', found['result'])
        self.assertIn('still gives', found['details'])

    def test_another_site_directory(self):
        place = self.useFixture(fixtures.TempDir()).path
        top = os.path.dirname(nova_kvm_ext.__file__)
        shutil.copytree(top, os.path.join(place, 'nova_kvm_ext'),
                        ignore=shutil.ignore_patterns('tests'))
        shutil.copytree(os.path.join(os.path.dirname(top), 'nova'),
                        os.path.join(place, 'nova'))
        # Nothing of an installation that puts the driver beside Nova.
        main = (f'import sys; sys.path.insert(0, {place!r}); sys.meta_path '
                f'= [f for f in sys.meta_path if "__editable__" not in '
                f'getattr(f, "__module__", "")]; {_MAIN}')
        results = self.check(main=('-c', main))
        self.assertEqual('FAIL', results['KVM401']['result'])
        self.assertTrue(results['KVM401']['remedy'].startswith(
            f'ln -s {place}/nova/virt/kvm_ext '), results['KVM401'])

    def test_no_helper(self):
        with open(self.conf) as f:
            text = f.read()
        with open(self.conf, 'w') as f:
            f.write(text.replace('privsep-helper', 'no-such-helper'))
        found = self.fault('helper_command names no program', 'KVM403',
                           boot=False)
        self.assertIn('no-such-helper', found['details'])


class KVMTestCase(HostCheckTestCase):
    """/dev/kvm broken and repaired. The guest's own verdict is not our matter.

    Whether a guest runs under KVM depends on the machine that tests.
    """

    virt_type = 'kvm'

    def setUp(self):
        super().setUp()
        self.need_kvm()

    def mended(self) -> None:
        """--fix has repaired /dev/kvm."""
        results = self.check('--fix')
        for code in ('KVM202', 'KVM204', 'KVM205'):
            self.assertEqual('PASS', results[code]['result'],
                             str(results[code]))
        self.assertIn('\n+ ', f'\n{self.said}')

    def test_as_libvirt_says_or_not(self):
        """libvirt offers KVM; whether that is true is what we say."""
        connection = libvirt.open(self.libvirt.uri)
        self.addCleanup(connection.close)
        self.assertIn("<domain type='kvm'", connection.getCapabilities())
        results = self.check()
        for code in ('KVM202', 'KVM204', 'KVM205'):
            self.assertEqual('PASS', results[code]['result'],
                             str(results[code]))
        self.assertIn('KVM_GET_API_VERSION = 12',
                      results['KVM205']['details'])
        self.assertEqual(results['KVM508']['result'],
                         results['KVM506']['result'])
        if results['KVM508']['result'] == 'FAIL':
            self.assertIn('libvirt offers KVM, but',
                          results['KVM506']['details'])
            self.fault('/dev/kvm opens, no 64-bit guest runs', 'KVM506')

    def test_no_node(self):
        self.own_dev()
        found = self.fault('/dev/kvm is missing', 'KVM202')
        self.assertIn('mknod /dev/kvm c 10 232', found['remedy'])
        self.mended()

    def test_wrong_mode(self):
        self.shell('chmod 0600 /dev/kvm')
        found = self.fault('/dev/kvm is 0600 root:kvm', 'KVM204')
        self.assertIn('0600', found['details'])
        results = self.check()
        self.assertEqual('FAIL', results['KVM205']['result'])
        for code in ('KVM505', 'KVM506', 'KVM507', 'KVM508'):
            self.assertEqual('SKIP', results[code]['result'])
        # libvirt takes a minute over each question then.
        self.assertLess(self.seconds, 20, 'did it ask libvirt anyway?')
        self.mended()

    def test_wrong_group(self):
        self.shell('chgrp root /dev/kvm')
        found = self.fault('/dev/kvm is 0660 root:root', 'KVM204')
        self.assertIn('root:root', found['details'])
        self.mended()

    def test_plain_file(self):
        self.own_dev()
        self.shell('touch /dev/kvm')
        found = self.fault('/dev/kvm is a plain file', 'KVM202')
        self.assertIn('a plain file', found['details'])
        self.shell(found['remedy'])
        self.assertEqual('PASS', self.check()['KVM205']['result'])

    def test_wrong_device(self):
        self.own_dev()
        self.shell('mknod -m 0666 /dev/kvm c 1 3')
        found = self.fault('/dev/kvm is the device 1:3', 'KVM202')
        self.assertIn('1:3', found['details'])
        self.shell(found['remedy'])
        self.assertEqual('PASS', self.check()['KVM205']['result'])


class WrongUserTestCase(HostCheckTestCase):
    """qemu.conf names a user who is not in the group of /dev/kvm."""

    qemu_user = 'nobody'
    virt_type = 'kvm'

    def test_wrong_user(self):
        self.need_kvm()
        found = self.fault('user = "nobody" in qemu.conf', 'KVM205')
        self.assertIn('nobody', found['details'])
        self.assertIn('qemu.conf', found['remedy'])
