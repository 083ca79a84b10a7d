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


import contextlib
import io
import json
import os
import textwrap
from unittest import mock

import fixtures
from nova import conf as nova_conf
from oslo_config import cfg
from oslo_upgradecheck import upgradecheck
from oslotest import base

from nova_kvm_ext.cmd import status
from nova_kvm_ext import errors
from nova_kvm_ext.fleet import cloud as clouds
from nova_kvm_ext.guest_agent import ledger
from nova_kvm_ext.rollback import cloud as reader
from nova_kvm_ext.rollback import traces

UUID = '00000000-0000-4000-8000-000000000001'
IN_CLOUD = {'Traits in Placement', 'Flavors', 'Images',
            'CPUs of servers here'}


class RollbackTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.state = self.useFixture(fixtures.TempDir()).path
        self.file = os.path.join(
            self.useFixture(fixtures.TempDir()).path, 'nova.conf')
        self.write('')
        self.cloud = self.useFixture(fixtures.MockPatchObject(
            clouds, 'connect')).mock
        self.read = {
            name: self.useFixture(fixtures.MockPatchObject(
                reader, name, return_value=())).mock
            for name in ('providers', 'flavors', 'images', 'servers')}

    def write(self, text):
        with open(self.file, 'w') as f:
            f.write(textwrap.dedent(text))

    def conf(self):
        """Those of Nova's options that are read."""
        conf = cfg.ConfigOpts()
        conf.register_opts([
            cfg.StrOpt('state_path', default=self.state),
            cfg.StrOpt('host', default='compute1')])
        conf.register_opts([
            cfg.StrOpt('virt_type', default='kvm'),
            cfg.StrOpt('cpu_mode'),
            cfg.ListOpt('cpu_models', default=[]),
            cfg.ListOpt('cpu_model_extra_flags', default=[])],
            group='libvirt')
        conf.register_opt(
            cfg.ListOpt('enabled_filters', default=['ComputeFilter']),
            group='filter_scheduler')
        return conf

    def run_check(self, *arguments):
        said = io.StringIO()
        conf = self.conf()
        with (contextlib.redirect_stdout(said),
              mock.patch.object(nova_conf, 'CONF', conf),
              mock.patch.object(upgradecheck, 'CONF', conf)):
            code = status.main(['--config-file', self.file, 'rollback',
                                'check', *arguments])
        return code, said.getvalue()

    def found(self, *arguments):
        code, said = self.run_check('--json', *arguments)
        return code, {each['check']: (each['result'], each['details'])
                      for each in json.loads(said)['checks']}

    def one(self, name, *arguments):
        """The result of one check; all others pass."""
        code, found = self.found('--os-cloud', 'admin', *arguments)
        self.assertEqual(code, found[name][0])
        self.assertEqual({0}, {result for check, (result, _) in found.items()
                               if check != name})
        return found[name]

    def test_nothing_left(self):
        code, found = self.found('--os-cloud', 'admin')
        self.assertEqual(0, code)
        self.assertEqual({(0, None)}, set(found.values()))
        self.cloud.assert_called_once_with('admin')
        self.read['servers'].assert_called_once_with(mock.ANY, 'compute1')

    def test_without_a_cloud(self):
        code, found = self.found()
        self.assertEqual(1, code)
        for name, (result, details) in found.items():
            self.assertEqual(int(name in IN_CLOUD), result)
            if result:
                self.assertIn('--os-cloud', details)
        self.cloud.assert_not_called()

    def test_frozen_guest(self):
        ledger.Ledger(self.state, 'compute1').enter(UUID, 'test').release()
        code, found = self.found()
        self.assertEqual(2, code)
        self.assertEqual(2, found['Frozen guests'][0])
        self.assertIn(UUID, found['Frozen guests'][1])
        # The directory of the ledger is a file that is left.
        self.assertEqual(1, found['Files in Nova\'s state directory'][0])
        code, said = self.run_check()
        self.assertIn(f'\nnova-kvm-ext agent thaw {UUID}\n', said)
        self.assertNotIn('rm -r', said)
        ledger.Ledger(self.state, 'compute1').take(UUID).remove()
        code, said = self.run_check()
        self.assertEqual(1, code)
        self.assertIn(f'\nrm -r {self.state}/kvm-ext-frozen\n', said)

    def test_options(self):
        for ours, wanted in (
                ('cpu_mode = host-model', ['cpu_mode = host-model']),
                ('virt_type = qemu', ['virt_type = qemu']),
                ('virt_type = auto', ['virt_type (auto is not a value']),
                ('cpu_mode = maximum', [
                    'cpu_mode = host-passthrough',
                    'does not know cpu_mode = maximum']),
                ('virt_type = qemu\ncpu_mode = maximum', [
                    'virt_type = qemu', 'cpu_mode = host-model']),
                ('cpu_mode = custom\ncpu_model = EPYC', [
                    'cpu_mode = custom', 'cpu_models = EPYC']),
                ('cpu_mode = custom\ncpu_model = x86-64-v2', [
                    'cpu_models = kvm64', 'no level such as x86-64-v2'])):
            self.write(f'[kvm_ext]\n{ours}\n')
            result, details = self.one('Options of nova.conf')
            self.assertEqual(1, result, ours)
            for text in wanted:
                self.assertIn(text, details)

    def test_options_that_libvirt_driver_has_too(self):
        self.write('''\
            [libvirt]
            virt_type = qemu
            cpu_mode = custom
            cpu_models = EPYC
            [kvm_ext]
            virt_type = qemu
            cpu_model = EPYC
            vhost_net = require
            ''')
        self.assertEqual(0, self.found('--os-cloud', 'admin')[0])

    def test_options_that_do_not_go_together(self):
        self.write('[kvm_ext]\ncpu_mode = host-model\ncpu_model = EPYC\n')
        result, details = self.one('Options of nova.conf')
        self.assertEqual(1, result)
        self.assertIn('cpu_model', details)

    def test_filter(self):
        self.write('[filter_scheduler]\n'
                   'enabled_filters = ComputeFilter,KVMExtCPUFilter\n')
        result, details = self.one('Filter of nova-scheduler')
        self.assertEqual(2, result)
        self.assertIn('available_filters', details)

    def test_cloud(self):
        self.read['providers'].return_value = (traces.Provider(
            'u1', 'host1', frozenset({'CUSTOM_KVM_EXT_VHOST_NET'})),)
        self.read['flavors'].return_value = tuple(
            traces.Asking(f'f{n}', f'flavor{n}', {'kvm_ext:cpu_mode': 'x'})
            for n in range(12))
        self.read['images'].return_value = (traces.Asking(
            'i1', 'image1', {'kvm_ext_cpu_mode': 'x'}),)
        self.read['servers'].return_value = (traces.Asking(
            UUID, 'web', {'kvm_ext:cpu_mode': 'x'}),)
        code, found = self.found('--os-cloud', 'admin')
        self.assertEqual(1, code)
        self.assertEqual(IN_CLOUD, {
            name for name, (result, _) in found.items() if result})
        self.assertIn(' and 2 more. ', found['Flavors'][1])
        code, said = self.run_check('--os-cloud', 'admin')
        commands = said.partition('What removes them:\n\n')[2].splitlines()
        self.assertEqual(14, len(commands))
        self.assertEqual(
            'openstack flavor unset --property kvm_ext:cpu_mode f11',
            commands[12])

    def test_cloud_that_does_not_answer(self):
        self.read['flavors'].side_effect = errors.InvalidRequest(
            'compute does not answer.', 'Repair it.')
        result, details = self.one('Flavors')
        self.assertEqual(1, result)
        self.assertEqual('Not known: compute does not answer. Repair it.',
                         details)

    def test_state_directory_that_is_not_there(self):
        self.write(f'[DEFAULT]\nstate_path = {self.state}/none\n')
        self.assertEqual(0, self.found('--os-cloud', 'admin')[0])

    def test_wrong_command_line(self):
        with contextlib.redirect_stderr(io.StringIO()):
            self.assertEqual(255, self.run_check('--none')[0])
