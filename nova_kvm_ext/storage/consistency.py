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

"""The image properties that say whether a snapshot was quiesced.

Their names and values are fixed. The only text from a guest is a version
number.
"""

import dataclasses
import enum
import re

from nova_kvm_ext import request
from nova_kvm_ext import words

PROPERTIES = tuple(request.IMAGE_PREFIX + name for name in request.WRITTEN)
QUIESCED, REASON, SECONDS, AGENT = PROPERTIES
"""Names of the image properties. All of them are always written: a snapshot
inherits the properties of the image that its server was booted from."""

# QEMU's agent says its version and, of a distribution, what comes after it:
# '7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)' is 7.2.22 here.
_VERSION = re.compile(r'\d{1,4}(?:\.\d{1,4}){1,3}(?![.\d])', re.ASCII)


class Reason(enum.Enum):
    """Why a snapshot is quiesced, or is not, or that cannot be told."""

    FROZEN = 'frozen by the guest agent'
    NO_AGENT = 'no guest agent is connected'
    NOT_FROZEN = 'the guest agent did not freeze the guest'
    THAWED = 'the guest did not stay frozen'
    COLD = 'cold snapshot: suspended and copied'
    NOT_SAID = 'the guest agent did not say whether the guest stayed frozen'
    NOT_RUNNING = 'the guest did not run'
    NOT_ASKED = 'quiescing was not tried'
    NOTHING = 'the guest agent found no file system to freeze'


QUIESCED_BY_REASON: dict[Reason, bool | None] = {
    Reason.FROZEN: True,
    Reason.NO_AGENT: False,
    Reason.NOT_FROZEN: False,
    Reason.THAWED: False,
    Reason.COLD: False,
    Reason.NOT_SAID: None,
    # Perhaps it was shut down, perhaps it crashed.
    Reason.NOT_RUNNING: None,
    Reason.NOT_ASKED: None,
    # Its hooks may have had a database write all that it had.
    Reason.NOTHING: None,
}


@dataclasses.dataclass(frozen=True)
class Consistency:
    """What is known of the disk in a snapshot.

    :ivar seconds: how long the guest was frozen, None where that is not known
    :ivar version: of the guest agent, as the agent says; '' where it does not
    """

    reason: Reason = Reason.NOT_ASKED
    seconds: float | None = None
    version: str = ''

    @property
    def quiesced(self) -> bool | None:
        """Whether the guest was frozen all the time; None: not known."""
        return QUIESCED_BY_REASON[self.reason]

    @property
    def answer(self) -> str:
        """yes, no or unknown."""
        return words.ANSWERS[self.quiesced]

    @property
    def frozen_seconds(self) -> str:
        """A decimal number, or unknown."""
        if self.reason in (Reason.FROZEN, Reason.NOT_SAID, Reason.THAWED,
                           Reason.NOTHING):
            return (words.UNKNOWN if self.seconds is None else
                    f'{self.seconds:.2f}')
        # A freeze whose answer was lost may have been one.
        return words.UNKNOWN if self.reason is Reason.NOT_FROZEN else '0.00'

    def properties(self) -> dict[str, str]:
        """Names and values of the image's properties."""
        version = _VERSION.match(self.version)
        return {
            QUIESCED: self.answer,
            REASON: self.reason.value,
            SECONDS: self.frozen_seconds,
            AGENT: version.group() if version else words.UNKNOWN,
        }
