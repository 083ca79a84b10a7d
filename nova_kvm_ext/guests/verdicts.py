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

"""Findings about a running guest, each with its reason.

Pure. Yes, no and not known (None) are three answers.
"""

from collections.abc import Iterable
import dataclasses
import re

from nova_kvm_ext.guests import drift
from nova_kvm_ext.guests import model
from nova_kvm_ext.vhost import proof
from nova_kvm_ext import words

_BUSY_SECONDS = 10
"""How long QEMU may take for one command of libvirt's before it is said to
hang. A healthy QEMU answers within milliseconds; a disk's flush or a large
memory slot takes it seconds."""

# proc(5): stopped by a signal, by a debugger, dead.
_STOPPED = {'T': 'its QEMU process is stopped by a signal (SIGSTOP)',
            't': 'its QEMU process is stopped by a debugger',
            'Z': 'its QEMU process has ended (zombie)',
            'X': 'its QEMU process has ended'}

_FAMILY = re.compile(r'(pc-i440fx|pc-q35|pc|virt|s390-ccw-virtio|pseries)'
                     r'(-rhel|-)?\d')
_ALIASES = {'pc-i440fx': 'pc', 'pc-q35': 'q35', 'pc': 'pc', 'virt': 'virt',
            's390-ccw-virtio': 's390-ccw-virtio', 'pseries': 'pseries'}


@dataclasses.dataclass(frozen=True)
class Answer:
    """Yes, no or not known, and why.

    :ivar value: None where not known
    """

    value: bool | None
    why: str = ''

    @property
    def word(self) -> str:
        return words.ANSWERS[self.value]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A guest, judged.

    :ivar state: a value of :data:`model.STATES`
    :ivar hangs: whether its QEMU does nothing
    :ivar old_qemu: whether it runs another QEMU than it would get today
    :ivar qemu: version that it runs, where known
    :ivar qemu_today: version that it would get
    :ivar old_machine: whether its machine type is deprecated, or is not there
        any more
    :ivar newest: the newest machine type of its kind, where known
    :ivar cpu: the CPU now and at the next hard reboot
    :ivar cards: each card: asked and got
    :ivar agent: value of an AgentState: ``no channel``, ``disconnected`` or
        ``connected``, for no agent is asked; None where it is not known
    """

    guest: model.Guest
    state: str
    hangs: Answer
    old_qemu: Answer
    qemu: str | None
    qemu_today: str | None
    old_machine: Answer
    newest: str | None
    cpu: drift.Drift
    cards: tuple[proof.Verdict, ...]
    agent: str | None

    @property
    def broken(self) -> bool:
        """Whether it was paused by what nobody asked for."""
        return self.guest.paused is not None and self.guest.paused.broken

    @property
    def outdated(self) -> bool:
        """Whether a hard reboot or a migration would bring it up to date."""
        return True in (self.old_qemu.value, self.old_machine.value)

    @property
    def lacks_vhost(self) -> tuple[proof.Verdict, ...]:
        """The cards that do not use the vhost-net that their XML names."""
        return tuple(card for card in self.cards if card.broken)

    @property
    def findings(self) -> tuple[str, ...]:
        """What is worth a look, the worst first."""
        found = [f'hangs: {self.hangs.why}'] if self.hangs.value else []
        if self.guest.paused is not None and self.guest.paused.broken:
            found.append(f'paused {self.guest.paused.words}')
        if self.guest.frozen is not None:
            found.append(f'frozen: {self.guest.frozen.text}')
        found += [f'{card.nic.mac}: {words.LACKS_VHOST}'
                  for card in self.lacks_vhost]
        if self.old_qemu.value:
            found.append(f'QEMU: {self.old_qemu.why}')
        if self.old_machine.value:
            found.append(f'machine: {self.old_machine.why}')
        if self.cpu.drift:
            found.append(f'CPU: {self.cpu.details}')
        if self.guest.odd:
            found.append(f'not read: {self.guest.odd}')
        return tuple(found)


def judge(guest: model.Guest, today: model.Today,
          known: drift.Known | None = None) -> Verdict:
    """A verdict on one guest.

    :param known: see :func:`drift.judge`
    """
    old_qemu, version = _qemu(guest, today)
    old_machine, newest = _machine(guest, today)
    return Verdict(
        guest, model.STATES.get(guest.state or 0, 'no state'),
        _hangs(guest),
        old_qemu, version, _of_today(guest, today), old_machine, newest,
        drift.judge(guest, today, known),
        tuple(proof.judge(guest.nics, guest.vhost)),
        None if guest.odd else {
            None: words.AgentState.NO_CHANNEL,
            False: words.AgentState.DISCONNECTED,
            True: words.AgentState.CONNECTED}[guest.channel].value)


def judge_all(guests: Iterable[model.Guest], today: model.Today
              ) -> list[Verdict]:
    """Verdicts, by name."""
    known: drift.Known = {}
    return sorted((judge(guest, today, known) for guest in guests),
                  key=lambda verdict: (verdict.guest.name,
                                       verdict.guest.uuid))


def _hangs(guest: model.Guest) -> Answer:
    """Whether QEMU would answer, as far as that is seen without asking it."""
    state = guest.process.state
    if state in _STOPPED:
        return Answer(True, _STOPPED[state])
    control = guest.control
    if control is not None and control.state == 2 and (
            control.seconds >= _BUSY_SECONDS):
        return Answer(True, f'its QEMU has not answered libvirt for '
                            f'{control.seconds:.0f} s')
    if control is not None and control.state == 3:
        return Answer(True, 'libvirt has lost its QEMU')
    if guest.process.stuck:
        return Answer(None, 'its QEMU process waits for the kernel '
                            '(uninterruptible sleep): look at the storage')
    if control is None and state is None:
        return Answer(None, 'neither libvirt nor the kernel shows its QEMU')
    return Answer(False)


def _of_today(guest: model.Guest, today: model.Today) -> str | None:
    """The version of QEMU that this guest would get."""
    if guest.arch not in ('', today.arch) and not (
            {guest.arch, today.arch} <= {'i686', 'x86_64'}):
        return None
    known = today.emulators.get(guest.arch)
    return today.qemu if guest.emulator in ('', known) else None


def _qemu(guest: model.Guest, today: model.Today
          ) -> tuple[Answer, str | None]:
    """Whether its QEMU is another one than today's, and its version."""
    replaced, latest = guest.process.replaced, _of_today(guest, today)
    version = guest.qemu
    if version is None and replaced is False:
        version = latest
    said = f'runs {version}' if version else 'its version is not known'
    now = f', today\'s is {latest}' if latest else ''
    if replaced:
        return Answer(True, f'{guest.process.why}; {said}{now}'), version
    if version is not None and latest is not None and version != latest:
        return Answer(True, f'{said}{now}'), version
    if replaced is False:
        return Answer(False), version
    return Answer(None, guest.process.why), version


def _machine(guest: model.Guest, today: model.Today
             ) -> tuple[Answer, str | None]:
    machines = today.machines.get(guest.arch)
    if not machines or not guest.machine:
        return Answer(None, 'libvirt does not tell machine types'), None
    family = _FAMILY.match(guest.machine)
    alias = machines.get(_ALIASES[family[1]]) if family else None
    newest = None if alias is None else alias.canonical or alias.name
    found = machines.get(guest.machine)
    if found is None:
        if guest.emulator not in ('', today.emulators.get(guest.arch)):
            return Answer(None, 'it has a QEMU of its own'), newest
        return Answer(True, f'today\'s QEMU has no {guest.machine} any '
                            f'more: a hard reboot fails'), newest
    if found.deprecated:
        return Answer(True, f'QEMU calls {guest.machine} deprecated and '
                            f'will drop it'), newest
    return Answer(found.deprecated), newest
