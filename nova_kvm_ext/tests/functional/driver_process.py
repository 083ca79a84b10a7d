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

"""The driver in a process of its own, told what to do line by line.

Nova leaves threads behind, and a test wants to kill the driver between two
steps. Started by test_agent_driver.py; a line on standard input is a JSON
list, the name of a step and its arguments, and a line on standard output the
answer: ``[seconds, result]``, or ``[seconds, null, error class, its text]``.
"""

# First of all, as in boot/worker.py.
import nova.cmd.compute  # noqa: F401

from concurrent import futures
import json
import os
import sys
import time
import traceback
from typing import Any
from unittest import mock

from nova.compute import power_state
from nova.compute import vm_states
from nova import objects
from nova import rpc

from nova_kvm_ext.boot import cloudless
from nova_kvm_ext import driver as kvm_driver
from nova_kvm_ext.guest_agent import limits


class ImageService(cloudless.LocalImage):
    """An image service that takes snapshots, too."""

    SNAPSHOT = 'c1c2c3c4-0000-4000-8000-000000000000'

    def get(self, context: Any, image_id: str, *args: Any, **kwargs: Any
            ) -> dict[str, Any]:
        if image_id == self.SNAPSHOT:
            return {'id': image_id, 'name': 'snapshot', 'status': 'queued'}
        return super().get(context, image_id, *args, **kwargs)

    def update(self, context: Any, image_id: str, metadata: Any,
               data: Any = None, purge_props: bool = False) -> None:
        assert image_id == self.SNAPSHOT and data is not None
        with open(self.path + '.snapshot', 'wb') as output:
            while chunk := data.read(1 << 20):
                output.write(chunk)


class Steps:
    """What a test can have the driver do. One instance, one guest."""

    def __init__(self, directory: str, state_path: str,
                 config_file: str) -> None:
        cloudless.configure(directory, state_path, [config_file])
        # Nova tells the message bus when libvirt cannot be reached.
        rpc.LEGACY_NOTIFIER = rpc.NOTIFIER = mock.Mock()
        self._driver = kvm_driver.KVMDriver(cloudless.virtapi())
        self._context = cloudless.context()

    def init_host(self) -> None:
        self._driver.init_host(cloudless.CONF.host)

    def spawn(self, uuid: str, path: str, properties: dict[str, str],
              memory_mb: int = 256, disk_format: str = 'raw') -> str:
        image = ImageService(path, disk_format, properties)
        image.serve(self._driver)
        self._instance = cloudless.create_instance(
            self._context, uuid, image, vcpus=1, memory_mb=memory_mb,
            extra_specs={})
        self._driver.spawn(
            self._context, self._instance, image.meta(), [], None, {},
            network_info=cloudless.network(None, None),
            block_device_info=None)
        return self._instance.name

    def quiesce(self) -> None:
        self._driver.quiesce(self._context, self._instance,
                             self._instance.image_meta)

    def unquiesce(self) -> None:
        self._driver.unquiesce(self._context, self._instance,
                               self._instance.image_meta)

    def snapshot(self) -> None:
        self._driver.snapshot(self._context, self._instance,
                              ImageService.SNAPSHOT, lambda **kwargs: None)

    def snapshots_at_once(self, count: int, directory: str) -> list[str]:
        """Snapshots as Nova has libvirt make them for Cinder, in threads.

        :returns: what went wrong in each, '' where nothing did
        """
        from nova.virt.libvirt import config

        def snapshot(number: int) -> str:
            disk = config.LibvirtConfigGuestSnapshotDisk()
            disk.name, disk.snapshot = 'vda', 'external'
            disk.source_type, disk.driver_name = 'file', 'qcow2'
            disk.source_path = os.path.join(directory, f'{number}.qcow2')
            wanted = config.LibvirtConfigGuestSnapshot()
            wanted.add_disk(disk)
            snapshotting = self._driver._snapshots.of_volume(
                self._instance, self._driver._host.get_guest(self._instance),
                required=True)
            try:
                with snapshotting as guest:
                    guest.snapshot(wanted, no_metadata=True, disk_only=True,
                                   quiesce=True)
            except Exception as e:
                traceback.print_exc()
                return f'{type(e).__name__}: {e}'
            return ''

        with futures.ThreadPoolExecutor(count) as pool:
            return list(pool.map(snapshot, range(count)))

    def break_next(self, name: str) -> None:
        """The named libvirt call of a block device fails once."""
        from nova.virt.libvirt import guest
        real = getattr(guest.BlockDevice, name)
        calls = []

        def fail_second(device: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            # The first ends jobs that a killed service may have left.
            if len(calls) == 2:
                raise RuntimeError('broken by the test')
            return real(device, *args, **kwargs)

        setattr(guest.BlockDevice, name, fail_second)

    def set_freeze_timeout(self, seconds: int) -> None:
        limits.VOLUME_FREEZE_TIMEOUT = seconds

    def require_quiesce(self) -> None:
        self._instance.system_metadata['image_os_require_quiesce'] = 'yes'

    def clean_shutdown(self, timeout: int) -> bool:
        return self._driver._clean_shutdown(self._instance, timeout, 10)

    def soft_reboot(self) -> bool:
        return self._driver._soft_reboot(self._instance)

    def password(self, word: str) -> None:
        self._instance.key_data = None
        self._driver.set_admin_password(self._instance, word)

    def diagnostics(self) -> Any:
        return self._driver.get_diagnostics(self._instance)

    def can_quiesce(self) -> None:
        self._driver._can_quiesce(self._instance, self._instance.image_meta)

    def suspend_and_resume(self) -> None:
        self._driver.suspend(self._context, self._instance)
        self._driver.resume(self._context, self._instance,
                            cloudless.network(None, None))

    def settle(self) -> None:
        self._driver.get_available_resource(
            self._driver.get_available_nodes()[0])

    def of(self, uuid: str) -> None:
        """The steps that follow are about another instance."""
        self._instance = objects.Instance.get_by_uuid(
            self._context, uuid, expected_attrs=['flavor'])

    def record(self, vm_state: str, task_state: str | None = None) -> None:
        """Have Nova's database say so of the instance."""
        self._instance.vm_state = vm_state
        self._instance.task_state = task_state
        self._instance.save()

    def pause(self) -> None:
        self._driver.pause(self._instance)

    def set_option(self, name: str, value: Any) -> None:
        """Of [kvm_ext]."""
        cloudless.CONF.set_override(name, value, group='kvm_ext')

    def migrate(self, dest: str) -> dict[str, Any]:
        """Move the guest as Nova's manager has the driver move it.

        The disk is a file that both hosts have, which libvirt cannot know.

        :param dest: for Nova's URIs
        :returns: what of the manager was called, and what of the migration
            Nova's API shows
        """
        # By Nova's libvirt, whose fake one has no such flag.
        self._driver._live_migration_flags |= (
            kvm_driver.driver.libvirt.VIR_MIGRATE_UNSAFE)
        self._instance.vm_state = vm_states.ACTIVE
        self._instance.save()
        objects.InstanceAction.action_start(
            self._context, self._instance.uuid, 'live-migration')
        migration = objects.Migration(
            self._context, instance_uuid=self._instance.uuid,
            source_compute=cloudless.CONF.host, dest_compute=dest,
            migration_type='live-migration', status='running')
        migration.create()
        data = objects.LibvirtLiveMigrateData(
            migration=migration, block_migration=False,
            target_connect_addr=dest, serial_listen_addr='127.0.0.1',
            graphics_listen_addr_vnc='127.0.0.1',
            graphics_listen_addr_spice='127.0.0.1',
            serial_listen_ports=[], bdms=[], supported_perf_events=[])
        called: list[str] = []

        def recover(*args: Any, **kwargs: Any) -> None:
            called.append(kwargs.get('migration_status', 'failed'))

        self._driver.live_migration(
            self._context, self._instance, dest,
            lambda *args, **kwargs: called.append('completed'), recover,
            False, data)
        [action, *_] = objects.InstanceActionList.get_by_instance_uuid(
            self._context, self._instance.uuid)
        return {'called': called, 'status': migration.status, 'events': [
            event.event for event in objects.InstanceActionEventList.
            get_by_action(self._context, action.id)]}

    def state(self) -> str:
        return power_state.STATE_MAP[
            self._driver.get_info(self._instance).state]


def main(argv: list[str]) -> None:
    answers = os.fdopen(os.dup(1), 'w')
    # What Nova and the libraries print is for the log.
    os.dup2(2, 1)
    steps = Steps(*argv)
    objects.register_all()
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        started = time.monotonic()
        try:
            answer: list[Any] = [getattr(steps, name)(*arguments)]
        except Exception as e:
            traceback.print_exc()
            answer = [None, type(e).__name__, str(e)]
        answers.write(json.dumps(
            [time.monotonic() - started, *answer], default=str) + '\n')
        answers.flush()


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    # Nova's threads are not daemons: a plain exit would wait for them.
    os._exit(0)
