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

import re
import tempfile
import textwrap

import fixtures
from oslo_config import cfg
from oslotest import base

from nova_kvm_ext import conf
from nova_kvm_ext import errors
from nova_kvm_ext.settings import Settings


def configuration(text: str = '') -> cfg.ConfigOpts:
    """A configuration with our options and Nova's behind them.

    Nova's are declared here as nova.conf.libvirt has them, so that these
    tests need no Nova.
    """
    config = cfg.ConfigOpts()
    config.register_opts([
        cfg.StrOpt('virt_type', default='kvm',
                   choices=['kvm', 'lxc', 'qemu', 'parallels']),
        cfg.StrOpt('cpu_mode', choices=[
            'host-model', 'host-passthrough', 'custom', 'none']),
        cfg.ListOpt('cpu_models', default=[], deprecated_name='cpu_model'),
        cfg.ListOpt('cpu_model_extra_flags', default=[]),
    ], group='libvirt')
    conf.register_opts(config)
    with tempfile.NamedTemporaryFile('w', suffix='.conf') as f:
        f.write(textwrap.dedent(text))
        f.flush()
        config(['--config-file', f.name])
    return config


def settings(text: str = '') -> Settings:
    return Settings.from_conf(configuration(text))


class SettingsTestCase(base.BaseTestCase):

    def refused(self, text: str) -> str:
        return str(self.assertRaises(errors.InvalidOption, settings, text))

    def test_unset_means_what_nova_says(self):
        found = settings()
        self.assertEqual('kvm', found.virt_type)
        self.assertEqual('[libvirt] virt_type', found.virt_type_option)
        self.assertIsNone(found.cpu_mode)
        self.assertEqual((), found.cpu_models)

    def test_fragment_of_novas_kvm_guide(self):
        found = settings("""
            [libvirt]
            virt_type = kvm
            cpu_mode = custom
            cpu_model = Nehalem
            """)
        self.assertEqual(('kvm', 'custom', ('Nehalem',)),
                         (found.virt_type, found.cpu_mode, found.cpu_models))
        self.assertEqual('[libvirt] cpu_models', found.cpu_models_option)

    def test_our_group_wins_over_novas_defaults(self):
        found = settings("""
            [kvm_ext]
            virt_type = auto
            cpu_mode = maximum
            """)
        self.assertEqual(('auto', 'maximum'),
                         (found.virt_type, found.cpu_mode))
        self.assertEqual('[kvm_ext] cpu_mode', found.cpu_mode_option)

    def test_each_option_on_its_own(self):
        found = settings("""
            [kvm_ext]
            cpu_mode = custom
            [libvirt]
            virt_type = qemu
            cpu_models = EPYC,Nehalem
            """)
        self.assertEqual(('qemu', 'custom', ('EPYC', 'Nehalem')),
                         (found.virt_type, found.cpu_mode, found.cpu_models))

    def test_same_in_both_groups(self):
        found = settings("""
            [kvm_ext]
            virt_type = qemu
            cpu_mode = custom
            cpu_model = nehalem
            [libvirt]
            virt_type = qemu
            cpu_mode = custom
            cpu_models = Nehalem
            """)
        self.assertEqual('[kvm_ext] cpu_model', found.cpu_models_option)
        self.assertEqual(('nehalem',), found.cpu_models)

    def overridden(self, text: str) -> tuple[Settings, list[str]]:
        """The settings, and what is overridden, each file as FILE."""
        found = settings(text)
        return found, [
            re.sub(r'\(/\S*\.conf\)', '(FILE)', str(override))
            for override in found.overrides]

    def test_what_is_set_here_counts(self):
        for ours, novas in (
                ('virt_type = qemu', 'virt_type = kvm'),
                ('virt_type = auto', 'virt_type = kvm'),
                ('virt_type = kvm', 'virt_type = lxc'),
                ('cpu_mode = host-model', 'cpu_mode = custom'),
                ('cpu_mode = maximum', 'cpu_mode = host-passthrough'),
                ('cpu_mode = none', 'cpu_mode = host-model'),
                ('cpu_model = EPYC', 'cpu_models = EPYC, Nehalem'),
                ('cpu_model = EPYC', 'cpu_models = Nehalem')):
            found, said = self.overridden(
                f'[kvm_ext]\n{ours}\n[libvirt]\n{novas}\n')
            self.assertEqual([f'[kvm_ext] {ours} (FILE) overrides '
                              f'[libvirt] {novas} (FILE)'], said)
            name, _, value = ours.partition(' = ')
            self.assertIn(getattr(found, name, None) or found.cpu_models[0],
                          value)

    def test_the_files_that_set_them(self):
        directory = self.useFixture(fixtures.TempDir())
        files = []
        for name, text in (('nova.conf', '[kvm_ext]\nvirt_type = auto\n'),
                           ('more.conf', '[libvirt]\nvirt_type = kvm\n')):
            files += ['--config-file', directory.join(name)]
            with open(files[-1], 'w') as f:
                f.write(text)
        config = configuration()
        config(files)
        override, = Settings.from_conf(config).overrides
        self.assertEqual(('auto', files[1]),
                         (override.value.value, override.value.source))
        self.assertEqual(('kvm', files[3]), (override.instead_of.value,
                                             override.instead_of.source))

    def test_the_environment_that_set_it(self):
        self.useFixture(fixtures.EnvironmentVariable(
            'OS_LIBVIRT__VIRT_TYPE', 'qemu'))
        found, said = self.overridden('[kvm_ext]\nvirt_type = kvm\n')
        self.assertEqual('kvm', found.virt_type)
        self.assertIn('qemu (the environment variable '
                      'OS_LIBVIRT__VIRT_TYPE)', said[0])

    def test_a_mode_here_overrides_the_models_that_it_does_not_take(self):
        for novas in ('cpu_mode = custom\ncpu_models = EPYC',
                      'cpu_model = EPYC'):
            found, said = self.overridden(
                f'[kvm_ext]\ncpu_mode = host-model\n[libvirt]\n{novas}\n')
            self.assertEqual(('host-model', ()),
                             (found.cpu_mode, found.cpu_models))
            self.assertEqual(
                '[kvm_ext] cpu_mode = host-model (FILE) overrides '
                '[libvirt] cpu_models = EPYC (FILE)', said[-1])

    def test_a_model_here_overrides_the_mode_that_takes_none(self):
        found, said = self.overridden(
            '[kvm_ext]\ncpu_model = EPYC\n'
            '[libvirt]\ncpu_mode = host-model\n')
        self.assertEqual(('custom', ('EPYC',)),
                         (found.cpu_mode, found.cpu_models))
        self.assertEqual(['[kvm_ext] cpu_model = EPYC (FILE) overrides '
                          '[libvirt] cpu_mode = host-model (FILE)'], said)

    def test_custom_here_takes_the_models_of_nova(self):
        found, said = self.overridden(
            '[kvm_ext]\ncpu_mode = custom\n'
            '[libvirt]\ncpu_mode = host-model\ncpu_models = EPYC,Nehalem\n')
        self.assertEqual(('custom', ('EPYC', 'Nehalem')),
                         (found.cpu_mode, found.cpu_models))
        self.assertEqual(1, len(said))

    def test_the_same_overrides_nothing(self):
        self.assertEqual([], self.overridden(
            '[kvm_ext]\nvirt_type = qemu\ncpu_mode = custom\n'
            'cpu_model = nehalem\n[libvirt]\nvirt_type = qemu\n'
            'cpu_mode = custom\ncpu_models = Nehalem\n')[1])

    def test_what_is_not_set_by_the_operator_is_not_overridden(self):
        config = configuration('[kvm_ext]\nvirt_type = qemu\n')
        # As the driver does: a second look must not take it for the
        # operator's own word.
        config.set_override('virt_type', 'kvm', group='libvirt')
        found = Settings.from_conf(config)
        self.assertEqual(('qemu', ()), (found.virt_type, found.overrides))

    def test_bad_value_names_option_file_value_and_allowed_ones(self):
        text = self.refused('[kvm_ext]\nvirt_type = kvn\n')
        self.assertIn('[kvm_ext] virt_type', text)
        self.assertIn('.conf', text)
        self.assertIn("'kvn'", text)
        self.assertIn('[kvm, qemu, auto]', text)

    def test_bad_value_of_novas_option(self):
        text = self.refused('[libvirt]\ncpu_mode = host_model\n')
        self.assertIn('[libvirt] cpu_mode', text)
        self.assertIn("'host_model'", text)

    def test_hostile_model_names(self):
        for name in ('"><x/>', 'a b', '', '-x', 'x;y', 'é'):
            self.assertIn('[kvm_ext] cpu_model', self.refused(
                f'[kvm_ext]\ncpu_mode = custom\ncpu_model = {name}\n'))

    def test_model_names_that_exist(self):
        for name in ('486', 'n270', 'Skylake-Server-v3', 'POWER9',
                     'z14.2-base', 'cpu64-rhel6', 'Opteron_G3'):
            found = settings(f'[kvm_ext]\ncpu_model = {name}\n')
            self.assertEqual((name,), found.cpu_models)

    def test_extra_flags_in_lower_case(self):
        found = settings('[libvirt]\ncpu_model_extra_flags = +PCID, -AVX2\n')
        self.assertEqual(('+pcid', '-avx2'), found.extra_flags)

    def test_guest_agent(self):
        found = settings()
        self.assertEqual(('image', 10),
                         (found.guest_agent, found.guest_agent_timeout))
        found = settings("""
            [kvm_ext]
            guest_agent = always
            guest_agent_timeout = 3
            """)
        self.assertEqual(('always', 3),
                         (found.guest_agent, found.guest_agent_timeout))

    def test_guest_agent_limits(self):
        for line, words in (
                ('guest_agent = sometimes', "'sometimes'"),
                ('guest_agent_timeout = 0', 'greater than or equal to 1'),
                ('guest_agent_timeout = -2', 'greater than or equal to 1'),
                ('guest_agent_timeout = 3601', 'less than or equal to 3600'),
                ('guest_agent_timeout = soon', "'soon'")):
            text = self.refused(f"""
                [kvm_ext]
                {line}
                """)
            self.assertIn(f'[kvm_ext] {line.partition(" ")[0]} in /', text)
            self.assertIn(words, text)

    def test_registering_twice(self):
        config = configuration()
        conf.register_opts(config)
        self.assertIsNone(config.kvm_ext.virt_type)
