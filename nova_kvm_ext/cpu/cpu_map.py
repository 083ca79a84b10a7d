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

"""libvirt's CPU map: what its names of models and features mean in CPUID.

Pure: parses the XML files that libvirt installs with itself, so that this
project needs no table of its own. :mod:`nova_kvm_ext.host.facts` reads them.

Format: libvirt src/cpu_map/ and src/cpu/cpu_x86.c (x86FeatureParse,
x86ModelParse).
"""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses

from lxml import etree

REGISTERS = ('eax', 'ebx', 'ecx', 'edx')

# Bits that follow what the guest's kernel does (CR4) and not what the CPU can
# do: Intel SDM volume 2A, CPUID, leaves 1 (OSXSAVE) and 7 (OSPKE).
OS_DEPENDENT = frozenset({'osxsave', 'ospke'})

CPUID = Mapping[tuple[int, int], tuple[int, int, int, int]]


@dataclasses.dataclass(frozen=True)
class Bits:
    """CPUID bits that together make a feature.

    :ivar leaf: EAX and ECX of the CPUID instruction
    :ivar masks: bits that must be set, for EAX, EBX, ECX and EDX
    """

    leaf: tuple[int, int]
    masks: tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class CPUMap:
    """The map, as far as it is about CPUID.

    :ivar features: CPUID bits by feature name; features that are told by
        a model-specific register instead are not in it
    :ivar models: names of features by name of CPU model
    :ivar signatures: (family, model) pairs by name of CPU model
    :ivar register_features: names of the features that a model-specific
        register tells
    """

    features: Mapping[str, tuple[Bits, ...]]
    models: Mapping[str, frozenset[str]]
    signatures: Mapping[str, frozenset[tuple[int, int]]]
    register_features: frozenset[str] = frozenset()

    @property
    def feature_names(self) -> frozenset[str]:
        """Every feature that libvirt knows."""
        return self.register_features.union(self.features)

    def has_feature(self, name: str, cpuid: CPUID) -> bool | None:
        """Whether a CPU has a feature.

        :returns: None where the map does not know the feature, or the leaf
            that tells was not read
        """
        bits = self.features.get(name)
        if not bits or any(b.leaf not in cpuid for b in bits):
            return None
        return all((register & mask) == mask
                   for b in bits
                   for register, mask in zip(cpuid[b.leaf], b.masks))


def parse(documents: Iterable[bytes]) -> CPUMap:
    """Parse the XML files of libvirt's cpu_map directory, in any order."""
    features: dict[str, tuple[Bits, ...]] = {}
    register_features: set[str] = set()
    elements: dict[str, etree._Element] = {}
    for document in documents:
        root = etree.fromstring(document)
        for feature in root.findall('feature'):
            bits = tuple(
                Bits((int(cpuid.get('eax_in', '0'), 0),
                      int(cpuid.get('ecx_in', '0'), 0)),
                     (_mask(cpuid, 'eax'), _mask(cpuid, 'ebx'),
                      _mask(cpuid, 'ecx'), _mask(cpuid, 'edx')))
                for cpuid in feature.findall('cpuid'))
            if bits:
                features[feature.get('name')] = bits
            else:
                register_features.add(feature.get('name'))
        for model in root.findall('model'):
            elements[model.get('name')] = model
    return CPUMap(
        features,
        {name: _model_features(name, elements) for name in elements},
        {name: frozenset(
            (int(s.get('family', '0')), int(number))
            for s in model.findall('signature')
            for number in [s.get('model', '')] if number.isdigit())
         for name, model in elements.items()},
        frozenset(register_features))


def _mask(cpuid: etree._Element, register: str) -> int:
    return int(cpuid.get(register, '0'), 0)


def _model_features(
        name: str, elements: Mapping[str, etree._Element]) -> frozenset[str]:
    """A model's features, with those of the model it is derived from."""
    model = elements[name]
    found: set[str] = set()
    for ancestor in model.findall('model'):
        if ancestor.get('name') in elements:
            found |= _model_features(ancestor.get('name'), elements)
    for feature in model.findall('feature'):
        # removed='yes': once part of the model, not required since.
        if feature.get('removed') == 'yes':
            found.discard(feature.get('name'))
        else:
            found.add(feature.get('name'))
    return frozenset(found)


def signature(cpuid: CPUID) -> tuple[int, int] | None:
    """(family, model) of a CPU, the extended fields added in.

    Intel SDM volume 2A, CPUID, leaf 1, and AMD APM volume 3, Fn0000_0001.

    :returns: None where leaf 1 was not read
    """
    if (1, 0) not in cpuid:
        return None
    eax = cpuid[1, 0][0]
    family, model = (eax >> 8) & 0xf, (eax >> 4) & 0xf
    if family in (0x6, 0xf):
        model |= ((eax >> 16) & 0xf) << 4
    if family == 0xf:
        family += (eax >> 20) & 0xff
    return family, model
