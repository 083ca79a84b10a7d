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

"""Each warning has a code, each code is of the table, and none is lost."""

import ast
import collections
import re
from typing import TypeGuard

from oslotest import base

from nova_kvm_ext import log_codes
from nova_kvm_ext.tests.unit import test_layering

LEVELS = {'warn', 'warning', 'error', 'exception', 'critical', 'fatal', 'log'}
CODE = re.compile(r'KVML[0-9]{3}')

# Lines of the host check, which have the code of the check.
OF_CHECKS = {('host.hooks', '_sentence(result)'), ('host.hooks', 'fault')}

HOW = ("Begin the message with a code of nova_kvm_ext/log_codes.py: "
       "LOG.warning('KVML403 ...'), and give a new code a row there.")


def _loud(node: ast.AST) -> TypeGuard[ast.Attribute]:
    """Whether that is LOG.warning or the like."""
    return (isinstance(node, ast.Attribute) and node.attr in LEVELS and
            isinstance(node.value, ast.Name) and
            node.value.id in ('LOG', 'logging'))


def _text(node: ast.AST) -> str:
    """The beginning of a message, as it is written."""
    if isinstance(node, ast.JoinedStr):
        node = node.values[0]
    return str(node.value) if isinstance(node, ast.Constant) else ''


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and
            any(_loud(part) for part in ast.walk(node.func))]


def faults(room: str, source: str) -> tuple[list[str], list[str]]:
    """What is wrong with a module's log lines, and the codes that they have.

    :param room: its name
    :param source: its text
    """
    tree = ast.parse(source)
    wrong, codes = [], []
    found = calls(tree)
    called = {id(part) for call in found for part in ast.walk(call.func)}
    for node in ast.walk(tree):
        if _loud(node) and id(node) not in called:
            wrong.append(f'{room}:{node.lineno}: call {ast.unparse(node)} '
                         f'where it is named')
    for call in found:
        if any(isinstance(part, ast.Attribute) and part.attr == 'log'
               for part in ast.walk(call.func)):
            wrong.append(f'{room}:{call.lineno}: LOG.log hides its level')
        text = _text(call.args[0]) if call.args else ''
        code = CODE.match(text)
        if code and text[code.end():code.end() + 1] == ' ':
            codes.append(code[0])
        elif not (text == '%s' and len(call.args) == 2 and
                  (room, ast.unparse(call.args[1])) in OF_CHECKS):
            wrong.append(f'{room}:{call.lineno}: {HOW}')
    if found and 'LOG = log.getLogger(__name__)' not in source:
        wrong.append(f'{room}: take the logger of nova_kvm_ext.log, which '
                     f'does not repeat itself')
    return wrong, codes


class LogCodesTestCase(base.BaseTestCase):

    def test_what_is_said_for_each_request(self):
        """Snapshots and migrations are asked for; all else goes on."""
        self.assertEqual(
            {'KVML402', 'KVML403', 'KVML404', 'KVML702', 'KVML703',
             'KVML704', 'KVML705'},
            {row.code for row in log_codes.TABLE if row.each_request})

    def test_each_warning_has_a_code_and_each_code_a_warning(self):
        wrong, used = [], set()
        for room, path in sorted(test_layering.modules().items()):
            with open(path) as f:
                bad, codes = faults(room, f.read())
            wrong += bad
            used |= set(codes)
        self.assertEqual([], wrong)
        known = {row.code for row in log_codes.TABLE}
        self.assertEqual(set(), used - known, 'not in the table')
        self.assertEqual(set(), known - used, 'in the table, never said')

    def test_codes_are_unique_and_in_order(self):
        codes = [row.code for row in log_codes.TABLE]
        self.assertEqual(sorted(set(codes)), codes)
        for code in codes:
            self.assertTrue(CODE.fullmatch(code), code)

    def test_each_row_says_all(self):
        seen = collections.Counter(
            row.meaning for row in log_codes.TABLE)
        for row in log_codes.TABLE:
            self.assertEqual(1, seen[row.meaning], row.code)
            self.assertTrue(row.who, row.code)
            for text in row.meaning, row.remedy:
                self.assertTrue(text.endswith(('.', '?')), row.code)

    def test_what_the_test_finds(self):
        def found(line, head='LOG = log.getLogger(__name__)\n'):
            return faults('x', head + line)

        self.assertEqual(([], ['KVML101']), found("LOG.error('KVML101 a')"))
        self.assertEqual(([], ['KVML101']),
                         found("(LOG.debug if x else LOG.warning)("
                               "'KVML101 %s', 'a')"))
        self.assertEqual(([], []), found("LOG.info('a')"))
        for line in ("LOG.warning('a')", "LOG.exception('%s', e)",
                     "LOG.error(f'{x} KVML101')", "LOG.error(text)",
                     "LOG.warning('KVML1012 a')", "logging.warning('a')",
                     "say = LOG.warning", "LOG.log(level, 'KVML101 a')",
                     "LOG.critical()"):
            wrong, codes = found(line)
            self.assertTrue(wrong, line)
        wrong, codes = found("LOG.error('KVML101 a')",
                             'LOG = logging.getLogger(__name__)\n')
        self.assertIn('repeat', wrong[0])
