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

"""The state of a running snapshot and of its freeze."""

import dataclasses

from nova_kvm_ext.guest_agent import holds


@dataclasses.dataclass(eq=False)
class Operation:
    """A snapshot that is under way in this thread.

    :ivar uuid: of the instance
    :ivar late: whether Nova must be told of a failed freeze only when it
        thaws, and has put its own things in order
    :ivar required: whether the image says os_require_quiesce
    :ivar asked: whether Nova has asked for the guest to be frozen
    :ivar listens: whether there is an agent that could be asked
    :ivar was_frozen: whether the guest was frozen at all
    :ivar hold: what keeps the guest frozen, None where it is not
    :ivar failure: why the guest could not be frozen, kept for later
    :ivar stood: whether the guest was frozen until the end; None where it is
        not known
    :ivar seconds: how long the guest was frozen for this operation; None
        before it is thawed
    :ivar version: of the agent, as the agent says
    :ivar count: how many file systems were frozen; None where that is not
        known
    """

    uuid: str
    late: bool = False
    required: bool = False
    asked: bool = False
    listens: bool = True
    was_frozen: bool = False
    hold: holds.Hold | None = None
    failure: str = ''
    stood: bool | None = None
    seconds: float | None = None
    version: str = ''
    count: int | None = None
