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


"""One side of a live migration: the driver and its guests on one host.

The source's is used by test_migration; the destination's serves the source's
calls, a line of JSON each, over the network between the two machines. As
between two nova-computes, objects of Nova's travel in their own form.
"""

# First of all, as in boot/worker.py.
import nova.cmd.compute  # noqa: F401

import json
import os
import shutil
import socket
import subprocess
import time
import traceback
from typing import Any
from unittest import mock

import libvirt
from nova import exception
from nova import objects
from nova.objects import base as objects_base

from nova_kvm_ext.boot import cloudless
from nova_kvm_ext.boot import inside
from nova_kvm_ext.cpu import definition
from nova_kvm_ext import driver as kvm_driver
from nova_kvm_ext.tests.kvm import base

# 192.0.2.0/24 is for documentation (RFC 5737); no other network is here.
ADDRESSES = {'source': '192.0.2.1', 'destination': '192.0.2.2'}
_PORT = 4000
# Seconds: on a busy host one of the machines may start later.
_PATIENCE = 300

_SETTINGS = """
[DEFAULT]
host = {name}
use_cow_images = false
[libvirt]
live_migration_uri = qemu+tcp://%s/system
[kvm_ext]
virt_type = kvm
cpu_mode = host-model
"""

_NETWORK = r"""
card=$(basename $(dirname /sys/class/net/*/device))
ip address add {address}/24 dev $card
ip link set $card up
{hosts}
sed -i 's/^#*auth_tcp.*/auth_tcp = "none"/' /etc/libvirt/libvirtd.conf
grep -q ^auth_tcp /etc/libvirt/libvirtd.conf ||
    echo 'auth_tcp = "none"' >> /etc/libvirt/libvirtd.conf
systemctl stop libvirtd.service
systemctl start libvirtd-tcp.socket libvirtd.service
"""

# The same on both sides, as Nova has it. It ends with the machine.
_DIRECTORY = '/var/lib/nova-kvm-ext'

_IMAGE_ID = 'c1c2c3c4-0000-4000-8000-000000000000'
_DISKS: dict[str, Any] = {'block_device_mapping': [], 'swap': None,
                          'ephemerals': [], 'root_device_name': '/dev/vda'}


class _Image(cloudless.LocalImage):
    """The same image on both sides."""

    def __init__(self) -> None:
        super().__init__(base.IMAGE[1], 'raw', {'hw_qemu_guest_agent': 'yes'})
        self.id = self._meta['id'] = _IMAGE_ID


def connect_machines(name: str) -> None:
    """Give this machine its address, and let libvirt be reached by it."""
    hosts = '\n'.join(f"echo '{address} {host}' >> /etc/hosts"
                      for host, address in ADDRESSES.items())
    subprocess.run(['sh', '-ec', _NETWORK.format(
        address=ADDRESSES[name], hosts=hosts)], check=True)


class Side:
    """The driver on this host.

    :param name: ``source`` or ``destination``
    """

    def __init__(self, name: str) -> None:
        os.mkdir(_DIRECTORY)
        settings = os.path.join(_DIRECTORY, 'nova.conf')
        with open(settings, 'w') as f:
            f.write(_SETTINGS.format(name=name))
        cloudless.configure(_DIRECTORY, _DIRECTORY, [settings])
        cloudless.CONF.set_override('host', name)
        self.context = cloudless.context()
        self.driver: Any = kvm_driver.KVMDriver(cloudless.virtapi())
        # There is no Neutron to ask what it can do.
        self.driver._network_api = mock.Mock(
            has_port_binding_extension=lambda context: False)
        self.driver.init_host(name)
        self.image = _Image()
        self.image.serve(self.driver)
        self.network = cloudless.network(None, None)
        self._instances: dict[str, objects.Instance] = {}

    def create(self, uuid: str, extra_specs: dict[str, str]
               ) -> objects.Instance:
        instance = cloudless.create_instance(
            self.context, uuid, self.image, vcpus=1, memory_mb=256,
            extra_specs=extra_specs)
        self._instances[uuid] = instance
        return instance

    def spawn(self, uuid: str, extra_specs: dict[str, str]
              ) -> objects.Instance:
        instance = self.create(uuid, extra_specs)
        self.driver.spawn(
            self.context, instance, self.image.meta(), [], None, {},
            network_info=self.network, block_device_info=None)
        return instance

    def destroy(self, uuid: str) -> None:
        self.driver.destroy(self.context, self._instances.pop(uuid),
                            self.network)

    def _domain(self, uuid: str) -> libvirt.virDomain:
        return self.driver._host.get_connection().lookupByUUIDString(uuid)

    def answers(self, uuid: str) -> str | None:
        """What the guest's agent says, once it runs."""
        agent = inside.Agent(self._domain(uuid))
        deadline = time.monotonic() + 600
        while (answer := agent.ping()) is None:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.5)
        return answer

    def domains(self) -> list[str]:
        """Names of the domains that are here."""
        return [domain.name() for domain in
                self.driver._host.get_connection().listAllDomains()]

    def cpu(self, uuid: str) -> str:
        """The live XML's CPU."""
        return definition.CPU.parse(self._domain(uuid).XMLDesc()).to_xml()

    # What the destination does

    def check(self, uuid: str, extra_specs: dict[str, str],
              vcpu_model: Any) -> dict[str, Any]:
        """Whether the guest may come: the check's data, or the refusal."""
        instance = self._instances.get(uuid) or self.create(
            uuid, extra_specs)
        instance.vcpu_model = _object(vcpu_model)
        room = {'disk_available_least': 10, 'free_disk_gb': 10}
        try:
            data = self.driver.check_can_live_migrate_destination(
                self.context, instance, {}, room, block_migration=True)
        except exception.MigrationPreCheckError as e:
            return {'refused': str(e)}
        return {'data': data.obj_to_primitive()}

    def make_disk(self, path: str, size: int) -> None:
        """An empty disk, for a migration that Nova has not prepared."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'wb') as f:
            f.truncate(size)

    def remove_disk(self, path: str) -> None:
        shutil.rmtree(os.path.dirname(path))

    def prepare(self, uuid: str, disk_info: str, data: Any) -> Any:
        """Nova's pre_live_migration()."""
        return self.driver.pre_live_migration(
            self.context, self._instances[uuid], _DISKS, self.network,
            disk_info, _object(data)).obj_to_primitive()

    def arrived(self, uuid: str) -> str:
        """Nova's post_live_migration_at_destination(); the kept CPU."""
        instance = self._instances[uuid]
        self.driver.post_live_migration_at_destination(
            self.context, instance, self.network, True, _DISKS)
        return json.dumps(instance.vcpu_model.obj_to_primitive())

    # What the source does

    def send(self, uuid: str, peer: 'Peer') -> list[str]:
        """Move a guest, with all of Nova's steps: which ones happened."""
        instance = self._instances[uuid]
        seen: list[str] = []
        answer = peer.call('check', uuid, dict(instance.flavor.extra_specs),
                           instance.vcpu_model.obj_to_primitive())
        if 'refused' in answer:
            raise AssertionError(f'{answer["refused"]}: {self.cpu(uuid)}')
        data = _object(answer['data'])
        data.is_volume_backed = False
        data = self.driver.check_can_live_migrate_source(
            self.context, instance, data, _DISKS)
        data.migration = objects.Migration(
            self.context, instance_uuid=uuid, source_compute='source',
            dest_compute='destination', source_node='source',
            dest_node='destination', dest_compute_id=1,
            status='running', migration_type='live-migration')
        data.migration.create()
        migration = data.migration
        del data.migration
        data = _object(peer.call(
            'prepare', uuid, self.driver.get_instance_disk_info(
                instance, _DISKS), data.obj_to_primitive()))
        data.migration = migration
        self.driver.live_migration(
            self.context, instance, 'destination',
            lambda *args, **kwargs: seen.append('moved'),
            lambda *args, **kwargs: seen.append('rolled back'),
            block_migration=True, migrate_data=data)
        return seen

    def libvirts_answer(self, uuid: str, peer: 'Peer') -> str:
        """What libvirt says to the same migration, without any of Nova."""
        disk, = json.loads(self.driver.get_instance_disk_info(
            self._instances[uuid], _DISKS))
        peer.call('make_disk', disk['path'], disk['virt_disk_size'])
        flags = (libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER |
                 libvirt.VIR_MIGRATE_NON_SHARED_DISK)
        try:
            self._domain(uuid).migrateToURI3(
                'qemu+tcp://destination/system', {}, flags)
        except libvirt.libvirtError as e:
            return str(e)
        finally:
            peer.call('remove_disk', disk['path'])
        return ''


def _object(primitive: Any) -> Any:
    return None if primitive is None else (
        objects_base.NovaObject.obj_from_primitive(primitive))


class Peer:
    """The destination, as the source calls it."""

    def __init__(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                connection = socket.create_connection(
                    (ADDRESSES['destination'], _PORT), timeout=10)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        connection.settimeout(900)
        self._stream = connection.makefile('rw')

    def call(self, name: str, *arguments: Any) -> Any:
        """:raises AssertionError: it raised there; with its traceback"""
        self._stream.write(json.dumps([name, *arguments]) + '\n')
        self._stream.flush()
        line = self._stream.readline()
        if not line:
            raise AssertionError(f'{name}: the destination has gone')
        succeeded, value = json.loads(line)
        if not succeeded:
            raise AssertionError(f'{name} at the destination: {value}')
        return value


def serve() -> None:
    """Be the destination until the source goes."""
    connect_machines('destination')
    side = Side('destination')
    base.say('log', text='the destination is ready')
    with socket.create_server((ADDRESSES['destination'], _PORT)) as server:
        # One that has failed before does not come.
        server.settimeout(_PATIENCE)
        connection, _ = server.accept()
        stream = connection.makefile('rw')
        for line in stream:
            name, *arguments = json.loads(line)
            try:
                answer = [True, getattr(side, name)(*arguments)]
            except Exception:
                # The source's test fails with it.
                answer = [False, traceback.format_exc()]
            stream.write(json.dumps(answer) + '\n')
            stream.flush()
