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

"""What a host's guests can do, as traits by which a scheduler can choose.

The caller passes Nova's mapping of features to traits. This module finds the
features that a guest would really get. This driver's own traits are the CPU
modes, models and levels that a host can give. Pure.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import re

from nova_kvm_ext.cpu import levels
from nova_kvm_ext.cpu import usable
from nova_kvm_ext import traits

ByFeature = Mapping[str, str | tuple[str, ...]]
"""nova.virt.libvirt.utils.CPU_TRAITS_MAPPING."""

# Nova's mapping calls SSE3 by the name that it has in Intel's manual;
# libvirt's is Linux's.
_OTHER_NAMES = {'pni': 'sse3'}


def known(mapping: ByFeature) -> frozenset[str]:
    """Every trait that is about a CPU feature."""
    return frozenset(t for name in mapping for t in _traits(name, mapping))


def of_features(features: Iterable[str], mapping: ByFeature
                ) -> frozenset[str]:
    """The traits of a CPU with these features."""
    return frozenset(
        trait for name in features
        for trait in _traits(name, mapping) +
        _traits(_OTHER_NAMES.get(name, ''), mapping))


def _traits(name: str, mapping: ByFeature) -> tuple[str, ...]:
    found = mapping.get(name, ())
    return (found,) if isinstance(found, str) else found


# QEMU 10.0 has 64 models without a version and 81 with one.
_MAX_MODELS = 128
_VERSIONED = re.compile(r'-v[0-9]+$')


def of_host(host: usable.Host, also: Iterable[str] = (),
            flags: usable.Flags = ()) -> frozenset[str]:
    """Our own traits: the modes, models and levels that guests can have.

    There are at most four modes, four levels and 128 models. A resource
    provider carries all of them and each stays a row of Placement's, so
    of the models only those without a version are among them (EPYC-Rome, not
    EPYC-Rome-v4), unless an operator has named one with a version.

    :param also: models that the operator names, versioned or not
    :param flags: extra flags of nova.conf: a level can be had without what
        they take from it
    """
    flags = tuple(flags)
    modes = host.caps.modes or ()
    named = {name.lower() for name in also}
    models = sorted(
        model.name for model in host.caps.models
        if (model.usable == 'yes' and not _VERSIONED.search(model.name)) or
        (model.name.lower() in named and
         usable.check_model(model.name, host, flags) is None and
         model.usable != 'unknown'))
    found = {traits.name('cpu_mode', mode) for mode in modes}
    found |= {traits.name('cpu_model', model)
              for model in models[:_MAX_MODELS]}
    found |= {traits.name('cpu_level', level.name) for level in levels.ALL
              if usable.level_usable(level, host, flags)}
    return frozenset(found)
