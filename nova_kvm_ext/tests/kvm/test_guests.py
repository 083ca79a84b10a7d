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


"""Guests of type kvm: each CPU mode, and vhost-net as the kernel shows it."""

from collections.abc import Sequence
import json
import os
import re
from typing import Any
import uuid

from nova_kvm_ext.exit_codes import ExitCode
from nova_kvm_ext.tests.functional import libvirtd
from nova_kvm_ext.tests.kvm import base


_FORBIDDEN = '/etc/modprobe.d/nova-kvm-ext-test.conf'


class GuestTestCase(base.KVMHostTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.bridge = f'nkb{uuid.uuid4().hex[:8]}'
        self.shell(f'ip link add {self.bridge} type bridge')
        self.addCleanup(self.shell, f'ip link delete {self.bridge}')

    def boot(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Exit code and JSON of a ``guest boot`` with a card."""
        code, out, self.said = self.call(
            base.command, 'guest', 'boot', '-f', 'json', *base.IMAGE,
            '--set', 'kvm_ext.virt_type=kvm', '--timeout', '600',
            '--nic', f'bridge={self.bridge}', *arguments)
        self.show('stdout', out)
        self.show('stderr', self.said)
        return code, json.loads(out)

    def kept(self, *arguments: str, codes: Sequence[int] = (ExitCode.PASS,)
             ) -> dict[str, Any]:
        """A guest that runs, and has booted where no other code may be."""
        code, result = self.boot('--keep', *arguments)
        removal = re.search('To remove it: (.*)', self.said)
        if removal is not None:
            self.addCleanup(self.shell, removal[1])
        self.assertIn(code, codes, self.said)
        return result

    @staticmethod
    def verdict(result: dict[str, Any], name: str) -> str:
        found, = (c for c in result['checks'] if c['name'] == name)
        return f'{found["result"]}: {found["details"]}'

    def vhost(self, wanted: ExitCode = ExitCode.PASS) -> tuple[Any, ...]:
        """Driver and queues in XML; the kernel's descriptors and threads."""
        code, out, said = self.call(
            base.command, 'vhost', 'list', '-f', 'json')
        self.show('vhost list', out)
        self.assertEqual(wanted, code, said)
        row, = json.loads(out)
        return tuple(row[name] for name in (
            'driver', 'queues', 'descriptors', 'threads', 'vhost_net'))

    def traffic(self) -> None:
        """Wait until the guest has sent something over the bridge."""
        tap, = os.listdir(f'/sys/class/net/{self.bridge}/brif')

        def received() -> int:
            with open(f'/sys/class/net/{tap}/statistics/rx_packets') as f:
                return int(f.read())

        libvirtd.wait_for(lambda: received() > 0, 'packet from the guest')

    def forbid_vhost_net(self) -> None:
        """Have its module not load."""
        self.addCleanup(self.shell, f'rm -f {_FORBIDDEN}; modprobe vhost_net')
        self.shell(f'echo install vhost_net /bin/false > {_FORBIDDEN}; '
                   f'modprobe -r vhost_net')


class FallBackTestCase(GuestTestCase):
    """QEMU's own, when the guest's driver starts what has been opened."""

    def setUp(self) -> None:
        super().setUp()
        if not base.in_machine():
            self.skipTest('vhost would have to be unloaded')

    def load_vhost(self) -> None:
        """Anew, by what modprobe.d says now."""
        # Whoever opens the device meanwhile loads it the same way.
        self.shell('modprobe -r vhost_net; modprobe vhost_net')

    def test_it_is_seen(self) -> None:
        # QEMU would not open it where it knew that it may give it no memory.
        limit = '/sys/module/vhost/parameters/max_mem_regions'
        self.addCleanup(self.load_vhost)
        self.addCleanup(self.shell, f'rm -f {_FORBIDDEN}')
        self.shell(f'echo options vhost max_mem_regions=0 > {_FORBIDDEN}')
        self.load_vhost()
        self.assertEqual('0', self.shell(f'cat {limit}').strip())
        self.addCleanup(self.shell, f'umount {limit}')
        self.shell(f'echo 64 > /run/max_mem_regions; '
                   f'mount --bind /run/max_mem_regions {limit}')
        result = self.kept('--set', 'kvm_ext.vhost_net=require',
                           codes=(ExitCode.FAIL,))
        self.assertIn('FAIL', self.verdict(result, 'vhost-net'))
        self.assertIn('falling back', self.verdict(result, 'vhost-net'))
        self.traffic()
        self.assertEqual(('vhost', 1, 1, 1, 'no'),
                         self.vhost(ExitCode.FAIL))


class ModesTestCase(GuestTestCase):

    def test_host_model_vhost_required(self) -> None:
        result = self.kept('--set', 'kvm_ext.cpu_mode=host-model',
                           '--set', 'kvm_ext.vhost_net=require',
                           '--property', 'hw_qemu_guest_agent=yes')
        self.assertIn('PASS', self.verdict(result, 'cpu model'))
        self.assertIn('PASS', self.verdict(result, 'cpu flags'))
        self.assertIn('PASS', self.verdict(result, 'guest agent'))
        self.assertEqual(('vhost', 1, 1, 1, 'yes'), self.vhost())
        self.traffic()

    def test_host_passthrough(self) -> None:
        result = self.kept('--set', 'kvm_ext.cpu_mode=host-passthrough')
        self.assertEqual('host-passthrough', result['cpu_mode'])
        self.assertIn('PASS', self.verdict(result, 'cpu flags'))
        self.assertEqual(('vhost', 1, 1, 1, 'yes'), self.vhost())
        self.traffic()

    def test_several_queues(self) -> None:
        """The kernel shows them, whether the guest has booted or not.

        Two vCPUs wait for each other in loops, which can take minutes where
        QEMU emulates SVM.
        """
        self.kept('--vcpus', '2', '--timeout', '1',
                  '--extra-spec', 'hw:vif_multiqueue_enabled=true',
                  codes=(ExitCode.PASS, ExitCode.NO_BOOT))
        self.assertEqual(('vhost', 2, 2, 2, 'yes'), self.vhost())

    def test_maximum_vhost_off(self) -> None:
        result = self.kept('--set', 'kvm_ext.cpu_mode=maximum',
                           '--set', 'kvm_ext.vhost_net=off')
        self.assertEqual('maximum', result['cpu_mode'])
        self.assertIn('PASS', self.verdict(result, 'cpu flags'))
        self.assertEqual(('qemu', 1, 0, 0, 'no'), self.vhost())
        self.traffic()

    def test_none(self) -> None:
        result = self.kept('--set', 'kvm_ext.cpu_mode=none')
        self.assertEqual('qemu64', result['cpu_model'])
        self.assertEqual(('vhost', 1, 1, 1, 'yes'), self.vhost())


class WithoutVhostTestCase(GuestTestCase):

    breaks_host = True

    def test_custom_vhost_preferred(self) -> None:
        self.forbid_vhost_net()
        result = self.kept('--set', 'kvm_ext.cpu_mode=custom',
                           '--set', 'kvm_ext.cpu_model=qemu64')
        self.assertIn('PASS', self.verdict(result, 'cpu flags'))
        self.assertIn('does not use vhost-net, on slower', self.said)
        self.assertEqual((None, 1, 0, 0, 'no'), self.vhost())
        self.traffic()

    def test_vhost_required(self) -> None:
        self.forbid_vhost_net()
        code, result = self.boot('--set', 'kvm_ext.vhost_net=require')
        self.assertEqual(ExitCode.HOST, code, self.said)
        self.assertIn('[kvm_ext] vhost_net = require', result['error'])
        self.assertIn('modprobe vhost_net fails', result['error'])
