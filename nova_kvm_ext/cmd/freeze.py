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

"""``nova-kvm-ext agent freeze`` and ``agent thaw``.

For one guest or several. A freeze is undone for any reason that ends the
command. Neither command changes a guest that a snapshot needs frozen.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent import futures
import contextlib
import dataclasses
import signal
import sys
import threading
import time
from typing import Any

from cliff import show

from nova_kvm_ext.cmd import agent
from nova_kvm_ext.cmd import base
from nova_kvm_ext.cmd import columns
from nova_kvm_ext.cmd import lazy
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode

with lazy.imports():
    import libvirt

    from nova_kvm_ext.guest_agent import client
    from nova_kvm_ext.guest_agent import counts
    from nova_kvm_ext.guest_agent import ledger
    from nova_kvm_ext.guest_agent import watchdog


@dataclasses.dataclass(eq=False)
class _Target:
    """A guest that is to be frozen or thawed, and what happened to it.

    :ivar count: filesystems that were frozen
    :ivar seconds: that the freeze took
    :ivar answered: when it was frozen (time.monotonic), None before
    :ivar frozen_for: seconds that it was frozen
    :ivar stood: whether it was frozen until the end, None if not known
    """

    domain: libvirt.virDomain
    name: str
    uuid: str
    count: int = 0
    seconds: float | None = None
    answered: float | None = None
    frozen_for: float | None = None
    stood: bool | None = None

    def agent(self, args: argparse.Namespace) -> client.Agent:
        """What is asked along with it takes no longer than elsewhere."""
        return client.Agent(
            self.domain, min(args.timeout, agent.SECONDS))


def _these(targets: Sequence[_Target]) -> str:
    return ('The guest stays' if len(targets) == 1 else
            f'{len(targets)} guests stay')


def _ledger(nova: Any) -> ledger.Ledger:
    return ledger.Ledger(str(nova.state_path), str(nova.host))


def _check_free(written: ledger.Ledger, target: _Target, remedy: str) -> None:
    """Leave a guest alone that a snapshot needs as it is.

    :raises errors.AgentError: nova-compute or another command is at it
    """
    try:
        why = written.holder(target.uuid)
    except OSError as e:
        print(f'warning: whether a snapshot needs {target.name} frozen is not '
              f'known: {errors.clean(e)}', file=sys.stderr, flush=True)
        return
    if why is not None:
        raise errors.AgentError(
            f'{target.name} is being frozen, is frozen or is being thawed '
            f'({errors.clean(why) or "no more is known"}).', remedy,
            fault=errors.AgentFault.BUSY)


class GuestsCommand(agent.AgentCommand, show.ShowOne):
    """A command for one guest or several: one object, or a list of them."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'guests', metavar='GUEST', nargs='+',
            help='name of the domain (instance-0000001a), or its UUID, which '
                 'is the instance\'s; of several, one after another')
        return parser

    def find_all(self, connection: libvirt.virConnect,
                 args: argparse.Namespace) -> list[_Target]:
        """The guests, each once, in the order of the command line."""
        if len(args.guests) > 1 and not hasattr(self.formatter, 'emit_list'):
            raise errors.InvalidRequest(
                f'-f {args.formatter} shows one guest only.',
                'Use -f json, or one guest.')
        found: dict[str, _Target] = {}
        for wanted in args.guests:
            domain = agent.find(connection, wanted)
            found.setdefault(domain.UUIDString(), _Target(
                domain, errors.clean(domain.name()), domain.UUIDString()))
        return list(found.values())

    def produce_output(self, parsed_args: argparse.Namespace,
                       column_names: Sequence[str], data: Any) -> int:
        if len(data) == 1:
            return super().produce_output(parsed_args, column_names, data[0])
        rows = self.prepare(parsed_args, column_names,
                            [list(row) for row in data], many=True)
        shown, selector = self._generate_columns_and_selector(
            parsed_args, column_names)
        if selector:
            rows = [list(self._compress_iterable(row, selector))
                    for row in rows]
        self.formatter.emit_list(  # type: ignore[attr-defined]
            shown, rows, self.app.stdout, parsed_args)
        return 0

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Freeze(GuestsCommand):
    __doc__ = agent.help_text(
        """Freeze the file systems of one or several guests.

        Without --for the guests stay frozen until "nova-kvm-ext agent thaw".
        A frozen guest cannot write, and soon hangs. With --for the command
        waits and then thaws all guests, also when it is interrupted or
        killed.

        Guests are frozen in the given order. If a guest cannot be frozen, all
        are thawed. If a freeze fails, is not answered in time, or is
        interrupted (Ctrl-C), the guest is thawed.
        """,
        passed='all guests are frozen; with --for: they were frozen until the '
               'end, and are thawed',
        failed='a guest is not frozen: its agent refused, did not answer, or '
               'found nothing to freeze; with --for: a guest was thawed '
               'before the end, or may still be frozen',
        more=', 128+N ended by signal N, and thawed')

    COLUMNS = ('name', 'uuid', 'frozen', 'seconds', 'thaw_with')
    ASIDE = ('uuid',)
    _COLUMNS_FOR = (*COLUMNS, 'frozen_seconds', 'frozen_until_the_end',
                    'thawed')

    def column_names(self, args: argparse.Namespace) -> Sequence[str]:
        return self._COLUMNS_FOR if args.limit else self.COLUMNS

    def timeout(self) -> int:
        return client.FREEZE_TIMEOUT

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--for', type=base.seconds, dest='limit', metavar='SECONDS',
            help='thaw all this long after the last one was frozen; what '
                 'needs them frozen, a backup for example, is done meanwhile')
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        self._stopped_by = 0
        self._stopped = threading.Event()
        self._frozen: list[_Target] = []
        # Nothing is raised from a handler: that could come between a freeze
        # and the line that would thaw it.
        before = {number: signal.signal(number, self._stop) for number in
                  (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            code = super().run(parsed_args)
            if self._stopped_by and self._frozen:
                # It came after the freeze, while the answer was printed.
                try:
                    with self.connection(parsed_args) as connection:
                        for target in self._frozen:
                            target.domain = connection.lookupByUUIDString(
                                target.uuid)
                        self._thaw_all(parsed_args)
                except (errors.KVMExtError, libvirt.libvirtError) as e:
                    self._say(f'error: {errors.with_explanation(e)}')
            return 128 + self._stopped_by if self._stopped_by else code
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _frame: Any) -> None:
        if not self._stopped_by:
            self._say('interrupted: what is frozen is thawed as soon as its '
                      'agent has answered')
        self._stopped_by = number
        self._stopped.set()

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], Sequence[Any]]:
        args = parsed_args
        nova = base.read_conf(args.config_files)
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(self.connected(args, nova))
            targets = self.find_all(connection, args)
            written = _ledger(nova)
            for target in targets:
                _check_free(written, target, 'Wait until that is done.')
            guard = None
            if args.limit:
                guard = stack.enter_context(watchdog.Watchdog(
                    self.uri(args, nova), str(nova.state_path),
                    str(nova.host)))
                if nova.config_file:
                    for target in targets:
                        self._write_down(stack, written, target, args.limit)
                else:
                    # Its default would be where Python has its packages.
                    self._say('warning: no nova.conf was read, so [DEFAULT] '
                              'state_path is not known, and nothing is '
                              'recorded for nova-compute; only this command '
                              'thaws the guests.')
            try:
                for target in targets:
                    if self._stopped_by:
                        break
                    if guard is not None:
                        guard.watch(target.uuid, args.timeout + args.limit)
                    self._freeze(target, args)
                if args.limit and not self._stopped_by:
                    self._wait(targets, args.limit)
            except BaseException as e:
                if len(targets) > 1:
                    self._say('Not all can be frozen, so all are thawed.')
                self._thaw_all(args)
                # A guest that another program has frozen is not to be thawed.
                if guard is not None and not self._frozen and not getattr(
                        e, 'left_frozen', False):
                    guard.done()
                raise
            if args.limit or self._stopped_by:
                self._thaw_all(args)
                if guard is not None and not self._frozen:
                    guard.done()
        thaw = 'nova-kvm-ext agent thaw ' + ' '.join(
            errors.clean(wanted) for wanted in args.guests)
        if self._frozen and not args.limit:
            self._say(f'{_these(targets)} frozen until: {thaw}')
        return self._answer(targets, args, thaw)

    def _answer(self, targets: list[_Target], args: argparse.Namespace,
                thaw: str) -> tuple[Sequence[str], Sequence[Any]]:
        rows: list[list[Any]] = []
        for target in targets:
            still = target in self._frozen
            rows.append([target.name, target.uuid,
                         target.count if still or args.limit else 0,
                         target.seconds,
                         columns.Text(thaw if still else '')])
            if args.limit:
                rows[-1] += [target.frozen_for, target.stood, not still]
        if args.limit:
            if self._frozen or any(t.stood is False for t in targets):
                self._code = ExitCode.FAIL
        return self.column_names(args), rows

    def _write_down(self, stack: contextlib.ExitStack, written: ledger.Ledger,
                    target: _Target, limit: int) -> None:
        """So that nova-compute thaws it, should all of this be killed."""
        try:
            entry = written.enter(
                target.uuid, f'agent freeze --for {limit}')
        except ledger.Held:
            raise errors.AgentError(
                f'{target.name} is being frozen or thawed right now.',
                'Try again.', fault=errors.AgentFault.BUSY) from None
        except OSError as e:
            # nova-compute may have its files elsewhere: in a container.
            self._say(f'warning: {target.name} is not recorded for '
                      f'nova-compute ({errors.clean(e)}); only this command '
                      'thaws it.')
            return

        def leave() -> None:
            if target in self._frozen:
                entry.release()
                return
            try:
                entry.remove()
            except OSError as e:
                self._say(f'warning: {errors.clean(e)}')

        stack.callback(leave)

    def _freeze(self, target: _Target, args: argparse.Namespace) -> None:
        started = time.monotonic()
        # Not in this thread: in a call of libvirt it would not hear a signal.
        with futures.ThreadPoolExecutor(1) as pool:
            try:
                target.count = pool.submit(
                    target.agent(args).freeze, args.timeout).result()
            except errors.AgentError as e:
                raise errors.AgentError(
                    f'{target.name}: {e.problem}', e.remedy, fault=e.fault,
                    left_frozen=e.left_frozen) from None
        target.answered = time.monotonic()
        target.seconds = round(target.answered - started, 3)
        self._frozen.append(target)
        if not target.count:
            raise errors.AgentError(
                f'The guest has no filesystem that can be frozen '
                f'({target.name}).', fault=errors.AgentFault.REFUSED)

    def _wait(self, targets: list[_Target], limit: int) -> None:
        self._say(f'{_these(targets)} frozen for {limit} s from now on.')
        self._stopped.wait(limit)

    def _thaw_all(self, args: argparse.Namespace) -> None:
        """Thaw what is frozen, in the order given; one failure stops none."""
        for target in list(self._frozen):
            asked = target.agent(args)
            if args.limit:
                with contextlib.suppress(errors.AgentError):
                    target.stood = asked.says_frozen()
            thawed: int | None = None
            try:
                try:
                    thawed = asked.thaw()
                except errors.AgentError:
                    # What this one thaws tells nothing: the first may have.
                    asked.thaw(patience=client.FREEZE_TIMEOUT)
            except errors.AgentError as e:
                if e.left_frozen:
                    self._say(f'error: {target.name} may still be frozen: {e}')
                    self._code = ExitCode.FAIL
                    continue
                target.stood = False
            if args.limit and thawed is not None and target.stood is not (
                    False) and target.count:
                target.stood = counts.stood(target.count, thawed)
            if target.answered is not None:
                target.frozen_for = round(
                    time.monotonic() - target.answered, 3)
            self._frozen.remove(target)
            self._say(f'The guest is thawed. ({target.name})')


class Thaw(GuestsCommand):
    __doc__ = agent.help_text(
        """Thaw the file systems of guests.

        This does no harm if they are not frozen. A guest that nova-compute or
        "agent freeze --for" keeps frozen at this moment is refused, because a
        thaw would make the snapshot inconsistent; --force thaws such a guest.
        If the agent does not answer, the command tries again until --timeout.
        """,
        passed='all are thawed',
        failed='a guest may still be frozen, or a snapshot needs it frozen')

    COLUMNS = ('name', 'uuid', 'thawed', 'seconds')
    ASIDE = ('uuid',)

    def timeout(self) -> int:
        return client.THAW_TIMEOUT

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--force', action='store_true',
            help='thaw also where a snapshot needs the guest frozen: that '
                 'snapshot is not consistent then')
        return parser

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], Sequence[Any]]:
        args = parsed_args
        nova = base.read_conf(args.config_files)
        rows: list[list[Any]] = []
        failed: list[errors.AgentError] = []
        with self.connected(args, nova) as connection:
            targets = self.find_all(connection, args)
            for target in targets:
                try:
                    rows.append(self._thaw(target, _ledger(nova), args))
                except errors.AgentError as e:
                    # The others are to be thawed all the same.
                    failed.append(e)
                    rows.append([target.name, target.uuid, None, None])
                    if len(targets) > 1:
                        self._say(f'error: {target.name}: {e}')
        if failed:
            if len(targets) == 1:
                raise failed[0]
            self._code = ExitCode.FAIL
        return self.COLUMNS, rows

    def _thaw(self, target: _Target, written: ledger.Ledger,
              args: argparse.Namespace) -> list[Any]:
        started = time.monotonic()
        entry = None
        if not args.force:
            _check_free(written, target,
                        'Wait until that is done, or use --force: what is '
                        'made of the guest meanwhile is not consistent then.')
        with contextlib.suppress(ledger.Held, OSError):
            entry = written.take(target.uuid)
        try:
            count = target.agent(args).thaw(args.timeout,
                                            patience=args.timeout)
            if entry is not None:
                with contextlib.suppress(OSError):
                    entry.remove()
        finally:
            if entry is not None:
                entry.release()
        return [target.name, target.uuid, count,
                round(time.monotonic() - started, 3)]
