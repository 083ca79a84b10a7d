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

"""Guest agents: seen, asked to shut down, and asked to freeze for a snapshot.

The test guest prints what its agent is told to do on its console.
"""

from nova_kvm_ext.tests.cloud import base


class AgentTestCase(base.CloudTestCase):

    def test_answers(self):
        agent = self.wait_for_agent(self.boot())
        self.assertTrue(agent['version'])
        self.assertIn('/data', str(agent['filesystems']))

    def test_password_is_refused_with_a_reason(self):
        # The test guest has no chpasswd, which its agent would run.
        server = self.boot()
        self.wait_for_agent(server)
        self.assertRaises(
            base.openstack.exceptions.HttpException,
            self.cloud.compute.change_server_password, server, 'secret0815')
        self.assertEqual(
            'ACTIVE', self.cloud.compute.get_server(server.id).status)
        self.wait_for_agent(server)


class SnapshotTestCase(base.CloudTestCase):

    def test_is_quiesced(self):
        server = self.boot()
        self.wait_for_agent(server)
        image = self.snapshot(server)
        self.assertIsNotNone(image, self.events(server, 'createImage'))
        console = self.console(server)
        self.assertIn('@nke fsfreeze freeze', console)
        self.assertIn('@nke fsfreeze thaw', console)
        self.wait_for_agent(server)
        # And it is one that boots.
        self.report(self.boot(image=image))

    def test_fails_without_agent_where_quiescing_is_required(self):
        image = self.make_blank_image(properties={
            'hw_qemu_guest_agent': 'yes', 'os_require_quiesce': 'yes',
            'os_shutdown_timeout': '1'})
        server = self.boot(image=image)
        self.assertIsNone(self.snapshot(server), 'It was made')
        self.wait_for_status(server, 'ACTIVE')


class HostAgentTestCase(base.HostTestCase):
    """What only files of the host tell."""

    def test_shuts_down_by_the_agent(self):
        server = self.boot()
        self.wait_for_agent(server)
        self.cloud.compute.stop_server(server)
        self.wait_for_status(server, 'SHUTOFF')
        # The API has no console of a server that is shut off.
        self.assertIn('@nke shutdown', self.console_file(server))

    def test_is_quiesced_under_write_load(self):
        server = self.boot()
        self.wait_for_agent(server)
        self.tell_agent(server, 'guest-exec', path='/bin/sh', arg=['-c', (
            'while :; do echo x >> /data/load; sync; '
            '[ $(wc -c < /data/load) -gt 99999 ] && : > /data/load; done')])
        self.assertIsNotNone(self.snapshot(server))
        console = self.console(server)
        self.assertIn('@nke fsfreeze freeze', console)
        self.assertIn('@nke fsfreeze thaw', console)
        self.assert_thawed(server)

    def test_hung_agent_fails_a_snapshot_with_the_reason(self):
        server = self.boot()
        self.wait_for_agent(server)
        host = self.host_of(server)
        log = self.log_since(host)
        # It answers this and then no more, but the kernel still has its port
        # open. A line on the guest's serial port ends that.
        self.tell_agent(server, 'guest-exec', path='/bin/sh', arg=['-c', (
            'agent=$PPID; sleep 3; kill -STOP $agent; read _ < /dev/ttyS0; '
            'kill -CONT $agent')])
        self.wait('agent that hangs', lambda: self.agent(
            server)['state'] == 'not answering')
        self.assertIsNone(self.snapshot(server), 'It was made')
        self.wait_for_status(server, 'ACTIVE')
        self.assertIn('os_require_quiesce', log())
        # QEMU looks once a second whether somebody has the port open.
        self.on_host(host, ['sh', '-ec', (
            'for _ in 1 2 3 4 5; do echo; sleep 1; done > '
            f'$(virsh ttyconsole {self.domain(server)})')])
        self.assert_thawed(server)
