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

"""Compares a guest's CPU with the CPU that nova.conf gives it today.

Pure. The CPU of a running guest is the one in its live XML, which the driver
keeps with the instance (:mod:`nova_kvm_ext.cpu.stored`).
"""

import dataclasses

from nova_kvm_ext.cpu import choose
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import levels
from nova_kvm_ext.cpu import unshown
from nova_kvm_ext.cpu import usable
from nova_kvm_ext import errors
from nova_kvm_ext.guests import model
from nova_kvm_ext import request
from nova_kvm_ext.settings import Settings

_OF_HOST = ('host-passthrough', 'maximum')

_KEPT = '[kvm_ext] keep_guest_cpu'

Known = dict[tuple[str, frozenset[tuple[str, str]]], choose.GuestChoice]
"""Today's CPU by the kind of domain and the extra specs, which hundreds of
guests have in common."""


@dataclasses.dataclass(frozen=True)
class Drift:
    """What happens to a guest's CPU.

    :ivar drift: whether nova.conf gives another CPU than it has; None where
        that is not known
    :ivar now: the CPU that it has, in a few words
    :ivar next: the one after the next hard reboot; '' where not known
    :ivar kept: whether that is the one that it has, by keep_guest_cpu
    :ivar gained: features that nova.conf's CPU has, and this one not
    :ivar lost: features that this one has, and nova.conf's not
    :ivar details: why, or what is not known
    """

    drift: bool | None
    now: str = ''
    next: str = ''
    kept: bool = False
    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    details: str = ''


def said(cpu: definition.CPU | None) -> str:
    """A CPU in a few words: its model, or its mode."""
    if cpu is None:
        return ''
    return cpu.model or cpu.mode or 'default'


def wishes(guest: model.Guest) -> request.GuestRequest:
    """What the flavor asks for; what the image does, libvirt cannot tell."""
    return request.GuestRequest.read(guest.specs or {}, {})


def kept_form(cpu: definition.CPU) -> definition.CPU:
    """The CPU as the driver keeps it and puts it into the next XML."""
    return definition.CPU(
        mode='custom', model=cpu.model, vendor=cpu.vendor, fallback='forbid',
        match='exact', features=cpu.features)


def is_exact(cpu: definition.CPU) -> bool:
    """Whether libvirt says that the guest has exactly this."""
    return bool(cpu.mode == 'custom' and cpu.check == 'full' and cpu.model)


def judge(guest: model.Guest, today: model.Today,
          known: Known | None = None) -> Drift:
    """The CPU of a running guest now, and what it would be.

    :param known: of others that were judged by the same ``today``; what is
        found is put there
    """
    cpu = guest.cpu
    now = said(cpu)
    found = today.cpus.get(guest.domain_type)
    if cpu is None:
        return Drift(None, details='its XML tells no CPU')
    if today.settings is None or found is None:
        return Drift(None, now, details='what guests get today is not known')
    host = found.host
    if not (guest.arch == host.caps.arch or
            guest.arch in ('x86_64', 'i686') and host.is_x86):
        return Drift(None, now, details=(
            'a guest of another architecture gets the CPU that Nova gives'))
    if found.choice is None:
        return Drift(None, now, details=found.problem)
    try:
        chosen = _chosen(guest, found.choice, today.settings, host,
                         {} if known is None else known)
    except errors.InvalidRequest as e:
        return Drift(None, now, details=f'refused today: {e}')
    chosen = _same_of_several(chosen, found.choice, cpu)
    drift = _compared(guest, cpu, chosen, host)
    if drift.drift and not _was_kept(guest, cpu):
        unsure = _unsure(guest, chosen, today.settings)
        if unsure:
            return Drift(None, now, details=unsure)
    if drift.drift and today.settings.keep_guest_cpu and is_exact(cpu):
        if host.answers.get(kept_form(cpu)) is False:
            return dataclasses.replace(drift, details=(
                f'{drift.details}; {_KEPT} does not help: this host cannot '
                f'give the CPU that the guest has'))
        return dataclasses.replace(
            drift, next=now, kept=True, details=f'{drift.details}; a hard '
            f'reboot keeps the CPU that it has ({_KEPT})')
    return drift


def _chosen(guest: model.Guest, choice: choose.CPUChoice,
            settings: Settings, host: usable.Host, known: Known
            ) -> choose.GuestChoice:
    key = (guest.domain_type, frozenset((guest.specs or {}).items()))
    if key not in known:
        known[key] = choose.choose_for_guest(
            choice, choose.GuestNeeds(wishes(guest)), settings, host, {})
    return known[key]


def _same_of_several(chosen: choose.GuestChoice, choice: choose.CPUChoice,
                     cpu: definition.CPU) -> choose.GuestChoice:
    """The model that the guest has, where it is one of nova.conf's.

    Of several models the required traits of flavor and image choose. These
    stay what they were.
    """
    if chosen.is_wish or chosen.mode != 'custom' or cpu.model is None:
        return chosen
    if cpu.model in choice.models:
        return dataclasses.replace(chosen, model=cpu.model)
    return chosen


def _was_kept(guest: model.Guest, cpu: definition.CPU) -> bool:
    """Whether the guest was started with the CPU that it had before."""
    asked = guest.configured
    return asked is not None and asked.model is not None and (
        asked.model, {*asked.features}) == (cpu.model, {*cpu.features})


def _unsure(guest: model.Guest, chosen: choose.GuestChoice,
            settings: Settings) -> str:
    """Why the CPU may be a wish that is not seen here.

    :returns: '' where it is not
    """
    asked = guest.configured
    if not guest.of_nova or asked is None or chosen.is_wish:
        return ''
    if guest.specs is None:
        return ('nova.conf has changed since it started, or its flavor or '
                'image asks for another CPU: libvirt does not tell')
    models = {level.cpu.model if (level := levels.find(name)) else name
              for name in settings.image_cpu_models}
    if asked.mode in settings.image_cpu_modes and (
            asked.mode != 'custom' or asked.model in models):
        return ('nova.conf has changed since it started, or its image asks '
                'for another CPU: libvirt does not tell')
    return ''


def _same_request(asked: definition.CPU, chosen: choose.GuestChoice,
                  host: usable.Host) -> bool:
    """Whether a guest was started with what it would be started with now."""
    if chosen.cpu is None:
        # QEMU's own: libvirt writes its name, and does not compare it.
        return asked.mode is None or asked.check == 'none'
    wanted = chosen.cpu
    return (asked.mode == wanted.mode and
            _versioned(asked.model, host) == _versioned(wanted.model, host) and
            {*asked.features} == {*wanted.features})


def _compared(guest: model.Guest, cpu: definition.CPU,
              chosen: choose.GuestChoice, host: usable.Host) -> Drift:
    """The CPU that a guest has against the one that is chosen today.

    The XML for the next start says what the guest was started with. The same
    named model is the same CPU. What host-model gives, QEMU and the host
    decide at each start.
    """
    now, new = said(cpu), chosen.model or chosen.mode
    asked = guest.configured
    if asked is None or asked.check == 'full':
        # That of a transient domain is its live one.
        asked = None
    by = f'as {chosen.said} asks'
    if asked is not None and _same_request(asked, chosen, host):
        if chosen.mode in ('custom', 'none'):
            return Drift(False, now, new)
        if chosen.mode == 'host-model':
            return _features(cpu, chosen, host)
        # The kernel and its KVM are those with which the guest started.
        if guest.process.replaced is False:
            return Drift(False, now, new)
        return Drift(None, now, new, details=(
            f'no XML says all that {now} gives, and its QEMU is not today\'s'
            if guest.process.replaced else
            f'no XML says all that {now} gives'))
    if asked is None and cpu.mode == chosen.mode and cpu.mode in _OF_HOST:
        return Drift(None, now, new, details=(
            f'no XML says all that {now} gives'))
    if cpu.mode in _OF_HOST or chosen.mode in _OF_HOST or (
            chosen.mode == 'none'):
        said_new = new if now != new else 'with other extra flags'
        return Drift(True, now, new, details=f'{now} is now {said_new}, {by}')
    if is_exact(cpu) and (chosen.mode == 'host-model' or
                          _was_kept(guest, cpu) or asked is None):
        return _features(cpu, chosen, host)
    assert chosen.cpu is not None
    change = definition.difference(
        cpu if asked is None or asked.model is None else asked,
        chosen.cpu, host.known)
    words = str(change) if change else f'{now} is now {new}'
    return Drift(True, now, new, gained=change.gained, lost=change.lost,
                 details=f'{words}, {by}')


def _model_of(chosen: choose.GuestChoice, host: usable.Host) -> str | None:
    """The model in the live XML of a guest with this choice."""
    if chosen.model is None:
        expansion = host.caps.host_model
        return None if expansion is None else expansion.model
    return (levels.BASE_MODEL if levels.find(chosen.model) else
            usable.canonical(chosen.model, host))


def _versioned(name: str | None, host: usable.Host) -> str | None:
    """Of several names of one model the same one."""
    found = None if name is None else host.caps.model(name)
    return name if found is None else found.canonical or found.name


def _features(cpu: definition.CPU, chosen: choose.GuestChoice,
              host: usable.Host) -> Drift:
    """An exact CPU against the features that are known of another."""
    now, new = said(cpu), chosen.model or chosen.mode
    after = _model_of(chosen, host)
    if after is None:
        return Drift(None, now, new, details=(
            'what host-model gives today is not known'))
    same = _versioned(cpu.model, host) == _versioned(after, host)
    had = cpu.features_by(host.known)
    gets = frozenset(feature.name for feature in chosen.features(host)
                     if feature.policy == 'require')
    if had is None or not gets:
        return Drift(None if same else True, now, new, details=(
            'its features are not known' if same else
            f'model {now} is now {after}, as {chosen.said} asks'))
    # What host-model does not tell the truth about says nothing.
    unknown = unshown.NAMES | unshown.CAN_DIFFER.keys() | unshown.HOST_ONLY
    had, gets = had - unknown, gets - unknown
    if chosen.mode == 'custom':
        if host.available is not None:
            # An emulated guest starts with less than its model.
            gets &= host.available | {name for name, policy in chosen.extra
                                      if policy == 'require'}
        # QEMU's models can have more than libvirt's of the same name.
        had -= {name for name in cpu.required - gets
                if name not in dict(chosen.extra)}
    gained, lost = tuple(sorted(gets - had)), tuple(sorted(had - gets))
    words = [] if same else [f'model {now} is now {after}']
    if gained:
        words.append(f'gains {usable.some(gained)}')
    if lost:
        words.append(f'loses {usable.some(lost)}')
    if not words:
        return Drift(False, now, new)
    words.append(f'as {chosen.said} asks')
    return Drift(True, now, new, gained=gained, lost=lost,
                 details=', '.join(words))
