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

"""Work that is done once for each guest that runs when the service starts.

With hundreds of guests this takes seconds, most of them in Nova's database. So
the start of the driver leaves the work to Nova's periodic work, whose first
round comes before the service takes requests. A round takes one second; the
next round continues. An operation that cannot wait does the work itself: a
hard reboot keeps the CPU of a guest that no round has reached yet.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import threading
import time

from nova_kvm_ext import errors
from nova_kvm_ext import log

LOG = log.getLogger(__name__)

ROUND = 1.0
"""Seconds of one round of the periodic work."""

Errand = Callable[[], None]


class Errands:
    """Things to do, an instant each."""

    def __init__(self) -> None:
        self._kinds: collections.deque[Callable[[], Iterable[Errand]]] = (
            collections.deque())
        self._left: Iterator[Errand] | None = None
        # Those that failed, for the rounds after all others.
        self._failed: list[Errand] = []
        self._going_on = threading.Lock()
        # Whether the operator was told that more rounds follow, and that the
        # last one failed.
        self._said_more = False
        self._said_failed = False

    def begin(self, *kinds: Callable[[], Iterable[Errand]]) -> None:
        """Remember what is to be done.

        :param kinds: each looks which guests need something, and gives a
            thing to do for each. It is called again after an error of its
            own, so that it must leave out what has been done
        """
        self._kinds = collections.deque(kinds)
        self._left = None
        self._failed = []
        self._said_more = self._said_failed = False

    def go_on(self) -> None:
        """One round. Never raises."""
        if not (self._kinds or self._failed) or (
                not self._going_on.acquire(blocking=False)):
            return
        try:
            self._go_on(time.monotonic() + ROUND)
            if not self._failed:
                self._said_failed = False
        except Exception as e:
            # Neither libvirt nor the database must end the periodic work.
            self._left = None
            self._say(e)
        finally:
            self._going_on.release()

    def _say(self, error: Exception) -> None:
        (LOG.debug if self._said_failed else LOG.warning)(
            'KVML511 What is done once for each guest that ran when the '
            'service started is not done yet: %s', errors.clean(error))
        self._said_failed = True

    def _go_on(self, deadline: float) -> None:
        if not self._kinds:
            failed, self._failed = self._failed, []
            self._kinds.append(lambda: failed)
        while self._kinds:
            if self._left is None:
                self._left = iter(self._kinds[0]())
            for errand in self._left:
                try:
                    errand()
                except Exception as e:
                    # It costs this guest, not those after it.
                    self._failed.append(errand)
                    self._say(e)
                if time.monotonic() >= deadline:
                    if not self._said_more:
                        LOG.info('What is done once for each guest that ran '
                                 'when the service started continues in the '
                                 'next rounds of the periodic work.')
                    self._said_more = True
                    return
            self._kinds.popleft()
            self._left = None
