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

"""The document in which a host describes the CPUs that its guests can have.

A host exports it as a small JSON document (``nova-kvm-ext cpu export``, and
the driver to Nova), so that a fleet can be judged without a login to its
hosts. Pure: reads text and makes text.

The document, version 1::

    {"kvm_ext": 1, "host": "compute1", "digest": "5d0c3a7b91e24f68",
     "cpu": {"arch": "x86_64", "virt_type": "kvm", "modes": [...],
             "model": "EPYC-Rome", "vendor": "AMD",
             "features": [...], "also": [...], "lacks": [...],
             "address_bits": 48, "compares_by_qemu": true,
             "expands": {"EPYC": ["fe01"], "EPYC-Rome": ["ff1", "wbnoinvd"]},
             "models": [["AMD", ["EPYC", ...], {"EPYC-Milan": ["erms"]},
                         ["EPYC-Genoa", ...], []], ...]},
     "libvirt": "11.3.0", "qemu": "10.0.2", "kernel": "6.12.38",
     "microcode": "0x8301055", "nested": true}

``features`` are all features of host-model, ``also`` the other features that
guests can have, ``lacks`` all others that the host's libvirt knows by name.
``compares_by_qemu`` is how that libvirt compares
(:class:`nova_kvm_ext.cpu.cpu_map.CPUMap`).

``expands`` has the features of the models that the host has, or nearly has: a
hexadecimal number whose bit N represents feature N of ``features``, and the
names of the model's other features; or the name of a model with the same
features. So guests' CPUs can be read without libvirt, for example beside a
scheduler.

``models`` has a row for each vendor: usable models, unusable ones with the
features that block them if these are few, the other unusable ones, and those
about which QEMU reports nothing.
"""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import json
import re
from typing import Any

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.cpu import definition
from nova_kvm_ext import errors

VERSION = 1
MAX_BYTES = 64 << 10
"""A document is 4 to 9 KiB; Nova's column for it holds 64."""

NEAR = 3
"""A model that lacks no more features than this is named with them."""

MARK = 'kvm_ext'
"""The key of the version, and of the document in what Nova keeps of a host."""

# Around the CPU part, as to_json() writes it.
_CPU, _AFTER_CPU = b'"cpu":', b',"libvirt":'
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._+-]{0,63}')
_MOST_NAMES = 4096
_LONG_MODE = 'lm'


@dataclasses.dataclass(frozen=True)
class HostCPU:
    """What the guests of a host can have.

    :ivar caps: as libvirt's domain capabilities tell it; the host-model in
        it names every feature that guests can have
    :ivar features: what host-model has; None where libvirt does not tell
    :ivar known: every feature that the host's libvirt knows by name; None
        where that is not known
    :ivar expands: the features of models by libvirt's CPU map on that host,
        of host-model's own model, and of those 64-bit models that have no
        more than :data:`NEAR` besides ``features``
    :ivar compares_by_qemu: see :class:`nova_kvm_ext.cpu.cpu_map.CPUMap`
    """

    caps: capabilities.DomainCapabilities
    features: frozenset[str] | None = None
    known: frozenset[str] | None = None
    expands: Mapping[str, frozenset[str]] = dataclasses.field(
        default_factory=dict, hash=False)
    compares_by_qemu: bool = False

    @functools.cached_property
    def digest(self) -> str:
        """The same for hosts whose guests can have the same CPUs.

        64 bits in hexadecimal: a fleet has tens of kinds, so two of one
        digest are not met by chance.
        """
        text = json.dumps(_cpu(self), sort_keys=True, separators=(',', ':'))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @functools.cached_property
    def knows_models(self) -> frozenset[str] | None:
        """Names of CPU models that the host's libvirt knows."""
        return frozenset(m.name for m in self.caps.models) or None


@dataclasses.dataclass(frozen=True)
class Export:
    """One host.

    :ivar host: its name
    :ivar cpu: what its guests can have
    :ivar libvirt: version, as ``11.3.0``; this and the others are None where
        they are not known
    :ivar qemu: version
    :ivar kernel: release, as ``uname -r`` says it
    :ivar microcode: revision, as /proc/cpuinfo says it
    :ivar nested: whether its guests can have guests
    """

    host: str
    cpu: HostCPU
    libvirt: str | None = None
    qemu: str | None = None
    kernel: str | None = None
    microcode: str | None = None
    nested: bool | None = None


def of_capabilities(caps: capabilities.DomainCapabilities,
                    x86_map: cpu_map.CPUMap | None) -> HostCPU:
    """What a host's guests can have, by libvirt's own answer.

    :param x86_map: libvirt's CPU map of x86 on that host
    """
    known = x86_map if caps.arch in (None, 'x86_64', 'i686') else None
    model = caps.host_model
    features = None if model is None else model.features_by(known)
    if model is None or features is None or known is None:
        return HostCPU(caps)
    return HostCPU(
        dataclasses.replace(caps, host_model=_spelt_out(
            model.model, model.vendor, features)),
        features, known.feature_names | features,
        {name: needs for name, needs in known.models.items()
         if name == model.model or
         _LONG_MODE in needs and len(needs - features) <= NEAR},
        known.compares_by_qemu)


def _spelt_out(model: str | None, vendor: str | None,
               features: frozenset[str]) -> definition.CPU:
    return definition.CPU(
        mode='custom', match='exact', model=model, vendor=vendor,
        features=tuple((name, 'require') for name in sorted(features)))


def to_dict(export: Export) -> dict[str, Any]:
    """The document as plain values."""
    return {MARK: VERSION, 'host': export.host, 'digest': export.cpu.digest,
            'cpu': _cpu(export.cpu),
            **{name: getattr(export, name) for name in (
                'libvirt', 'qemu', 'kernel', 'microcode', 'nested')}}


def to_json(export: Export) -> str:
    """The document, on one line."""
    return json.dumps(to_dict(export), separators=(',', ':'))


def _cpu(cpu: HostCPU) -> dict[str, Any]:
    caps = cpu.caps
    rows: dict[str, tuple[list[str], dict[str, list[str]], list[str],
                          list[str]]] = {}
    for model in caps.models:
        usable, near, unusable, unknown = rows.setdefault(
            model.vendor or '', ([], {}, [], []))
        if model.usable == 'yes':
            usable.append(model.name)
        elif model.usable != 'no':
            unknown.append(model.name)
        elif model.blockers and len(model.blockers) <= NEAR:
            near[model.name] = sorted(model.blockers)
        else:
            unusable.append(model.name)
    host_model = caps.host_model
    return {
        'arch': caps.arch, 'virt_type': caps.virt_type,
        'modes': None if caps.modes is None else sorted(caps.modes),
        'model': host_model and host_model.model,
        'vendor': host_model and host_model.vendor,
        'features': None if cpu.features is None else sorted(cpu.features),
        'also': sorted(caps.supported),
        'lacks': None if cpu.known is None else
        sorted(cpu.known - (cpu.features or frozenset())),
        'address_bits': caps.address_bits,
        'compares_by_qemu': cpu.compares_by_qemu,
        'expands': _written(cpu),
        'models': [[vendor, sorted(usable), dict(sorted(near.items())),
                    sorted(unusable), sorted(unknown)]
                   for vendor, (usable, near, unusable, unknown)
                   in sorted(rows.items())]}


def _written(cpu: HostCPU) -> dict[str, str | list[str]]:
    bits = {name: 1 << at
            for at, name in enumerate(sorted(cpu.features or ()))}
    said: dict[frozenset[str], str] = {}
    written: dict[str, str | list[str]] = {}
    for model, features in sorted(cpu.expands.items()):
        if said.setdefault(features, model) != model:
            written[model] = said[features]
            continue
        written[model] = [
            format(sum(bits.get(name, 0) for name in features), 'x'),
            *sorted(features.difference(bits))]
    return written


def _read_expands(value: Mapping[str, Any], features: frozenset[str]
                  ) -> dict[str, frozenset[str]]:
    names = sorted(features)
    found = {}
    for model, written in value.items():
        if isinstance(written, str):
            written = value[written]
        mask, *others = written
        bits = int(mask, 16)
        if _name(model) and bits >> len(names) == 0:
            found[model] = (_names(others) or frozenset()).union(
                name for at, name in enumerate(names) if bits >> at & 1)
    return found


def is_export(value: Any) -> bool:
    """Whether plain values are meant as such a document."""
    return isinstance(value, Mapping) and MARK in value


class Parser:
    """Reads many documents, the CPU part of each kind once.

    :param texts: how many CPU parts are kept at the most; a fleet has tens
    """

    def __init__(self, texts: int = 1024) -> None:
        self._cpus: dict[bytes, HostCPU] = {}
        self._most = texts

    def parse(self, text: bytes, what: str) -> Export:
        """A host of its document.

        :param text: JSON
        :param what: what the text is, for the error
        :raises errors.HostError: it is no such document
        """
        if len(text) > MAX_BYTES:
            raise _wrong(what, f'it is longer than {MAX_BYTES >> 10} KiB')
        start = text.find(_CPU) + len(_CPU)
        end = text.rfind(_AFTER_CPU)
        part = text[start:end]
        if start < len(_CPU) or end < start:
            # Somebody's own layout.
            return self._whole(text, what)
        cpu = self._cpus.get(part)
        try:
            rest = json.loads(text[:start] + b'null' + text[end:])
            if not is_export(rest) or rest['cpu'] is not None:
                return self._whole(text, what)
            if cpu is None:
                cpu = _read_cpu(json.loads(part))
                if len(self._cpus) < self._most:
                    self._cpus[part] = cpu
            return _read(rest, cpu, what)
        except (LookupError, TypeError, ValueError, AttributeError,
                RecursionError):
            return self._whole(text, what)

    @staticmethod
    def _whole(text: bytes, what: str) -> Export:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise _wrong(what, f'it is not JSON: {errors.clean(e, 80)}') from e
        return from_dict(value, what)


def from_dict(value: Mapping[str, Any], what: str) -> Export:
    """A host of its document's plain values.

    Names that can be none are left out; a document of a later version is
    read as far as it is understood.

    :raises errors.HostError: its parts are not what they should be
    """
    if not is_export(value):
        raise _wrong(what, f'it has no "{MARK}"')
    try:
        return _read(value, _read_cpu(value['cpu']), what)
    except (LookupError, TypeError, ValueError, AttributeError) as e:
        raise _wrong(
            what, f'a part is missing or is another kind of value '
                  f'({errors.clean(repr(e), 80)})') from e


def _read(value: Mapping[str, Any], cpu: HostCPU, what: str) -> Export:
    nested = value.get('nested')
    return Export(
        host=errors.clean(value['host'], 255) or what, cpu=cpu,
        nested=nested if isinstance(nested, bool) else None,
        **{name: errors.clean(value[name], 80)
           if isinstance(value.get(name), str) else None
           for name in ('libvirt', 'qemu', 'kernel', 'microcode')})


def _wrong(what: str, why: str) -> errors.HostError:
    return errors.HostError(
        f'{what} is not an export of a host: {why}.',
        'Make one with: nova-kvm-ext cpu export')


def _read_cpu(value: Mapping[str, Any]) -> HostCPU:
    features, lacks = _names(value['features']), _names(value['lacks'])
    model = _name(value['model'])
    models: list[capabilities.Model] = []
    for vendor_name, usable, near, unusable, unknown in value['models']:
        maker = _vendor(vendor_name)
        models += [capabilities.Model(name, 'yes', maker)
                   for name in sorted(_names(usable) or ())]
        models += [
            capabilities.Model(
                name, 'no', maker,
                blockers=tuple(sorted(_names(near[name]) or ())) or None)
            for name in sorted(_names(list(near)) or ())]
        models += [capabilities.Model(name, 'no', maker)
                   for name in sorted(_names(unusable) or ())]
        models += [capabilities.Model(name, 'unknown', maker)
                   for name in sorted(_names(unknown) or ())]
    modes = _names(value['modes'])
    bits = value.get('address_bits')
    return HostCPU(
        capabilities.DomainCapabilities(
            arch=_name(value['arch']), virt_type=_name(value['virt_type']),
            modes=modes, models=tuple(models),
            supported=_names(value.get('also')) or frozenset(),
            address_bits=bits if isinstance(bits, int) else None,
            host_model=None if model is None else
            _spelt_out(model, _vendor(value['vendor']),
                       features or frozenset())),
        features if model is not None else None,
        None if lacks is None or features is None else lacks | features,
        _read_expands(value.get('expands') or {}, features or frozenset()),
        value.get('compares_by_qemu') is True)


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and _NAME.fullmatch(value) \
        else None


def _vendor(value: Any) -> str | None:
    # libvirt has one with a space: Zhaoxin CentaurHauls.
    return errors.clean(value, 64) or None if isinstance(value, str) else None


def _names(value: Any) -> frozenset[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > _MOST_NAMES:
        raise TypeError('a list of names')
    return frozenset(name for name in value if _name(name))
