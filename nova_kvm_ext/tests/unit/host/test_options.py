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


import fixtures
import nova.conf
from oslo_config import cfg
from oslo_config import fixture
from oslotest import base

from nova_kvm_ext import conf
from nova_kvm_ext.host import options


class HostOptionsTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.conf = cfg.ConfigOpts()
        for module in (nova.conf.compute, nova.conf.libvirt, nova.conf.paths,
                       nova.conf.netconf, nova.conf.base,
                       nova.conf.workarounds):
            module.register_opts(self.conf)
        conf.register_opts(self.conf)
        # The group objects are shared: what is set must be taken back.
        self.useFixture(fixture.Config(self.conf))
        self.conf([], default_config_files=[])

    def read(self) -> options.HostOptions:
        return options.HostOptions.from_conf(self.conf)

    def test_defaults(self):
        found = self.read()
        self.assertEqual((), found.files)
        self.assertEqual('kvm', found.settings.virt_type)
        self.assertEqual((), found.machine_types)

    def test_ceph(self):
        found = self.read()
        self.assertEqual(('rbd', '', None, ''), (
            found.rbd_pool, found.ceph_conf, found.rbd_user,
            found.rbd_secret))
        for name, value in (('images_rbd_pool', 'vms'),
                            ('images_rbd_ceph_conf', '/etc/c.conf'),
                            ('rbd_user', 'cinder'),
                            ('rbd_secret_uuid', 'uuid'),
                            ('images_type', 'rbd')):
            self.conf.set_override(name, value, 'libvirt')
        found = self.read()
        self.assertEqual(('vms', '/etc/c.conf', 'cinder', 'uuid', True), (
            found.rbd_pool, found.ceph_conf, found.rbd_user,
            found.rbd_secret, found.ceph_disks))

    def test_user_that_is_set_to_nothing(self):
        """Nova asks whether it is None."""
        self.conf.set_override('rbd_user', '', 'libvirt')
        self.assertEqual('', self.read().rbd_user)

    def test_what_set_the_driver(self):
        path = self.useFixture(fixtures.TempDir()).join('nova.conf')
        with open(path, 'w') as f:
            f.write('[DEFAULT]\ncompute_driver = libvirt.LibvirtDriver\n')
        self.conf([], default_config_files=[path])
        found = options.HostOptions.from_conf(self.conf, 'by a test')
        self.assertEqual(
            ('libvirt.LibvirtDriver', path, 'by a test'),
            (found.compute_driver, found.compute_driver_source, found.how))

    def test_what_is_set_twice_is_a_fact(self):
        path = self.useFixture(fixtures.TempDir()).join('nova.conf')
        with open(path, 'w') as f:
            f.write('[libvirt]\nvirt_type=qemu\n[kvm_ext]\nvirt_type=kvm\n')
        self.conf([], default_config_files=[path])
        found = self.read()
        self.assertEqual((path,), found.files)
        self.assertEqual('', found.problem)
        override, = found.settings.overrides
        self.assertEqual(f'[kvm_ext] virt_type = kvm ({path}) overrides '
                         f'[libvirt] virt_type = qemu ({path})',
                         str(override))

    def test_values_that_cannot_be_are_facts(self):
        for text, words in (
                ('[DEFAULT]\nreserved_host_disk_mb=abc', 'reserved_host_disk'),
                ('[workarounds]\ndisable_rootwrap=perhaps',
                 '[workarounds] disable_rootwrap cannot be used'),
                ('[libvirt]\nvirt_type=x', '[libvirt] virt_type')):
            path = self.useFixture(fixtures.TempDir()).join('nova.conf')
            with open(path, 'w') as f:
                f.write(text)
            self.conf([], default_config_files=[path])
            self.assertIn(words, self.read().problem)

    def test_machine_types(self):
        self.conf.set_override(
            'hw_machine_type', ['x86_64=q35', ' aarch64 = virt ', 'nonsense'],
            'libvirt')
        self.assertEqual((('x86_64', 'q35'), ('aarch64', 'virt')),
                         self.read().machine_types)

    def test_helper(self):
        self.assertEqual(('sudo', 'nova-rootwrap', '/etc/nova/rootwrap.conf',
                          'privsep-helper'), self.read().helper)
        self.conf.set_override('disable_rootwrap', True, 'workarounds')
        self.assertEqual(('sudo', 'privsep-helper'), self.read().helper)
        self.conf.set_override('helper_command', 'sudo "/a b/helper" -x',
                               'nova_sys_admin')
        found = self.read()
        self.assertEqual(('sudo', '/a b/helper', '-x'), found.helper)
        self.assertEqual('[nova_sys_admin] helper_command',
                         found.helper_option)
        self.conf.set_override('helper_command', 'sudo "unclosed',
                               'nova_sys_admin')
        self.assertEqual(('sudo "unclosed',), self.read().helper)

    def test_as_nova_builds_it(self):
        """What is read when there is no command is what Nova says."""
        from nova import utils
        conf.register_opts(nova.conf.CONF)
        self.assertEqual(
            utils.get_root_helper().split() + ['privsep-helper'],
            list(options.HostOptions.from_conf(nova.conf.CONF).helper))
