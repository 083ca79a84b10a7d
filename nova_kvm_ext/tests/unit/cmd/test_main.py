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

import importlib
import inspect
import io
import pathlib
import re
import tomllib
from typing import Any

from cliff import display
import fixtures
from oslotest import base

from nova_kvm_ext.cmd import base as cmd_base
from nova_kvm_ext.cmd import guest
from nova_kvm_ext.cmd import main
from nova_kvm_ext.host import door
from nova_kvm_ext.host import model


class MainTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.install = self.useFixture(fixtures.MockPatchObject(
            door, 'read_install', return_value=model.InstallFacts(
                ('/x/nova/virt',), '/x/nova/virt/kvm_ext', None))).mock
        self.boot = self.useFixture(fixtures.MockPatchObject(
            guest.Boot, 'run', return_value=4)).mock

        # Would add a handler to the root logger of this process for good.
        self.useFixture(fixtures.MockPatchObject(
            main.NovaKVMExt, 'configure_logging'))

    def run_main(self, *argv: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        out, err = io.StringIO(), io.StringIO()
        with fixtures.MonkeyPatch('sys.stdout', out), \
                fixtures.MonkeyPatch('sys.stderr', err):
            try:
                code = main.main(list(argv))
            except SystemExit as e:
                code = int(e.code or 0)
        return code, out.getvalue(), err.getvalue()

    def test_the_commands_exit_code(self):
        code, _, err = self.run_main('guest', 'boot')
        self.assertEqual(4, code)
        self.boot.assert_called_once()
        self.assertNotIn('warning', err)

    def test_arguments_of_the_process(self):
        self.useFixture(fixtures.MonkeyPatch(
            'sys.argv', ['nova-kvm-ext', 'guest', 'boot']))
        self.assertEqual(4, main.main())

    def test_an_installation_that_nova_does_not_find(self):
        self.install.return_value = model.InstallFacts(
            ('/usr/lib/python3/dist-packages/nova/virt',),
            '/opt/venv/nova/virt/kvm_ext', 'nova.virt has no module kvm_ext')
        code, out, err = self.run_main('guest', 'boot')
        self.assertEqual(4, code)
        self.assertTrue(err.startswith(
            'warning: compute_driver = kvm_ext.KVMDriver cannot load'), err)
        self.assertEqual('', out)
        self.boot.assert_called_once()

    def test_help(self):
        code, out, _ = self.run_main('--help')
        self.assertEqual(0, code)
        self.assertRegex(out, r'guest boot\s+Boot a test guest')
        self.boot.assert_not_called()

    def test_version(self):
        code, out, _ = self.run_main('--version')
        self.assertEqual(0, code)
        self.assertRegex(out, r' [0-9]+\.[0-9]+')

    def test_unknown(self):
        for argv in (('guest', 'fly'), ('fly',),
                     ('guest', 'boot', '--fly'), ('--fly',)):
            code, out, err = self.run_main(*argv)
            self.assertEqual(3, code, str(argv))
            self.assertIn('fly', out + err)
        self.boot.assert_not_called()

    def test_help_of_what_there_is_not(self):
        self.assertEqual(3, self.run_main('help', 'fly')[0])


class CommandsTestCase(base.BaseTestCase):
    """What holds for each command that there is."""

    def commands(self) -> dict[str, Any]:
        top = pathlib.Path(main.__file__).parents[2]
        with open(top / 'pyproject.toml', 'rb') as f:
            entries = tomllib.load(f)['project']['entry-points'][
                'nova_kvm_ext.commands']
        found = {}
        for name, place in entries.items():
            module, _, cls = place.partition(':')
            found[name] = getattr(importlib.import_module(module), cls)
        return found

    def test_each_tells_its_exit_codes(self):
        for name, command in self.commands().items():
            text = ' '.join((inspect.getdoc(command) or '').split())
            _, _, codes = text.partition('Exit codes: ')
            self.assertTrue(codes.startswith('0 '), name)
            # A wrong command line is no finding.
            self.assertRegex(codes, r'[,;] 3 ', name)
            self.assertNotRegex(codes, r'[12] (a )?wrong', name)
            self.assertLessEqual(
                set(re.findall(r'(?:^|, )([0-9])(?= )', codes)),
                set('012345'), name)

    def test_each_names_its_columns(self):
        for name, command in self.commands().items():
            self.assertTrue(issubclass(command, cmd_base.Command), name)
            if issubclass(command, display.DisplayCommandBase):
                self.assertTrue(command.COLUMNS, name)
                known = set(command.COLUMNS) | set(
                    getattr(command, '_COLUMNS_FROM', ()))
                self.assertLessEqual(set(command.ASIDE), known, name)
