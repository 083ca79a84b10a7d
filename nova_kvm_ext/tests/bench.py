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

"""KVMDriver side by side with LibvirtDriver: a benchmark, not a test.

``tools/bench`` runs it. Both drivers do the same things in one process,
alternately, on the same libvirt: Nova's fake one (init_host, guest
configuration to XML, the periodic update) and, as root, a real private one
(spawn and destroy of a guest that is never waited for). Printed are times, the
ratio of ours to Nova's with its spread, and, exactly, the libvirt calls and
the runs of qemu-img of each.

The fake has nobody wait, so there the time is that of the CPU, which hardly
depends on what else the machine does. On the real one it is the clock's.
"""

import argparse
import collections
from collections.abc import Callable
from collections.abc import Iterable
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any
import uuid

# First of all: it may patch the standard library.
import nova.tests.unit  # noqa: F401

import fixtures
from nova.compute import provider_tree
from nova import objects
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt import fake
import testtools

from nova_kvm_ext.tests import bench_dense
from nova_kvm_ext.tests import bench_drivers
from nova_kvm_ext.tests.bench_drivers import CallCounter
from nova_kvm_ext.tests.bench_drivers import DRIVERS
from nova_kvm_ext.tests import bench_page
from nova_kvm_ext.tests import bench_soak
from nova_kvm_ext.tests.unit import driver_base

GUESTS = 100

Times = dict[str, dict[str, list[float]]]
Calls = dict[str, dict[str, collections.Counter[str]]]


def in_turns(rounds: int, actions: dict[str, Callable[[], Any]]
             ) -> dict[str, list[float]]:
    """CPU seconds of each action in each round; who is first alternates."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds):
        for name in sorted(actions, reverse=bool(number % 2)):
            started = time.thread_time()
            actions[name]()
            seconds[name].append(time.thread_time() - started)
    return seconds


class FakeLibvirt(driver_base.DriverTestCase):
    """What both drivers do on Nova's fake libvirt."""

    # Of the class, because Nova's tests forget their attributes at the end.
    rounds = 1
    times: Times = {}
    calls: Calls = collections.defaultdict(dict)

    def setUp(self) -> None:
        super().setUp()
        self.counter = CallCounter(fakelibvirt.Connection, fakelibvirt.Domain)

    def start(self, cls: type) -> Any:
        found = cls(fake.FakeVirtAPI())
        found.init_host('host')
        return found

    def compare(self, name: str, rounds: int,
                action: Callable[[Any], Any], subjects: dict[str, Any]
                ) -> None:
        """Time an action on each subject, and count its libvirt calls."""
        for key, subject in subjects.items():
            action(subject)
            with self.counter.counting() as calls:
                action(subject)
            self.calls[name][key] = collections.Counter(calls)
        self.times[name] = in_turns(rounds, {
            key: functools.partial(action, subject)
            for key, subject in subjects.items()})

    def test_all(self) -> None:
        drivers = {name: self.start(cls) for name, cls in DRIVERS.items()}
        self.compare('init_host', self.rounds, self.start, DRIVERS)
        self.compare(
            'guest to XML', 20 * self.rounds,
            lambda d: self.guest_xml(
                d, {'hw_qemu_guest_agent': 'yes'}), drivers)
        self.guests(drivers.values())
        self.compare(f'update, {GUESTS} guests', self.rounds,
                     self.update, drivers)

    def guests(self, drivers: Iterable[Any]) -> None:
        """The same running guests for each driver's fake libvirt."""
        instances = []
        for _ in range(GUESTS):
            guest_id = str(uuid.uuid4())
            for drvr in drivers:
                drvr._host.get_connection().defineXML(
                    f'<domain type="kvm"><name>{guest_id}</name>'
                    f'<uuid>{guest_id}</uuid><memory>524288</memory>'
                    f'<vcpu>1</vcpu><os><type>hvm</type></os><devices/>'
                    f'</domain>').createWithFlags(0)
            instances.append(objects.Instance(
                uuid=guest_id, root_device_name=None, ephemeral_gb=0,
                system_metadata={}, image_ref=''))
        # The update asks Nova's database for them.
        for cls, name, found in (
                (objects.InstanceList, 'get_by_filters', instances),
                (objects.BlockDeviceMappingList, 'bdms_by_instance_uuid',
                 {instance.uuid: [] for instance in instances})):
            self.useFixture(fixtures.MockPatchObject(
                cls, name, return_value=found))

    @staticmethod
    def update(drvr: Any) -> None:
        """What the compute manager asks for each minute."""
        drvr.get_available_resource('node')
        tree = provider_tree.ProviderTree()
        tree.new_root('node', str(uuid.uuid4()), generation=1)
        drvr.update_provider_tree(tree, 'node')


def on_fake_libvirt(rounds: int) -> tuple[Times, Calls]:
    """:raises RuntimeError: something failed; it says what"""
    FakeLibvirt.rounds = rounds
    _run(FakeLibvirt('test_all'))
    return FakeLibvirt.times, FakeLibvirt.calls


def _run(case: testtools.TestCase) -> None:
    result = testtools.TestResult()
    case.run(result)
    if not result.wasSuccessful():
        raise RuntimeError('\n'.join(
            text for _, text in result.errors + result.failures))


# In a process of its own, as it needs Nova's real configuration.
_REAL = 'real'


def on_real_libvirt(rounds: int) -> tuple[Times, Calls]:
    """Spawn and destroy on a private libvirtd; needs root."""
    from nova_kvm_ext.tests.functional import libvirtd
    with libvirtd.PrivateLibvirt() as private:
        with tempfile.TemporaryDirectory(dir='/var/tmp') as directory:
            os.chmod(directory, 0o755)
            told = subprocess.run(
                [sys.executable, '-m', __spec__.name, _REAL, str(rounds),
                 private.uri, directory], stdout=subprocess.PIPE, check=True)
    return json.loads(told.stdout.splitlines()[-1])


def _real(rounds: int, uri: str, directory: str) -> None:
    import libvirt
    from nova.compute import task_states

    from nova_kvm_ext.boot import cloudless
    disk = os.path.join(directory, 'disk.qcow2')
    subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', disk, '64M'],
                   check=True)
    with open(os.path.join(directory, 'nova.conf'), 'w') as f:
        f.write(f'[libvirt]\nconnection_uri = {uri}\nvirt_type = qemu\n')
    cloudless.configure(directory, directory, [f.name])
    image = cloudless.LocalImage(disk, 'qcow2',
                                 {'hw_qemu_guest_agent': 'yes'})
    counter = CallCounter(libvirt.virConnect, libvirt.virDomain)
    drivers = {}
    for name, cls in DRIVERS.items():
        drivers[name] = cls(cloudless.virtapi())
        drivers[name].init_host(cloudless.CONF.host)
        image.serve(drivers[name])
    ctx, network = cloudless.context(), cloudless.network(None, None)
    times: Times = {part: {name: [] for name in drivers}
                    for part in ('spawn', 'destroy')}
    calls: Calls = {part: {} for part in times}
    for number in range(-1, rounds):
        for name in sorted(drivers, reverse=bool(number % 2)):
            instance = cloudless.create_instance(
                ctx, str(uuid.uuid4()), image, vcpus=1, memory_mb=64,
                extra_specs={})
            # The usual flavor has a disk, and Nova compares its size.
            instance.flavor.root_gb = 1
            # As the compute manager has a server that it builds.
            instance.task_state = task_states.SPAWNING
            for part in times:
                with counter.counting() as counted:
                    started = time.perf_counter()
                    if part == 'spawn':
                        drivers[name].spawn(ctx, instance, image.meta(), [],
                                            None, {}, network_info=network)
                    else:
                        drivers[name].destroy(ctx, instance, network)
                    seconds = time.perf_counter() - started
                # The first round fills Nova's image cache.
                if number >= 0:
                    times[part][name].append(seconds)
                    calls[part][name] = collections.Counter(counted)
            print(f'round {number + 1} of {rounds}: {name}', file=sys.stderr)
    print(json.dumps((times, calls)), flush=True)
    # Nova leaves threads behind that never end.
    os._exit(0)


# In a process of its own for each driver, and a few times.
_MEMORY = 'memory'
_MEMORY_ROUNDS = 3


class Memory(FakeLibvirt):
    """One driver, started, with its guests, after some periodic updates."""

    name = ''

    def test_all(self) -> None:
        found = self.start(DRIVERS[self.name])
        self.guests([found])
        for _ in range(5):
            self.update(found)
        print(bench_drivers.resident(), flush=True)


def memory() -> dict[str, list[float]]:
    """MiB of a process in which a driver has worked."""
    return {name: [float(subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', __spec__.name, _MEMORY, name],
        stdout=subprocess.PIPE, check=True).stdout.split()[-1])
        for _ in range(_MEMORY_ROUNDS)] for name in DRIVERS}


def _row(name: str, unit: str, scale: float,
         values: dict[str, list[float]]) -> str:
    theirs, ours = values['LibvirtDriver'], values['KVMDriver']
    ratios = sorted(o / t for o, t in zip(ours, theirs))
    return (f'{name:<20} {statistics.median(theirs) * scale:9.2f} '
            f'{statistics.median(ours) * scale:9.2f} {unit:<4} '
            f'{statistics.median(ratios):6.3f}  '
            f'{min(ours) / min(theirs):6.3f}  '
            f'{ratios[len(ratios) // 4]:.3f} .. '
            f'{ratios[-1 - len(ratios) // 4]:.3f}')


def report(times: Times, calls: Calls) -> str:
    """A table for people.

    The spread is that of the middle half. The least time of each is what a
    busy machine disturbs least, so their ratio is given, too.
    """
    lines = [f'{"":<20} {"Nova":>9} {"ours":>9}      {"ratio":>6}  '
             f'{"least":>6}  spread']
    lines += [_row(name, 'ms', 1000, values)
              for name, values in times.items()]
    lines.append(_row('memory', 'MiB', 1, memory()))
    for title, is_run in (('libvirt calls', False), ('qemu-img runs', True)):
        lines.append(f'\n{title:<20} {"Nova":>9} {"ours":>9}')
        for part, counted in calls.items():
            theirs, ours = ({
                call: count for call, count in counted[name].items()
                if call.startswith('qemu-img') is is_run}
                for name in DRIVERS)
            if theirs or ours:
                lines += _counts(part, theirs, ours)
    return '\n'.join(lines)


def _counts(part: str, theirs: dict[str, int],
            ours: dict[str, int]) -> list[str]:
    """A line with the sums, and one for each call whose count differs."""
    return [f'{part:<20} {sum(theirs.values()):9} {sum(ours.values()):9}'] + [
        f'    {call}: {theirs.get(call, 0)}, {ours.get(call, 0)}'
        for call in sorted(theirs.keys() | ours.keys())
        if theirs.get(call) != ours.get(call)]


def _at_least_one(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{word} is less than 1')
    return number


def _not_less_than_none(word: str) -> int:
    number = int(word)
    if number < 0:
        raise argparse.ArgumentTypeError(f'{word} is less than 0')
    return number


def _can_be_written(path: str) -> str:
    """Before hours of measuring, not after."""
    try:
        with open(path, 'a'):
            return path
    except OSError as e:
        raise argparse.ArgumentTypeError(f'{path}: {e.strerror}') from None


def main() -> int:
    if sys.argv[1:2] == [_REAL]:
        _real(int(sys.argv[2]), *sys.argv[3:])
    if sys.argv[1:2] == [_MEMORY]:
        Memory.name = sys.argv[2]
        _run(Memory('test_all'))
        # Nova leaves threads behind that never end.
        os._exit(0)
    parser = argparse.ArgumentParser(
        prog='tools/bench', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=_at_least_one, default=15,
                        metavar='N', help='default %(default)s')
    many = parser.add_argument_group(
        'hosts with many guests (root)',
        'Guests with real disks on a real libvirt of its own.')
    many.add_argument('--guests', type=_at_least_one, nargs='+', metavar='N',
                      help='numbers of guests, ascending: 100 400')
    many.add_argument('--running', type=_not_less_than_none, default=10,
                      metavar='N',
                      help='guests that run, paused; each takes 16 MiB of '
                      'this machine\'s memory; default %(default)s')
    many.add_argument('--at-once', type=_not_less_than_none, default=8,
                      metavar='N',
                      help='guests that are booted at the same time, 0 for '
                      'no boots; default %(default)s')
    many.add_argument('--only', default=[], nargs='+', choices=[
        'periodic update', 'image cache', 'power states', 'start'],
        help='measure these loops alone')
    months = parser.add_argument_group(
        'months of running (root)',
        'Boots and deletes guests, with each driver in its own process.')
    months.add_argument('--soak', type=_at_least_one, metavar='N',
                        help='boots and deletes; 1000 take an hour or two')
    months.add_argument('--trace', action='store_true',
                        help='say in the end what keeps memory')
    page = parser.add_argument_group('documentation')
    page.add_argument('--save', metavar='FILE', type=_can_be_written,
                      help='write the results of --guests or --soak there, '
                      'as JSON')
    page.add_argument('--document', action='store_true',
                      help='draw the results in doc/source/admin/performance '
                      'and make their tables (needs matplotlib)')
    options = parser.parse_args()
    if options.document:
        bench_page.write()
        return 0
    if options.guests or options.soak:
        return _more(options)
    times, calls = on_fake_libvirt(options.rounds)
    if os.geteuid() == 0:
        more_times, more_calls = on_real_libvirt(options.rounds)
        times |= more_times
        calls |= more_calls
    else:
        print('spawn and destroy on a real libvirt are left out: they need '
              'root', file=sys.stderr)
    print(report(times, calls))
    return 0


def _more(options: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        print('These need root.', file=sys.stderr)
        return 2
    found: Any
    if options.guests:
        found = bench_dense.run(
            sorted(options.guests), options.running, options.rounds,
            options.at_once, options.only)
        print(bench_dense.report(found))
    else:
        found = bench_soak.run(options.soak, options.trace)
    if options.save:
        with open(options.save, 'w') as f:
            json.dump(found, f, indent=1)
            f.write('\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
