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

"""Which hosts of a fleet can run a guest's CPU.

The algorithm of :mod:`nova_kvm_ext.cpu.compare` for kinds of host, with two
more answers: another host's libvirt does not know a name, and nothing is known
of a kind. Pure.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import compare
from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.fleet import export
from nova_kvm_ext.fleet import kinds

# No name of a model has these characters, so no guest's CPU can have this one.
_HOST_MODEL = '<host-model>'


@dataclasses.dataclass(frozen=True)
class Answer:
    """Whether a kind of host can run a CPU.

    :ivar possible: None where that is not known
    :ivar reason: a sentence
    :ivar missing: features that the kind lacks
    :ivar unknown: names of features that the kind's libvirt does not know
    """

    possible: bool | None
    reason: str
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def _map(found: Iterable[kinds.Kind], x86_map: cpu_map.CPUMap | None
         ) -> cpu_map.CPUMap | None:
    """A CPU map of what the hosts and this machine know together.

    None where nobody knows what a model is. This machine's is taken before a
    host's, and that of the kind with more hosts before another's.
    """
    models: dict[str, frozenset[str]] = {}
    names: set[str] = set()
    for kind in found:
        models = {**kind.cpu.expands, **models}
        names |= kind.cpu.known or frozenset()
    if x86_map is None:
        return cpu_map.CPUMap({}, models, {}, frozenset(names)
                              ) if models else None
    return dataclasses.replace(
        x86_map, models={**models, **x86_map.models},
        register_features=x86_map.register_features | names)


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A kind of host as :func:`compare.compare` takes it.

    :ivar caps: with a host-model of a name that is only in ``known``
    :ivar known: libvirt's CPU map of this machine, and what the host said of
        its features in the place of that name: its own map may differ
    :ivar host_model: as libvirt writes it for a guest that runs there, so
        with the model's features only where the host lacks them
    """

    caps: capabilities.DomainCapabilities
    known: cpu_map.CPUMap | None
    host_model: definition.CPU


def _prepare(cpu: export.HostCPU,
             known: cpu_map.CPUMap | None) -> _Prepared | None:
    """None where the host does not tell what its guests can have."""
    host_model, features = cpu.caps.host_model, cpu.features
    if host_model is None or features is None:
        return None
    caps = dataclasses.replace(cpu.caps, host_model=dataclasses.replace(
        host_model, model=_HOST_MODEL, features=()))
    if known is None:
        return _Prepared(caps, None, host_model)
    model = known.models.get(host_model.model or '')
    if model is not None:
        host_model = dataclasses.replace(host_model, features=tuple(
            [(name, 'require') for name in sorted(features - model)] +
            [(name, 'disable') for name in sorted(model - features)]))
    return _Prepared(caps, dataclasses.replace(
        known, models={**known.models, _HOST_MODEL: features},
        compares_by_qemu=cpu.compares_by_qemu, strict_models=frozenset()),
        host_model)


class Fleet:
    """Answers for the kinds of a fleet.

    :param found: the kinds
    :param x86_map: libvirt's CPU map of this machine, for models that no
        export explains; None where there is none
    """

    def __init__(self, found: Sequence[kinds.Kind],
                 x86_map: cpu_map.CPUMap | None = None) -> None:
        self.kinds = tuple(found)
        self.known = _map(self.kinds, x86_map)
        self._prepared: dict[str, _Prepared | None] = {}

    def fits(self, cpu: definition.CPU, kind: kinds.Kind) -> Answer:
        """Whether hosts of this kind can run that CPU."""
        prepared = self._prepare(kind.cpu)
        if prepared is None:
            return Answer(None, 'the host does not tell what its guests can '
                                'have')
        found = compare.compare(cpu, prepared.caps, prepared.known)
        unknown = () if kind.cpu.known is None else tuple(
            sorted(cpu.names - kind.cpu.known))
        possible, reason = found.possible, found.reason
        if possible and unknown:
            possible = None
            reason = (f'the host\'s libvirt does not know the '
                      f'{"names" if len(unknown) > 1 else "name"} '
                      f'{", ".join(unknown)}')
        return Answer(
            possible, reason,
            tuple(name for name in found.missing if name not in unknown),
            unknown)

    def _prepare(self, cpu: export.HostCPU) -> '_Prepared | None':
        if cpu.digest not in self._prepared:
            self._prepared[cpu.digest] = _prepare(cpu, self.known)
        return self._prepared[cpu.digest]

    def takes(self, source: kinds.Kind, target: kinds.Kind) -> Answer:
        """Whether guests with the host-model of one kind run on another."""
        prepared = self._prepare(source.cpu)
        if prepared is None:
            return Answer(None, 'the source does not tell what host-model is')
        return self.fits(prepared.host_model, target)

    def matrix(self) -> tuple[tuple[Answer, ...], ...]:
        """For each kind, a row: which kinds take its host-model guests."""
        return tuple(tuple(self.takes(source, target)
                           for target in self.kinds)
                     for source in self.kinds)


@dataclasses.dataclass(frozen=True)
class Reach:
    """How far a CPU gets in a fleet.

    :ivar answers: by kind
    """

    answers: tuple[tuple[kinds.Kind, Answer], ...]

    def hosts(self, possible: bool | None) -> int:
        """How many hosts give this answer."""
        return sum(kind.count for kind, answer in self.answers
                   if answer.possible is possible)

    def keeping(self) -> dict[str, int]:
        """Features that hosts lack to run the CPU, with their counts.

        Most hosts first; names that a libvirt does not know are among them.
        """
        found: dict[str, int] = {}
        for kind, answer in self.answers:
            if answer.possible is not True:
                for name in (*answer.missing, *answer.unknown):
                    found[name] = found.get(name, 0) + kind.count
        return dict(sorted(found.items(), key=lambda i: (-i[1], i[0])))


def reach(cpu: definition.CPU, fleet: Fleet,
          without: Iterable[str] = ()) -> Reach:
    """On how many hosts of the fleet a CPU runs.

    :param without: names of hosts that do not count
    """
    left_out = frozenset(without)
    return Reach(tuple(
        (kind, fleet.fits(cpu, kind))
        for each in fleet.kinds
        for kind in [each if not left_out else dataclasses.replace(
            each, hosts=tuple(host for host in each.hosts
                              if host.host not in left_out))]
        if kind.hosts))
