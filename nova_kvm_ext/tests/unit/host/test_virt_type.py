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

from oslotest import base

from nova_kvm_ext.cpu import choose
from nova_kvm_ext import errors
from nova_kvm_ext.host import virt_type
from nova_kvm_ext.tests.unit import test_settings


class LibvirtError(Exception):

    def get_error_code(self) -> int:
        return 8


class ResolveTestCase(base.BaseTestCase):

    def resolve(self, text: str,
                runs: bool | None = True) -> virt_type.VirtType:
        self.probed = 0

        def probe() -> tuple[bool | None, str]:
            self.probed += 1
            return runs, 'so the probe says'

        return virt_type.resolve(test_settings.settings(text), probe)

    def test_auto(self):
        for runs, wanted in ((True, 'kvm'), (False, 'qemu')):
            found = self.resolve('[kvm_ext]\nvirt_type = auto\n', runs)
            self.assertEqual(wanted, found.value)
            self.assertEqual(1, self.probed)
            self.assertEqual(
                '[kvm_ext] virt_type = auto: so the probe says', found.reason)

    def test_auto_that_cannot_be_decided(self):
        error = self.assertRaises(
            errors.HostError, self.resolve,
            '[kvm_ext]\nvirt_type = auto\n', None)
        self.assertIn('[kvm_ext] virt_type = auto cannot be decided', str(
            error))
        self.assertIn('so the probe says', str(error))
        self.assertIn('kvm or qemu', str(error))

    def test_a_plain_choice_costs_no_probe(self):
        for name in ('kvm', 'qemu'):
            found = self.resolve(f'[libvirt]\nvirt_type = {name}\n')
            self.assertEqual(name, found.value)
            self.assertEqual(0, self.probed)

    def test_what_this_driver_does_not_run(self):
        error = self.assertRaises(
            errors.InvalidOption, self.resolve,
            '[libvirt]\nvirt_type = lxc\n')
        self.assertIn('[libvirt] virt_type = lxc', str(error))
        self.assertIn('libvirt.LibvirtDriver', str(error))


class ProbeElsewhereTestCase(base.BaseTestCase):
    """Architectures that the probe guest does not know."""

    def probe(self, connection: object) -> tuple[bool | None, str]:
        return virt_type.probe(
            connection, 'aarch64',
            choose.CPUChoice('host-passthrough', (), ()), '/none', ())

    def test_offered(self):
        class Connection:
            def getDomainCapabilities(self, *args):
                return '<domainCapabilities/>'
        runs, reason = self.probe(Connection())
        self.assertTrue(runs)
        self.assertIn('aarch64', reason)

    def test_not_offered(self):
        class Connection:
            def getDomainCapabilities(self, *args):
                raise LibvirtError(
                    "the accel 'kvm' is not supported\x1b[0m")
        runs, reason = self.probe(Connection())
        self.assertIs(False, runs)
        self.assertIn("the accel 'kvm' is not supported", reason)
        self.assertNotIn('\x1b', reason)

    def test_busy(self):
        class Connection:
            def getDomainCapabilities(self, *args):
                raise LibvirtError('cannot acquire state change lock')
        self.assertIsNone(self.probe(Connection())[0])

    def test_other_errors_pass(self):
        class Connection:
            def getDomainCapabilities(self, *args):
                raise ZeroDivisionError()
        self.assertRaises(ZeroDivisionError, self.probe, Connection())
