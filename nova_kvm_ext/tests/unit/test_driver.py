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

"""KVMDriver on Nova's fake libvirt: what reaches the guest's XML."""

from typing import Any
from unittest import mock

import fixtures
from lxml import etree
from nova import exception
from nova.network import model as network_model
from nova.virt import driver as virt_driver
from nova.virt import fake
from nova.virt.libvirt import driver as libvirt_driver
from oslo_config import cfg
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext import driver
from nova_kvm_ext.host import probe
from nova_kvm_ext.host import probe_answers
from nova_kvm_ext import option_values
from nova_kvm_ext.tests.unit import driver_base
from nova_kvm_ext.vhost import vif


class LoadTestCase(driver_base.DriverTestCase):

    def test_through_novas_loader(self):
        found = virt_driver.load_compute_driver(
            fake.FakeVirtAPI(), 'kvm_ext.KVMDriver')
        self.assertIs(driver.KVMDriver, type(found))
        self.assertIsInstance(found.vif_driver, vif.KVMVIFDriver)

    def test_bad_value_of_an_option_that_novas_init_reads(self):
        """Nova's loader would say that the driver is of the wrong type."""
        name = self.useFixture(fixtures.TempDir()).join('nova.conf')
        with open(name, 'w') as f:
            f.write('[libvirt]\nvirt_type = kvn\n')
        # The test's own configuration has read another file.
        namespace = cfg._Namespace(driver.CONF)
        cfg.ConfigParser._parse_file(name, namespace)
        with mock.patch.object(driver.CONF, '_namespace', namespace):
            error = self.assertRaises(
                exception.InvalidConfiguration,
                virt_driver.load_compute_driver,
                fake.FakeVirtAPI(), 'kvm_ext.KVMDriver')
        self.assertIn("[libvirt] virt_type", str(error))
        self.assertIn("'kvn'", str(error))

    def test_adds_no_public_method(self):
        """Nova checks that every public method is one of ComputeDriver's."""
        added = {name for name in vars(driver.KVMDriver)
                 if not name.startswith('_')}
        self.assertEqual(
            set(), added - set(dir(libvirt_driver.LibvirtDriver)))


class NUMASupportTestCase(driver_base.DriverTestCase):

    def test_yes_is_kept(self):
        drvr = driver.KVMDriver(mock.Mock())
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, '_has_numa_support',
                side_effect=[False, True]):
            # What fails in between counts as no.
            self.assertEqual([False, True, True],
                             [drvr._has_numa_support() for _ in range(3)])


class OptionsTestCase(driver_base.DriverTestCase):

    def told(self) -> tuple[str, str | None, list[str]]:
        """What Nova's own options say."""
        return (driver.CONF.libvirt.virt_type, driver.CONF.libvirt.cpu_mode,
                driver.CONF.libvirt.cpu_models)

    def test_unset_leaves_novas_options(self):
        self.started()
        self.assertEqual(('kvm', None, []), self.told())

    def test_nova_is_told(self):
        self.started(virt_type='qemu', cpu_mode='custom', cpu_model='penryn')
        self.assertEqual(('qemu', 'custom', ['Penryn']), self.told())

    def test_nova_is_told_the_nearest_mode(self):
        self.started(virt_type='qemu', cpu_mode='maximum')
        self.assertEqual(('qemu', 'host-passthrough', []), self.told())

    def test_what_is_overridden_keeps_nova_from_nothing(self):
        # As a deployment tool writes them; Nova refuses models without
        # custom, and reaches lxc at another URI.
        self.flags(virt_type='lxc', cpu_mode='custom', cpu_models=['EPYC'],
                   group='libvirt')
        self.useFixture(fixtures.MockPatchObject(
            option_values, 'source', return_value='/etc/nova/x.conf'))
        drvr = self.started(virt_type='qemu', cpu_mode='maximum')
        self.assertEqual(('qemu', 'host-passthrough', []), self.told())
        self.assertEqual('qemu:///system', drvr._uri())
        said = self.stdlog.logger.output
        for words in ('virt_type = qemu (/etc/nova/x.conf) overrides '
                      '[libvirt] virt_type = lxc (/etc/nova/x.conf)',
                      'overrides [libvirt] cpu_mode = custom',
                      'overrides [libvirt] cpu_models = EPYC'):
            self.assertEqual(1, said.count(words), words)

    def test_nova_is_told_before_its_own_init_host(self):
        self.flags(virt_type='qemu', group='kvm_ext')
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, 'init_host',
                side_effect=lambda host: self.assertEqual(
                    'qemu', driver.CONF.libvirt.virt_type)) as init_host:
            self.started()
        init_host.assert_called_once_with('host')

    def test_a_wrong_option_stops_the_service(self):
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, 'init_host') as init_host:
            error = self.assertRaises(
                exception.InvalidConfiguration, self.started,
                virt_type='qemu', cpu_mode='host-passthrough')
        init_host.assert_not_called()
        self.assertIn('[kvm_ext] cpu_mode = host-passthrough', str(error))
        self.assertIn('[kvm_ext] cpu_mode = host-passthrough',
                      self.stdlog.logger.output)
        self.assertEqual('kvm', driver.CONF.libvirt.virt_type)

    def test_an_unknown_model_stops_the_service(self):
        error = self.assertRaises(
            exception.InvalidConfiguration, self.started,
            cpu_mode='custom', cpu_model='Penrin')
        self.assertIn('[kvm_ext] cpu_model = Penrin', str(error))
        self.assertIn('Penryn', str(error))

    def auto(self, runs: bool) -> mock.Mock:
        result = probe.ProbeResult(runs, 'so says the probe', 0.1)
        with mock.patch.object(
                probe_answers, 'cached_run',
                return_value=result) as cached_run:
            self.started(
                virt_type='auto', cpu_mode='custom', cpu_model='Penryn')
        return cached_run

    def test_auto(self):
        for runs, wanted in ((True, 'kvm'), (False, 'qemu')):
            cached_run = self.auto(runs)
            self.assertEqual(wanted, driver.CONF.libvirt.virt_type)
            self.assertIn('[kvm_ext] virt_type = auto: so says the probe',
                          self.stdlog.logger.output)
            # With the CPU that guests will have.
            self.assertIn('<model>Penryn</model>',
                          cached_run.call_args.kwargs['cpu_xml'])

    def test_capabilities_are_not_cached_too_early(self):
        """Nova powers up dedicated CPUs before its first look at them."""
        def look(host: str) -> None:
            self.assertIsNone(self.found._host._caps)
            self.assertIsNone(self.found._host._domain_caps)

        result = probe.ProbeResult(True, 'so', 0.1)
        self.flags(virt_type='auto', cpu_mode='custom', cpu_model='Penryn',
                   group='kvm_ext')
        self.found = driver.KVMDriver(fake.FakeVirtAPI())
        for name in ('virt_type', 'cpu_mode', 'cpu_models'):
            self.addCleanup(driver.CONF.clear_override, name, group='libvirt')
        with mock.patch.object(
                probe_answers, 'cached_run', return_value=result), \
                mock.patch.object(libvirt_driver.LibvirtDriver, 'init_host',
                                  side_effect=look) as init_host:
            self.found.init_host('host')
        init_host.assert_called_once_with('host')


class CPUTestCase(driver_base.DriverTestCase):

    def cpu(self, **options: str) -> etree._Element:
        return self.guest_xml(self.started(**options)).find('cpu')

    def test_modes(self):
        for virt_type, mode in (('kvm', 'host-model'),
                                ('kvm', 'host-passthrough'),
                                ('kvm', 'maximum'), ('qemu', 'maximum'),
                                ('qemu', 'host-model')):
            cpu = self.cpu(virt_type=virt_type, cpu_mode=mode)
            self.assertEqual(mode, cpu.get('mode'))
            self.assertIsNone(cpu.find('model'))

    def test_custom(self):
        cpu = self.cpu(cpu_mode='custom', cpu_model='penryn')
        self.assertEqual('custom', cpu.get('mode'))
        self.assertEqual('Penryn', cpu.findtext('model'))

    def test_none(self):
        cpu = self.cpu(cpu_mode='none')
        self.assertIsNone(cpu.get('mode'))
        self.assertIsNone(cpu.find('model'))

    def test_unset_is_what_nova_chooses(self):
        self.assertEqual('host-model', self.cpu().get('mode'))

    def test_maximum_with_flags_and_topology(self):
        self.flags(cpu_model_extra_flags=['-vme'], group='libvirt')
        cpu = self.cpu(virt_type='qemu', cpu_mode='maximum')
        self.assertEqual('disable', cpu.find('feature').get('policy'))
        self.assertEqual('2', cpu.find('topology').get('sockets'))

    def test_domain_type(self):
        for virt_type in ('kvm', 'qemu'):
            xml = self.guest_xml(self.started(virt_type=virt_type))
            self.assertEqual(virt_type, xml.get('type'))


class GuestAgentTestCase(driver_base.DriverTestCase):

    def channels(self, value: str | None) -> list[etree._Element]:
        xml = self.guest_xml(
            self.started(),
            {} if value is None else {'hw_qemu_guest_agent': value})
        return [c for c in xml.findall('devices/channel')
                if c.find('target').get('name') == 'org.qemu.guest_agent.0']

    def test_yes(self):
        for value in ('yes', 'true', '1', 'YES', 'on'):
            channel, = self.channels(value)
            self.assertEqual('unix', channel.get('type'))
            self.assertEqual('virtio', channel.find('target').get('type'))
            # libvirt chooses the path.
            self.assertIsNone(channel.find('source'))

    def test_no(self):
        for value in ('no', 'false', '0', 'off', None):
            self.assertEqual([], self.channels(value))
        self.assertNotIn('neither yes nor no', self.stdlog.logger.output)

    def test_nonsense_is_no_and_said(self):
        self.assertEqual([], self.channels('maybe'))
        self.assertIn('neither yes nor no', self.stdlog.logger.output)

    def test_other_channels_stay(self):
        self.flags(enabled=True, agent_enabled=True, group='spice')
        self.flags(enabled=False, group='vnc')
        for value in ('yes', 'no'):
            xml = self.guest_xml(self.started(),
                                 {'hw_qemu_guest_agent': value})
            names = [t.get('name')
                     for t in xml.findall('devices/channel/target')]
            self.assertIn('com.redhat.spice.0', names)


class VhostTestCase(driver_base.DriverTestCase):

    def interface(self, drvr: driver.KVMDriver, vif_type: str = 'ovs',
                  properties: dict[str, str] | None = None,
                  **details: Any) -> etree._Element:
        network = network_model.Network(
            id=uuids.network, bridge='br-int', label=None, subnets=[])
        network_info = [network_model.VIF(
            id=uuids.port, address='52:54:00:12:34:56', network=network,
            type=vif_type, devname='tap0', details=details)]
        return self.guest_xml(drvr, properties, network_info).find(
            'devices/interface')

    def driver_name(self, *args: Any, **kwargs: Any) -> str | None:
        found = self.interface(*args, **kwargs).find('driver')
        return None if found is None else found.get('name')

    def test_host_with_vhost_net(self):
        self.vhost_net.return_value = driver_base.VHOST_NET
        drvr = self.started()
        for vif_type in ('ovs', 'tap'):
            self.assertEqual('vhost', self.driver_name(drvr, vif_type))

    def test_host_without(self):
        self.assertIsNone(self.driver_name(self.started()))
        self.assertIn('does not use vhost-net', self.stdlog.logger.output)
        self.assertIn('modprobe vhost_net', self.stdlog.logger.output)

    def test_qemu_guests_are_as_nova_has_them(self):
        self.vhost_net.return_value = driver_base.VHOST_NET
        self.assertEqual('qemu', self.driver_name(
            self.started(virt_type='qemu')))

    def test_other_models_are_left_alone(self):
        self.vhost_net.return_value = driver_base.VHOST_NET
        self.assertIsNone(self.driver_name(
            self.started(), properties={'hw_vif_model': 'e1000'}))

    def test_vhost_user_is_left_alone(self):
        self.vhost_net.return_value = driver_base.VHOST_NET
        interface = self.interface(
            self.started(), 'vhostuser', vhostuser_mode='server',
            vhostuser_socket='/run/sock')
        self.assertEqual('vhostuser', interface.get('type'))
        self.assertEqual([], interface.xpath('driver/@name'))

    def test_multiqueue_keeps_its_queues(self):
        self.vhost_net.return_value = driver_base.VHOST_NET
        interface = self.interface(
            self.started(), properties={'hw_vif_multiqueue_enabled': 'true'})
        self.assertEqual('vhost', interface.find('driver').get('name'))
        self.assertEqual('2', interface.find('driver').get('queues'))
