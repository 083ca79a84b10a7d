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

"""How nova-compute runs on this host, or would be started.

Its command line shows what configuration it reads and which Python it uses. It
is read from the running process, else from the systemd unit, else from the
path of the installed program. Only files are read here; nothing is run.

Any user can start a process with the command line of nova-compute. root reads
and runs what that command line names. So a process counts only if it belongs
to a user who may do that anyway: see :func:`_is_trusted`.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import configparser
import contextlib
import dataclasses
import os
import pwd
import re
import shlex
import shutil
import sys

from nova_kvm_ext import errors

PROGRAM = 'nova-compute'

_MODULE = 'nova.cmd.compute'
_ACCOUNT = 'nova'

# In the order in which systemd takes them (systemd.unit(5)).
_UNIT_DIRECTORIES = ('/etc/systemd/system', '/run/systemd/system',
                     '/usr/local/lib/systemd/system',
                     '/usr/lib/systemd/system', '/lib/systemd/system')
_UNITS = ('nova-compute.service', 'openstack-nova-compute.service',
          'devstack@n-cpu.service')
# What systemd.service(5) lets stand before the path of a program.
_EXEC_PREFIXES = '@-:+!|'

# Beside PATH: packages, Kolla, OpenStack-Helm, devstack.
_PLACES = ('/usr/bin', '/usr/local/bin', '/var/lib/kolla/venv/bin',
           '/var/lib/openstack/bin', '/opt/stack/data/venv/bin')

_SCRIPT_START = 4096   # Bytes of a script that are looked at.
_EXEC = re.compile(r"'''exec' (.+?) \"\$0\"")


@dataclasses.dataclass(frozen=True)
class Service:
    """A nova-compute, as far as its files and its process tell.

    :ivar how: what tells it, for people; '' where nothing does
    :ivar pid: of the running process, None where none runs
    :ivar arguments: the words after the program's name
    :ivar program: the name by which oslo.config looks for files
    :ivar python: the words that start its Python, the program's name left
        out; empty where they are not known
    :ivar directory: what its relative paths are below
    :ivar environment: its environment; empty where it cannot be read
    :ivar home: the home directory of its user, '' where not known
    :ivar user: uid, gid and groups of its user, None where not known
    :ivar elsewhere: whether its files are others than those that this
        process sees, as in a container; None where this process may not look
    :ivar notes: what an operator should know, sentences
    """

    how: str = ''
    pid: int | None = None
    arguments: tuple[str, ...] = ()
    program: str = PROGRAM
    python: tuple[str, ...] = ()
    directory: str = '/'
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    home: str = ''
    user: tuple[int, int, tuple[int, ...]] | None = None
    elsewhere: bool | None = False
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple[object, ...]:
        """What two processes have in common that are one for our purpose."""
        return (self.arguments, self.python, self.directory, self.elsewhere)


def find(proc: str = '/proc', root: str = '/') -> Service:
    """The nova-compute of this host.

    :param proc: where the kernel shows processes
    :param root: directory below which units and programs are looked up
    :returns: always something: what is not known is empty
    """
    unit = _read_unit(root)
    notes, trusted = [], []
    for found, same_users in _processes(proc):
        if _is_trusted(found, same_users, unit):
            trusted.append(found)
        else:
            notes.append(
                f'{found.how} has the command line of nova-compute, but its '
                f'user {_name(found)} is not known to run nova-compute: the '
                'process is ignored.')
    here = [found for found in trusted if not found.elsewhere] or trusted
    if len({found.identity for found in here}) == 1:
        return dataclasses.replace(here[0], notes=tuple(notes))
    if here:
        notes.append(
            'More than one nova-compute runs here (processes '
            f'{", ".join(str(found.pid) for found in here)}), with different '
            'command lines: name the nova.conf with --config-file.')
        return Service(notes=tuple(notes), home=_home())
    found = unit if unit is not None and unit.python else _installed(
        root, unit)
    return dataclasses.replace(found, notes=tuple(notes))


def _processes(proc: str) -> Iterator[tuple[Service, bool]]:
    """Each process with the words of nova-compute.

    :returns: it, and whether it has the user namespace of this process
    """
    try:
        names = sorted(filter(str.isdecimal, os.listdir(proc)), key=int)
    except OSError:
        return
    for name in names:
        directory = os.path.join(proc, name)
        # A process may end while it is looked at.
        with contextlib.suppress(OSError, ValueError, LookupError):
            with open(os.path.join(directory, 'cmdline'), 'rb') as f:
                said = f.read()
            parsed = _parse(os.fsdecode(said).rstrip('\0').split('\0')
                            ) if b'nova' in said else None
            if parsed is None:
                continue
            python, program, arguments = parsed
            user = _read_user(directory)
            environment = _read_environment(directory)
            elsewhere = _differs(proc, name, 'ns/mnt')
            if elsewhere is False:
                elsewhere = _link(proc, name, 'root') != '/'
            yield Service(
                how=f'process {name}', pid=int(name), arguments=arguments,
                program=program, python=_with_path(
                    python, environment.get('PATH', '')),
                directory=_link(proc, name, 'cwd') or '/',
                environment=environment, user=user, elsewhere=elsewhere,
                home=environment.get('HOME') or _home(user[0])
            ), _differs(proc, name, 'ns/user') is False


def _parse(given: Iterable[str], root: str = '/'
           ) -> tuple[tuple[str, ...], str, tuple[str, ...]] | None:
    """Words that start nova-compute.

    The kernel starts a script as its interpreter with the script's path.

    :returns: those of its Python, the name of the program, and its
        arguments; None for the words of something else
    """
    words = tuple(given)
    if os.path.basename(words[0]) == PROGRAM:
        return _shebang(words[0], root), PROGRAM, words[1:]
    if not re.fullmatch(r'python[0-9.]*', os.path.basename(words[0])):
        return None
    at = 1
    while at < len(words) and words[at].startswith('-'):
        if words[at] == '-m':
            # sys.argv[0] is the path of the module's file then.
            return ((words[:at], _MODULE.rpartition('.')[2], words[at + 2:])
                    if words[at + 1:at + 2] == (_MODULE,) else None)
        if words[at] == '-c':
            return None
        # The two options of Python that take a word of their own.
        at += 2 if words[at] in ('-W', '-X') else 1
    if at >= len(words) or os.path.basename(words[at]) != PROGRAM:
        return None
    return words[:at], PROGRAM, words[at + 1:]


def _shebang(path: str, root: str = '/') -> tuple[str, ...]:
    """The words that start a script's Python; empty where not known.

    Where that path is too long for the kernel, pip writes a shell script that
    ends in ``exec`` of Python.
    """
    real_path = os.path.join(root, path.lstrip('/')) if os.path.isabs(
        path) else path
    try:
        with open(real_path, 'rb') as f:
            lines = os.fsdecode(f.read(_SCRIPT_START)).splitlines()
    except OSError:
        return ()
    if not lines or not lines[0].startswith('#!'):
        return ()
    words = lines[0][2:].split()
    if words[:1] == ['/bin/sh']:
        found = _EXEC.match(lines[1]) if len(lines) > 1 else None
        words = shlex.split(found[1]) if found else []
    elif words and os.path.basename(words[0]) == 'env':
        words = [word for word in words[1:] if word != '-S']
    return _with_path(words, os.environ.get('PATH', ''))


def _with_path(python: Iterable[str], path: str) -> tuple[str, ...]:
    """The same words with the whole path of the program."""
    words = tuple(python)
    if not words or os.path.isabs(words[0]):
        return words
    found = shutil.which(words[0], path=path or None)
    return (found, *words[1:]) if found else ()


def _read_user(directory: str) -> tuple[int, int, tuple[int, ...]]:
    """Effective user, group and groups, as proc_pid_status(5) has them."""
    fields = {}
    with open(os.path.join(directory, 'status')) as f:
        for line in f:
            name, _, value = line.partition(':')
            fields[name] = value.split()
    return (int(fields['Uid'][1]), int(fields['Gid'][1]),
            tuple(map(int, fields.get('Groups', ()))))


def _read_environment(directory: str) -> dict[str, str]:
    try:
        with open(os.path.join(directory, 'environ'), 'rb') as f:
            words = os.fsdecode(f.read()).split('\0')
    except OSError:
        return {}
    return {name: value for name, equals, value in
            (word.partition('=') for word in words) if equals}


def _link(proc: str, name: str, link: str) -> str | None:
    try:
        return os.readlink(os.path.join(proc, name, link))
    except OSError:
        return None


def _differs(proc: str, name: str, link: str) -> bool | None:
    """Whether a namespace is another than ours; None where not known."""
    theirs = _link(proc, name, link)
    return None if theirs is None else theirs != _link(proc, 'self', link)


def _is_trusted(found: Service, same_users: bool,
                unit: Service | None) -> bool:
    """Whether what a process names may be read, and run, by this user.

    Its user is root, this user, the one who called sudo, the service's
    account or the one of its unit. Or it has files of its own in the user
    namespace of this process: only an administrator can give it these.
    """
    assert found.user is not None
    known = {0, os.geteuid()}
    with contextlib.suppress(ValueError):
        known.add(int(os.environ.get('SUDO_UID', '')))
    with contextlib.suppress(KeyError):
        known.add(pwd.getpwnam(_ACCOUNT).pw_uid)
    if unit is not None and unit.user is not None:
        known.add(unit.user[0])
    return found.user[0] in known or bool(found.elsewhere and same_users)


def _name(found: Service) -> str:
    uid = found.user[0] if found.user else 0
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _home(uid: int | None = None) -> str:
    """The home directory of a user, by default of the service's account."""
    try:
        return (pwd.getpwnam(_ACCOUNT) if uid is None else
                pwd.getpwuid(uid)).pw_dir
    except KeyError:
        return ''


def _read_unit(root: str) -> Service | None:
    """nova-compute's systemd unit, with its drop-ins.

    :returns: None where there is none; without words where its ExecStart is
        another program, as with Debian, where it is an init script
    """
    for name in _UNITS:
        for directory in _UNIT_DIRECTORIES:
            path = os.path.join(root, directory.lstrip('/'), name)
            if os.path.isfile(path):
                return _parse_unit(name, path, root)
    return None


def _parse_unit(name: str, path: str, root: str) -> Service:
    drop_ins = []
    for directory in _UNIT_DIRECTORIES:
        of_unit = os.path.join(root, directory.lstrip('/'), f'{name}.d')
        if os.path.isdir(of_unit):
            drop_ins += [os.path.join(of_unit, file) for file in
                         os.listdir(of_unit) if file.endswith('.conf')]
    section: dict[str, str] = {}
    for file in (path, *sorted(drop_ins, key=os.path.basename)):
        parser = configparser.RawConfigParser(
            strict=False, allow_no_value=True, delimiters=('=',))
        # systemd's names have capitals.
        parser.optionxform = str  # type: ignore
        # An odd drop-in costs that drop-in.
        with contextlib.suppress(OSError, configparser.Error, ValueError):
            with open(file) as f:
                parser.read_string(f.read().replace('\\\n', ' '))
            if parser.has_section('Service'):
                section |= {name: value for name, value in
                            parser.items('Service') if value}
    user = None
    with contextlib.suppress(KeyError):
        entry = pwd.getpwnam(section.get('User', 'root'))
        user = (entry.pw_uid, entry.pw_gid, ())
    service = Service(how=f'the unit {path}', user=user,
                      home=_home(user[0]) if user else '')
    try:
        words = shlex.split(section.get('ExecStart', ''))
    except ValueError:
        return service
    if words:
        words[0] = words[0].lstrip(_EXEC_PREFIXES)
    # What a variable of the unit stands for is not known.
    parsed = _parse((word for word in words if not word.startswith('$')),
                    root) if words and words[0] else None
    if parsed is None or not parsed[0]:
        return service
    python, program, arguments = parsed
    return dataclasses.replace(service, python=python, program=program,
                               arguments=arguments)


def _installed(root: str, unit: Service | None) -> Service:
    """nova-compute's program: beside this Python, in PATH, in usual places.

    The words that it is started with are not known.
    """
    known = unit or Service(home=_home())
    for place in (os.path.dirname(sys.executable),
                  *os.environ.get('PATH', '').split(os.pathsep), *_PLACES):
        path = os.path.join(place, PROGRAM)
        python = _shebang(path, root) if os.path.isabs(path) else ()
        if python:
            return dataclasses.replace(
                known, how=f'the program {errors.clean(path)}',
                python=python)
    return dataclasses.replace(known, how='')
