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
import contextlib
import io
from typing import Any
from unittest import mock

from cliff import lister
from cliff import show
import fixtures
from oslotest import base

from nova_kvm_ext.cmd import base as cmd_base
from nova_kvm_ext.cmd import columns

_LONG = 'a sentence that is longer than the terminal is wide ' * 3


def rows() -> list[tuple[Any, ...]]:
    return [
        ('one', columns.Names([f'feature-{n:02}' for n in range(30)]),
         columns.Shown([{'x': 1, 'y': ['a', 'b']}, {'x': None}], 'some facts'),
         columns.Text(_LONG), None, 'x'),
        ('two', columns.Names([]), columns.Shown([], ''), columns.Text(None),
         True, 'x')]


class ManyOfThem(cmd_base.Command, lister.Lister):

    COLUMNS = ('name', 'names', 'facts', 'why', 'nothing', 'aside')
    ASIDE = ('aside',)
    EMPTY = 'Nobody is here.'
    empty = False
    done = False

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        self.done = True
        return self.COLUMNS, [] if self.empty else rows()


class OutputTestCase(base.BaseTestCase):

    def run_command(self, *arguments: str, command: type = ManyOfThem
                    ) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        self.command = command(mock.Mock(stdout=out), None)
        parser = self.command.get_parser('x')
        with contextlib.redirect_stderr(err):
            code = self.command.run(parser.parse_args(arguments))
        return code, out.getvalue(), err.getvalue()

    def test_at_80_columns(self):
        for columns_there in ('80', '100', '60'):
            self.useFixture(fixtures.EnvironmentVariable(
                'COLUMNS', columns_there))
            _, out, _ = self.run_command()
            self.assertLessEqual(max(map(len, out.splitlines())),
                                 int(columns_there))
            self.assertIn('feature-07', out)
            self.assertNotIn('feature-08', out)
            self.assertNotIn('None', out)
            self.assertNotIn('aside', out)

    def test_other_widths(self):
        for wanted, least, most in (('0', 160, 999), ('70', 60, 70)):
            _, out, _ = self.run_command('--max-width', wanted)
            width = max(map(len, out.splitlines()))
            self.assertTrue(least <= width <= most, out)

    def test_one_at_80_columns(self):
        class One(cmd_base.Command, show.ShowOne):
            COLUMNS = ManyOfThem.COLUMNS

            def take_action(self, parsed_args):
                return self.COLUMNS, (_LONG, *rows()[0][1:])

        self.useFixture(fixtures.EnvironmentVariable('COLUMNS', '80'))
        _, out, _ = self.run_command(command=One)
        self.assertEqual(80, max(map(len, out.splitlines())))

    def test_the_same_names_everywhere(self):
        for form in ('table', 'csv', 'json', 'yaml'):
            _, out, _ = self.run_command('-f', form, '-c', 'aside',
                                         '-c', 'Names')
            self.assertIn('aside', out)
            self.assertIn('names', out)
            self.assertNotIn('facts', out)

    def test_no_lists_of_python(self):
        for form in ('value', 'csv'):
            code, out, _ = self.run_command('-f', form)
            self.assertEqual(0, code)
            self.assertIn('feature-00,feature-01', out)
            self.assertIn('x=1,y=a,b;x=', out)
            for sign in ('[', ']', '{', '}', 'None', "'"):
                self.assertNotIn(sign, out)
            self.assertEqual(2 if form == 'value' else 3,
                             len(out.splitlines()))

    def test_unknown_columns(self):
        for option in ('-c', '--sort-column'):
            code, out, err = self.run_command('-c', 'name', option, 'nmae')
            self.assertEqual((3, ''), (code, out))
            self.assertIn(f'{option} nmae: there is no such column', err)
            self.assertIn('The columns are name, names, ', err)
            self.assertFalse(self.command.done)

    def test_sorted_by_what_cannot_be_compared(self):
        code, out, _ = self.run_command('-f', 'value', '-c', 'name',
                                        '--sort-column', 'facts')
        self.assertEqual((0, 'two\none\n'), (code, out))

    def test_empty(self):
        for form in ('table', 'json', 'value'):
            with mock.patch.object(ManyOfThem, 'empty', True):
                code, out, err = self.run_command('-f', form)
            self.assertEqual((0, 'Nobody is here.\n'), (code, err))
            self.assertEqual('[]' if form == 'json' else '', out.strip())
