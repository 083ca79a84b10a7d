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

"""``nova-kvm-ext fleet ...``: one CPU for many hosts, where guests can go.

Reads what hosts have published: exports (``nova-kvm-ext cpu export``) or
domain capabilities in files, or a cloud. Needs neither libvirt nor a host.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import fnmatch
import os
import sys
from typing import Any

from cliff import lister
from cliff import show

from nova_kvm_ext.cmd import base
from nova_kvm_ext.cmd import columns
from nova_kvm_ext.cmd import lazy
from nova_kvm_ext import errors
from nova_kvm_ext.exit_codes import ExitCode
from nova_kvm_ext import words

with lazy.imports():
    from nova_kvm_ext.cpu import cpu_map
    from nova_kvm_ext.cpu import definition
    from nova_kvm_ext.cpu import reader
    from nova_kvm_ext.cpu import usable
    from nova_kvm_ext.cpu import vulnerabilities
    from nova_kvm_ext.fleet import admit
    from nova_kvm_ext.fleet import baseline
    from nova_kvm_ext.fleet import cloud
    from nova_kvm_ext.fleet import drain
    from nova_kvm_ext.fleet import files
    from nova_kvm_ext.fleet import fit
    from nova_kvm_ext.fleet import kinds
    from nova_kvm_ext.fleet import page

_ANSWERS = words.ANSWERS
_CODES = {True: ExitCode.PASS, False: ExitCode.FAIL, None: ExitCode.UNKNOWN}

_WHY = ('missing', 'unknown_names', 'reason')
"""Columns that say why; a table has all of it in the reason."""


def _said(answer: fit.Answer) -> tuple[Any, ...]:
    """The columns of _WHY."""
    lacks = (*answer.missing, *answer.unknown)
    return (columns.Names(answer.missing), columns.Names(answer.unknown),
            columns.Shown(
                answer.reason, f'lacks {usable.some(lacks)}' if lacks else
                '' if answer.possible else answer.reason))


@dataclasses.dataclass(frozen=True)
class _Known:
    """A fleet and what is known of it besides.

    :ivar aggregates: names of host aggregates by host
    """

    fleet: fit.Fleet
    aggregates: Mapping[str, Collection[str]]

    def named(self) -> dict[str, kinds.Kind]:
        return kinds.named(self.fleet.kinds)


class _FleetCommand(base.Command):
    """A command about a fleet.

    Exit codes: as each command says; 3 wrong command line or files, or no host
    could be read.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        self.add_arguments(parser)
        parser.add_argument(
            'sources', metavar='FILE|DIRECTORY', nargs='*',
            help='exports of hosts (nova-kvm-ext cpu export) or what virsh '
                 'domcapabilities prints, a file a host; of a directory all '
                 'files that end in .json or .xml')
        parser.add_argument(
            '--os-cloud', metavar='NAME',
            help='read the exports of this cloud of clouds.yaml instead, as '
                 'an administrator')
        parser.add_argument(
            '--hosts', metavar='PATTERN', action='append', default=[],
            help='only hosts whose names match, as az1-* (repeat for more)')
        # "NEW --cpu FILE DIRECTORY" too: argparse would take the optional
        # sources for none once it has seen NEW.
        parser.parse_args = (  # type: ignore[method-assign]
            parser.parse_intermixed_args)
        return parser

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Arguments of one command, before the sources."""

    def read(self, args: argparse.Namespace) -> _Known:
        """The fleet that is meant.

        :raises errors.InvalidRequest: none is named, or none of it is there
        """
        x86_map = reader.read_map()
        if bool(args.os_cloud) == bool(args.sources):
            raise errors.InvalidRequest(
                'Either files of hosts or --os-cloud must be named.',
                'See nova-kvm-ext cpu export for the files.')
        found = (self._read_cloud(args.os_cloud) if args.os_cloud else
                 self._read_files(args.sources, x86_map))
        for why in found.refused:
            print(f'warning: {why}', file=sys.stderr)
        hosts = [host for host in found.hosts if not args.hosts or any(
            fnmatch.fnmatchcase(host.host, pattern)
            for pattern in args.hosts)]
        if not hosts:
            raise errors.InvalidRequest(
                'No host matches --hosts.' if found.hosts else
                'No host could be read.',
                f'These were read: '
                f'{usable.some(host.host for host in found.hosts)}.'
                if found.hosts else
                'See the warnings above.')
        return _Known(fit.Fleet(kinds.group(hosts), x86_map),
                      getattr(found, 'aggregates', {}))

    @staticmethod
    def _read_files(sources: Sequence[str],
                    x86_map: cpu_map.CPUMap | None) -> files.Read:
        found = files.paths(sources)
        with base.progress('hosts', len(found)) as progress:
            return files.read(found, x86_map, progress)

    @staticmethod
    def _read_cloud(name: str) -> cloud.Read:
        with base.progress('hosts') as progress:
            return cloud.read(cloud.connect(name), progress)


class Kinds(_FleetCommand, lister.Lister):
    """List the kinds of host of a fleet.

    A kind is all hosts whose guests can have the same CPUs. The column varies
    has the facts in which hosts of one kind differ. A difference in microcode
    or kernel can become a difference between the CPUs of guests.

    Exit codes: 0 listed, 3 wrong command line or files.
    """

    COLUMNS = ('kind', 'hosts', 'level', 'libvirt', 'qemu', 'varies',
               'kernel', 'microcode', 'nested', 'vendor', 'names')
    ASIDE = COLUMNS[6:]

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], list[tuple[Any, ...]]]:
        rows = []
        for name, kind in self.read(parsed_args).named().items():
            versions = {of: kind.versions(of) for of in kinds.VARYING}
            rows.append((
                name, kind.count, kind.level,
                columns.Counts(versions['libvirt']),
                columns.Counts(versions['qemu']),
                columns.Names([of for of, found in versions.items()
                               if len(found) > 1]),
                *(columns.Counts(versions[of])
                  for of in ('kernel', 'microcode', 'nested')),
                kind.vendor, [host.host for host in kind.hosts]))
        return self.COLUMNS, rows


class Baseline(_FleetCommand, show.ShowOne):
    """Show the best CPU that all hosts of a fleet can give.

    The output has the lines for nova.conf. For hosts of one vendor this is a
    model with features added and removed, for hosts of several vendors a
    level. A level has no feature against CPU vulnerabilities; --mitigations
    adds those that all hosts have.

    Exit codes: 0 there is a baseline, 2 there is none, 3 wrong command line or
    files.
    """

    COLUMNS = ('hosts', 'kinds', 'cpu_model', 'level', 'nova_conf',
               'features', 'loses', 'gains', 'notes')

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            '--mitigations', action='store_true',
            help='add the features against CPU vulnerabilities that all '
                 'hosts have')

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], Sequence[Any]]:
        known = self.read(parsed_args)
        also = {each.name for each in (
            *vulnerabilities.INTEL, *vulnerabilities.AMD)}
        try:
            found = baseline.of(
                known.fleet, also if parsed_args.mitigations else ())
        except baseline.NothingInCommon as e:
            raise base.Finding(e.problem, e.remedy) from e
        names = {kind.digest: name for name, kind in known.named().items()}
        rows: dict[str, Any] = {
            'hosts': sum(kind.count for kind in known.fleet.kinds),
            'kinds': len(known.fleet.kinds),
            'cpu_model': found.model, 'level': found.level,
            'nova_conf': found.nova_conf(),
            'features': columns.Names(sorted(found.features)),
            'loses': columns.Lines([
                _loss(names, loss) for loss in found.losses]),
            'gains': columns.Lines([
                _gain(names, gain) for gain in found.gains]),
            'notes': columns.Lines([(note, note) for note in found.notes])}
        return tuple(rows), tuple(rows.values())


def _loss(names: Mapping[str, str], loss: baseline.Loss
          ) -> tuple[str, dict[str, Any]]:
    name = names[loss.kind.digest]
    said = usable.some(loss.features) if loss.features else 'nothing'
    level = f'; has {loss.level}' if loss.level else ''
    return (f'{name} ({loss.kind.count} hosts): {said}{level}',
            {'kind': name, 'hosts': loss.kind.count,
             'features': list(loss.features), 'level': loss.level})


def _gain(names: Mapping[str, str], gain: baseline.Gain
          ) -> tuple[str, dict[str, Any]]:
    name = names[gain.without.digest]
    level = f', so {gain.level}' if gain.level else ''
    return (f'without {name} ({gain.without.count} hosts): '
            f'{usable.some(gain.features)}{level}',
            {'without': name, 'hosts': gain.without.count,
             'features': list(gain.features), 'level': gain.level})


class Matrix(_FleetCommand, lister.Lister):
    """Show between which kinds of host guests can move.

    The guests have CPU mode host-model. Without --from there is one row for
    each kind: to how many other hosts its guests can move, and the guests of
    how many hosts it can run. With --from there is one row for each other
    kind. --page writes the whole matrix as an HTML page.

    Exit codes: 0 shown, 3 wrong command line or files.
    """

    COLUMNS = ('kind', 'hosts', 'to_hosts', 'not_to', 'unknown', 'from_hosts')
    _COLUMNS_FROM = ('kind', 'hosts', 'to', 'back', *_WHY)
    ASIDE = _WHY[:2]

    def column_names(self, args: argparse.Namespace) -> Sequence[str]:
        return self._COLUMNS_FROM if args.source else self.COLUMNS

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            '--from', metavar='KIND|HOST', dest='source',
            help='one kind, or the kind of one host, and why not')
        parser.add_argument(
            '--page', metavar='FILE',
            help='also write an HTML page that needs no network')

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], list[tuple[Any, ...]]]:
        known = self.read(parsed_args)
        if parsed_args.page:
            _write(parsed_args.page, page.render(
                known.fleet, known.aggregates))
        named = known.named()
        if parsed_args.source:
            return self._from(known, named, parsed_args.source)
        matrix = known.fleet.matrix()
        rows = []
        for at, (name, kind) in enumerate(named.items()):
            # To its own kind a guest can always move, to its own host not.
            others = kind.count - 1
            there = [answer.possible for answer in matrix[at]]
            back = [row[at].possible for row in matrix]
            rows.append((
                name, kind.count,
                others + self._hosts(known, at, there, True),
                self._hosts(known, at, there, False),
                self._hosts(known, at, there, None),
                others + self._hosts(known, at, back, True)))
        return self.COLUMNS, rows

    @staticmethod
    def _hosts(known: _Known, own: int, answers: Sequence[bool | None],
               wanted: bool | None) -> int:
        return sum(kind.count for at, (kind, answer) in enumerate(
            zip(known.fleet.kinds, answers)) if at != own and
            answer is wanted)

    @classmethod
    def _from(cls, known: _Known, named: Mapping[str, kinds.Kind], wanted: str
              ) -> tuple[Sequence[str], list[tuple[Any, ...]]]:
        source = named.get(wanted) or next(
            (kind for kind in named.values()
             if any(host.host == wanted for host in kind.hosts)), None)
        if source is None:
            raise errors.InvalidRequest(
                f'--from {errors.clean(wanted, 80)}: there is no such kind '
                f'or host.', f'The kinds are {usable.some(named)}.')
        rows = []
        for name, kind in named.items():
            there = known.fleet.takes(source, kind)
            back = known.fleet.takes(kind, source)
            rows.append((
                name, kind.count, _ANSWERS[there.possible],
                _ANSWERS[back.possible], *_said(there)))
        return cls._COLUMNS_FROM, rows


def _write(path: str, text: str) -> None:
    """The page, whole or not at all."""
    half = f'{path}.{os.getpid()}'
    try:
        with open(half, 'x', encoding='utf-8') as file:
            file.write(text)
        os.replace(half, path)
    except OSError as e:
        raise errors.InvalidRequest(
            f'--page {errors.clean(path, 200)} cannot be written: '
            f'{e.strerror}.', 'Name a file in a directory that you may '
                              'write to.') from e


class Admit(_FleetCommand, show.ShowOne):
    """Check whether a new kind of host may join a fleet.

    The output has the features that the fleet would lose. The new host may
    join if its guests can have the CPU of --cpu. Without --cpu they must be
    able to have the baseline of the fleet.

    Exit codes: 0 the host may join, 2 it may not, 3 not known, or wrong
    command line or files.
    """

    COLUMNS = ('may_join', 'reason', 'missing', 'unknown_names', 'level',
               'level_after', 'lost', 'guests_go_to_hosts',
               'guests_come_from_hosts')

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            'new', metavar='NEW', help='export of the new host')
        parser.add_argument(
            '--cpu', metavar='FILE',
            help='the CPU of the fleet\'s guests: the XML of a domain or a '
                 '<cpu> element')

    def run(self, parsed_args: argparse.Namespace) -> int:
        self._code = ExitCode.PASS
        return super().run(parsed_args) or int(self._code)

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], Sequence[Any]]:
        known = self.read(parsed_args)
        new = files.read([parsed_args.new], reader.read_map())
        if not new.hosts:
            raise errors.InvalidRequest(new.refused[0])
        kind, = kinds.group(new.hosts)
        # What a model means, the new host may be the only one to know.
        fleet = fit.Fleet((*known.fleet.kinds, kind), known.fleet.known)
        cpu = (_cpu(parsed_args.cpu) if parsed_args.cpu else
               baseline.of(known.fleet).cpu)
        found = admit.admit(kind, fit.Fleet(
            known.fleet.kinds, fleet.known), cpu)
        self._code = _CODES[found.answer.possible]
        rows = {
            'may_join': _ANSWERS[found.answer.possible],
            'reason': found.answer.reason,
            'missing': columns.Names(found.answer.missing),
            'unknown_names': columns.Names(found.answer.unknown),
            'level': found.level, 'level_after': found.level_after,
            'lost': columns.Names(found.lost),
            'guests_go_to_hosts': found.gives,
            'guests_come_from_hosts': found.takes}
        return tuple(rows), tuple(rows.values())


def _cpu(path: str) -> definition.CPU:
    """The CPU of a file; one that names no model is an error."""
    text = sys.stdin.buffer.read() if path == '-' else files.read_file(path)
    try:
        cpu = definition.CPU.parse(text, errors.clean(path, 200))
    except errors.HostError as e:
        raise errors.InvalidRequest(e.problem, e.remedy) from e
    if cpu.model is None:
        raise errors.InvalidRequest(
            f'{errors.clean(path, 200)} names no CPU '
            f'model{f" but the mode {cpu.mode}" if cpu.mode else ""}: what a '
            'guest then has depends on its host.',
            'Use the XML of the running domain (virsh dumpxml), where libvirt '
            'has written what the guest got.')
    return cpu


class Drain(_FleetCommand, lister.Lister):
    """Show how many hosts can run the CPU of each guest of a host.

    Guests that can go nowhere come first, with the features that other hosts
    lack. With --os-cloud the guests are those of the cloud, each with the
    exact CPU that the driver has saved. Otherwise name the XML of running
    domains (virsh dumpxml) with --guest.

    Exit codes: 0 each guest can go to some host, 2 a guest cannot, 3 not known
    for a guest, or wrong command line or files.
    """

    COLUMNS = ('guest', 'model', 'can_go', 'to_hosts', 'unknown', 'hosts',
               'keeping', 'reason')
    ASIDE = ('unknown', 'hosts')
    EMPTY = 'There is no guest.'

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            'host', metavar='HOST', help='the host to empty')
        parser.add_argument(
            '--guest', metavar='FILE', action='append', default=[],
            help='XML of a running domain, or a directory of such files '
                 '(repeat for more)')

    def run(self, parsed_args: argparse.Namespace) -> int:
        self._code = ExitCode.PASS
        return super().run(parsed_args) or int(self._code)

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], list[tuple[Any, ...]]]:
        if bool(parsed_args.guest) == bool(parsed_args.os_cloud):
            raise errors.InvalidRequest(
                'The guests are those of --os-cloud, or those of --guest.',
                'Name one of the two.')
        known = self.read(parsed_args)
        if parsed_args.os_cloud:
            with base.progress('guests') as progress:
                guests = cloud.guests(cloud.connect(parsed_args.os_cloud),
                                      parsed_args.host, progress)
        else:
            guests = tuple(_guest(path)
                           for path in files.paths(parsed_args.guest))
        found = drain.ways(guests, known.fleet, parsed_args.host)
        answers = [way.possible for way in found]
        self._code = _CODES[
            False if False in answers else
            None if None in answers else True]
        rows: list[tuple[Any, ...]] = [
            (way.guest.name,
             way.guest.cpu.model if way.guest.cpu else None,
             _ANSWERS[way.possible], way.takes, way.unknown,
             columns.Names(way.hosts), self._keeping(way),
             columns.Text(way.reason))
            for way in found]
        return self.COLUMNS, rows

    @staticmethod
    def _keeping(way: drain.Way) -> columns.Counts | columns.Shown:
        counts = columns.Counts(dict(way.keeping))
        if way.possible:
            # It keeps the guest from some hosts, which is of no matter.
            return columns.Shown(counts.machine_readable(), '')
        return counts


def _guest(path: str) -> drain.Guest:
    name = os.path.splitext(os.path.basename(path))[0]
    try:
        return drain.Guest(name, _cpu(path))
    except errors.InvalidRequest as e:
        return drain.Guest(name, None, e.problem)


class Fit(_FleetCommand, lister.Lister):
    """Show how many hosts of a fleet can run a CPU.

    CPU is a file with the XML of a running domain or a <cpu> element; - is
    standard input.

    Exit codes: 0 some host can, 2 no host can, 3 not known, or wrong command
    line or files.
    """

    COLUMNS = ('kind', 'hosts', 'possible', *_WHY)
    ASIDE = _WHY[:2]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument('cpu', metavar='CPU', help='file with the CPU')

    def run(self, parsed_args: argparse.Namespace) -> int:
        self._code = ExitCode.PASS
        return super().run(parsed_args) or int(self._code)

    def take_action(self, parsed_args: argparse.Namespace
                    ) -> tuple[Sequence[str], list[tuple[Any, ...]]]:
        known = self.read(parsed_args)
        reach = fit.reach(_cpu(parsed_args.cpu), known.fleet)
        numbers = {answer: reach.hosts(answer) for answer in _ANSWERS}
        self._code = _CODES[
            True if numbers[True] else None if numbers[None] else False]
        print('runs on {} hosts, not on {}, not known of {}'.format(
            *numbers.values()), file=sys.stderr)
        names = {kind.digest: name for name, kind in known.named().items()}
        return self.COLUMNS, [
            (names[kind.digest], kind.count, _ANSWERS[answer.possible],
             *_said(answer)) for kind, answer in reach.answers]
