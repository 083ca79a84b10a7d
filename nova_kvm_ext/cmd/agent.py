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

"""``nova-kvm-ext agent ...``: the guest agents of this host's guests.

Parses, calls :mod:`nova_kvm_ext.guest_agent.client`, prints. What an agent
says is the guest's own and was made harmless there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
import contextlib
import dataclasses
import inspect
import signal
import sys
import textwrap
import threading
import time
from typing import Any
import uuid

from cliff import lister
from cliff import show

from nova_kvm_ext.cmd import base
from nova_kvm_ext.cmd import columns
from nova_kvm_ext.cmd import lazy
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode

with lazy.imports():
    import libvirt

    from nova_kvm_ext.guest_agent import client
    from nova_kvm_ext.guest_agent import ledger
    from nova_kvm_ext.guest_agent import watchdog

_AT_ONCE = 10
"""Guests asked at the same time, each through a connection of its own:
libvirt serves five calls of one connection (max_client_requests) and twenty
of all (max_workers), and nova-compute must always find one free."""

_SECONDS = 5
"""How long an agent may take that is asked for facts."""

_PROGRESS = 1.0
"""Seconds between two lines of progress."""

_UNKNOWN = 'unknown'
"""The state of a guest of which libvirt could not tell."""


def _help(text: str, passed: str, failed: str, more: str = '') -> str:
    """A command's help: what it does, and its exit codes."""
    codes = (f'Exit codes: 0 {passed}, 2 {failed}, 3 wrong command line or '
             f'configuration, or libvirt cannot be reached or failed{more}.')
    return f'{inspect.cleandoc(text)}\n\n{textwrap.fill(codes, 78)}'


def find(connection: libvirt.virConnect, wanted: str) -> libvirt.virDomain:
    """A guest by its name in libvirt or its UUID, which is the instance's.

    :raises errors.InvalidRequest: there is none
    """
    attempts: list[tuple[Callable[[str], libvirt.virDomain], str]] = [
        (connection.lookupByName, wanted)]
    with contextlib.suppress(ValueError):
        attempts.append(
            (connection.lookupByUUIDString, str(uuid.UUID(wanted))))
    for look_up, text in attempts:
        try:
            return look_up(text)
        except libvirt.libvirtError as e:
            if e.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    raise errors.InvalidRequest(
        f'There is no guest with the name or UUID {errors.clean(wanted)}.',
        'See nova-kvm-ext agent list, or virsh list --all.')


class _OS(columns.Flowing):
    """An OSInfo or None: a few words, or all."""

    def text(self) -> str:
        return '' if self._value is None else self._value.title

    def machine_readable(self) -> dict[str, str] | None:
        return None if self._value is None else dataclasses.asdict(self._value)


class _Facts(columns.Flowing):
    """A tuple of facts or None: a line for each, or all."""

    _indent = '  '

    def text(self) -> str:
        return '\n'.join(map(self._line, self._value or ()))

    def machine_readable(self) -> list[dict[str, Any]] | None:
        return None if self._value is None else list(
            map(dataclasses.asdict, self._value))

    @staticmethod
    def _line(fact: Any) -> str:
        raise NotImplementedError


class _Interfaces(_Facts):

    @staticmethod
    def _line(fact: Any) -> str:
        more = fact.addresses_left_out and (
            f'and {fact.addresses_left_out} more')
        return ' '.join(filter(None, (
            fact.name, fact.mac, *fact.addresses, more)))


class _Filesystems(_Facts):

    @staticmethod
    def _line(fact: Any) -> str:
        words = [fact.mountpoint, fact.type, fact.name]
        if fact.used_bytes is not None and fact.total_bytes is not None:
            words.append(f'{_size(fact.used_bytes)} of '
                         f'{_size(fact.total_bytes)} used')
        return ' '.join(words)


def _size(number: int | None) -> str:
    """Bytes as people like them."""
    if number is None:
        return ''
    size, units = float(number), ['B', 'KiB', 'MiB', 'GiB', 'TiB']
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f'{size:.4g} {units[0]}'


class _Size(columns.Column):
    """Bytes or None."""

    def __lt__(self, other: object) -> bool:
        return isinstance(other, _Size) and (
            (self._value or 0) < (other._value or 0))

    def human_readable(self) -> str:
        return _size(self._value)

    def machine_readable(self) -> int | None:
        return self._value


class AgentCommand(base.HostCommand):
    """A command with ``--timeout``."""

    def timeout(self) -> int:
        """Seconds that an agent may take, unless the user says."""
        return _SECONDS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--timeout', type=base.seconds, default=self.timeout(),
            metavar='SECONDS',
            help='how long an agent may take, default %(default)s; where it '
                 'did not answer before, libvirt waits up to 5 s more')
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        self._code = ExitCode.PASS
        # An error has its own code.
        return super().run(parsed_args) or int(self._code)

    def connection(self, args: argparse.Namespace
                   ) -> contextlib.AbstractContextManager[libvirt.virConnect]:
        return self.connected(args, base.read_conf(args.config_files))


class GuestCommand(AgentCommand):
    """A command that asks one guest."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'guest', metavar='GUEST',
            help='name of the domain (instance-0000001a), or its UUID, which '
                 'is the instance\'s')
        return parser

    @contextlib.contextmanager
    def guest(self, args: argparse.Namespace
              ) -> Iterator[tuple[libvirt.virDomain, dict[str, Any]]]:
        """The guest, and what each answer begins with."""
        with self.connection(args) as connection:
            domain = find(connection, args.guest)
            yield domain, {'name': errors.clean(domain.name()),
                           'uuid': domain.UUIDString()}

    @contextlib.contextmanager
    def agent(self, args: argparse.Namespace
              ) -> Iterator[tuple[client.Agent, dict[str, Any]]]:
        """As guest(), for a command that is given its time-out itself.

        What is asked along with it, whether the guest is frozen for example,
        takes no longer than elsewhere.
        """
        with self.guest(args) as (domain, result):
            yield client.Agent(
                domain, min(args.timeout, _SECONDS)), result


@dataclasses.dataclass(eq=False)
class _Target:
    """A guest that is to be frozen or thawed, and what became of it.

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
            self.domain, min(args.timeout, _SECONDS))


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


def _shown(result: dict[str, Any]) -> tuple[Sequence[str], Sequence[Any]]:
    return tuple(result), tuple(result.values())


@dataclasses.dataclass(frozen=True)
class Row:
    """A guest of the list.

    :ivar facts: None where libvirt failed; then there is a problem
    """

    name: str
    uuid: str
    facts: client.AgentFacts | None
    problem: str

    @property
    def state(self) -> str:
        return _UNKNOWN if self.facts is None else self.facts.state.value


def look_at_all(
    connect: Callable[[], contextlib.AbstractContextManager[Any]],
    timeout: float, progress: Callable[[int, int], None],
) -> list[Row]:
    """Ask every running guest, many at once.

    One that does not answer holds one of the places and delays no other for
    longer than its time-out.

    :param connect: makes a connection to libvirt, for one thread
    :param progress: told how many of how many guests have been asked
    :returns: by name; a guest that ended meanwhile is left out
    """
    mine = threading.local()
    opened: list[contextlib.ExitStack] = []

    def look(found: tuple[str, str]) -> Row | None:
        try:
            if not hasattr(mine, 'connection'):
                with contextlib.ExitStack() as stack:
                    mine.connection = stack.enter_context(connect())
                    opened.append(stack.pop_all())
            facts = client.look(mine.connection.lookupByUUIDString(found[1]),
                                timeout, details=False)
        except libvirt.libvirtError as e:
            if e.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            return Row(*found, None, errors.with_explanation(e))
        except errors.KVMExtError as e:
            if isinstance(e, errors.AgentError) and (
                    e.fault is errors.AgentFault.NO_GUEST):
                return None
            return Row(*found, None, str(e))
        return Row(*found, facts, facts.problem)

    with connect() as connection:
        guests = sorted(
            (errors.clean(domain.name()), domain.UUIDString())
            for domain in connection.listAllDomains(
                libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE))
    rows = []
    pool = futures.ThreadPoolExecutor(_AT_ONCE)
    try:
        asked = [pool.submit(look, guest) for guest in guests]
        for count, _ in enumerate(futures.as_completed(asked), start=1):
            progress(count, len(guests))
        rows = [future.result() for future in asked]
    finally:
        # After Ctrl-C nobody else is asked.
        pool.shutdown(cancel_futures=True)
        for stack in opened:
            stack.close()
    return [row for row in rows if row is not None]


class List(AgentCommand, lister.Lister):
    __doc__ = _help(
        """Ask the agents of all running guests how they are.

        States: "no channel" (the guest was given none), "disconnected"
        (nothing in the guest has the channel open), "connected" (the agent
        answers), "not answering", "paused" (the guest stands still, and is not
        asked), "frozen" (the agent answers, and the filesystems are frozen).
        """,
        passed='all guests were asked',
        failed='a guest is frozen, or its agent has the channel open and does '
               'not answer')

    COLUMNS = ('name', 'uuid', 'state', 'version', 'os', 'host_name',
               'problem')
    # By default a table has what makes a line of at most 80 columns.
    ASIDE = ('uuid', 'version', 'host_name')
    EMPTY = 'No guest runs.'

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], Sequence[Any]]:
        nova = base.read_conf(parsed_args.config_files)
        rows = look_at_all(lambda: self.connected(parsed_args, nova),
                           parsed_args.timeout, _Progress())
        if any(row.state in (client.AgentState.NOT_ANSWERING.value,
                             client.AgentState.FROZEN.value) for row in rows):
            self._code = ExitCode.FAIL
        if any(row.state == _UNKNOWN for row in rows):
            self._code = ExitCode.HOST
        return self.COLUMNS, [self._row(row) for row in rows]

    @staticmethod
    def _row(row: Row) -> tuple[Any, ...]:
        facts = row.facts
        return (row.name, row.uuid, row.state, facts and facts.version,
                _OS(facts and facts.os), facts and facts.host_name,
                columns.Text(row.problem))


class _Progress:
    """Says how far a list is, once a second; says nothing in the first."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, count: int, total: int) -> None:
        if time.monotonic() - self._said >= _PROGRESS and count < total:
            self._said = time.monotonic()
            print(f'{count} of {total} guests asked', file=sys.stderr,
                  flush=True)


class Show(GuestCommand, show.ShowOne):
    __doc__ = _help(
        "Show what a guest's agent says of itself and its guest.",
        passed='the agent answers',
        failed='it does not, or the guest is frozen or does not run')

    COLUMNS = ('name', 'uuid', 'state', 'problem', 'version', 'os',
               'host_name', 'interfaces', 'filesystems')

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], Sequence[Any]]:
        with self.guest(parsed_args) as (domain, result):
            facts = client.look(domain, parsed_args.timeout)
        if facts.state is not client.AgentState.CONNECTED:
            self._code = ExitCode.FAIL
        return _shown(result | {
            'state': facts.state.value,
            'problem': columns.Text(facts.problem),
            'version': facts.version, 'os': _OS(facts.os),
            'host_name': facts.host_name,
            'interfaces': _Interfaces(facts.interfaces),
            'filesystems': _Filesystems(facts.filesystems)})


class Ping(GuestCommand, show.ShowOne):
    __doc__ = _help("Ask a guest's agent for a sign of life.",
                    passed='the agent answers', failed='it does not')

    COLUMNS = ('name', 'uuid', 'answers', 'seconds', 'problem')

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], Sequence[Any]]:
        with self.guest(parsed_args) as (domain, result):
            started = time.monotonic()
            problem = ''
            try:
                client.Agent(domain, parsed_args.timeout).ping()
            except errors.AgentError as e:
                if e.fault is errors.AgentFault.LIBVIRT:
                    raise
                problem = str(e)
                self._code = ExitCode.FAIL
            return _shown(result | {
                'answers': not problem,
                'seconds': round(time.monotonic() - started, 3),
                'problem': columns.Text(problem)})


class GuestsCommand(AgentCommand, show.ShowOne):
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
                'Take -f json, or one guest.')
        found: dict[str, _Target] = {}
        for wanted in args.guests:
            domain = find(connection, wanted)
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
    __doc__ = _help(
        """Freeze the filesystems of one or several guests.

        Without --for they stay frozen: a guest can write nothing until
        "nova-kvm-ext agent thaw" thaws it, and it soon stands still. With
        --for the command waits, and thaws them all in the end, also when it
        is interrupted or killed.

        Several guests are frozen in the order given. If one cannot be frozen,
        all are thawed. A freeze that fails, is not answered in time, or is
        interrupted (Ctrl-C) is undone.
        """,
        passed='all are frozen; with --for: they were until the end, and are '
               'thawed',
        failed='one is not: the agent refused, did not answer, or found '
               'nothing to freeze; with --for: one was thawed before the end, '
               'or may be frozen still',
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
                              'written down for nova-compute; only this '
                              'command thaws the guests.')
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
            self._say(f'warning: {target.name} is not written down for '
                      f'nova-compute ({errors.clean(e)}); only this command '
                      f'thaws it.')
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
            agent = target.agent(args)
            if args.limit:
                with contextlib.suppress(errors.AgentError):
                    target.stood = agent.says_frozen()
            try:
                agent.thaw(patience=client.FREEZE_TIMEOUT)
            except errors.AgentError as e:
                if e.left_frozen:
                    self._say(f'error: {target.name} may be frozen still: '
                              f'{e}')
                    self._code = ExitCode.FAIL
                    continue
                target.stood = False
            if target.answered is not None:
                target.frozen_for = round(
                    time.monotonic() - target.answered, 3)
            self._frozen.remove(target)
            self._say(f'The guest is thawed. ({target.name})')


class Thaw(GuestsCommand):
    __doc__ = _help(
        """Thaw the filesystems of guests; no harm if they are not frozen.

        A guest that nova-compute or "agent freeze --for" keeps frozen at this
        moment is left alone, since a thaw would spoil the snapshot; --force
        thaws it all the same. Tried again until --timeout while the agent
        does not answer.
        """,
        passed='all are thawed',
        failed='one may be frozen still, or a snapshot needs it frozen')

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
                        'Wait until that is done, or take --force: what is '
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


class Trim(GuestCommand, lister.Lister):
    __doc__ = _help(
        'Have a guest give back storage that its filesystems left.',
        passed='done',
        failed='a filesystem could not be trimmed, or the agent refused or '
               'did not answer')

    COLUMNS = ('path', 'trimmed_bytes', 'minimum_bytes', 'error')
    EMPTY = 'The guest has no filesystem that can be trimmed.'

    def timeout(self) -> int:
        return client.TRIM_TIMEOUT

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--minimum', type=base.positive, default=0, metavar='BYTES',
            help='leave shorter free ranges alone; default: none')
        return parser

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], Sequence[Any]]:
        with self.agent(parsed_args) as (agent, _):
            found = agent.fstrim(parsed_args.minimum, parsed_args.timeout)
        if found.left_out:
            print(f'{found.left_out} more filesystems are not shown.',
                  file=sys.stderr)
        if any(trimmed.error for trimmed in found):
            self._code = ExitCode.FAIL
        return self.COLUMNS, [
            (trimmed.path, _Size(trimmed.trimmed_bytes),
             _Size(trimmed.minimum_bytes), columns.Text(trimmed.error))
            for trimmed in found]
