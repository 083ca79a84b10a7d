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

"""A CPU as libvirt writes it: ``<cpu>`` of a domain or of a host.

Frozen data: the content, the features by libvirt's own CPU map, and the
difference between two CPUs. Pure: other modules decide whether a host can give
a CPU.

https://libvirt.org/formatdomain.html#cpu-model-and-topology
"""

from collections.abc import Iterable
import dataclasses
import functools
import re

from lxml import etree

from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.cpu import document

MODES = ('custom', 'host-model', 'host-passthrough', 'maximum')
# What a guest has and what it has not, whatever its model says.
_HAS = ('require', 'force')
_LACKS = ('disable', 'forbid')
_POLICIES = (*_HAS, 'optional', *_LACKS)
_MATCHES = ('minimum', 'exact', 'strict')
_CHECKS = ('none', 'partial', 'full')

_PLACES = {
    'cpu': '.', 'domain': 'cpu', 'capabilities': 'host/cpu',
    'domainCapabilities': 'cpu/mode[@name="host-model"][@supported="yes"]'}


def _one_of(value: str | None, known: tuple[str, ...]) -> str | None:
    return value if value in known else None


def bits(element: etree._Element | None, attribute: str) -> int | None:
    """The number of address bits in a ``<maxphysaddr>``, None if invalid."""
    value = '' if element is None else element.get(attribute, '')
    return int(value) if re.fullmatch('[0-9]{1,3}', value) else None


@dataclasses.dataclass(frozen=True)
class CPU:
    """One CPU.

    :ivar mode: one of :data:`MODES`; None where there is no ``<cpu>`` or
        where it is a host's
    :ivar model: name of the model, None where the mode stands for it
    :ivar vendor: ``Intel``, ``AMD``, ``Hygon``, or None for any
    :ivar features: (name, policy) pairs in the order written, one a name.
        Policies are those of libvirt: force, require, optional, disable,
        forbid
    :ivar match: ``minimum``, ``exact`` or ``strict``, or None
    :ivar check: how libvirt compares it at start: ``none``, ``partial`` or
        ``full``, or None. ``full`` is in the XML of a running guest and says
        that this is exactly what the guest has
    :ivar arch: architecture; only a host's CPU names one
    :ivar fallback: ``forbid`` where libvirt must not take another model for
        this one, as for a running guest; else ``allow`` or None
    :ivar address_bits: bits of a physical address that the guest is promised
        (``<maxphysaddr mode='emulate'>``); None where it is not
    :ivar odd: what the XML says besides that could not be understood, each
        fit for a log. Whether a host can give this CPU is then not known
    """

    mode: str | None = None
    model: str | None = None
    vendor: str | None = None
    features: tuple[tuple[str, str], ...] = ()
    match: str | None = None
    check: str | None = None
    arch: str | None = None
    fallback: str | None = dataclasses.field(default=None, compare=False)
    address_bits: int | None = None
    odd: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    @classmethod
    def parse(cls, text: str | bytes, what: str = 'the CPU') -> 'CPU':
        """The CPU of a document.

        An entry that cannot be understood is left out and named in
        :attr:`odd`.

        :param text: a ``<domain>`` (live or not), a ``<cpu>``, a host's
            ``<capabilities>``, or ``<domainCapabilities>``, of which the CPU
            is what host-model gives
        :param what: what the text is, for the error
        :raises errors.HostError: it is none of these
        """
        root = document.parse(text, what)
        document.expect(root, tuple(_PLACES), what)
        found = root.find(_PLACES[root.tag])
        if found is None:
            return cls()
        cpu = cls.from_element(found)
        if root.tag == 'domainCapabilities':
            # There the element is a <mode>, and the architecture is that of
            # the whole document.
            return dataclasses.replace(cpu, mode='custom', match='exact')
        return cpu

    @classmethod
    def from_element(cls, element: etree._Element) -> 'CPU':
        """The CPU of a ``<cpu>``, or a ``<mode>`` of domain capabilities."""
        odd: list[str] = []

        def named(kind: str, text: str | None) -> str | None:
            name = document.name(text)
            if name is None and text is not None:
                odd.append(document.odd(kind, text))
            return name

        mode = element.get('mode')
        if mode is None and element.get('match') is not None:
            # libvirt's default where a domain only names a model.
            mode = 'custom'
        if mode is not None and mode not in MODES:
            odd.append(document.odd('CPU mode', mode))
            mode = None
        features: dict[str, str] = {}
        for feature in element.findall('feature'):
            # A host's features have no policy.
            policy = feature.get('policy', 'require')
            name = named('CPU feature', feature.get('name', ''))
            if policy not in _POLICIES:
                odd.append(document.odd(
                    f'policy of {name or "a feature"}', policy))
            elif name is not None:
                features[name] = policy
        model = element.find('model')
        return cls(
            mode=mode,
            model=None if model is None else named(
                'CPU model', model.text or ''),
            vendor=named('CPU vendor', element.findtext('vendor') or None),
            features=tuple(features.items()),
            match=_one_of(element.get('match'), _MATCHES),
            check=_one_of(element.get('check'), _CHECKS),
            arch=named('architecture', element.findtext('arch') or None),
            fallback=None if model is None else model.get('fallback'),
            address_bits=bits(element.find('maxphysaddr'), 'bits'),
            odd=tuple(odd))

    def to_xml(self) -> str:
        """The ``<cpu>`` element, without topology.

        libvirt knows a host's CPU by its ``<arch>``, and takes neither mode
        nor policies from it (src/conf/cpu_conf.c, virCPUDefParseXML).
        """
        cpu = etree.Element('cpu')
        if self.is_hosts:
            etree.SubElement(cpu, 'arch').text = self.arch
            return self._with_names(cpu)
        for attribute in ('mode', 'match', 'check'):
            value = getattr(self, attribute)
            if value is not None:
                cpu.set(attribute, value)
        return self._with_names(cpu)

    def _with_names(self, cpu: etree._Element) -> str:
        if self.model is not None:
            etree.SubElement(cpu, 'model').text = self.model
        if self.vendor is not None:
            etree.SubElement(cpu, 'vendor').text = self.vendor
        if self.address_bits is not None:
            etree.SubElement(cpu, 'maxphysaddr', mode='emulate',
                             bits=str(self.address_bits))
        for name, policy in self.features:
            feature = etree.SubElement(cpu, 'feature', name=name)
            if not self.is_hosts:
                feature.set('policy', policy)
        return etree.tostring(cpu, encoding='unicode')

    @property
    def is_hosts(self) -> bool:
        """Whether it is a host's CPU and no guest's."""
        return self.arch is not None

    @property
    def is_exact(self) -> bool:
        """Whether model and features are all that the guest has.

        So it is with a named model. A host-passthrough guest has what its
        host had when it started, and no XML of libvirt says what that was.
        """
        return self.model is not None

    # A fleet compares each CPU with each kind of host: thousands of times.
    @functools.cached_property
    def _by_policy(self) -> dict[str, frozenset[str]]:
        return {policy: frozenset(n for n, said in self.features
                                  if said == policy)
                for policy in _POLICIES}

    def named(self, policy: str) -> frozenset[str]:
        """Features that it names with this policy."""
        return self._by_policy[policy]

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """Every feature that it names, with whatever policy."""
        return frozenset().union(*self._by_policy.values())

    @functools.cached_property
    def required(self) -> frozenset[str]:
        """Features that it has, besides its model's."""
        return frozenset().union(*map(self.named, _HAS))

    @functools.cached_property
    def disabled(self) -> frozenset[str]:
        """Features that it lacks, though its model may have them."""
        return frozenset().union(*map(self.named, _LACKS))

    @functools.cached_property
    def free(self) -> frozenset[str]:
        """Features that it names and that a host need not have."""
        return frozenset().union(
            *map(self.named, ('force', 'optional', 'disable')))

    def features_by(self, known: cpu_map.CPUMap | None
                    ) -> frozenset[str] | None:
        """Every feature that it has.

        :param known: libvirt's CPU map
        :returns: None where it names no model, or one not in the map
        """
        if (known is None or self.model is None or
                self.model not in known.models):
            return None
        models = known.models[self.model]
        return (models - self.disabled | self.required if self.features
                else models)

    def with_features(self, features: Iterable[tuple[str, str]]) -> 'CPU':
        """The same CPU with more features; a later policy wins."""
        merged = dict(self.features)
        merged.update(features)
        return dataclasses.replace(self, features=tuple(merged.items()))


@dataclasses.dataclass(frozen=True)
class Difference:
    """What changes for a guest from one CPU to another.

    :ivar gained: features that only the second has
    :ivar lost: features that only the first has
    :ivar models: the two models where they differ, else None. Two models can
        differ in what is no feature: family, model number, cache
    :ivar complete: whether both CPUs could be expanded; if not, only what
        they name is compared
    """

    gained: tuple[str, ...]
    lost: tuple[str, ...]
    models: tuple[str | None, str | None] | None
    complete: bool

    def __bool__(self) -> bool:
        return bool(self.gained or self.lost or self.models)

    def __str__(self) -> str:
        said = []
        if self.models:
            said.append(f'model {self.models[0]} is now {self.models[1]}')
        if self.gained:
            said.append(f'gained {", ".join(self.gained)}')
        if self.lost:
            said.append(f'lost {", ".join(self.lost)}')
        return '; '.join(said) or 'nothing'


def difference(before: CPU, after: CPU,
               known: cpu_map.CPUMap | None) -> Difference:
    """What changes for a guest that had one CPU and now has another."""
    old, new = before.features_by(known), after.features_by(known)
    complete = old is not None and new is not None
    if old is None or new is None:
        # Where a feature is only named on one side, the model decides about
        # it on the other.
        old = before.required | (after.disabled - before.disabled)
        new = after.required | (before.disabled - after.disabled)
    models = None if before.model == after.model else (
        before.model, after.model)
    return Difference(tuple(sorted(new - old)), tuple(sorted(old - new)),
                      models, complete)
