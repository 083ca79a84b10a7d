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

"""The CPU of a guest through the driver: start, wishes, traits."""

from typing import Any
from unittest import mock

import fixtures
from nova.compute import provider_tree
from nova import exception
from nova import objects
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver as libvirt_driver
import os_traits
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import hooks
from nova_kvm_ext.cpu import stored
from nova_kvm_ext.cpu import usable
from nova_kvm_ext import designer
from nova_kvm_ext import driver
from nova_kvm_ext.tests.unit.cpu import guests
from nova_kvm_ext.tests.unit.cpu import hosts


class StartTestCase(guests.CPUHooksTestCase):

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
                        side_effect=lambda *args, mapped:
                        self.fail_if_late(*args)
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
        instance = self.make_instance(vcpu_model=guests.configured())
        other = self.make_instance()
        other.uuid = uuids.other
        drvr = self.started()
        with mock.patch('nova.virt.libvirt.host.Host.list_guests',
                        return_value=[guests.live(guests.EXACT)]):
            objects.InstanceList.get_by_host.return_value = [instance, other]
            self.run_errands(drvr)
        self.assertEqual(guests.EXACT, stored.cpu_of(instance))
        self.assertIsNone(stored.cpu_of(other))
        self.save.assert_called_once_with()

    def test_one_call_where_the_xml_never_waits(self):
        drvr = self.started()
        for version, asked in ((9_000_000, 0), (9_001_000, 1),
                               (12_008_000, 1)):
            instance = self.make_instance(vcpu_model=guests.configured())
            guest = guests.live(guests.EXACT)
            guest._domain.controlInfo.return_value = (0, 0, 0)
            with (mock.patch('nova.virt.libvirt.host.Host.list_guests',
                             return_value=[guest]),
                  mock.patch.object(fakelibvirt.Connection, 'getLibVersion',
                                    return_value=version)):
                objects.InstanceList.get_by_host.return_value = [instance]
                self.run_errands(drvr)
            self.assertEqual(guests.EXACT, stored.cpu_of(instance))
            self.assertEqual(
                (asked, 1), (guest._domain.controlInfo.call_count,
                             guest.get_xml_desc.call_count), version)

    def test_one_that_has_ended_by_now(self):
        """It may have been deleted, too: nothing to complain about."""
        instance = self.make_instance(vcpu_model=guests.configured())
        drvr = self.started()
        guest = guests.live(guests.EXACT)
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
        """Nobody waits for its XML: the next update reads its CPU."""
        instance = self.make_instance(vcpu_model=guests.configured())
        drvr = self.started()
        guest = guests.live(guests.EXACT)
        guest._domain.controlInfo.return_value = (2, 0, 60000)
        guest._domain.connect.return_value.getLibVersion.return_value = (
            11_003_000)
        with (mock.patch('nova.virt.libvirt.host.Host.list_guests',
                         return_value=[guest]),
              mock.patch.object(fakelibvirt.Connection, 'getLibVersion',
                                return_value=11_003_000)):
            objects.InstanceList.get_by_host.return_value = [instance]
            for _ in range(2):
                drvr._errands.go_on()
            guest.get_xml_desc.assert_not_called()
            self.assertIsNone(stored.cpu_of(instance))
            self.assertIn('KVML511', self.stdlog.logger.output)
            self.assertIn(instance.uuid, self.stdlog.logger.output)
            guest._domain.controlInfo.return_value = (0, 0, 0)
            drvr._errands.go_on()
        self.assertEqual(guests.EXACT, stored.cpu_of(instance))

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


class MapTestCase(guests.CPUHooksTestCase):
    """libvirt's CPU map is read when it is needed, and then once."""

    def setUp(self):
        super().setUp()
        self.read = self.useFixture(fixtures.MockPatch(
            'nova_kvm_ext.cpu.reader.read_map', return_value=hosts.MAP)).mock

    def test_the_start_needs_none(self):
        found = self.started()
        self.assertEqual(0, self.read.call_count)
        for _ in (1, 2):
            self.assertIs(hosts.MAP, found._cpu.host.known)
            self.assertTrue(found._cpu.our_traits())
        self.assertEqual(1, self.read.call_count)

    def test_a_model_does(self):
        self.started(cpu_mode='custom', cpu_model='Nehalem')
        self.assertEqual(1, self.read.call_count)

    def test_flags_do(self):
        self.flags(cpu_mode='host-model', group='libvirt',
                   cpu_model_extra_flags=['pcid'])
        self.started()
        self.assertEqual(1, self.read.call_count)


class WishTestCase(guests.CPUHooksTestCase):

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


class RequiredTraitsTestCase(guests.CPUHooksTestCase):
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


class TraitsTestCase(guests.CPUHooksTestCase):

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


class DesignerTestCase(guests.CPUHooksTestCase):

    def test_set_cpu_leaves_topology(self):
        cpu = vconfig.LibvirtConfigGuestCPU()
        cpu.sockets, cpu.cores, cpu.threads = 2, 1, 1
        cpu.mode = 'host-model'
        designer.set_cpu(cpu, guests.EXACT)
        designer.set_cpu(cpu, None)
        self.assertEqual((None, None, None, set(), 2), (
            cpu.mode, cpu.model, cpu.vendor, cpu.features, cpu.sockets))
