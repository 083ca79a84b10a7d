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

"""Disks of all kinds that Nova and QEMU make, for tests of their sizes."""

import dataclasses
import os
import pathlib
import subprocess
import uuid

import hypothesis
from hypothesis import strategies
import tenacity

# Without shrinking, which takes minutes: an example is small as it is.
SETTINGS = hypothesis.settings(
    deadline=None, database=None, phases=[hypothesis.Phase.generate],
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow])


@dataclasses.dataclass(frozen=True)
class Disk:
    """How one is made.

    :ivar size: bytes of the disk
    :ivar options: those of qemu-img create
    :ivar backing: formats of the chain behind it, the nearest first
    :ivar written: (offset, length) of data in it
    :ivar snapshots: internal ones
    :ivar bitmap: it has a persistent one
    :ivar grown: bytes by which it is resized
    :ivar tail: bytes that are cut off the file, or added to it
    """

    size: int
    raw: bool = False
    options: tuple[str, ...] = ()
    backing: tuple[str, ...] = ()
    written: tuple[tuple[int, int], ...] = ()
    snapshots: int = 0
    bitmap: bool = False
    grown: int = 0
    tail: int = 0

    def make(self, directory: pathlib.Path) -> str:
        """Path of a new image."""
        path = str(directory / uuid.uuid4().hex)
        if self.raw:
            with open(path, 'wb') as f:
                f.truncate(self.size + self.grown)
                for offset, length in self.written:
                    f.seek(offset)
                    f.write(os.urandom(length))
            return path
        backing: list[str] = []
        if self.backing:
            behind = Disk(self.size, raw=self.backing[0] == 'raw',
                          backing=self.backing[1:]).make(directory)
            if self.size % 2:
                # A name that is relative to the image.
                behind = os.path.basename(behind)
            backing = ['-b', behind, '-F', self.backing[0]]
        run('create', '-f', 'qcow2', *(
            ('-o', ','.join(self.options)) if self.options else ()),
            *backing, path, str(self.size))
        end = max((offset + length for offset, length in self.written),
                  default=0)
        if end <= self.size:
            subprocess.run(
                ['qemu-io', '-f', 'qcow2', *(
                    argument for offset, length in self.written
                    for argument in ('-c', f'write {offset} {length}')),
                 path], check=True, capture_output=True)
        for number in range(self.snapshots):
            run('snapshot', '-c', f's{number}', path)
        if self.grown and not self.snapshots:
            run('resize', '-f', 'qcow2', path, f'+{self.grown}')
        if self.bitmap and 'compat=0.10' not in self.options:
            run('bitmap', '--add', path, 'b0')
        # qemu-img refuses lists of snapshots or bitmaps that are cut off. What
        # the header says holds all the same.
        if self.tail and not (self.snapshots or self.bitmap):
            os.truncate(path, max(
                512, os.path.getsize(path) + self.tail))
        return path


# For LUKS it measures how fast it hashes, which fails now and then.
@tenacity.retry(
    stop=tenacity.stop_after_attempt(30), reraise=True,
    retry=tenacity.retry_if_exception(
        lambda e: b'accurate CPU usage' in getattr(e, 'stderr', b'')))
def run(*arguments: str) -> None:
    subprocess.run(['qemu-img', *arguments], check=True, capture_output=True)


def _can_be_made(disk: Disk) -> bool:
    if 'preallocation=metadata' in disk.options:
        return disk.size < 1 << 36 and not disk.backing
    # A cluster with data is counted once for the disk and for each snapshot.
    for bits in (1, 2):
        if f'refcount_bits={bits}' in disk.options:
            return disk.snapshots + 1 < 1 << bits
    return True


def disks() -> strategies.SearchStrategy[Disk]:
    mib = 1 << 20
    sizes = strategies.one_of(
        strategies.integers(1, 64 * mib), strategies.just(10 << 30),
        strategies.integers(1, 1 << 43))
    clusters = strategies.sampled_from(
        [f'cluster_size={1 << bits}' for bits in range(9, 22)])
    # With small clusters QEMU refuses a large disk.
    version_2 = strategies.tuples(
        strategies.just('compat=0.10'), strategies.sampled_from(
            ['cluster_size=65536', 'cluster_size=2097152']))
    version_3 = strategies.one_of(
        strategies.just(()), strategies.just(('cluster_size=2097152',)),
        strategies.just(('lazy_refcounts=on',)),
        strategies.just(('extended_l2=on', 'cluster_size=131072')),
        strategies.just(('compression_type=zstd',)),
        strategies.sampled_from([1, 2, 4, 8, 16, 32, 64]).map(
            lambda bits: (f'refcount_bits={bits}',)),
        strategies.just(('preallocation=metadata', 'cluster_size=2097152')))
    common = {
        'backing': strategies.lists(
            strategies.sampled_from(['raw', 'qcow2']), max_size=3).map(
                lambda chain: tuple(chain[:chain.index('raw') + 1]
                                    if 'raw' in chain else chain)),
        'written': strategies.lists(strategies.tuples(
            strategies.integers(0, 200).map(lambda at: at << 16),
            strategies.just(1 << 16)), max_size=4).map(tuple),
        'snapshots': strategies.sampled_from([0, 0, 0, 1, 3]),
        'bitmap': strategies.sampled_from([False, False, False, True]),
        'grown': strategies.sampled_from([0, 0, 512, 7 * mib]),
        'tail': strategies.sampled_from([0, 0, 0, 4096, -65536]),
    }
    small = strategies.builds(
        Disk, size=strategies.integers(1, 16 * mib),
        options=clusters.map(lambda option: (option,)), **common)
    large = strategies.builds(
        Disk, size=sizes, options=strategies.one_of(version_2, version_3),
        **common).filter(_can_be_made)
    raw = strategies.builds(
        Disk, size=strategies.integers(1, 64 * mib), raw=strategies.just(True),
        written=common['written'], grown=common['grown'])
    return strategies.one_of(small, large, large, raw)
