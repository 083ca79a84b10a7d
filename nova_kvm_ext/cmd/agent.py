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

Parses, calls :mod:`nova_kvm_ext.guest_agent.client`, prints. That module has
already made the agents' replies harmless.
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
from nova_kvm_ext import words

with lazy.imports():
    import libvirt

    from nova_kvm_ext.guest_agent import client

_AT_ONCE = 10
"""Guests asked at the same time, each through a connection of its own:
libvirt serves five calls of one connection (max_client_requests) and twenty
of all (max_workers), and nova-compute must always find one free."""

SECONDS = 5
"""How long an agent may take that is asked for facts."""

_PROGRESS = 1.0
"""Seconds between two lines of progress."""

"""The state of a guest of which libvirt could not tell."""


def help_text(text: str, passed: str, failed: str, more: str = '') -> str:
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
        return SECONDS

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
                domain, min(args.timeout, SECONDS)), result


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
        return words.UNKNOWN if self.facts is None else self.facts.state.value


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
    __doc__ = help_text(
        """Show the state of the guest agents of all running guests.

        States: "no channel" (the guest has none), "disconnected" (no program
        in the guest has the channel open), "connected" (the agent answers),
        "not answering", "paused" (the guest is paused and not asked),
        "frozen" (the agent answers, and the file systems are frozen).
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
        if any(row.state == words.UNKNOWN for row in rows):
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
    __doc__ = help_text(
        "Show what a guest's agent reports about itself and its guest.",
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
    __doc__ = help_text("Test whether a guest's agent answers.",
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


class Trim(GuestCommand, lister.Lister):
    __doc__ = help_text(
        'Trim the file systems of a guest.\n\n'
        'Unused space is given back to the storage.',
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
