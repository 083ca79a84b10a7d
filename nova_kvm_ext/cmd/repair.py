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

"""``nova-kvm-ext guest repair-migration``: bring a guest back.

Parses, reads facts, asks the user before each step, runs the step and prints
its result. :mod:`nova_kvm_ext.migration.repair` decides the steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import os
import sys
from typing import Any
import uuid

from cliff import lister

from nova_kvm_ext.cmd import base
from nova_kvm_ext.cmd import columns
from nova_kvm_ext.cmd import lazy
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode

with lazy.imports():
    import libvirt

    from nova_kvm_ext.fleet import cloud as fleet_cloud
    from nova_kvm_ext.migration import comeback
    from nova_kvm_ext.migration import elsewhere
    from nova_kvm_ext.migration import records
    from nova_kvm_ext.migration import repair

_DONE, _NOTHING, _LEFT, _DECLINED, _FAILED = (
    'done', 'nothing to do', 'left alone', 'declined', 'failed')


@dataclasses.dataclass(frozen=True)
class Result:
    """What happened to a step."""

    step: Any
    what: str
    problem: str = ''


class RepairMigration(base.HostCommand, lister.Lister):
    """Move a guest back after an interrupted migration.

    libvirt completes a live migration even if nova-compute is killed
    meanwhile, and Nova then still has the server on the source. Run this
    command as root on the host where the guest runs; the log of nova-compute
    on the source names this host. The command moves the guest back to its host
    in Nova, removes its files on this host, gives back what Placement keeps
    for the migration, binds ports to its host alone, and resets a
    server that is in the state error to active.

    The command does only steps that are proved to be needed, and asks before
    each step. For other steps the output has the command to do the step by
    hand.

    Exit codes: 0 no problem is left, 1 a step was left alone or declined, 2 a
    step failed, or this is another fault, 3 wrong command line or
    configuration, or libvirt or Nova cannot be reached.
    """

    COLUMNS = ('step', 'result', 'why', 'by_hand')
    ASIDE = ('by_hand',)

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'server', metavar='SERVER', type=_uuid,
            help='UUID of the server')
        parser.add_argument(
            '--os-cloud', metavar='NAME',
            default=os.environ.get('OS_CLOUD'),
            help='cloud of clouds.yaml, with the credentials of an '
                 'administrator; default $OS_CLOUD')
        parser.add_argument(
            '--yes', action='store_true',
            help='take each step that is proved to be needed without asking')
        parser.add_argument(
            '--dry-run', action='store_true',
            help='say what would be done, and do nothing')
        parser.add_argument(
            '--source-uri', metavar='URI',
            help='libvirt of the host that Nova has the server on; by default '
                 'as [libvirt] live_migration_uri or live_migration_scheme '
                 'say')
        parser.add_argument(
            '--copy-disks', choices=('yes', 'no'),
            help='whether disks in files are copied; by default those on a '
                 'file system of this host\'s own')
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        self._code = ExitCode.PASS
        # An error has its own code.
        return super().run(parsed_args) or int(self._code)

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], list[tuple[Any, ...]]]:
        if not parsed_args.os_cloud:
            raise errors.InvalidRequest(
                'No cloud is named.', 'Give --os-cloud NAME, or set OS_CLOUD.')
        nova = base.read_conf(parsed_args.config_files)
        book = records.Records(fleet_cloud.connect(parsed_args.os_cloud),
                               lambda: records.neutron(nova))
        server = book.server(parsed_args.server)
        with self.connected(parsed_args, nova) as connection:
            work = _Work(connection, nova, book, server, parsed_args)
            refusal = work.refusal()
            if refusal:
                raise base.Finding(f'Nothing is done: {refusal}.')
            results = work.all()
        whats = {result.what for result in results}
        if _FAILED in whats:
            self._code = ExitCode.FAIL
        elif whats & {_LEFT, _DECLINED}:
            self._code = ExitCode.WARN
        return self.COLUMNS, [
            (result.step.name.value, result.what,
             columns.Text(result.problem or result.step.why),
             columns.Text(result.step.by_hand if result.what not in (
                 _DONE, _NOTHING) else '')) for result in results]


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{errors.clean(text, 80)} is not a UUID') from None


class _Work:
    """The steps, one after the other: what one did the next one sees."""

    def __init__(self, connection: Any, nova: Any, book: Any, server: Any,
                 args: argparse.Namespace) -> None:
        self._connection = connection
        self._nova = nova
        self._book = book
        self._server = server
        self._args = args
        self._here = comeback.look(connection, server.uuid)
        self._uris: list[str] = []

    def refusal(self) -> str:
        return repair.refusal(self._server, self._nova.host, self._here.runs,
                              self._here.busy, self._here.hangs,
                              self._here.torn)

    def all(self) -> list[Result]:
        server, args = self._server, self._args
        self._uris = [args.source_uri] if args.source_uri else _uris(
            self._nova, filter(None, (
                server.host, self._book.address(server.host))))
        there = self._ask_there()
        disks, protection = self._disks(), _protection(self._nova)
        step = repair.move(
            self._server, self._here.runs, there.runs, there.why,
            comeback.by_hand(self._server.uuid, self._uris[0], disks,
                             protection),
            self._here.shut_off)
        results = [self._take(step, lambda: comeback.move(
            self._connection, self._server.uuid, there.uri or self._uris[0],
            disks, _say, protection))]
        # What was true before the move need not be true now.
        self._here = comeback.look(self._connection, self._server.uuid)
        there = self._ask_there()
        runs_there = there.runs
        if runs_there is None and results[0].what == _DONE:
            # libvirt here saw the guest run there, and let go of it.
            runs_there = not self._here.runs or None
        left = comeback.files(self._nova.instances_path, self._server.uuid)
        results.append(self._take(
            repair.files(left, self._here.runs, runs_there),
            lambda: comeback.remove(left.path, self._server.uuid)))
        results.append(self._take(repair.allocations(
            self._server, self._nova.host,
            self._book.allocations(self._server), runs_there),
            lambda: self._book.move_allocations(self._server)))
        results.append(self._bindings(runs_there))
        if server.volumes:
            results.append(self._volumes())
        results.append(self._take(
            repair.state(self._server, runs_there),
            lambda: self._book.reset_state(self._server)))
        return results

    def _ask_there(self) -> Any:
        found = elsewhere.ask(
            self._uris, self._server.uuid,
            own=elsewhere.host_uuid(self._connection.getCapabilities()))
        if found.itself:
            raise errors.HostError(
                f'{found.why}, not to {errors.clean(self._server.host, 80)}.',
                'Give --source-uri.')
        return found

    def _disks(self) -> list[str]:
        if self._args.copy_disks == 'no':
            return []
        if self._args.copy_disks == 'yes':
            return [disk.target for disk in comeback.files_of(
                self._here.disks)]
        return comeback.to_copy(self._here.disks)

    def _bindings(self, runs_there: bool | None) -> Result:
        here = self._nova.host
        try:
            ports, unknown = self._book.ports(self._server), ''
        except errors.KVMExtError as e:
            ports, unknown = None, e.problem
        step, back, going = repair.bindings(
            self._server, here, ports, runs_there, unknown)

        def mend() -> None:
            for port in back:
                self._book.activate_binding(port, self._server.host)
            for port in going:
                self._book.delete_binding(port, here)

        return self._take(step, mend)

    def _volumes(self) -> Result:
        try:
            hosts, unknown = self._book.volumes(self._server), ''
        except errors.KVMExtError as e:
            hosts, unknown = None, e.problem
        step = repair.volumes(self._server, self._nova.host, hosts, unknown)
        return Result(step, _NOTHING if step.needed is False else _LEFT)

    def _take(self, step: Any, do: Callable[[], None]) -> Result:
        """Do a step that is needed, if the operator agrees."""
        if not step.needed:
            return Result(step, _NOTHING if step.needed is False else _LEFT)
        _say(f'{step.name.value}: {step.why}.')
        if self._args.dry_run or not (self._args.yes or _agreed(step)):
            return Result(step, _DECLINED)
        try:
            do()
        except (errors.KVMExtError, OSError, libvirt.libvirtError) as e:
            problem = (errors.with_explanation(e)
                       if isinstance(e, libvirt.libvirtError)
                       else errors.clean(e))
            return Result(step, _FAILED, problem)
        return Result(step, _DONE)


def _protection(nova: Any) -> str:
    """How nova.conf has guests' memory sent."""
    if nova.libvirt.live_migration_with_native_tls:
        return comeback.TLS
    # Deprecated since Nova 23.
    return (comeback.TUNNELLED if nova.libvirt.live_migration_tunnelled
            else comeback.PLAIN)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _agreed(step: Any) -> bool:
    """Ask on the terminal; nobody there means no."""
    if step.by_hand:
        _say(f'  as: {step.by_hand}')
    print(f'{step.name.value}? [y/N] ', end='', file=sys.stderr, flush=True)
    # None where the standard input was closed.
    answer = sys.stdin.readline() if sys.stdin else ''
    return answer.strip().lower() in ('y', 'yes')


def _uris(nova: Any, names: Any) -> list[str]:
    """How libvirt of a host is reached, as Nova's driver has it."""
    found: list[str] = []
    for name in names:
        host = f'[{name}]' if ':' in name else name
        pattern = nova.libvirt.live_migration_uri
        try:
            uri = pattern % host if pattern else (
                f'qemu+{nova.libvirt.live_migration_scheme or "tcp"}://'
                f'{host}/system')
        except (TypeError, ValueError):
            continue
        if uri not in found:
            found.append(uri)
    if not found:
        raise errors.InvalidRequest(
            'How to reach the other libvirt is not known.',
            'Give --source-uri.')
    return found
