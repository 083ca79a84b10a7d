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

"""Brings a cloud up inside its namespaces, phase by phase.

Run as a module inside the sandbox: python -m nova_kvm_ext.tests.cloud.deploy
STATE COMPUTES STORAGE VOLUMES. It prints a line of JSON after each phase, with
its name and seconds, and ends when the cloud is ready for checks. It checks
nothing, and leaves starting to :mod:`services`.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
import contextlib
import functools
import json
import os
import pathlib
import secrets
import sys
import time
from typing import Any

import openstack

from nova_kvm_ext.tests.cloud import ceph
from nova_kvm_ext.tests.cloud import configuration
from nova_kvm_ext.tests.cloud import sandbox
from nova_kvm_ext.tests.cloud import services
from nova_kvm_ext.tests.cloud import storage as storage_module

_TIMEOUT = float(os.environ.get('NOVA_KVM_EXT_CLOUD_TIMEOUT', '300'))
CLOUD = 'kvm-ext'
NETWORK = 'private'
# Runs commands of a project's program, each in a process of its own: what most
# take longest over is to import the project.
_MANAGE = """
import importlib, json, os, sys
main = importlib.import_module(sys.argv[1]).main
for command in json.loads(sys.argv[2]):
    if os.fork() == 0:
        sys.argv = command
        sys.exit(main())
    status = os.waitstatus_to_exitcode(os.wait()[1])
    if status:
        sys.exit(f'{" ".join(command)}: {status}')
"""
# Catalog types of services: the user that each has, and its roles.
_USERS = {'image': 'glance', 'placement': 'placement', 'network': 'neutron',
          'compute': 'nova'}
_USERS_OF_VOLUMES = {'block-storage': 'cinder'}


class Deployment:
    """A cloud that is being brought up.

    :param state: directory of the cloud
    :param venv: directory of the environment that services run from
    :param computes: how many computes
    :param storage: what images, disks and volumes lie on
    """

    def __init__(self, state: pathlib.Path, venv: pathlib.Path,
                 computes: int, storage: storage_module.Storage) -> None:
        self._state = state
        self._storage = storage
        self._venv = venv
        self._computes = sandbox.COMPUTES[:computes]
        self._services = services.Services(state, venv)
        self._password = secrets.token_hex(12)
        self._configuration = configuration.Configuration(
            state, venv, self._password, storage)

    def phases(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """What there is to do, in order."""
        yield 'database, queue, libvirt, switch', self._start_foundations
        if self._storage.has_ceph:
            yield 'Ceph', self._start_ceph
        yield 'schemas of the databases', self._make_schemas
        yield 'identity', self._start_identity
        yield 'APIs', self._start_apis
        yield 'services and agents', self._start_services
        yield 'computes', self._start_computes

    def _start_foundations(self) -> None:
        self._configuration.write()
        for name in ('mariadb', 'rabbitmq'):
            # In memory: the disk may be busy with other things.
            pathlib.Path('/run', name).mkdir()
        self._services.start('rabbitmq', wait=False)
        for compute in self._computes:
            for command in self._storage.nfs_commands(self._state, compute):
                self._services.run('nfs', ['sh', '-ec', command],
                                   compute=compute)
        for compute in self._computes:
            self._services.start(
                f'virtlogd-{compute}', f'ovsdb-{compute}')
            self._services.start(
                f'libvirtd-{compute}', f'ovs-{compute}', wait=False)
        self._run('mariadb', [
            'mariadb-install-db', '--no-defaults', '--user=root',
            '--auth-root-authentication-method=normal', '--skip-test-db',
            '--datadir=/run/mariadb'])
        self._services.start('mariadb')
        self._run('mariadb', [
            'mariadb', '--no-defaults', '--user=root',
            f'--socket={self._state}/run/mariadb.sock',
            '--execute=' + '; '.join(
                f'CREATE DATABASE {name} CHARACTER SET utf8mb4'
                for name in (*configuration.DATABASES, 'cinder'))])

    def _start_ceph(self) -> None:
        for name in ceph.SERVICES:
            if name == 'ceph-osd':
                with ceph.Cluster() as cluster:
                    cluster.add_osd()
            for command in ceph.commands(self._state, name):
                self._run(name, command)
            self._services.start(name)
        with ceph.Cluster() as cluster:
            cluster.make_pools()
            _wait('healthy Ceph', cluster.healthy)

    def _make_schemas(self) -> None:
        etc = self._configuration.etc

        def manage(module: str, project: str, *commands: Sequence[str]
                   ) -> None:
            self._run(f'{project}-manage', [
                sys.executable, '-c', _MANAGE, module, json.dumps([
                    [module, '--config-file', f'{etc}/{project}.conf',
                     *command] for command in commands])])

        def identity() -> None:
            owner = ('--keystone-user', 'root', '--keystone-group', 'root')
            manage('keystone.cmd.manage', 'keystone', ['db_sync'],
                   ['fernet_setup', *owner],
                   ['bootstrap', '--bootstrap-password', self._password,
                    '--bootstrap-region-id', configuration.REGION,
                    '--bootstrap-public-url', configuration.URLS['identity'],
                    '--bootstrap-internal-url',
                    configuration.URLS['identity']])

        def compute() -> None:
            manage('nova.cmd.manage', 'nova', ['api_db', 'sync'],
                   ['cell_v2', 'map_cell0', '--database_connection',
                    self._configuration.database('nova_cell0')],
                   ['cell_v2', 'create_cell', '--name', 'cell1'],
                   ['db', 'sync'])

        works: list[Callable[[], None]] = [
            compute, identity,
            lambda: manage('neutron.db.migration.cli', 'neutron',
                           ['upgrade', 'heads']),
            lambda: manage('glance.cmd.manage', 'glance-api', ['db_sync']),
            lambda: manage('placement.cmd.manage', 'placement',
                           ['db', 'sync'])]
        if self._storage.volumes:
            works.insert(1, lambda: manage(
                'cinder.cmd.manage', 'cinder', ['db', 'sync']))
        with futures.ThreadPoolExecutor() as pool:
            for _ in pool.map(lambda work: work(), works):
                pass

    def _start_identity(self) -> None:
        self._services.start('keystone-api')
        with self._connection() as cloud:
            identity = cloud.identity
            project = identity.create_project(
                name='service', domain_id='default')
            roles = {role.name: role.id for role in identity.roles()}
            for role in ('service', 'admin'):
                if role not in roles:
                    roles[role] = identity.create_role(name=role).id
            users = _USERS | (
                _USERS_OF_VOLUMES if self._storage.volumes else {})
            for kind, name in users.items():
                user = identity.create_user(
                    name=name, password=self._password, domain_id='default',
                    default_project_id=project.id)
                for role in ('service', 'admin'):
                    identity.assign_project_role_to_user(
                        project, user, roles[role])
                service = identity.create_service(name=name, type=kind)
                for interface in ('public', 'internal'):
                    identity.create_endpoint(
                        service_id=service.id, interface=interface,
                        region_id=configuration.REGION,
                        url=configuration.URLS[kind])

    def _start_apis(self) -> None:
        self._services.start(
            'placement-api', 'glance-api', 'neutron-api', 'nova-api',
            'neutron-rpc', 'nova-conductor', 'nova-scheduler', wait=False)
        volumes = ('cinder-api', 'cinder-scheduler', 'cinder-volume'
                   ) if self._storage.volumes else ()
        self._services.start(*volumes, wait=False)
        self._services.wait('rabbitmq', 'placement-api', 'glance-api',
                            'neutron-api', 'nova-api', *volumes)

    def _start_services(self) -> None:
        with self._connection() as cloud:
            _wait('nova-conductor and nova-scheduler', lambda: {
                service.binary for service in cloud.compute.services()
                if service.state == 'up'
            } >= {'nova-conductor', 'nova-scheduler'})
            self._services.start(*(
                f'neutron-agent-{compute}' for compute in self._computes))
            network = cloud.network.create_network(name=NETWORK)
            cloud.network.create_subnet(
                network_id=network.id, ip_version=4, enable_dhcp=False,
                cidr='203.0.113.0/24', gateway_ip=None)

    def _start_computes(self) -> None:
        self._services.wait(*(
            f'{service}-{compute}' for compute in self._computes
            for service in ('libvirtd', 'ovs')))
        self._services.start(*(
            f'nova-compute-{compute}' for compute in self._computes))
        with self._connection() as cloud:
            wanted = set(self._computes)
            _wait('live agents of Neutron', lambda: {
                agent.host for agent in cloud.network.agents()
                if agent.is_alive} == wanted)
            # It is mapped to its cell when the hypervisor is there to see.
            _wait('nova-compute that is up', lambda: {
                hypervisor.name for hypervisor in cloud.compute.hypervisors()
                if hypervisor.state == 'up'} == wanted, self._check_alive)
            if self._storage.volumes:
                self._make_volume_types(cloud)

    def _make_volume_types(self, cloud: Any) -> None:
        for name in storage_module.TYPES:
            cloud.block_storage.create_type(name=name, extra_specs={
                'volume_backend_name': name})
        wanted = {f'{self._computes[0]}@{name}'
                  for name in storage_module.TYPES}
        _wait('backends of Cinder', lambda: {
            service.host for service in cloud.block_storage.services()
            if service.binary == 'cinder-volume' and service.state == 'up'
        } >= wanted, functools.partial(self._check_alive, 'cinder-volume'))

    def _check_alive(self, *names: str) -> None:
        for name in self._services.dead(names or [
                f'nova-compute-{compute}' for compute in self._computes]):
            raise services.ServiceError(
                f'{name} has ended:\n{self._services.tail(name)}')

    def _run(self, name: str, command: Sequence[str]) -> None:
        self._services.run(name, command)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Any]:
        os.environ['OS_CLIENT_CONFIG_FILE'] = str(
            self._configuration.etc / 'clouds.yaml')
        with openstack.connect(CLOUD) as connection:
            yield connection


def _wait(what: str, condition: Callable[[], bool],
          check: Callable[[], None] = lambda: None) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while not condition():
        check()
        if time.monotonic() > deadline:
            raise services.ServiceError(
                f'No {what} after {_TIMEOUT:.0f} s.')
        time.sleep(0.5)


def main() -> int:
    """Bring it up; returns the exit code."""
    state, computes, kind, volumes = sys.argv[1:]
    deployment = Deployment(
        pathlib.Path(state), pathlib.Path(sys.prefix), int(computes),
        storage_module.Storage(kind, volumes == 'yes'))
    for name, work in deployment.phases():
        start = time.monotonic()
        try:
            work()
        except (services.ServiceError, openstack.exceptions.SDKException) as e:
            print(json.dumps({'phase': name, 'error': str(e)}), flush=True)
            return 1
        print(json.dumps({'phase': name, 'seconds': time.monotonic() - start}),
              flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
