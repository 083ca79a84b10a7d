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

import itertools

from oslotest import base

from nova_kvm_ext.host import model
from nova_kvm_ext.vhost import policy

THERE = model.DeviceFacts('/dev/vhost-net', present=True, mode=0o660)
ABSENT = model.DeviceFacts('/dev/vhost-net', present=False)


def broken(open_error: str) -> model.DeviceFacts:
    return model.DeviceFacts(
        '/dev/vhost-net', present=True, mode=0o660, open_error=open_error)


class PolicyTestCase(base.BaseTestCase):

    def test_tap_backed_virtio_of_kvm(self):
        for net_type in ('bridge', 'ethernet', 'network', 'direct'):
            decision = policy.decide('kvm', net_type, 'virtio', THERE)
            self.assertTrue(decision.applies and decision.vhost, net_type)

    def test_where_it_does_not_apply(self):
        for virt_type, net_type, nic in (
                ('qemu', 'bridge', 'virtio'),
                ('kvm', 'vhostuser', 'virtio'), ('kvm', 'hostdev', None),
                ('kvm', 'vdpa', 'virtio'), ('kvm', None, None),
                ('kvm', 'bridge', 'e1000'), ('kvm', 'bridge', None)):
            for device in (THERE, ABSENT):
                decision = policy.decide(virt_type, net_type, nic, device)
                self.assertFalse(decision.applies or decision.vhost)
                self.assertTrue(decision.reason)

    def test_no_device(self):
        decision = policy.decide('kvm', 'bridge', 'virtio', ABSENT)
        self.assertTrue(decision.applies)
        self.assertFalse(decision.vhost)
        self.assertIn('modprobe vhost_net', decision.reason)

    def test_device_without_its_module(self):
        for name in ('ENODEV', 'ENXIO', 'ENOENT'):
            decision = policy.decide('kvm', 'bridge', 'virtio', broken(name))
            self.assertFalse(decision.vhost)
            self.assertIn(name, decision.reason)

    def test_libvirt_opens_what_nova_may_not(self):
        for name in ('EACCES', 'EPERM'):
            self.assertTrue(policy.decide(
                'kvm', 'bridge', 'virtio', broken(name)).vhost)

    def test_vhost_only_where_it_applies(self):
        for args in itertools.product(
                ('kvm', 'qemu'), ('bridge', 'vhostuser', None),
                ('virtio', 'e1000', None),
                (THERE, ABSENT, broken('ENODEV'))):
            decision = policy.decide(*args)
            self.assertFalse(decision.vhost and not decision.applies)
