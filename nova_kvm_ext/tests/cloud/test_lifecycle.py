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

"""What is done to a guest in its life, after which it must be well.

Through the public APIs alone. A guest is well when its agent answers.
"""

from nova_kvm_ext.tests.cloud import base


class LifecycleTestCase(base.CloudTestCase):

    def setUp(self):
        super().setUp()
        self.compute = self.cloud.compute

    def _well(self, server):
        self.wait_for_status(server, 'ACTIVE')
        self.wait_for_agent(server)

    def _boot(self, **wanted):
        server = self.boot(**wanted)
        self._well(server)
        return server

    def test_soft_reboot(self):
        server = self._boot()
        self.compute.reboot_server(server, 'SOFT')
        self._well(server)

    def test_hard_reboot(self):
        server = self._boot(nics=1)
        self.compute.reboot_server(server, 'HARD')
        self._well(server)
        self.assertEqual(1, len(self.report(server).nics))

    def test_stop_and_start(self):
        server = self._boot()
        self.compute.stop_server(server)
        self.wait_for_status(server, 'SHUTOFF')
        self.compute.start_server(server)
        self._well(server)

    def test_suspend_and_resume(self):
        server = self._boot()
        self.compute.suspend_server(server)
        self.wait_for_status(server, 'SUSPENDED')
        self.compute.resume_server(server)
        self._well(server)

    def test_pause_and_unpause(self):
        server = self._boot()
        self.compute.pause_server(server)
        self.wait_for_status(server, 'PAUSED')
        self.compute.unpause_server(server)
        self._well(server)

    def test_rebuild(self):
        server = self._boot()
        image = self.make_image(base.guest_file(), properties={
            'hw_qemu_guest_agent': 'yes'})
        self.compute.rebuild_server(server, image=image.id)
        self._well(server)
        self.assertEqual(
            image.id, self.compute.get_server(server.id).image.id)

    def test_resize(self):
        pinned = self.pinned(self.hosts()[0])
        server = self._boot(flavor=self.make_flavor(extra_specs=pinned))
        larger = self.make_flavor(vcpus=2, ram=384, extra_specs=pinned)
        self.compute.resize_server(server, larger.id)
        self.wait_for_status(server, 'VERIFY_RESIZE')
        self.compute.confirm_server_resize(server)
        self._well(server)
        self.assertEqual(2, self.report(server).cpus)

    def test_shelve_and_unshelve(self):
        server = self._boot()
        self.compute.shelve_server(server)
        self.wait_for_status(server, 'SHELVED_OFFLOADED')
        self.compute.unshelve_server(server)
        self._well(server)

    def test_rescue_and_unrescue(self):
        server = self._boot()
        self.compute.rescue_server(server, image=self.image.id)
        self.wait_for_status(server, 'RESCUE')
        # The rescue disk comes first; the server's own is the second.
        disks = self.report(server).disks
        self.assertEqual(2, len(disks), str(disks))
        self.compute.unrescue_server(server)
        self._well(server)

    def test_attach_and_detach_port(self):
        server = self._boot()
        network = self.cloud.network
        port = network.create_port(network_id=self.network().id)
        self.addCleanup(network.delete_port, port.id)
        self.compute.create_server_interface(server, port_id=port.id)
        self.wait('card in the guest', lambda: port.mac_address in str(
            self.agent(server)['interfaces']))
        self.compute.delete_server_interface(port.id, server)
        self.wait('end of the card', lambda: port.mac_address not in str(
            self.agent(server)['interfaces']))
        self.wait('end of the port', lambda: not list(
            self.compute.server_interfaces(server)))
