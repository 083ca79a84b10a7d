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

"""The base of all commands that read this host.

Reads the files that nova-compute reads, connects to libvirt, prints what a
command found, and turns an error into one line and an exit code. Never starts
Nova: ``nova.conf`` is only the options, without the services.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import shutil
import sys
import time
from typing import Any
from typing import ClassVar

from cliff import command
from cliff import lister

from nova_kvm_ext.cmd import columns
from nova_kvm_ext.cmd import lazy
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode

with lazy.imports():
    import libvirt
    from nova import conf as nova_conf
    from oslo_config import cfg

    from nova_kvm_ext import conf
    from nova_kvm_ext.host import configuration
    from nova_kvm_ext.host import few_options

_EVERY_SECONDS = 0.2

LIBVIRT_URI = 'qemu:///system'
"""What Nova connects to for kvm and qemu where connection_uri is empty."""


def positive(text: str) -> int:
    """An argument that is an integer above zero."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive number')
    return int(text)


def seconds(text: str) -> int:
    """An argument that is a time to wait."""
    found = positive(text)
    if found > 86400:
        raise argparse.ArgumentTypeError(f'{text} s is more than a day')
    return found


def add_connect(parser: argparse.ArgumentParser) -> None:
    """Add ``--connect``."""
    parser.add_argument(
        '--connect', metavar='URI',
        help='libvirt to connect to; by default [libvirt] connection_uri, or '
             f'{LIBVIRT_URI}')


def read_conf(files: list[str] | None = None) -> cfg.ConfigOpts:
    """nova.conf with our options in it.

    Says on standard error which files were found, where the user named none.

    :param files: None for the files that nova-compute reads
    :raises errors.InvalidOption: a file is missing or cannot be used
    """
    return load(configuration.find(files))


def read_few(files: list[str] | None = None) -> cfg.ConfigOpts:
    """As :func:`read_conf`, with those options alone that guests need.

    It takes a fraction of the time.

    :raises errors.InvalidOption: a file is missing or cannot be used
    """
    found, nova = configuration.find(files), few_options.register()
    found.load(nova)
    say_files(found)
    return nova


def load(found: configuration.Configuration) -> cfg.ConfigOpts:
    """The same from files that have been found."""
    conf.register_opts(nova_conf.CONF)
    found.load(nova_conf.CONF)
    say_files(found)
    return nova_conf.CONF


def say_files(found: configuration.Configuration) -> None:
    """Say what options are from, unless the user has."""
    if found.service is None:
        return
    for note in found.notes:
        print(f'warning: {note}', file=sys.stderr)
    if found.files:
        print(f'configuration: {errors.clean(", ".join(found.files), 1000)} '
              f'({found.how})', file=sys.stderr)


@contextlib.contextmanager
def libvirt_connection(uri: str, read_only: bool = False
                       ) -> Iterator[libvirt.virConnect]:
    """A connection to libvirt that is closed in the end.

    :raises errors.HostError: libvirt cannot be reached, and why
    """
    # Otherwise libvirt prints each error that we handle to standard error.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        connection = (libvirt.openReadOnly if read_only else libvirt.open)(uri)
    except libvirt.libvirtError as e:
        raise errors.HostError(
            f'libvirt at {uri} cannot be reached: '
            f'{errors.with_explanation(e)}') from e
    try:
        yield connection
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()


@contextlib.contextmanager
def progress(what: str, whole: int | None = None
             ) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how far a long piece of work is.

    :param what: what is counted, a plural
    :param whole: how many there are; None where that is not known
    :returns: called with how many are done
    """
    shown = sys.stderr.isatty()
    last = 0.0

    def show(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if shown and now - last > _EVERY_SECONDS:
            last = now
            print(f'\r{what}: {done}{f" of {whole}" if whole else ""}',
                  end='', file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if last:
            # The line is wiped, as what follows may be read by a program.
            print('\r\033[K', end='', file=sys.stderr, flush=True)


class Finding(errors.KVMExtError):
    """The answer is no, and there is nothing else to show."""


class Command(command.Command):
    """A command whose errors are one line and an exit code.

    Goes before cliff's class among a command's bases: ``class List(
    Command, lister.Lister)``.

    :cvar COLUMNS: the names of its columns, the same in every format
    :cvar ASIDE: those that a table shows only where ``-c`` names them
    :cvar EMPTY: what a list without a line says on standard error
    """

    COLUMNS: ClassVar[Sequence[str]] = ()
    ASIDE: ClassVar[Sequence[str]] = ()
    EMPTY: ClassVar[str] = 'There is nothing to list.'

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        # 0 switches the width off, so the terminal's is None.
        parser.set_defaults(
            max_width=parser.get_default('max_width') or None)
        return parser

    def get_epilog(self) -> str:
        """None: cliff's reads all that is installed to see who made this."""
        return ''

    def _load_hooks(self) -> None:
        """None: cliff reads all that is installed to see who has some."""
        self._hooks = []

    def column_names(self, args: argparse.Namespace) -> Sequence[str]:
        """COLUMNS, where they do not depend on the arguments."""
        return self.COLUMNS

    def run(self, parsed_args: argparse.Namespace) -> int:
        """The command's exit code, an error said in one line.

        See :mod:`nova_kvm_ext.exit_codes`. A finding, or a guest agent that
        did not do what it should, is a FAIL.
        """
        code = ExitCode.UNKNOWN
        try:
            self._check_columns(parsed_args)
            return super().run(parsed_args)
        except errors.KVMExtError as e:
            said = str(e)
            if isinstance(e, Finding) or isinstance(
                    e, errors.AgentError) and (
                    e.fault is not errors.AgentFault.LIBVIRT):
                code = ExitCode.FAIL
        except BrokenPipeError:
            raise  # cliff has a code for that
        except Exception as e:
            if hasattr(e, 'get_error_code'):
                said = errors.with_explanation(e)
            elif isinstance(e, cfg.Error):
                # A value is looked at when it is asked for.
                said = f'The configuration cannot be used: {errors.clean(e)}.'
            else:
                # cliff would end with 1, which says that there are warnings.
                if self.app.options.debug:
                    raise
                said = (f'{type(e).__name__}: {errors.clean(e)} (this is a '
                        f'defect of nova-kvm-ext; --debug shows more)')
        print(f'error: {said}', file=sys.stderr)
        return int(code)

    def _check_columns(self, args: argparse.Namespace) -> None:
        """Give each column that the user names its exact name.

        Before anything is done: freezing a guest cannot be taken back.

        :raises errors.InvalidRequest: there is no such column
        """
        known = self.column_names(args)
        by_word = {columns.word(name): name for name in known}
        for option, dest in (('-c', 'columns'),
                             ('--sort-column', 'sort_columns')):
            wanted = getattr(args, dest, None)
            for name in wanted if wanted and known else ():
                if columns.word(name) not in by_word:
                    raise errors.InvalidRequest(
                        f'{option} {errors.clean(name, 80)}: there is no such '
                        f'column.', f'The columns are {", ".join(known)}.')
            if wanted and known:
                setattr(args, dest, [
                    by_word[columns.word(name)] for name in wanted])

    def produce_output(self, parsed_args: argparse.Namespace,
                       column_names: Sequence[str], data: Any) -> int:
        many = isinstance(self, lister.Lister)
        rows = [list(row) for row in data] if many else [list(data)]
        if not rows:
            print(self.EMPTY, file=sys.stderr)
        rows = self.prepare(parsed_args, column_names, rows, many)
        return super().produce_output(  # type: ignore[misc]
            parsed_args, column_names, rows if many else rows[0])

    def prepare(self, args: argparse.Namespace, names: Sequence[str],
                rows: list[list[Any]], many: bool) -> list[list[Any]]:
        """Values as a format of cliff shows them well.

        A table is no wider than the terminal, or 80 columns; -f value, csv
        and shell have no lists.

        :param many: whether each row is a line, not a table of its own
        """
        if args.formatter in columns.PLAIN:
            return [columns.plain_row(row) for row in rows]
        if args.formatter != 'table':
            return rows
        if not args.columns and self.ASIDE:
            args.columns = [name for name in names if name not in self.ASIDE]
        if args.max_width is None:
            args.max_width = shutil.get_terminal_size((80, 24)).columns
        rows = [['' if value is None else value for value in row]
                for row in rows]
        if args.max_width < 1:
            return rows
        shown = [at for at, name in enumerate(names)
                 if not args.columns or name in args.columns]
        if many:
            columns.fit([names[at] for at in shown],
                        [[row[at] for at in shown] for row in rows],
                        args.max_width)
            return rows
        for row in rows:
            row[:] = [columns.Text(value) if isinstance(value, str) else value
                      for value in row]
            columns.fit(('Field', 'Value'),
                        [(names[at], row[at]) for at in shown],
                        args.max_width)
        return rows


class ConfigCommand(Command):
    """A command with ``--config-file``."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--config-file', metavar='FILE', action='append',
            dest='config_files',
            help='nova.conf to read (repeat for more); by default those that '
                 'nova-compute reads')
        return parser


class HostCommand(ConfigCommand):
    """A command with ``--config-file`` and ``--connect``."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add_connect(parser)
        return parser

    @staticmethod
    def uri(args: argparse.Namespace, nova: cfg.ConfigOpts) -> str:
        """The libvirt to talk to."""
        return args.connect or nova.libvirt.connection_uri or LIBVIRT_URI

    def connected(self, args: argparse.Namespace, nova: cfg.ConfigOpts,
                  read_only: bool = False
                  ) -> contextlib.AbstractContextManager[Any]:
        """:func:`libvirt_connection` to the libvirt that is meant."""
        return libvirt_connection(self.uri(args, nova), read_only)
