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

"""The CPU that is kept with an instance, and hard reboots."""

import threading
from typing import Any
from unittest import mock

import fixtures
from lxml import etree
from nova.compute import task_states
from nova import exception
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver

from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import hooks
from nova_kvm_ext.cpu import stored
from nova_kvm_ext import driver
from nova_kvm_ext.tests.unit.cpu import guests


class KeptTestCase(guests.CPUHooksTestCase):

    def start(self, drvr: driver.KVMDriver, instance: Any,
              guest: Any) -> None:
        with mock.patch.object(libvirt_driver.LibvirtDriver, '_create_guest',
                               return_value=guest):
            self.assertIs(guest, drvr._create_guest(
                None, '<domain/>', instance, power_on=True))

    def test_a_start(self):
        instance = self.make_instance(vcpu_model=guests.configured())
        self.start(self.started(), instance, guests.live(guests.EXACT))
        self.assertEqual(guests.EXACT, stored.cpu_of(instance))
        self.save.assert_called_once_with()
        self.assertNotIn('another CPU', self.stdlog.logger.output)

    def test_a_new_server(self):
        """Nova saves it when spawn() has returned."""
        instance = self.make_instance()
        instance.task_state = task_states.SPAWNING
        self.start(self.started(), instance, guests.live(guests.EXACT))
        self.assertEqual(guests.EXACT, stored.cpu_of(instance))
        self.assertIn('vcpu_model', instance.obj_what_changed())
        self.save.assert_not_called()

    def test_survives_the_database(self):
        instance = self.make_instance()
        self.start(self.started(), instance, guests.live(guests.EXACT))
        instance.vcpu_model = objects.VirtCPUModel.from_json(
            instance.vcpu_model.to_json())
        self.assertEqual(guests.EXACT, stored.cpu_of(instance))

    def test_what_nova_configured_is_no_cpu_to_compare_with(self):
        """A model by itself is less than libvirt tells of a running guest."""
        instance = self.make_instance(vcpu_model=guests.configured('Penryn'))
        self.assertIsNone(stored.cpu_of(instance))
        self.start(self.started(), instance, guests.live(guests.EXACT))
        self.assertNotIn('another CPU', self.stdlog.logger.output)

    def test_the_same_again_is_not_saved(self):
        instance = self.make_instance(
            vcpu_model=hooks._vcpu_model(guests.EXACT))
        self.start(self.started(), instance, guests.live(guests.EXACT))
        self.save.assert_not_called()

    def test_not_running(self):
        instance = self.make_instance(vcpu_model=guests.configured())
        self.start(self.started(), instance, guests.domain(
            "<cpu mode='custom' match='exact' check='partial'>"
            "<model>Nehalem</model></cpu>", dom_id=''))
        self.start(self.started(), instance,
                   guests.domain("<cpu mode='host-passthrough'/>", dom_id=''))
        self.assertIsNone(stored.cpu_of(instance))

    def test_what_is_defined_without_a_start_forgets(self):
        """A stopped server that was resized gets its new flavor's CPU."""
        self.be_host(model='Westmere')
        drvr = self.started(keep_guest_cpu=True)
        instance = self.make_instance(
            vcpu_model=hooks._vcpu_model(guests.EXACT),
            extra_specs={'kvm_ext:cpu_model': 'penryn'})
        guest = guests.domain(
            "<cpu mode='custom'><model>Penryn</model></cpu>", dom_id='')
        with mock.patch.object(libvirt_driver.LibvirtDriver, '_create_guest',
                               return_value=guest):
            drvr._create_guest(None, '<domain/>', instance, power_on=False)
        self.assertIsNone(stored.cpu_of(instance))
        self.save.assert_called_once_with()
        # The start, which is Nova's hard reboot.
        found = []
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, '_hard_reboot',
                side_effect=lambda *args: found.append(
                    self.cpu(drvr, instance))):
            drvr._hard_reboot(None, instance, 'network', 'shares')
        self.assertEqual('Penryn', found[0].findtext('model'))

    def test_nothing_to_forget_is_not_saved(self):
        instance = self.make_instance(vcpu_model=guests.configured('Penryn'))
        self.start(self.started(), instance, guests.domain('', dom_id=''))
        self.save.assert_not_called()
        self.assertEqual('Penryn', instance.vcpu_model.model)

    def test_of_another_architecture_nothing_is_kept(self):
        instance = self.make_instance()
        self.start(self.started(), instance, guests.domain(
            "<os><type arch='aarch64'>hvm</type></os>"
            "<cpu mode='custom' match='exact' check='full'>"
            "<model>cortex-a57</model></cpu>"))
        self.assertIsNone(stored.cpu_of(instance))

    def test_passthrough_and_maximum_by_what_can_be_named(self):
        for mode in ('host-passthrough', 'maximum'):
            instance = self.make_instance()
            self.start(self.started(), instance, guests.domain(
                f"<cpu mode='{mode}'>"
                "<feature name='sha-ni' policy='disable'/></cpu>"))
            kept = stored.cpu_of(instance)
            self.assertEqual(('EPYC', 'AMD', 'minimum'),
                             (kept.model, kept.vendor, kept.match))
            self.assertIn(('hypervisor', 'require'), kept.features)
            self.assertIn(('sha-ni', 'disable'), kept.features)

    def test_xml_that_cannot_be_read_harms_nothing(self):
        for xml in ('<domain', '<domain><cpu mode="x"/></domain>'):
            guest = guests.domain('')
            guest.get_xml_desc.return_value = xml
            instance = self.make_instance()
            self.start(self.started(), instance, guest)
            self.assertIsNone(stored.cpu_of(instance))
        self.assertIn('cannot be read', self.stdlog.logger.output)

    def test_a_database_that_fails_harms_nothing(self):
        self.save.side_effect = exception.InstanceNotFound(instance_id='x')
        instance = self.make_instance()
        self.start(self.started(), instance, guests.live(guests.EXACT))
        self.assertEqual(guests.EXACT, stored.cpu_of(instance))

    def test_configuring_leaves_what_is_true(self):
        """Nova overwrites it before the guest has the new CPU."""
        instance = self.make_instance(
            vcpu_model=hooks._vcpu_model(guests.EXACT))
        self.cpu(self.started(), instance)
        self.assertEqual(guests.EXACT, stored.cpu_of(instance))

    def test_a_first_configuration_is_novas(self):
        instance = self.make_instance()
        self.cpu(self.started(), instance)
        self.assertEqual('host-model', instance.vcpu_model.mode)
        self.assertIsNone(stored.cpu_of(instance))

    def test_after_a_live_migration(self):
        drvr = self.started()
        instance = self.make_instance(vcpu_model=guests.configured())
        with mock.patch.object(
                libvirt_driver.LibvirtDriver,
                'post_live_migration_at_destination') as nova, \
                mock.patch.object(drvr._host, 'get_guest',
                                  return_value=guests.live(guests.EXACT)):
            drvr.post_live_migration_at_destination(
                None, instance, None, True, block_device_info={})
        nova.assert_called_once_with(None, instance, None, True, {})
        self.assertEqual(guests.EXACT, stored.cpu_of(instance))

    def test_drift_is_logged(self):
        instance = self.make_instance(
            vcpu_model=hooks._vcpu_model(guests.EXACT))
        self.start(self.started(), instance, guests.live(
            guests.EXACT.with_features(
                [('aes', 'require'), ('ssse3', 'disable')])))
        self.assertIn('The guest has another CPU than before: gained aes; '
                      'lost ssse3', self.stdlog.logger.output)


class HardRebootTestCase(guests.CPUHooksTestCase):

    def setUp(self):
        super().setUp()
        self.be_host(model='Westmere')

    def reboot(self, cpu: definition.CPU | None = guests.EXACT,
               instance: Any = None, guest: Any = None,
               **options: Any) -> etree._Element:
        drvr = self.started(**options)
        gone = exception.InstanceNotFound(instance_id='it')
        self.useFixture(fixtures.MockPatchObject(
            drvr._host, 'get_guest', return_value=guest,
            side_effect=None if guest else gone))
        vcpu_model = hooks._vcpu_model(cpu) if cpu else guests.configured()
        instance = instance or self.make_instance(vcpu_model=vcpu_model)
        found = []
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, '_hard_reboot',
                side_effect=lambda *args: found.append(
                    self.cpu(drvr, instance))) as nova:
            drvr._hard_reboot(None, instance, 'network', 'shares')
        nova.assert_called_once_with(None, instance, 'network', 'shares')
        self.assertIsNone(drvr._cpu._rebooting.get())
        # The next start is none of this reboot.
        self.assertEqual('host-model', self.cpu(drvr, instance).get('mode'))
        return found[0]

    def test_off(self):
        self.assertEqual('host-model', self.reboot().get('mode'))

    def test_kept(self):
        cpu = self.reboot(keep_guest_cpu=True)
        self.assertEqual(('custom', 'Nehalem', 'Intel'), (
            cpu.get('mode'), cpu.findtext('model'), cpu.findtext('vendor')))
        self.assertEqual({'hypervisor': 'require', 'popcnt': 'disable'},
                         self.features(cpu))
        self.assertIsNotNone(cpu.find('topology'))

    def test_the_host_can_no_longer_give_it(self):
        cpu = self.reboot(
            definition.CPU(mode='custom', match='exact',
                           model='Skylake-Server'), keep_guest_cpu=True)
        self.assertEqual('host-model', cpu.get('mode'))
        self.assertIn('The guest cannot keep its CPU: ',
                      self.stdlog.logger.output)
        self.assertIn('avx512f', self.stdlog.logger.output)

    def test_nothing_is_known(self):
        self.assertEqual('host-model', self.reboot(
            None, keep_guest_cpu=True).get('mode'))

    def test_of_a_guest_that_nobody_has_looked_at_yet(self):
        """It ran before the service, whose first update comes later."""
        found = self.reboot(
            None, guest=guests.live(guests.EXACT), keep_guest_cpu=True)
        self.assertEqual('Nehalem', found.findtext('model'))

    def test_libvirt_is_asked_only_then(self):
        drvr = self.started()
        with (mock.patch.object(drvr._cpu, 'started') as asked,
              mock.patch.object(libvirt_driver.LibvirtDriver,
                                '_hard_reboot')):
            drvr._hard_reboot(None, self.make_instance(), None, None)
            self.flags(group='kvm_ext', keep_guest_cpu=True)
            drvr._hard_reboot(None, self.make_instance(
                vcpu_model=hooks._vcpu_model(guests.EXACT)), None, None)
        asked.assert_not_called()

    def test_two_at_once(self):
        """The end of one reboot takes nothing from the other."""
        drvr = self.started(keep_guest_cpu=True)
        ours, other = (
            self.make_instance(vcpu_model=hooks._vcpu_model(guests.EXACT))
            for _ in range(2))
        first, last = threading.Event(), threading.Event()

        def nova(context: Any, instance: Any, *args: Any) -> None:
            if instance is ours:
                first.set()
                last.wait(10)
                models.append(self.cpu(drvr, ours).findtext('model'))
            else:
                self.cpu(drvr, other)

        models: list[str | None] = []
        with mock.patch.object(libvirt_driver.LibvirtDriver, '_hard_reboot',
                               side_effect=nova):
            thread = threading.Thread(
                target=drvr._hard_reboot, args=(None, ours, None, None))
            thread.start()
            first.wait(10)
            drvr._hard_reboot(None, other, None, None)
            last.set()
            thread.join(10)
        self.assertEqual(['Nehalem'], models)

    def test_passthrough_is_never_made_a_model(self):
        self.assertEqual('host-model', self.reboot(
            definition.CPU(mode='custom', match='minimum', model='Nehalem'),
            keep_guest_cpu=True).get('mode'))

    def test_a_wish_refused_leaves_the_guest_running(self):
        instance = self.make_instance({'kvm_ext_cpu_mode': 'maximum'})
        drvr = self.started()
        with mock.patch.object(libvirt_driver.LibvirtDriver,
                               '_hard_reboot') as nova:
            self.assertRaises(exception.InvalidInput, drvr._hard_reboot,
                              None, instance)
        nova.assert_not_called()
