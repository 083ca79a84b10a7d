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

"""``nova-kvm-ext guest boot`` on real libvirt: real guests and failures."""

from collections.abc import Sequence
import contextlib
import glob
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from typing import Any
import uuid

import fixtures
import libvirt
from oslotest import base
from testtools import content

from nova_kvm_ext.exit_codes import ExitCode
from nova_kvm_ext.tests.functional import libvirtd

# Prints each path that is there, and those that can be read.
_LOOK = '''
while IFS= read -r path; do
    [ -e "$path" ] && echo "there $path"
    { if [ -d "$path" ]; then ls "$path"; else head -c 1 "$path"; fi
    } > /dev/null 2>&1 && echo "read $path"
done
'''

# Emulated guests on busy machines: nothing waits this long when all is well.
_TIMEOUT = 300


class GuestBootTestCase(base.BaseTestCase):
    """A private libvirt, and the command run against it."""

    def setUp(self):
        super().setUp()
        # What was said is worth reading when a test fails, and only then.
        self.outputs: dict[str, str] = {}
        self.addOnException(self.show_outputs)
        self.libvirt = self.useFixture(libvirtd.PrivateLibvirt())
        # What a boot leaves behind it leaves here.
        self.tmp = os.path.join(self.libvirt.instances_path, 'tmp')
        os.mkdir(self.tmp)
        self.addCleanup(self.remove_taps)
        self.cache = os.path.join(self.libvirt.instances_path, 'cache')
        self.connection = libvirt.open(self.libvirt.uri)
        self.addCleanup(self.connection.close)

    def show_outputs(self, exc_info: Any) -> None:
        for name, text in self.outputs.items():
            self.addDetail(name, content.text_content(text))

    def command(self, *arguments: str, virt_type: str = 'qemu') -> list[str]:
        # This machine's own nova.conf, or that of a nova-compute which runs
        # on it, is nothing to go by.
        named = () if '--config-file' in arguments else (
            '--config-file', os.devnull)
        return [sys.executable, '-m', 'nova_kvm_ext.cmd.main', 'guest', 'boot',
                *named, '--cache-dir', self.cache,
                '--set', f'libvirt.connection_uri={self.libvirt.uri}',
                '--set', f'kvm_ext.virt_type={virt_type}', *arguments]

    def environment(self) -> dict[str, str]:
        return os.environ | {'TMPDIR': self.tmp}

    def boot(self, *arguments: str, virt_type: str = 'qemu',
             within: Sequence[str] = ()) -> tuple[int, dict[str, Any]]:
        """Run it to its end: exit code and what -f json gives.

        :param within: words of a command that runs it
        """
        done = subprocess.run(
            [*within, *self.command(
                '-f', 'json', *arguments, virt_type=virt_type)],
            env=self.environment(), capture_output=True, text=True,
            timeout=_TIMEOUT)
        self.said = done.stderr
        self.outputs |= {'stdout': done.stdout, 'stderr': done.stderr}
        return done.returncode, json.loads(done.stdout)

    def passes(self, *arguments: str, virt_type: str = 'qemu'
               ) -> dict[str, Any]:
        code, result = self.boot(*arguments, virt_type=virt_type)
        self.assertEqual(ExitCode.PASS, code, self.said)
        self.assertEqual('PASS', result['result'])
        self.nothing_is_left()
        return result

    def fails(self, code: ExitCode, *arguments: str,
              virt_type: str = 'qemu') -> str:
        """Run it, expecting this exit code: the sentence it says."""
        found, result = self.boot(*arguments, virt_type=virt_type)
        self.assertEqual(code, found, self.said)
        self.assertEqual('FAIL', result['result'])
        self.assertNotIn('Traceback', self.said)
        self.assertNotIn('defect of', self.said)
        self.nothing_is_left()
        return result['error']

    def nothing_is_left(self) -> None:
        self.assertEqual([], os.listdir(self.tmp))
        self.assertEqual([], [
            d.name() for d in self.connection.listAllDomains()
            if d.name().startswith('nova-kvm-ext-')])
        self.assertEqual([], self.taps())
        self.assertEqual({}, self.processes())

    def taps(self) -> list[str]:
        """Tap devices of boots, but for those of others that are running."""
        def there() -> set[str]:
            return {name for name in os.listdir('/sys/class/net')
                    if re.fullmatch('nke[0-9a-f]{8}', name)}

        # A boot writes its record before it makes its tap, and removes it
        # after: what has no record and is still there is left behind.
        found = there()
        for pattern in ('nova-kvm-ext-boot-*/record.json',
                        'nova-kvm-ext-libvirt-*/instances/tmp/*/record.json'):
            for path in glob.glob(os.path.join('/var/tmp', pattern)):
                if not path.startswith(self.tmp):
                    with contextlib.suppress(OSError), open(path) as f:
                        found.discard(json.load(f)['tap'])
        return sorted(found & there())

    def processes(self, what: str = '') -> dict[int, list[str]]:
        """Command lines by PID of processes that this test's boots made.

        :param what: a word that they have
        """
        found = {}
        for path in glob.glob('/proc/[0-9]*/cmdline'):
            with contextlib.suppress(OSError):
                with open(path) as f:
                    words = f.read().split('\0')
                if any(self.tmp in word for word in words) and (
                        not what or what in words):
                    found[int(path.split('/')[2])] = words
        return found

    def workers(self) -> dict[int, list[str]]:
        return self.processes('nova_kvm_ext.boot.worker')

    def remove_taps(self) -> None:
        """So that a test that fails does not fail others."""
        for path in glob.glob(os.path.join(self.tmp, '*', 'record.json')):
            with open(path) as f:
                if tap := json.load(f)['tap']:
                    subprocess.run(['ip', 'link', 'delete', tap],
                                   capture_output=True)

    @staticmethod
    def check(result: dict[str, Any], name: str) -> dict[str, Any]:
        found, = (c for c in result['checks'] if c['name'] == name)
        return found


class CPUTestCase(GuestBootTestCase):
    """Each mode, its flags read inside the guest."""

    def test_host_model(self):
        result = self.passes('--set', 'kvm_ext.cpu_mode=host-model')
        self.assertEqual('PASS', self.check(result, 'cpu flags')['result'])
        self.assertEqual('PASS', self.check(result, 'cpu model')['result'])

    def test_maximum(self):
        result = self.passes('--set', 'kvm_ext.cpu_mode=maximum')
        self.assertEqual('maximum', result['cpu_mode'])
        self.assertEqual('PASS', self.check(result, 'cpu flags')['result'])

    def test_custom_with_extra_flags(self):
        result = self.passes(
            '--set', 'kvm_ext.cpu_mode=custom',
            '--set', 'kvm_ext.cpu_model=nehalem',
            '--set', 'libvirt.cpu_model_extra_flags=avx2,-aes')
        self.assertEqual('Nehalem', result['cpu_model'])
        self.assertIn('family 6, model 26',
                      self.check(result, 'cpu model')['details'])
        self.assertEqual('PASS', self.check(result, 'cpu flags')['result'])

    def test_none(self):
        result = self.passes('--set', 'kvm_ext.cpu_mode=none')
        self.assertEqual('qemu64', result['cpu_model'])
        # What the guest's Linux knows of the flaws of its CPU.
        self.assertIn('spectre_v2', result['vulnerabilities'])
        for text in result['vulnerabilities'].values():
            self.assertRegex(text, '^(Not affected|Mitigation|Vulnerable|'
                                   'Unknown|Processor vulnerable|KVM: )')
        self.assertRegex(self.check(result, 'cpu flaws')['details'],
                         'of [1-9][0-9]* that the guest knows')

    def test_fragment_of_novas_kvm_guide(self):
        """It is about [libvirt] and must work unchanged, but for TCG."""
        nova_conf = os.path.join(self.libvirt.instances_path, 'nova.conf')
        with open(nova_conf, 'w') as f:
            f.write('[libvirt]\nvirt_type = qemu\ncpu_mode = custom\n'
                    'cpu_model = Nehalem\n')
        result = self.passes('--config-file', nova_conf)
        self.assertEqual('Nehalem', result['cpu_model'])

    def test_host_passthrough_in_software_is_refused_before_the_boot(self):
        error = self.fails(ExitCode.USAGE,
                           '--set', 'kvm_ext.cpu_mode=host-passthrough')
        self.assertIn('[kvm_ext] cpu_mode = host-passthrough', error)

    def test_misspelt_model(self):
        error = self.fails(ExitCode.USAGE, '--set', 'kvm_ext.cpu_mode=custom',
                           '--set', 'kvm_ext.cpu_model=Nehalm')
        self.assertIn('Is Nehalem', error)


class KVMTestCase(GuestBootTestCase):

    def setUp(self):
        super().setUp()
        if not os.path.exists('/dev/kvm'):
            self.skipTest('This machine has no /dev/kvm')

    def test_a_domain_of_type_kvm_starts(self):
        """It starts; whether it also boots depends on the machine."""
        code, result = self.boot(
            '--set', 'kvm_ext.cpu_mode=none', '--timeout', '15',
            '--set', 'kvm_ext.host_check=warn', virt_type='kvm')
        self.assertIn(code, (ExitCode.PASS, ExitCode.NO_BOOT), self.said)
        self.assertEqual('kvm', result['virt_type'])
        self.assertIn('spawn', [s['name'] for s in result['steps']])
        self.nothing_is_left()

    def test_a_host_that_cannot_is_refused(self):
        """The host check says it, instead of a guest that never boots."""
        code, _ = self.boot('--set', 'kvm_ext.cpu_mode=none',
                            virt_type='kvm')
        if code != ExitCode.PASS:
            self.assertEqual(ExitCode.HOST, code)
            self.assertIn('KVM508', self.said)
            self.nothing_is_left()

    def test_auto_takes_what_runs(self):
        # Twice, the second time by the answer that the first one kept.
        for _ in range(2):
            result = self.passes('--set', 'kvm_ext.cpu_mode=none',
                                 virt_type='auto')
            self.assertIn('[kvm_ext] virt_type = auto', self.said)
            runs = 'counted to 50 million within' in self.said
            self.assertEqual('kvm' if runs else 'qemu', result['virt_type'])

    def test_auto_without_kvm(self):
        """QEMU's user may not open /dev/kvm: libvirt still reports KVM."""
        self.libvirt.run(['chmod', '0600', '/dev/kvm'])
        result = self.passes('--set', 'kvm_ext.cpu_mode=none',
                             virt_type='auto')
        self.assertEqual('qemu', result['virt_type'])
        # QEMU's words. What follows depends on libvirt: 9.0 lets QEMU see
        # the device, 11.3 does not.
        self.assertIn('failed to initialize kvm', self.said)


class GuestTestCase(GuestBootTestCase):

    def test_vcpus_memory_and_agent(self):
        result = self.passes('--vcpus', '2', '--memory', '320')
        self.assertEqual('2 promised, 2 seen',
                         self.check(result, 'vcpus')['details'])
        self.assertIn('320 MiB promised',
                      self.check(result, 'memory')['details'])
        self.assertIn('answers to ping',
                      self.check(result, 'guest agent')['details'])

    def test_no_agent(self):
        for value in ('no', 'maybe'):
            result = self.passes(
                '--property', f'hw_qemu_guest_agent={value}')
            self.assertEqual('no channel, as the image asks',
                             self.check(result, 'guest agent')['details'])
            self.assertEqual(value == 'maybe',
                             'neither yes nor no' in self.said)

    def test_nic_on_a_bridge(self):
        bridge = f'nkb{uuid.uuid4().hex[:8]}'
        subprocess.run(['ip', 'link', 'add', bridge, 'type', 'bridge'],
                       check=True)
        self.addCleanup(subprocess.run, ['ip', 'link', 'delete', bridge])
        result = self.passes('--nic', f'bridge={bridge}')
        self.assertIn('driver virtio_net',
                      self.check(result, 'nic')['details'])

    def test_q35(self):
        result = self.passes('--property', 'hw_machine_type=q35')
        self.assertIn('q35', result['machine'])

    def test_an_image_file_of_each_kind(self):
        self.passes()
        raw, = glob.glob(os.path.join(self.cache, '*.img')) or glob.glob(
            os.path.join(self.cache, '*.raw'))
        qcow2 = os.path.join(self.libvirt.instances_path, 'image.qcow2')
        subprocess.run(['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2',
                        raw, qcow2], check=True)
        for image in (raw, qcow2):
            result = self.passes('--image', image,
                                 '--property', 'hw_qemu_guest_agent=yes')
            self.assertEqual('PASS', self.check(result, 'vcpus')['result'])

    def test_xml_starts_nothing(self):
        code, result = self.boot('--xml')
        self.assertEqual(ExitCode.PASS, code)
        self.assertIn('<domain type="qemu">', result['xml'])
        self.assertIn('org.qemu.guest_agent.0', result['xml'])
        self.nothing_is_left()

    def test_keep(self):
        code, _ = self.boot('--keep')
        self.assertEqual(ExitCode.PASS, code)
        domain, = self.connection.listAllDomains()
        self.assertTrue(domain.isActive())
        self.nobody_may_read_it()
        # The next boot does not take it for one that was killed.
        self.assertEqual(ExitCode.PASS, self.boot()[0])
        self.assertTrue(domain.isActive())

    def nobody_may_read_it(self) -> None:
        """Another user, who even knows each path, reads nothing."""
        there = [os.path.join(parent, name)
                 for parent, directories, names in os.walk(self.tmp)
                 for name in (*directories, *names)]
        for name in ('settings.conf', 'nova.log', 'console.log', 'disk'):
            self.assertIn(name, map(os.path.basename, there))
        # They are below a directory that is its own user's alone.
        for path in (self.libvirt.instances_path, self.tmp):
            os.chmod(path, 0o711)
        looked = subprocess.run(
            ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups',
             'sh', '-c', _LOOK],
            input=''.join(f'{path}\n' for path in there),
            capture_output=True, text=True, cwd='/').stdout.splitlines()
        # It has got there, or this would prove nothing; and no further.
        self.assertEqual({f'there {path}' for path in there
                          if os.path.dirname(path) == self.tmp}, set(looked))

    def test_without_a_guest_agent(self):
        """No channel, no waiting, no failure: and said what is missing."""
        hidden = ['unshare', '--mount', 'sh', '-c',
                  'for f in /usr/sbin/qemu-ga /usr/bin/qemu-ga; do '
                  '[ ! -e $f ] || mount --bind /dev/null $f; done && '
                  'exec "$@"', 'sh']
        code, result = self.boot(within=hidden)
        self.assertEqual(ExitCode.PASS, code, self.said)
        self.assertFalse(result['domain']['agent_channel'])
        check = self.check(result, 'guest agent')
        self.assertEqual('SKIP', check['result'])
        self.assertIn('install qemu-guest-agent', check['details'])
        self.assertIn('install qemu-guest-agent',
                      result['steps'][0]['details'])
        self.nothing_is_left()

    def test_keep_says_how_to_take_it_away(self):
        self.boot('--keep')
        commands = re.search('To remove it: (.*)', self.said)[1]
        for command in commands.split('; '):
            subprocess.run(command.split(), check=True)
        self.nothing_is_left()


class RefusalTestCase(GuestBootTestCase):
    """Each failure in one clear sentence and with its exit code."""

    def image(self, name: str) -> str:
        return os.path.join(self.libvirt.instances_path, name)

    def test_no_such_image(self):
        self.assertIn('there is no such file',
                      self.fails(ExitCode.USAGE, '--image', '/no/such'))

    def test_image_that_does_not_boot(self):
        path = self.image('junk.raw')
        with open(path, 'wb') as f:
            f.write(os.urandom(1 << 20))
        error = self.fails(ExitCode.NO_BOOT, '--image', path,
                           '--timeout', '10')
        self.assertIn('not up within 10 s', error)

    def test_image_with_a_backing_file(self):
        path = self.image('hostile.qcow2')
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-F', 'raw',
                        '-b', '/etc/passwd', path], check=True)
        error = self.fails(ExitCode.NO_BOOT, '--image', path)
        self.assertIn('It has a backing file', error)

    def test_image_declared_wrongly(self):
        path = self.image('image.qcow2')
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', path, '1M'],
                       check=True)
        error = self.fails(ExitCode.NO_BOOT, '--image', path,
                           '--disk-format', 'raw')
        self.assertIn('is unacceptable', error)

    def test_property_that_nova_refuses(self):
        error = self.fails(ExitCode.USAGE, '--property',
                           'hw_vif_model=banana')
        self.assertIn('hw_vif_model=banana', error)

    def test_flavor_that_only_a_cloud_can_place(self):
        error = self.fails(ExitCode.USAGE, '--extra-spec',
                           'hw:cpu_policy=dedicated')
        self.assertIn('only a cloud knows', error)

    def test_no_such_bridge(self):
        self.assertIn('ip link add', self.fails(
            ExitCode.HOST, '--nic', 'bridge=nosuchbridge'))

    def test_bad_option(self):
        error = self.fails(ExitCode.USAGE, virt_type='kvn')
        self.assertIn("'kvn'", error)
        self.assertIn('[kvm, qemu, auto]', error)

    def test_no_configuration_file(self):
        self.assertIn('/no/such.conf', self.fails(
            ExitCode.USAGE, '--config-file', '/no/such.conf'))

    def test_libvirt_is_not_running(self):
        self.libvirt.stop_libvirtd()
        code, result = self.boot()
        self.assertEqual(ExitCode.HOST, code)
        self.assertIn('libvirt is not running', result['error'])
        self.assertEqual([], os.listdir(self.tmp))

    def test_full_disk(self):
        small = os.path.join(self.libvirt.instances_path, 'small')
        os.mkdir(small)
        self.passes()   # Builds the test guest where there is space.
        subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8m,mode=0711',
                        'none', small], check=True)
        self.addCleanup(subprocess.run, ['umount', small])
        self.tmp = small
        error = self.fails(ExitCode.HOST)
        self.assertIn('A file system is full', error)

    def test_full_disk_for_the_test_guest(self):
        os.mkdir(self.cache)
        subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'none',
                        self.cache], check=True)
        self.addCleanup(subprocess.run, ['umount', self.cache])
        self.assertIn('space', self.fails(ExitCode.HOST))


class KilledTestCase(GuestBootTestCase):
    """Killed at random moments, a boot leaves nothing behind."""

    # A boot takes about 10 s: 2 until libvirt is asked, 1 to spawn, 5 until
    # the guest is up, 2 to destroy it.
    _SPAN = 10.0

    def setUp(self):
        super().setUp()
        seed = random.randrange(1 << 32)
        self.random = random.Random(seed)
        self.outputs['seed'] = str(seed)
        self.bridge = f'nkb{uuid.uuid4().hex[:8]}'
        subprocess.run(['ip', 'link', 'add', self.bridge, 'type', 'bridge'],
                       check=True)
        self.addCleanup(subprocess.run, ['ip', 'link', 'delete', self.bridge])
        self.bystander = self.connection.createXML(
            '<domain type="qemu"><name>bystander</name>'
            '<memory unit="MiB">16</memory><os><type>hvm</type></os></domain>')

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command('--nic', f'bridge={self.bridge}'),
            env=self.environment(), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)

    def kill_at_random(self, kill: Any) -> tuple[float, str, int]:
        """Start a boot and have it killed: when, what it said, exit code."""
        delay = self.random.uniform(0, self._SPAN)
        process = self.start()
        time.sleep(delay)   # The moment is what is tested.
        kill(process)
        said, _ = process.communicate(timeout=_TIMEOUT)
        self.outputs[f'killed after {delay:.2f} s'] = said
        return delay, said, process.returncode

    def untouched(self) -> None:
        self.assertTrue(self.bystander.isActive())

    def test_signals(self):
        for number in 2 * (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            delay, said, code = self.kill_at_random(
                lambda process, number=number: process.send_signal(number))
            # Before Python has come as far as to handle it, or after the
            # end, the signal's own effect is as good.
            self.assertIn(code, (128 + number, -number, ExitCode.PASS), said)
            self.nothing_is_left()
            self.untouched()

    def test_worker_killed(self):
        for _ in range(3):
            delay, said, code = self.kill_at_random(self.kill_worker)
            self.assertIn(code, (ExitCode.HOST, ExitCode.PASS), said)
            if code == ExitCode.HOST:
                self.assertIn('SIGKILL', said)
            self.nothing_is_left()
            self.untouched()

    def kill_worker(self, process: subprocess.Popen[str]) -> None:
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def test_supervisor_killed(self):
        """The worker notices and takes its guest away."""
        for _ in range(3):
            self.kill_at_random(lambda process: process.kill())
            libvirtd.wait_for(lambda: not self.workers(), 'end of the worker')
            # Killed before it had a worker, it leaves an empty directory.
            self.passes('--xml')
            self.untouched()

    def test_both_killed(self):
        """The next boot takes the guest away."""
        def kill(process: subprocess.Popen[str]) -> None:
            self.kill_worker(process)
            process.kill()
            # In case that the first look came before it had a worker.
            self.kill_worker(process)

        for _ in range(3):
            self.kill_at_random(kill)
            libvirtd.wait_for(lambda: not self.workers(), 'end of the worker')
            self.passes('--xml')
            self.untouched()


class ConcurrentTestCase(GuestBootTestCase):

    def test_two_boots_at_once(self):
        """Neither sweeps the other away."""
        processes = [
            subprocess.Popen(
                self.command(), env=self.environment(), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for _ in range(2)]
        for process in processes:
            said, _ = process.communicate(timeout=_TIMEOUT)
            self.assertEqual(ExitCode.PASS, process.returncode, said)
        self.nothing_is_left()


class CapturedXMLTestCase(GuestBootTestCase):

    def test_long_names_and_odd_directories(self):
        """The agent's socket path is libvirt's own, so fits."""
        deep = os.path.join(self.tmp, 'x' * 120)
        os.mkdir(deep)
        self.useFixture(fixtures.EnvironmentVariable('TMPDIR', deep))
        self.tmp = deep
        result = self.passes()
        self.assertEqual('PASS', self.check(result, 'guest agent')['result'])
