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

"""Packages and recipes for deployments: what they name is there."""

import configparser
import os
import pathlib
import re

from oslotest import base
from packaging import requirements
import yaml

from nova_kvm_ext import conf

_ROOT = pathlib.Path(__file__).parents[3]
_PACKAGING = _ROOT / 'packaging'
_DRIVER = 'kvm_ext.KVMDriver'

# What python3-nova depends on, so that no package of ours has to.
_OF_NOVA = {'jinja2', 'keystoneauth1', 'lxml', 'os-traits',
            'oslo.concurrency', 'oslo.config', 'oslo.context', 'oslo.log',
            'oslo.serialization', 'oslo.upgradecheck', 'oslo.utils', 'pbr',
            'stevedore'}

# Where the distribution has another name.
_NAMES = {'libvirt-python': 'libvirt'}
_RPM_NAMES = {'prometheus-client': 'prometheus_client'}


def _requirements() -> set[str]:
    """The names that are not Nova's anyway, as distributions have them."""
    lines = (_ROOT / 'requirements.txt').read_text().splitlines()
    names = {requirements.Requirement(line.partition('#')[0]).name.lower()
             for line in lines if line.partition('#')[0].strip()}
    return {_NAMES.get(name, name) for name in names - _OF_NOVA}


def _paragraphs(text: str) -> list[dict[str, str]]:
    """A control file of Debian: fields with the lines that continue them."""
    found = []
    for paragraph in text.strip().split('\n\n'):
        fields = re.findall(r'^([-\w]+):((?:.*)(?:\n[ \t].*)*)', paragraph,
                            re.MULTILINE)
        found.append({name: value.strip() for name, value in fields})
    return found


def _names(value: str) -> set[str]:
    """The packages of a field of relations."""
    return set(re.findall(r'(?:^|[,|]\s*)([-.+a-z0-9]+)', value))


class DebianTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.source, self.library, self.compute = _paragraphs(
            (_PACKAGING / 'debian/control').read_text())

    def test_build_dependencies(self):
        # The commands are loaded to write their man pages.
        self.assertEqual(set(), {
            f'python3-{name}' for name in _requirements()} - _names(
                self.source['Build-Depends']))

    def test_packages(self):
        self.assertEqual('python3-nova-kvm-ext', self.library['Package'])
        self.assertIn('${python3:Depends}', self.library['Depends'])
        self.assertEqual('nova-compute-kvm-ext', self.compute['Package'])
        self.assertEqual({'nova-compute-hypervisor'},
                         _names(self.compute['Provides']))
        # As Debian's own do.
        self.assertEqual(
            {f'nova-compute-{name}' for name in (
                'hypervisor', 'ironic', 'kvm', 'lxc', 'qemu', 'xen')},
            _names(self.compute['Conflicts']))

    def test_files(self):
        for name in ('python3-nova-kvm-ext.docs',
                     'python3-nova-kvm-ext.examples'):
            for line in (_PACKAGING / 'debian' / name).read_text().split():
                self.assertTrue((_ROOT / line).is_file(), line)
        for name in ('rules', 'tests/loads'):
            path = _PACKAGING / 'debian' / name
            self.assertTrue(os.access(path, os.X_OK), path)

    def test_configuration(self):
        parser = configparser.ConfigParser()
        parser.read(_PACKAGING / 'debian/nova-compute.conf')
        self.assertEqual(_DRIVER, parser['DEFAULT']['compute_driver'])
        # Options that are set there would differ from those of [libvirt].
        self.assertEqual({'compute_driver'}, set(parser['kvm_ext']))
        self.assertEqual('kvm_ext', conf.GROUP.name)


class RPMTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.spec = (_PACKAGING / 'rpm/python-nova-kvm-ext.spec').read_text()

    def test_build_requirements(self):
        required = set(re.findall(r'^BuildRequires:\s+(\S+)', self.spec,
                                  re.MULTILINE))
        self.assertEqual(set(), {
            f'python3-{_RPM_NAMES.get(name, name).replace(".", "-")}'
            for name in _requirements()} - required)

    def test_files(self):
        for name in re.findall(r'^%(?:license|doc) (.*)', self.spec,
                               re.MULTILINE):
            for path in name.split():
                self.assertTrue((_ROOT / path).is_file(), path)


class OtherRecipesTestCase(base.BaseTestCase):

    def test_kolla(self):
        parser = configparser.ConfigParser()
        parser.read(_PACKAGING / 'kolla/kolla-build.conf')
        [section] = parser.sections()
        # Kolla takes what begins with the name of an image and -plugin-.
        self.assertTrue(section.startswith('nova-base-plugin-'))
        self.assertEqual({'type', 'location', 'reference'},
                         set(parser[section]))

    def test_openstack_ansible(self):
        found = yaml.safe_load(
            (_PACKAGING / 'openstack-ansible/user_variables.yml').read_text())
        self.assertEqual(
            _DRIVER,
            found['nova_nova_conf_overrides']['DEFAULT']['compute_driver'])
        self.assertIn('nova-kvm-ext', found['nova_user_pip_packages'][0])

    def test_puppet(self):
        text = (_PACKAGING / 'puppet/nova_kvm_ext.pp').read_text()
        self.assertIn(f"'{_DRIVER}'", text)
        for package in ('nova-compute-kvm-ext', 'python3-nova-kvm-ext'):
            self.assertIn(f"'{package}'", text)

    def test_pages_say_what_was_tried(self):
        for name in ('debian', 'devstack', 'kolla', 'openstack-ansible',
                     'pip', 'puppet', 'rdo'):
            text = (_ROOT / f'doc/source/install/{name}.rst').read_text()
            self.assertIn('What was tried\n--------------\n', text, name)
            for script in re.findall(r'``(tools/[-\w]+)', text):
                self.assertTrue((_ROOT / script).is_file(), script)
