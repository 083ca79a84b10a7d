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

"""Reads a fleet from files: a directory with one file for each host.

A file is the output of ``nova-kvm-ext cpu export`` or of ``virsh
domcapabilities``; the name of the latter is the name of the host.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import hashlib
import os
import re
import stat

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.cpu import document
from nova_kvm_ext import errors
from nova_kvm_ext.fleet import export

ENDINGS = ('.json', '.xml')

# What of domain capabilities a kind of host is told by. The same texts are
# the same CPUs, whatever stands between them.
_PARTS = (re.compile(rb'<domain>.*?</domain>', re.DOTALL),
          re.compile(rb'<arch>.*?</arch>', re.DOTALL))


@dataclasses.dataclass(frozen=True)
class Read:
    """What was read.

    :ivar hosts: one for each file that could be read
    :ivar refused: why the others could not, a sentence each
    """

    hosts: tuple[export.Export, ...]
    refused: tuple[str, ...]


def paths(places: Sequence[str]) -> tuple[str, ...]:
    """The files of directories, and files that are named.

    :raises errors.InvalidRequest: there is no such file, or none in it
    """
    found: list[str] = []
    for place in places:
        try:
            if not os.path.isdir(place):
                os.stat(place)
                found.append(place)
                continue
            inside = sorted(
                entry.path for entry in os.scandir(place)
                if entry.name.endswith(ENDINGS))
        except OSError as e:
            raise errors.InvalidRequest(
                f'{errors.clean(place, 200)} cannot be read: {e.strerror}.',
                'Name a directory of exports (nova-kvm-ext cpu export).'
            ) from e
        if not inside:
            raise errors.InvalidRequest(
                f'{errors.clean(place, 200)} has no file whose name ends in '
                f'{" or ".join(ENDINGS)}.',
                'Name a directory of exports (nova-kvm-ext cpu export).')
        found += inside
    return tuple(found)


def read(files: Sequence[str], x86_map: cpu_map.CPUMap | None,
         progress: Callable[[int], None] = lambda done: None) -> Read:
    """The hosts of these files. A bad file costs its host alone.

    :param x86_map: libvirt's CPU map, for domain capabilities
    :param progress: called with the number of files that have been read
    """
    reader = _Reader(x86_map)
    hosts, refused = [], []
    for done, path in enumerate(files, 1):
        try:
            hosts.append(reader.read(path))
        except errors.KVMExtError as e:
            refused.append(str(e))
        progress(done)
    return Read(tuple(hosts), tuple(refused))


class _Reader:
    def __init__(self, x86_map: cpu_map.CPUMap | None) -> None:
        self._x86_map = x86_map
        self._exports = export.Parser()
        self._documents: dict[bytes, export.HostCPU] = {}

    def read(self, path: str) -> export.Export:
        text = read_file(path)
        what = errors.clean(path, 200)
        if not text.lstrip()[:1] == b'<':
            return self._exports.parse(text, what)
        name, ending = os.path.splitext(os.path.basename(path))
        key = hashlib.sha256(b''.join(_told_by(text))).digest()
        cpu = self._documents.get(key)
        if cpu is None:
            try:
                caps = capabilities.parse(text.decode(errors='replace'))
            except errors.HostError as e:
                raise errors.HostError(f'{what}: {e.problem}', e.remedy)
            cpu = export.of_capabilities(caps, self._x86_map)
            self._documents[key] = cpu
        return export.Export(errors.clean(name, 255), cpu)


def _told_by(text: bytes) -> Iterator[bytes]:
    head = text.find(b'<cpu')
    for part in _PARTS:
        found = part.search(text, 0, head if head > 0 else len(text))
        yield found[0] if found else b''
    yield text[head:text.rfind(b'</cpu>')]


def read_file(path: str) -> bytes:
    """What is in a regular file; opening a named pipe would block.

    :raises errors.InvalidRequest: it cannot be read
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, 'rb') as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise errors.InvalidRequest(
                    f'{errors.clean(path, 200)} is not a regular file.',
                    'Name files, or a directory with files in it.')
            return file.read(document.MAX_BYTES + 1)
    except OSError as e:
        raise errors.InvalidRequest(
            f'{errors.clean(path, 200)} cannot be read: {e.strerror}.',
            'Name files, or a directory with files in it.') from e
