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

"""One CPU for all hosts of a fleet.

Within one vendor this is a model of the vendor with features added and
removed; across vendors it is a level of the x86-64 ABI, because libvirt makes
no baseline across vendors. The CPU has the features that all hosts have; its
model is the one that needs the shortest list of features. Pure.
"""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import re
import textwrap

from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import levels
from nova_kvm_ext.cpu import unshown
from nova_kvm_ext import errors
from nova_kvm_ext.fleet import fit
from nova_kvm_ext.fleet import kinds

_VERSIONED = re.compile(r'-v[0-9]+$')


class NothingInCommon(errors.HostError):
    """There is no CPU that all hosts can give."""


@dataclasses.dataclass(frozen=True)
class Loss:
    """What guests of a kind lack on the baseline.

    :ivar kind: the kind
    :ivar features: what its host-model has and the baseline has not
    :ivar level: its own level, where the baseline's is lower; else None
    """

    kind: kinds.Kind
    features: tuple[str, ...]
    level: str | None


@dataclasses.dataclass(frozen=True)
class Gain:
    """What the fleet would have without one kind.

    :ivar without: the kind left out
    :ivar features: what the common features would be more
    :ivar level: the level then, where it is higher than now; else None
    """

    without: kinds.Kind
    features: tuple[str, ...]
    level: str | None


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The best common CPU.

    :ivar model: what nova.conf calls its model: a model or a level
    :ivar cpu: mode custom
    :ivar features: every feature that guests have then
    :ivar level: the highest level that they make
    :ivar common: every feature that all hosts have and that can migrate
    :ivar losses: for each kind, most hosts first
    :ivar gains: for each kind without which the fleet would have more, the
        best first
    :ivar notes: sentences that say what to know before it is used
    """

    model: str
    cpu: definition.CPU
    features: frozenset[str]
    level: str | None
    common: frozenset[str]
    losses: tuple[Loss, ...]
    gains: tuple[Gain, ...]
    notes: tuple[str, ...]

    def nova_conf(self) -> str:
        """Lines of nova.conf that give guests this CPU."""
        level = levels.find(self.model)
        written = () if level is None else level.cpu.features
        flags = [('-' if policy == 'disable' else '+') + name
                 for name, policy in self.cpu.features
                 if (name, policy) not in written]
        lines = ['[kvm_ext]', 'cpu_mode = custom',
                 f'cpu_model = {self.model}']
        if flags:
            # A value goes on in the next line where that is indented.
            lines += ['', '[libvirt]', *textwrap.wrap(
                f'cpu_model_extra_flags = {", ".join(flags)}', 56,
                subsequent_indent='    ', break_on_hyphens=False)]
        return '\n'.join(lines)


def common(found: Iterable[kinds.Kind]) -> frozenset[str]:
    """Every feature that all these kinds have, and that can migrate.

    Kinds that do not tell what they have do not count.
    """
    sets = [kind.cpu.features for kind in found
            if kind.cpu.features is not None]
    return (frozenset.intersection(*sets) - unshown.NOT_MIGRATABLE if sets
            else frozenset())


def _level(features: frozenset[str]) -> str | None:
    found = levels.highest(features)
    return None if found is None else found.name


def of(fleet: fit.Fleet, also: Collection[str] = ()) -> Baseline:
    """The baseline of a fleet.

    :param also: features that a level gets too where all hosts have them,
        such as those against CPU vulnerabilities; a model of a vendor gets
        all common features anyway
    :raises NothingInCommon: there is none
    :raises errors.HostError: it cannot be told
    """
    told = [kind for kind in fleet.kinds if kind.cpu.features is not None]
    if not told:
        raise errors.HostError(
            'No host tells what its guests can have.',
            'nova-kvm-ext host check says on a host what is wrong with it.')
    _one_architecture(told)
    notes = []
    untold = [kind for kind in fleet.kinds if kind.cpu.features is None]
    if untold:
        notes.append(
            f'{sum(kind.count for kind in untold)} hosts do not tell what '
            f'their guests can have, and are left out: '
            f'{_some(h.host for kind in untold for h in kind.hosts)}.')
    shared = common(told)
    vendors = {kind.vendor for kind in told}
    if len(vendors) > 1:
        notes.append(
            f'The hosts are of {len(vendors)} vendors '
            f'({", ".join(sorted(v or "unknown" for v in vendors))}). Guests '
            f'run on all of them with this CPU, but KVM supports no live '
            f'migration between vendors.')
        found = _of_level(shared, also)
    else:
        found = _of_model(told, shared, fleet.known, notes) or _of_level(
            shared, also)
    if found is None:
        raise NothingInCommon(
            'The hosts have neither a CPU model nor a level in common.',
            'Leave kinds of host out (--hosts), or set a CPU for each '
            'aggregate.')
    name, cpu = found
    features = cpu.features_by(fleet.known)
    if features is None:
        features = cpu.required
    for kind in told:
        answer = fleet.fits(cpu, kind)
        if answer.possible is not True:
            said = 'cannot have' if answer.possible is False else (
                'may not have')
            notes.append(
                f'{kind.count} hosts ({_some(h.host for h in kind.hosts)}) '
                f'{said} it: {answer.reason}'
                f'{": " if answer.missing else ""}'
                f'{_some(answer.missing)}.')
    return Baseline(
        name, cpu, features, _level(features), shared,
        tuple(_loss(kind, features) for kind in told),
        _gains(told, shared), tuple(notes))


def _one_architecture(found: Sequence[kinds.Kind]) -> None:
    both = {(kind.cpu.caps.arch, kind.cpu.caps.virt_type) for kind in found}
    if len(both) > 1:
        raise errors.HostError(
            'The hosts are of several architectures or virt types: '
            f'{", ".join(sorted(f"{a} {v}" for a, v in both))}.',
            'Choose hosts of one with --hosts.')


def _some(names: Iterable[str], most: int = 4) -> str:
    listed = sorted(names)
    rest = len(listed) - most
    return ', '.join(listed[:most]) + (f' and {rest} more' if rest > 0
                                       else '')


_Named = tuple[str, definition.CPU]


def _of_level(shared: frozenset[str],
              also: Collection[str]) -> _Named | None:
    level = levels.highest(shared)
    if level is None:
        return None
    return level.name, level.cpu.with_features(
        (name, 'require') for name in sorted(shared.intersection(also) -
                                             level.cpu.required))


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A model by which the common features can be said."""

    name: str
    added: frozenset[str]
    removed: frozenset[str]

    @property
    def cost(self) -> int:
        """What it takes to write them so; libvirt too shuns disabled ones."""
        return len(self.added) + sum(range(2, len(self.removed) + 2))


def _of_model(found: Sequence[kinds.Kind], shared: frozenset[str],
              known: cpu_map.CPUMap | None,
              notes: list[str]) -> _Named | None:
    """A model of the vendor, plus and minus features; None where none is.

    Only models that every host's libvirt knows, and only features removed
    by a name that each of them knows.
    """
    if known is None:
        notes.append('libvirt\'s CPU map is not on this machine, so there is '
                     'a level and no model.')
        return None
    vendor = found[0].vendor
    makers = {model.name: model.vendor
              for kind in found for model in kind.cpu.caps.models}
    candidates, unknown = [], []
    for name, features in known.models.items():
        if makers.get(name, '') not in (vendor, None) or 'lm' not in features:
            continue
        candidate = _Candidate(name, shared - features, features - shared)
        if all(_can_say(kind, candidate) for kind in found):
            candidates.append(candidate)
        else:
            unknown.append(candidate)
    if not candidates:
        return None
    best = _best(candidates, found)
    if unknown and _best([*candidates, *unknown], found) not in candidates:
        better = _best(unknown, found)
        old = (host.host for kind in found if not _can_say(kind, better)
               for host in kind.hosts)
        notes.append(
            f'{better.name} would be nearer, but a name in it is not known '
            f'to the libvirt of {_some(old)}.')
    return best.name, definition.CPU(
        mode='custom', match='exact', model=best.name,
        # One of no vendor, as kvm64, is itself of none.
        vendor=vendor if makers.get(best.name) == vendor else None,
        features=tuple(
            [(name, 'require') for name in sorted(best.added)] +
            [(name, 'disable') for name in sorted(best.removed)]))


def _can_say(kind: kinds.Kind, candidate: _Candidate) -> bool:
    """Whether the kind's libvirt knows every name; not known is no hurdle."""
    models, names = kind.cpu.knows_models, kind.cpu.known
    return (models is None or candidate.name in models) and (
        names is None or candidate.removed <= names)


def _best(candidates: Sequence[_Candidate],
          found: Sequence[kinds.Kind]) -> _Candidate:
    """The cheapest; of equal ones the hosts' own, then the shorter name."""
    own = {kind.model for kind in found}
    return min(candidates, key=lambda c: (
        c.cost, c.name not in own, bool(_VERSIONED.search(c.name)),
        len(c.removed), c.name))


def _loss(kind: kinds.Kind, features: frozenset[str]) -> Loss:
    has = kind.cpu.features or frozenset()
    level = kind.level if kind.level != _level(features) else None
    return Loss(kind, tuple(sorted(has - features)), level)


def _gains(found: Sequence[kinds.Kind],
           shared: frozenset[str]) -> tuple[Gain, ...]:
    """What is gained by leaving a kind out, the most for a host first."""
    if len(found) < 2:
        return ()
    gains = []
    for kind in found:
        more = common(k for k in found if k is not kind) - shared
        if more:
            level = _level(shared | more)
            gains.append(Gain(
                kind, tuple(sorted(more)),
                level if level != _level(shared) else None))
    names = [None, *(level.name for level in levels.ALL)]
    return tuple(sorted(gains, key=lambda gain: (
        -names.index(gain.level), -len(gain.features) / gain.without.count,
        gain.without.digest)))
