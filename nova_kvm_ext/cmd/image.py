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

"""``nova-kvm-ext image ...``: whether the driver accepts an image file.

Parses, calls :mod:`nova_kvm_ext.images`, prints. The driver uses the same
code. Nothing is booted and no image is changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from typing import Any
from typing import BinaryIO

from cliff import command
from cliff import show

from nova_kvm_ext.cmd import base
from nova_kvm_ext.cmd import columns
from nova_kvm_ext.cmd import lazy
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode

with lazy.imports():
    from nova.privsep import utils as privsep_utils

    from nova_kvm_ext.images import convert
    from nova_kvm_ext.images import facts
    from nova_kvm_ext.images import qemu_img
    from nova_kvm_ext.images import verdict
    from nova_kvm_ext import settings as kvm_settings


class Terminated(BaseException):
    """SIGTERM or SIGHUP. Not an Exception, so that nothing swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Have signals that end us raise, so that what is begun is cleaned up."""
    def raise_it(signum: int, frame: Any) -> None:
        raise Terminated(signum)

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [signal.signal(number, raise_it) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


class ImageCommand(base.ConfigCommand):
    """A command about one image file.

    The file is opened once and uses its descriptor from then on.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--disk-format', metavar='FORMAT',
            help='format of the image as Glance would declare it; by default '
                 'what its content looks like')
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        try:
            with _signals_raise():
                return super().run(parsed_args)
        except Terminated as e:
            return 128 + e.signum

    def look(self, args: argparse.Namespace, f: BinaryIO
             ) -> tuple[str, verdict.Verdict, verdict.Facts]:
        """Read nova.conf and decide.

        :returns: the declared format, the decision, and what it is based on
        :raises errors.InvalidOption: nova.conf cannot be read
        :raises errors.HostError: there is no qemu-img
        """
        qemu_img.require()
        nova = base.read_conf(args.config_files)
        self.limits = qemu_img.Limits.from_conf(nova)
        self.policy = verdict.Policy.from_conf(
            kvm_settings.Settings.from_conf(nova), nova)
        declared = args.disk_format or facts.detect(f)
        found = facts.read(f, declared, self.limits)
        return declared, verdict.judge(found, declared, self.policy), found


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """A file, or standard input in an unnamed temporary file.

    :raises errors.InvalidOption: it cannot be read
    """
    try:
        if path == '-':
            with tempfile.TemporaryFile() as f:
                shutil.copyfileobj(sys.stdin.buffer, f)
                f.flush()
                yield f
        else:
            # Not to wait for a writer where it is a pipe.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            with os.fdopen(descriptor, 'rb') as f:
                if not os.path.isfile(f.fileno()):
                    raise errors.InvalidOption(
                        f'{errors.clean(path)} is not a regular file.',
                        'Give - and the content on standard input.')
                yield f
    except OSError as e:
        raise errors.InvalidOption(
            f'{errors.clean(path)} cannot be read: {e.strerror}.') from e


class Check(ImageCommand, show.ShowOne):
    """Check whether the driver would boot from an image.

    The command checks the file as the driver checks an image that was fetched
    from Glance, with the limits and the allowed formats of nova.conf. It opens
    no other file, and boots nothing.

    Exit codes: 0 accepted, 2 refused, 3 wrong command line or configuration,
    the host lacks something, or qemu-img was killed, 128+N ended by signal N.
    """

    COLUMNS = ('result', 'check', 'reason', 'remedy', 'disk_format',
               'content', 'file_size', 'virtual_size', 'converted_to')

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('file', metavar='FILE',
                            help='the image; - for standard input')
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        self._refused = False
        code = super().run(parsed_args)
        return code or (ExitCode.FAIL if self._refused else ExitCode.PASS)

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], Sequence[Any]]:
        with _opened(parsed_args.file) as f:
            declared, decided, found = self.look(parsed_args, f)
        self._refused = not decided.accepted
        return self.COLUMNS, (
            'PASS' if decided.accepted else 'FAIL', decided.check,
            columns.Text(decided.reason),
            columns.Text(decided.remedy),
            errors.clean(declared, 40), columns.Names(found.formats),
            found.file_size, found.virtual_size, decided.converted_to)


class Convert(ImageCommand, command.Command):
    """Make a qcow2 image of an image that image check accepts.

    The source is checked as by image check, and never changed. qemu-img runs
    with the same limits as in the driver. The result appears when it is
    complete. After a failure or an interruption nothing is left.

    Exit codes: 0 done, 2 the image is refused or cannot be converted, 3 wrong
    command line or configuration, or the host lacks something, 128+N ended by
    signal N.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('source', metavar='SOURCE', help='the image')
        parser.add_argument('destination', metavar='DESTINATION',
                            type=os.path.abspath, help='the qcow2 to make')
        parser.add_argument(
            '--overwrite', action='store_true',
            help='replace the destination if it exists; never the source')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        with _opened(parsed_args.source) as f:
            _, decided, _ = self.look(parsed_args, f)
            if not decided.accepted:
                print(f'error: refused by the check "{decided.check}": '
                      f'{decided.reason} {decided.remedy}', file=sys.stderr)
                return ExitCode.FAIL
            return self._convert(
                f, decided.into('qcow2'), parsed_args.destination,
                parsed_args.overwrite)

    def _convert(self, f: BinaryIO, decided: verdict.Verdict,
                 destination: str, overwrite: bool) -> int:
        try:
            convert.convert(
                f, decided, destination, self.limits, overwrite=overwrite,
                direct=privsep_utils.supports_direct_io(
                    os.path.dirname(destination)), progress=sys.stderr)
        except convert.ConversionError as e:
            print(f'error: {e}', file=sys.stderr)
            return ExitCode.FAIL
        except FileExistsError as e:
            raise errors.InvalidOption(
                f'{errors.clean(destination)}: {e.strerror or e}.',
                'Choose another name, or --overwrite.') from e
        except OSError as e:
            raise errors.HostError(
                f'{errors.clean(destination)} cannot be written: '
                f'{e.strerror}.') from e
        return ExitCode.PASS
