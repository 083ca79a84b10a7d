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

"""Man pages and shell completion, made from the parsers of the commands.

``python3 -m nova_kvm_ext.cmd.manual DIRECTORY`` writes::

    DIRECTORY/man1/nova-kvm-ext.1                one page for each command
    DIRECTORY/bash-completion/nova-kvm-ext       completion of bash
    DIRECTORY/zsh/_nova-kvm-ext                  completion of zsh

and the same for nova-kvm-ext-status. Packages are built with it; nova-compute
never runs it. It needs docutils and shtab, which no other module needs.
"""

import argparse
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import inspect
import io
import os
import pathlib
import re
import sys
from typing import Any
from typing import cast

from docutils import core
from oslo_config import cfg
import shtab

from nova_kvm_ext.cmd import main as ours
from nova_kvm_ext.cmd import status
from nova_kvm_ext.exit_codes import ExitCode

_NAME = 'nova-kvm-ext'
_STATUS = 'nova-kvm-ext-status'

EXIT_STATUS = {
    ExitCode.PASS: 'Done, and no problem was found.',
    ExitCode.WARN: 'Done, and something needs attention. Nothing fails.',
    ExitCode.FAIL: 'A check failed, or the request was refused.',
    ExitCode.UNKNOWN: 'Nothing was checked, or the answer is not known: the '
                      'command line or nova.conf is wrong, or this host lacks '
                      'something. Standard error says what.',
    ExitCode.NO_BOOT: 'Only **guest boot**: the image or the guest was '
                      'refused, or the guest was not up in time.',
    ExitCode.LEFTOVERS: 'Only **guest boot**: no problem was found, but '
                        'something could not be removed.',
}
"""What each exit code means, as reStructuredText."""

STATUS_EXIT = (
    (0, 'There is nothing to do.'),
    (1, 'Something needs attention.'),
    (2, 'Something prevents the change.'),
    (255, 'The check itself failed.'))
"""Those of oslo.upgradecheck, which nova-kvm-ext-status has."""

_FILES = (
    ('/etc/nova/nova.conf, /etc/nova/nova-compute.conf',
     'Where no **--config-file** is given, the commands read the files of '
     'options that nova-compute of this host reads.'),
    ('/var/cache/nova-kvm-ext',
     'The test guest of **guest boot**. It can be deleted at any time.'),
)

# What an argument is, by the name that the help has for it.
_COMPLETE = {'FILE': shtab.FILE, 'PATH': shtab.FILE, 'DIR': shtab.DIRECTORY,
             'DIRECTORY': shtab.DIRECTORY}

Commands = dict[tuple[str, ...], argparse.ArgumentParser]
"""The parser of each command, by its words after the program's name."""


def commands() -> tuple[argparse.ArgumentParser, Commands]:
    """The parser of nova-kvm-ext's own options, and those of its commands."""
    app = ours.NovaKVMExt()
    found = {}
    for name, entry in sorted(app.command_manager):
        command = entry.load()(app, None, name)
        parser = command.get_parser(f'{_NAME} {name}')
        if not parser.description:
            parser.description = inspect.getdoc(type(command))
        found[tuple(name.split())] = parser
    app.parser.prog = _NAME
    return app.parser, found


def status_commands() -> tuple[argparse.ArgumentParser, Commands]:
    """The same for nova-kvm-ext-status, which oslo.config parses."""
    # Not Nova's own, which other code of this process may use.
    parsing = cfg.ConfigOpts()
    status.register_commands(parsing, status.Checks())
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(
            SystemExit):
        parsing(['--help'], project='nova', prog=_STATUS)
    # oslo.config has no other way to the parser.
    parser = cast(argparse.ArgumentParser, parsing._oparser)
    found = dict(_leaves(parser, ()))
    for command in found.values():
        for action in _words(command):
            action.choices = [action.dest]
    return parser, found


def _words(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What oslo.upgradecheck takes for arguments: the "check" of a command."""
    return [action for action in parser._actions
            if not action.option_strings and not action.help]


def _leaves(parser: argparse.ArgumentParser, words: tuple[str, ...]
            ) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    parts = [action for action in parser._actions
             if isinstance(action, argparse._SubParsersAction)]
    for action in parts:
        for name, child in action.choices.items():
            yield from _leaves(child, (*words, name))
    if not parts:
        yield words, parser


# Man pages


def _first_line(parser: argparse.ArgumentParser) -> str:
    return (parser.description or '').strip().partition('\n')[0].rstrip('.')


def _page(name: str, summary: str, sections: Iterable[tuple[str, str]]) -> str:
    """A man page as roff.

    :param sections: heading and reStructuredText of each
    """
    version = ours.metadata.version(_NAME)
    lines = ['=' * len(name), name, '=' * len(name), '',
             '-' * len(summary), summary, '-' * len(summary), '',
             ':Manual section: 1', ':Manual group: nova-kvm-ext',
             f':Version: nova-kvm-ext {version}', '']
    for heading, text in sections:
        if text.strip():
            lines += [heading, '=' * len(heading), '', text, '']
    return core.publish_string(
        '\n'.join(lines), writer_name='manpage', settings_overrides={
            'output_encoding': 'unicode', 'halt_level': 2,
            'report_level': 2, 'file_insertion_enabled': False,
            'raw_enabled': False, '_disable_config': True})


def _escaped(text: str) -> str:
    return re.sub(r'([\\*`|_])', r'\\\1', text)


def _term(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """An option with its argument, as the help has it."""
    formatter = parser._get_formatter()
    if not action.option_strings:
        return ', '.join(
            f'*{_escaped(name)}*' for name in
            formatter._metavar_formatter(action, action.dest)(1))
    argument = ''
    if action.nargs != 0:
        default = formatter._get_default_metavar_for_optional(action)
        argument = f' *{_escaped(formatter._format_args(action, default))}*'
    return ', '.join(f'**{_escaped(option)}**' for option in
                     action.option_strings) + argument


def _defined(items: Iterable[tuple[str, str]]) -> list[str]:
    """The lines of a list of terms and what they mean."""
    return [line for term, meaning in items
            for line in (term, _indented(meaning), '')]


def _indented(text: str) -> str:
    return '\n'.join(f'    {line}'.rstrip() for line in text.splitlines())


def _options(parser: argparse.ArgumentParser) -> str:
    """All options, in the groups of the help."""
    parts = []
    for group in parser._action_groups:
        terms = []
        for action in group._group_actions:
            if action.help and action.help != argparse.SUPPRESS:
                terms += [_term(parser, action), _indented(
                    parser._get_formatter()._expand_help(action)), '']
        if terms:
            parts += [f'**{group.title.capitalize()}**' if group.title else '',
                      '', *([group.description, ''] if group.description
                            else []), *terms]
    return '\n'.join(parts)


def _usage(parser: argparse.ArgumentParser) -> str:
    usage = parser.format_usage().partition(':')[2].strip()
    # Each line below the first begins where the first has its options.
    return '::\n\n' + _indented(inspect.cleandoc(usage))


def _see_also(words: tuple[str, ...], all_of_them: Iterable[tuple[str, ...]]
              ) -> str:
    pages = ['nova-kvm-ext'] + [
        '-'.join((_NAME, *other)) for other in all_of_them
        if words[0] == other[0] and other != words]
    return ', '.join(f'**{page}**\\ (1)' for page in pages)


def _overview(parser: argparse.ArgumentParser, found: Commands,
              pages: Iterable[tuple[str, ...]]) -> str:
    pages = set(pages)
    listed = []
    for words, command in found.items():
        listed += [f'**{" ".join(words)}**', _indented(
            f'{_first_line(command)}.' + (
                f' See **{"-".join((_NAME, *words))}**\\ (1).'
                if words in pages else '')), '']
    codes = [*_defined((str(code.value), meaning)
                       for code, meaning in EXIT_STATUS.items()),
             *_defined([('128 + N', 'Signal N ended the command.')])]
    files = _defined((f'*{name}*', meaning) for name, meaning in _FILES)
    return _page(_NAME, _first_line(parser), [
        ('SYNOPSIS', f'**{_NAME}** [*option*...] *command* [*argument*...]'),
        ('DESCRIPTION', 'nova-kvm-ext runs the code of the compute driver '
         '**kvm_ext.KVMDriver** of OpenStack Nova on a host, without a cloud.'
         '\n\nWithout a command it reads commands from standard input.'),
        ('COMMANDS', '\n'.join(listed)), ('OPTIONS', _options(parser)),
        ('EXIT STATUS', '\n'.join(codes)), ('FILES', '\n'.join(files)),
        ('SEE ALSO', f'**{_STATUS}**\\ (1), **nova-compute**\\ (1)')])


def _status_page(parser: argparse.ArgumentParser, found: Commands) -> str:
    listed = []
    for words, command in found.items():
        name = ' '.join([*words, *(action.dest for action in _words(command))])
        listed += [f'**{name}**', _indented(_options(command) or '-'), '']
    return _page(_STATUS, 'Find what to correct before a host changes', [
        ('SYNOPSIS', f'**{_STATUS}** [*option*...] *command* [*argument*...]'),
        ('DESCRIPTION', '**upgrade check** checks a host before an upgrade: '
         'run it with the new release installed and before its nova-compute '
         'is started, as **nova-status upgrade check**. **rollback check** '
         'finds what has to be done on the way back to LibvirtDriver.'),
        ('COMMANDS', '\n'.join(listed)), ('OPTIONS', _options(parser)),
        ('EXIT STATUS', '\n'.join(_defined(
            (str(code), meaning) for code, meaning in STATUS_EXIT))),
        ('SEE ALSO', f'**{_NAME}**\\ (1), **nova-status**\\ (1)')])


def man_pages() -> dict[str, str]:
    """The man pages: roff by the name of the file."""
    parser, found = commands()
    # cliff brings a few of its own: "help" and "complete".
    pages = [words for words, command in found.items()
             if words not in (('help',), ('complete',))]
    made = {f'{_NAME}.1': _overview(parser, found, pages),
            f'{_STATUS}.1': _status_page(*status_commands())}
    for words in pages:
        command = found[words]
        _, _, rest = (command.description or '').strip().partition('\n')
        name = '-'.join((_NAME, *words))
        made[f'{name}.1'] = _page(name, _first_line(command), [
            ('SYNOPSIS', _usage(command)), ('DESCRIPTION', rest.strip()),
            ('OPTIONS', _options(command)), ('NOTES', command.epilog or ''),
            ('SEE ALSO', _see_also(words, pages))])
    return made


# Completion


def _complete(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser, whose files and directories shtab knows as such."""
    for action in parser._actions:
        kind = _COMPLETE.get(str(action.metavar or '').strip('<>').upper())
        if kind and not action.choices:
            action.complete = kind  # type: ignore[attr-defined]
    return parser


def as_tree(parser: argparse.ArgumentParser, found: Commands
            ) -> argparse.ArgumentParser:
    """The parser of a program, with those of its commands as subparsers.

    :param parser: gets the subparsers
    """
    # Those of oslo.config have no help, without which shtab does not see them.
    for action in list(parser._actions):
        if isinstance(action, argparse._SubParsersAction):
            parser._actions.remove(action)
            for group in parser._action_groups:
                if action in group._group_actions:
                    group._group_actions.remove(action)
            parser._subparsers = None

    def branch(ready: argparse.ArgumentParser | None = None, **kwargs: Any
               ) -> argparse.ArgumentParser:
        return ready or argparse.ArgumentParser(**kwargs)

    def under(parent: argparse.ArgumentParser) -> Any:
        return parent.add_subparsers(parser_class=cast(Any, branch))

    places: dict[tuple[str, ...], Any] = {(): under(_complete(parser))}
    for words, command in found.items():
        for depth in range(1, len(words)):
            if words[:depth] not in places:
                places[words[:depth]] = under(
                    places[words[:depth - 1]].add_parser(
                        words[depth - 1], help=f'{words[depth - 1]} ...'))
        places[words[:-1]].add_parser(
            words[-1], help=_first_line(command) or ' '.join(words),
            ready=_complete(command))
    return parser


def completions(shell: str) -> dict[str, str]:
    """Completion of both programs: the script by the program's name.

    :param shell: ``bash`` or ``zsh``
    """
    made = {}
    for parser, found in (commands(), status_commands()):
        made[parser.prog] = shtab.complete(as_tree(parser, found), shell)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python3 -m nova_kvm_ext.cmd.manual',
        description='Write the man pages and the completion of bash and zsh.')
    parser.add_argument('directory', type=pathlib.Path, metavar='DIRECTORY')
    directory = parser.parse_args(argv).directory
    # How wide argparse writes.
    os.environ['COLUMNS'] = '78'
    files = {f'man1/{name}': text for name, text in man_pages().items()}
    for program, script in completions('bash').items():
        files[f'bash-completion/{program}'] = script
    for program, script in completions('zsh').items():
        files[f'zsh/_{program}'] = script
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
