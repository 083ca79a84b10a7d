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

"""libvirt's CPU map: models and features as CPUID bits.

Pure: parses the XML files that libvirt installs, so that this project needs no
table of its own. :mod:`nova_kvm_ext.cpu.reader` reads them.

Format: libvirt src/cpu_map/ and src/cpu/cpu_x86.c (x86FeatureParse,
x86ModelParse).
"""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import functools

from lxml import etree

from nova_kvm_ext.cpu import document
from nova_kvm_ext import errors

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
    :ivar compares_by_qemu: whether libvirt is so new (11.0 on) that QEMU's
        word about a model counts where it compares
    :ivar strict_models: models that such a libvirt compares by what QEMU says
        that they lack; all others by the features that they have here
    """

    features: Mapping[str, tuple[Bits, ...]]
    models: Mapping[str, frozenset[str]]
    signatures: Mapping[str, frozenset[tuple[int, int]]]
    register_features: frozenset[str] = frozenset()
    compares_by_qemu: bool = False
    strict_models: frozenset[str] = frozenset()

    @functools.cached_property
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
    """Parse the XML files of libvirt's cpu_map directory, in any order.

    What cannot be understood is left out: a file that is not XML, a feature
    with a mask that is not a number.
    """
    features: dict[str, tuple[Bits, ...]] = {}
    register_features: set[str] = set()
    elements: dict[str, etree._Element] = {}
    for text in documents:
        try:
            root = document.parse(text, 'a file of libvirt\'s CPU map')
        except errors.HostError:
            continue
        for feature in root.findall('feature'):
            name = document.name(feature.get('name'))
            if name is None:
                continue
            try:
                bits = tuple(map(_bits, feature.findall('cpuid')))
            except ValueError:
                bits = ()
            if bits:
                features[name] = bits
            else:
                register_features.add(name)
        for model in root.findall('model'):
            name = document.name(model.get('name'))
            if name is not None:
                elements[name] = model
    checked = {name: model.find('check') is not None
               for name, model in elements.items()}
    return CPUMap(
        features,
        {name: _model_features(name, elements, ()) for name in elements},
        {name: frozenset(
            (int(s.get('family', '0')), int(number))
            for s in model.findall('signature')
            for number in [s.get('model', '')]
            if number.isdecimal() and s.get('family', '0').isdecimal())
         for name, model in elements.items()},
        frozenset(register_features),
        # Before 11.0 the map has no <check>, and libvirt one comparison.
        any(checked.values()),
        frozenset(name for name, compat in checked.items() if not compat)
        if any(checked.values()) else frozenset())


def _bits(cpuid: etree._Element) -> Bits:
    """:raises ValueError: a number is none"""
    def number(name: str) -> int:
        return int(cpuid.get(name, '0'), 0)

    return Bits((number('eax_in'), number('ecx_in')),
                (number('eax'), number('ebx'), number('ecx'), number('edx')))


def _model_features(name: str, elements: Mapping[str, etree._Element],
                    heirs: tuple[str, ...]) -> frozenset[str]:
    """The features of a model by which libvirt compares it.

    libvirt src/cpu/cpu_x86.c (x86ModelParseAncestor, x86ModelParseFeatures):
    those of its ancestor except what the ancestor calls removed, and its
    own. ``removed='yes'`` was once part of the model and is not required
    since; ``added='yes'`` became part of it later (libvirt 10.1 on, all
    ``vmx-*``), and guests may have it or not.

    :param heirs: models that are derived from this one
    """
    model = elements[name]
    found: set[str] = set()
    for element in model.findall('model'):
        ancestor = element.get('name', '')
        if ancestor in elements and ancestor not in (name, *heirs):
            found |= _model_features(ancestor, elements, (*heirs, name))
            found -= {feature.get('name') for feature in
                      elements[ancestor].findall('feature')
                      if feature.get('removed') == 'yes'}
    return frozenset(found | {
        feature.get('name') for feature in model.findall('feature')
        if feature.get('name') and feature.get('removed') != 'yes' and
        feature.get('added') != 'yes'})


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
