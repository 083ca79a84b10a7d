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

"""Both drivers on a host with many guests, whose disks are real.

``tools/bench --guests 100 400`` runs it, as root: guests with a qcow2 overlay
each are defined on a real private libvirt, some of them run (paused, so that
they take no CPU time), and each is in Nova's database (SQLite). Both drivers
do the minute's work, their start and what else loops over guests, alternately
in one process. Counted are the processes that are started and the calls of
libvirt; measured are the clock's time, and the CPU time of nova-compute with
its processes. libvirtd's and QEMU's own CPU time is left out.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
import contextlib
import datetime
import functools
import json
import math
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from typing import Any
import uuid

TOLD = 'result: '
"""What the line with the results begins with."""

_LEAST = {'start': 12, 'power states': 6}
"""Rounds of what takes an instant, and is disturbed easily."""

_DOMAIN = """
<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid>
  <memory unit='MiB'>16</memory><vcpu>2</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='{disk}'/><target dev='vda' bus='virtio'/>
    </disk>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <serial type='null'/>
  </devices>
</domain>"""


class Meter:
    """What one action takes."""

    def __init__(self, calls: Any) -> None:
        self._calls = calls
        self._processes = 0
        self._lock = threading.Lock()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: Any) -> None:
        if event in ('subprocess.Popen', 'os.posix_spawn'):
            with self._lock:
                self._processes += 1

    @staticmethod
    def _cpu() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    def measure(self, action: Callable[[], Any]) -> dict[str, float]:
        """Do it once.

        :returns: seconds of wall and CPU, and the two counts
        """
        processes, cpu = self._processes, self._cpu()
        with self._calls.counting() as counted:
            started = time.perf_counter()
            action()
            wall = time.perf_counter() - started
        return {'wall': wall, 'cpu': self._cpu() - cpu,
                'processes': self._processes - processes,
                'calls': sum(count for name, count in counted.items()
                             if not name.startswith('qemu-img'))}


class Host:
    """A host with guests, and both drivers on it."""

    def __init__(self, uri: str, directory: str) -> None:
        import libvirt

        from nova_kvm_ext.boot import cloudless
        from nova_kvm_ext.tests import bench_drivers
        self.cloudless = cloudless
        self.classes = bench_drivers.DRIVERS
        self.base = os.path.join(directory, 'base.qcow2')
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', self.base,
                        '64M'], check=True)
        with open(os.path.join(directory, 'nova.conf'), 'w') as f:
            f.write(f'[libvirt]\nconnection_uri = {uri}\nvirt_type = qemu\n')
        cloudless.configure(directory, directory, [f.name])
        _have_sqlite_wait()
        self.image = cloudless.LocalImage(
            self.base, 'qcow2', {'hw_qemu_guest_agent': 'yes'})
        self.context = cloudless.context()
        self.network = cloudless.network(None, None)
        self.connection = libvirt.open(uri)
        self.instances: list[Any] = []
        self.running: list[Any] = []
        self.updated = False
        self.meter = Meter(bench_drivers.CallCounter(
            libvirt.virConnect, libvirt.virDomain))
        self.drivers = {name: self.start(name) for name in self.classes}

    def start(self, name: str) -> Any:
        found = self.classes[name](self.cloudless.virtapi())
        found.init_host(self.cloudless.CONF.host)
        self.image.serve(found)
        return found

    def instance(self) -> Any:
        from nova.compute import task_states

        instance = self.cloudless.create_instance(
            self.context, str(uuid.uuid4()), self.image, vcpus=1,
            memory_mb=64, extra_specs={})
        # The usual flavor has a disk, and Nova compares its size.
        instance.flavor.root_gb = 1
        # As the compute manager has a server that it builds: with its cards,
        # which Nova would ask the database for in the boot.
        instance.task_state = task_states.SPAWNING
        instance.obj_load_attr('info_cache')
        return instance

    def fill(self, guests: int, running: int) -> None:
        """Define guests until there are so many, and start some."""
        overlay = self.base + '.overlay'
        if not os.path.exists(overlay):
            subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-b',
                            self.base, '-F', 'qcow2', overlay], check=True)
        # What the pass over the image cache looks for.
        cache = os.path.join(
            self.cloudless.CONF.instances_path,
            self.cloudless.CONF.image_cache.subdirectory_name)
        os.makedirs(cache, exist_ok=True)
        while len(self.instances) < guests:
            instance = self.instance()
            path = os.path.join(self.cloudless.CONF.instances_path,
                                instance.uuid)
            os.makedirs(path)
            # One that qemu-img has made; a process for each takes long.
            disk = shutil.copy(overlay, os.path.join(path, 'disk'))
            domain = self.connection.defineXML(_DOMAIN.format(
                name=instance.name, uuid=instance.uuid, disk=disk))
            self.instances.append(instance)
            if len(self.running) < running:
                domain.createWithFlags(1)   # VIR_DOMAIN_START_PAUSED
                self.running.append(domain)

    # What is measured.

    def update(self, driver: Any) -> None:
        """What the compute manager asks for each minute."""
        from nova.compute import provider_tree
        driver.get_available_resource('node')
        tree = provider_tree.ProviderTree()
        tree.new_root('node', str(uuid.uuid4()), generation=1)
        driver.update_provider_tree(tree, 'node')

    def image_cache(self, driver: Any) -> None:
        driver.manage_image_cache(self.context, self.instances)

    def power_states(self, driver: Any) -> None:
        """What Nova's power state sync asks of a driver each ten minutes."""
        driver.get_num_instances()
        for instance in self.instances:
            driver.get_info(instance)

    def in_turns(self, rounds: int, action: Callable[[str], Any],
                 progress: str, *names: str
                 ) -> dict[str, list[dict[str, float]]]:
        found: dict[str, list[dict[str, float]]] = {
            name: [] for name in names or self.drivers}
        for number in range(rounds):
            for name in sorted(found, reverse=bool(number % 2)):
                found[name].append(self.meter.measure(
                    functools.partial(action, name)))
                print(f'{progress}: {name} {found[name][-1]["wall"]:.2f} s',
                      file=sys.stderr, flush=True)
        return found

    def loops(self, guests: int, rounds: int, only: list[str]
              ) -> dict[str, Any]:
        """What loops over guests, or some of these loops."""
        found = {}
        loops: dict[str, Callable[[str], Any]] = {
            'periodic update': lambda name: self.update(self.drivers[name]),
            'image cache': lambda name: self.image_cache(self.drivers[name]),
            'power states': lambda name: self.power_states(
                self.drivers[name]),
            'start': self.start}
        for name, action in loops.items():
            if not only or name in only:
                progress = f'{guests} guests, {name}'
                if name == 'periodic update' and not self.updated:
                    # With what is done once for each guest that runs.
                    self.updated = True
                    found['first update'] = self.in_turns(
                        1, action, progress, 'KVMDriver')
                found[name] = self.in_turns(
                    max(rounds, _LEAST.get(name, 0)), action, progress)
                if name == 'periodic update':
                    # This one takes no minutes.
                    found[name]['KVMDriver'] += self.in_turns(
                        4, action, progress, 'KVMDriver')['KVMDriver']
        return found

    def boots(self, at_once: int, rounds: int) -> dict[str, Any]:
        """Spawn one guest, and several at once; the first is thrown away."""
        created: list[float] = []
        from nova import objects
        from nova.virt.libvirt import guest as libvirt_guest
        launch, save = libvirt_guest.Guest.launch, objects.Instance.save
        # Within a save() there may be another.
        one_by_one = threading.RLock()

        def saved(*args: Any, **kwargs: Any) -> Any:
            # SQLite refuses a second writer.
            with one_by_one:
                return save(*args, **kwargs)

        def timed(guest: Any, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return launch(guest, *args, **kwargs)
            finally:
                created.append(time.perf_counter() - started)

        def spawn(name: str, instance: Any) -> None:
            self.drivers[name].spawn(
                self.context, instance, self.image.meta(), [], None, {},
                network_info=self.network)

        def destroy(name: str, instance: Any) -> None:
            self.drivers[name].destroy(self.context, instance, self.network)
            with one_by_one:
                instance.destroy()

        found: dict[str, Any] = {
            'spawn': {name: [] for name in self.drivers},
            'at once': {name: [] for name in self.drivers}}
        libvirt_guest.Guest.launch = timed
        objects.Instance.save = saved
        try:
            for number in range(-1, rounds):
                for name in sorted(self.drivers, reverse=bool(number % 2)):
                    instance = self.instance()
                    created.clear()
                    took = self.meter.measure(
                        lambda: spawn(name, instance))
                    took['virDomainCreate'] = sum(created)
                    destroy(name, instance)
                    if number >= 0:
                        found['spawn'][name].append(took)
                    print(f'spawn: {name} {took["wall"]:.2f} s',
                          file=sys.stderr, flush=True)
            for number in range(max(2, rounds // 4)):
                for name in sorted(self.drivers, reverse=bool(number % 2)):
                    instances = [self.instance() for _ in range(at_once)]
                    with futures.ThreadPoolExecutor(at_once) as pool:
                        took = self.meter.measure(lambda: list(pool.map(
                            lambda one: spawn(name, one), instances)))
                        list(pool.map(lambda one: destroy(name, one),
                                      instances))
                    took['guests a minute'] = at_once * 60 / took['wall']
                    found['at once'][name].append(took)
                    print(f'{at_once} at once: {name} {took["wall"]:.2f} s',
                          file=sys.stderr, flush=True)
        finally:
            libvirt_guest.Guest.launch = launch
            objects.Instance.save = save
        return found

    @contextlib.contextmanager
    def hanging(self) -> Iterator[str]:
        """The QEMU of one running guest is stopped: its monitor hangs."""
        name = self.running[0].name()
        process = next(
            pid for pid in filter(str.isdigit, os.listdir('/proc'))
            if f'guest={name},'.encode() in _command_line(pid))
        os.kill(int(process), 19)    # SIGSTOP
        try:
            yield self.running[0].UUIDString()
        finally:
            os.kill(int(process), 18)    # SIGCONT


def _have_sqlite_wait() -> None:
    """For another writer a minute, not five seconds."""
    from nova.db.main import api
    from sqlalchemy import event
    engine = api.get_engine()
    event.listen(engine, 'connect', lambda connection, record: (
        connection.execute('PRAGMA busy_timeout = 60000')))
    engine.dispose()


def _command_line(pid: str) -> bytes:
    try:
        with open(f'/proc/{pid}/cmdline', 'rb') as f:
            return f.read()
    except OSError:
        return b''


def machine(connection: Any) -> dict[str, Any]:
    """What the figures were measured on."""
    def version(number: int) -> str:
        return f'{number // 1000000}.{number // 1000 % 1000}.{number % 1000}'

    with open('/proc/cpuinfo') as f:
        models = [line.partition(':')[2].strip() for line in f
                  if line.startswith('model name')]
    with open('/proc/meminfo') as f:
        memory = int(f.readline().split()[1]) >> 20
    return {'processor': models[0] if models else platform.machine(),
            'CPUs': os.cpu_count(), 'memory': f'{memory} GiB',
            'kernel': platform.release(), 'python': platform.python_version(),
            'libvirt': version(connection.getLibVersion()),
            'qemu': version(connection.getVersion())}


def work(uri: str, directory: str, guests: list[int], running: int,
         rounds: int, at_once: int, only: list[str]) -> dict[str, Any]:
    """In a process of its own."""
    from importlib import metadata
    host = Host(uri, directory)
    found: dict[str, Any] = {
        'nova': metadata.version('nova'),
        'date': datetime.date.today().isoformat(),
        'machine': machine(host.connection), 'running': running,
        'at once': at_once, 'load': [round(os.getloadavg()[1], 1)],
        'guests': {}}
    if at_once:
        found['boots'] = host.boots(at_once, rounds)
    for number in guests:
        host.fill(number, running)
        found['guests'][str(number)] = host.loops(
            # LibvirtDriver takes minutes.
            number, max(1, rounds * 100 // number // 2), only)
    if running:
        with host.hanging() as name:
            # The first update finds out, the second one knows.
            found['monitor hangs'] = host.in_turns(
                2, lambda driver: host.update(host.drivers[driver]),
                f'QEMU of {name} is stopped, periodic update', 'KVMDriver')
            found['monitor hangs, start'] = host.in_turns(
                _LEAST['start'], host.start,
                f'QEMU of {name} is stopped, start')
    found['load'].append(round(os.getloadavg()[1], 1))
    return found


def run(guests: list[int], running: int, rounds: int, at_once: int,
        only: Sequence[str] = ()) -> dict[str, Any]:
    """On a private libvirtd; needs root."""
    from nova_kvm_ext.tests.functional import libvirtd
    with libvirtd.PrivateLibvirt() as private:
        with tempfile.TemporaryDirectory(dir='/var/tmp') as directory:
            os.chmod(directory, 0o755)
            told = subprocess.run(
                [sys.executable, '-W', 'ignore', '-m', __name__, json.dumps(
                    [private.uri, directory, guests, running, rounds,
                     at_once, list(only)])], stdout=subprocess.PIPE, text=True,
                check=True)
    return json.loads(next(
        line for line in told.stdout.splitlines()
        if line.startswith(TOLD)).removeprefix(TOLD))


def median(values: list[dict[str, float]], key: str) -> float:
    return statistics.median(value[key] for value in values)


def exponent(found: dict[str, Any], action: str, driver: str) -> float | None:
    """How the time grows with the number of guests: 1 is in proportion."""
    numbers = sorted((number for number, actions in found['guests'].items()
                      if driver in actions.get(action, {})), key=int)
    if len(numbers) < 2:
        return None
    first, last = (median(found['guests'][number][action][driver], 'wall')
                   for number in (numbers[0], numbers[-1]))
    return math.log(last / first) / math.log(
        int(numbers[-1]) / int(numbers[0]))


def rows(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """A table: the action, the driver, its numbers, and the ratio."""
    yield ('', 'driver', 'processes', 'libvirt calls', 'wall, s', 'CPU, s',
           'ratio')
    parts = [(f'{action}, {number} guests', values)
             for number, actions in found['guests'].items()
             for action, values in actions.items()]
    for name, title in (('monitor hangs', 'update, a monitor hangs'),
                        ('monitor hangs, start', 'start, a monitor hangs')):
        if name in found:
            parts.append((title, found[name]))
    if 'boots' in found:
        parts += [('spawn', found['boots']['spawn']),
                  (f'spawn, {found["at once"]} at once',
                   found['boots']['at once'])]
    for title, values in parts:
        theirs = median(values['LibvirtDriver'], 'wall') if (
            'LibvirtDriver' in values) else None
        for driver, taken in values.items():
            yield (title, driver, f'{median(taken, "processes"):.0f}',
                   f'{median(taken, "calls"):.0f}',
                   f'{median(taken, "wall"):.3f}',
                   f'{median(taken, "cpu"):.3f}',
                   '' if driver == 'LibvirtDriver' or theirs is None else
                   f'{median(taken, "wall") / theirs:.3f}')


def report(found: dict[str, Any]) -> str:
    """The table for people, and what does not fit into it."""
    table = list(rows(found))
    widths = [max(len(row[column]) for row in table)
              for column in range(len(table[0]))]
    lines = [f'Nova {found["nova"]}, {found["date"]}, load '
             f'{found["load"][0]} to {found["load"][-1]}, '
             f'{found["running"]} guests run']
    lines += ['  '.join(cell.ljust(width) if column < 2 else cell.rjust(width)
                        for column, (cell, width) in enumerate(
                            zip(row, widths))).rstrip() for row in table]
    for driver in ('LibvirtDriver', 'KVMDriver'):
        grows = exponent(found, 'periodic update', driver)
        if grows is not None:
            lines.append(f'{driver}: the periodic update grows with the '
                         f'number of guests to the power of {grows:.2f}')
        if 'boots' in found:
            spawns = found['boots']['spawn'][driver]
            floor = (median(spawns, 'wall') /
                     median(spawns, 'virDomainCreate'))
            rate = median(found['boots']['at once'][driver],
                          'guests a minute')
            lines.append(f'{driver}: spawn takes {floor:.2f} times '
                         f'virDomainCreate; {rate:.1f} guests a minute')
    return '\n'.join(lines)


if __name__ == '__main__':
    # First of all, as in boot/worker.py: on eventlet it patches the standard
    # library, without which Nova's loop of connection events stops everything.
    import nova.cmd.compute  # noqa: F401
    try:
        print(TOLD + json.dumps(work(*json.loads(sys.argv[1]))), flush=True)
    except Exception:
        # oslo.log would put it into a file that is removed.
        traceback.print_exc()
        os._exit(1)
    # Nova leaves threads behind that never end.
    os._exit(0)
