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

import os
from typing import Any

import fixtures
from nova.network import model as network_model
from nova import objects
from nova import test
from nova.virt import images
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext.boot import cloudless
from nova_kvm_ext.boot import leftovers
from nova_kvm_ext import errors


class CloudlessTestCase(test.NoDBTestCase):

    def image(self, **properties: str) -> cloudless.LocalImage:
        path = os.path.join(
            self.useFixture(fixtures.TempDir()).path, 'x.raw')
        with open(path, 'wb') as f:
            f.write(b'content')
        return cloudless.LocalImage(path, 'raw', properties)


class SetAsideTestCase(CloudlessTestCase):

    def test_the_options_exist_and_take_the_value(self):
        for group, name, value in cloudless._SET_ASIDE:
            self.addCleanup(cloudless.CONF.clear_override, name, group)
            cloudless.CONF.set_override(name, value, group)
            found = cloudless.CONF[group] if group else cloudless.CONF
            self.assertEqual(value, found[name], name)

    def test_the_domain_will_be_known_as_ours(self):
        template = dict((name, value)
                        for _, name, value in cloudless._SET_ASIDE)[
                            'instance_name_template']
        self.assertEqual(leftovers.DOMAIN_PREFIX + 'x',
                         template % {'uuid': 'x'})


class LocalImageTestCase(CloudlessTestCase):

    def test_meta(self):
        meta = self.image(hw_qemu_guest_agent='yes',
                          hw_disk_bus='virtio').meta()
        self.assertEqual(('raw', 'bare', 7, 'x.raw'),
                         (meta.disk_format, meta.container_format, meta.size,
                          meta.name))
        self.assertIs(True, meta.properties.hw_qemu_guest_agent)
        self.assertEqual('virtio', meta.properties.hw_disk_bus)

    def test_a_bad_property_is_named(self):
        for name, value in (('hw_disk_bus', 'punch-cards'),
                            ('hw_numa_nodes', 'many'),
                            ('hw_vif_model', 'x\x1b[2J')):
            image = self.image(
                hw_qemu_guest_agent='yes', **{name: value})
            error = self.assertRaises(errors.InvalidOption, image.meta)
            self.assertIn(f'{name}={value}', str(error))
            self.assertNotIn('hw_qemu_guest_agent', str(error))

    def test_get_gives_a_copy(self):
        image = self.image()
        image.get(None, image.id)['size'] = 0
        self.assertEqual(7, image.get(None, image.id)['size'])

    def test_download(self):
        image = self.image()
        path = image.path + '.copy'
        image.download(None, image.id, dest_path=path)
        with open(path, 'rb') as f:
            self.assertEqual(b'content', f.read())
        self.assertRaises(AssertionError, image.download, None, image.id)

    def test_serve(self):
        self.useFixture(fixtures.MockPatchObject(images, 'IMAGE_API'))

        class Driver:
            _image_api: Any = None

        image, driver = self.image(), Driver()
        image.serve(driver)
        self.assertIs(image, images.IMAGE_API)
        self.assertIs(image, driver._image_api)


class NetworkTestCase(CloudlessTestCase):

    def there(self, found: bool) -> None:
        self.isdir = self.useFixture(fixtures.MockPatch(
            'os.path.isdir', return_value=found)).mock

    def test_none(self):
        self.assertEqual([], list(cloudless.network(None, None)))

    def test_no_such_bridge(self):
        self.there(False)
        error = self.assertRaises(
            errors.HostError, cloudless.network, 'nke1', 'br7')
        self.assertIn('--nic bridge=br7', str(error))
        self.assertIn('ip link add br7 type bridge', str(error))

    def test_tap(self):
        self.there(True)
        vif, = cloudless.network('nke12345678', 'br7')
        self.isdir.assert_called_once_with('/sys/class/net/br7/bridge')
        self.assertEqual(network_model.VIF_TYPE_TAP, vif['type'])
        self.assertEqual(network_model.VNIC_TYPE_NORMAL, vif['vnic_type'])
        self.assertEqual('nke12345678', vif['devname'])
        self.assertEqual('br7', vif['network']['bridge'])
        self.assertEqual([], vif['network']['subnets'])
        self.assertTrue(vif['active'])
        self.assertEqual(
            vif['address'], '52:54:00:{}:{}:{}'.format(
                vif['id'][0:2], vif['id'][2:4], vif['id'][4:6]))

    def test_each_has_its_own_address(self):
        self.there(True)
        self.assertEqual(20, len({
            cloudless.network('nke1', 'br7')[0]['address']
            for _ in range(20)}))

    def test_add_to_bridge(self):
        run = self.useFixture(fixtures.MockPatchObject(
            cloudless.subprocess, 'run')).mock
        run.return_value.returncode = 0
        cloudless.add_to_bridge('nke1', 'br7')
        self.assertEqual(['ip', 'link', 'set', 'nke1', 'master', 'br7'],
                         run.call_args.args[0])
        run.return_value.returncode = 2
        run.return_value.stderr = 'RTNETLINK answers: \x1bno\n'
        error = self.assertRaises(
            errors.HostError, cloudless.add_to_bridge, 'nke1', 'br7')
        self.assertEqual('nke1 cannot be added to the bridge br7: '
                         'RTNETLINK answers: no.', str(error))


class CreateInstanceTestCase(CloudlessTestCase):

    def setUp(self):
        super().setUp()
        self.create = self.useFixture(fixtures.MockPatchObject(
            objects.Instance, 'create')).mock

    def instance(self, properties: dict[str, str] | None = None,
                 **extra_specs: str) -> objects.Instance:
        return cloudless.create_instance(
            cloudless.context(), uuids.instance,
            self.image(**properties or {}), vcpus=2, memory_mb=512,
            extra_specs={name.replace('__', ':'): value
                         for name, value in extra_specs.items()})

    def refused(self, *args: Any, **extra_specs: str) -> str:
        error = self.assertRaises(
            errors.InvalidOption, self.instance, *args, **extra_specs)
        self.create.assert_not_called()
        return str(error)

    def test_created(self):
        found = self.instance({'hw_disk_bus': 'ide'},
                              hw__cpu_sockets='2')
        self.create.assert_called_once_with()
        self.assertEqual(
            (uuids.instance, 2, 512, cloudless.CONF.host),
            (found.uuid, found.vcpus, found.memory_mb, found.host))
        self.assertEqual({'hw:cpu_sockets': '2'}, found.flavor.extra_specs)
        self.assertEqual('ide', found.system_metadata['image_hw_disk_bus'])
        self.assertIsNone(found.numa_topology)
        self.assertEqual([], list(found.pci_devices))
        self.assertEqual(0, found.root_gb)

    def test_what_only_a_cloud_knows(self):
        for extra_specs in ({'hw__numa_nodes': '1'},
                            {'hw__mem_page_size': 'large'},
                            {'hw__cpu_policy': 'dedicated'}):
            self.assertIn('only a cloud knows', self.refused(**extra_specs))
        for properties in ({'hw_numa_nodes': '1'},
                           {'hw_cpu_policy': 'dedicated'}):
            self.assertIn('only a cloud knows', self.refused(properties))

    def test_what_nova_refuses(self):
        for extra_specs in ({'hw__cpu_policy': 'mine'},
                            {'hw__numa_nodes': '0'}):
            text = self.refused(**extra_specs)
            self.assertIn('Nova refuses this flavor and image', text)

    def test_a_contradiction(self):
        self.assertIn('Nova refuses', self.refused(
            {'hw_cpu_policy': 'dedicated'}, hw__cpu_policy='shared'))

    def test_a_bad_property(self):
        self.assertIn('hw_disk_bus=x', self.refused({'hw_disk_bus': 'x'}))
