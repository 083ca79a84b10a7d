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

"""Every command on a page of the documentation can be given.

Commands of this package are parsed by their own parsers; scripts and
environments of tox exist and have the options. A block with a command of
another program says so to its reader: it has the class ``untested``.
"""

import argparse
import configparser
import contextlib
import glob
import io
import os
import re
import shlex
from typing import Any

from oslo_config import cfg
from oslotest import base

from nova_kvm_ext.cmd import main
from nova_kvm_ext.cmd import status

_TOP = os.path.join(os.path.dirname(__file__), *[os.pardir] * 3)
_BLOCK = re.compile(
    r'^( *)\.\. code-block:: console\n((?:\1 +:.*\n)*)'
    r'((?:\1 +\S.*\n| *\n)+)', re.MULTILINE)
# Blocks that are of no language.
_LITERAL = re.compile(
    r'^( *)(?!\.\. )(?:\S.*)?::\n\n((?:\1 +.*\n| *\n)+)', re.MULTILINE)
_PAGES = ('README.rst', 'devstack/README.rst', 'doc/source/**/*.rst')
_UUID = '00000000-0000-4000-8000-000000000001'
# Where the options of a script are that it hands on.
_HANDED_ON = {
    'tools/bench': 'nova_kvm_ext/tests/bench*.py',
    'tools/run-cloud-tests': 'nova_kvm_ext/tests/cloud/__main__.py',
    'tools/run-kvm-tests': 'nova_kvm_ext/tests/kvm/__main__.py',
    'tools/run-layout-tests': 'nova_kvm_ext/tests/layouts/__main__.py',
    'tools/run-libvirt-matrix':
        'nova_kvm_ext/tests/libvirt_matrix/__main__.py',
    'tools/run-in-root': 'nova_kvm_ext/tests/roots.py',
    'tools/next-nova': 'nova_kvm_ext/tests/next_nova.py',
}


def blocks() -> list[tuple[str, bool, list[str]]]:
    """Page, whether it is marked untested, and commands, of each block."""
    found = []
    for pattern in _PAGES:
        for path in glob.glob(os.path.join(_TOP, pattern), recursive=True):
            with open(path) as f:
                text = f.read()
            for _, options, body in _BLOCK.findall(text):
                # One that goes on in the next line is one.
                body = re.sub(r' \\\n *', ' ', body)
                commands = re.findall(r'^ +[$#] (.+)$', body, re.MULTILINE)
                found.append((os.path.relpath(path, _TOP),
                              'untested' in options, commands))
    return found


def _words(command: str) -> list[str]:
    """The words of the first program of a line, without what is said of it."""
    # Two blanks and more stand before what the command does.
    words = shlex.split(re.split(r'  +(?![-\w./]*\\)', command)[0])
    for at, word in enumerate(words):
        if word in ('|', '>', '&&'):
            words = words[:at]
            break
    while words and (words[0] == 'sudo' or re.match(r'[A-Z_]+=', words[0])):
        del words[0]
    return words


class DocumentedCommandsTestCase(base.BaseTestCase):

    def test_there_are_some(self):
        commands = [command for _, _, found in blocks() for command in found]
        self.assertGreater(len(commands), 60)

    def test_commands_can_be_given(self):
        wrong = []
        for page, untested, commands in blocks():
            for command in commands:
                words = _words(command)
                problem = self._problem(words)
                if problem and not (untested and problem == 'unknown'):
                    wrong.append(f'{page}: {command}: {problem}')
        self.assertEqual([], wrong)

    def test_no_commands_in_other_blocks(self):
        """Commands in a plain block are neither tested nor marked."""
        wrong = []
        for pattern in _PAGES:
            for path in glob.glob(os.path.join(_TOP, pattern),
                                  recursive=True):
                with open(path) as f:
                    wrong += [
                        f'{os.path.relpath(path, _TOP)}: {body.strip()[:60]}'
                        for _, body in _LITERAL.findall(f.read())
                        if re.search(r'^ +(?:[#$] \S|(?:openstack|sudo|virsh|'
                                     r'curl|nova-kvm-ext\S*) )', body,
                                     re.MULTILINE)]
        self.assertEqual([], wrong)

    def test_marked_blocks_need_the_mark(self):
        """A mark on commands that are all tested is a wrong one."""
        for page, untested, commands in blocks():
            if untested:
                self.assertIn('unknown', [
                    self._problem(_words(command)) for command in commands],
                    f'{page}: {commands}')

    def _problem(self, words: list[str]) -> str:
        """What is wrong with a command; 'unknown' for other programs."""
        program = os.path.basename(words[0])
        if program == 'nova-kvm-ext':
            return self._ours(words[1:])
        if program == 'nova-kvm-ext-status':
            return self._status(words[1:])
        if words[0].startswith('tools/'):
            return self._script(words)
        if program == 'tox':
            return self._tox(words[1:])
        return 'unknown'

    def _ours(self, words: list[str]) -> str:
        app = main.NovaKVMExt()
        words = [_UUID if word == 'UUID' else word for word in words]
        # Those of all commands stand before.
        while words and words[0].startswith('-'):
            words = words[1:]
        try:
            factory, name, rest = app.command_manager.find_command(words)
        except ValueError as e:
            return str(e)
        return self._parsed(factory(app, None, name).get_parser(name), rest)

    def _status(self, words: list[str]) -> str:
        conf = cfg.ConfigOpts()
        status.register_commands(conf, status.Checks())
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                conf([word for word in words
                      if not word.startswith('--config-file')],
                     default_config_files=[], default_config_dirs=[])
            except SystemExit:
                return said.getvalue()
        return ''

    @staticmethod
    def _parsed(parser: argparse.ArgumentParser, words: list[str]) -> str:
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                parser.parse_args(words)
            except SystemExit:
                return said.getvalue()
        return ''

    @staticmethod
    def _script(words: list[str]) -> str:
        path = os.path.join(_TOP, words[0])
        if not os.access(path, os.X_OK):
            return f'there is no {words[0]}'
        text = ''
        for file in (path, *glob.glob(os.path.join(
                _TOP, _HANDED_ON.get(words[0], words[0])))):
            with open(file) as f:
                text += f.read()
        mine = words[:words.index('--')] if '--' in words else words
        missing = [word for word in mine if word.startswith('--') and
                   word.partition('=')[0] not in text]
        return f'it has no {missing}' if missing else ''

    @staticmethod
    def _tox(words: list[str]) -> str:
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        with open(os.path.join(_TOP, 'tox.ini')) as f:
            parser.read_file(f)
        known: Any = parser.sections()
        environment = words[words.index('-e') + 1]
        return '' if any(
            re.fullmatch(section.removeprefix('testenv:').replace(
                '{', '(').replace('}', ')').replace(',', '|'), environment)
            for section in known) else f'tox has no {environment}'
