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

"""The life of guests made from images of each format, in one process.

Started by test_images.py as nova_kvm_ext.boot.worker is by the supervisor,
and for the same reasons a process of its own. Prints one JSON object for each
image: what worked, or what went wrong.
"""

import nova.cmd.compute  # noqa: F401

import hashlib
import json
import os
import sys
import time
import traceback
from types import SimpleNamespace
from typing import Any
import uuid

from oslo_config import cfg

from nova_kvm_ext.boot import cloudless
from nova_kvm_ext.boot import inside
from nova_kvm_ext.boot import report
from nova_kvm_ext import driver as kvm_driver
from nova_kvm_ext.images import qemu_img

_LIMITS = qemu_img.Limits(30, 2 << 30)
_UP = 90.0


class Image(cloudless.LocalImage):
    """An image service that takes snapshots, too."""

    snapshot: str | None = None

    def update(self, context: Any, image_id: str, metadata: dict[str, Any],
               data: Any = None, purge_props: bool = True) -> None:
        self.snapshot = f'{self.path}.snapshot'
        with open(self.snapshot, 'wb') as f:
            f.write(data.read())
        self.snapshot_format = metadata['disk_format']


class Life:

    def __init__(self, directory: str, config_file: str) -> None:
        self.directory = directory
        cloudless.configure(directory, directory, [config_file])
        # What no instance uses has expired.
        cfg.CONF.set_override('remove_unused_original_minimum_age_seconds',
                              -1, group='image_cache')
        cfg.CONF.set_override('snapshots_directory', directory + '/snapshots',
                              group='libvirt')
        self.driver = kvm_driver.KVMDriver(cloudless.virtapi())
        self.driver.init_host(cfg.CONF.host)
        self.context = cloudless.context()
        self.network = cloudless.network(None, None)

    def of(self, path: str, disk_format: str) -> dict[str, Any]:
        self.seen: dict[str, Any] = {}
        self.instance: Any = None
        try:
            self._live(Image(path, disk_format, {}))
        except BaseException as e:
            self.seen['error'] = f'{type(e).__name__}: {e}'
            traceback.print_exc()
        finally:
            if self.instance is not None:
                self.driver.destroy(self.context, self.instance, self.network)
        return self.seen

    def _live(self, image: Image) -> None:
        self._boot(image)
        self.seen['boot'] = self._base()
        self._snapshot(image)
        self.driver.reboot(self.context, self.instance, self.network, 'HARD')
        self._wait()
        self.seen['reboot'] = self._base()
        self._resize(image)
        self._end()
        base = self._cached(image)
        self.driver.manage_image_cache(self.context, [])
        self.seen['expired'] = not os.path.exists(base)
        self._boot(image)
        self.seen['boot_after_expiry'] = self._base()
        self._end()
        if image.snapshot is not None:
            self._boot(Image(image.snapshot, image.snapshot_format, {}))
            self.seen['boot_of_snapshot'] = self._base()

    def _boot(self, image: Image) -> None:
        image.serve(self.driver)
        self.image_meta = image.meta()
        self.instance = cloudless.create_instance(
            self.context, str(uuid.uuid4()), image, vcpus=1, memory_mb=256,
            extra_specs={})
        self.instance.flavor.root_gb = 1
        started = time.monotonic()
        self.driver.spawn(
            self.context, self.instance, self.image_meta, [], None, {},
            network_info=self.network, block_device_info=None)
        self.seen.setdefault('spawn_seconds',
                             round(time.monotonic() - started, 2))
        self._wait()

    def _end(self) -> None:
        self.driver.destroy(self.context, self.instance, self.network)
        self.instance = None

    def _snapshot(self, image: Image) -> None:
        self.driver.snapshot(self.context, self.instance, str(uuid.uuid4()),
                             lambda task_state, expected_state=None: None)
        with open(image.snapshot, 'rb') as f:
            self.seen['snapshot'] = qemu_img.info(
                f, _LIMITS, image.snapshot_format).format

    def _resize(self, image: Image) -> None:
        self.driver.power_off(self.instance)
        self._forget_console()
        self.instance.old_flavor = self.instance.flavor
        self.instance.new_flavor = self.instance.flavor
        self.instance.flavor.root_gb = 2
        self.driver.finish_migration(
            self.context, SimpleNamespace(source_compute=None), self.instance,
            '[]', self.network, self.image_meta, True, {}, None, True)
        self._wait()
        with open(self._path('disk'), 'rb') as f:
            self.seen['resized_gb'] = qemu_img.info(
                f, _LIMITS, 'qcow2').virtual_size / (1 << 30)

    def _path(self, name: str) -> str:
        return os.path.join(cfg.CONF.instances_path, self.instance.uuid, name)

    def _forget_console(self) -> None:
        os.truncate(self._path('console.log'), 0)

    def _wait(self) -> None:
        """Until the guest reports, which it does once a start."""
        deadline = time.monotonic() + _UP
        while report.parse(inside.read_console(
                self._path('console.log'))) is None:
            if time.monotonic() > deadline:
                raise TimeoutError('the guest is not up')
            time.sleep(0.1)
        self._forget_console()

    @staticmethod
    def _cached(image: Image) -> str:
        return os.path.join(cfg.CONF.instances_path, '_base',
                            hashlib.sha1(image.id.encode()).hexdigest())

    def _base(self) -> str:
        """The format that the overlay names for its base, if it is true."""
        answer = json.loads(qemu_img.run(
            ['info', '--output=json', '--force-share', '-f', 'qcow2',
             self._path('disk')], _LIMITS))
        named = answer['backing-filename-format']
        with open(answer['full-backing-filename'], 'rb') as f:
            found = qemu_img.info(f, _LIMITS).format
        return named if named == found else f'{named}, but is {found}'


def main(directory: str, config_file: str, *images: str) -> None:
    life = Life(directory, config_file)
    for image in images:
        disk_format, path = image.split('=', 1)
        print('RESULT ' + json.dumps(
            {'image': os.path.basename(path)} | life.of(path, disk_format)),
            flush=True)


if __name__ == '__main__':
    try:
        main(*sys.argv[1:])
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)   # Nova's threads are no daemons.
