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

"""Whether a guest that an I/O error paused may run again, and when.

Pure: takes the facts of :mod:`nova_kvm_ext.guests.pauses` and the free space,
returns a verdict with its reason.

Resuming does no harm if there is still no space: QEMU repeats the failed
write, which fails again, and QEMU pauses the guest again
(https://www.qemu.org/docs/master/system/qemu-manpage.html, ``werror``). So if
the space cannot be checked, the guest is resumed as a test, less and less
often.
"""

from collections.abc import Mapping
import dataclasses

from nova_kvm_ext import errors
from nova_kvm_ext.guests import reasons

MIB = 1 << 20

MOST_NEEDED = 64 * MIB
"""Free bytes of a file system that are always enough to continue. A guest that
fills them is paused again, and stays so until others are freed."""

LEAST_NEEDED = MIB

BACK_OFF = 50.0
"""Seconds from a resume that did not help to the next, doubled each time. At
first less than a period of Nova's (60 s), as the next one is to count."""

LONGEST_BACK_OFF = 900.0

RAN = 120.0
"""Seconds after which a guest that is paused again had been helped."""


@dataclasses.dataclass(frozen=True)
class Space:
    """The file system that a disk's file is in.

    :ivar free: bytes that QEMU may still use
    :ivar total: bytes of the file system
    """

    free: int
    total: int

    @property
    def needed(self) -> int:
        """Free bytes from which on a guest is resumed.

        A twentieth of the file system: 64 MiB, less only below 1.25 GiB.
        """
        return max(LEAST_NEEDED, min(MOST_NEEDED, self.total // 20))

    @property
    def enough(self) -> bool:
        return self.free >= self.needed


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a guest may run again.

    :ivar resume: False where it may not; None where only a try can tell
    :ivar why: for the log, with no full stop
    :ivar full: whether a file system was seen to have too little space
    """

    resume: bool | None
    why: str
    full: bool = False


def decide(pause: reasons.Pause, spaces: Mapping[str, Space | None]
           ) -> Verdict:
    """Whether what paused a guest is over.

    :param spaces: by target of a disk; None, or left out, where the place of
        the disk cannot be checked
    """
    if pause.reason is not reasons.Reason.IO_ERROR:
        return Verdict(False, f'it is {pause.words()}')
    if pause.cause is reasons.Cause.NOT_KNOWN:
        return Verdict(False, f'what kind of error it was is not known: '
                              f'{pause.unknown}')
    if pause.cause is not reasons.Cause.NO_SPACE:
        return Verdict(False, 'it was another error than missing space')
    unseen = []
    for error in pause.disks:
        space = spaces.get(error.target)
        name = errors.clean(error.target, 40)
        if space is None:
            unseen.append(name)
        elif not space.enough:
            return Verdict(
                False, f'{space.free // MIB} MiB are free for disk {name}, '
                f'and it takes {space.needed // MIB}', full=True)
    if unseen:
        return Verdict(
            None, f'how much space there is for disk {", ".join(unseen)} '
            'cannot be checked from this host')
    return Verdict(True, 'there is space again')


@dataclasses.dataclass(frozen=True)
class History:
    """What resuming a guest has led to so far. Times are monotonic seconds.

    :ivar resumed: when the guest was resumed last, None if never
    :ivar vain: how often in a row it was paused again soon after that
    :ivar judged: whether the pause since then has been counted
    """

    resumed: float | None = None
    vain: int = 0
    judged: bool = False

    def after_resume(self, when: float) -> 'History':
        return dataclasses.replace(self, resumed=when, judged=False)

    def paused_again(self, when: float) -> 'History':
        """The guest is paused, as it has been since ``when`` at the latest.

        The first call after a resume counts.
        """
        if self.resumed is None or self.judged:
            return self
        soon = when - self.resumed < RAN
        return dataclasses.replace(
            self, vain=self.vain + 1 if soon else 0, judged=True)

    def explained(self) -> 'History':
        """The file system was seen to be full again.

        Then its space says when the next resume makes sense.
        """
        return dataclasses.replace(self, vain=min(self.vain, 1))

    def due(self, now: float) -> bool:
        """Whether the guest may be resumed now."""
        return self.resumed is None or now >= self.resumed + self.wait

    @property
    def wait(self) -> float:
        """Seconds between the last resume and the next."""
        if not self.vain:
            return 0.0
        return min(LONGEST_BACK_OFF, BACK_OFF * 2 ** (min(self.vain, 10) - 1))
