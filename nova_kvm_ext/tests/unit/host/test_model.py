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

"""What follows from facts about the host, before any check looks at them."""

import dataclasses
from typing import Any

from oslotest import base

from nova_kvm_ext.host import install
from nova_kvm_ext.host import model
from nova_kvm_ext.host import options
from nova_kvm_ext.tests.unit import test_settings

KVM = model.DeviceFacts('/dev/kvm', present=True, number='10:232')


def facts(**what: Any) -> model.HostFacts:
    """Facts of which only these are there."""
    nothing: dict[str, Any] = {
        field.name: None for field in dataclasses.fields(model.HostFacts)
        if field.default is dataclasses.MISSING}
    return model.HostFacts(**nothing | what)


def kernel(**misc: str) -> model.KernelFacts:
    return model.KernelFacts('6.1', True, True, {}, misc)


def use(**what: Any) -> model.UseFacts:
    return model.UseFacts('/dev/kvm', **{'tried': True} | what)


class HostFactsTestCase(base.BaseTestCase):

    def test_has_kvm(self):
        gone = dataclasses.replace(KVM, present=False)
        for device, misc, wanted in (
                (gone, {'kvm': '232'}, True), (KVM, {}, True),
                (gone, {}, False), (gone, {'tun': '200'}, False),
                (dataclasses.replace(KVM, open_error='EACCES'), {}, False),
                (dataclasses.replace(KVM, number='10:200'), {}, False)):
            self.assertIs(wanted, facts(
                devices={'/dev/kvm': device}, kernel=kernel(**misc)).has_kvm)

    def test_runs_kvm(self):
        for virt_type, runs, wanted in (
                ('kvm', True, True), ('kvm', False, False),
                ('kvm', None, False), ('qemu', True, False)):
            self.assertIs(wanted, facts(probe=model.ProbeFacts(
                virt_type, runs, '')).runs_kvm)

    def test_virt_type(self):
        for text, runs, error, wanted in (
                ('kvm', False, 'EACCES', 'kvm'), ('qemu', True, None, 'qemu'),
                ('auto', True, 'EACCES', 'kvm'),
                ('auto', False, None, 'qemu'),
                # The probe does not know: the device answers.
                ('auto', None, None, 'kvm'),
                ('auto', None, 'EACCES', 'qemu')):
            found = facts(
                options=options.HostOptions((), test_settings.settings(
                    f'[kvm_ext]\nvirt_type = {text}\n')),
                probe=model.ProbeFacts('kvm', runs, ''),
                kvm_use=use(error=error, api_version=12))
            self.assertEqual(wanted, found.virt_type, f'{text} {runs}')
        # As Nova has it, where nova.conf cannot be used.
        self.assertEqual(
            'kvm', facts(options=options.HostOptions((), None)).virt_type)


class DeviceTestCase(base.BaseTestCase):

    def test_nothing_is_known_of_one_that_is_not_there(self):
        self.assertEqual(
            model.DeviceFacts('/dev/kvm', False, 0, -1, -1, None, '', '',
                              False),
            model.DeviceFacts('/dev/kvm', False))

    def test_nothing_is_known_of_a_directory_that_is_not_there(self):
        self.assertEqual(
            model.DirectoryFacts('/a', 'what', 'ENOENT', 0, -1, -1, False,
                                 '', 0, 0),
            model.DirectoryFacts('/a', 'what', 'ENOENT'))

    def test_an_installation_that_is_incomplete(self):
        without = model.InstallFacts(('/nova/virt',), None, 'no module')
        self.assertIn('nova.virt.kvm_ext is missing from /nova/virt: this '
                      'installation is incomplete', install.check(without))
        self.assertEqual('Install nova-kvm-ext again.',
                         install.remedy(without))
        elsewhere = dataclasses.replace(without, door='/ours/a b')
        self.assertIn('this package is in /ours/a b. Link it: ln -s '
                      "'/ours/a b' /nova/virt/", install.check(elsewhere))

    def test_python_takes_the_first_directory(self):
        """Nova's package may be in several places."""
        found = model.InstallFacts(('/a', '/b'), '/door', 'no module')
        self.assertEqual('ln -s /door /a/', install.remedy(found))

    def test_nothing_to_mend_where_the_driver_is_found(self):
        well = model.InstallFacts(('/nova/virt',), '/door', None)
        self.assertEqual('', install.remedy(well))
        self.assertIsNone(install.check(well))


class UserTestCase(base.BaseTestCase):

    def test_known(self):
        for error, by_libvirt, wanted in (
                ('', False, True), ('no such file', False, False),
                ('no such file', True, True), ('', True, True)):
            self.assertIs(wanted, model.UserFacts(
                'q', 'q', 'x', 1, 1, error=error,
                by_libvirt=by_libvirt).known)
        plain = model.UserFacts('q', 'q', 'x', 1, 1)
        self.assertEqual((False, False, True),
                         (plain.unreadable, plain.by_libvirt, plain.known))

    def test_a_module_that_is_there(self):
        self.assertEqual(
            {'loaded': True, 'builtin': True, 'missing': False,
             'loadable': False},
            {state: model.ModuleFacts('kvm', state).there
             for state in ('loaded', 'builtin', 'missing', 'loadable')})


class DisksTestCase(base.BaseTestCase):

    def test_where_disks_are(self):
        for kind, local, ceph in (
                ('default', True, False), ('raw', True, False),
                ('qcow2', True, False), ('flat', True, False),
                ('ploop', True, False), ('rbd', False, True),
                ('lvm', False, False)):
            found = options.HostOptions((), None, images_type=kind)
            self.assertEqual((local, ceph, ceph), (
                found.local_disks, found.ceph_disks, found.ceph), kind)
        self.assertTrue(options.HostOptions(
            (), None, rbd_user='cinder').ceph)
        self.assertTrue(options.HostOptions(
            (), None, rbd_secret='uuid').ceph)
