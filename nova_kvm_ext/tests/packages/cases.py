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
"""What is done with the packages, and what is to be seen then."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import pathlib
import subprocess
import time

from nova_kvm_ext.tests.layouts import cases as layouts
from nova_kvm_ext.tests.layouts import report
from nova_kvm_ext.tests.layouts import system
from nova_kvm_ext.tests import roots

OURS = ('python3-nova-kvm-ext', 'nova-compute-kvm-ext')
_NOVA = ('python3-nova', 'nova-common', 'nova-compute')
_COMPUTE_CONF = '/etc/nova/nova-compute.conf'
_DEBS = '/debs'
_EDIT = 'virt_type = auto'
# Where init is no systemd, nova-compute's postinst starts it by its script.
_NO_SERVICE = '#!/bin/sh\nexit 101\n'

_APT = ('env', 'DEBIAN_FRONTEND=noninteractive', 'apt-get', '-qq',
        '--no-install-recommends', '-o', 'Dpkg::Use-Pty=0')

_LOADS = """
from nova.virt import driver
print(type(driver.load_compute_driver(None, 'kvm_ext.KVMDriver')).__module__)
"""

_FILES = (
    '/usr/bin/nova-kvm-ext', '/usr/bin/nova-kvm-ext-status',
    '/usr/lib/python3/dist-packages/nova/virt/kvm_ext/__init__.py',
    '/usr/share/bash-completion/completions/nova-kvm-ext',
    '/usr/share/doc/python3-nova-kvm-ext/examples/nova-kvm-ext.conf.sample',
    '/usr/share/man/man1/nova-kvm-ext.1.gz',
    '/usr/share/man/man1/nova-kvm-ext-guest-boot.1.gz',
    '/usr/share/zsh/vendor-completions/_nova-kvm-ext',
    _COMPUTE_CONF)


@dataclasses.dataclass
class Row:
    """One thing that was done with the packages.

    :ivar case: on which system
    :ivar name: what was done
    :ivar step: what was seen then
    """

    case: str
    name: str
    step: report.Step


class Debian(system.System):
    """A Debian 13 whose apt reaches the archive."""

    def __init__(self, root: roots.Root) -> None:
        super().__init__(root, ours='/usr/bin')

    def apt(self, *arguments: str) -> str:
        """Run apt-get in the machine's network.

        :raises system.Wrong: it failed
        """
        done = self.root.run(
            [*_APT, *arguments], outside=True, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=1800)
        if done.returncode:
            raise system.Wrong(f'apt-get {" ".join(arguments)}: exit code '
                               f'{done.returncode}: {done.stdout[-1500:]}')
        return done.stdout

    def status(self, package: str) -> str:
        """What dpkg has of a package: "installed", "config-files" or ""."""
        done = self.sh("dpkg-query -W -f '${db:Status-Status}' "
                       f'{package} 2> /dev/null || true')
        return done.stdout.strip().replace('not-installed', '')

    def expect(self, **statuses: str) -> None:
        """Compare what dpkg has with what is to be.

        :param statuses: by package, with _ for -
        :raises system.Wrong: it is something else
        """
        for package, wanted in statuses.items():
            package = package.replace('_', '-')
            found = self.status(package)
            if found != wanted:
                raise system.Wrong(f'{package} is {found or "not there"}, '
                                   f'not {wanted or "gone"}')

    def whole(self, packages: Sequence[str] = _NOVA) -> None:
        """dpkg finds no file of them changed or missing but for settings.

        :raises system.Wrong: it does
        """
        found = [line for line in self.sh(
            f'dpkg --verify {" ".join(packages)} || true'
        ).stdout.splitlines() if ' c ' not in line]
        if found:
            raise system.Wrong(f'dpkg --verify: {"; ".join(found[:5])}')
        audit = self.sh('dpkg --audit').stdout
        if audit:
            raise system.Wrong(f'dpkg --audit: {audit}')

    def version(self) -> str:
        return self.sh('nova-kvm-ext --version 2>&1').stdout.split()[-1]

    def installed(self) -> str:
        """Whether all is there that the packages bring, and no more.

        :returns: the version of the command
        :raises system.Wrong: something is not there
        """
        self.expect(python3_nova_kvm_ext='installed',
                    nova_compute_kvm_ext='installed',
                    nova_compute='installed', python3_nova='installed',
                    nova_compute_kvm=self.status('nova-compute-kvm').replace(
                        'installed', ''))
        self.whole((*_NOVA, *OURS))
        for path in _FILES:
            if not self.path(path).is_file():
                raise system.Wrong(f'there is no {path}')
        if self.path('/usr/etc').exists():
            raise system.Wrong('there is a /usr/etc')
        if 'kvm_ext.KVMDriver' not in self.read(_COMPUTE_CONF):
            raise system.Wrong(f'{_COMPUTE_CONF} names another driver')
        found = self.sh(f"python3 - <<'EOF'\n{_LOADS}EOF",
                        stderr=subprocess.DEVNULL).stdout.split()
        if found[-1:] != ['nova_kvm_ext.driver']:
            raise system.Wrong(f"Nova's loader finds {found}")
        return self.version()

    def nothing_left(self) -> None:
        """Nothing of ours is anywhere.

        :raises system.Wrong: something is
        """
        found = self.sh(
            r"find / -xdev \( -iname '*kvm[-_]ext*' \) -not -path '/debs*' "
            "-not -path '/proc/*' -not -path '/nova-kvm-ext*' "
            "-not -path '/var/lib/nova/*'").stdout.split()
        if found:
            raise system.Wrong(f'left behind: {", ".join(found[:8])}')


def _debs(version: str) -> list[str]:
    return [f'{_DEBS}/{version}/{package}.deb' for package in OURS]


class Case:
    """Rows of one system, each said when it is seen."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self.name = name
        self._say = say

    def row(self, name: str, look: Callable[[], str]) -> Row:
        step = report.looked(look, time.monotonic)
        self._say(f'  {name}: {step.result}: {step.said}')
        return Row(self.name, name, step)


# On a host that runs Nova's own driver


def swap(sources: pathlib.Path, debs: pathlib.Path,
         say: Callable[[str], None]) -> Iterator[Row]:
    """In the place of nova-compute-kvm, newer, and away again."""
    case = Case('Debian 13 with nova-compute-kvm', say)
    say(f'{case.name}: a root of trixie')
    with roots.Root(
            'trixie', layouts.PACKAGES['debian13'], network=True,
            kvm_mode=0o600, binds=[
                (str(sources), layouts.SOURCES, 'ro'),
                (str(debs), _DEBS, 'ro')]) as root:
        here = Debian(root)
        here.write('/usr/sbin/policy-rc.d', _NO_SERVICE, 0o755)
        here.sh('sed -i "s/^Defaults.*use_pty//" /etc/sudoers')
        here.allow_kvm()
        here.start_controller(layouts.SOURCES)
        here.start_libvirt()
        try:
            yield from _swapped(case, here)
        finally:
            here.stop('nova-compute')


def _swapped(case: Case, here: Debian) -> Iterator[Row]:
    yield case.row('as packaged', lambda: _runs_novas(here))

    def install() -> str:
        here.apt('update')
        here.apt('install', *_debs('1'))
        version = here.installed()
        here.expect(nova_compute_kvm='config-files')
        return f'nova-compute-kvm has made room for version {version}'

    def starts() -> str:
        here.start_compute(layouts.DEBIAN)
        return here.registered()

    yield case.row('install', install)
    yield case.row('nova-compute', starts)
    yield case.row('host check', layouts.agrees(here))
    yield case.row('guest boot', here.guest_boot)

    def upgrade() -> str:
        before = here.version()
        here.sh(f'echo "{_EDIT}" >> {_COMPUTE_CONF}')
        here.apt('install', *_debs('2'))
        after = here.installed()
        if before == after:
            raise system.Wrong(f'the version is {after} still')
        if _EDIT not in here.read(_COMPUTE_CONF):
            raise system.Wrong(f'{_COMPUTE_CONF} has lost what was set there')
        here.stop('nova-compute')
        return f'{before} to {after}, settings kept; {starts()}'

    yield case.row('upgrade', upgrade)

    def remove() -> str:
        here.stop('nova-compute')
        # dpkg asks about a file that was changed, as ours was above.
        here.apt('-o', 'Dpkg::Options::=--force-confnew', 'install',
                 'nova-compute-kvm')
        here.expect(nova_compute_kvm='installed', nova_compute='installed',
                    nova_compute_kvm_ext='config-files')
        here.whole()
        return _runs_novas(here)

    yield case.row('back', remove)

    def purge() -> str:
        here.stop('nova-compute')
        here.apt('purge', *OURS)
        here.expect(nova_compute_kvm='installed', nova_compute='installed',
                    nova_compute_kvm_ext='', python3_nova_kvm_ext='')
        here.whole((*_NOVA, 'nova-compute-kvm'))
        here.nothing_left()
        return f'nothing is left; {_runs_novas(here)}'

    yield case.row('purge', purge)


def _runs_novas(here: Debian) -> str:
    """nova-compute runs, with the driver of Nova."""
    here.start_compute(layouts.DEBIAN)
    try:
        here.registered()
    except system.Wrong as e:
        if 'not with KVMDriver' in str(e):
            return "nova-compute runs with Nova's own driver"
        raise
    finally:
        here.stop('nova-compute')
    raise system.Wrong('nova-compute runs with KVMDriver')


# On a host that has nothing yet


def fresh(sources: pathlib.Path, debs: pathlib.Path,
          say: Callable[[str], None]) -> Iterator[Row]:
    """With all that they depend on, where nothing of Nova is, and away."""
    case = Case('Debian 13 with nothing', say)
    say(f'{case.name}: a root of trixie')
    with roots.Root('trixie', binds=[(str(debs), _DEBS, 'ro')]) as root:
        here = Debian(root)
        here.write('/usr/sbin/policy-rc.d', _NO_SERVICE, 0o755)

        def install() -> str:
            here.apt('update')
            here.apt('install', *_debs('1'))
            return f'version {here.installed()}, and what it depends on'

        yield case.row('install', install)

        def purge() -> str:
            here.apt('purge', *OURS, 'nova-compute-kvm+')
            here.expect(nova_compute_kvm='installed',
                        nova_compute='installed', nova_compute_kvm_ext='',
                        python3_nova_kvm_ext='')
            here.whole((*_NOVA, 'nova-compute-kvm'))
            here.nothing_left()
            return 'nothing is left, nova-compute-kvm is there'

        yield case.row('purge', purge)


ALL = {'fresh': fresh, 'swap': swap}


def lay_out(first: pathlib.Path, second: pathlib.Path,
            directory: pathlib.Path) -> None:
    """The packages of two versions as the cases want them.

    :param first: a directory of tools/build-deb
    :param second: one with a higher version
    :param directory: an empty one
    """
    for name, built in (('1', first), ('2', second)):
        (directory / name).mkdir()
        for package in OURS:
            [deb] = built.glob(f'{package}_*.deb')
            (directory / name / f'{package}.deb').write_bytes(
                deb.read_bytes())
