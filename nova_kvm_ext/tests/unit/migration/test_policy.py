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


"""Whose word counts about a migration that will not converge, and when."""

from typing import Any

from oslotest import base

from nova_kvm_ext.migration import policy
from nova_kvm_ext.migration import verdict
from nova_kvm_ext import request

ALLOWED = ('wait', 'post-copy', 'pause')


class PolicyTestCase(base.BaseTestCase):

    def decide(self, flavor: str | None = None, image: str | None = None,
               configured: str = 'wait', allowed: tuple[str, ...] = ALLOWED
               ) -> policy.Choice:
        return policy.decide(request.GuestRequest(
            {} if flavor is None else {policy.NAME: flavor},
            {} if image is None else {policy.NAME: image}),
            configured, allowed)

    def test_nova_conf(self):
        for configured in policy.POLICIES:
            found = self.decide(configured=configured, allowed=())
            self.assertEqual(
                (configured, '[kvm_ext] migration_stalled = ' + configured,
                 ''), (found.policy, found.reason, found.ignored))

    def test_flavor_and_image(self):
        for wanted in ALLOWED:
            found = self.decide(flavor=wanted, configured='abort')
            self.assertEqual(wanted, found.policy)
            self.assertIn('flavor extra spec kvm_ext:migration_stalled',
                          found.reason)
            found = self.decide(image=f' {wanted.upper()} ')
            self.assertEqual(wanted, found.policy)
        self.assertEqual('pause', self.decide('pause', 'Pause').policy)

    def test_bounds(self):
        both: list[dict[str, Any]] = [{'flavor': 'abort'}, {'image': 'abort'}]
        for asked in both:
            found = self.decide(**asked)
            self.assertEqual('wait', found.policy)
            self.assertIn('abort is not allowed here ([kvm_ext] '
                          'migration_stalled_allowed = wait, post-copy, '
                          'pause)', found.ignored)
            self.assertEqual('', self.decide(
                **asked, configured='abort').ignored)
            self.assertEqual('abort', self.decide(
                **asked, allowed=('abort',)).policy)
        self.assertIn('= nothing)', self.decide('pause', allowed=()).ignored)

    def test_nonsense_refuses_nothing(self):
        for value in ('', 'postcopy', 'yes', '\x1b[2J' * 900, 'wait;abort'):
            found = self.decide(image=value, configured='pause')
            self.assertEqual('pause', found.policy)
            self.assertIn('is none of wait, post-copy, pause, abort',
                          found.ignored)
            self.assertTrue(found.ignored.isprintable())
            self.assertLess(len(found.ignored), 300)

    def test_two_that_contradict_each_other(self):
        """The operator's flavor counts, whatever a tenant's image says."""
        for image in ('post-copy', 'abort', 'nonsense', ''):
            found = self.decide('pause', image)
            self.assertEqual('pause', found.policy)
            self.assertIn('flavor', found.reason)
            self.assertIn('contradict each other', found.ignored)
        # Bounds are those of any flavor.
        found = self.decide('abort', 'pause')
        self.assertEqual('wait', found.policy)
        self.assertIn('abort is not allowed here', found.ignored)


class PatienceTestCase(base.BaseTestCase):

    def after(self, *verdicts: tuple[int, str], seconds: float = 10) -> bool:
        """Whether something is done after these.

        :param seconds: that an iteration takes
        """
        patience = policy.Patience()
        for iteration, outcome in verdicts:
            patience = patience.after(verdict.Verdict(
                verdict.Outcome[outcome], iteration), iteration * seconds)
        return patience.at_an_end

    def test_two_iterations_in_a_row(self):
        self.assertTrue(self.after((3, 'STALLS'), (4, 'STALLS')))
        self.assertTrue(self.after((2, 'STALLS'), (3, 'STALLS')))
        self.assertTrue(self.after((3, 'STALLS'), (7, 'STALLS')))
        self.assertFalse(self.after((3, 'STALLS'), (3, 'STALLS')))
        self.assertFalse(self.after((1, 'STALLS'), (2, 'STALLS')))
        self.assertFalse(self.after((3, 'STALLS'), (4, 'UNKNOWN'),
                                    (5, 'STALLS')))
        self.assertFalse(self.after((3, 'STALLS'), (4, 'STALLS'),
                                    (5, 'CONVERGES')))
        self.assertFalse(self.after((3, 'CONVERGES'), (4, 'CONVERGES')))
        self.assertFalse(self.after())

    def test_short_iterations(self):
        """What is seen of them is chance: ten seconds of them must agree."""
        stalls = [(number, 'STALLS') for number in range(3, 40)]
        self.assertFalse(self.after(*stalls[:10], seconds=1))
        self.assertTrue(self.after(*stalls[:11], seconds=1))
        self.assertFalse(self.after(*stalls, seconds=0.25))
        # They must be in a row.
        self.assertFalse(self.after(
            *stalls[:6], (9, 'CONVERGES'), *stalls[7:12], seconds=1))
