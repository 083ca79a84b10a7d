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
"""libvirt's source package, from Debian's archive, in a directory of ours.

apt is given directories and a list of sources of its own, so this machine's
are neither read nor changed, and no root is needed.
"""

from collections.abc import Iterator
import os
import pathlib
import re
import subprocess
import tarfile

MIRROR = os.environ.get('NOVA_KVM_EXT_MIRROR', 'http://deb.debian.org/debian')
KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'
_TIMEOUT = 600
# What is unpacked: the tests' data and list, and the CPU map that they use.
_WANTED = ('tests/cputest.c', 'tests/cputestdata/', 'tests/domaincapsdata/',
           'src/cpu_map/', 'src/qemu/qemu_capabilities.c')


class Unavailable(Exception):
    """The source package cannot be had; says why."""


def version(source: pathlib.Path) -> str:
    """The version of an unpacked source, such as 11.3.0.

    :raises Unavailable: it is no source of libvirt
    """
    found = re.fullmatch(r'libvirt-([0-9.]+)', source.resolve().name)
    if found is None or not (source / 'tests/cputest.c').is_file():
        raise Unavailable(
            f'{source} is no unpacked source of libvirt: a directory '
            f'libvirt-VERSION with tests/cputest.c in it')
    return found[1]


def fetch(suite: str, directory: pathlib.Path) -> pathlib.Path:
    """The unpacked source of a suite's libvirt, fetched if it is not there.

    :raises Unavailable: the archive does not have it
    """
    place = directory / suite
    for part in ('state/lists/partial', 'cache/archives/partial', 'etc',
                 'parts'):
        (place / part).mkdir(parents=True, exist_ok=True)
    (place / 'status').touch()
    (place / 'etc/sources.list').write_text(
        f'deb-src [signed-by={KEYRING}] {MIRROR} {suite} main\n')
    # A mirror that stands still is good enough: the package is compared with
    # its checksum all the same.
    (place / 'apt.conf').write_text(
        f'Dir::State "{place}/state";\n'
        f'Dir::State::status "{place}/status";\n'
        f'Dir::Cache "{place}/cache";\n'
        f'Dir::Etc::sourcelist "{place}/etc/sources.list";\n'
        f'Dir::Etc::sourceparts "{place}/parts";\n'
        f'Dir::Etc::parts "{place}/parts";\n'
        f'Dir::Etc::preferencesparts "{place}/parts";\n'
        f'APT::Sandbox::User "";\n'
        f'Acquire::Check-Valid-Until "false";\n')
    _apt(place, 'update')
    _apt(place, 'source', '--only-source', '--tar-only', 'libvirt')
    archives = sorted(place.glob('libvirt_*.orig.tar.*z'),
                      key=lambda path: path.stat().st_mtime)
    if not archives:
        raise Unavailable(f'apt-get source libvirt of {suite} left no '
                          f'libvirt_*.orig.tar')
    return _unpack(archives[-1], place)


def _apt(place: pathlib.Path, *arguments: str) -> None:
    try:
        done = subprocess.run(
            ('apt-get', '-q', *arguments), cwd=place, timeout=_TIMEOUT,
            env=os.environ | {'APT_CONFIG': str(place / 'apt.conf')},
            stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Unavailable(f'apt-get {arguments[0]}: {e}') from e
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines()
                if line.startswith('E:')]
        raise Unavailable(f'apt-get {arguments[0]}: '
                          f'{(said or [f"exit code {done.returncode}"])[0]}')


def _unpack(archive: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
    """What is wanted of an archive; returns the directory libvirt-VERSION."""
    with tarfile.open(archive) as tar:
        top = tar.next().name.partition('/')[0]
        tar.extractall(place, filter='data',
                       members=_members(tar, f'{top}/'))
    version(place / top)
    return place / top


def _members(tar: tarfile.TarFile, top: str) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        if member.name.removeprefix(top).startswith(_WANTED):
            yield member
