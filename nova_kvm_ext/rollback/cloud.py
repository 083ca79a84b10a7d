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

"""Reads the facts for a rollback from a cloud, by its APIs."""

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
import urllib.parse

from nova_kvm_ext import errors
from nova_kvm_ext.rollback import traces

# Traits of resource providers; extra specs among a flavor's details.
_PLACEMENT = '1.6'
_COMPUTE = '2.61'
_PAGE = 200


def providers(cloud: Any, progress: Callable[[int], None] = lambda done: None
              ) -> tuple[traces.Provider, ...]:
    """Every resource provider with its traits.

    :param cloud: openstack.connection.Connection, of an administrator
    :raises errors.InvalidRequest: Placement does not answer
    """
    found = []
    every = _get(cloud.placement, '/resource_providers', _PLACEMENT)
    for done, one in enumerate(every['resource_providers'], 1):
        has = _get(cloud.placement,
                   f'/resource_providers/{one["uuid"]}/traits', _PLACEMENT)
        found.append(traces.Provider(
            str(one['uuid']), str(one['name']), frozenset(has['traits'])))
        progress(done)
    return tuple(found)


def flavors(cloud: Any) -> tuple[traces.Asking, ...]:
    """Every flavor, private ones too.

    :raises errors.InvalidRequest: Nova does not answer
    """
    return tuple(
        traces.Asking(str(one['id']), str(one['name']),
                      {str(key): str(value) for key, value in (
                          one.get('extra_specs') or {}).items()})
        for one in _pages(cloud.compute, '/flavors/detail?is_public=none&',
                          'flavors', _COMPUTE))


def servers(cloud: Any, host: str) -> tuple[traces.Asking, ...]:
    """The servers of a host, each with the flavor that is kept with it.

    :param host: a host's name, as Nova knows it
    :raises errors.InvalidRequest: Nova does not answer
    """
    return tuple(
        traces.Asking(str(one['id']), str(one.get('name')), {
            str(key): str(value) for key, value in (
                (one.get('flavor') or {}).get('extra_specs') or {}).items()})
        for one in _pages(
            cloud.compute, '/servers/detail?all_tenants=1&host='
            f'{urllib.parse.quote(host, safe="")}&', 'servers', _COMPUTE))


def images(cloud: Any) -> tuple[traces.Asking, ...]:
    """Every image that an administrator sees.

    :raises errors.InvalidRequest: Glance does not answer
    """
    return tuple(
        traces.Asking(str(one['id']), str(one.get('name')), {
            str(key): str(value) for key, value in one.items()})
        for one in _pages(cloud.image, '/images?', 'images', None))


def _pages(client: Any, path: str, key: str,
           microversion: str | None) -> Iterator[Any]:
    marker = ''
    while True:
        found = _get(client, f'{path}limit={_PAGE}{marker}',
                     microversion).get(key) or []
        yield from found
        if len(found) < _PAGE:
            # Glance has a limit of its own, which may be lower.
            if not found or client.service_type != 'image':
                return
        marker = f'&marker={found[-1]["id"]}'


def _get(client: Any, path: str, microversion: str | None) -> Any:
    from keystoneauth1 import exceptions
    try:
        answer = client.get(path, microversion=microversion)
        if answer.ok:
            return answer.json()
        said = f'{answer.status_code} {answer.reason}'
    except (exceptions.ClientException, ValueError) as e:
        said = errors.clean(e)
    raise errors.InvalidRequest(
        f'{client.service_type} does not answer {path.partition("?")[0]}: '
        f'{said}.', 'This takes an administrator, and a cloud that is up.')
