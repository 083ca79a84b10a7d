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

import os
import signal
import time
from typing import Any
from unittest import mock

import fixtures

from nova_kvm_ext.cmd import agent
from nova_kvm_ext.cmd import freeze
from nova_kvm_ext.guest_agent import ledger
from nova_kvm_ext.tests.unit.cmd import test_agent
from nova_kvm_ext.tests.unit.guest_agent import test_client


class FreezeTestCase(test_agent.AgentTestCase):

    def frozen(self) -> bool:
        """By what the guest was asked last."""
        asked = [name for name in self.domains[0].asked
                 if name != 'guest-fsfreeze-status']
        return asked[-1:] == ['guest-fsfreeze-freeze']

    def test_stays_frozen_and_says_so(self):
        code, found = self.json(freeze.Freeze, 'instance-00000001')
        self.assertEqual((0, 2), (code, found['frozen']))
        self.assertTrue(self.frozen())
        how = 'nova-kvm-ext agent thaw instance-00000001'
        self.assertEqual(how, found['thaw_with'])
        self.assertIn(f'stays frozen until: {how}', self.said)

    def test_nothing_to_freeze(self):
        self.domains[0].replies['guest-fsfreeze-freeze'] = 0
        self.assertEqual(2,
                         self.run_command(freeze.Freeze, 'instance-00000001'))
        self.assertIn('no filesystem that can be frozen', self.said)
        self.assertFalse(self.frozen())

    def test_failed(self):
        self.dead('guest-fsfreeze-freeze')
        self.assertEqual(2,
                         self.run_command(freeze.Freeze, 'instance-00000001'))
        self.assertFalse(self.frozen())
        self.assertEqual('', self.stdout.getvalue())

    def interrupt(self, number: int) -> Any:
        before = signal.getsignal(number)
        self.addCleanup(lambda: self.assertEqual(before,
                                                 signal.getsignal(number)))

        def reply() -> int:
            os.kill(os.getpid(), number)
            # The main thread hears it while this one answers.
            time.sleep(0.2)
            return 2

        return reply

    def test_interrupted(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self.domains[0].replies[
                'guest-fsfreeze-freeze'] = self.interrupt(number)
            code, found = self.json(freeze.Freeze, 'instance-00000001')
            self.assertEqual((128 + number, 0, ''),
                             (code, found['frozen'], found['thaw_with']))
            self.assertFalse(self.frozen())
            self.assertIn('interrupted: ', self.said)
            self.assertIn('The guest is thawed.', self.said)

    def test_interrupted_while_it_is_printed(self):
        interrupt = self.interrupt(signal.SIGINT)
        with fixtures.MonkeyPatch(
                'nova_kvm_ext.cmd.freeze.Freeze.produce_output',
                lambda *args: interrupt()):
            code = self.run_command(freeze.Freeze, 'instance-00000001')
        self.assertEqual(130, code)
        self.assertFalse(self.frozen())


class FakeWatchdog:
    """Remembers what it was told."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self.told: list[Any] = []

    def __enter__(self) -> 'FakeWatchdog':
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.told.append('end')

    def watch(self, uuid: str, seconds: float) -> None:
        self.told.append(uuid)

    def done(self) -> None:
        self.told.append('done')


class SeveralGuestsTestCase(test_agent.AgentTestCase):

    NAMES = ['instance-00000001', 'instance-00000002', 'instance-00000003']

    def setUp(self):
        super().setUp()
        self.domains = [test_agent.FakeDomain(n) for n in (1, 2, 3)]
        self.order: list[tuple[str, str]] = []
        # How many file systems, where it is not 2.
        self.numbers: dict[tuple[str, str], int] = {}
        for domain in self.domains:
            for name in ('guest-fsfreeze-freeze', 'guest-fsfreeze-thaw'):
                domain.replies[name] = self.reply(domain, name)
        self.watchdogs: list[FakeWatchdog] = []
        self.useFixture(fixtures.MonkeyPatch(
            'nova_kvm_ext.guest_agent.watchdog.Watchdog', self.watchdog))

    def watchdog(self, *arguments: str) -> FakeWatchdog:
        self.watchdogs.append(FakeWatchdog(*arguments))
        return self.watchdogs[-1]

    def reply(self, domain: test_agent.FakeDomain, name: str) -> Any:
        def reply() -> int:
            self.order.append((name.rpartition('-')[2], domain.name()))
            domain.replies['guest-fsfreeze-status'] = (
                'frozen' if name.endswith('freeze') else 'thawed')
            return self.numbers.get((name, domain.name()), 2)

        return reply

    def done(self, what: str) -> list[str]:
        return [name for command, name in self.order if command == what]

    def test_in_order_and_stay_frozen(self):
        order = [self.NAMES[n] for n in (1, 0, 2)]
        code, found = self.json(freeze.Freeze, *order)
        self.assertEqual(0, code)
        self.assertEqual(order, [row['name'] for row in found])
        self.assertEqual(order, self.done('freeze'))
        self.assertEqual([], self.done('thaw'))
        self.assertIn('3 guests stay frozen until: nova-kvm-ext agent thaw '
                      + ' '.join(order), self.said)
        self.assertEqual([], self.watchdogs)
        code, found = self.json(freeze.Thaw, *order)
        self.assertEqual((0, order), (code, [row['name'] for row in found]))
        self.assertEqual(order, self.done('thaw'))

    def test_named_twice(self):
        self.assertEqual(0, self.run_command(
            freeze.Freeze, self.NAMES[0], self.domains[0].UUIDString()))
        self.assertEqual(self.NAMES[:1], self.done('freeze'))

    def test_one_that_cannot_be_frozen(self):
        """All or none."""
        for limit in ((), ('--for', '60')):
            self.order.clear()
            self.domains[2].replies['guest-fsfreeze-freeze'] = (
                test_agent.libvirt_error(
                    1, "internal error: unable to execute QEMU agent command "
                    "'guest-fsfreeze-freeze': no"))
            self.assertEqual(2, self.run_command(
                freeze.Freeze, *self.NAMES, *limit))
            self.assertEqual(self.NAMES[:2], self.done('freeze'))
            self.assertEqual(self.NAMES[:2],
                             self.done('thaw')[-2:])
            self.assertIn('instance-00000003: ', self.said)
            self.assertEqual([], self.ledger.left_behind())

    def test_one_that_another_has_frozen(self):
        """It is not thawed, by nobody here."""
        self.domains[1].replies['guest-fsfreeze-status'] = 'frozen'
        self.assertEqual(2, self.run_command(
            freeze.Freeze, *self.NAMES, '--for', '60'))
        self.assertEqual([self.NAMES[0]], self.done('thaw'))
        self.assertEqual('done', self.watchdogs[0].told[-2])

    def test_for(self):
        def backup(*args: Any) -> None:
            self.assertEqual(self.NAMES, self.done('freeze'))
            self.assertEqual([], self.done('thaw'))
            uuids = [domain.UUIDString() for domain in self.domains]
            self.assertEqual(uuids, self.ledger.left_behind())
            for uuid_ in uuids:
                self.assertIn('agent freeze --for 1',
                              self.ledger.holder(uuid_) or '')

        with mock.patch.object(freeze.Freeze, '_wait', side_effect=backup):
            code, found = self.json(freeze.Freeze, *self.NAMES, '--for', '1')
        self.assertEqual(0, code)
        self.assertEqual(self.NAMES, self.done('thaw'))
        self.assertEqual([(True, True)] * 3, [
            (row['frozen_until_the_end'], row['thawed']) for row in found])
        self.assertEqual([], self.ledger.left_behind())
        watchdog, = self.watchdogs
        self.assertEqual([*(d.UUIDString() for d in self.domains),
                          'done', 'end'], watchdog.told)

    def test_for_waits(self):
        started = time.monotonic()
        code, found = self.json(freeze.Freeze, self.NAMES[0], '--for', '1')
        self.assertEqual(0, code)
        self.assertGreaterEqual(time.monotonic() - started, 1)
        self.assertGreaterEqual(found['frozen_seconds'], 1)

    def test_for_and_interrupted(self):
        def interrupt(*args: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)

        with mock.patch.object(freeze.Freeze, '_wait', side_effect=interrupt):
            code = self.run_command(freeze.Freeze, *self.NAMES, '--for', '60')
        self.assertEqual(128 + signal.SIGTERM, code)
        self.assertEqual(self.NAMES, self.done('thaw'))

    def test_thawed_before_the_end(self):
        def thaw(*args: Any) -> None:
            self.domains[1].replies['guest-fsfreeze-status'] = 'thawed'

        with mock.patch.object(freeze.Freeze, '_wait', side_effect=thaw):
            code, found = self.json(freeze.Freeze, *self.NAMES, '--for', '1')
        self.assertEqual(2, code)
        self.assertEqual([True, False, True], [
            row['frozen_until_the_end'] for row in found])

    def test_some_of_it_is_thawed_before_the_end(self):
        """The agent thaws fewer file systems than it froze."""
        def thaw(*args: Any) -> None:
            self.numbers['guest-fsfreeze-thaw', self.NAMES[1]] = 1

        with mock.patch.object(freeze.Freeze, '_wait', side_effect=thaw):
            code, found = self.json(freeze.Freeze, *self.NAMES, '--for', '1')
        self.assertEqual(2, code)
        self.assertEqual([True, False, True], [
            row['frozen_until_the_end'] for row in found])

    def test_one_that_cannot_be_thawed(self):
        """The others are thawed; the watchdog goes on with the hung guest."""
        def hang(*args: Any) -> None:
            self.domains[0].replies['guest-fsfreeze-thaw'] = (
                test_agent.libvirt_error(*test_client.TIMED_OUT))

        self.useFixture(fixtures.MockPatchObject(
            agent.client, 'FREEZE_TIMEOUT', 0))
        with mock.patch.object(freeze.Freeze, '_wait', side_effect=hang):
            code, found = self.json(freeze.Freeze, *self.NAMES, '--for', '1')
        self.assertEqual(2, code)
        self.assertEqual(self.NAMES[1:], self.done('thaw'))
        self.assertEqual([False, True, True],
                         [row['thawed'] for row in found])
        self.assertNotIn('done', self.watchdogs[0].told)
        # For nova-compute, should the watchdog not succeed either.
        self.assertEqual([self.domains[0].UUIDString()],
                         self.ledger.left_behind())
        self.assertIsNone(self.ledger.holder(self.domains[0].UUIDString()))

    def test_one_that_cannot_be_thawed_by_hand(self):
        self.domains[0].replies['guest-fsfreeze-thaw'] = (
            test_agent.libvirt_error(*test_client.TIMED_OUT))
        code, found = self.json(freeze.Thaw, *self.NAMES, '--timeout', '1')
        self.assertEqual(2, code)
        self.assertEqual([None, 2, 2], [row['thawed'] for row in found])

    def test_not_written_down(self):
        """nova-compute may have its files elsewhere."""
        with mock.patch.object(ledger.os, 'makedirs',
                               side_effect=PermissionError(13, 'no')):
            code = self.run_command(freeze.Freeze, self.NAMES[0], '--for', '1')
        self.assertEqual(0, code)
        self.assertIn('is not recorded', self.said)

    def test_formats(self):
        self.assertEqual(3, self.run_command(
            freeze.Freeze, *self.NAMES, '-f', 'shell'))
        self.assertEqual([], self.order)
        self.assertEqual(0, self.run_command(
            freeze.Freeze, self.NAMES[0], '-f', 'shell'))
        self.assertIn('frozen="2"', self.stdout.getvalue())
