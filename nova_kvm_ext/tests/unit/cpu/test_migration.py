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

"""The CPU of guests that migrate."""

from typing import Any
from unittest import mock

import fixtures
from nova import exception
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt.libvirt import driver as libvirt_driver

from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import hooks
from nova_kvm_ext.tests.unit.cpu import guests


class MigrationTestCase(guests.CPUHooksTestCase):

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
            compared = self.check(hooks._vcpu_model(guests.EXACT),
                                  virt_type=virt_type)
            (emulator, arch, machine, asked, xml, flags), _ = \
                compared.call_args
            self.assertEqual(virt_type, asked)
            self.assertEqual(guests.EXACT, definition.CPU.parse(xml))

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
                      self.refusal(hooks._vcpu_model(guests.EXACT), error))

    def test_libvirt_that_cannot_compare(self):
        error = fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError, 'no', error_code=3)
        self.check(hooks._vcpu_model(guests.EXACT), error)
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
            hooks._vcpu_model(guests.EXACT), fakelibvirt.make_libvirtError(
                fakelibvirt.libvirtError, 'no', error_code=3))
        self.assertIn('is not known', self.stdlog.logger.output)

    def test_emulated_guests_are_novas(self):
        self.useFixture(fixtures.MockPatchObject(
            hooks.CPUHooks, '_cannot_give', side_effect=AssertionError))
        drvr = self.started(virt_type='qemu')
        instance = self.make_instance(
            {'hw_emulation_architecture': 'aarch64'})
        drvr._compare_cpu(guests.configured('cortex-a57'), None, instance)

    def test_named_model_of_plain_libvirt_driver(self):
        compared = self.check(guests.configured('Penryn'))
        self.assertIn('<model>Penryn</model>', compared.call_args.args[4])

    def test_nothing_known_is_novas_way(self):
        self.useFixture(fixtures.MockPatchObject(
            hooks.CPUHooks, '_cannot_give', side_effect=AssertionError))
        for vcpu_model in (None, guests.configured()):
            compared = self.check(vcpu_model)
            self.assertIn('<model>m</model>', compared.call_args.args[4])

    def test_plain_libvirt_driver_understands_what_is_kept(self):
        """The other side of a mixed fleet: its own code, with our record."""
        drvr = libvirt_driver.LibvirtDriver(mock.Mock())
        for cpu in (guests.EXACT, definition.CPU(
                mode='custom', match='minimum', model='EPYC', vendor='AMD')):
            config = drvr._vcpu_model_to_cpu_config(hooks._vcpu_model(cpu))
            self.assertEqual(
                cpu, definition.CPU.parse(config.to_xml()))
