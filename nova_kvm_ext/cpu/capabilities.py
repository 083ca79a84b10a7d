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

"""What CPUs the guests of this host can have, according to libvirt and QEMU.

Parses domain capabilities, which are per emulator, architecture, machine type
and virtualization type, into frozen data. Accepts documents of libvirt 8 to
12, and documents that lack any part: a missing value is None, never a no.
Pure: takes the text, never asks libvirt for it.

https://libvirt.org/formatdomaincaps.html#cpu-configuration
"""

from collections.abc import Iterable
import dataclasses
import functools

from lxml import etree

from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import document
from nova_kvm_ext import errors

_WHAT = 'libvirt\'s answer about domain capabilities'


@dataclasses.dataclass(frozen=True)
class Model:
    """A named CPU model that libvirt knows.

    :ivar name: in libvirt's spelling
    :ivar usable: ``yes`` or ``no``: whether the host has every feature of it;
        ``unknown`` where QEMU does not tell
    :ivar vendor: ``Intel``, ``AMD``, ``Hygon``; None where it is nobody's or
        not told
    :ivar deprecated: whether QEMU advises against it; False where not told
    :ivar blockers: features that the host lacks; None where not told, as by
        libvirt 9.0 (11.3 tells)
    :ivar canonical: the versioned model that this name stands for; None where
        it is one itself, or not told, as by libvirt 9.0 (11.3 tells)
    """

    name: str
    usable: str = 'unknown'
    vendor: str | None = None
    deprecated: bool = False
    blockers: tuple[str, ...] | None = None
    canonical: str | None = None


@dataclasses.dataclass(frozen=True)
class DomainCapabilities:
    """What one emulator can give to guests of one machine and virt type.

    :ivar emulator: path of the QEMU program
    :ivar arch: architecture of the guests
    :ivar machine: machine type
    :ivar virt_type: ``kvm`` or ``qemu``
    :ivar modes: CPU modes that are supported; None where not told
    :ivar models: every model that libvirt knows, in its order
    :ivar host_model: what host-model gives, expanded, as a CPU of the mode
        custom; None where it is not supported or not told
    :ivar host_passthrough_migratable: values that the attribute
        ``migratable`` may have with host-passthrough; empty where not told
    :ivar maximum_migratable: the same with maximum
    :ivar address_bits: bits of a physical address that the host has; None
        where not told, as by libvirt 9.0
    :ivar supported: features that guests can have besides those of
        host_model, as libvirt 12.5 and later tell if they are asked for them
    :ivar odd: what the document says besides that could not be understood and
        was left out, each fit for a log
    """

    emulator: str | None = None
    arch: str | None = None
    machine: str | None = None
    virt_type: str | None = None
    modes: frozenset[str] | None = None
    models: tuple[Model, ...] = ()
    host_model: definition.CPU | None = None
    host_passthrough_migratable: tuple[str, ...] = ()
    maximum_migratable: tuple[str, ...] = ()
    address_bits: int | None = None
    supported: frozenset[str] = frozenset()
    odd: tuple[str, ...] = ()

    def supports(self, mode: str) -> bool | None:
        """Whether guests can have this CPU mode; None where not told.

        The mode ``none`` is always there: it has no ``<cpu>`` element.
        """
        if mode == 'none':
            return True
        return None if self.modes is None else mode in self.modes

    def model(self, name: str) -> Model | None:
        """The model of this name in any case; None where it is not known."""
        return self._by_lower_name.get(name.lower())

    @property
    def usable_models(self) -> tuple[Model, ...]:
        """The models that the host is known to be able to give."""
        return tuple(m for m in self.models if m.usable == 'yes')

    @functools.cached_property
    def _by_lower_name(self) -> dict[str, Model]:
        return {model.name.lower(): model for model in self.models}


def parse(xml: str) -> DomainCapabilities:
    """The frozen answer.

    An entry that cannot be understood costs that entry: it is left out and
    named in ``odd``.

    :param xml: what virConnectGetDomainCapabilities returns
    :raises errors.HostError: it is no domain capabilities
    """
    root = document.parse(xml, _WHAT)
    document.expect(root, ('domainCapabilities',), _WHAT)

    def text(tag: str) -> str | None:
        return errors.clean(root.findtext(tag, '')) or None

    found = DomainCapabilities(
        emulator=text('path'), arch=text('arch'), machine=text('machine'),
        virt_type=text('domain'))
    modes = {name: mode for mode in root.findall('cpu/mode')
             if (name := document.name(mode.get('name')))}
    if not modes:
        return found
    supported = {name: mode for name, mode in modes.items()
                 if mode.get('supported') == 'yes'}

    def migratable(mode: str) -> tuple[str, ...]:
        # libvirt names the enumerations hostPassthroughMigratable and
        # maximumMigratable.
        return tuple(
            value.text or '' for enum in modes[mode].findall('enum')
            if enum.get('name', '').endswith('Migratable')
            for value in enum.findall('value')) if mode in supported else ()

    odd: list[str] = []
    models = _models(modes.get('custom', ()), odd)
    host_model, bits = _host_model(supported.get('host-model'), odd)
    return dataclasses.replace(
        found,
        modes=frozenset(supported), models=models, host_model=host_model,
        address_bits=bits, odd=tuple(dict.fromkeys(odd)),
        host_passthrough_migratable=migratable('host-passthrough'),
        maximum_migratable=migratable('maximum'))


def _models(elements: Iterable[etree._Element],
            odd: list[str]) -> tuple[Model, ...]:
    """The models of the mode custom, each with the blockers after it."""
    models: dict[str, Model] = {}

    def named(kind: str, text: str | None) -> str | None:
        found = document.name(text)
        if found is None and text is not None:
            odd.append(document.odd(kind, text))
        return found

    for element in elements:
        if element.tag != 'model':
            continue
        name = named('CPU model', element.text or '')
        if name is None:
            continue
        usable, vendor = element.get('usable'), element.get('vendor')
        model = Model(
            name,
            usable=usable if usable in ('yes', 'no') else 'unknown',
            vendor=None if vendor == 'unknown' else
            named('CPU vendor', vendor),
            deprecated=element.get('deprecated') == 'yes',
            canonical=named('CPU model', element.get('canonical')))
        if models.setdefault(name, model).usable != model.usable:
            odd.append(f'the CPU model {name!r}, named twice')
            models[name] = dataclasses.replace(model, usable='unknown')
    for element in elements:
        name = element.get('model', '')
        if element.tag == 'blockers' and name in models:
            found = [named('CPU feature', feature.get('name', ''))
                     for feature in element.findall('feature')]
            models[name] = dataclasses.replace(
                models[name], blockers=tuple(f for f in found if f) or None)
    return tuple(models.values())


def _host_model(element: etree._Element | None, odd: list[str]
                ) -> tuple[definition.CPU | None, int | None]:
    """What host-model gives, and the bits of a physical address."""
    if element is None:
        return None, None
    cpu = definition.CPU.from_element(element)
    odd += cpu.odd
    bits = definition.bits(element.find('maxphysaddr'), 'limit')
    if cpu.model is None:
        return None, bits
    return dataclasses.replace(
        cpu, mode='custom', match='exact', address_bits=None), bits
