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

"""Terms that log, diagnostics, instance faults and commands share.

One fact has one name in all of them. Terms that more than one of them uses are
here.
"""

import datetime
import enum
import types

UNKNOWN = 'unknown'
"""The value where a fact is not known. A sentence says "not known"."""

ANSWERS = types.MappingProxyType({True: 'yes', False: 'no', None: UNKNOWN})
"""A yes, a no or not known, as a value."""


class AgentState(enum.Enum):
    """How a running guest stands with its agent."""

    NO_CHANNEL = 'no channel'
    DISCONNECTED = 'disconnected'
    CONNECTED = 'connected'
    NOT_ANSWERING = 'not answering'
    PAUSED = 'paused'
    FROZEN = 'frozen'


LACKS_VHOST = 'does not use vhost-net, though its XML names it'
"""What is said of a network interface, after its MAC address."""

AGENT_DIAGNOSTICS = 'guest_agent'
CPU_DIAGNOSTICS = 'kvm_ext_cpu'
PAUSE_DIAGNOSTICS = 'kvm_ext_pause'
"""Members of server diagnostics that are this driver's."""


def when(moment: float | datetime.datetime) -> str:
    """A moment as a value: in UTC, as RFC 3339 writes it.

    :param moment: seconds since 1970, or a time with its zone
    """
    if not isinstance(moment, datetime.datetime):
        moment = datetime.datetime.fromtimestamp(
            moment, datetime.timezone.utc)
    return f'{moment.astimezone(datetime.timezone.utc):%Y-%m-%dT%H:%M:%SZ}'
