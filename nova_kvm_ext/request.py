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

"""What a flavor and an image ask of this driver.

Flavor extra specs ``kvm_ext:NAME`` are the operator's, image properties
``kvm_ext_NAME`` the tenant's. This module only distinguishes them and refuses
two that contradict each other; other modules decide whether a request is
allowed and possible. Pure: takes dictionaries, never an instance.
"""

from collections.abc import Mapping
import dataclasses
import re

from nova_kvm_ext import errors

EXTRA_SPEC_PREFIX = 'kvm_ext:'
IMAGE_PREFIX = 'kvm_ext_'
# Nova drops image properties that it does not know from ImageMeta, but keeps
# every property in the instance's system metadata under this prefix.
_SYSTEM_METADATA_PREFIX = 'image_' + IMAGE_PREFIX

# The wishes that there are. What grants one adds its name here.
KNOWN = frozenset(
    {'cpu_mode', 'cpu_model', 'migration_stalled', 'vhost_queues'})

# What this driver writes on the images of snapshots
# (nova_kvm_ext/storage/consistency). A server that is booted from one has it
# among its image's properties; it asks for nothing.
WRITTEN = ('quiesced', 'quiesced_reason', 'frozen_seconds',
           'guest_agent_version')

# Nova's syntax, in flavors and images alike; a suffix names a request group.
# https://docs.openstack.org/nova/latest/configuration/extra-specs.html
_TRAIT = re.compile(r'trait(?:[a-zA-Z0-9_-]{1,64})?:(.+)')


def required_traits(given: Mapping[str, str]) -> frozenset[str]:
    """The traits that extra specs or image properties require."""
    return frozenset(
        found[1] for name, value in given.items()
        if value == 'required' and (found := _TRAIT.fullmatch(name)))


def is_yes_or_no(written: str) -> bool:
    """Whether the text of an image property can be read as one of the two.

    Nova reads any other text as no.
    """
    # Here, because its import takes 0.05 s of processor time, which commands
    # that judge no image do not have.
    from oslo_utils import strutils
    try:
        strutils.bool_from_string(written, strict=True)
    except ValueError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Wish:
    """One thing asked for.

    :ivar name: name without prefix, ``cpu_mode`` for example
    :ivar value: as it was written: any text, hostile where a tenant wrote it
    :ivar by_tenant: whether only the image asks for it
    """

    name: str
    value: str
    by_tenant: bool

    @property
    def said(self) -> str:
        """Where it stands and what it says, fit for one line of a log."""
        where = (f'image property {IMAGE_PREFIX}{self.name}' if self.by_tenant
                 else f'flavor extra spec {EXTRA_SPEC_PREFIX}{self.name}')
        return f'{where} = {errors.clean(self.value, 80)}'


@dataclasses.dataclass(frozen=True)
class GuestRequest:
    """All that a guest's flavor and image ask of this driver.

    :ivar flavor: value by name, from the flavor
    :ivar image: value by name, from the image
    """

    flavor: Mapping[str, str] = dataclasses.field(default_factory=dict)
    image: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, extra_specs: Mapping[str, str],
             system_metadata: Mapping[str, str]) -> 'GuestRequest':
        """Pick out what is meant for this driver.

        :param extra_specs: ``instance.flavor.extra_specs``
        :param system_metadata: ``instance.system_metadata``, where Nova keeps
            the image's properties
        """
        def below(prefix: str, given: Mapping[str, str]) -> dict[str, str]:
            return {name.removeprefix(prefix): str(value)
                    for name, value in given.items()
                    if name.startswith(prefix)}

        return cls(below(EXTRA_SPEC_PREFIX, extra_specs),
                   below(_SYSTEM_METADATA_PREFIX, system_metadata))

    def wish(self, name: str) -> Wish | None:
        """What is asked for under this name; a flavor's word comes first.

        :raises errors.InvalidRequest: flavor and image ask for different
            values
        """
        flavor, image = self.flavor.get(name), self.image.get(name)
        if flavor is None:
            return None if image is None else Wish(name, image, True)
        wish = Wish(name, flavor, False)
        if image is not None and image.lower() != flavor.lower():
            raise errors.InvalidRequest(
                f'{Wish(name, image, True).said} and {wish.said} contradict '
                f'each other.',
                'Use another flavor, or an image without this property.')
        return wish

    def unknown(self) -> list[str]:
        """Misspelt names, each in full: nobody would miss them otherwise."""
        return sorted(
            [f'flavor extra spec {EXTRA_SPEC_PREFIX}{errors.clean(n, 80)}'
             for n in self.flavor.keys() - KNOWN] +
            [f'image property {IMAGE_PREFIX}{errors.clean(n, 80)}'
             for n in self.image.keys() - KNOWN - set(WRITTEN)])
