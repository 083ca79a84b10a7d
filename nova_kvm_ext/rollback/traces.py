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

"""What this driver leaves in a cloud that LibvirtDriver does not know.

Names each trace, and the command that removes it. Pure.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import re
import shlex

from nova_kvm_ext import errors
from nova_kvm_ext import request
from nova_kvm_ext import traits

# The first with the traits of a resource provider.
_PLACEMENT = '--os-placement-api-version 1.6'
# trait:CUSTOM_KVM_EXT_..., of a numbered group too.
_TRAIT = re.compile(r'trait[0-9A-Za-z_-]*:' + traits.PREFIX + '.*')


@dataclasses.dataclass(frozen=True)
class Provider:
    """A resource provider of Placement.

    :ivar uuid: its UUID
    :ivar name: the hypervisor's name
    :ivar traits: all that it has
    """

    uuid: str
    name: str
    traits: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Asking:
    """A flavor or an image, which may ask for what this driver can.

    :ivar id: its id
    :ivar name: what people call it; tenants name images
    :ivar keys: names and values of its extra specs or properties
    """

    id: str
    name: str
    keys: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Trace:
    """One thing that is left.

    :ivar what: a clause, fit for one line
    :ivar command: that removes it, fit for a shell; '' where none does
    """

    what: str
    command: str = ''


def of_providers(found: Iterable[Provider]) -> tuple[Trace, ...]:
    """Traits of this driver: its nova-compute alone removes them.

    A provider's traits can only be set as a whole.
    """
    left = []
    for provider in found:
        add, ours = traits.changes(provider.traits, ())
        assert not add
        if not ours:
            continue
        rest = sorted(provider.traits - ours)
        command = (
            f'openstack {_PLACEMENT} resource provider trait set ' +
            ''.join(f'--trait {shlex.quote(name)} ' for name in rest)
            if rest else
            f'openstack {_PLACEMENT} resource provider trait delete ')
        left.append(Trace(
            f'{errors.clean(provider.name, 255)} has {_few(sorted(ours))}',
            command + shlex.quote(provider.uuid)))
    return tuple(left)


def of_flavors(found: Iterable[Asking]) -> tuple[Trace, ...]:
    """Flavors that ask for what only this driver gives."""
    return _asking(found, 'flavor', request.EXTRA_SPEC_PREFIX)


def of_images(found: Iterable[Asking]) -> tuple[Trace, ...]:
    """Images that ask for what only this driver gives.

    What the driver has written about a snapshot is no wish, and stays.
    """
    return _asking(found, 'image', request.IMAGE_PREFIX)


def of_servers(found: Iterable[Asking]) -> tuple[Trace, ...]:
    """Servers whose CPU is that of a flavor's wish.

    LibvirtDriver gives them the host's at their next hard reboot.
    """
    return tuple(
        Trace(f'server {errors.clean(server.name, 80)} '
              f'({errors.clean(server.id, 36)}) has {_few(keys)}')
        for server in found
        if (keys := sorted(key for key in server.keys if key.startswith(
            request.EXTRA_SPEC_PREFIX + 'cpu_'))))


def _asking(found: Iterable[Asking], kind: str,
            prefix: str) -> tuple[Trace, ...]:
    left = []
    for asking in found:
        keys = sorted(key for key in asking.keys if (
            key.startswith(prefix) and
            key.removeprefix(prefix) in request.KNOWN or
            _TRAIT.fullmatch(key)))
        if keys:
            left.append(Trace(
                f'{kind} {errors.clean(asking.name, 80)} has {_few(keys)}',
                f'openstack {kind} unset ' + ''.join(
                    f'--property {shlex.quote(key)} ' for key in keys) +
                shlex.quote(asking.id)))
    return tuple(left)


def _few(names: list[str], limit: int = 5) -> str:
    more = len(names) - limit
    return ', '.join(errors.clean(name, 80) for name in names[:limit]) + (
        f' and {more} more' if more > 0 else '')
