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

"""Counts the operations that need a guest frozen, so that the last one thaws.

Two operations may need the same guest frozen at the same time: snapshots of
two of its volumes, for which Nova takes no lock, or a volume's snapshot while
Nova's API has frozen the guest for all of them. The first one freezes, the
others join, and the one that ends last thaws.

Only state: never talks to an agent, libvirt or Nova, and is safe with threads
and with greenlets.
"""

import contextlib
import dataclasses
import enum
import threading
import time
from typing import Any

from nova_kvm_ext.guest_agent import ledger


class State(enum.Enum):
    """How far a freeze is."""

    FREEZING = 'freezing'
    FROZEN = 'frozen'
    THAWING = 'thawing'


@dataclasses.dataclass(eq=False)
class Freeze:
    """A guest that is, or may be, frozen.

    :ivar domain: libvirt's object that was used for the freeze, None if not
        known. Its connection may be broken.
    :ivar entry: of the ledger, None before it is recorded and where
        another program froze the guest
    :ivar foreign: whether another program froze the guest, and thaws it
    :ivar asked: when the freeze was sent (time.monotonic)
    :ivar answered: when the agent said that the guest is frozen, None before
    :ivar thawed: when the agent said that the guest is thawed, None before
    :ivar failure: why it is not frozen, '' where nothing failed
    :ivar version: of the agent, as the agent says; '' where nobody asked or
        the agent does not say
    :ivar count: how many file systems are frozen, as the agent says; None
        where that is not known
    :ivar limit: the agent's time limit, which is to be undone in the end
    """

    uuid: str
    state: State = State.FREEZING
    domain: Any = None
    entry: ledger.Entry | None = None
    foreign: bool = False
    asked: float = dataclasses.field(default_factory=time.monotonic)
    answered: float | None = None
    thawed: float | None = None
    failure: str = ''
    version: str = ''
    count: int | None = None
    limit: contextlib.ExitStack = dataclasses.field(
        default_factory=contextlib.ExitStack)
    holds: list['Hold'] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class Hold:
    """One operation that needs a guest frozen.

    :ivar lasting: whether it outlives the call that made it: Nova's API
        freezes by one call and thaws by another
    :ivar since: when the operation asked (time.monotonic)
    :ivar lost: whether the guest was thawed meanwhile, as far as we know
    :ivar stood: whether the guest was frozen until the operation needed it no
        longer; None before, and where it is not known
    """

    freeze: Freeze
    lasting: bool
    since: float = dataclasses.field(default_factory=time.monotonic)
    lost: bool = False
    stood: bool | None = None

    @property
    def held(self) -> bool:
        """Whether it counts still, with the freeze that it was made for."""
        return not self.lost and self in self.freeze.holds


class NotFrozen(Exception):
    """The operation that froze the guest failed, or took too long."""


class Holds:
    """The freezes of a host's guests, and who needs each."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._freezes: dict[str, Freeze] = {}

    def take(self, uuid: str, lasting: bool, patience: float
             ) -> tuple[Hold, bool]:
        """Need a guest frozen.

        Waits for a freeze or a thaw that another operation is at.

        :param patience: seconds that such a wait may take
        :returns: the hold, and whether the caller is to freeze the guest. It
            must call :meth:`frozen` or :meth:`failed` then.
        :raises NotFrozen: another operation's freeze failed, or did not end
        """
        until = time.monotonic() + patience
        with self._changed:
            while (freeze := self._freezes.get(uuid)) is not None and (
                    freeze.state is State.THAWING):
                self._wait(until)
            if freeze is None:
                freeze = self._freezes[uuid] = Freeze(uuid)
                hold = Hold(freeze, lasting)
                freeze.holds.append(hold)
                return hold, True
            hold = Hold(freeze, lasting)
            freeze.holds.append(hold)
            self._wait_for_freeze(hold, until)
            return hold, False

    def again(self, hold: Hold, patience: float) -> bool:
        """The guest turns out to be thawed, though it is held frozen.

        The others that hold it learn that it did not stay frozen.

        :returns: whether the caller is to freeze the guest; otherwise another
            operation has done so meanwhile
        :raises NotFrozen: as :meth:`take`
        """
        until = time.monotonic() + patience
        with self._changed:
            freeze = hold.freeze
            if freeze.state is State.FROZEN and hold in freeze.holds:
                freeze.state = State.FREEZING
                freeze.answered = None
                freeze.count = None
                freeze.foreign = False
                for other in freeze.holds:
                    other.lost = other is not hold
                return True
            self._wait_for_freeze(hold, until)
            # The one that froze it again took this one for a loser, too.
            hold.lost = False
            return False

    def _wait_for_freeze(self, hold: Hold, until: float) -> None:
        freeze = hold.freeze
        try:
            while freeze.state is State.FREEZING and not freeze.failure:
                self._wait(until)
            if freeze.failure:
                raise NotFrozen(freeze.failure)
            if hold not in freeze.holds:
                raise NotFrozen('it was to be thawed before it was frozen')
        except BaseException:
            if hold in freeze.holds:
                freeze.holds.remove(hold)
            raise

    def _wait(self, until: float) -> None:
        left = until - time.monotonic()
        if left <= 0:
            raise NotFrozen('another operation is freezing or thawing it, '
                            'which takes too long')
        self._changed.wait(left)

    def frozen(self, freeze: Freeze) -> bool:
        """The agent says that the guest is frozen.

        :returns: whether anybody needs that still; otherwise the caller is to
            thaw the guest, and to call :meth:`over`
        """
        with self._changed:
            freeze.answered = time.monotonic()
            freeze.state = (State.FROZEN if freeze.holds else State.THAWING)
            self._changed.notify_all()
            return bool(freeze.holds)

    def failed(self, freeze: Freeze, reason: str) -> None:
        """The guest is not frozen, for all who waited for that.

        The caller is to thaw it, in case it is frozen anyway, and to
        call :meth:`over`.
        """
        with self._changed:
            freeze.failure = reason
            freeze.state = State.THAWING
            freeze.holds.clear()
            self._changed.notify_all()

    def release(self, hold: Hold) -> bool:
        """Need a guest frozen no longer.

        :returns: whether the caller is to thaw the guest and to call
            :meth:`over`: nobody else needs it. While it is being frozen, that
            is for the one who does so.
        """
        with self._changed:
            freeze = hold.freeze
            if hold not in freeze.holds:
                return False
            freeze.holds.remove(hold)
            if freeze.holds or freeze.state is not State.FROZEN:
                return False
            freeze.state = State.THAWING
            return True

    def release_last(self, hold: Hold) -> bool:
        """The same, but only where no other operation needs it frozen.

        :returns: whether the caller is to thaw the guest; otherwise the hold
            counts still
        """
        with self._changed:
            return hold.freeze.holds == [hold] and self.release(hold)

    def over(self, freeze: Freeze) -> None:
        """The guest is thawed, or nothing more can be done about it here."""
        with self._changed:
            if self._freezes.get(freeze.uuid) is freeze:
                del self._freezes[freeze.uuid]
            freeze.holds.clear()
            self._changed.notify_all()

    def known(self, uuid: str) -> bool:
        """Whether an operation here handles this guest."""
        with self._changed:
            return uuid in self._freezes

    def lasting(self, uuid: str) -> Hold | None:
        """The oldest of the guest's lasting holds."""
        with self._changed:
            freeze = self._freezes.get(uuid)
            return None if freeze is None else next(
                (hold for hold in freeze.holds if hold.lasting), None)

    def expired(self, limit: float, lasting: float) -> list[Hold]:
        """Holds that keep guests frozen for longer than they may.

        :param limit: seconds, for a hold that ends with its call
        :param lasting: seconds, for one that outlives it
        """
        now = time.monotonic()
        with self._changed:
            return [hold for freeze in self._freezes.values()
                    if freeze.state is State.FROZEN
                    for hold in freeze.holds
                    if now - max(hold.since, freeze.answered or hold.since) > (
                        lasting if hold.lasting else limit)]
