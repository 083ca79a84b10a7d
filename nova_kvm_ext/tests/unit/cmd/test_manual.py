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

"""The man pages and the completion say what the commands take."""

import argparse
from importlib import metadata
import pathlib
import re
import shlex
import subprocess
import tempfile

from oslotest import base

from nova_kvm_ext.cmd import manual
from nova_kvm_ext import exit_codes

_COMPLETE = """
source {script}
COMP_WORDS=({words} {start})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
{function} {program} {start} ''
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def _text(roff: str) -> str:
    """A man page without what roff needs."""
    return re.sub(r'\\f[BIPR]', '', roff).replace(r'\-', '-').replace(
        r'\(aq', "'")


class ManPagesTestCase(base.BaseTestCase):

    pages: dict[str, str]
    commands: manual.Commands

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.pages = manual.man_pages()
        _, cls.commands = manual.commands()

    def test_each_command_has_a_page(self):
        entries = metadata.distribution('nova-kvm-ext').entry_points.select(
            group='nova_kvm_ext.commands')
        self.assertEqual(
            {'nova-kvm-ext.1', 'nova-kvm-ext-status.1'} |
            {f'nova-kvm-ext-{entry.name.replace("_", "-")}.1'
             for entry in entries}, set(self.pages))
        self.assertIn('nova-kvm-ext-guest-boot.1', self.pages)

    def test_pages_have_every_option(self):
        for words, parser in self.commands.items():
            name = f'{"-".join(("nova-kvm-ext", *words))}.1'
            if name not in self.pages:
                self.assertIn(words, [('help',), ('complete',)])
                continue
            text = _text(self.pages[name])
            for action in parser._actions:
                if action.help != argparse.SUPPRESS:
                    for option in action.option_strings:
                        self.assertIn(option, text, name)

    def test_page(self):
        text = _text(self.pages['nova-kvm-ext-guest-boot.1'])
        self.assertIn('.TH "NOVA-KVM-EXT-GUEST-BOOT" "1"', text)
        self.assertIn('nova-kvm-ext guest boot [-h]', text)
        self.assertIn('--timeout SECONDS', text)
        self.assertIn('nova-kvm-ext(1)', text)
        # What a program would take for markup, or for a format.
        self.assertNotIn('%(', text)
        self.assertNotIn('**', text)

    def test_overview(self):
        text = _text(self.pages['nova-kvm-ext.1'])
        for words in self.commands:
            self.assertIn('\n.B ' + ' '.join(words), text)
        for code in exit_codes.ExitCode:
            self.assertIn(f'\n.B {code.value}\n', text)

    def test_status(self):
        text = _text(self.pages['nova-kvm-ext-status.1'])
        self.assertIn('upgrade check', text)
        self.assertIn('--config-file PATH', text)

    def test_man_reads_them(self):
        # groff, where it is, has no complaint.
        with tempfile.TemporaryDirectory() as directory:
            for name, roff in self.pages.items():
                path = pathlib.Path(directory, name)
                path.write_text(roff)
                try:
                    done = subprocess.run(
                        ['groff', '-man', '-ww', '-z', '-Tutf8', path],
                        capture_output=True, text=True)
                except FileNotFoundError:
                    self.skipTest('there is no groff here')
                self.assertEqual((0, ''), (done.returncode, done.stderr),
                                 name)


class CompletionTestCase(base.BaseTestCase):

    scripts: dict[str, pathlib.Path]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.scripts = {}
        for program, script in manual.completions('bash').items():
            cls.scripts[program] = pathlib.Path(directory.name, program)
            cls.scripts[program].write_text(script)

    def _complete(self, words: str, start: str) -> set[str]:
        program = words.split()[0]
        script = _COMPLETE.format(
            script=shlex.quote(str(self.scripts[program])), words=words,
            start=shlex.quote(start), program=program,
            function=f'_shtab_{program.replace("-", "_")}')
        done = subprocess.run(['bash', '--norc', '-c', script], text=True,
                              capture_output=True)
        self.assertEqual('', done.stderr)
        return set(done.stdout.split())

    def test_commands(self):
        self.assertEqual({'guest'}, self._complete('nova-kvm-ext', 'gu'))
        self.assertIn('boot', self._complete('nova-kvm-ext guest', ''))
        self.assertEqual({'list'},
                         self._complete('nova-kvm-ext cpu model', 'l'))

    def test_options(self):
        self.assertEqual({'--image'},
                         self._complete('nova-kvm-ext guest boot', '--im'))
        self.assertEqual({'--minimum'}, self._complete(
            'nova-kvm-ext agent fstrim', '--mi'))

    def test_values(self):
        self.assertEqual({'json'}, self._complete(
            'nova-kvm-ext host check -f', 'j'))

    def test_files(self):
        known = self.scripts['nova-kvm-ext']
        self.assertIn(str(known), self._complete(
            'nova-kvm-ext guest boot --image', str(known)[:-3]))

    def test_status(self):
        self.assertEqual({'upgrade'},
                         self._complete('nova-kvm-ext-status', 'u'))
        self.assertIn('check',
                      self._complete('nova-kvm-ext-status upgrade', ''))

    def test_zsh(self):
        made = manual.completions('zsh')
        for program, script in made.items():
            self.assertTrue(script.startswith(f'#compdef {program}\n'))
        script = made['nova-kvm-ext']
        for words in manual.commands()[1]:
            self.assertIn(f"{words[-1]}:'", script)
            # A function's name has no hyphens.
            name = '_'.join(words).replace('-', '_')
            self.assertIn(f'_{name}_options', script)


class CommandTestCase(base.BaseTestCase):

    def test_writes_files(self):
        with tempfile.TemporaryDirectory() as directory:
            self.assertEqual(0, manual.main([directory]))
            found = {str(path.relative_to(directory))
                     for path in pathlib.Path(directory).glob('*/*')}
        for name in ('man1/nova-kvm-ext.1', 'man1/nova-kvm-ext-host-check.1',
                     'bash-completion/nova-kvm-ext', 'zsh/_nova-kvm-ext',
                     'bash-completion/nova-kvm-ext-status',
                     'zsh/_nova-kvm-ext-status'):
            self.assertIn(name, found)
