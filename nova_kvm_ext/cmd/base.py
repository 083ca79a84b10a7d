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

"""What every command that looks at this host shares.

Reads the files that nova-compute reads, connects to libvirt, and turns an
error into one line and an exit code. Never starts Nova: ``nova.conf`` alone
is its options without its services, and imports in a quarter of a second.
"""

import argparse
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import sys
import time
from typing import Any

from cliff import command
import libvirt
from nova import conf as nova_conf
from oslo_config import cfg

from nova_kvm_ext import conf
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode
from nova_kvm_ext.host import configuration

_EVERY_SECONDS = 0.2

LIBVIRT_URI = 'qemu:///system'
"""What Nova connects to for kvm and qemu where connection_uri is empty."""


def positive(text: str) -> int:
    """An argument that is a whole number above zero."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'{text!r} is no positive number')
    return int(text)


def seconds(text: str) -> int:
    """An argument that is a time to wait."""
    found = positive(text)
    if found > 86400:
        raise argparse.ArgumentTypeError(f'{text} s is more than a day')
    return found


def read_conf(files: list[str] | None = None) -> cfg.ConfigOpts:
    """nova.conf with our options in it.

    Says on standard error which files were found, where the user named none.

    :param files: None for the files that nova-compute reads
    :raises errors.InvalidOption: a file is missing or cannot be used
    """
    return load(configuration.find(files))


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


class Command(command.Command):
    """A command whose errors are one line and an exit code.

    Goes before cliff's class among a command's bases: ``class List(
    Command, lister.Lister)``.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        return parser

    def get_epilog(self) -> str:
        """None: cliff's reads all that is installed to see who made this."""
        return ''

    def run(self, parsed_args: argparse.Namespace) -> int:
        """The command's exit code, an error said in one line.

        1 is a guest agent that did not do what it should, 2 a wrong command
        line or configuration, 3 a host that lacks something or an error of
        libvirt.
        """
        try:
            return super().run(parsed_args)
        except errors.KVMExtError as e:
            said, code = str(e), ExitCode.HOST
            if isinstance(e, errors.InvalidOption | errors.InvalidRequest):
                code = ExitCode.USAGE
            elif isinstance(e, errors.AgentError) and (
                    e.fault is not errors.AgentFault.LIBVIRT):
                code = ExitCode.FAIL
        except cfg.Error as e:
            # A value is looked at when it is asked for.
            said, code = (f'The configuration cannot be used: '
                          f'{errors.clean(e)}.', ExitCode.USAGE)
        except libvirt.libvirtError as e:
            said, code = errors.with_explanation(e), ExitCode.HOST
        print(f'error: {said}', file=sys.stderr)
        return int(code)


class HostCommand(Command):
    """A command with ``--config-file`` and ``--connect``."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--config-file', metavar='FILE', action='append',
            dest='config_files',
            help='nova.conf to go by (repeat for more); by default those that '
                 'nova-compute reads')
        parser.add_argument(
            '--connect', metavar='URI',
            help=f'libvirt to look at; by default [libvirt] connection_uri, '
                 f'or {LIBVIRT_URI}')
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
