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

"""Reads and corrects what a cloud has recorded of a migration.

Nova and Placement are asked as an administrator of clouds.yaml, Neutron as
the service in nova.conf's ``[neutron]``, because Neutron shows and deletes
bindings of ports only to services.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from nova_kvm_ext import errors
from nova_kvm_ext.migration import repair

_NOVA = '2.59'
"""Microversion with the UUIDs of migrations; os-hypervisors has UUIDs from
2.53 on."""

_ATTACHMENTS = '2.89'
"""Microversion with Cinder's id of each attachment."""

_PLACEMENT = '1.28'
"""Microversion with generations of consumers."""


class Records:
    """The records about one server.

    :param cloud: openstack.connection.Connection
    :param neutron: makes a keystoneauth1 adapter for Neutron; raises
        errors.KVMExtError where nova.conf does not say how
    """

    def __init__(self, cloud: Any, neutron: Callable[[], Any]) -> None:
        self._cloud = cloud
        self._make_neutron = neutron
        self._neutron: Any = None

    def server(self, wanted: str) -> repair.Server:
        """What Nova says of a server.

        :param wanted: UUID
        :raises errors.InvalidRequest: there is none, or Nova does not answer
        """
        found = self._ask(self._cloud.compute, 'GET', f'/servers/{wanted}',
                          _NOVA)['server']
        newest = max(
            (each for each in self._ask(
                self._cloud.compute, 'GET',
                f'/os-migrations?instance_uuid={wanted}', _NOVA)['migrations']
             if each['migration_type'] == repair.LIVE),
            key=lambda each: each['id'], default=None)
        return repair.Server(
            uuid=found['id'], host=found['OS-EXT-SRV-ATTR:host'] or '',
            state=found['OS-EXT-STS:vm_state'],
            task=found['OS-EXT-STS:task_state'],
            fault=(found.get('fault') or {}).get('message') or '',
            volumes=tuple(each['id'] for each in found.get(
                'os-extended-volumes:volumes_attached') or ()),
            migration=newest and repair.Migration(
                newest['uuid'], newest['source_compute'],
                newest['dest_compute'], newest['status']))

    def address(self, host: str) -> str:
        """The address of a host (its my_ip), '' where Nova has none."""
        return next((each.get('host_ip') or '' for each in self._hypervisors()
                     if each['service']['host'] == host), '')

    def _hypervisors(self) -> list[Mapping[str, Any]]:
        """All of the cloud's; Nova gives [api] max_limit of them at once."""
        found: list[Mapping[str, Any]] = []
        page = ''
        while True:
            answer = self._ask(self._cloud.compute, 'GET',
                               f'/os-hypervisors/detail{page}', _NOVA)
            found += answer['hypervisors']
            if not answer['hypervisors'] or (
                    not answer.get('hypervisors_links')):
                return found
            page = f'?marker={found[-1]["id"]}'

    def allocations(self, server: repair.Server) -> repair.Allocations:
        """Which hosts have something allocated for a server."""
        assert server.migration is not None
        try:
            hosts = {each['id']: each['service']['host']
                     for each in self._hypervisors()}
            return repair.Allocations(
                self._hosts(server.uuid, hosts),
                self._hosts(server.migration.uuid, hosts))
        except errors.InvalidRequest as e:
            return repair.Allocations(unknown=e.problem)

    def _hosts(self, consumer: str, hosts: Mapping[str, str]
               ) -> frozenset[str]:
        """The hosts that a consumer has resources of.

        What lies on no host, a shared storage pool for one, is no host's.
        """
        found = set()
        for provider in self._consumer(consumer)['allocations']:
            root = self._ask(
                self._cloud.placement, 'GET',
                f'/resource_providers/{provider}',
                _PLACEMENT)['root_provider_uuid']
            if root in hosts:
                found.add(hosts[root])
        return frozenset(found)

    def _consumer(self, consumer: str) -> Mapping[str, Any]:
        return self._ask(self._cloud.placement, 'GET',
                         f'/allocations/{consumer}', _PLACEMENT)

    def move_allocations(self, server: repair.Server) -> None:
        """Give a server what its migration has, in one request.

        As Nova does when a migration is reverted. Should either have changed
        meanwhile, Placement refuses.

        :raises errors.InvalidRequest: it failed
        """
        assert server.migration is not None
        instance = self._consumer(server.uuid)
        migration = self._consumer(server.migration.uuid)
        self._ask(self._cloud.placement, 'POST', '/allocations', _PLACEMENT, {
            server.uuid: {
                'allocations': {
                    provider: {'resources': each['resources']}
                    for provider, each in migration['allocations'].items()},
                'project_id': instance['project_id'],
                'user_id': instance['user_id'],
                'consumer_generation': instance['consumer_generation']},
            server.migration.uuid: {
                'allocations': {},
                'project_id': migration['project_id'],
                'user_id': migration['user_id'],
                'consumer_generation': migration['consumer_generation']}})

    def ports(self, server: repair.Server) -> tuple[repair.Port, ...]:
        """The ports of a server with all their bindings.

        :raises errors.KVMExtError: Neutron does not say
        """
        found = []
        for port in self._ask(
                self.neutron, 'GET', f'/v2.0/ports?device_id={server.uuid}'
        )['ports']:
            bindings = self._ask(
                self.neutron, 'GET',
                f'/v2.0/ports/{port["id"]}/bindings')['bindings']
            found.append(repair.Port(
                port['id'], port.get('binding:host_id') or '',
                {each['host']: each['status'] for each in bindings
                 if each['host'] != port.get('binding:host_id')}))
        return tuple(found)

    def volumes(self, server: repair.Server) -> dict[str, str]:
        """The host of the attachment that Nova uses, by volume.

        :returns: '' for a host that Cinder does not tell
        :raises errors.InvalidRequest: Nova or Cinder does not say
        """
        from openstack import exceptions
        try:
            cinder = self._cloud.block_storage
        except exceptions.SDKException as e:
            raise errors.InvalidRequest(f'Cinder: {errors.clean(e)}.') from e
        found = {}
        for each in self._ask(
                self._cloud.compute, 'GET',
                f'/servers/{server.uuid}/os-volume_attachments',
                _ATTACHMENTS)['volumeAttachments']:
            volume = self._ask(
                cinder, 'GET', f'/volumes/{each["volumeId"]}')['volume']
            found[each['volumeId']] = next((
                one.get('host_name') or '' for one in volume['attachments']
                if one.get('attachment_id') == each['attachment_id']), '')
        return found

    def activate_binding(self, port: str, host: str) -> None:
        """Bind a port to a host to which it has an inactive binding.

        The binding that was active becomes inactive.

        :raises errors.KVMExtError: it failed
        """
        self._ask(self.neutron, 'PUT',
                  f'/v2.0/ports/{port}/bindings/{host}/activate')

    def delete_binding(self, port: str, host: str) -> None:
        """Delete the binding of a port to a host.

        :raises errors.KVMExtError: it failed
        """
        self._ask(self.neutron, 'DELETE',
                  f'/v2.0/ports/{port}/bindings/{host}')

    def reset_state(self, server: repair.Server) -> None:
        """Have Nova take a server for active.

        :raises errors.InvalidRequest: it failed
        """
        self._ask(self._cloud.compute, 'POST',
                  f'/servers/{server.uuid}/action', _NOVA,
                  {'os-resetState': {'state': 'active'}})

    @property
    def neutron(self) -> Any:
        if self._neutron is None:
            self._neutron = self._make_neutron()
        return self._neutron

    @staticmethod
    def _ask(service: Any, method: str, path: str, microversion: str = '',
             body: Any = None) -> Any:
        """The answer of a service, None where it has no body.

        :raises errors.InvalidRequest: it is none, or an error
        """
        from keystoneauth1 import exceptions as keystone
        what = f'{method} {path.partition("?")[0]}'
        try:
            answer = service.request(
                path, method, raise_exc=False, json=body,
                **({'microversion': microversion} if microversion else {}))
            if answer.status_code < 400:
                return answer.json() if answer.content else None
            said = f'{answer.status_code} {errors.clean(answer.text, 200)}'
        except (keystone.ClientException, ValueError) as e:
            said = errors.clean(e)
        raise errors.InvalidRequest(
            f'{what}: {said}.', 'This takes an administrator (Neutron: the '
            'service user of nova.conf), and a service that is up.')


def neutron(conf: Any) -> Any:
    """Neutron as nova.conf's ``[neutron]`` reaches it.

    :param conf: oslo.config's ConfigOpts with Nova's options
    :returns: keystoneauth1.adapter.Adapter
    :raises errors.HostError: the group does not say how
    """
    from keystoneauth1 import exceptions as keystone
    from keystoneauth1 import loading
    group = 'neutron'
    try:
        loading.register_auth_conf_options(conf, group)
        auth = loading.load_auth_from_conf_options(conf, group)
        if auth is None:
            raise ValueError('no auth_type')
        session = loading.load_session_from_conf_options(
            conf, group, auth=auth)
        return loading.load_adapter_from_conf_options(
            conf, group, session=session, auth=auth)
    except (keystone.ClientException, ValueError) as e:
        raise errors.HostError(
            f'[neutron] of nova.conf does not say how to reach Neutron: '
            f'{errors.clean(e)}.',
            'Name the file with --config-file.') from e
