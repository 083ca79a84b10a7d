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

"""vhost-net through the driver: start, boot, proof, trait."""

from typing import Any
from unittest import mock

import fixtures
from nova.compute import provider_tree
from nova import exception
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from oslo_privsep import daemon
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext import driver
from nova_kvm_ext.host import model
from nova_kvm_ext.tests.unit import driver_base
from nova_kvm_ext.tests.unit.vhost import ports
from nova_kvm_ext.vhost import hooks
from nova_kvm_ext.vhost import privileged
from nova_kvm_ext.vhost import process


def device(open_error: str) -> model.DeviceFacts:
    return model.DeviceFacts('/dev/vhost-net', present=True, mode=0o600,
                             owner=0, group=0, open_error=open_error)


class StartTestCase(ports.VhostTestCase):

    def refused(self, **options: Any) -> str:
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, 'init_host') as init_host:
            error = self.assertRaises(
                exception.InvalidConfiguration, self.started, **options)
        init_host.assert_not_called()
        return str(error)

    def test_a_host_that_can(self):
        self.host(True)
        for setting in ('prefer', 'require'):
            self.started(vhost_net=setting)
        self.assertIn('Guests use vhost-net', self.log())
        self.modprobe.assert_not_called()

    def test_a_host_that_cannot(self):
        self.started()
        self.assertEqual(1, self.log().count('Guests do not use vhost-net'))
        self.assertIn('there is no /dev/vhost-net, and modprobe vhost_net '
                      'fails (Module vhost_net not found.)', self.log())
        self.modprobe.assert_called_once_with('vhost_net')

    def test_require_does_not_start_without(self):
        error = self.refused(vhost_net='require')
        self.assertIn('[kvm_ext] vhost_net = require', error)
        self.assertIn('there is no /dev/vhost-net', error)
        self.assertIn('Module vhost_net not found.', error)

    def test_a_module_that_can_be_loaded(self):
        self.modprobe.return_value = ''
        self.vhost_net.side_effect = [
            driver_base.NO_VHOST_NET, driver_base.VHOST_NET]
        self.started(vhost_net='require')
        self.modprobe.assert_called_once_with('vhost_net')

    def test_loading_switched_off(self):
        self.assertIn('run modprobe vhost_net', self.refused(
            vhost_net='require', load_vhost_net=False))
        self.modprobe.assert_not_called()

    def test_a_node_whose_module_does_not_load(self):
        self.vhost_net.return_value = device('ENODEV')
        self.assertIn('cannot be opened (ENODEV)',
                      self.refused(vhost_net='require'))

    def test_off_and_qemu_open_nothing(self):
        """Opening loads the module."""
        for options in ({'vhost_net': 'off'}, {'virt_type': 'qemu'}):
            drvr = self.started(**options)
            self.config(drvr)
            self.assertNotIn(hooks.TRAIT, drvr._our_traits())
            self.flags(group='kvm_ext', vhost_net='prefer')
        self.vhost_net.assert_not_called()
        self.modprobe.assert_not_called()
        self.assertNotIn('Guests do not use vhost-net, on', self.log())

    def test_require_says_that_it_has_no_effect_on_qemu(self):
        self.started(virt_type='qemu', vhost_net='require')
        self.assertIn('vhost_net = require has no effect', self.log())

    def test_this_user_may_not_open_it_and_root_may(self):
        self.vhost_net.side_effect = [
            device('EACCES'), driver_base.VHOST_NET]
        self.started(vhost_net='require')
        self.modprobe.assert_not_called()

    def test_even_root_may_not(self):
        self.vhost_net.return_value = device('EPERM')
        self.modprobe.return_value = ''
        self.assertIn('even root may not open', self.refused(
            vhost_net='require'))

    def test_nobody_can_be_asked_as_root(self):
        """Each way in which privsep can fail, none of them ends prefer."""
        for seen in (device('EACCES'), driver_base.NO_VHOST_NET):
            self.vhost_net.return_value = seen
            for error in (
                    daemon.FailedToDropPrivileges('helper exited non-zero'),
                    FileNotFoundError(2, 'No such file', 'sudo'),
                    AssertionError()):
                with mock.patch.object(privileged, 'read_device',
                                       side_effect=error):
                    self.modprobe.side_effect = error
                    self.started(vhost_net='prefer')
                    text = self.refused(vhost_net='require')
                self.assertIn('as root' if not seen.present else
                              'root cannot be asked', text)
                self.assertIn(str(error) or 'AssertionError', text)

    def test_bad_values(self):
        for name, value in (('vhost_net', 'maybe'), ('max_vhost_queues', 0),
                            ('max_vhost_queues', 257)):
            self.assertRaises(ValueError, self.flags, group='kvm_ext',
                              **{name: value})

    def test_before_the_start_interfaces_are_novas(self):
        self.host(True)
        drvr = driver.KVMDriver(mock.Mock())
        self.assertIsNone(self.config(drvr).driver_name)
        self.vhost_net.assert_not_called()


class BootTestCase(ports.VhostTestCase):

    def driver_name(self, drvr: driver.KVMDriver,
                    **kwargs: Any) -> str | None:
        found = self.interface(drvr, **kwargs).find('driver')
        return None if found is None else found.get('name')

    def test_policies(self):
        for setting, driver_name in (
                ('prefer', 'vhost'), ('require', 'vhost'), ('off', 'qemu')):
            self.host(True)
            self.assertEqual(driver_name, self.driver_name(
                self.started(vhost_net=setting)))

    def test_prefer_without_names_and_logs_each(self):
        drvr = self.started()
        self.assertIsNone(self.driver_name(drvr))
        self.guest_xml(drvr, network_info=[
            ports.port(),
            ports.port(address='52:54:00:00:00:02', devname='tap1')])
        for mac in (ports.MAC, '52:54:00:00:00:02'):
            self.assertIn(f'Interface {mac} does not use vhost-net',
                          self.log())

    def test_prefer_without_keeps_what_needs_a_driver(self):
        """Nova names vhost then, which libvirt would refuse."""
        drvr = self.started()
        found = self.interface(
            drvr, extra_specs=ports.MULTIQUEUE).find('driver')
        self.assertEqual(('qemu', '2'),
                         (found.get('name'), found.get('queues')))
        self.flags(rx_queue_size=512, group='libvirt')
        found = self.interface(drvr).find('driver')
        self.assertEqual(('qemu', '512'),
                         (found.get('name'), found.get('rx_queue_size')))

    def test_prefer_takes_it_when_it_comes(self):
        drvr = self.started()
        self.host(True)
        self.assertEqual('vhost', self.driver_name(drvr))

    def test_require_lost_while_the_service_runs(self):
        self.host(True)
        drvr = self.started(vhost_net='require')
        self.host(False)
        # Nova tries the next host, and the reason is in what the user sees.
        error = self.assertRaises(
            exception.ComputeResourcesUnavailable, self.interface, drvr)
        self.assertIn(ports.MAC, error.format_message())
        self.assertIn('there is no /dev/vhost-net', error.format_message())
        # What has nothing to do with it still boots.
        self.guest_xml(drvr)
        self.interface(drvr, properties={'hw_vif_model': 'e1000'})

    def test_off_on_a_host_without(self):
        self.assertEqual('qemu', self.driver_name(
            self.started(vhost_net='off')))
        self.assertNotIn('does not use vhost-net, on', self.log())


class ProofTestCase(ports.VhostTestCase):

    XML = (f'<domain type="kvm" id="1"><name>g</name>'
           f'<uuid>{uuids.instance}</uuid><devices><interface type="bridge">'
           f'<mac address="{ports.MAC}"/><model type="virtio"/>'
           f'<driver name="vhost"/></interface></devices></domain>')

    def setUp(self):
        super().setUp()
        self.host(True)
        self.read_vhost = self.useFixture(fixtures.MockPatchObject(
            process, 'read_vhost')).mock
        self.read_vhost.return_value = {
            uuids.instance: model.VhostFacts(7, 0, 0)}

    def start(self, xml: str | None = None, **options: Any) -> None:
        """A guest, by the method through which all of them start."""
        drvr = self.started(**options)
        guest = mock.Mock(spec=libvirt_guest.Guest)
        guest.get_xml_desc.return_value = xml or self.XML
        guest._domain = mock.Mock()
        with mock.patch.object(libvirt_driver.LibvirtDriver, '_create_guest',
                               return_value=guest):
            found = drvr._create_guest(None, '<domain/>', self.make_instance(),
                                       pause=False)
        self.assertIs(guest, found)

    def test_kept(self):
        self.read_vhost.return_value = {
            uuids.instance: model.VhostFacts(7, 1, 1)}
        self.start()
        self.assertNotIn(ports.MAC, self.log())

    def test_broken(self):
        self.start()
        self.assertIn(f'Interface {ports.MAC} does not use vhost-net, though '
                      f'its XML names it: vhost-net of QEMU (PID 7): 0 '
                      f'descriptor(s), 0 thread(s)', self.log())

    def test_fell_back(self):
        """QEMU's log is root's, who is asked if this user cannot read it."""
        with mock.patch.object(privileged, 'read_fall_backs',
                               return_value=1) as as_root:
            for seen in (model.VhostFacts(7, 1, 1, None, 3),
                         model.VhostFacts(7, 1, 1, 1, 3)):
                self.read_vhost.return_value = {uuids.instance: seen}
                self.start()
            as_root.assert_called_once_with('g')
            self.assertEqual(2, self.log().count('falling back on userspace'))
            # Without vhost-net there is nothing to read.
            self.read_vhost.return_value = {
                uuids.instance: model.VhostFacts(7, 0, 0)}
            self.start()
            as_root.assert_called_once_with('g')

    def test_root_cannot_be_asked_for_the_log(self):
        self.read_vhost.return_value = {
            uuids.instance: model.VhostFacts(7, 1, 1)}
        with mock.patch.object(privileged, 'read_fall_backs',
                               side_effect=FileNotFoundError):
            self.start()
        self.assertNotIn(ports.MAC, self.log())

    def test_may_not_look(self):
        self.read_vhost.return_value = {
            uuids.instance: model.VhostFacts(7, None, None)}
        self.start()
        self.assertIn('cannot be told', self.log())
        self.assertNotIn('does not use', self.log())

    def test_where_there_is_nothing_to_look_at(self):
        for options in ({'vhost_net': 'off'}, {'virt_type': 'qemu'}):
            self.start(**options)
            self.flags(group='kvm_ext', vhost_net='prefer')
        self.start(self.XML.replace(' id="1"', ''), virt_type='kvm')
        self.read_vhost.assert_not_called()

    def test_a_look_that_fails_does_not_fail_the_boot(self):
        self.read_vhost.side_effect = OSError(5, 'Input/output error')
        self.start()
        self.start('<dom')
        self.assertIn('cannot be seen', self.log())

    def test_a_guest_that_came_without_a_driver(self):
        """From a source where Nova's own driver wrote the XML."""
        unnamed = self.XML.replace('<driver name="vhost"/>', '')
        for setting, said in (('prefer', False), ('require', True)):
            drvr = self.started(vhost_net=setting)
            with mock.patch.object(
                    libvirt_driver.LibvirtDriver,
                    'post_live_migration_at_destination'), mock.patch.object(
                    drvr._host, 'get_guest') as get_guest:
                get_guest.return_value.get_xml_desc.return_value = unnamed
                drvr.post_live_migration_at_destination(
                    None, self.make_instance(), [])
            self.assertEqual(said, f'{ports.MAC} does not use' in self.log())


class TraitTestCase(ports.VhostTestCase):

    def setUp(self):
        super().setUp()
        self.tree = provider_tree.ProviderTree()
        self.tree.new_root('node', uuids.node)
        self.tree.add_traits(
            'node', 'CUSTOM_MINE', 'CUSTOM_KVM_EXT_OF_YESTERDAY')

    def update(self, drvr: driver.KVMDriver) -> set[str]:
        with mock.patch.object(libvirt_driver.LibvirtDriver,
                               'update_provider_tree') as novas:
            drvr.update_provider_tree(self.tree, 'node', {})
        novas.assert_called_once_with(self.tree, 'node', {})
        return {name for name in self.tree.data('node').traits
                if not name.startswith(('CUSTOM_KVM_EXT_CPU_',
                                        'CUSTOM_KVM_EXT_IMAGE_'))}

    def test_kept_true(self):
        drvr = self.started()
        self.assertEqual({'CUSTOM_MINE'}, self.update(drvr))
        self.host(True)
        self.assertEqual({'CUSTOM_MINE', 'CUSTOM_KVM_EXT_VHOST_NET'},
                         self.update(drvr))
        self.host(False)
        self.assertEqual({'CUSTOM_MINE'}, self.update(drvr))

    def test_not_where_guests_do_without(self):
        self.host(True)
        for options in ({'vhost_net': 'off'}, {'virt_type': 'qemu'}):
            self.assertEqual({'CUSTOM_MINE'},
                             self.update(self.started(**options)))

    def test_its_name(self):
        self.assertEqual('CUSTOM_KVM_EXT_VHOST_NET', hooks.TRAIT)
