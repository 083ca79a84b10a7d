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

"""Live migrations through Nova that would not end, and what is done then.

Each policy is seen to act, and the guest lives on afterwards with what it had
in its memory. test_verdicts has those with which nothing is done.
"""

from collections.abc import Callable
import functools
import pathlib
from typing import Any

from testtools import content

from nova_kvm_ext.tests.cloud import writers

_USERFAULTFD = pathlib.Path('/proc/sys/vm/unprivileged_userfaultfd')

_GUESTS = 3
"""How many guests a check takes at most."""


def _with_guests(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """A check that takes another guest for one that the emulation harmed."""
    @functools.wraps(check)
    def checked(self: Any) -> None:
        harmed: list[str] = []
        while len(harmed) < _GUESTS:
            try:
                return check(self)
            except writers.Harmed as e:
                harmed.append(str(e))
                self.addDetail('figures', content.text_content(
                    f'harmed by a migration: {", ".join(harmed)}'))
        self.fail(f'{_GUESTS} guests were harmed by their migrations')
    return checked


class HostMigrationTestCase(writers.Writing):

    def assert_unharmed(self, server, host):
        self.assert_lives(server, host)
        self.assert_sound()

    def assert_events(self, server, *names):
        """The action's events that an owner can see have the verdicts."""
        for name in names:
            self.assertIn(f'kvm_ext_migration_{name}',
                          self.event_names(server))

    def event_names(self, server):
        actions = self.cloud.compute.server_actions(server)
        return {event['event'] for action in actions
                if action.action == 'live-migration'
                for event in self.cloud.compute.get_server_action(
                    action.request_id, server).events}

    @_with_guests
    def test_abort(self):
        self.options('abort')
        log = self.log_since(self.first)
        server = self.writer(writers.FAST)
        self.assertIn(self.migrate(server, self.second),
                      ('cancelled', 'failed'))
        self.assertIn('it is aborted', log())
        self.assert_events(server, 'will_not_converge')
        self.assert_unharmed(server, self.first)
        # Nova's manager would have had both in error by now.
        self.wait('end of the abort', lambda: (
            'Live migration aborted: the guest stays on this host' in log()))
        self.assertIn(self.ended(server), ('cancelled', 'failed'))
        self.wait_for_status(server, 'ACTIVE')
        self.assertNotIn('Error monitoring migration', log())

    @_with_guests
    def test_pause(self):
        self.options('pause')
        log = self.log_since(self.first)
        server = self.writer(writers.FAST)
        self.assertEqual('completed', self.migrate(server, self.second))
        self.assertIn('the guest is paused until it has moved', log())
        self.assert_unharmed(server, self.second)

    @_with_guests
    def test_post_copy(self):
        self.addCleanup(_USERFAULTFD.write_text, _USERFAULTFD.read_text())
        _USERFAULTFD.write_text('1')
        self.options('post-copy', post_copy=True)
        log = self.log_since(self.first)
        server = self.writer(writers.FAST)
        self.assertEqual('completed', self.migrate(server, self.second))
        self.assertIn('it is switched to post-copy', log())
        self.assert_unharmed(server, self.second)
