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

"""From LibvirtDriver to this driver and back, while guests run."""

import os
import re
import shlex
import subprocess
import sys

from nova_kvm_ext.tests.cloud import base
from nova_kvm_ext import traits

_PLAIN: base.configuration.Options = {
    'DEFAULT': {'compute_driver': 'libvirt.LibvirtDriver'},
    'libvirt': {'virt_type': 'qemu', 'cpu_mode': 'host-model'}}


class HostRollbackTestCase(base.HostTestCase):

    def ping(self, server):
        """Wait until a server's agent answers, whatever driver it is under."""
        self.wait('agent that answers', lambda: 'return' in self.on_host(
            self.host_of(server), [
                'virsh', 'qemu-agent-command', self.domain(server),
                '{"execute": "guest-ping"}'], check=False))

    def qemu(self, server):
        """The process and the CPU of a server's guest."""
        domain = self.domain(server)
        host = self.host_of(server)
        xml = self.on_host(host, [
            'virsh', 'dumpxml', domain, '--xpath', '/domain/cpu'])
        pids = self.on_host(host, ['pgrep', '-f', f'guest={domain},'])
        return pids.split(), ''.join(xml.split())

    def check(self, host):
        """What ``rollback check`` says on a host: code and output."""
        etc = self.state / 'etc'
        result = subprocess.run(
            [f'{sys.prefix}/bin/nova-kvm-ext-status',
             *(f'--config-file={etc}/{name}.conf' for name in (
                 'nova-compute', host, f'{host}-changed')),
             'rollback', 'check', '--os-cloud', os.environ['OS_CLOUD']],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=base.TIMEOUT)
        return result.returncode, result.stdout

    def commands(self, said):
        return said.partition('What removes them:\n\n')[2].splitlines()

    def test_there_and_back_with_running_guests(self):
        host = self.hosts()[0]
        self.change(host, _PLAIN)
        old = self.boot(host=host)
        self.ping(old)
        before = self.qemu(old)

        # There.
        self._change(host, {})
        self.assertEqual(before, self.qemu(old))
        self.wait_for_agent(old)
        trait = traits.name('cpu_mode', 'maximum')
        self.wait('traits of this driver', lambda:
                  trait in self.traits(host))
        flavor = self.make_flavor(extra_specs={
            'kvm_ext:cpu_mode': 'maximum', f'trait:{trait}': 'required'})
        new = self.boot(host=host, flavor=flavor)
        self.wait_for_agent(new)
        code, said = self.check(host)
        self.assertIn(code, (1, 2), said)
        self.assertIn(new.id, said)

        # And back.
        running = self.qemu(new)
        self._change(host, _PLAIN)
        self.assertEqual(before, self.qemu(old))
        self.assertEqual(running, self.qemu(new))
        for server in old, new:
            self.ping(server)
            self.cloud.compute.reboot_server(server, 'HARD')
            self.wait_for_status(server, 'ACTIVE')
            self.ping(server)
        # The CPU of its flavor is gone, as was said.
        self.assertNotEqual(running[1], self.qemu(new)[1])
        self.assertEqual(before[1], self.qemu(old)[1])

        # What is left is found, and the commands take it away.
        self.assertIn(trait, self.traits(host))
        code, said = self.check(host)
        others = self.traits(host)
        left = [command for command in self.commands(said)
                if re.search(rf'{flavor.id}|{self.provider(host)}', command)]
        self.assertEqual(2, len(left), said)
        for command in left:
            subprocess.run(
                [f'{sys.prefix}/bin/openstack', *shlex.split(command)[1:]],
                check=True, timeout=base.TIMEOUT)
        self.assertEqual(
            {name for name in others if not name.startswith(traits.PREFIX)},
            self.traits(host))
        code, said = self.check(host)
        self.assertNotIn(flavor.id, said)
        self.assertNotIn(self.provider(host), said)
        self.assert_sound()

    def provider(self, host):
        """The UUID of a compute's resource provider."""
        return self.cloud.compute.find_hypervisor(
            host, ignore_missing=False).id
