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

"""Whether guests of this host can have a mode, model, level or flag.

Each function returns None for yes, or a :class:`Refusal` with the reason and
an alternative. The caller adds who asked: nova.conf, a flavor or an image. A
value that libvirt does not report is no reason for a refusal, and a CPU that
libvirt would run is not refused. Pure.
"""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import difflib
import types

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import compare
from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import levels
from nova_kvm_ext import words

# A refusal is one line of a log, or the fault that an API user reads.
_NAMED_FEATURES = 12
_NEAREST = 3
# So many are worth taking from a model.
_FEW = 3

Flags = Iterable[tuple[str, str]]
"""(name, policy) pairs that are put on a model; see CPUChoice.features."""


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why something cannot be.

    :ivar problem: a clause that goes after "X = Y: "
    :ivar remedy: a sentence
    :ivar missing: every feature that the host lacks for it
    """

    problem: str
    remedy: str
    missing: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Host:
    """What there is to know about the CPUs that guests of a host can have.

    :ivar virt_type: the resolved type, ``kvm`` or ``qemu``
    :ivar caps: as libvirt tells them for that type
    :ivar x86_map: libvirt's CPU map of x86, None where it is not installed
    :ivar answers: what libvirt says of CPUs that it was asked about; see
        :func:`question`
    """

    virt_type: str
    caps: capabilities.DomainCapabilities
    x86_map: cpu_map.CPUMap | None = None
    answers: Mapping[definition.CPU, bool | None] = dataclasses.field(
        default_factory=lambda: types.MappingProxyType({}), compare=False)

    @property
    def is_x86(self) -> bool:
        """Whether levels and the CPU map have a meaning here."""
        return self.caps.arch in (None, 'x86_64', 'i686')

    @property
    def known(self) -> cpu_map.CPUMap | None:
        """The CPU map where it is of the guests' architecture."""
        return self.x86_map if self.is_x86 else None

    @property
    def available(self) -> frozenset[str] | None:
        """Every feature that a guest can have; None where not told."""
        return compare.available(self.caps, self.known)

    @property
    def shown(self) -> frozenset[str] | None:
        """Every feature that host-model gives; None where not told."""
        return compare.shown(self.caps, self.known)


def some(names: Iterable[str], limit: int = _NAMED_FEATURES) -> str:
    """Names in a sentence, cut where there are too many to read."""
    listed = sorted(names)
    rest = len(listed) - limit
    return ', '.join(listed[:limit]) + (f' and {rest} more' if rest > 0
                                        else '')


def meant(name: str, known: Collection[str]) -> str:
    """The question after a misspelt name, or nothing: "Is X or Y meant? "."""
    lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower()[:80], lower, n=_NEAREST)
    return f'Is {" or ".join(lower[n] for n in near)} meant? ' if near else ''


def check_mode(mode: str, host: Host) -> Refusal | None:
    """A CPU mode, ``none`` among them."""
    supported = host.caps.supports(mode)
    if supported is None:
        # libvirt src/qemu/qemu_capabilities.c
        # (virQEMUCapsIsCPUModeSupported): host-passthrough exists only where
        # guests run on the host's own CPU.
        supported = not (mode == 'host-passthrough' and
                         host.virt_type == 'qemu')
    if supported:
        return None
    order = (('maximum', 'host-model') if host.virt_type == 'qemu' else
             ('host-model', 'host-passthrough', 'maximum'))
    better = [other for other in order if other != mode and
              host.caps.supports(other) is not False]
    return Refusal(
        f'this host has no such CPU mode for guests with virt_type = '
        f'{host.virt_type}',
        f'Use {" or ".join(better[:2])}.' if better else
        'Use the mode none.')


def canonical(model: str, host: Host) -> str:
    """A model or level in its own spelling; any case is accepted."""
    level = levels.find(model)
    if level is not None:
        return level.name
    found = host.caps.model(model)
    return model if found is None else found.name


def model_features(model: str, host: Host) -> frozenset[str] | None:
    """Every feature of a model or level; None where not known."""
    level = levels.find(model)
    if level is not None:
        return level.cpu.features_by(host.known) or level.needed
    if host.known is None:
        return None
    return host.known.models.get(canonical(model, host))


def cpu_of(model: str, flags: Flags, host: Host) -> definition.CPU:
    """The CPU of a model or level with extra flags, as guests get it."""
    level = levels.find(model)
    cpu = level.cpu if level is not None else definition.CPU(
        mode='custom', model=canonical(model, host), match='exact')
    return cpu.with_features(flags)


def question(model: str, flags: Flags, host: Host) -> definition.CPU | None:
    """The CPU about which libvirt should be asked before it is chosen.

    :returns: None where domain capabilities leave nothing open
    """
    if not host.is_x86 or host.caps.host_model is None:
        return None
    found = host.caps.model(model)
    if levels.find(model) is None and found is None:
        return None
    cpu = cpu_of(model, flags, host)
    if found is not None and found.usable == 'yes' and compare.compare(
            cpu, host.caps, host.known).possible:
        return None
    return None if cpu in host.answers else cpu


def check_model(model: str, host: Host, flags: Flags = ()) -> Refusal | None:
    """A named model or a level.

    QEMU calls a model unusable that it can give except for a few features;
    libvirt, which starts the guest, uses its own CPU map for most models,
    and such a guest runs. So libvirt's answer counts, then what libvirt would
    work out; :func:`doubt` has a word about what is then accepted.

    :param flags: what is added to it and taken from it
    """
    flags = tuple(flags)
    level = levels.find(model)
    if level is not None:
        return _check_level(level, host, flags)
    if not host.caps.models:
        return None
    found = host.caps.model(model)
    if found is None:
        return _unknown_model(model, host)
    verdict, missing = _verdict(found, host, flags)
    if verdict is not False:
        return None
    return Refusal(
        f'this host cannot give it to guests with virt_type = '
        f'{host.virt_type}: ' +
        (f'it lacks {some(missing)}' if missing else
         'QEMU says so, and libvirt does not tell what is missing'),
        _instead(found, host, missing), missing)


def starts_with_less(model: str, host: Host) -> bool:
    """Whether libvirt starts guests with a model that the host lacks.

    libvirt compares no CPU of a guest that is emulated
    (src/qemu/qemu_domain.c: check='none' is the default under TCG); the guest
    lacks what QEMU's emulation lacks.
    """
    return (host.virt_type == 'qemu' and levels.find(model) is None and
            host.caps.model(model) is not None)


def given_features(model: str, host: Host,
                   flags: Flags) -> frozenset[str] | None:
    """Every feature of a model or level that guests here really get.

    Before the flags; None where not known.
    """
    found = model_features(model, host)
    if found is None or not starts_with_less(model, host):
        return found
    refused = check_model(model, host, flags)
    return found if refused is None else found.difference(refused.missing)


def doubt(model: str, host: Host, flags: Flags = ()) -> str | None:
    """What is to be said of a model that is not refused, or nothing."""
    found = host.caps.model(model)
    if found is None:
        return None
    verdict, missing = _verdict(found, host, tuple(flags))
    if verdict is False:
        return None
    if not missing and (found.usable != 'no' or found.blockers):
        # Nothing is missing, or the flags have taken what was.
        return None
    lacks = (f'this host lacks {some(missing)}' if missing else
             'QEMU calls this model unusable here')
    if verdict:
        return (f'{lacks}, says QEMU, and libvirt starts guests with this '
                f'model anyway.{_less(missing)}')
    return (f'{lacks}, and whether libvirt starts guests with this model is '
            f'not known.{_less(missing)}')


def state(model: capabilities.Model, host: Host
          ) -> tuple[str, tuple[str, ...] | None]:
    """``yes``, ``no`` or ``unknown``, and what the host lacks for the model.

    :returns: None for what is lacking where that is not known
    """
    if model.usable != 'yes':
        return model.usable, (
            None if model.usable == 'unknown' else
            missing_features(model, host) or None)
    verdict, missing = _verdict(model, host, ())
    return words.ANSWERS[verdict], missing


def _verdict(model: capabilities.Model, host: Host, flags: Flags
             ) -> tuple[bool | None, tuple[str, ...]]:
    """Whether guests can have a model with these flags, and what is missing.

    :returns: None where that is not known. What is missing can be there with
        every answer: it is what QEMU or libvirt's map says
    """
    cpu = cpu_of(model.name, flags, host)
    own = compare.compare(cpu, host.caps, host.known)
    lacks = own.missing if own.possible is False else ()
    if model.usable == 'no' and not lacks:
        lacks = tuple(n for n in missing_features(model, host)
                      if (n, 'disable') not in flags)
        if model.blockers and not lacks:
            # What keeps QEMU from giving the model has been taken from it.
            return True, ()
    said = host.answers.get(cpu)
    if said is not None:
        return said, tuple(lacks)
    if model.usable != 'no':
        # QEMU says that it can, libvirt nothing: no proof of a no.
        return (True, ()) if not lacks else (None, tuple(lacks))
    if own.possible is None and cpu not in host.answers:
        # Nobody but QEMU was asked.
        return False, tuple(lacks)
    return own.possible, tuple(lacks)


def _unknown_model(model: str, host: Host) -> Refusal:
    names = [m.name for m in _unversioned(host.caps.models)]
    names += [each.name for each in levels.ALL]
    remedy = (meant(model, names) +
              'nova-kvm-ext cpu model list has those that it knows.')
    if host.known is not None and model in host.known.models:
        return Refusal(
            'libvirt knows this CPU model, but QEMU on this host does not '
            'have it', remedy)
    return Refusal('libvirt on this host knows no such CPU model', remedy)


def _less(missing: Collection[str]) -> str:
    """A sentence about the flags that take a few features from a model."""
    if not 0 < len(missing) <= _FEW:
        return ''
    flags = ', '.join(f'-{name}' for name in sorted(missing))
    return (f' [libvirt] cpu_model_extra_flags = {flags} takes '
            f'{"them" if len(missing) > 1 else "it"} from the guests of this '
            f'host.')


def missing_features(model: capabilities.Model,
                     host: Host) -> tuple[str, ...]:
    """What an unusable model needs that the host lacks.

    As QEMU told libvirt, or, where libvirt is too old to pass that on, by
    libvirt's CPU map; empty where neither tells.
    """
    if model.blockers is not None:
        return tuple(sorted(model.blockers))
    features, available = model_features(model.name, host), host.available
    if features is None or available is None:
        return ()
    return tuple(sorted(features - available))


def nearest(model: capabilities.Model, host: Host) -> tuple[str, ...]:
    """Usable models that have most in common with one that is not."""
    wanted = model_features(model.name, host)

    def likeness(other: capabilities.Model) -> tuple[float, bool]:
        has = model_features(other.name, host)
        if not wanted or not has:
            return (difflib.SequenceMatcher(
                None, model.name, other.name).ratio(), False)
        return (len(wanted & has) / len(wanted | has),
                model.vendor == other.vendor)

    # A model without 64-bit mode has little in common with one that has it,
    # however few features there are to compare.
    usable = [m for m in _unversioned(host.caps.usable_models)
              if not wanted or 'lm' not in wanted or
              'lm' in (model_features(m.name, host) or wanted)]
    usable.sort(key=likeness, reverse=True)
    return tuple(m.name for m in usable[:_NEAREST])


def _unversioned(models: Collection[capabilities.Model]
                 ) -> list[capabilities.Model]:
    """The models without those versions that have a short name as well."""
    names = {m.name for m in models}
    doubled = {m.canonical for m in models if m.canonical in names}
    return [m for m in models if m.name not in doubled]


def _instead(model: capabilities.Model, host: Host,
             missing: Collection[str]) -> str:
    near = nearest(model, host)
    available = host.available
    level = None if available is None else levels.highest(available)
    choices = [*near, *([level.name] if level else [])]
    return (f'Use {", ".join(choices[:-1])} or {choices[-1]}.'
            if len(choices) > 1 else
            'nova-kvm-ext cpu model list has what is usable.'
            ) + _less(missing)


def level_usable(level: levels.Level, host: Host,
                 flags: Flags = ()) -> bool | None:
    """Whether guests can have a level with these flags; None: not known."""
    if not host.is_x86:
        return False
    flags = tuple(flags)
    available = host.available
    if available is None:
        return None
    missing = _without(level.missing(available), flags)
    return not missing or bool(
        host.answers.get(cpu_of(level.name, flags, host)))


def _without(missing: Iterable[str], flags: Flags) -> tuple[str, ...]:
    disabled = {name for name, policy in flags if policy == 'disable'}
    return tuple(name for name in missing if name not in disabled)


def _check_level(level: levels.Level, host: Host,
                 flags: Flags) -> Refusal | None:
    if not host.is_x86:
        return Refusal(
            f'it is a level of x86-64, and guests here are '
            f'{host.caps.arch}',
            'nova-kvm-ext cpu model list has what is usable.')
    available = host.available
    if level_usable(level, host, flags) is not False or available is None:
        return None
    missing = _without(level.missing(available), flags)
    highest = levels.highest(available)
    ours = set(missing) <= level.beyond_abi
    return Refusal(
        f'this host cannot give that level to guests with virt_type = '
        f'{host.virt_type}: it lacks {some(missing)}' +
        (f', which {level.name} of the psABI does not ask for and this '
         f'driver adds' if ours else ''),
        (f'Use {highest.name}.' if highest else
         'nova-kvm-ext cpu model list has what is usable.') +
        (_less(missing) if ours else ''), missing)


def check_flag(name: str, host: Host) -> Refusal | None:
    """An extra flag's name, without sign."""
    if host.known is None or name in host.known.feature_names:
        return None
    return Refusal(
        'libvirt on this host knows no such CPU feature',
        meant(name, host.known.feature_names) +
        '/usr/share/libvirt/cpu_map/x86_features.xml has those that it '
        'knows.')
