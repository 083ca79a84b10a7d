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

"""Chooses the CPU of all guests of a host, and of one guest.

:func:`choose` checks the CPU of nova.conf once, before the first guest
starts. :func:`choose_for_guest` adds the requests of a flavor and an image.
Both return frozen choices with their reasons, or refuse with the request, its
origin, the reason and an alternative. Pure: never reads the configuration or
the host.
"""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses

from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import levels
from nova_kvm_ext.cpu import traits
from nova_kvm_ext.cpu import unshown
from nova_kvm_ext.cpu import usable
from nova_kvm_ext import errors
from nova_kvm_ext import request
from nova_kvm_ext.settings import Settings

# CPU modes that Nova's own [libvirt] cpu_mode does not know, and the nearest
# one that it does. Nova's start-up check, traits and stored instance CPU
# (objects.VirtCPUModel) accept nothing else.
_NEAREST_NOVA_MODE = {'maximum': 'host-passthrough'}

# What Nova takes where nobody chose (_get_guest_cpu_model_config).
_DEFAULT_MODE = 'host-model'
_DEFAULT_MODES = {'aarch64': 'host-passthrough'}

MODES = ('host-model', 'host-passthrough', 'maximum', 'custom', 'none')

_NONE_WARNING = (
    'cpu_mode = none gives guests QEMU\'s default CPU (qemu64). It lacks '
    'SSE4.2 and POPCNT, so systems built for x86-64-v2 and later (RHEL 9, '
    'SLES 16 and their relatives) do not start on it. Set [kvm_ext] cpu_mode '
    '= host-model, or custom with cpu_model = x86-64-v2.')


@dataclasses.dataclass(frozen=True)
class CPUChoice:
    """The CPU of this host's guests, as nova.conf asks for it.

    :ivar mode: CPU mode of the guest's XML, or None to leave it to Nova
        (host-model; host-passthrough on aarch64)
    :ivar models: for ``custom``, models and levels in order of preference, in
        their own spelling
    :ivar features: (name, policy) pairs from the extra flags, policy
        ``require`` or ``disable``
    :ivar warnings: sentences for the log, about what works and will hurt
    """

    mode: str | None
    models: tuple[str, ...]
    features: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...] = ()

    @property
    def nova_mode(self) -> str | None:
        """The value for Nova's own ``[libvirt] cpu_mode``."""
        if self.mode is None:
            return None
        return _NEAREST_NOVA_MODE.get(self.mode, self.mode)

    @property
    def nova_models(self) -> tuple[str, ...]:
        """The value for Nova's own ``[libvirt] cpu_models``.

        Nova knows no levels; it is told the model that they are built on.
        """
        return tuple(dict.fromkeys(
            levels.BASE_MODEL if levels.find(m) else m for m in self.models))

    def guests_features(self, host: usable.Host
                        ) -> tuple[frozenset[str], ...]:
        """What guests really get, without disabled flags: a set per model.

        :returns: empty where it is not known, and for the mode ``none``
        """
        return tuple(
            frozenset(f.name for f in found if f.policy == 'require')
            for found in (
                features_of(self.mode or default_mode(host.caps.arch),
                            model, self.features, '', host)
                for model in self.models or (None,))
            if found)

    def to_xml(self) -> str | None:
        """The ``<cpu>`` element of an x86 guest, without topology.

        https://libvirt.org/formatdomain.html#cpu-model-and-topology

        :returns: None for the mode ``none``, which has no element
        """
        cpu = _cpu(self.mode or _DEFAULT_MODE,
                   self.models[0] if self.models else None, self.features)
        return None if cpu is None else cpu.to_xml()


@dataclasses.dataclass(frozen=True)
class Feature:
    """A feature of a guest's CPU and where it comes from.

    :ivar policy: ``require``, or ``disable`` for one that was removed
    :ivar origin: what brought it: ``model NAME``, ``level NAME``, ``host
        expansion`` or ``extra flag``
    :ivar asked_by: who asked for that: an option of nova.conf, ``flavor`` or
        ``image``
    """

    name: str
    policy: str
    origin: str
    asked_by: str


@dataclasses.dataclass(frozen=True)
class GuestChoice:
    """The CPU of one guest.

    :ivar mode: one of :data:`MODES`
    :ivar model: for ``custom``, the model or level
    :ivar extra: (name, policy) pairs of the extra flags
    :ivar asked_by: the option that the CPU is from, ``flavor`` or ``image``
    :ivar said: the option, or the extra spec or property with its value
    """

    mode: str
    model: str | None
    extra: tuple[tuple[str, str], ...]
    asked_by: str
    said: str

    def features(self, host: usable.Host) -> tuple[Feature, ...]:
        """All features that are known, by name.

        For ``maximum`` and ``host-passthrough`` these are the ones that
        host-model would have; there may be more. None are known for ``none``.
        """
        return features_of(
            self.mode, self.model, self.extra, self.asked_by, host)

    @property
    def cpu(self) -> definition.CPU | None:
        """The CPU of the guest's XML, its level resolved; None for none."""
        return _cpu(self.mode, self.model, self.extra)

    @property
    def is_wish(self) -> bool:
        """Whether a flavor or an image asked for it, not nova.conf."""
        return self.asked_by in ('flavor', 'image')


def _cpu(mode: str, model: str | None,
         extra: Iterable[tuple[str, str]]) -> definition.CPU | None:
    if mode == 'none':
        return None
    level = levels.find(model) if model else None
    if level is not None:
        return level.cpu.with_features(extra)
    return definition.CPU(mode=mode, model=model).with_features(extra)


def _feature(flag: str) -> tuple[str, str]:
    """A flag of nova.conf, such as ``pcid`` or ``-pcid``: name and policy."""
    policy = 'disable' if flag.startswith('-') else 'require'
    return flag.lstrip('+-'), policy


def _disabled(features: Iterable[tuple[str, str]]) -> frozenset[str]:
    return frozenset(n for n, policy in features if policy == 'disable')


def default_mode(arch: str | None) -> str:
    """The mode that Nova takes where nobody chose one."""
    return _DEFAULT_MODES.get(arch or '', _DEFAULT_MODE)


def as_configured(settings: Settings,
                  known_models: Iterable[str] = ()) -> CPUChoice:
    """The CPU that the settings ask for, whether or not the host can do it.

    For the test guest of ``virt_type = auto``, which finds that out.

    :param known_models: the models that libvirt knows, for their spelling
    :raises errors.InvalidOption: mode and models do not go together
    """
    _check_combination(settings)
    spelling = {model.lower(): model for model in known_models}
    spelling |= {level.name.lower(): level.name for level in levels.ALL}
    return CPUChoice(
        settings.cpu_mode,
        tuple(spelling.get(m.lower(), m) for m in settings.cpu_models),
        tuple(map(_feature, settings.extra_flags)))


def questions(settings: Settings,
              host: usable.Host) -> tuple[definition.CPU, ...]:
    """The CPUs about which libvirt should be asked before :func:`choose`."""
    try:
        choice = as_configured(settings, (m.name for m in host.caps.models))
    except errors.InvalidOption:
        return ()
    asked = (usable.question(model, choice.features, host)
             for model in choice.models)
    return tuple(cpu for cpu in asked if cpu is not None)


def questions_of_guest(choice: CPUChoice, wishes: request.GuestRequest,
                       host: usable.Host) -> tuple[definition.CPU, ...]:
    """The same before :func:`choose_for_guest`."""
    try:
        wish = wishes.wish('cpu_model')
    except errors.InvalidRequest:
        return ()
    cpu = None if wish is None else usable.question(
        wish.value.strip(), choice.features, host)
    return () if cpu is None else (cpu,)


def choose(settings: Settings, host: usable.Host) -> CPUChoice:
    """The CPU that the settings ask for, if that can be.

    :param host: what the host can do under the resolved virt_type
    :raises errors.InvalidOption: it cannot be
    """
    choice = as_configured(settings, (m.name for m in host.caps.models))
    mode, features = choice.mode, choice.features
    refused = usable.check_mode(
        mode or default_mode(host.caps.arch), host)
    if refused is not None:
        raise errors.InvalidOption(
            f'{settings.cpu_mode_option} = {mode or "unset"} '
            f'({settings.virt_type_option} = {settings.virt_type}): '
            f'{refused.problem}.', refused.remedy)
    for name, _ in features:
        refused = usable.check_flag(name, host)
        if refused is not None:
            raise errors.InvalidOption(
                f'[libvirt] cpu_model_extra_flags = {name}: '
                f'{refused.problem}.', refused.remedy)
    for model in choice.models:
        refused = usable.check_model(model, host, features)
        if refused is not None and not usable.starts_with_less(model, host):
            raise errors.InvalidOption(
                f'{settings.cpu_models_option} = {model}: {refused.problem}.',
                refused.remedy)
    return dataclasses.replace(
        choice, warnings=tuple(_warnings(settings, features, host)))


def _check_combination(settings: Settings) -> None:
    """Mode and models must go together, whatever the host.

    :raises errors.InvalidOption: they do not
    """
    mode, models = settings.cpu_mode, settings.cpu_models
    if mode == 'custom' and not models:
        raise errors.InvalidOption(
            f'{settings.cpu_mode_option} = custom names no CPU model.',
            'Set [kvm_ext] cpu_model to one of those that nova-kvm-ext cpu '
            'model list has.')
    if models and mode != 'custom':
        raise errors.InvalidOption(
            f'{settings.cpu_models_option} = {", ".join(models)} has no '
            f'effect: {settings.cpu_mode_option} is {mode or "unset"}.',
            'Set [kvm_ext] cpu_mode = custom, or remove the model.')


def _warnings(settings: Settings, features: tuple[tuple[str, str], ...],
              host: usable.Host) -> Iterator[str]:
    """What works today and will hurt."""
    if settings.cpu_mode == 'none' and host.is_x86:
        yield _NONE_WARNING
    for model in settings.cpu_models:
        found = host.caps.model(model)
        if found is not None and found.deprecated:
            yield (f'{settings.cpu_models_option} = {found.name}: QEMU calls '
                   f'this model deprecated and will drop it.')
        refused = usable.check_model(model, host, features)
        if refused is not None:
            yield (f'{settings.cpu_models_option} = {model}: '
                   f'{refused.problem}. libvirt starts emulated guests '
                   f'anyway, without what is missing. {refused.remedy}')
        said = usable.doubt(model, host, features)
        if said is not None:
            yield f'{settings.cpu_models_option} = {model}: {said}'
    stuck = [name for name, policy in features
             if policy == 'require' and name in unshown.NOT_MIGRATABLE]
    if stuck and settings.cpu_mode != 'none':
        yield (f'[libvirt] cpu_model_extra_flags = {", ".join(stuck)}: QEMU '
               f'refuses to migrate a guest with it, so that no guest of this '
               f'host can be live migrated.')
    available = host.available if features else None
    if available is not None and settings.cpu_mode != 'none':
        surely, _ = unshown.given(
            (name for name, _ in features), host.caps.host_model.vendor
            if host.caps.host_model else None, host.virt_type,
            host.caps.machine)
        absent = [name for name, policy in features if policy == 'require' and
                  name not in available and name not in surely]
        if absent:
            # No refusal: host-model leaves out what QEMU can do and does not
            # do by itself.
            yield (f'[libvirt] cpu_model_extra_flags: host-model on this host '
                   f'does not have {usable.some(absent)}; guests fail to '
                   f'start if QEMU cannot give it.')


@dataclasses.dataclass(frozen=True)
class Asker:
    """Who wants what, as a refusal names it."""

    by: str
    said: str


@dataclasses.dataclass(frozen=True)
class GuestNeeds:
    """What one guest asks of its CPU.

    :ivar wishes: what flavor and image ask for by name
    :ivar flavor_traits: traits that the flavor requires, all of them
    :ivar image_traits: traits that the image requires
    """

    wishes: request.GuestRequest = dataclasses.field(
        default_factory=request.GuestRequest)
    flavor_traits: frozenset[str] = frozenset()
    image_traits: frozenset[str] = frozenset()

    @property
    def traits(self) -> frozenset[str]:
        return self.flavor_traits | self.image_traits

    def requirers(self, wanted: Collection[str]) -> str:
        """Who requires these traits."""
        return ' and '.join(
            who for who, theirs in (('the flavor', self.flavor_traits),
                                    ('the image', self.image_traits))
            if theirs.intersection(wanted))


def choose_for_guest(choice: CPUChoice, needs: GuestNeeds,
                     settings: Settings, host: usable.Host,
                     mapping: traits.ByFeature) -> GuestChoice:
    """The CPU of one guest.

    :param choice: the host-wide choice
    :param mapping: traits by feature name, as Nova has them
        (nova.virt.libvirt.utils.CPU_TRAITS_MAPPING)
    :raises errors.InvalidRequest: flavor and image contradict each other, the
        tenant may not have it, the host cannot give it, or no model has the
        required traits
    """
    return _GuestChooser(choice, needs, settings, host, mapping).choose()


class _GuestChooser:
    """The steps of :func:`choose_for_guest`, which share its arguments."""

    def __init__(self, choice: CPUChoice, needs: GuestNeeds,
                 settings: Settings, host: usable.Host,
                 mapping: traits.ByFeature) -> None:
        self._choice = choice
        self._needs = needs
        self._settings = settings
        self._host = host
        self._mapping = mapping
        self._host_mode = choice.mode or default_mode(host.caps.arch)

    def choose(self) -> GuestChoice:
        mode_wish = self._needs.wishes.wish('cpu_mode')
        model_wish = self._needs.wishes.wish('cpu_model')
        if mode_wish is None and model_wish is None:
            option = (self._settings.cpu_models_option
                      if self._choice.models else
                      self._settings.cpu_mode_option)
            return self._host_wide(Asker(option, option))
        mode = self._mode(mode_wish, model_wish)
        if model_wish is not None:
            model = self._model(model_wish)
            asker = self._asker(model_wish)
            self._check_traits(model, asker)
            return self._made(mode, model, asker)
        assert mode_wish is not None
        asker = self._asker(mode_wish)
        if mode == self._host_mode:
            return self._host_wide(asker)
        if mode == 'custom':
            raise errors.InvalidRequest(
                f'{mode_wish.said} names no CPU model, and this host\'s '
                f'guests have cpu_mode = {self._host_mode}.',
                f'Name one with {request.EXTRA_SPEC_PREFIX}cpu_model in the '
                f'flavor or {request.IMAGE_PREFIX}cpu_model in the image.')
        return self._made(mode, None, asker)

    @staticmethod
    def _asker(wish: request.Wish) -> Asker:
        return Asker('image' if wish.by_tenant else 'flavor', wish.said)

    def _host_wide(self, asker: Asker) -> GuestChoice:
        """What nova.conf says, the model chosen by the required traits."""
        if self._host_mode != 'custom':
            return self._made(self._host_mode, None, asker)
        for model in self._choice.models:
            if not self._lacking(model):
                return self._made('custom', model, asker)
        lacking = self._lacking(self._choice.models[0])
        raise errors.InvalidRequest(
            f'No CPU model of this host\'s '
            f'({self._settings.cpu_models_option} = '
            f'{", ".join(self._choice.models)}) has all traits that are '
            f'required by {self._needs.requirers(self._needs.traits)}; '
            f'{self._choice.models[0]} lacks {", ".join(sorted(lacking))}.',
            'Ask for fewer traits, or name a cpu_model that has them.')

    def _mode(self, wish: request.Wish | None,
              model_wish: request.Wish | None) -> str:
        """The mode that is asked for, checked.

        A model asked for by itself means custom.
        """
        if wish is None:
            assert model_wish is not None
            wish, mode = model_wish, 'custom'
        else:
            mode = wish.value.strip().lower()
        if mode not in MODES:
            raise errors.InvalidRequest(
                f'{wish.said} is not a CPU mode.',
                usable.meant(mode, MODES) + f'There are {", ".join(MODES)}.')
        if model_wish is not None and mode != 'custom':
            raise errors.InvalidRequest(
                f'{wish.said} and {model_wish.said} contradict each other: a '
                f'model goes with the mode custom only.',
                'Leave one of them out.')
        agrees = mode == self._host_mode or (
            model_wish is not None and not model_wish.by_tenant)
        if (wish.by_tenant and not agrees and
                mode not in self._settings.image_cpu_modes):
            raise errors.InvalidRequest(
                f'{wish.said}: images may not ask for the CPU mode {mode} '
                f'here ([kvm_ext] image_cpu_modes).',
                self._allowed(self._settings.image_cpu_modes))
        refused = usable.check_mode(mode, self._host)
        if refused is not None:
            raise errors.InvalidRequest(
                f'{wish.said}: {refused.problem}.', refused.remedy)
        return mode

    def _model(self, wish: request.Wish) -> str:
        """The model or level that is asked for, checked."""
        asked = wish.value.strip()
        allowed = self._settings.image_cpu_models + self._choice.models
        if wish.by_tenant and asked.lower() not in map(str.lower, allowed):
            raise errors.InvalidRequest(
                f'{wish.said}: images may not ask for this CPU model here '
                f'([kvm_ext] image_cpu_models).', self._allowed(allowed))
        refused = usable.check_model(
            asked, self._host, self._choice.features)
        if refused is not None:
            raise errors.InvalidRequest(
                f'{wish.said}: {refused.problem}.', refused.remedy)
        return usable.canonical(asked, self._host)

    @staticmethod
    def _allowed(names: Collection[str]) -> str:
        if not names:
            return 'They may ask for none; leave the property out.'
        return f'They may ask for {usable.some(dict.fromkeys(names))}.'

    def _lacking(self, model: str) -> frozenset[str]:
        """Required CPU traits that a guest with this model would not have.

        Extra flags count. Traits that say nothing about CPU features, and
        models of which nothing is known, are left to the scheduler.
        """
        features = usable.given_features(
            model, self._host, self._choice.features)
        if features is None:
            return frozenset()
        added = {n for n, policy in self._choice.features
                 if policy == 'require'}
        has = traits.of_features(
            (features | added) - _disabled(self._choice.features),
            self._mapping)
        return (self._needs.traits & traits.known(self._mapping)) - has

    def _check_traits(self, model: str, asker: Asker) -> None:
        lacking = self._lacking(model)
        if lacking:
            raise errors.InvalidRequest(
                f'{asker.said}: this CPU model does not have '
                f'{", ".join(sorted(lacking))}, required by '
                f'{self._needs.requirers(lacking)}.',
                'Ask for another model or for fewer traits.')

    def _made(self, mode: str, model: str | None,
              asker: Asker) -> GuestChoice:
        return GuestChoice(
            mode, model, () if mode == 'none' else self._choice.features,
            asker.by, asker.said)


def features_of(mode: str, model: str | None,
                extra: Iterable[tuple[str, str]], asked_by: str,
                host: usable.Host) -> tuple[Feature, ...]:
    """Every feature of a CPU that is known, with where it comes from."""
    found: dict[str, Feature] = {}

    def add(names: Iterable[str], policy: str, origin: str,
            by: str = asked_by) -> None:
        for name in names:
            found[name] = Feature(name, policy, origin, by)

    if mode == 'none':
        return ()
    level = levels.find(model) if model else None
    extra = tuple(extra)
    expansion = (host.shown if model is None else
                 usable.given_features(model, host, extra))
    if expansion is None:
        return ()
    if level is not None:
        add(usable.model_features(levels.BASE_MODEL, host) or (), 'require',
            f'model {levels.BASE_MODEL}')
        add(level.needed, 'require', f'level {level.name}')
    elif model is not None:
        add(expansion, 'require', f'model {model}')
    else:
        add(expansion, 'require', 'host expansion')
    for name, policy in extra:
        add((name,), policy, 'extra flag',
            '[libvirt] cpu_model_extra_flags')
    return tuple(found[name] for name in sorted(found))
