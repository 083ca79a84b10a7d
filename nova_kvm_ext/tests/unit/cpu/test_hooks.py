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

"""The driver's CPUs on Nova's fake libvirt: wishes, what is kept, traits."""

import threading
from typing import Any
from unittest import mock

import fixtures
from lxml import etree
from nova.compute import provider_tree
from nova import exception
from nova import objects
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
import os_traits
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import hooks
from nova_kvm_ext.cpu import stored
from nova_kvm_ext.cpu import usable
from nova_kvm_ext import designer
from nova_kvm_ext import driver
from nova_kvm_ext.tests.unit.cpu import hosts
from nova_kvm_ext.tests.unit import driver_base

EXACT = definition.CPU(
    mode='custom', match='exact', model='Nehalem', vendor='Intel',
    features=(('hypervisor', 'require'), ('popcnt', 'disable')))


def domain(cpu: str, dom_id: str = " id='1'") -> mock.Mock:
    """A guest whose domain has this CPU."""
    guest = mock.create_autospec(libvirt_guest.Guest, instance=True)
    guest.get_xml_desc.return_value = f'<domain{dom_id}>{cpu}</domain>'
    guest.is_active.return_value = bool(dom_id)
    guest.uuid = uuids.instance
    guest._domain = mock.Mock()
    guest._domain.controlInfo.return_value = (0, 0, 0)
    return guest


def live(cpu: definition.CPU) -> mock.Mock:
    """A running guest with this CPU, as libvirt tells it."""
    return domain(cpu.to_xml().replace('<cpu ', "<cpu check='full' "))


def configured(model: str | None = None) -> objects.VirtCPUModel:
    """What Nova keeps: what it configured."""
    return objects.VirtCPUModel(
        arch=None, vendor=None, mode='custom' if model else 'host-model',
        model=model, match='exact', features=[],
        topology=objects.VirtCPUTopology(sockets=1, cores=1, threads=1))


class CPUHooksTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.save = self.useFixture(fixtures.MockPatchObject(
            objects.Instance, 'save')).mock

    def cpu(self, drvr: driver.KVMDriver, instance: Any,
            properties: dict[str, str] | None = None) -> etree._Element:
        guest = self.make_guest(drvr, instance, properties)
        return etree.fromstring(guest.cpu.to_xml())

    def features(self, cpu: etree._Element) -> dict[str, str]:
        return {f.get('name'): f.get('policy') for f in cpu.findall('feature')}


class StartTestCase(CPUHooksTestCase):

    def refused(self, **options: Any) -> str:
        return str(self.assertRaises(
            exception.InvalidConfiguration, self.started, **options))

    def test_unusable_model(self):
        said = self.refused(cpu_mode='custom', cpu_model='skylake-server')
        self.assertIn('avx512bw', said)
        self.assertIn('Use ', said)
        self.assertIn('EPYC', said)

    def test_level_that_the_host_lacks(self):
        self.be_host(lacks=('avx2',))
        said = self.refused(cpu_mode='custom', cpu_model='x86-64-v3')
        self.assertIn('it lacks avx2', said)
        self.assertIn('x86-64-v2-AES', said)

    def test_unknown_flag(self):
        self.flags(cpu_model_extra_flags=['popcn'], group='libvirt')
        self.assertIn('popcnt', self.refused())

    def test_libvirt_is_asked_about_a_model_that_qemu_calls_unusable(self):
        """Where libvirt starts it, the service starts."""
        self.be_host(lacks=('sha-ni',))
        self.refused(cpu_mode='custom', cpu_model='EPYC')
        compared = mock.Mock(return_value=2)
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Connection.compareHypervisorCPU',
            compared))
        drvr = self.started(cpu_mode='custom', cpu_model='EPYC')
        self.assertIn('starts guests with this model anyway',
                      self.stdlog.logger.output)
        self.assertIn('CUSTOM_KVM_EXT_CPU_MODEL_EPYC', drvr._our_traits())
        # A flavor may ask for it too, and libvirt is asked once.
        compared.reset_mock()
        for _ in range(2):
            self.assertEqual('EPYC', self.cpu(drvr, self.make_instance(
                extra_specs={'kvm_ext:cpu_model': 'epyc'})
            ).findtext('model'))
        compared.assert_not_called()

    def test_emulated_guests_do_without_what_the_model_lacks(self):
        drvr = self.started(
            virt_type='qemu', cpu_mode='custom', cpu_model='Skylake-Server')
        self.assertIn('starts emulated guests anyway',
                      self.stdlog.logger.output)
        true = {name for name, has in
                drvr._get_cpu_feature_traits().items() if has}
        self.assertIn(os_traits.HW_CPU_X86_AVX2, true)
        self.assertNotIn(os_traits.HW_CPU_X86_AVX512F, true)

    def test_what_is_odd_in_the_document_is_said_once(self):
        text = hosts.capabilities().replace(
            "<mode name='custom' supported='yes'>",
            "<mode name='custom' supported='yes'><model>&#155;31m</model>")
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Connection.getDomainCapabilities',
            lambda *args: text))
        with mock.patch.object(libvirt_driver.LibvirtDriver, 'init_host'):
            self.started()
        said = self.stdlog.logger.output
        self.assertEqual(1, said.count('does not understand'))
        self.assertNotIn('\x9b', said)

    def test_warnings_are_logged(self):
        self.started(cpu_mode='none')
        self.assertIn('x86-64-v2', self.stdlog.logger.output)

    def test_libvirt_that_does_not_tell(self):
        """Broken KVM refuses nothing; Nova starts on such a host too."""
        error = fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError,
            "invalid argument: the accel 'kvm' is not supported",
            error_code=fakelibvirt.VIR_ERR_INTERNAL_ERROR)
        self.useFixture(fixtures.MockPatch(
            'nova_kvm_ext.cpu.reader.read_host', side_effect=error))
        found = self.started(cpu_mode='host-model')
        self.assertIn('modprobe', self.stdlog.logger.output)
        self.assertEqual(
            'host-model', self.cpu(found, self.make_instance()).get('mode'))

    def test_an_answer_that_is_no_xml_stops_the_service(self):
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Connection.getDomainCapabilities',
            lambda *args: 'no'))
        self.assertIn('domain capabilities', self.refused())

    def test_asks_once_and_for_the_machine_type_in_use(self):
        self.flags(hw_machine_type=['x86_64=q35'], group='libvirt')
        with mock.patch('nova_kvm_ext.cpu.reader.read_host',
                        side_effect=lambda *args: self.fail_if_late(*args)
                        ) as read:
            self.late = False
            drvr = self.started()
            self.late = True
            self.cpu(drvr, self.make_instance())
            drvr._our_traits()
        (_, virt_type, arch, machine), _ = read.call_args
        self.assertEqual(('kvm', 'q35'), (virt_type, machine))

    def fail_if_late(self, *args: Any) -> Any:
        self.assertFalse(self.late)
        return usable.Host('kvm', capabilities.parse(hosts.capabilities()),
                           hosts.MAP)

    def test_novas_own_start_up_check_is_told_a_level_s_base(self):
        self.started(cpu_mode='custom', cpu_model='x86-64-v2')
        self.assertEqual(['kvm64'], driver.CONF.libvirt.cpu_models)

    def run_errands(self, drvr: driver.KVMDriver) -> None:
        for errand in drvr._cpu.errands('host'):
            errand()

    def test_guests_from_before_are_remembered(self):
        instance = self.make_instance(vcpu_model=configured())
        other = self.make_instance()
        other.uuid = uuids.other
        drvr = self.started()
        with mock.patch('nova.virt.libvirt.host.Host.list_guests',
                        return_value=[live(EXACT)]):
            objects.InstanceList.get_by_host.return_value = [instance, other]
            self.run_errands(drvr)
        self.assertEqual(EXACT, stored.cpu_of(instance))
        self.assertIsNone(stored.cpu_of(other))
        self.save.assert_called_once_with()

    def test_one_that_has_ended_by_now(self):
        """It may have been deleted, too: nothing to complain about."""
        instance = self.make_instance(vcpu_model=configured())
        drvr = self.started()
        guest = live(EXACT)
        guest.get_xml_desc.side_effect = fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError, 'gone',
            error_code=fakelibvirt.VIR_ERR_NO_DOMAIN)
        with mock.patch('nova.virt.libvirt.host.Host.list_guests',
                        return_value=[guest]):
            objects.InstanceList.get_by_host.return_value = [instance]
            self.run_errands(drvr)
        self.assertIsNone(stored.cpu_of(instance))
        self.save.assert_not_called()
        self.assertNotIn('KVML205', self.stdlog.logger.output)

    def test_one_that_hangs(self):
        """Nobody waits for its XML; a hard reboot reads its CPU."""
        instance = self.make_instance(vcpu_model=configured())
        drvr = self.started()
        guest = live(EXACT)
        guest._domain.controlInfo.return_value = (2, 0, 60000)
        guest._domain.connect.return_value.getLibVersion.return_value = (
            11_003_000)
        with mock.patch('nova.virt.libvirt.host.Host.list_guests',
                        return_value=[guest]):
            objects.InstanceList.get_by_host.return_value = [instance]
            self.run_errands(drvr)
        guest.get_xml_desc.assert_not_called()
        self.assertIsNone(stored.cpu_of(instance))
        self.assertIn('KVML205', self.stdlog.logger.output)

    def test_they_are_looked_for_in_the_first_periodic_update(self):
        with (mock.patch.object(hooks.CPUHooks, 'errands',
                                return_value=()) as looked,
              mock.patch.object(libvirt_driver.LibvirtDriver,
                                'get_available_resource', return_value={})):
            drvr = self.started()
            looked.assert_not_called()
            for _ in range(2):
                drvr.get_available_resource('node')
        looked.assert_called_once_with('host')

    def test_a_host_without_guests_needs_no_database(self):
        drvr = self.started()
        # driver_base has it replaced; Nova's own init_host may have called.
        get_by_host = objects.InstanceList.get_by_host
        get_by_host.reset_mock()
        self.run_errands(drvr)
        get_by_host.assert_not_called()


class WishTestCase(CPUHooksTestCase):

    def test_flavor(self):
        cpu = self.cpu(self.started(), self.make_instance(
            extra_specs={'kvm_ext:cpu_model': 'penryn'}))
        self.assertEqual('custom', cpu.get('mode'))
        self.assertEqual('Penryn', cpu.findtext('model'))
        self.assertIsNotNone(cpu.find('topology'))

    def test_flavor_s_mode(self):
        cpu = self.cpu(self.started(), self.make_instance(
            extra_specs={'kvm_ext:cpu_mode': 'maximum'}))
        self.assertEqual('maximum', cpu.get('mode'))

    def test_flavor_s_none_under_custom(self):
        cpu = self.cpu(
            self.started(cpu_mode='custom', cpu_model='Penryn'),
            self.make_instance(extra_specs={'kvm_ext:cpu_mode': 'none'}))
        self.assertIsNone(cpu.get('mode'))
        self.assertIsNone(cpu.find('model'))

    def test_image_s_level(self):
        properties = {'kvm_ext_cpu_model': 'x86-64-v2'}
        cpu = self.cpu(self.started(), self.make_instance(properties),
                       properties)
        self.assertEqual('kvm64', cpu.findtext('model'))
        self.assertEqual('require', self.features(cpu)['sse4.2'])

    def test_host_wide_level(self):
        cpu = self.cpu(
            self.started(cpu_mode='custom', cpu_model='x86-64-V3'),
            self.make_instance())
        self.assertEqual('kvm64', cpu.findtext('model'))
        self.assertEqual('require', self.features(cpu)['avx2'])

    def test_extra_flags_stay(self):
        self.flags(cpu_model_extra_flags=['-aes', 'PCID'], group='libvirt')
        cpu = self.cpu(self.started(), self.make_instance(
            extra_specs={'kvm_ext:cpu_model': 'x86-64-v3'}))
        self.assertEqual('disable', self.features(cpu)['aes'])
        self.assertEqual('require', self.features(cpu)['pcid'])

    def no(self, kind: type[Exception], extra_specs: dict[str, str],
           properties: dict[str, str] | None = None, **options: Any) -> str:
        drvr = self.started(**options)
        return str(self.assertRaises(
            kind, self.make_guest, drvr,
            self.make_instance(properties, extra_specs), properties))

    def test_what_no_host_can_do_ends_the_build(self):
        """The compute manager reschedules nothing on InvalidInput."""
        self.assertIn('contradict each other', self.no(
            exception.InvalidInput, {'kvm_ext:cpu_model': 'Penryn'},
            {'kvm_ext_cpu_model': 'Nehalem'}))
        self.assertIn('image_cpu_modes', self.no(
            exception.InvalidInput, {},
            {'kvm_ext_cpu_mode': 'host-passthrough'}))
        self.assertIn('not a CPU mode', self.no(
            exception.InvalidInput, {'kvm_ext:cpu_mode': 'fast'}))

    def test_what_another_host_may_do_is_rescheduled(self):
        for extra_specs in ({'kvm_ext:cpu_model': 'Skylake-Server'},
                            {'kvm_ext:cpu_model': 'x86-64-v4'},
                            {'kvm_ext:cpu_model': 'Broadwell'}):
            self.assertIn('kvm_ext:cpu_model', self.no(
                exception.InvalidCPUInfo, extra_specs))
        self.assertIn('host-passthrough', self.no(
            exception.InvalidCPUInfo,
            {'kvm_ext:cpu_mode': 'host-passthrough'}, virt_type='qemu'))

    def test_hostile_value(self):
        said = self.no(exception.InvalidInput, {},
                       {'kvm_ext_cpu_model': '\x1b[2J' + 'x' * 9000})
        self.assertNotIn('\x1b', said)
        self.assertLess(len(said), 1000)

    def test_unknown_names_are_logged(self):
        self.cpu(self.started(), self.make_instance(
            {'kvm_ext_cpu_modell': 'x'}, {'kvm_ext:cpumode': 'maximum'}))
        self.assertIn('flavor extra spec kvm_ext:cpumode',
                      self.stdlog.logger.output)
        self.assertIn('image property kvm_ext_cpu_modell',
                      self.stdlog.logger.output)

    def test_another_architecture(self):
        """Nova names a CPU of its own for those."""
        drvr = self.started()
        guest = vconfig.LibvirtConfigGuest()
        guest.cpu = vconfig.LibvirtConfigGuestCPU()
        guest.cpu.model = 'cortex-a57'
        image_meta = objects.ImageMeta(
            properties=objects.ImageMetaProps())
        drvr._cpu.configure(guest, self.make_instance(), image_meta,
                            lambda image: 'aarch64')
        self.assertEqual('cortex-a57', guest.cpu.model)
        guest.cpu = None
        drvr._cpu.configure(guest, self.make_instance(), image_meta,
                            lambda image: 'mips')
        error = self.assertRaises(
            exception.InvalidInput, drvr._cpu.configure, guest,
            self.make_instance(extra_specs={'kvm_ext:cpu_mode': 'maximum'}),
            image_meta, lambda image: 'mips')
        self.assertIn('architecture', str(error))

    def test_before_the_start_nothing_is_done(self):
        drvr = driver.KVMDriver(mock.Mock())
        guest = mock.sentinel.guest
        drvr._cpu.configure(guest, None, None, self.fail)
        self.assertEqual({'X': True}, drvr._cpu.feature_traits({'X': True}))
        self.assertEqual(set(), drvr._our_traits())


class RequiredTraitsTestCase(CPUHooksTestCase):
    """[libvirt] cpu_models in order of preference."""

    def model(self, extra_specs: dict[str, str] | None = None,
              properties: dict[str, str] | None = None,
              flags: list[str] | None = None) -> str:
        self.flags(cpu_mode='custom', cpu_models=['Penryn', 'Nehalem'],
                   cpu_model_extra_flags=flags or [], group='libvirt')
        instance = self.make_instance(properties, extra_specs)
        return self.cpu(self.started(), instance,
                        properties).findtext('model')

    def test_none(self):
        self.assertEqual('Penryn', self.model())

    def test_flavor_s(self):
        self.assertEqual('Nehalem', self.model(
            {'trait:HW_CPU_X86_SSE42': 'required'}))

    def test_image_s(self):
        self.assertEqual('Nehalem', self.model(
            properties={'trait:HW_CPU_X86_SSE42': 'required'}))

    def test_extra_flags_count(self):
        """With Nova alone no model matches, and the build fails."""
        self.assertEqual('Penryn', self.model(
            {'trait:HW_CPU_X86_AESNI': 'required'}, flags=['aes']))

    def test_no_model_has_them(self):
        error = self.assertRaises(
            exception.InvalidCPUInfo, self.model,
            {'trait:HW_CPU_X86_AVX2': 'required'})
        self.assertIn('HW_CPU_X86_AVX2', str(error))

    def test_without_cpu_map_it_is_novas_choice(self):
        drvr = self.started()
        self.useFixture(fixtures.MockPatchObject(
            hooks.CPUHooks, 'matches_models', False))
        with mock.patch.object(
                libvirt_driver.LibvirtDriver, '_match_cpu_model_by_flags',
                return_value='its') as nova:
            self.assertEqual('its', drvr._match_cpu_model_by_flags(
                ['Penryn'], {'aes'}))
        nova.assert_called_once_with(['Penryn'], {'aes'})


class KeptTestCase(CPUHooksTestCase):

    def start(self, drvr: driver.KVMDriver, instance: Any,
              guest: Any) -> None:
        with mock.patch.object(libvirt_driver.LibvirtDriver, '_create_guest',
                               return_value=guest):
            self.assertIs(guest, drvr._create_guest(
                None, '<domain/>', instance, power_on=True))

    def test_a_start(self):
        instance = self.make_instance(vcpu_model=configured())
        self.start(self.started(), instance, live(EXACT))
        self.assertEqual(EXACT, stored.cpu_of(instance))
        self.save.assert_called_once_with()
        self.assertNotIn('another CPU', self.stdlog.logger.output)

    def test_survives_the_database(self):
        instance = self.make_instance()
        self.start(self.started(), instance, live(EXACT))
        instance.vcpu_model = objects.VirtCPUModel.from_json(
            instance.vcpu_model.to_json())
        self.assertEqual(EXACT, stored.cpu_of(instance))

    def test_what_nova_configured_is_no_cpu_to_compare_with(self):
        """A model by itself is less than libvirt tells of a running guest."""
        instance = self.make_instance(vcpu_model=configured('Penryn'))
        self.assertIsNone(stored.cpu_of(instance))
        self.start(self.started(), instance, live(EXACT))
        self.assertNotIn('another CPU', self.stdlog.logger.output)

    def test_the_same_again_is_not_saved(self):
        instance = self.make_instance(vcpu_model=hooks._vcpu_model(EXACT))
        self.start(self.started(), instance, live(EXACT))
        self.save.assert_not_called()

    def test_not_running(self):
        instance = self.make_instance(vcpu_model=configured())
        self.start(self.started(), instance, domain(
            "<cpu mode='custom' match='exact' check='partial'>"
            "<model>Nehalem</model></cpu>", dom_id=''))
        self.start(self.started(), instance,
                   domain("<cpu mode='host-passthrough'/>", dom_id=''))
        self.assertIsNone(stored.cpu_of(instance))

    def test_what_is_defined_without_a_start_forgets(self):
        """A stopped server that was resized gets its new flavor's CPU."""
        self.be_host(model='Westmere')
        drvr = self.started(keep_guest_cpu=True)
        instance = self.make_instance(
            vcpu_model=hooks._vcpu_model(EXACT),
            extra_specs={'kvm_ext:cpu_model': 'penryn'})
        guest = domain("<cpu mode='custom'><model>Penryn</model></cpu>",
                       dom_id='')
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
        instance = self.make_instance(vcpu_model=configured('Penryn'))
        self.start(self.started(), instance, domain('', dom_id=''))
        self.save.assert_not_called()
        self.assertEqual('Penryn', instance.vcpu_model.model)

    def test_of_another_architecture_nothing_is_kept(self):
        instance = self.make_instance()
        self.start(self.started(), instance, domain(
            "<os><type arch='aarch64'>hvm</type></os>"
            "<cpu mode='custom' match='exact' check='full'>"
            "<model>cortex-a57</model></cpu>"))
        self.assertIsNone(stored.cpu_of(instance))

    def test_passthrough_and_maximum_by_what_can_be_named(self):
        for mode in ('host-passthrough', 'maximum'):
            instance = self.make_instance()
            self.start(self.started(), instance, domain(
                f"<cpu mode='{mode}'>"
                "<feature name='sha-ni' policy='disable'/></cpu>"))
            kept = stored.cpu_of(instance)
            self.assertEqual(('EPYC', 'AMD', 'minimum'),
                             (kept.model, kept.vendor, kept.match))
            self.assertIn(('hypervisor', 'require'), kept.features)
            self.assertIn(('sha-ni', 'disable'), kept.features)

    def test_xml_that_cannot_be_read_harms_nothing(self):
        for xml in ('<domain', '<domain><cpu mode="x"/></domain>'):
            guest = domain('')
            guest.get_xml_desc.return_value = xml
            instance = self.make_instance()
            self.start(self.started(), instance, guest)
            self.assertIsNone(stored.cpu_of(instance))
        self.assertIn('cannot be read', self.stdlog.logger.output)

    def test_a_database_that_fails_harms_nothing(self):
        self.save.side_effect = exception.InstanceNotFound(instance_id='x')
        instance = self.make_instance()
        self.start(self.started(), instance, live(EXACT))
        self.assertEqual(EXACT, stored.cpu_of(instance))

    def test_configuring_leaves_what_is_true(self):
        """Nova overwrites it before the guest has the new CPU."""
        instance = self.make_instance(vcpu_model=hooks._vcpu_model(EXACT))
        self.cpu(self.started(), instance)
        self.assertEqual(EXACT, stored.cpu_of(instance))

    def test_a_first_configuration_is_novas(self):
        instance = self.make_instance()
        self.cpu(self.started(), instance)
        self.assertEqual('host-model', instance.vcpu_model.mode)
        self.assertIsNone(stored.cpu_of(instance))

    def test_after_a_live_migration(self):
        drvr = self.started()
        instance = self.make_instance(vcpu_model=configured())
        with mock.patch.object(
                libvirt_driver.LibvirtDriver,
                'post_live_migration_at_destination') as nova, \
                mock.patch.object(drvr._host, 'get_guest',
                                  return_value=live(EXACT)):
            drvr.post_live_migration_at_destination(
                None, instance, None, True, block_device_info={})
        nova.assert_called_once_with(None, instance, None, True, {})
        self.assertEqual(EXACT, stored.cpu_of(instance))

    def test_drift_is_logged(self):
        instance = self.make_instance(vcpu_model=hooks._vcpu_model(EXACT))
        self.start(self.started(), instance, live(EXACT.with_features(
            [('aes', 'require'), ('ssse3', 'disable')])))
        self.assertIn('The guest has another CPU than before: gained aes; '
                      'lost ssse3', self.stdlog.logger.output)


class HardRebootTestCase(CPUHooksTestCase):

    def setUp(self):
        super().setUp()
        self.be_host(model='Westmere')

    def reboot(self, cpu: definition.CPU | None = EXACT,
               instance: Any = None, guest: Any = None,
               **options: Any) -> etree._Element:
        drvr = self.started(**options)
        gone = exception.InstanceNotFound(instance_id='it')
        self.useFixture(fixtures.MockPatchObject(
            drvr._host, 'get_guest', return_value=guest,
            side_effect=None if guest else gone))
        vcpu_model = hooks._vcpu_model(cpu) if cpu else configured()
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
        found = self.reboot(None, guest=live(EXACT), keep_guest_cpu=True)
        self.assertEqual('Nehalem', found.findtext('model'))

    def test_libvirt_is_asked_only_then(self):
        drvr = self.started()
        with (mock.patch.object(drvr._cpu, 'started') as asked,
              mock.patch.object(libvirt_driver.LibvirtDriver,
                                '_hard_reboot')):
            drvr._hard_reboot(None, self.make_instance(), None, None)
            self.flags(group='kvm_ext', keep_guest_cpu=True)
            drvr._hard_reboot(None, self.make_instance(
                vcpu_model=hooks._vcpu_model(EXACT)), None, None)
        asked.assert_not_called()

    def test_two_at_once(self):
        """The end of one reboot takes nothing from the other."""
        drvr = self.started(keep_guest_cpu=True)
        ours, other = (self.make_instance(vcpu_model=hooks._vcpu_model(EXACT))
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


class MigrationTestCase(CPUHooksTestCase):

    def check(self, vcpu_model: Any, answer: Any = 2,
              **options: Any) -> mock.Mock:
        drvr = self.started(**options)
        compared = mock.Mock(side_effect=[answer])
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Connection.compareHypervisorCPU',
            compared))
        instance = self.make_instance(vcpu_model=vcpu_model)
        drvr.check_can_live_migrate_destination(
            None, instance, {'cpu_info': '{"arch": "x86_64", "model": "m", '
                             '"vendor": "v", "features": [], "topology": '
                             '{"sockets": 1, "cores": 1, "threads": 1}}'},
            {'disk_available_least': 9, 'free_disk_gb': 9})
        return compared

    def setUp(self):
        super().setUp()
        self.be_host(model='Westmere')
        for name in ('_create_shared_storage_test_file',
                     '_host_can_support_mdev_live_migration'):
            self.useFixture(fixtures.MockPatchObject(
                libvirt_driver.LibvirtDriver, name, return_value='x'))
        self.useFixture(fixtures.MockPatch(
            'nova.network.neutron.API.has_port_binding_extension',
            return_value=False))

    def refusal(self, *args: Any, **options: Any) -> str:
        return str(self.assertRaises(exception.MigrationPreCheckError,
                                     self.check, *args, **options))

    def test_yes_under_both_virt_types(self):
        """Nova compares nothing under qemu."""
        for virt_type in ('kvm', 'qemu'):
            compared = self.check(hooks._vcpu_model(EXACT),
                                  virt_type=virt_type)
            (emulator, arch, machine, asked, xml, flags), _ = \
                compared.call_args
            self.assertEqual(virt_type, asked)
            self.assertEqual(EXACT, definition.CPU.parse(xml))

    def test_no_names_what_is_missing(self):
        cpu = hooks._vcpu_model(definition.CPU(
            mode='custom', match='exact', model='Skylake-Server',
            features=(('aes', 'disable'), ('pcid', 'disable'))))
        incompatible = fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError, 'incompatible', error_code=91)
        for virt_type in ('kvm', 'qemu'):
            for answer in (0, incompatible):
                said = self.refusal(cpu, answer, virt_type=virt_type)
                self.assertIn('avx512bw, avx512f', said)
                self.assertNotIn('pcid', said)

    def test_libvirt_s_word_counts(self):
        error = fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError, 'unknown CPU feature: zz',
            error_code=fakelibvirt.VIR_ERR_INTERNAL_ERROR)
        self.assertIn('unknown CPU feature: zz',
                      self.refusal(hooks._vcpu_model(EXACT), error))

    def test_libvirt_that_cannot_compare(self):
        error = fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError, 'no', error_code=3)
        self.check(hooks._vcpu_model(EXACT), error)
        self.assertIn('avx512f', self.refusal(hooks._vcpu_model(
            definition.CPU(mode='custom', match='exact',
                           model='Skylake-Server')), error))

    def test_features_that_libvirt_misses(self):
        """A guest that runs on its own host is not refused there."""
        self.be_host(model='EPYC')
        drvr = self.started()
        incompatible = fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError, 'topoext', error_code=91)
        compared = mock.Mock(side_effect=[incompatible, 2])
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Connection.compareHypervisorCPU',
            compared))
        self.assertTrue(drvr._cpu.check_guest(
            hooks._vcpu_model(definition.CPU(
                mode='custom', match='exact', model='EPYC', vendor='AMD',
                features=(('topoext', 'require'),))), None, None))
        self.assertEqual(2, compared.call_count)

    def test_what_nobody_knows_moves_with_a_warning(self):
        self.useFixture(fixtures.MonkeyPatch(
            'nova_kvm_ext.cpu.reader.read_map', lambda root='/': None))
        self.check(
            hooks._vcpu_model(EXACT), fakelibvirt.make_libvirtError(
                fakelibvirt.libvirtError, 'no', error_code=3))
        self.assertIn('is not known', self.stdlog.logger.output)

    def test_emulated_guests_are_novas(self):
        self.useFixture(fixtures.MockPatchObject(
            hooks.CPUHooks, '_cannot_give', side_effect=AssertionError))
        drvr = self.started(virt_type='qemu')
        instance = self.make_instance(
            {'hw_emulation_architecture': 'aarch64'})
        drvr._compare_cpu(configured('cortex-a57'), None, instance)

    def test_named_model_of_plain_libvirt_driver(self):
        compared = self.check(configured('Penryn'))
        self.assertIn('<model>Penryn</model>', compared.call_args.args[4])

    def test_nothing_known_is_novas_way(self):
        self.useFixture(fixtures.MockPatchObject(
            hooks.CPUHooks, '_cannot_give', side_effect=AssertionError))
        for vcpu_model in (None, configured()):
            compared = self.check(vcpu_model)
            self.assertIn('<model>m</model>', compared.call_args.args[4])

    def test_plain_libvirt_driver_understands_what_is_kept(self):
        """The other side of a mixed fleet: its own code, with our record."""
        drvr = libvirt_driver.LibvirtDriver(mock.Mock())
        for cpu in (EXACT, definition.CPU(
                mode='custom', match='minimum', model='EPYC', vendor='AMD')):
            config = drvr._vcpu_model_to_cpu_config(hooks._vcpu_model(cpu))
            self.assertEqual(
                cpu, definition.CPU.parse(config.to_xml()))


class TraitsTestCase(CPUHooksTestCase):

    def traits(self, **options: Any) -> set[str]:
        return {name for name, true in self.started(
            **options)._get_cpu_feature_traits().items() if true}

    def test_host_model_is_what_a_guest_gets(self):
        """Nova would report the features of the machine itself."""
        self.be_host(lacks=('aes',))
        found = self.traits()
        self.assertIn(os_traits.HW_CPU_X86_AVX2, found)
        self.assertNotIn(os_traits.HW_CPU_X86_AESNI, found)
        self.assertNotIn(os_traits.HW_CPU_X86_AVX512F, found)

    def test_disabled_flag(self):
        self.flags(cpu_model_extra_flags=['-avx2'], group='libvirt')
        self.assertNotIn(os_traits.HW_CPU_X86_AVX2, self.traits())

    def test_model(self):
        found = self.traits(cpu_mode='custom', cpu_model='Penryn')
        self.assertIn(os_traits.HW_CPU_X86_SSSE3, found)
        self.assertNotIn(os_traits.HW_CPU_X86_SSE42, found)

    def test_level(self):
        found = self.traits(cpu_mode='custom', cpu_model='x86-64-v3')
        self.assertIn(os_traits.HW_CPU_X86_AVX2, found)
        self.assertNotIn(os_traits.HW_CPU_X86_SVM, found)

    def update(self, drvr: driver.KVMDriver, *present: str) -> set[str]:
        tree = provider_tree.ProviderTree()
        tree.new_root('node', uuids.node)
        tree.update_traits('node', present)
        with mock.patch.object(libvirt_driver.LibvirtDriver,
                               'update_provider_tree') as nova:
            drvr.update_provider_tree(tree, 'node', allocations=None)
        nova.assert_called_once_with(tree, 'node', None)
        return set(tree.data('node').traits)

    def test_our_own(self):
        drvr = self.started()
        found = self.update(drvr, 'CUSTOM_GOLD', 'COMPUTE_NODE',
                            'CUSTOM_KVM_EXT_CPU_MODEL_GONE')
        self.assertLessEqual({
            'CUSTOM_GOLD', 'COMPUTE_NODE',
            'CUSTOM_KVM_EXT_CPU_MODE_MAXIMUM',
            'CUSTOM_KVM_EXT_CPU_MODEL_PENRYN',
            'CUSTOM_KVM_EXT_CPU_LEVEL_X86_64_V3'}, found)
        self.assertNotIn('CUSTOM_KVM_EXT_CPU_MODEL_GONE', found)
        self.assertNotIn('CUSTOM_KVM_EXT_CPU_MODEL_SKYLAKE_SERVER', found)
        self.assertEqual(found, self.update(drvr, *found))

    def test_no_libvirt_call_of_ours_in_a_periodic_update(self):
        drvr = self.started()
        with mock.patch.object(drvr._host, 'get_connection') as connection:
            self.update(drvr)
        connection.assert_not_called()


class DesignerTestCase(CPUHooksTestCase):

    def test_set_cpu_leaves_topology(self):
        cpu = vconfig.LibvirtConfigGuestCPU()
        cpu.sockets, cpu.cores, cpu.threads = 2, 1, 1
        cpu.mode = 'host-model'
        designer.set_cpu(cpu, EXACT)
        designer.set_cpu(cpu, None)
        self.assertEqual((None, None, None, set(), 2), (
            cpu.mode, cpu.model, cpu.vendor, cpu.features, cpu.sockets))
