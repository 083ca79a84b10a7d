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
from typing import Any

from oslotest import base

from nova_kvm_ext.host import model
from nova_kvm_ext.vhost import policy

THERE = model.DeviceFacts('/dev/vhost-net', present=True, mode=0o660)
ABSENT = model.DeviceFacts('/dev/vhost-net', present=False)
CAN = policy.HostState(True, '/dev/vhost-net opens')
CANNOT = policy.HostState(False, 'there is no /dev/vhost-net')
SETTINGS = ('prefer', 'require', 'off')


def broken(open_error: str) -> model.DeviceFacts:
    return model.DeviceFacts(
        '/dev/vhost-net', present=True, mode=0o660, open_error=open_error)


class HostStateTestCase(base.BaseTestCase):

    def cannot(self, *args: Any, **kwargs: Any) -> str:
        state = policy.host_state(*args, **kwargs)
        self.assertFalse(state.can)
        return state.reason

    def test_it_opens(self):
        self.assertTrue(policy.host_state(THERE).can)

    def test_no_device(self):
        self.assertEqual('there is no /dev/vhost-net: run modprobe vhost_net',
                         self.cannot(ABSENT))

    def test_device_without_its_module(self):
        for name in ('ENODEV', 'ENXIO', 'ENOENT'):
            reason = self.cannot(broken(name))
            self.assertIn(f'cannot be opened ({name})', reason)
            self.assertIn('run modprobe vhost_net', reason)

    def test_modprobe_has_a_word(self):
        for device in (ABSENT, broken('ENODEV')):
            reason = self.cannot(device, modprobe_said='Module not found.')
            self.assertIn('modprobe vhost_net fails (Module not found.)',
                          reason)
            self.assertIn('install a kernel', reason)
        self.assertIn('as root', self.cannot(
            ABSENT, modprobe_said='Operation not permitted'))

    def test_modprobe_is_content_and_there_is_no_device(self):
        self.assertIn('though modprobe vhost_net succeeds',
                      self.cannot(ABSENT, modprobe_said=''))

    def test_who_may_not_open_it_knows_nothing(self):
        for name in ('EACCES', 'EPERM'):
            self.assertIn('root cannot be asked (no sudo)', self.cannot(
                broken(name), root_error='no sudo'))
            self.assertIn('even root may not open', self.cannot(broken(name)))

    def test_root_could_not_be_asked_to_load_it(self):
        self.assertIn('could not be loaded as root (no sudo)',
                      self.cannot(ABSENT, root_error='no sudo'))


class PolicyTestCase(base.BaseTestCase):

    def test_tap_backed_virtio_of_kvm(self):
        for net_type, nic in itertools.product(
                ('bridge', 'ethernet', 'network', 'direct'),
                ('virtio', 'virtio-transitional', 'virtio-non-transitional')):
            for setting, host, driver, lost in (
                    ('prefer', CAN, 'vhost', False),
                    ('require', CAN, 'vhost', False),
                    ('off', CAN, 'qemu', False),
                    ('prefer', CANNOT, None, True),
                    ('require', CANNOT, 'vhost', True),
                    ('off', CANNOT, 'qemu', False)):
                decision = policy.decide(
                    setting, 'kvm', net_type, nic, host)
                self.assertEqual(
                    (True, driver, lost),
                    (decision.applies, decision.driver, decision.lost))
                self.assertTrue(decision.reason)

    def test_where_it_does_not_apply(self):
        for virt_type, net_type, nic in (
                ('qemu', 'bridge', 'virtio'),
                ('kvm', 'vhostuser', 'virtio'), ('kvm', 'hostdev', None),
                ('kvm', 'vdpa', 'virtio'), ('kvm', None, None),
                ('kvm', 'bridge', 'e1000'), ('kvm', 'bridge', None)):
            for setting, host in itertools.product(SETTINGS, (CAN, CANNOT)):
                decision = policy.decide(
                    setting, virt_type, net_type, nic, host)
                self.assertEqual(
                    (False, None, False),
                    (decision.applies, decision.driver, decision.lost))
                self.assertTrue(decision.reason)
