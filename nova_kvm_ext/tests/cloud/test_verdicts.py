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


"""Live migrations side by side through Nova, and whether verdicts are right.

Guests of each kind move at the same time, there and back again, each with the
policy of its own flavor: idle, writing slowly, writing faster than the link,
and writing until half way. What is right is what then happens. A guest that
stops writing, or is acted upon, would not have arrived before.

NOVA_KVM_EXT_CLOUD_MIGRATIONS is the number of migrations (4), rounded up to
whole rounds. From 20 on there are two guests of each kind: eight migrations
take some two minutes.
"""

import collections
import dataclasses
import os
import time
from typing import Any

from testtools import content

from nova_kvm_ext.migration import verdict
from nova_kvm_ext.tests.cloud import told
from nova_kvm_ext.tests.cloud import writers

MIGRATIONS = int(os.environ.get('NOVA_KVM_EXT_CLOUD_MIGRATIONS', '4'))

_POLICIES = {
    'idle': ('abort', 'abort'),
    'slow': ('abort', 'pause'),
    'fast': ('abort', 'pause'),
    'stops': ('wait', 'wait'),
}
"""Policies of the guests of each kind: where verdicts are right, none is acted
upon but those that are fast."""

_SCRIPTS = {'idle': writers.IDLE, 'slow': writers.SLOW, 'fast': writers.FAST,
            'stops': writers.FAST}

_OF_A_KIND = 1 if MIGRATIONS < 20 else 2

_HALF_WAY = 20
"""Seconds that a guest writes on after its verdict, in which nothing is
done."""

_PATIENCE = 240
"""Seconds after which a guest stops writing whatever was said."""

_HARMED = 0.1
"""Part of the migrations whose guest the emulation may harm."""


@dataclasses.dataclass
class Guest:
    """A server.

    :ivar writes: whether it writes faster than the link
    """

    server: Any
    kind: str
    policy: str
    writes: bool = False


@dataclasses.dataclass
class Move:
    """A live migration of one guest.

    :ivar judged: monotonic time at which it was said that it will not converge
    :ivar stopped: whether the guest was told to stop writing
    :ivar status: Nova's, once it has ended
    """

    guest: Guest
    source: str
    destination: str
    said: told.Told = told.Told()
    judged: float | None = None
    stopped: bool = False
    status: str = ''

    @property
    def stalled(self) -> bool:
        """Whether the guest would not have arrived as it was."""
        arrived = self.status == 'completed' and not (
            self.said.acted or self.stopped)
        return self.guest.kind in ('fast', 'stops') and not arrived

    @property
    def result(self) -> str:
        outcome = self.said.outcome
        if outcome is None and not self.stalled:
            # One that arrives before the third iteration needs no verdict.
            return 'right'
        if outcome in (None, verdict.Outcome.UNKNOWN):
            return 'not known'
        return 'right' if self.stalled == (
            outcome is verdict.Outcome.STALLS) else 'WRONG'

    def __str__(self) -> str:
        said = ', '.join(f'{outcome.value} ({iteration})'
                         for iteration, outcome in self.said.verdicts)
        return (f'{self.result}: {self.guest.kind}, {self.guest.policy}: '
                f'{said or "nothing said"}; {self.said.acted or "not touched"}'
                f'; {self.status} {self.said.completed}')


class VerdictsTestCase(writers.Writing):

    def setUp(self):
        super().setUp()
        self.options(allowed='wait,abort,pause', at_once=8)
        self.flavors = {
            policy: self.make_flavor(
                extra_specs={'kvm_ext:migration_stalled': policy})
            for policy in ('wait', 'abort', 'pause')}

    def start(self, wanted):
        """Guests of these kinds with these policies."""
        guests = [Guest(self.ask_for(host=self.first,
                                     flavor=self.flavors[policy]),
                        kind, policy) for kind, policy in wanted]
        for guest in guests:
            self.wait_for_status(guest.server, 'ACTIVE')
            self.begin(guest.server)
            if guest.kind == 'slow':
                self.write(guest.server, _SCRIPTS['slow'])
        return guests

    def move_all(self, guests):
        """Move guests to the other host, all at once."""
        for guest in guests:
            if guest.kind in ('fast', 'stops') and not guest.writes:
                self.write(guest.server, _SCRIPTS[guest.kind])
                guest.writes = True
        logs = {host: self.log_since(host)
                for host in (self.first, self.second)}
        moves = []
        for guest in guests:
            source = self.host_of(guest.server)
            moves.append(Move(guest, source, (
                self.second if source == self.first else self.first)))
        for move in moves:
            self.cloud.compute.live_migrate_server(
                move.guest.server, host=move.destination,
                block_migration='auto')
        began = time.monotonic()
        while waiting := [move for move in moves if not move.status]:
            read = {host: log() for host, log in logs.items()}
            for move in waiting:
                self.follow(move, read[move.source], began)
            time.sleep(1)
        # The line of the end may come after Nova's record of it.
        for move in moves:
            if move.status == 'completed':
                self.wait('line about what the migration took', lambda: (
                    told.Told.read(logs[move.source](), move.guest.server.id)
                ).completed)
            move.said = told.Told.read(
                logs[move.source](), move.guest.server.id)
        return moves

    def follow(self, move, log, began):
        """Look at a migration that is under way."""
        guest = move.guest
        now = time.monotonic()
        if now > began + 2 * _PATIENCE:
            self.fail(f'The migration does not end: {move}')
        move.said = told.Told.read(log, guest.server.id)
        if move.judged is None and any(
                outcome is verdict.Outcome.STALLS
                for _, outcome in move.said.verdicts):
            move.judged = now
        half_way = (guest.kind == 'stops' and move.judged is not None and
                    now > move.judged + _HALF_WAY)
        move.status = self.ended(guest.server) or ''
        if guest.writes and not (move.status or move.said.acted) and (
                half_way or now > began + _PATIENCE):
            self.stop_writing(guest.server)
            guest.writes, move.stopped = False, True

    def check(self, move):
        """What became of a guest that was moved, or was not."""
        aborted = (move.guest.policy == 'abort' and
                   move.said.acted.startswith('it is aborted'))
        if aborted:
            self.assertIn(move.status, ('cancelled', 'failed'), str(move))
        else:
            self.assertEqual('completed', move.status, str(move))
        self.assert_lives(
            move.guest.server, move.source if aborted else move.destination)

    def test_side_by_side(self):
        guests = self.start(
            (kind, policies[number])
            for number in range(_OF_A_KIND)
            for kind, policies in _POLICIES.items())
        lines: list[str] = []
        harmed: list[str] = []
        touched: list[str] = []
        counts: collections.Counter[tuple[str, str]] = collections.Counter()
        while counts.total() < MIGRATIONS:
            for move in self.move_all(guests):
                lines.append(str(move))
                counts[move.guest.kind, move.result] += 1
                if move.said.acted and move.guest.kind != 'fast':
                    touched.append(lines[-1])
                if move.guest.kind == 'fast' and move.result == 'right':
                    # One way or the other, by its policy.
                    self.assertIn({
                        'abort': 'it is aborted',
                        'pause': 'the guest is paused until it has moved',
                    }[move.guest.policy], move.said.acted, lines[-1])
                try:
                    self.check(move)
                except writers.Harmed as e:
                    harmed.append(f'{e}: {lines[-1]}')
                    guests.remove(move.guest)
                    self.remove(move.guest.server)
                    guests += self.start(
                        [(move.guest.kind, move.guest.policy)])
                self.addDetail('figures', content.text_content('\n'.join((
                    *(f'{" ".join(key)}: {number}'
                      for key, number in sorted(counts.items())),
                    *(f'harmed by the migration: {line}'
                      for line in harmed)))))
                self.addDetail('moves', content.text_content(
                    '\n'.join(lines)))
            self.assert_sound()
        results = collections.Counter(
            result for _, result in counts.elements())
        self.assertEqual([], touched)
        self.assertEqual(
            [], [line for line in lines if line.startswith('WRONG')])
        # Of a few on a busy host there may be one that nobody could tell of.
        self.assertGreaterEqual(
            results['right'], (0.95 if counts.total() >= 100 else 0.5) *
            counts.total(), '\n'.join(lines))
        self.assertLessEqual(len(harmed), max(1, counts.total() * _HARMED))
