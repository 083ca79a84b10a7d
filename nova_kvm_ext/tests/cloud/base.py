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

"""What the checks of a cloud share: the cloud, guests in it, and waiting.

A check speaks to the public APIs alone, as the administrator of the cloud that
OS_CLOUD names in clouds.yaml, so it runs against any cloud whose computes have
the driver. What a check makes it removes. Guests are the test guest of
:mod:`nova_kvm_ext.boot.testguest`, uploaded as an image.

HostTestCase is for those that need a compute's own libvirt, files or
processes: they run on the cloud of tools/run-cloud-tests alone.
"""

import atexit
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import datetime
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any
import unittest
import uuid

import openstack
import testtools
from testtools import content

from nova_kvm_ext.boot import report
from nova_kvm_ext.boot import testguest
from nova_kvm_ext.tests.cloud import configuration
from nova_kvm_ext.tests.cloud import sandbox
from nova_kvm_ext.tests.cloud import services
from nova_kvm_ext.tests.cloud import storage

STATE = 'NOVA_KVM_EXT_CLOUD_STATE'
"""Environment variable: the directory of a cloud of tools/run-cloud-tests."""

NETWORK = 'NOVA_KVM_EXT_CLOUD_NETWORK'
"""Environment variable: the network for guests; 'private' without it."""

TIMEOUT = float(os.environ.get('NOVA_KVM_EXT_CLOUD_TIMEOUT', '300'))
"""Seconds within which anything must happen: guests may be emulated."""

_POLL = 1.0


@functools.cache
def guest_file() -> str:
    """Path of the test guest's raw image, built once for this process."""
    directory = tempfile.mkdtemp(prefix='nova-kvm-ext-cloud-')
    atexit.register(shutil.rmtree, directory)
    return testguest.build(directory).path


@functools.cache
def _connection() -> openstack.connection.Connection:
    # What a connection that was kept has missed is no failure of a check.
    return openstack.connect(connect_retries=5)


class Failed(Exception):
    """A resource is in an error state; str() has the API's reason."""


class CloudTestCase(testtools.TestCase):
    """A check through the APIs.

    :ivar cloud: the connection
    :ivar image: the test guest with a channel for its agent
    :ivar flavor: one vCPU, little memory
    """

    cloud: Any
    image: Any
    flavor: Any

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        if not os.environ.get('OS_CLOUD'):
            raise unittest.SkipTest(
                'OS_CLOUD does not name a cloud of clouds.yaml')
        cls.cloud = _connection()
        cls.image = cls.make_image(
            guest_file(), properties={'hw_qemu_guest_agent': 'yes',
                                      'os_require_quiesce': 'yes'})
        cls.flavor = cls.make_flavor()

    @classmethod
    def make_image(cls, path: str, *, disk_format: str = 'raw',
                   store: str | None = None,
                   properties: Mapping[str, str] = {}) -> Any:
        """Upload an image that is removed after the class.

        :param store: of Glance's, None for the default
        """
        more: dict[str, Any] = {} if store else {
            'filename': path, 'wait': True}
        image = cls.cloud.image.create_image(
            name=f'kvm-ext-{uuid.uuid4()}', disk_format=disk_format,
            container_format='bare', allow_duplicates=True, **more,
            **properties)
        cls.addClassCleanup(cls.cloud.image.delete_image, image.id)
        if store:
            with open(path, 'rb') as file:
                openstack.exceptions.raise_from_response(cls.cloud.image.put(
                    f'/images/{image.id}/file', data=file, headers={
                        'Content-Type': 'application/octet-stream',
                        'X-Image-Meta-Store': store}))
        return image

    @classmethod
    def make_blank_image(cls, *, mib: int = 1,
                         properties: Mapping[str, str] = {}) -> Any:
        """Upload an image of an empty disk: its firmware waits for ever."""
        with tempfile.NamedTemporaryFile() as blank:
            os.truncate(blank.name, mib * 1024 * 1024)
            return cls.make_image(blank.name, properties=properties)

    @classmethod
    def make_flavor(cls, *, vcpus: int = 1, ram: int = 256, disk: int = 1,
                    extra_specs: Mapping[str, str] = {}) -> Any:
        """Make a flavor that is removed after the class."""
        flavor = cls.cloud.compute.create_flavor(
            name=f'kvm-ext-{uuid.uuid4()}', vcpus=vcpus, ram=ram, disk=disk)
        cls.addClassCleanup(cls.cloud.compute.delete_flavor, flavor.id)
        if extra_specs:
            cls.cloud.compute.create_flavor_extra_specs(
                flavor, dict(extra_specs))
        return flavor

    def network(self) -> Any:
        """The network for guests' cards."""
        return self.cloud.network.find_network(
            os.environ.get(NETWORK, 'private'), ignore_missing=False)

    def create(self, *, image: Any = None, flavor: Any = None,
               nics: int = 0, host: str | None = None) -> Any:
        """Ask for a server; it may yet fail, and is the caller's to remove."""
        more: dict[str, Any] = {}
        if host is not None:
            more['host'] = host
        return self.cloud.compute.create_server(
            name=f'kvm-ext-{uuid.uuid4()}',
            image_id=(image or self.image).id,
            flavor_id=(flavor or self.flavor).id,
            networks=[{'uuid': self.network().id}] * nics or 'none', **more)

    def ask_for(self, **wanted: Any) -> Any:
        """As :meth:`create`, of a server that is removed after the test."""
        server = self.create(**wanted)
        self.addCleanup(self.remove, server)
        return server

    def boot(self, **wanted: Any) -> Any:
        """A server that is ACTIVE, arguments as for :meth:`create`."""
        return self.wait_for_status(self.ask_for(**wanted), 'ACTIVE')

    def remove(self, server: Any) -> None:
        """Delete a server and wait until it is gone."""
        self.cloud.compute.delete_server(server, ignore_missing=True)

        def gone() -> bool:
            try:
                # It still counts while its status is DELETED.
                self.cloud.compute.get_server(server.id)
            except openstack.exceptions.NotFoundException:
                return True
            return False
        self.wait('end of the server', gone)

    def wait(self, what: str, condition: Callable[[], Any],
             timeout: float = TIMEOUT) -> Any:
        """Poll until a condition holds; returns its value."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > deadline:
                self.fail(f'No {what} within {timeout:.0f} s')
            time.sleep(_POLL)
        return value

    def wait_for_status(self, server: Any, status: str,
                        timeout: float = TIMEOUT) -> Any:
        """Wait until a server has a status and nothing is being done.

        :raises Failed: it is in ERROR, which was not asked for
        """
        def reached() -> Any:
            found = self.cloud.compute.get_server(server.id)
            if found.status == 'ERROR' != status:
                raise Failed(self.fault(found))
            return found if (found.status == status and
                             found.task_state is None) else None
        return self.wait(f'status {status}', reached, timeout)

    def fault(self, server: Any) -> str:
        """What the API says of why a server could not be built."""
        found = self.cloud.compute.get_server(server.id)
        fault = found.fault or {}
        # After several hosts the fault has the number of tries alone; what
        # each of them said is with the events.
        return '\n'.join([
            *(str(fault[key]) for key in ('message', 'details')
              if key in fault), self.events(server, 'create')])

    def console(self, server: Any) -> str:
        """What a server has printed."""
        return self.cloud.compute.get_server_console_output(
            server.id)['output']

    def report(self, server: Any) -> report.GuestReport:
        """What the test guest says of itself, once it has booted."""
        def read() -> report.GuestReport | None:
            return report.parse(self.console(server))
        try:
            return self.wait('report on the console', read)
        except AssertionError:
            self.addDetail('console', content.text_content(
                self.console(server)))
            raise

    def agent(self, server: Any) -> Mapping[str, Any]:
        """What the driver says of a server's guest agent."""
        # Later versions have a fixed form, without it.
        answer = self.cloud.compute.get(
            f'/servers/{server.id}/diagnostics', microversion='2.1')
        openstack.exceptions.raise_from_response(answer)
        return answer.json()['guest_agent']

    def wait_for_agent(self, server: Any) -> Mapping[str, Any]:
        """Wait until a server's agent answers."""
        def connected() -> Any:
            found = self.agent(server)
            return found if found['state'] == 'connected' else None
        return self.wait('agent that answers', connected)

    def snapshot(self, server: Any) -> Any:
        """Make an image of a server; it is removed after the test.

        :returns: the image when it is active; None when there came none
        """
        image = self.cloud.compute.create_server_image(
            server.id, f'kvm-ext-{uuid.uuid4()}')
        self.addCleanup(self.cloud.image.delete_image, image.id)

        def done() -> Any:
            found = self.cloud.image.find_image(image.id)
            return found is None or (found if found.status in (
                'active', 'killed', 'deleted') else None)
        found = self.wait('end of the snapshot', done)
        self.wait('end of the task', lambda: self.cloud.compute.get_server(
            server.id).task_state is None)
        return found if found is not True and (
            found.status == 'active') else None

    def events(self, server: Any, action: str) -> str:
        """What the events of the last such action on a server say."""
        for taken in self.cloud.compute.server_actions(server.id):
            if taken.action == action:
                full = self.cloud.compute.get_server_action(
                    taken.request_id, server.id)
                return '\n'.join(
                    str(text) for event in full.events
                    for text in (event.get('event'), event.get('result'),
                                 event.get('details'),
                                 event.get('traceback')) if text)
        return ''

    @classmethod
    def placement(cls, method: str, host: str, what: str, **more: Any) -> Any:
        """Ask Placement about the resource provider of a compute.

        :param what: the path below the provider's
        :returns: the JSON of the answer
        """
        provider = cls.cloud.compute.find_hypervisor(
            host, ignore_missing=False)
        answer = cls.cloud.placement.request(
            f'/resource_providers/{provider.id}/{what}', method,
            microversion='1.6', **more)
        openstack.exceptions.raise_from_response(answer)
        return answer.json()

    @classmethod
    def traits(cls, host: str) -> set[str]:
        """The traits that a compute has in Placement."""
        return set(cls.placement('GET', host, 'traits')['traits'])

    def set_traits(self, host: str, traits: set[str],
                   new: str | None = None) -> None:
        """Give a compute traits in Placement.

        :param new: one of them that does not exist yet; removed after the
            test
        """
        if new is not None:
            self.cloud.placement.put(f'/traits/{new}', microversion='1.6')
            self.addCleanup(self.cloud.placement.delete, f'/traits/{new}',
                            microversion='1.6')

        def put() -> bool:
            # The service may write its own at the same time.
            seen = self.placement('GET', host, 'traits')
            try:
                self.placement('PUT', host, 'traits', json={
                    'resource_provider_generation':
                        seen['resource_provider_generation'],
                    'traits': sorted(traits)})
            except openstack.exceptions.ConflictException:
                return False
            return True
        self.wait('traits that are set', put)

    def pinned(self, host: str) -> dict[str, str]:
        """Extra specs that keep a server on a host where it must stay."""
        if STATE not in os.environ:
            return {}
        # The computes of that cloud have no SSH, by which disks would move.
        trait = f'CUSTOM_{uuid.uuid4().hex.upper()}'
        self.set_traits(host, self.traits(host) | {trait}, new=trait)
        self.addCleanup(lambda: self.set_traits(
            host, self.traits(host) - {trait}))
        return {f'trait:{trait}': 'required'}

    def allocations(self, host: str) -> set[str]:
        """UUIDs of the servers and migrations that Placement has on it."""
        return set(self.placement('GET', host, 'allocations')['allocations'])

    @classmethod
    def hosts(cls) -> list[str]:
        """The computes that are up, by name."""
        return sorted(
            service.host for service in cls.cloud.compute.services()
            if service.binary == 'nova-compute' and service.state == 'up' and
            service.status == 'enabled')


class HostTestCase(CloudTestCase):
    """A check that needs the hosts themselves.

    :ivar state: directory of the cloud
    :ivar services: the cloud's services
    :ivar storage: what images, disks and volumes lie on
    """

    state: pathlib.Path
    services: services.Services
    storage: storage.Storage

    @classmethod
    def setUpClass(cls) -> None:
        if not os.environ.get(STATE):
            raise unittest.SkipTest(
                'It needs the hosts of the cloud: libvirt, files and '
                'processes. tools/run-cloud-tests has them')
        super().setUpClass()
        cls.state = pathlib.Path(os.environ[STATE])
        cls.services = services.Services(cls.state, pathlib.Path(sys.prefix))
        cls.storage = storage.of(cls.state)

    def on_host(self, host: str, command: Sequence[str],
                check: bool = True) -> str:
        """Run a command on a compute; returns what it printed.

        :param check: whether a failure fails the test
        """
        result = subprocess.run(
            sandbox.in_compute(self.state, host, command), text=True,
            timeout=TIMEOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)
        if check and result.returncode:
            self.fail(f'{" ".join(command)} on {host}: {result.stdout}')
        return result.stdout

    def domains(self, host: str) -> set[str]:
        """UUIDs of the domains that libvirt has on a compute."""
        return set(self.on_host(host, [
            'virsh', '-q', 'list', '--all', '--uuid']).split())

    def domain(self, server: Any) -> str:
        """The name of a server's domain."""
        return self.cloud.compute.get_server(server.id).instance_name

    def host_of(self, server: Any) -> str:
        """The compute on which a server is."""
        return self.cloud.compute.get_server(server.id).compute_host

    def tell_agent(self, server: Any, command: str, **arguments: Any) -> Any:
        """Give a command to a server's agent, past Nova."""
        return json.loads(self.on_host(self.host_of(server), [
            'virsh', 'qemu-agent-command', self.domain(server), json.dumps(
                {'execute': command} |
                ({'arguments': arguments} if arguments else {}))]))['return']

    def frozen(self, server: Any) -> str | None:
        """What its agent says of its file systems, if it says anything."""
        said = self.on_host(self.host_of(server), [
            'virsh', 'qemu-agent-command', self.domain(server),
            '{"execute": "guest-fsfreeze-status"}'], check=False)
        return next((state for state in ('frozen', 'thawed')
                     if f'"{state}"' in said), None)

    def console_file(self, server: Any) -> str:
        """What a server has printed, also one that does not run."""
        path = (self.state / self.host_of(server) / 'instances' / server.id /
                'console.log')
        return path.read_text(errors='replace')

    def log_since(self, host: str) -> Callable[[], str]:
        """What nova-compute logs from now on, when it is called."""
        path = self.services.log(f'nova-compute-{host}')
        start = path.stat().st_size

        def read() -> str:
            with open(path, errors='replace') as log:
                log.seek(start)
                return log.read()
        return read

    def change(self, host: str, options: configuration.Options) -> None:
        """Have nova-compute on a host run with other options.

        It has its own back after the test.
        """
        self.addCleanup(self._change, host, {})
        self._change(host, options)

    def set_options(self, name: str, options: configuration.Options) -> None:
        """Set what a service starts with, beside its own options.

        :param name: of a host, for nova-compute there; else of the service
        """
        configuration.write_options(
            self.state / 'etc' / f'{name}-changed.conf', options)

    def _change(self, host: str, options: configuration.Options) -> None:
        self.set_options(host, options)
        self.services.stop(f'nova-compute-{host}')
        self.start_compute(host)

    def start_compute(self, host: str) -> None:
        """Start nova-compute and wait until its service is up."""
        before = datetime.datetime.utcnow().isoformat()
        self.services.start(f'nova-compute-{host}')

        def up() -> bool:
            if self.services.pid(f'nova-compute-{host}') is None:
                self.fail(self.services.tail(f'nova-compute-{host}'))
            return any(
                service.state == 'up' and service.updated_at > before
                for service in self.cloud.compute.services(
                    host=host, binary='nova-compute'))
        self.wait('nova-compute that is up', up)

    def assert_sound(self) -> None:
        """No lost server, stray domain, leaked allocation or frozen guest.

        What is on its way there has time to arrive.
        """
        def unsound() -> list[str]:
            servers = {server.id: server
                       for server in self.cloud.compute.servers(
                           all_projects=True)}
            found = []
            for host in self.hosts():
                domains = self.domains(host)
                here = {id for id, server in servers.items()
                        if server.compute_host == host}
                found += [f'{host} has a domain of no server: {id}'
                          for id in domains - here]
                found += [
                    f'{host} has no domain of {id}' for id in here - domains
                    if servers[id].status == 'ACTIVE']
                found += [f'Placement has {host} used by {id}, which is not '
                          f'there' for id in self.allocations(host) - here]
            found += [f'{server.id}: {server.task_state}'
                      for server in servers.values() if server.task_state]
            return found

        deadline = time.monotonic() + TIMEOUT
        while found := unsound():
            if time.monotonic() > deadline:
                self.fail('\n'.join(found))
            time.sleep(_POLL)

    def assert_thawed(self, server: Any) -> None:
        """A server's agent answers, and its filesystems are thawed."""
        self.wait_for_agent(server)
        self.assertEqual('thawed', self.tell_agent(
            server, 'guest-fsfreeze-status'))
