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

"""Times of what is asked of a fleet, on a synthetic one.

Its kinds are real domain capabilities (tests/data) of which some features are
removed at random, the same ones for the same seed. Run it by
tools/bench-fleet. It is no test: a busy machine has other times, so those of
the CPU are printed.
"""

import argparse
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import os
import random
import re
import resource
import sys
import tempfile
import time
from typing import Any
from unittest import mock

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.cpu import reader
from nova_kvm_ext.fleet import baseline
from nova_kvm_ext.fleet import export
from nova_kvm_ext.fleet import files
from nova_kvm_ext.fleet import fit
from nova_kvm_ext.fleet import kinds
from nova_kvm_ext.fleet import page
from nova_kvm_ext.scheduler import filters

_DATA = os.path.join(os.path.dirname(__file__), 'data')
_DOCUMENTS = ('domcapabilities-libvirt-11.3-qemu-10.0-pc-kvm.xml',
              'domcapabilities-libvirt-12.8-qemu-11.1-q35-kvm.xml')
_MOST_TAKEN = 6
_FILTERED = 1000


@dataclasses.dataclass(frozen=True)
class Time:
    """How long a piece of work has kept the CPU.

    :ivar limit: seconds that it should take at the most; None for no aim
    """

    what: str
    seconds: float
    limit: float | None


def documents(number: int, seed: int, x86_map: cpu_map.CPUMap) -> list[str]:
    """Domain capabilities of so many kinds."""
    chosen = random.Random(seed)
    texts = []
    for name in _DOCUMENTS:
        with open(os.path.join(_DATA, name)) as f:
            texts.append(f.read())
    found: dict[str, str] = {}
    while len(found) < number:
        text = chosen.choice(texts)
        # Up to the models: what host-model gives is before them.
        head, mode, rest = re.split(r"(<mode name=.custom.)", text, 1)
        features = re.findall(
            r"\s*<feature policy=.require. name=.[^'\"]+./>", head)
        taken = sorted(chosen.sample(
            features, chosen.randint(1, min(_MOST_TAKEN, len(features)))))
        for feature in taken:
            head = head.replace(feature, '')
        # Two names can be one feature to libvirt's CPU map.
        document = f'{head}{mode}{rest}'
        found[export.of_capabilities(
            capabilities.parse(document), x86_map).digest] = document
    return list(found.values())


@contextlib.contextmanager
def timed(times: list[Time], what: str,
          limit: float | None = None) -> Iterator[None]:
    start = time.process_time()
    yield
    times.append(Time(what, time.process_time() - start, limit))


def run(hosts: int, number: int, seed: int, directory: str) -> list[Time]:
    """Make the fleet and ask of it what is asked."""
    x86_map = reader.read_map()
    if x86_map is None:
        sys.exit('libvirt\'s CPU map is not on this machine (package '
                 'libvirt-common or libvirt-daemon).')
    texts = documents(number, seed, x86_map)
    exports = [export.to_json(export.Export(
        'NAME', export.of_capabilities(capabilities.parse(text), x86_map),
        libvirt='11.3.0', qemu='10.0.2', kernel='6.12.38',
        microcode='0x1', nested=True)) for text in texts]
    chosen = random.Random(seed)
    for kind in ('exports', 'documents'):
        os.makedirs(os.path.join(directory, kind), exist_ok=True)
    for at in range(hosts):
        which = chosen.randrange(len(texts))
        for kind, text in (
                ('exports/host{:05}.json', exports[which].replace(
                    '"NAME"', f'"host{at:05}"', 1)),
                ('documents/host{:05}.xml', texts[which])):
            with open(os.path.join(directory, kind.format(at)), 'w') as f:
                f.write(text)
    times: list[Time] = []
    with timed(times, f'{hosts} exports: read, kinds, baseline, matrix', 2):
        read = files.read(files.paths([directory + '/exports']), x86_map)
        found = kinds.group(read.hosts)
        fleet = fit.Fleet(found, x86_map)
        with timed(times, f'{len(found)} kinds: matrix', 0.05):
            fleet.matrix()
        with timed(times, f'{len(found)} kinds: baseline'):
            baseline.of(fleet)
    with timed(times, f'{len(found)} kinds: page'):
        page.render(fleet)
    with timed(times, f'{hosts} documents: read, kinds', 15):
        kinds.group(files.read(
            files.paths([directory + '/documents']), x86_map).hosts)
    times.append(_filtered(read.hosts[:_FILTERED], found[0]))
    return times


def _filtered(hosts: tuple[export.Export, ...], kind: kinds.Kind) -> Time:
    """The scheduler's filter, as it is in a scheduler that has run a while."""

    @dataclasses.dataclass
    class State:
        host: str
        cpu_info: str

    states = [State(host.host, f'{{"{export.MARK}": {export.to_json(host)}}}')
              for host in hosts]
    tested = filters.KVMExtCPUFilter()
    cpu = kind.cpu.caps.host_model
    assert cpu is not None
    times: list[Time] = []
    with (mock.patch.object(tested, '_moving', lambda spec: cpu),
          mock.patch.object(filters, 'LOG')):
        spec: Any = mock.Mock()
        ask: Callable[[], Any] = lambda: list(tested.filter_all(states, spec))
        ask()
        with timed(times, f'{len(states)} hosts: filter', 0.005):
            ask()
    return times[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--hosts', type=int, default=10_000)
    parser.add_argument('--kinds', type=int, default=64)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--keep', metavar='DIR',
                        help='make the fleet there and leave it')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = run(args.hosts, args.kinds, args.seed, args.keep or scratch)
    print(f'{"what":48} {"CPU s":>8} {"aim":>8}')
    for each in found:
        aim = '' if each.limit is None else f'{each.limit:g}'
        print(f'{each.what:48} {each.seconds:8.3f} {aim:>8}')
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f'{"peak memory, MiB":48} {peak:8} {500:>8}')


if __name__ == '__main__':
    main()
