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

"""What a driver's process keeps in memory over many boots and deletes.

``tools/bench --soak N`` runs it: each driver in a process of its own, on a
real private libvirt, with small guests without network cards. A line of JSON
for every few boots has the process's memory; in the end those places are told
that kept most since the process was warm (tracemalloc), and the caches by
name.
"""

from concurrent import futures
import datetime
import functools
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import tracemalloc
from typing import Any
import uuid

EACH = 25
"""Boots between two looks."""

WARM = 50
"""Boots after which what is kept is counted."""


def caches() -> dict[str, int]:
    """Entries of every functools cache of Nova, its libraries and ours."""
    found: dict[str, int] = {}
    for thing in gc.get_objects():
        if isinstance(thing, functools._lru_cache_wrapper):
            name = f'{thing.__module__}.{thing.__qualname__}'
            found[name] = found.get(name, 0) + thing.cache_info().currsize
    return found


def kept(before: Any, after: Any) -> list[dict[str, Any]]:
    """The places that keep most more than before, in KiB."""
    return [{'where': f'{frame.filename}:{frame.lineno}',
             'KiB': round(difference.size_diff / 1024, 1),
             'blocks': difference.count_diff}
            for difference in after.compare_to(before, 'lineno')[:25]
            for frame in difference.traceback[:1]]


def soak(name: str, boots: int, uri: str, directory: str, trace: bool
         ) -> None:
    """Boot and delete guests with one driver; in a process of its own."""
    from nova_kvm_ext.boot import cloudless
    from nova_kvm_ext.tests import bench_drivers
    disk = os.path.join(directory, 'disk.qcow2')
    subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', disk, '16M'],
                   check=True)
    with open(os.path.join(directory, 'nova.conf'), 'w') as f:
        f.write(f'[libvirt]\nconnection_uri = {uri}\nvirt_type = qemu\n'
                f'[kvm_ext]\nhost_check = off\n')
    cloudless.configure(directory, directory, [f.name])
    image = cloudless.LocalImage(disk, 'qcow2',
                                 {'hw_qemu_guest_agent': 'yes'})
    driver = bench_drivers.DRIVERS[name](cloudless.virtapi())
    driver.init_host(cloudless.CONF.host)
    image.serve(driver)
    ctx, network = cloudless.context(), cloudless.network(None, None)
    before = None
    started = time.monotonic()
    for number in range(boots + 1):
        if number % EACH == 0:
            gc.collect()
            print(json.dumps({
                'driver': name, 'boots': number,
                'MiB': round(bench_drivers.resident(), 2),
                'objects': len(gc.get_objects()),
                'seconds': round(time.monotonic() - started, 1)}), flush=True)
        if trace and number == WARM:
            tracemalloc.start()
            before = tracemalloc.take_snapshot()
        if number == boots:
            break
        instance = cloudless.create_instance(
            ctx, str(uuid.uuid4()), image, vcpus=1, memory_mb=16,
            extra_specs={})
        instance.flavor.root_gb = 1
        driver.spawn(ctx, instance, image.meta(), [], None, {},
                     network_info=network)
        driver.destroy(ctx, instance, network)
        instance.destroy()
    if before is not None:
        gc.collect()
        print(json.dumps({
            'driver': name, 'kept': kept(before, tracemalloc.take_snapshot()),
        }), flush=True)
    print(json.dumps({'driver': name, 'caches': {
        name: size for name, size in sorted(caches().items()) if size}}),
        flush=True)
    # Nova leaves threads behind that never end.
    os._exit(0)


def run(boots: int, trace: bool = False) -> dict[str, Any]:
    """Soak both drivers side by side, each on a libvirt of its own.

    :returns: what each process has told, and when
    :raises subprocess.CalledProcessError: one of them failed
    """
    from importlib import metadata

    from nova_kvm_ext.tests import bench_drivers
    from nova_kvm_ext.tests.functional import libvirtd
    with libvirtd.PrivateLibvirt() as one, libvirtd.PrivateLibvirt() as two:
        with (tempfile.TemporaryDirectory(dir='/var/tmp') as here,
              tempfile.TemporaryDirectory(dir='/var/tmp') as there):
            processes = []
            for name, private, directory in zip(
                    bench_drivers.DRIVERS, (one, two), (here, there)):
                os.chmod(directory, 0o755)
                processes.append(subprocess.Popen(
                    [sys.executable, '-W', 'ignore', '-m', __name__, name,
                     str(boots), private.uri, directory,
                     'trace' if trace else ''],
                    stdout=subprocess.PIPE, text=True))
            told: list[Any] = []
            # Both at a time, and each line when it comes.
            with futures.ThreadPoolExecutor(len(processes)) as pool:
                list(pool.map(lambda process: _listen(process, told),
                              processes))
    return {'nova': metadata.version('nova'),
            'date': datetime.date.today().isoformat(), 'told': told}


def _listen(process: 'subprocess.Popen[str]', told: list[Any]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end='', flush=True)
        told.append(json.loads(line))
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, process.args)


if __name__ == '__main__':
    # First of all, as in boot/worker.py: on eventlet it patches the standard
    # library, without which Nova's loop of connection events stops everything.
    import nova.cmd.compute  # noqa: F401
    try:
        soak(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4],
             sys.argv[5:] == ['trace'])
    except Exception:
        # oslo.log would put it into a file that is removed.
        traceback.print_exc()
        os._exit(1)
