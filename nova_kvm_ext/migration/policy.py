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


"""The action for a live migration that will not converge, and who set it.

The operator sets it in nova.conf; a flavor or an image sets it for one guest,
as far as the operator allows. Nothing here is refused: a guest that asks for
an action that is not allowed migrates like any other guest, and the log has
the reason. Pure.
"""

import dataclasses

from nova_kvm_ext import errors
from nova_kvm_ext.migration import verdict
from nova_kvm_ext import request

NAME = 'migration_stalled'

WAIT = 'wait'
POST_COPY = 'post-copy'
PAUSE = 'pause'
ABORT = 'abort'
POLICIES = (WAIT, POST_COPY, PAUSE, ABORT)

EARLIEST = 3
"""The first iteration in which anything is done."""

CONFIRMED_SECONDS = 10
"""Seconds for which iterations in a row must say that the migration will not
converge, from the first that says so to the last: what is done then cannot be
taken back. So at least two must say so. Iterations may last some tenths of a
second, in which a guest writes more or less by chance."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is done about one guest's migration.

    :ivar policy: one of POLICIES
    :ivar reason: who says so
    :ivar ignored: what was asked for, and why not; '' for nothing
    """

    policy: str
    reason: str
    ignored: str = ''


def decide(wishes: request.GuestRequest, configured: str,
           allowed: tuple[str, ...]) -> Choice:
    """Choose for a guest.

    :param configured: ``[kvm_ext] migration_stalled``
    :param allowed: ``[kvm_ext] migration_stalled_allowed``
    """
    ours = by_configuration(configured)
    ignored = ''
    try:
        wish = wishes.wish(NAME)
    except errors.InvalidRequest as e:
        # A tenant's image does not undo what the operator's flavor says.
        ignored = e.problem.rstrip('.')
        wish = dataclasses.replace(wishes, image={}).wish(NAME)
    if wish is None:
        return ours
    wanted = wish.value.strip().lower()
    if wanted not in POLICIES:
        return dataclasses.replace(
            ours, ignored=f'{wish.said} is none of {", ".join(POLICIES)}')
    if wanted != configured and wanted not in allowed:
        return dataclasses.replace(
            ours, ignored=f'{wish.said} is not allowed here ([kvm_ext] '
            f'{NAME}_allowed = {", ".join(allowed) or "nothing"})')
    return Choice(wanted, wish.said, ignored)


def by_configuration(configured: str, ignored: str = '') -> Choice:
    """The choice of nova.conf.

    :param ignored: what was not heard, and why
    """
    return Choice(configured, f'[kvm_ext] {NAME} = {configured}', ignored)


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a migration has been found not to converge.

    :ivar iteration: the last one that was judged
    :ivar first: seconds since the migration began, at the first of the
        iterations in a row that say so; None where the last one does not
    :ivar last: the same, at the last of them
    """

    iteration: int = 0
    first: float | None = None
    last: float = 0

    def after(self, found: verdict.Verdict, time: float) -> 'Patience':
        """With one more verdict; those of one iteration count once.

        :param time: seconds since the migration began
        """
        if found.outcome is not verdict.Outcome.STALLS:
            return Patience(found.iteration)
        if self.first is None:
            return Patience(found.iteration, time, time)
        if found.iteration <= self.iteration:
            return self
        return Patience(found.iteration, self.first, time)

    @property
    def at_an_end(self) -> bool:
        """Whether something is to be done now."""
        return (self.iteration >= EARLIEST and self.first is not None and
                self.last >= self.first + CONFIRMED_SECONDS)
