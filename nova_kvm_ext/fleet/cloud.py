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

"""Reads a fleet from a cloud: the data that its computes have published.

The API shows the compute node's ``cpu_info`` up to microversion 2.87. The
diagnostics of a server, for which the API asks its compute, have the guest's
exact CPU. Both need an administrator.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
from typing import Any

from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import stored
from nova_kvm_ext import errors
from nova_kvm_ext.fleet import drain
from nova_kvm_ext.fleet import export

# The last that shows cpu_info; 2.33 brought pages.
_HYPERVISORS = '2.87'
# The last of those in which diagnostics are the driver's own.
_DIAGNOSTICS = '2.47'
_PAGE = 200


@dataclasses.dataclass(frozen=True)
class Read:
    """What was read.

    :ivar hosts: one for each compute that publishes what its guests can have
    :ivar refused: why others are left out, a sentence each
    :ivar aggregates: names of host aggregates by host
    """

    hosts: tuple[export.Export, ...]
    refused: tuple[str, ...]
    aggregates: Mapping[str, Collection[str]]


def connect(name: str) -> Any:
    """The cloud of this name in clouds.yaml.

    :returns: openstack.connection.Connection
    :raises errors.InvalidRequest: there is none, or it does not let us in
    """
    # It takes half a second to import.
    from keystoneauth1 import exceptions as keystone
    import openstack
    from openstack import exceptions
    try:
        connection = openstack.connect(cloud=name)
        connection.authorize()
    except (exceptions.SDKException, keystone.ClientException) as e:
        raise errors.InvalidRequest(
            f'--os-cloud {errors.clean(name, 80)}: {errors.clean(e)}.',
            'Name a cloud of clouds.yaml, with the credentials of an '
            'administrator.') from e
    return connection


def read(cloud: Any, progress: Callable[[int], None] = lambda done: None
         ) -> Read:
    """The computes of a cloud.

    :param cloud: openstack.connection.Connection
    :param progress: called with the number of computes that have been read
    :raises errors.InvalidRequest: the cloud does not answer
    """
    hosts, refused = [], []
    for done, hypervisor in enumerate(_pages(
            cloud, '/os-hypervisors/detail', 'hypervisors', _HYPERVISORS), 1):
        name = errors.clean((hypervisor.get('service') or {}).get('host') or
                            hypervisor.get('hypervisor_hostname'), 255)
        said = hypervisor.get('cpu_info')
        said = said.get(export.MARK) if isinstance(said, Mapping) else None
        try:
            if said is None:
                raise errors.HostError(
                    f'{name} publishes nothing of what its guests can have: '
                    f'it runs another driver, or has not been up since this '
                    f'one can.')
            hosts.append(dataclasses.replace(
                export.from_dict(said, name), host=name))
        except errors.HostError as e:
            refused.append(str(e))
        progress(done)
    aggregates: dict[str, list[str]] = {}
    for aggregate in _get(cloud, '/os-aggregates', '2.1').get(
            'aggregates', ()):
        for host in aggregate.get('hosts') or ():
            aggregates.setdefault(host, []).append(str(aggregate['name']))
    return Read(tuple(hosts), tuple(refused), aggregates)


def guests(cloud: Any, host: str,
           progress: Callable[[int], None] = lambda done: None
           ) -> tuple[drain.Guest, ...]:
    """The guests of a host, each with the CPU that its compute has kept.

    :raises errors.InvalidRequest: the cloud does not answer
    """
    found = []
    for done, server in enumerate(_pages(
            cloud, f'/servers/detail?all_tenants=1&host={host}', 'servers',
            '2.1'), 1):
        found.append(_guest(cloud, server))
        progress(done)
    return tuple(found)


def _guest(cloud: Any, server: Mapping[str, Any]) -> drain.Guest:
    uuid = str(server['id'])
    name = f'{errors.clean(server.get("name"), 64)} ({uuid})'
    if server.get('status') not in ('ACTIVE', 'PAUSED'):
        return drain.Guest(
            name, None, f'it is {errors.clean(server.get("status"), 20)}: '
                        f'its next host gives it a CPU', runs=False)
    try:
        answer = _get(cloud, f'/servers/{uuid}/diagnostics', _DIAGNOSTICS)
        xml = answer.get(stored.DIAGNOSTICS_KEY)
        if not isinstance(xml, str):
            return drain.Guest(
                name, None, 'its compute has not kept its CPU')
        return drain.Guest(name, definition.CPU.parse(xml, name))
    except errors.KVMExtError as e:
        return drain.Guest(name, None, e.problem)


def _pages(cloud: Any, path: str, key: str,
           microversion: str) -> Iterator[Mapping[str, Any]]:
    joint = '&' if '?' in path else '?'
    marker = ''
    while True:
        answer = _get(cloud, f'{path}{joint}limit={_PAGE}{marker}',
                      microversion)
        found = answer.get(key) or []
        yield from found
        # Where [api] max_limit is lower, a page that is full is shorter.
        if not found or len(found) < _PAGE and not answer.get(f'{key}_links'):
            return
        marker = f'&marker={found[-1]["id"]}'


def _get(cloud: Any, path: str, microversion: str) -> Mapping[str, Any]:
    from keystoneauth1 import exceptions as keystone
    try:
        answer = cloud.compute.get(path, microversion=microversion)
        if answer.ok:
            return answer.json()
        said = f'{answer.status_code} {answer.reason}'
    except (keystone.ClientException, ValueError) as e:
        said = errors.clean(e)
    raise errors.InvalidRequest(
        f'Nova does not answer {path.partition("?")[0]}: {said}.',
        'This takes an administrator, and a Nova that is up.')
