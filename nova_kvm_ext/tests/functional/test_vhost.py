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


"""vhost-net on a real tap of a real bridge, and what the kernel shows."""

import json
import os
import re
import subprocess
import sys
import tempfile
from typing import Any
import unittest
import uuid

from nova_kvm_ext.exit_codes import ExitCode
from nova_kvm_ext.host import facts
from nova_kvm_ext.tests.functional import libvirtd
from nova_kvm_ext.tests.functional import test_guest_boot
from nova_kvm_ext.vhost import policy


def missing_vhost_net() -> str | None:
    """What keeps this kernel from vhost-net; None when nothing.

    Looks as root, with the module loaded if there is one.
    """
    if not policy.opens(facts.read_device(policy.DEVICE)):
        loading = subprocess.run(
            ['modprobe', 'vhost_net'], capture_output=True, text=True)
        if not policy.opens(facts.read_device(policy.DEVICE)):
            return f'{policy.DEVICE} does not open: {loading.stderr.strip()}'
    return None


class VhostTestCase(test_guest_boot.GuestBootTestCase):

    def setUp(self):
        super().setUp()
        self.bridge = f'nkb{uuid.uuid4().hex[:8]}'
        subprocess.run(['ip', 'link', 'add', self.bridge, 'type', 'bridge'],
                       check=True)
        self.addCleanup(subprocess.run, ['ip', 'link', 'delete', self.bridge])

    def nic(self, *arguments: str) -> tuple[str, ...]:
        return ('--nic', f'bridge={self.bridge}', *arguments)

    def vhost_list(self) -> tuple[int, list[dict[str, Any]]]:
        done = subprocess.run(
            [sys.executable, '-m', 'nova_kvm_ext.cmd.main', 'vhost', 'list',
             '--connect', self.libvirt.uri, '-f', 'json'],
            env=self.environment(), capture_output=True, text=True,
            timeout=60)
        self.outputs['vhost list'] = done.stdout + done.stderr
        return done.returncode, json.loads(done.stdout)

    def packets_arrive(self) -> None:
        """Wait until the guest has sent something to its tap."""
        tap, = os.listdir(f'/sys/class/net/{self.bridge}/brif')

        def received() -> int:
            with open(f'/sys/class/net/{tap}/statistics/rx_packets') as f:
                return int(f.read())

        libvirtd.wait_for(lambda: received() > 0, 'packet from the guest')

    def take_away(self) -> None:
        """End a boot of --keep, by the commands that it says."""
        commands = re.search('To remove it: (.*)', self.said)[1]
        for command in commands.split('; '):
            subprocess.run(command.split(), check=True)
        self.nothing_is_left()


class EmulatedTestCase(VhostTestCase):
    """Guests of type qemu are as Nova has them, whatever is asked for."""

    def test_a_guest_that_runs(self):
        code, result = self.boot(*self.nic(
            '--keep', '--set', 'kvm_ext.vhost_net=require'))
        self.assertEqual(ExitCode.PASS, code, self.said)
        self.assertIn('vhost_net = require has no effect', self.said)
        interface, = result['domain']['interfaces']
        self.assertEqual('qemu', interface['driver'])
        check = self.check(result, 'vhost-net')
        self.assertEqual('SKIP', check['result'])
        self.assertIn('does not run under KVM', check['details'])

        code, rows = self.vhost_list()
        self.assertEqual(ExitCode.PASS, code)
        row, = rows
        self.assertEqual(
            (interface['mac'], 'ethernet', 'virtio', 'qemu', 1, 0, 'no'),
            tuple(row[name] for name in (
                'mac', 'type', 'model', 'driver', 'queues', 'descriptors',
                'vhost_net')))
        self.packets_arrive()
        # QEMU itself was found and looked into.
        self.assertEqual(self.libvirt.processes(), [row['pid']])
        self.take_away()
        self.assertEqual((ExitCode.PASS, []), self.vhost_list())

    def test_who_may_not_look_is_told_so(self):
        """As another user, who sees the process and not its descriptors."""
        self.boot(*self.nic('--keep'))
        pid, = self.libvirt.processes()
        with open(f'/proc/{pid}/cmdline') as f:
            words = f.read().split('\0')
        uuid_of = words[words.index('-uuid') + 1]
        script = ('import os, sys; os.setgid(65534); os.setuid(65534); '
                  'guest = proof.Running(sys.argv[1], "none"); '
                  'found, = process.read_vhost([guest]).values(); '
                  'print(found.pid, found.descriptors)')
        # Imported before the user changes, who may not read it here.
        script = 'from nova_kvm_ext.vhost import process, proof; ' + script
        done = subprocess.run([sys.executable, '-c', script, uuid_of],
                              capture_output=True, text=True)
        self.assertEqual(f'{pid} None', done.stdout.strip(), done.stderr)
        self.take_away()

    def test_multiqueue_has_one_queue(self):
        """Nova would make the tap device with queues, the XML has none."""
        code, result = self.boot(*self.nic(
            '--timeout', '1', '--vcpus', '2',
            '--extra-spec', 'hw:vif_multiqueue_enabled=true'))
        self.assertIn('spawn', [s['name'] for s in result['steps']],
                      self.said)
        self.nothing_is_left()

    def test_nonsense_of_flavor_and_image(self):
        for arguments, words in (
                (('--extra-spec', 'kvm_ext:vhost_queues=0'),
                 'kvm_ext:vhost_queues = 0 is not a number of queues'),
                (('--property', 'kvm_ext_vhost_queues=2', '--vcpus', '2'),
                 'without multiqueue')):
            self.assertIn(words, self.fails(
                ExitCode.NO_BOOT, *self.nic(*arguments)))


class WithoutVhostNetTestCase(VhostTestCase):
    """Type kvm on a kernel that has no vhost_net."""

    # That guests do not boot under KVM on this machine is of no matter.
    STARTS = ('--set', 'kvm_ext.host_check=off',
              '--set', 'kvm_ext.cpu_mode=none')

    def setUp(self):
        super().setUp()
        if not os.path.exists('/dev/kvm'):
            self.skipTest('This machine has no /dev/kvm')
        if missing_vhost_net() is None:
            self.skipTest('This kernel has vhost_net')

    def test_require_is_refused(self):
        error = self.fails(
            ExitCode.HOST,
            *self.nic('--set', 'kvm_ext.vhost_net=require'), virt_type='kvm')
        self.assertIn('[kvm_ext] vhost_net = require', error)
        self.assertIn('there is no /dev/vhost-net', error)
        self.assertIn('modprobe vhost_net fails', error)

    def test_require_is_refused_without_loading(self):
        error = self.fails(
            ExitCode.HOST, *self.nic(
                '--set', 'kvm_ext.vhost_net=require',
                '--set', 'kvm_ext.load_vhost_net=false'), virt_type='kvm')
        self.assertIn('run modprobe vhost_net', error)

    def test_prefer_starts_without_and_says_so(self):
        """The guest starts; whether it also boots depends on the machine."""
        code, result = self.boot(
            *self.nic(*self.STARTS, '--timeout', '15'),
            virt_type='kvm')
        self.assertIn(code, (ExitCode.PASS, ExitCode.NO_BOOT), self.said)
        self.assertIn('spawn', [s['name'] for s in result['steps']])
        self.assertIn('Guests do not use vhost-net', self.said)
        self.assertIn('does not use vhost-net, on slower', self.said)
        interface, = result['domain']['interfaces']
        self.assertIsNone(interface['driver'])
        self.nothing_is_left()

    def test_multiqueue_starts_without(self):
        """Nova would name vhost, and libvirt refuse the guest."""
        code, result = self.boot(
            *self.nic(*self.STARTS, '--timeout', '5',
                      '--vcpus', '4',
                      '--extra-spec', 'hw:vif_multiqueue_enabled=true',
                      '--extra-spec', 'kvm_ext:vhost_queues=2'),
            virt_type='kvm')
        self.assertIn('spawn', [s['name'] for s in result['steps']],
                      self.said)
        interface, = result['domain']['interfaces']
        self.assertEqual('qemu', interface['driver'])
        self.nothing_is_left()

    def test_one_queue_starts_on_a_tap_without(self):
        """The tap that Nova makes agrees with the XML."""
        code, result = self.boot(
            *self.nic(*self.STARTS, '--timeout', '5',
                      '--vcpus', '2',
                      '--set', 'kvm_ext.max_vhost_queues=1',
                      '--extra-spec', 'hw:vif_multiqueue_enabled=true'),
            virt_type='kvm')
        self.assertIn('spawn', [s['name'] for s in result['steps']],
                      self.said)
        self.nothing_is_left()


# Nova's context with a real daemon of its own, which ends with its client.
_AS_ROOT = """
import os, sys
from oslo_config import cfg
import nova.privsep
from nova_kvm_ext.vhost import privileged
cfg.CONF([], project='nova', default_config_files=[])
cfg.CONF.set_override(
    'helper_command',
    os.path.join(os.path.dirname(sys.executable), 'privsep-helper'),
    group='nova_sys_admin')
print(list(privileged.read_device('/dev/null')))
print(privileged.modprobe('vhost_net'))
"""

# Linux include/uapi/linux/capability.h
_CAP_SYS_MODULE = 16


class PrivsepTestCase(unittest.TestCase):
    """What is done as root, through privsep as the service has it."""

    def as_root(self, path: str) -> list[str]:
        """What the daemon answers, modprobe being looked for in this PATH."""
        done = subprocess.run(
            [sys.executable, '-c', _AS_ROOT], capture_output=True, text=True,
            timeout=120, env=os.environ | {'PATH': path})
        self.assertEqual(0, done.returncode, done.stderr)
        return done.stdout.splitlines()

    def setUp(self):
        if os.geteuid() != 0:
            self.skipTest('Only root starts the daemon without sudo')
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def test_device_and_modprobe(self):
        """modprobe is started with the capability that the daemon lacks."""
        modprobe = os.path.join(self.directory, 'modprobe')
        with open(modprobe, 'w') as f:
            f.write('#!/bin/sh\necho "$@" >&2\n'
                    'grep CapEff /proc/$$/status >&2\nexit 1\n')
        os.chmod(modprobe, 0o755)
        device, said = self.as_root(f'{self.directory}:{os.environ["PATH"]}')
        self.assertIn("'/dev/null', True", device)
        found = re.fullmatch(r'vhost_net CapEff: ([0-9a-f]+)', said)
        self.assertIsNotNone(found, said)
        self.assertTrue(int(found[1], 16) >> _CAP_SYS_MODULE & 1, said)

    def test_no_modprobe(self):
        _, said = self.as_root(self.directory)
        self.assertIn('modprobe cannot be run', said)


class DeviceTestCase(unittest.TestCase):

    def test_a_node_whose_module_does_not_load(self):
        """A real node of vhost-net's number, on a kernel without it."""
        if os.geteuid() != 0:
            self.skipTest('Only root makes devices')
        if missing_vhost_net() is None:
            self.skipTest('This kernel has vhost_net')
        with tempfile.TemporaryDirectory() as root:
            os.mkdir(os.path.join(root, 'dev'))
            # Linux include/linux/miscdevice.h, VHOST_NET_MINOR.
            os.mknod(os.path.join(root, 'dev', 'vhost-net'), 0o20666,
                     os.makedev(10, 238))
            device = facts.read_device(policy.DEVICE, root)
        self.assertTrue(device.present)
        self.assertEqual('ENODEV', device.open_error)
        state = policy.host_state(device)
        self.assertFalse(state.can)
        self.assertIn('cannot be opened (ENODEV)', state.reason)


class KernelTestCase(VhostTestCase):
    """The whole of it, on a real KVM host."""

    def setUp(self):
        # Not a failure either where functional tests must not be skipped:
        # no package brings a module that the kernel is built without.
        missing = missing_vhost_net()
        if missing is not None:
            raise unittest.SkipTest(
                f'This kernel cannot do vhost-net: {missing}')
        if not os.path.exists('/dev/kvm'):
            raise unittest.SkipTest('This machine has no /dev/kvm')
        super().setUp()

    def kept(self, queues: int, *arguments: str) -> None:
        """Boot a guest whose interface has this many queues, and look."""
        code, result = self.boot(
            *self.nic('--keep', '--set', 'kvm_ext.vhost_net=require',
                      *arguments), virt_type='kvm')
        self.assertEqual(ExitCode.PASS, code, self.said)
        pid, = self.libvirt.processes()
        interface, = result['domain']['interfaces']
        self.assertEqual('vhost', interface['driver'])
        self.assertNotIn('does not use vhost-net', self.said)
        code, (row,) = self.vhost_list()
        self.assertEqual(ExitCode.PASS, code)
        self.assertEqual(
            ('vhost', queues, pid, queues, queues, 'yes'),
            tuple(row[name] for name in (
                'driver', 'queues', 'pid', 'descriptors', 'threads',
                'vhost_net')))
        # What it says, and that the guest's own driver came up on it.
        for name in ('vhost-net', 'nic'):
            self.assertEqual('PASS', self.check(result, name)['result'])
        self.take_away()

    def test_one_queue(self):
        self.kept(1)

    def test_several_queues(self):
        self.kept(3, '--vcpus', '4',
                  '--extra-spec', 'hw:vif_multiqueue_enabled=true',
                  '--extra-spec', 'kvm_ext:vhost_queues=3')

    def test_off_has_none(self):
        code, result = self.boot(
            *self.nic('--keep', '--set', 'kvm_ext.vhost_net=off'),
            virt_type='kvm')
        self.assertEqual(ExitCode.PASS, code, self.said)
        _, (row,) = self.vhost_list()
        self.assertEqual(
            ('qemu', 0, 'no'),
            tuple(row[name] for name in (
                'driver', 'descriptors', 'vhost_net')))
        self.take_away()

    def test_traffic(self):
        """The kernel moves what the guest sends."""
        code, _ = self.boot(
            *self.nic('--keep', '--set', 'kvm_ext.vhost_net=require'),
            virt_type='kvm')
        self.assertEqual(ExitCode.PASS, code, self.said)
        self.packets_arrive()
        self.take_away()
