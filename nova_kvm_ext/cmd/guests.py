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

"""``nova-kvm-ext guest list`` and ``guest show``: what guests run with.

Parses, has :mod:`nova_kvm_ext.guests.survey` read, prints. No command goes to
a guest or its QEMU, so a guest that hangs delays nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import sys
from typing import Any

from cliff import lister
from cliff import show

from nova_kvm_ext.cmd import agent
from nova_kvm_ext.cmd import base
from nova_kvm_ext.cmd import columns
from nova_kvm_ext.cmd import lazy
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode
from nova_kvm_ext import words

with lazy.imports():
    from nova_kvm_ext.guests import reasons
    from nova_kvm_ext.guests import resumer
    from nova_kvm_ext.guests import survey
    from nova_kvm_ext.guests import verdicts

_CODES = """
    Exit codes: 0 no problem, 1 a guest is outdated, would get
    another CPU or does not use vhost-net although its XML names it, 2 a guest
    hangs, is frozen or was paused by an error, 3 wrong command line or
    configuration, or libvirt cannot be reached or fails.
    """


_OLD = {True: '*', False: '', None: '?'}


def _qemu(verdict: verdicts.Verdict) -> str:
    return f'{verdict.qemu or "?"}{_OLD[verdict.old_qemu.value]}'


def _machine(verdict: verdicts.Verdict) -> str:
    # So that a line has at most 80 columns.
    short = verdict.guest.machine.removeprefix('pc-')
    return f'{short}{"*" if verdict.old_machine.value else ""}'


def _cpu(verdict: verdicts.Verdict) -> str:
    if verdict.cpu.drift:
        return 'kept' if verdict.cpu.kept else 'drift'
    return 'same' if verdict.cpu.drift is False else '?'


def _vhost(verdict: verdicts.Verdict) -> str:
    """How many cards use vhost-net, of those that could."""
    fit = [card for card in verdict.cards if card.nic.unfit is None]
    if not fit:
        return '?' if verdict.guest.odd else '-'
    unknown = any(card.uses is None for card in fit)
    return (f'{sum(card.uses is True for card in fit)}/{len(fit)}'
            f'{"?" if unknown else ""}')


def _state(verdict: verdicts.Verdict) -> str:
    said = verdict.state
    paused = verdict.guest.paused
    if paused is not None and paused.reason != 'user':
        said = (f'paused, {paused.short}' if paused.short else
                f'paused {paused.words}')
    if verdict.guest.frozen is not None:
        said += ', frozen'
    if verdict.hangs.value:
        said += ', hangs'
    elif verdict.hangs.value is None:
        said += ', hangs?'
    return said


def _cards(verdict: verdicts.Verdict) -> columns.Lines:
    return columns.Lines([
        (f'{card.nic.mac}: asked {"yes" if card.promised else "no"}, got '
         f'{words.ANSWERS[card.uses]} ({card.details})',
         {'mac': card.nic.mac, 'asked': card.promised, 'got': card.uses,
          'details': card.details})
        for card in verdict.cards])


_AGENT = {words.AgentState.CONNECTED.value: 'yes',
          words.AgentState.DISCONNECTED.value: 'no',
          words.AgentState.NO_CHANNEL.value: '-', None: '?'}

_COLUMNS = (
    'name', 'uuid', 'state', 'paused', 'hangs', 'hangs_why', 'qemu',
    'qemu_today', 'qemu_old', 'qemu_why', 'qemu_package', 'machine',
    'machine_newest', 'machine_old', 'machine_why', 'cpu', 'cpu_next',
    'cpu_drift', 'cpu_kept', 'cpu_gained', 'cpu_lost', 'cpu_why', 'vhost',
    'agent', 'frozen_since', 'frozen_why', 'pid', 'outdated', 'findings')

_ALWAYS = ('name', 'state', 'qemu', 'machine', 'cpu', 'vhost', 'agent')
"""What a table has: a line of at most 80 columns."""


def row(verdict: verdicts.Verdict) -> dict[str, Any]:
    """The columns of one guest."""
    guest, frozen = verdict.guest, verdict.guest.frozen
    return {
        'name': guest.name, 'uuid': guest.uuid,
        'state': columns.Shown(verdict.state, _state(verdict)),
        'paused': columns.Text(guest.paused and guest.paused.words),
        'hangs': verdict.hangs.value,
        'hangs_why': columns.Text(verdict.hangs.why or None),
        'qemu': columns.Words(verdict.qemu, _qemu(verdict)),
        'qemu_today': verdict.qemu_today,
        'qemu_old': verdict.old_qemu.value,
        'qemu_why': columns.Text(verdict.old_qemu.why or None),
        'qemu_package': columns.Text(guest.package or None),
        'machine': columns.Words(guest.machine or None, _machine(verdict)),
        'machine_newest': verdict.newest,
        'machine_old': verdict.old_machine.value,
        'machine_why': columns.Text(verdict.old_machine.why or None),
        'cpu': columns.Words(verdict.cpu.now or None, _cpu(verdict)),
        'cpu_next': verdict.cpu.next or None,
        'cpu_drift': verdict.cpu.drift, 'cpu_kept': verdict.cpu.kept,
        'cpu_gained': columns.Names(verdict.cpu.gained),
        'cpu_lost': columns.Names(verdict.cpu.lost),
        'cpu_why': columns.Text(verdict.cpu.details or None),
        'vhost': columns.Words(
            None if guest.odd else _cards(verdict).machine_readable(),
            _vhost(verdict)),
        'agent': columns.Words(verdict.agent, _AGENT[verdict.agent]),
        'frozen_since': None if frozen is None else words.when(frozen.since),
        'frozen_why': columns.Text(frozen and frozen.text),
        'pid': guest.process.pid, 'outdated': verdict.outdated,
        'findings': columns.Lines([(text, text)
                                   for text in verdict.findings])}


def _explained(found: survey.Survey, uri: str) -> survey.Survey:
    """With the disks whose errors have paused guests.

    :param uri: of libvirt
    """
    wanted = [
        one.guest.uuid for one in found.verdicts
        if one.guest.paused is not None and one.hangs.value is False and
        one.guest.paused.reason == reasons.Reason.IO_ERROR.name.lower()]
    if not wanted:
        return found
    try:
        outcomes = resumer.explain(uri, wanted)
    except OSError:
        # No process can be started: what libvirt told is shown.
        return found

    def explained(one: verdicts.Verdict) -> verdicts.Verdict:
        outcome = outcomes.get(one.guest.uuid)
        if outcome is None or one.guest.paused is None:
            return one
        return dataclasses.replace(one, guest=dataclasses.replace(
            one.guest, paused=dataclasses.replace(
                one.guest.paused,
                words=outcome.words.removeprefix('paused '),
                short=f'{outcome.cause} ({", ".join(outcome.disks)})'
                if outcome.disks else '')))

    return dataclasses.replace(
        found, verdicts=tuple(map(explained, found.verdicts)))


class _GuestsCommand(base.HostCommand):
    """A command that looks at guests."""

    def run(self, parsed_args: argparse.Namespace) -> int:
        self._code = ExitCode.PASS
        return super().run(parsed_args) or int(self._code)

    @contextlib.contextmanager
    def looking(self, args: argparse.Namespace, wanted: str | None = None
                ) -> Iterator[survey.Survey]:
        """The guests, or the one that is wanted."""
        nova = base.read_few(args.config_files)
        # libvirt gives domain capabilities to no read-only connection.
        with self.connected(args, nova) as connection:
            only = None if wanted is None else agent.find(
                connection, wanted).UUIDString()
            uri = self.uri(args, nova)
            found = _explained(
                survey.look(connection, nova, uri, only), uri)
            if found.problem:
                print(f'warning: what CPUs guests get today is not known: '
                      f'{found.problem}', file=sys.stderr)
            yield found

    def judge(self, found: Sequence[verdicts.Verdict]) -> None:
        """Set the exit code."""
        if any(one.hangs.value or one.broken or one.guest.frozen
               for one in found):
            self._code = ExitCode.FAIL
        elif any(one.outdated or one.cpu.drift or one.lacks_vhost
                 for one in found):
            self._code = ExitCode.WARN


class List(_GuestsCommand, lister.Lister):
    __doc__ = """Show what each running guest runs with, and would get today.

    A running guest keeps the QEMU, the machine type and the CPU with which it
    was started. The column qemu marks a version as old if the program was
    replaced, or another version would be started now. machine marks a type
    that QEMU calls deprecated. cpu shows drift if nova.conf gives another CPU
    today. vhost has how many cards use vhost-net, of those that can. guest
    show and -f json have the reasons. Nothing is sent to guests, so a guest
    that hangs delays nothing. Only root can see which program a guest runs.
    """ + _CODES

    COLUMNS = _COLUMNS
    ASIDE = tuple(name for name in _COLUMNS if name not in _ALWAYS)
    EMPTY = 'No guest runs, or none matches.'

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--outdated', action='store_true',
            help='only guests with an older QEMU than today\'s, or with a '
                 'machine type that is deprecated')
        parser.add_argument(
            '--drift', action='store_true',
            help='only guests that would get another CPU today; with '
                 '--outdated those, too')
        return parser

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], Sequence[Any]]:
        with self.looking(parsed_args) as found:
            seen = found.verdicts
        if parsed_args.outdated or parsed_args.drift:
            seen = tuple(one for one in seen
                         if parsed_args.outdated and one.outdated or
                         parsed_args.drift and one.cpu.drift)
        self.judge(seen)
        return self.COLUMNS, [tuple(row(one).values()) for one in seen]


class Show(_GuestsCommand, show.ShowOne):
    __doc__ = """Show what one running guest runs with, and would get today.

    As guest list, with the reasons.
    """ + _CODES

    COLUMNS = _COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'guest', metavar='GUEST',
            help='name of the domain (instance-0000001a), or its UUID, which '
                 'is the instance\'s')
        return parser

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], Sequence[Any]]:
        with self.looking(parsed_args, parsed_args.guest) as found:
            if not found.verdicts:
                raise base.Finding(
                    f'{errors.clean(parsed_args.guest)} does not run.',
                    'A guest that does not run gets what it gets when it is '
                    'started.')
            verdict, = found.verdicts
        self.judge([verdict])
        # There is room for the whole of it.
        shown = {name: value.machine_readable() if isinstance(
            value, columns.Words) else value
            for name, value in row(verdict).items()} | {
                'vhost': _cards(verdict)}
        return self.COLUMNS, tuple(shown.values())
