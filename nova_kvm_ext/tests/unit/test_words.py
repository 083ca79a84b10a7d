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

"""One fact has one name, wherever it is shown."""

import ast
import dataclasses
import importlib
from importlib import metadata
import re

from oslotest import base

from nova_kvm_ext.cmd import agent as agent_commands
from nova_kvm_ext.cmd import guests as guest_commands
from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import client
from nova_kvm_ext.guests import model
from nova_kvm_ext.guests import verdicts
from nova_kvm_ext.tests.unit import test_layering
from nova_kvm_ext import words

OTHER_NAMES = {
    'domain': 'name', 'instance': 'name', 'instance_name': 'name',
    'domain_name': 'name', 'vm': 'name', 'guest_name': 'name',
    'instance_uuid': 'uuid', 'domain_uuid': 'uuid', 'id': 'uuid',
    'mac_address': 'mac', 'hostname': 'host_name', 'agent_state': 'state',
    'status': 'state', 'frozen_at': 'frozen_since', 'error_text': 'problem',
    'vhost_used': 'vhost_net', 'virt': 'virt_type', 'cpu_type': 'cpu_model'}
"""Names that a column could have been given, and the one that it has."""


def commands():
    for entry in metadata.distribution('nova-kvm-ext').entry_points.select(
            group='nova_kvm_ext.commands'):
        module, _, name = entry.value.partition(':')
        yield entry.name, getattr(importlib.import_module(module), name)


class WordsTestCase(base.BaseTestCase):

    def test_a_column_has_the_name_that_the_fact_has_elsewhere(self):
        seen = 0
        for name, command in commands():
            seen += 1
            for column in getattr(command, 'COLUMNS', ()):
                if (name, column) == ('guest_boot', 'domain'):
                    # Not its name: all that its XML says.
                    continue
                self.assertNotIn(column, OTHER_NAMES, f'{name} has the column '
                                 f'{column}: call it '
                                 f'{OTHER_NAMES.get(column)}')
                self.assertTrue(re.fullmatch(r'[a-z][a-z_0-9]*', column),
                                column)
        self.assertGreater(seen, 15)

    def test_yes_no_and_not_known_are_written_once(self):
        """No module has a table of its own that says yes, no and unknown."""
        for room, path in test_layering.modules().items():
            if room == 'words':
                continue
            with open(path) as f:
                tree = ast.parse(f.read())
            for node in ast.walk(tree):
                if isinstance(node, ast.Dict):
                    keys = {key.value for key in node.keys
                            if isinstance(key, ast.Constant)}
                    values = {value.value for value in node.values
                              if isinstance(value, ast.Constant)}
                    self.assertFalse(
                        {'yes', 'no'} <= values and {True, False} <= keys and
                        None in keys, f'{room}:{node.lineno}: '
                        f'take words.ANSWERS')

    def test_states_of_an_agent_are_one_table(self):
        self.assertIs(words.AgentState, client.AgentState)
        states = {state.value for state in words.AgentState}
        for channel in None, False, True:
            found = verdicts.judge(
                model.Guest('uuid', 'name', channel=channel), model.Today())
            self.assertIn(found.agent, states)
            self.assertIn(found.agent, guest_commands._AGENT)
        for state in states:
            self.assertIn(f'"{state}"', agent_commands.List.__doc__)

    def test_diagnostics_have_the_columns_of_agent_show(self):
        facts = {field.name for field in dataclasses.fields(client.AgentFacts)}
        self.assertEqual(facts | {'name', 'uuid'},
                         set(agent_commands.Show.COLUMNS))
        self.assertIn('frozen_since', guest_commands.List.COLUMNS)

    def test_moments(self):
        self.assertEqual('2026-11-27T02:30:00Z', words.when(1795746600))
        self.assertEqual(
            '2026-11-27T02:30:00Z', words.when(
                words.datetime.datetime.fromisoformat(
                    '2026-11-27T03:30:00+01:00')))

    def test_no_directory_of_the_host(self):
        for said, shown in (
                ('Failed to connect socket to \'/var/run/libvirt/sock\': No',
                 'Failed to connect socket to \'sock\': No'),
                ('[Errno 28] No space left on device: \'/var/lib/nova/a/b\'',
                 '[Errno 28] No space left on device: \'b\''),
                ('https://docs.openstack.org/nova/', None),
                ("qemu-img: Could not open '/var/lib/nova/_base/abc.part'",
                 "qemu-img: Could not open 'abc.part'"),
                ('and/or https://a.b/c 1/2', None)):
            self.assertEqual(shown or said, errors.without_paths(said))
