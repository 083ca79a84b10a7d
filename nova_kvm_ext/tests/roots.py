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

"""Minimal Debian systems in namespaces of this machine, for test beds.

A root is a fresh system of one release with the packages that were asked for,
made by mmdebstrap from the archives that this machine's APT uses. It is kept
as a tar in the cache and unpacked for each use. In use it has mount, PID, UTS
and IPC namespaces, and a network when asked, with its own /proc, /sys, /run,
/tmp and /dev; /dev/kvm is a node of its own, root's alone as on a machine
where no udev runs. When the process that made it ends, however it ends, all
processes and mounts in it end, and the directory is removed, at the latest
when the next root is made.

pivot_root is used, not chroot: libvirt and QEMU look at mounts and devices,
and in a chroot they would see, and change, those of the machine.

``tools/run-in-root`` is this module as a command. Only the standard library
is needed, so it runs with the Python of a machine where nothing is installed
yet.
"""

import argparse
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from nova_kvm_ext.tests import namespaces

RELEASES = ('bookworm', 'trixie', 'sid')
"""Debian 12, 13, and what comes after them."""

# A machine may have an authority of its own for the archive and for PyPI.
_ALWAYS = ('ca-certificates', 'mount')
_AUTHORITIES = pathlib.Path('/usr/local/share/ca-certificates')

# What of the machine's APT a root needs to reach the same archives.
_APT_SETTING = re.compile(
    r'Acquire::(https?|ftp|Check-Date|Check-Valid-Until|ForceIPv|Queue-Mode|'
    r'Retries)')

# The same for other programs, pip among them.
_ENVIRONMENT = re.compile(
    r'(https?|ftp|no)_proxy|SSL_CERT_(DIR|FILE)|(CURL|REQUESTS)_CA_BUNDLE|'
    r'PIP_(CERT|CLIENT_CERT|DEFAULT_TIMEOUT|EXTRA_INDEX_URL|INDEX_URL|PROXY|'
    r'RETRIES|TRUSTED_HOST)|TERM',
    re.IGNORECASE)
_PIP = (('/etc/pip.conf', '/etc/pip.conf'),
        ('~/.pip/pip.conf', '/root/.pip/pip.conf'),
        ('~/.config/pip/pip.conf', '/root/.config/pip/pip.conf'))

_PREFIX = 'nova-kvm-ext-root-'
_KEEP_SECONDS = 7 * 24 * 3600
_TIMEOUT = 120.0
_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

# Name, mode, major, minor (Linux Documentation/admin-guide/devices.txt).
_NODES = (('null', 0o666, 1, 3), ('zero', 0o666, 1, 5),
          ('full', 0o666, 1, 7), ('random', 0o666, 1, 8),
          ('urandom', 0o666, 1, 9), ('tty', 0o666, 5, 0))
# Those that the machine has too.
_DRIVERS = (('net/tun', 0o666, 10, 200), ('vhost-net', 0o600, 10, 238),
            ('loop-control', 0o600, 10, 237), ('fuse', 0o666, 10, 229))


class RootError(Exception):
    """A root cannot be made or used; str() says why and what to do."""


# How it is made


def cache_directory() -> pathlib.Path:
    """Where what takes long to make is kept."""
    named = os.environ.get('NOVA_KVM_EXT_CACHE')
    if named:
        return pathlib.Path(named)
    caches = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return pathlib.Path(caches, 'nova-kvm-ext')


def sources(release: str) -> str:
    """The Debian archives that this machine uses, as lines of sources.list.

    :param release: the codename of the release that they are to have
    :raises RootError: it uses none, or no APT
    """
    try:
        found = subprocess.run(
            ['apt-get', 'indextargets', '--format',
             '$(ORIGIN) deb $(REPO_URI) $(RELEASE) $(COMPONENT)|$(CODENAME)',
             'Created-By: Packages', f'Architecture: {architecture()}'],
            text=True, stdout=subprocess.PIPE).stdout
    except FileNotFoundError:
        found = ''
    lines = []
    for line in found.splitlines():
        archive, _, codename = line.partition('|')
        if not archive.startswith('Debian '):
            continue
        _, kind, uri, suite, component = archive.split(' ', 4)
        # "bookworm", "bookworm-updates"; sources may say "oldstable".
        part = codename.partition('-')[2]
        if codename.partition('-')[0] != release:
            if release == 'sid' and part:
                continue  # has everything in one archive
            suite = f'{release}-{part}' if part else release
        lines.append(f'{kind} {uri} {suite} {component}\n')
    if not lines:
        raise RootError(
            'apt knows no archive of Debian here, of which a system could be '
            'made. On Debian: apt-get update.')
    return ''.join(dict.fromkeys(lines))


def architecture() -> str:
    """This machine's, as Debian calls it."""
    return subprocess.run(['dpkg', '--print-architecture'], text=True,
                          stdout=subprocess.PIPE, check=True).stdout.strip()


def _apt_settings() -> list[str]:
    """What this machine's APT is told about ways to its archives."""
    dump = subprocess.run(
        ['apt-config', 'dump', '--format', '%f "%v";%n', 'Acquire'],
        text=True, stdout=subprocess.PIPE, check=True).stdout
    return [line.rstrip(';') for line in dump.splitlines()
            if _APT_SETTING.match(line) and not line.endswith(' "";')]


def _authorities() -> list[pathlib.Path]:
    """The certificates that this machine trusts beside Debian's."""
    return sorted(_AUTHORITIES.glob('**/*.crt'))


@contextlib.contextmanager
def made(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file of the cache that appears when it is complete.

    It belongs to whom the cache does, who may be another user than root.
    """
    new = path.with_name(f'{path.name}.new')
    owner = path.parent.stat()
    try:
        yield new
        new.chmod(0o644)
        os.chown(new, owner.st_uid, owner.st_gid)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    with open(path, 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _in_use(tar: pathlib.Path) -> bool:
    try:
        return time.time() - tar.stat().st_mtime < _KEEP_SECONDS
    except FileNotFoundError:
        return False


def make(release: str, packages: Sequence[str] = (), *,
         anew: bool = False) -> pathlib.Path:
    """The tar of a system, from the cache where it has one of this week.

    :param release: one of :data:`RELEASES`
    :param packages: what it has beside the essential packages and APT
    :param anew: whether to make it even so
    :raises RootError: it cannot be made; needs root
    """
    if os.geteuid() != 0:
        raise RootError('Only root can make a root; run it as root.')
    packages = sorted({*_ALWAYS, *packages})
    settings = _apt_settings()
    authorities = _authorities()
    archives = sources(release)
    key = hashlib.sha256(repr((
        release, packages, settings, archives,
        [path.read_bytes() for path in authorities])).encode()).hexdigest()
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    tar = cache / f'root-{release}-{key[:16]}.tar'
    with _locked(cache / f'root-{release}-{key[:16]}.lock'):
        if anew or not _in_use(tar):
            _say(f'Making a minimal {release} with {len(packages)} packages '
                 f'asked for')
            _bootstrap(release, packages, settings, archives, authorities, tar)
    return tar


def _bootstrap(release: str, packages: Sequence[str], settings: Sequence[str],
               archives: str, authorities: Sequence[pathlib.Path],
               tar: pathlib.Path) -> None:
    if shutil.which('mmdebstrap') is None:
        raise RootError('mmdebstrap is not installed: apt-get install '
                        'mmdebstrap.')
    with tempfile.TemporaryDirectory(
            prefix='nova-kvm-ext-mmdebstrap-', dir=namespaces.BASE) as work, \
            made(tar) as new:
        hooks = []
        for path in authorities:
            name = shlex.quote(str(path))
            hooks.append(f'--customize-hook=install -D -m 0644 {name} '
                         f'"$1"{name}')
        if authorities:
            hooks.append('--customize-hook=chroot "$1" '
                         'update-ca-certificates > /dev/null')
        # As mmdebstrap's own log of what went wrong is long.
        log = pathlib.Path(work, 'log')
        with open(log, 'w') as output:
            done = subprocess.run(
                ['mmdebstrap', '--variant=apt', '--mode=root', '--quiet',
                 '--format=tar', f'--include={",".join(packages)}',
                 '--aptopt=APT::Install-Recommends "false"',
                 *(f'--aptopt={setting}' for setting in settings),
                 '--dpkgopt=force-unsafe-io', *hooks, release, new, '-'],
                input=archives, text=True, stdout=output,
                stderr=subprocess.STDOUT)
        if done.returncode:
            raise RootError(f'mmdebstrap failed for {release}: '
                            f'{log.read_text()[-3000:]}')


# How it is used


def _environment() -> dict[str, str]:
    """What a process in a root knows of this machine."""
    passed = {name: value for name, value in os.environ.items()
              if _ENVIRONMENT.fullmatch(name)}
    return passed | {'HOME': '/root', 'LANG': 'C.UTF-8', 'PATH': _PATH,
                     'SHELL': '/bin/sh', 'USER': 'root'}


class Root:
    """A system in use; a context manager.

    :param release: one of :data:`RELEASES`
    :param packages: what it is to have, see :func:`make`
    :param binds: what of the machine to show inside: source, target and, to
        keep it from being written to, "ro". A file or a directory.
    :param kvm_mode: of the /dev/kvm of its own, which belongs to root; None
        for none. There is none where the machine has none.
    :param network: whether to have a network of its own, with a loopback
        device alone, instead of the machine's; or the root whose it shares
    :param hostname: its name
    :param anew: whether not to use the cache
    """

    tree: pathlib.Path
    """Its file system as the machine sees it, without what is mounted."""

    pid: int
    """A process that is in its namespaces."""

    def __init__(self, release: str, packages: Sequence[str] = (), *,
                 binds: Sequence[Sequence[str]] = (),
                 kvm_mode: int | None = 0o600,
                 network: 'bool | Root' = False,
                 hostname: str = '', anew: bool = False) -> None:
        self._release = release
        self._packages = packages
        self._binds = list(binds)
        self._kvm_mode = kvm_mode
        self._network = network
        self._hostname = hostname or release
        self._anew = anew
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> 'Root':
        tar = make(self._release, self._packages, anew=self._anew)
        with self._stack:
            self._unpack(tar)
            self._enter_namespaces()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def enter(self, command: Sequence[str], *,
              outside: bool = False) -> list[str]:
        """The command that runs another inside, for any process of root.

        The environment is the caller's: see :meth:`run`.

        :param outside: whether in the machine's network, in any case
        """
        kinds = ['uts', 'ipc',
                 *(['net'] if self._network and not outside else [])]
        return [*namespaces.enter(self.pid, *kinds), *command]

    def run(self, command: Sequence[str], *,
            environment: Mapping[str, str] | None = None, check: bool = True,
            outside: bool = False, **kwargs: Any
            ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, with a fresh environment.

        :param environment: more variables
        :param check: whether a command that fails is an error
        :param outside: whether in the machine's network, as apt needs
        :param kwargs: further ones of subprocess.run, timeout among them
        :raises RootError: the command failed
        """
        kwargs.setdefault('text', True)
        if check and 'stdout' not in kwargs and 'capture_output' not in kwargs:
            kwargs.update(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        done = subprocess.run(
            self.enter(command, outside=outside), umask=0o022,
            env=_environment() | dict(environment or {}), **kwargs)
        if check and done.returncode:
            raise RootError(
                f'{shlex.join(command)} in {self._release}: exit code '
                f'{done.returncode}: {(done.stdout or "").strip()}'
                f'{(done.stderr or "").strip()}')
        return done

    def seen(self, path: str) -> pathlib.Path:
        """Where the machine sees a path of the root, mounts and all."""
        return pathlib.Path(f'/proc/{self.pid}/root{path}')

    def _unpack(self, tar: pathlib.Path) -> None:
        self._directory, self._lock = namespaces.make_directory(_PREFIX)
        self._stack.callback(os.close, self._lock)
        self._stack.callback(shutil.rmtree, self._directory)
        # Whom the root's users are, no user of the machine is.
        self.tree = self._directory / 'root'
        self.tree.mkdir()
        self.tree.chmod(0o755)
        subprocess.run(['tar', '--extract', '--file', tar, '--directory',
                        self.tree, '--numeric-owner', '--xattrs',
                        '--xattrs-include=*', '--exclude=./dev/*'],
                       check=True)
        (self.tree / 'etc/hostname').write_text(f'{self._hostname}\n')
        (self.tree / 'etc/hosts').write_text(
            f'127.0.0.1 localhost {self._hostname}\n')

    def _enter_namespaces(self) -> None:
        kinds = ['--uts', '--ipc', *(['--net'] if self._network is True
                                     else [])]
        shared = ([] if isinstance(self._network, bool) else
                  ['nsenter', f'--net=/proc/{self._network.pid}/ns/net'])
        try:
            first = namespaces.start(
                [*shared, *namespaces.unshare(*kinds, propagation='private')],
                self._lock, self._directory.name)
        except OSError as e:
            raise RootError(f'No namespaces for a root: {e}; it needs '
                            f'CAP_SYS_ADMIN.') from e
        self.pid = first.pid
        self._stack.callback(first.communicate, '\n', timeout=_TIMEOUT)
        done = subprocess.run(
            self.enter(['sh', '-ec', '\n'.join(self._set_up())]),
            umask=0o022, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=_TIMEOUT)
        if done.returncode:
            raise RootError(f'A root could not be set up: {done.stdout}')

    def _set_up(self) -> list[str]:
        """The commands that make the machine's view that of the root."""
        mount = namespaces.MOUNT
        return [
            f'{mount} --bind {self.tree} {self.tree}',
            f'cd {self.tree}',
            f'{mount} -t proc none proc',
            f'{mount} -t sysfs none sys',
            f'{mount} -t tmpfs -o mode=0755 none run',
            'mkdir run/lock',
            f'{mount} -t tmpfs -o mode=1777 none tmp',
            *self._devices(), *self._shown(),
            f'hostname {self._hostname}',
            *(['ip link set lo up'] if self._network else []),
            'mkdir -p .machine',
            'pivot_root . .machine',
            'umount --lazy --no-mtab /.machine',
            'rmdir /.machine']

    def _devices(self) -> list[str]:
        mount = namespaces.MOUNT
        commands = [
            f'{mount} -t tmpfs -o mode=0755 none dev',
            'mkdir dev/net dev/pts dev/shm',
            # The group is Debian's tty.
            f'{mount} -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 '
            'none dev/pts',
            f'{mount} -t tmpfs -o mode=1777 none dev/shm',
            'ln -s pts/ptmx dev/ptmx',
            'ln -s /proc/self/fd dev/fd']
        for number, name in enumerate(('stdin', 'stdout', 'stderr')):
            commands.append(f'ln -s /proc/self/fd/{number} dev/{name}')
        nodes = [*_NODES, *(node for node in _DRIVERS
                            if os.path.exists(f'/dev/{node[0]}'))]
        if self._kvm_mode is not None and os.path.exists('/dev/kvm'):
            nodes.append(('kvm', self._kvm_mode, 10, 232))
        for name, mode, major, minor in nodes:
            commands.append(f'mknod --mode={mode:04o} dev/{name} c {major} '
                            f'{minor}')
        return commands

    def _shown(self) -> list[str]:
        """The commands that show what of the machine is to be seen."""
        mount = namespaces.MOUNT
        commands = []
        for source, target, *options in [*self._given(), *self._binds]:
            source = os.path.realpath(os.path.expanduser(source))
            place = shlex.quote(f'./{target.lstrip("/")}')
            make = 'mkdir -p' if os.path.isdir(source) else 'touch'
            commands += [
                f'mkdir -p "$(dirname {place})"', f'{make} {place}',
                f'{mount} --rbind {shlex.quote(source)} {place}']
            if 'ro' in options:
                commands.append(f'{mount} -o remount,bind,ro {place}')
        return commands

    def _given(self) -> list[tuple[str, ...]]:
        """What every root sees: how to reach the network, no more."""
        files = [('/etc/resolv.conf', '/etc/resolv.conf'), *_PIP]
        # Certificates and programs that APT's settings name.
        files += [(value, value) for value in re.findall(
            r'"(/[^"]*)"', '\n'.join(_apt_settings()))]
        return [(source, target, 'ro') for source, target in files
                if os.path.isfile(os.path.expanduser(source))]


# The command


def _say(text: str) -> None:
    print(f'==> {text}', file=sys.stderr, flush=True)


def _mode(text: str) -> int | None:
    if text == 'none':
        return None
    if not re.fullmatch('0?[0-7]{3}', text):
        raise argparse.ArgumentTypeError(
            f'{text} is no mode such as 0660, and not none')
    return int(text, 8)


def _bind(text: str) -> list[str]:
    parts = text.split(':')
    if len(parts) == 1:
        parts *= 2
    if not os.path.exists(parts[0]):
        raise argparse.ArgumentTypeError(f'there is no {parts[0]}')
    if len(parts) > 3 or parts[2:] not in ([], ['ro']) or \
            not parts[1].startswith('/'):
        raise argparse.ArgumentTypeError(
            f'{text} is not SOURCE[:TARGET[:ro]], with absolute paths')
    return parts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='tools/run-in-root', usage='%(prog)s RELEASE [options] '
        '[-- COMMAND [ARGUMENT...]]',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description='Run a command in a minimal Debian of its own, which is '
        'gone when the command has ended. Without a command, only make the '
        'system that is kept in the cache, and print where that is.',
        epilog='Exit code: that of the command, or 125 when it could not be '
        'run.')
    parser.add_argument('release', choices=RELEASES)
    parser.add_argument(
        '--package', action='append', default=[], metavar='NAME[,NAME...]',
        help='a package that the system is to have')
    parser.add_argument(
        '--bind', action='append', default=[], type=_bind,
        metavar='SOURCE[:TARGET[:ro]]',
        help='a directory or file of this machine that is to be seen inside')
    parser.add_argument(
        '--env', action='append', default=[], metavar='NAME=VALUE',
        help='a variable for the command')
    parser.add_argument(
        '--directory', default='/root', help='where the command starts')
    parser.add_argument(
        '--kvm', type=_mode, default='0600', metavar='MODE|none',
        help='the mode of its /dev/kvm')
    parser.add_argument(
        '--net', action='store_true',
        help='a network of its own, with the loopback device alone')
    parser.add_argument(
        '--anew', action='store_true',
        help='make the system even if the cache has it')
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = list(sys.argv[1:] if arguments is None else arguments)
    command = []
    if '--' in options:
        split = options.index('--')
        options, command = options[:split], options[split + 1:]
    parsed = _parser().parse_args(options)
    packages = [name for text in parsed.package
                for name in re.split('[ ,]+', text) if name]
    try:
        if not command:
            print(make(parsed.release, packages, anew=parsed.anew))
            return 0
        with Root(parsed.release, packages, binds=parsed.bind,
                  kvm_mode=parsed.kvm, network=parsed.net,
                  anew=parsed.anew) as root:
            return root.run(
                ['env', f'--chdir={parsed.directory}', *parsed.env, *command],
                check=False).returncode
    except RootError as e:
        print(e, file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130


if __name__ == '__main__':
    # Nothing inside may outlive a command that is asked to end.
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
