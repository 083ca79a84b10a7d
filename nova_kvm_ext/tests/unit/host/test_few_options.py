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

import os

import fixtures
from nova import conf as nova_conf
from oslo_config import cfg
from oslotest import base

from nova_kvm_ext.host import few_options
from nova_kvm_ext.settings import Settings


class FewOptionsTestCase(base.BaseTestCase):

    def nova_has(self, option: cfg.Opt, group: str | None) -> cfg.Opt:
        return nova_conf.CONF._get_opt_info(option.dest, group)['opt']

    def test_as_nova_has_them(self):
        for group, options in ((None, few_options.default()),
                               ('libvirt', few_options.libvirt())):
            for option in options:
                novas = self.nova_has(option, group)
                self.assertIs(type(novas), type(option), option.name)
                self.assertEqual(novas.type, option.type, option.name)
                if option.name != 'host':
                    # A test of Nova's may have another name of this host.
                    self.assertEqual(
                        novas.default, option.default, option.name)
                self.assertEqual(
                    [(o.group, o.name) for o in novas.deprecated_opts],
                    [(o.group, o.name) for o in option.deprecated_opts])

    def test_a_file_with_more(self):
        path = os.path.join(
            self.useFixture(fixtures.TempDir()).path, 'nova.conf')
        with open(path, 'w') as f:
            f.write('[DEFAULT]\nhost = here\nmy_ip = 192.0.2.1\n'
                    'state_path = /s\n[libvirt]\nvirt_type = qemu\n'
                    'cpu_mode = custom\ncpu_model = Nehalem, Penryn\n'
                    '[kvm_ext]\nkeep_guest_cpu = true\n')
        found = few_options.register()
        found(['--config-file', path], default_config_files=[],
              default_config_dirs=[])
        settings = Settings.from_conf(found)
        self.assertEqual(
            ('here', '/s', 'qemu', ('Nehalem', 'Penryn'), True),
            (found.host, found.state_path, settings.virt_type,
             settings.cpu_models, settings.keep_guest_cpu))
