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

"""The process that thaws guests when the command that froze them dies."""

import json
import os
import threading
import time
from typing import Any
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import ledger
from nova_kvm_ext.guest_agent import watchdog

ONE = 'c1c2c3c4-0000-4000-8000-000000000001'
TWO = 'c1c2c3c4-0000-4000-8000-000000000002'


class WatchdogTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.reading, self.writing = os.pipe()
        self.addCleanup(os.close, self.reading)
        self.useFixture(fixtures.MockPatchObject(watchdog, 'GRACE', 0.2))

    def tell(self, **message: Any) -> None:
        os.write(self.writing, json.dumps(message).encode() + b'\n')

    def test_death(self):
        self.tell(guest=ONE, seconds=60)
        self.tell(guest=TWO, seconds=60)
        os.close(self.writing)
        self.assertEqual([ONE, TWO], watchdog._listen(self.reading))

    def test_death_before_all(self):
        os.close(self.writing)
        self.assertEqual([], watchdog._listen(self.reading))

    def test_done(self):
        self.tell(guest=ONE, seconds=60)
        self.tell(done=True)
        os.close(self.writing)
        self.assertEqual([], watchdog._listen(self.reading))

    def test_a_message_in_pieces(self):
        text = json.dumps({'guest': ONE, 'seconds': 60}).encode() + b'\n'

        def write():
            for n in range(len(text)):
                os.write(self.writing, text[n:n + 1])
            os.close(self.writing)

        thread = threading.Thread(target=write)
        thread.start()
        self.assertEqual([ONE], watchdog._listen(self.reading))
        thread.join()

    def test_one_that_hangs(self):
        self.addCleanup(os.close, self.writing)
        started = time.monotonic()
        self.tell(guest=ONE, seconds=0.1)
        self.assertEqual([ONE], watchdog._listen(self.reading))
        self.assertGreaterEqual(time.monotonic() - started, 0.3)

    def test_thaw_and_ledger(self):
        found = ledger.Ledger(self.useFixture(fixtures.TempDir()).path, 'h')
        for fault, left in ((None, []), (errors.AgentFault.NO_GUEST, []),
                            (errors.AgentFault.NO_ANSWER, [ONE])):
            found.enter(ONE, 'x').release()
            error = None if fault is None else errors.AgentError(
                'x', fault=fault,
                left_frozen=fault is errors.AgentFault.NO_ANSWER)
            with mock.patch.object(watchdog.client.Agent, 'thaw',
                                   side_effect=error):
                said = watchdog._thaw(mock.Mock(), found, ONE)
            self.assertEqual(bool(left), bool(said))
            self.assertEqual(left, found.left_behind())

    def test_libvirt_that_cannot_be_reached(self):
        """Nothing is frozen then."""
        self.assertRaises(
            errors.HostError,
            watchdog.Watchdog('qemu+unix:///system?socket=/nowhere', '/x',
                              'h').__enter__)


class RealProcessTestCase(base.BaseTestCase):
    """With libvirt's own test driver, whose guests have no agent."""

    URI = 'test:///default'

    def setUp(self):
        super().setUp()
        self.path = self.useFixture(fixtures.TempDir()).path

    def test_done(self):
        with watchdog.Watchdog(self.URI, self.path, 'h') as guard:
            guard.watch(ONE, 60)
            guard.done()
        self.assertEqual(0, guard._process.returncode)

    def test_end_without_a_word(self):
        found = ledger.Ledger(self.path, 'h')
        # There is no such guest, so libvirt says no at once.
        uuid = ONE
        found.enter(uuid, 'x').release()
        with watchdog.Watchdog(self.URI, self.path, 'h') as guard:
            guard.watch(uuid, 60)
        # It has tried.
        self.assertEqual(1, guard._process.returncode)
        self.assertEqual([uuid], found.left_behind())

    def test_watchdog_that_is_killed(self):
        with watchdog.Watchdog(self.URI, self.path, 'h') as guard:
            guard._process.kill()
            guard._process.wait()
            self.assertRaises(errors.HostError, guard.watch, ONE, 60)
