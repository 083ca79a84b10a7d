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

"""Faults: what is killed, full or forbidden, and whether all is well after it.

On the hosts of the cloud of tools/run-cloud-tests alone. After each fault the
service recovers by itself, and there is no lost server, no stray domain, no
leaked allocation and no frozen guest.
"""

import os
import signal
import subprocess
import sys
import time
from unittest import mock

import libvirt
from openstack import exceptions

from nova_kvm_ext.host import probe
from nova_kvm_ext.host import probe_answers
from nova_kvm_ext.tests.cloud import base
from nova_kvm_ext.tests.cloud import test_migration


class Faulty(base.HostTestCase):
    """What the checks of faults share."""

    def setUp(self):
        super().setUp()
        self.host = self.hosts()[0]
        self.nova_compute = f'nova-compute-{self.host}'

    def kill(self, name):
        """Kill a service. A test that fails does not leave it dead."""
        # Before what the test adds later, such as a server's removal.
        self.addCleanup(self.revive, name)
        self.services.stop(name, signal.SIGKILL)

    def revive(self, name):
        if self.services.pid(name) is None:
            if name == self.nova_compute:
                self.start_compute(self.host)
            else:
                self.services.start(name)

    def works(self):
        """A new server boots, on the host that had the fault."""
        self.wait('service that is enabled', lambda: self.host in self.hosts())
        server = self.boot(host=self.host)
        self.wait_for_agent(server)
        # A small disk has no space for another.
        self.remove(server)

    def recovers(self, server):
        """Wait until all that asks a server's agent works again.

        Each service may first miss connections that it had, or an answer.
        """
        def works():
            try:
                list(self.cloud.image.images(limit=1))
                list(self.cloud.network.agents())
                self.traits(self.host)
                return (self.host in self.hosts() and
                        self.agent(server)['state'] == 'connected')
            except base.openstack.exceptions.HttpException as e:
                if e.status_code is not None and e.status_code < 500:
                    raise
                return False
        self.wait('APIs and service that work', works)

    def wait_for_task(self, server, *states):
        """Wait for a task state; polled often, because it passes."""
        deadline = time.monotonic() + base.TIMEOUT
        while self.cloud.compute.get_server(
                server.id).task_state not in states:
            self.assertLess(time.monotonic(), deadline, states)

    def slow_freezes(self, server):
        """Have a guest take its time over a freeze.

        It would be thawed before it is noticed, else.
        """
        self.tell_agent(server, 'guest-exec', path='/bin/sh', arg=[
            '-c', 'echo \'[ "$1" = thaw ] || sleep 8\' >> /etc/fsfreeze-hook'])

    def wait_for_freeze(self, server):
        """Wait until a guest begins to freeze."""
        self.wait('freeze', lambda: '@nke fsfreeze freeze' in
                  self.console_file(server))


class FaultTestCase(Faulty):

    def test_nova_compute_killed_in_a_boot(self):
        server = self.ask_for(host=self.host)
        self.wait_for_task(server, 'spawning')
        self.kill(self.nova_compute)
        self.start_compute(self.host)
        # Nova does not take it up again, and says so.
        self.wait('end of the boot', lambda: self.cloud.compute.get_server(
            server.id).status in ('ACTIVE', 'ERROR'))
        self.remove(server)
        self.assert_sound()
        self.works()

    def test_nova_compute_killed_in_a_freeze(self):
        server = self.boot(host=self.host)
        self.wait_for_agent(server)
        self.slow_freezes(server)
        image = self.cloud.compute.create_server_image(
            server.id, f'kvm-ext-killed-{server.id}')
        self.addCleanup(self.cloud.image.delete_image, image.id)
        self.wait_for_freeze(server)
        self.kill(self.nova_compute)
        self.wait('frozen guest', lambda: self.frozen(server) == 'frozen')
        self.start_compute(self.host)
        self.wait('thawed guest', lambda: self.frozen(server) == 'thawed')
        self.wait_for_status(server, 'ACTIVE')
        self.assert_sound()
        # Nova leaves the copy of the disk behind that it had begun, and with
        # it no other can be made until the domain is a new one.
        self.cloud.compute.reboot_server(server, 'HARD')
        self.wait_for_status(server, 'ACTIVE')
        self.wait_for_agent(server)
        self.assertIsNotNone(self.snapshot(server))
        self.assert_thawed(server)

    def test_libvirtd_killed(self):
        server = self.boot(host=self.host)
        self.wait_for_agent(server)
        self.kill(f'libvirtd-{self.host}')
        self.services.start(f'libvirtd-{self.host}')
        self.wait('service that is enabled', lambda: self.host in self.hosts())
        self.wait_for_agent(server)
        self.assert_sound()
        self.works()

    def test_rabbitmq_killed(self):
        server = self.boot(host=self.host)
        self.kill('rabbitmq')
        self.services.start('rabbitmq')
        self.recovers(server)
        self.works()
        self.assert_sound()

    def test_mariadb_killed(self):
        server = self.boot(host=self.host)
        self.kill('mariadb')
        self.services.start('mariadb')
        self.recovers(server)
        self.works()
        self.assert_sound()

    def test_disk_full(self):
        if self.storage.kind != 'files':
            self.skipTest('Disks of guests are not on the disk of the host')
        # A small file system over the path of instances, which this cloud
        # alone sees. There is no other server.
        path = str(self.state / 'instances')

        def disk():
            return self.placement('GET', self.host, 'inventories')[
                'inventories']['DISK_GB']['total']

        before = disk()
        # Other tests find what there was.
        self.addCleanup(
            self.wait, 'disk as before', lambda: disk() == before)
        self.on_host(self.host, [
            'mount', '--no-mtab', '-t', 'tmpfs', '-o', 'size=1G', 'none',
            path])
        self.addCleanup(self.on_host, self.host, [
            'umount', '--no-mtab', '--lazy', path])

        def fill(but_mib):
            self.on_host(self.host, ['sh', '-ec', (
                f'cd {path}; touch filler; fallocate --length $(('
                f'$(stat -c %s filler) + $(df -B1 --output=avail . | tail -1)'
                f' - {but_mib} * 1048576)) filler')])

        fill(but_mib=300)
        # The image is downloaded until there is no more space.
        log = self.log_since(self.host)
        server = self.wait_for_status(self.ask_for(
            host=self.host, image=self.make_blank_image(mib=400)), 'ERROR')
        self.assertIn('No space left', log())
        self.remove(server)
        self.assert_sound()
        # What there was of it is gone, so another server has space.
        self.works()
        # With none at all the service says so and takes no server.
        fill(but_mib=1)
        self.assertIn('Space for instances', self.reason_of_service())
        self.on_host(self.host, ['rm', f'{path}/filler'])
        self.works()

    def test_kvm_forbidden(self):
        if not os.path.exists('/dev/kvm'):
            self.skipTest('There is no /dev/kvm')
        self.on_host(self.host, ['chmod', '0600', '/dev/kvm'])
        self.addCleanup(self.on_host, self.host, ['chmod', '0660', '/dev/kvm'])
        log = self.log_since(self.host)
        self.services.stop(self.nova_compute)
        self.set_options(self.host, {'kvm_ext': {'virt_type': 'kvm'}})
        self.addCleanup(self.set_options, self.host, {})
        self.services.start(self.nova_compute)
        # What watches it sees it end, and the log says why.
        self.wait('end of nova-compute',
                  lambda: self.services.pid(self.nova_compute) is None)
        self.assertIn('/dev/kvm', log())
        self.assertIn('chmod', log())
        self.on_host(self.host, ['chmod', '0660', '/dev/kvm'])
        # Not every machine that has KVM runs guests under it.
        self.set_options(self.host, {})
        self.start_compute(self.host)
        self.assert_sound()
        self.works()

    def test_kvm_closed_while_the_service_runs(self):
        if not os.path.exists('/dev/kvm'):
            self.skipTest('There is no /dev/kvm')
        # Not every machine that has KVM runs guests under it. None is started
        # here, so the service may find kept that they do.
        kept = self.state / 'lib' / self.host / 'kvm-ext-probe.json'
        self.addCleanup(kept.unlink)
        with mock.patch.object(probe, 'run', return_value=probe.ProbeResult(
                True, 'it is a test', 1.0, lasting=True)):
            probe_answers.cached_run(
                libvirt.open('qemu:///system'), virt_type='kvm',
                cache_file=str(kept))
        self.change(self.host, {
            'kvm_ext': {'virt_type': 'kvm', 'cpu_mode': 'none'}})
        self.on_host(self.host, ['chmod', '0600', '/dev/kvm'])
        self.addCleanup(self.on_host, self.host, ['chmod', '0660', '/dev/kvm'])
        self.assertIn('/dev/kvm', self.reason_of_service())
        self.on_host(self.host, ['chmod', '0660', '/dev/kvm'])
        self.wait('service that is enabled', lambda: self.host in self.hosts())
        self.assert_sound()

    def reason_of_service(self):
        """Why the service is disabled, once it is."""
        def disabled():
            [service] = self.cloud.compute.services(
                host=self.host, binary='nova-compute')
            return service.status == 'disabled' and service
        return self.wait('service that is disabled', disabled).disabled_reason


class MigrationFaultTestCase(test_migration.Migrating, base.HostTestCase):

    def test_nova_compute_killed_in_a_migration(self):
        server = self.boot(nics=1, host=self.first)
        self.wait_for_agent(server)
        self.cloud.compute.live_migrate_server(
            server, host=self.second, block_migration='auto')
        self.wait('job of libvirt', lambda: 'Unbounded' in self.on_host(
            self.first, ['virsh', 'domjobinfo', self.domain(server)],
            check=False) or self.ended(server))
        self.assertIsNone(self.ended(server), 'It was over too soon')
        log = self.log_since(self.first)
        self.services.stop(f'nova-compute-{self.first}', signal.SIGKILL)
        self.start_compute(self.first)
        # On one of the two, and nowhere twice.
        self.wait('one domain', lambda: sum(
            server.id in self.domains(host)
            for host in (self.first, self.second)) == 1)
        [where] = [host for host in (self.first, self.second)
                   if server.id in self.domains(host)]
        self.assertIn('running', self.on_host(
            where, ['virsh', 'domstate', server.id]))
        self.wait('task that has ended', lambda: self.cloud.compute.get_server(
            server.id).task_state is None)
        self.addCleanup(self._end_unknown, server)
        # libvirt completes what it was told to do, and Nova does not see it.
        believed = self.host_of(server)
        if where != believed:
            self.wait('word of it', lambda: (
                f'was being moved to {self.second}' in log()))
            self._refused(server, log)
            self._mend(server)
            self.wait_for_status(server, 'ACTIVE')
        else:
            # nova-compute was back in time to abort it. What Nova leaves of
            # that is not this command's.
            self._give_back(server)
        self.assertEqual(self.first, self.host_of(server))
        self.assertNotIn(server.id, self.domains(self.second))
        self.assert_sound()
        self.wait_for_agent(server)
        # Nova can do with it what it likes again.
        self.move(server, self.second)

    def _refused(self, server, log):
        """A second guest is not started of what is left of the disk."""
        self.cloud.compute.reboot_server(server, 'HARD')
        self.wait_for_status(server, 'ERROR')
        self.assertNotIn(server.id, self.domains(self.first))
        self.assertIn('KVML721', log())

    def _mend(self, server):
        """The one command, on the destination; again, it has nothing to do."""
        etc = self.state / 'etc'
        command = [
            f'{sys.prefix}/bin/nova-kvm-ext', 'guest', 'repair-migration',
            server.id, '--yes', '-f', 'value', '-c', 'result',
            *(f'--config-file={etc}/{name}.conf'
              for name in ('nova-compute', self.second))]
        self.assertEqual(
            ['done'] * 5, self._results(self.on_host(self.second, command)))
        self.assertEqual(
            ['nothing to do'] * 5,
            self._results(self.on_host(self.second, command)))

    @staticmethod
    def _results(output):
        return [line for line in output.splitlines()
                if line in ('done', 'nothing to do', 'left alone', 'declined',
                            'failed')]

    def _end_unknown(self, server):
        """End a guest that was not brought back: Nova would leave it there."""
        if self.host_of(server) != self.second:
            for command in ('undefine', 'destroy'):
                self.on_host(self.second, ['virsh', command, server.id],
                             check=False)

    def _give_back(self, server):
        subprocess.run(
            ['nova-manage', '--config-file', str(self.state / 'etc/nova.conf'),
             'placement', 'heal_allocations', '--instance', server.id,
             '--force'], check=True, stdout=subprocess.DEVNULL)
        [migration] = self.cloud.compute.migrations(instance_uuid=server.id)
        exceptions.raise_from_response(self.cloud.placement.delete(
            f'/allocations/{migration.uuid}', microversion='1.6'))
        # Neutron lets services alone do this. All users have one password.
        nova = self.cloud.connect_as(username='nova', project_name='service')
        with nova:
            for port in nova.network.ports(device_id=server.id):
                self.assertEqual(self.first, port.binding_host_id)
                nova.network.delete_port_binding(
                    port, self.second, ignore_missing=False)
