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

"""The configuration that nova-compute reads on this host.

:func:`find` names the files, in the order in which nova-compute parses them:
by its own command line if that is known, else by oslo.config's rule for the
program nova-compute of the project nova. :func:`parsed` turns every error in a
file into one sentence.
"""

import argparse
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import errno
import functools
import glob
import io
import json
import os
import pwd
import re
import sys
from typing import Any

from oslo_config import cfg

from nova_kvm_ext import errors
from nova_kvm_ext.host import service as service_reader

_PROJECT = 'nova'
_OPTIONS = ('--config-file', '--config-dir')

# What a user can be kept from that makes oslo.config find no file at all.
_DIRECTORIES = ('/etc', f'/etc/{_PROJECT}')

# A variable of oslo.config's environment source: OS_GROUP__OPTION.
_VARIABLE = re.compile(r'OS_[A-Z0-9_]+?__[A-Z0-9_]+')

_NAME_IT = ('Name the nova.conf of nova-compute with --config-file, or run '
            'this command with sudo.')


@dataclasses.dataclass(frozen=True)
class Configuration:
    """Files of options, and why these.

    :ivar files: paths; what a later file says counts
    :ivar how: why it is these, for people
    :ivar service: the nova-compute that reads them; None where an operator
        named the files
    :ivar notes: what an operator should know, sentences
    """

    files: tuple[str, ...]
    how: str = ''
    service: service_reader.Service | None = None
    notes: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """The words that have oslo.config read these files."""
        return [word for file in self.files
                for word in ('--config-file', file)]

    def load(self, conf: cfg.ConfigOpts,
             arguments: Sequence[str] = ()) -> None:
        """Have oslo.config read these files and no others.

        :param arguments: more words of a command line
        :raises errors.InvalidOption: a file cannot be used
        """
        self.take_environment()
        with parsed(self.files):
            conf([*self.arguments, *arguments], project=_PROJECT,
                 default_config_files=[], default_config_dirs=[])

    def take_environment(self) -> None:
        """Take the variables of nova-compute that oslo.config reads.

        They count more than files. What this user says counts most.
        """
        for name, value in (self.service.environment if self.service else
                            {}).items():
            if _VARIABLE.fullmatch(name):
                os.environ.setdefault(name, value)


def find(given: Sequence[str] | None = None, *, proc: str = '/proc',
         root: str = '/') -> Configuration:
    """The files that nova-compute reads.

    :param given: files that an operator named: these and no others
    :param proc: where the kernel shows processes
    :param root: directory below which systemd's units and programs are
        looked up
    :raises errors.InvalidOption: this user may not see what is there
    """
    if given:
        return Configuration(tuple(given), 'named with --config-file')
    found = service_reader.find(proc, root)
    notes = list(found.notes)
    runs = f'as nova-compute, {found.how}, reads them'
    if found.elsewhere:
        try:
            files = _files_elsewhere(found, proc)
        except OSError as e:
            notes.append(
                f'nova-compute, {found.how}, has files of its own, as in a '
                f'container, which this user cannot read ({e.strerror}): '
                f'run this command there.')
            found = service_reader.Service()
        else:
            return Configuration(
                files, f'{runs} in its own file system', found, tuple(notes))
    elif found.elsewhere is None:
        notes.append(
            f'Whether nova-compute, {found.how}, sees the same files is not '
            f'known to this user: run this command with sudo.')
    files = _files(found)
    return Configuration(
        files, runs if _options(found.arguments) else
        f'as oslo.config finds them for {found.program}',
        found, tuple(notes))


def named(arguments: Sequence[str]) -> Configuration | None:
    """The files that a command line names, as oslo.config reads them.

    :returns: None where it names none
    :raises errors.InvalidOption: this user may not see what is there
    """
    if not any(_names(arguments, option) for option in _OPTIONS):
        return None
    return Configuration(tuple(_named_files(arguments)),
                         'named on the command line')


def _pair(option: str, path: str) -> tuple[str, str]:
    return option, path


def _options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """The files and directories that a command line names, in their order."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    for option in _OPTIONS:
        parser.add_argument(
            option, dest='found', action='append', default=[],
            type=functools.partial(_pair, option))
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return parser.parse_known_args(list(arguments))[0].found
    except (argparse.ArgumentError, SystemExit):
        # The program would not start with them.
        return []


def _names(arguments: Sequence[str], option: str) -> bool:
    """Whether oslo.config leaves its default places out for an option."""
    return any(word == option or word.startswith(f'{option}=')
               for word in arguments)


@contextlib.contextmanager
def _environment(found: service_reader.Service) -> Iterator[None]:
    """With the variables by which oslo.config finds directories."""
    names = ('HOME', 'SNAP', 'SNAP_COMMON')
    before = {name: os.environ.get(name) for name in names}
    wanted: Mapping[str, str] = found.environment or (
        {'HOME': found.home} if found.home else {})
    try:
        for name in names if wanted else ():
            os.environ.pop(name, None)
            if name in wanted:
                os.environ[name] = wanted[name]
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _files(found: service_reader.Service) -> tuple[str, ...]:
    """The files that a nova-compute parses, in its order.

    oslo.config parses its default files unless the command line names one,
    then the files of its default directories unless it names one of these,
    then what is named.

    :raises errors.InvalidOption: this user may not see what is there
    """
    files: list[str] = []
    with _environment(found):
        if not _names(found.arguments, '--config-file'):
            for directory in _DIRECTORIES:
                _must_allow(directory, os.X_OK)
            files += cfg.find_config_files(_PROJECT, found.program)
        if not _names(found.arguments, '--config-dir'):
            for path in cfg.find_config_dirs(_PROJECT, found.program):
                files += _in_directory(path)
        files += _named_files(found.arguments, found.directory)
    return tuple(files)


def _named_files(arguments: Sequence[str], directory: str = '') -> list[str]:
    files = []
    for option, path in _options(arguments):
        path = os.path.join(directory, os.path.expanduser(path))
        if option == '--config-file':
            files.append(path)
        elif os.path.isdir(path):
            files += _in_directory(path)
        else:
            raise errors.InvalidOption(
                f'--config-dir {errors.clean(path)}: there is no such '
                f'directory.', _NAME_IT)
    return files


def _in_directory(path: str) -> list[str]:
    _must_allow(path, os.R_OK | os.X_OK)
    return sorted(glob.glob(os.path.join(glob.escape(path), '*.conf')))


def _must_allow(directory: str, mode: int) -> None:
    """Make sure that nothing is taken for absent that is only hidden.

    :raises errors.InvalidOption: this user may not look into a directory
    """
    if os.path.isdir(directory) and not os.access(directory, mode):
        raise errors.InvalidOption(
            f'{errors.clean(directory)}, where nova-compute finds its '
            f'configuration, is closed to the user {_user()}.', _NAME_IT)


def _files_elsewhere(found: service_reader.Service,
                     proc: str) -> tuple[str, ...]:
    """The same in the file system of another process, seen from here.

    A child changes its root, so that oslo.config and symbolic links use
    that file system.

    :raises OSError: this user may not do that
    """
    there = os.path.join(proc, str(found.pid), 'root')
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said: dict[str, object] = {}
        try:
            os.close(reader)
            os.chroot(there)
            os.chdir('/')
            said['files'] = list(map(os.path.realpath, _files(found)))
        except OSError as e:
            said['errno'] = e.errno
        except errors.InvalidOption as e:
            said['refused'] = [e.problem, e.remedy]
        finally:
            with os.fdopen(writer, 'w') as f:
                json.dump(said, f)
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as f:
        answer = f.read()
    os.waitpid(child, 0)
    heard: dict[str, Any] = json.loads(answer or '{}')
    if 'refused' in heard:
        raise errors.InvalidOption(*heard['refused'])
    if 'files' not in heard:
        number = heard.get('errno') or errno.EIO
        raise OSError(number, os.strerror(number))
    return tuple(there + path for path in heard['files'])


@contextlib.contextmanager
def parsed(files: Sequence[str]) -> Iterator[None]:
    """Around oslo.config's look at files: what goes wrong is one sentence.

    :param files: those that it is told to read
    :raises errors.InvalidOption: names the file and what is wrong with it
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except cfg.ConfigFilesNotFoundError as e:
        raise _refused(list(e.config_files), 'does not exist', _NAME_IT) from e
    except cfg.ConfigFilesPermissionDeniedError as e:
        raise _refused(
            list(e.config_files), f'may not be read by the user {_user()}',
            'Run this command with sudo, or as a user who may read the '
            'configuration of nova-compute.') from e
    except cfg.ConfigFileParseError as e:
        raise _refused([e.config_file], f'cannot be parsed: '
                       f'{errors.clean(e.msg)}', 'Correct the file.') from e
    except UnicodeDecodeError as e:
        raise _refused(_not_text(files), f'is not text in {e.encoding}: '
                       f'{e.reason}', 'Correct the file.') from e
    except OSError as e:
        raise _refused(
            [str(e.filename or ', '.join(files))], 'is a directory'
            if e.errno == errno.EISDIR else
            f'cannot be read: {e.strerror or errors.clean(e)}',
            _NAME_IT) from e
    except (cfg.Error, ValueError) as e:
        # ValueError: a path with a NUL, for example.
        raise errors.InvalidOption(
            f'The configuration in {errors.clean(", ".join(files))} cannot '
            f'be used: {errors.clean(e)}.', 'Correct the file.') from e
    except SystemExit as e:
        # oslo.config prints what is wrong with an option that could also be
        # on its command line, and exits with 1. A wrong command line is 2,
        # --help is 0.
        if e.code != 1:
            sys.stderr.write(said.getvalue())
            raise
        raise errors.InvalidOption(
            f'The configuration in {errors.clean(", ".join(files))} cannot '
            f'be used: {errors.clean(said.getvalue())}.',
            'Correct the file.') from e
    else:
        sys.stderr.write(said.getvalue())


def _refused(files: Sequence[str], what: str,
             remedy: str) -> errors.InvalidOption:
    return errors.InvalidOption(
        f'The configuration file {errors.clean(", ".join(files))} {what}.',
        remedy)


def _not_text(files: Sequence[str]) -> list[str]:
    """The first of some files that cannot be decoded."""
    for file in files:
        try:
            with open(os.path.expanduser(file)) as f:
                f.read()
        except UnicodeDecodeError:
            return [file]
        except OSError:
            continue
    return list(files)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
