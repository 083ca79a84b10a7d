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

"""What is done once for each guest that runs when the service starts.

With hundreds of guests that takes seconds, most of them in Nova's database.
The start of the service has a share of them; the rest is done in Nova's
periodic work, the first round of which comes before the service takes
requests.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
import time

from nova_kvm_ext import log

LOG = log.getLogger(__name__)

SHARE = 0.1
"""Of the time that Nova's own start has taken."""

ROUND = 1.0
"""Seconds of one round of the periodic work."""


class Errands:
    """Things to do, an instant each, none of which raises."""

    def __init__(self) -> None:
        self._left: collections.deque[Callable[[], None]] = (
            collections.deque())

    def begin(self, errands: Iterable[Callable[[], None]],
              novas: float) -> None:
        """Do what there is time for.

        :param novas: seconds that Nova's own start has taken
        """
        self._left = collections.deque(errands)
        self._go_on(novas * SHARE)

    def go_on(self) -> None:
        """One round."""
        if self._left:
            self._go_on(ROUND)

    def _go_on(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._left:
            self._left.popleft()()
            if time.monotonic() >= deadline:
                break
        if self._left:
            LOG.info('%d things that are done once for each running guest '
                     'are left to the next round of the periodic work.',
                     len(self._left))
