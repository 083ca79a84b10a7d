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

import argparse
import io
from unittest import mock

import fixtures
import libvirt
from oslo_config import cfg
from oslotest import base

from nova_kvm_ext.cmd import base as cmd_base
from nova_kvm_ext import errors


class Refused(cmd_base.HostCommand):
    """A command that ends with an error."""

    error: Exception

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        raise self.error


class HostCommandTestCase(base.BaseTestCase):

    def end(self, error: Exception) -> tuple[int, str]:
        command = Refused(mock.Mock(), None)
        command.error = error
        args = command.get_parser('x').parse_args([])
        said = io.StringIO()
        with fixtures.MonkeyPatch('sys.stderr', said):
            return command.run(args), said.getvalue()

    def test_wrong_configuration(self):
        self.assertEqual(
            (3, 'error: It is wrong. Repair it.\n'),
            self.end(errors.InvalidOption('It is wrong.', 'Repair it.')))

    def test_host(self):
        self.assertEqual((3, 'error: No.\n'),
                         self.end(errors.HostError('No.')))

    def test_libvirt(self):
        code, said = self.end(cmd_base.libvirt.libvirtError(
            'Requested operation is not valid: x\nSecond line'))
        self.assertEqual(3, code)
        self.assertEqual(1, said.count('\n'))

    def test_a_defect_is_not_hidden(self):
        self.assertRaises(ZeroDivisionError, self.end, ZeroDivisionError())

    def test_which_libvirt(self):
        command = Refused(mock.Mock(), None)
        parser = command.get_parser('x')
        nova = mock.Mock()
        for option, argument, wanted in (
                ('', [], 'qemu:///system'), ('test:///a', [], 'test:///a'),
                ('test:///a', ['--connect', 'test:///b'], 'test:///b')):
            nova.libvirt.connection_uri = option
            self.assertEqual(
                wanted, command.uri(parser.parse_args(argument), nova))


class ReadConfTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        # The tests' own configuration has been read from elsewhere.
        self.conf = cfg.ConfigOpts()
        self.useFixture(fixtures.MockPatch(
            'nova_kvm_ext.cmd.base.nova_conf.CONF', self.conf))

    def file(self, text: str) -> list[str]:
        path = self.useFixture(fixtures.TempDir()).join('nova.conf')
        with open(path, 'w') as f:
            f.write(text)
        return [path]

    def test_our_options(self):
        found = cmd_base.read_conf(self.file('[kvm_ext]\ncpu_mode=maximum\n'))
        self.assertEqual('maximum', found.kvm_ext.cpu_mode)

    def test_no_such_file(self):
        error = self.assertRaises(errors.InvalidOption, cmd_base.read_conf,
                                  ['/nowhere/nova.conf'])
        self.assertIn('/nowhere/nova.conf', str(error))

    def test_no_configuration(self):
        error = self.assertRaises(errors.InvalidOption, cmd_base.read_conf,
                                  self.file('[kvm_ext\n'))
        self.assertIn('nova.conf', str(error))


class ConnectionTestCase(base.BaseTestCase):

    def test_libvirts_own_test_driver(self):
        with cmd_base.libvirt_connection('test:///default') as found:
            self.assertTrue(found.isAlive())

    def test_refused(self):
        # Every later libvirtError of this thread would have its words.
        self.addCleanup(libvirt.virResetLastError)
        error = self.assertRaises(
            errors.HostError,
            cmd_base.libvirt_connection('nonsense:///').__enter__)
        self.assertIn('libvirt at nonsense:/// cannot be reached',
                      str(error))

    def test_options_without_a_look_at_all_that_is_installed(self):
        with mock.patch('cliff.command.packages_distributions') as look:
            Refused(mock.Mock(), None).get_parser('x')
        look.assert_not_called()
