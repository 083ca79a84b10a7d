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

"""How long libvirt waits for an agent.

By default libvirt waits without end. Every command that Nova sends has the
limit that is set here, and so has :class:`client.Agent`.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import math
import threading
import time
from typing import Any

from nova import conf as nova_conf
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import client

LOG = logging.getLogger(__name__)
CONF = nova_conf.CONF

VOLUME_FREEZE_TIMEOUT = 45
"""Seconds for the freeze of a volume-backed instance. Nova's API waits 60 s
for all of it ([DEFAULT] rpc_response_timeout), and before and after the freeze
libvirt may take 5 s each to find out whether the agent listens."""

VOLUME_FREEZE_LIMIT = 600
"""Seconds after which a volume-backed instance is thawed, though its snapshot
was not said to be done. Then the API that was to say so is gone, or the guest
was stopped so long that nothing in it counts on being saved."""

SNAPSHOT_FREEZE_LIMIT = 120
"""Seconds after which a guest is thawed, though its snapshot is being made
still: storage that stalls for so long keeps all of the guest from writing, and
a Linux guest reports its tasks as hung (kernel.hung_task_timeout_secs). The
snapshot does not count as quiesced then."""

STATUS_TIMEOUT = 3
"""Seconds for the question whether a guest is still frozen. An agent answers
it from memory, and the guest waits meanwhile."""

WAIT_FOR_ANOTHER = 2 * client.FREEZE_TIMEOUT
"""Seconds that an operation waits for another one's freeze or thaw of the
same guest. Those end by their own limits; this is for what nobody foresaw."""

_LASTS = 10
"""Seconds in which a limit that libvirt was told is not told again. Another
program may stop the guest and start it, and it has no limit then."""


def libvirt() -> Any:
    """libvirt as Nova has it: its tests put another in its place."""
    return libvirt_driver.libvirt


@dataclasses.dataclass(eq=False)
class _Wanted:
    """The limits that operations want for one guest now.

    :ivar users: operations that have this object
    :ivar seconds: the limits, one for each operation that wants one
    :ivar told: what libvirt was told last, in seconds; None before
    :ivar when: libvirt was told (time.monotonic)
    """

    users: int = 0
    seconds: list[float] = dataclasses.field(default_factory=list)
    told: int | None = None
    when: float = 0
    lock: Any = dataclasses.field(default_factory=threading.Lock)


class Limits:
    """The time that agents have.

    libvirt keeps one limit for each guest, and two operations may want
    different ones at the same time: then the longest counts.

    :param host: nova.virt.libvirt.host.Host
    """

    def __init__(self, host: Any) -> None:
        self._host = host
        self._lock = threading.Lock()
        # By domain UUID, for as long as an operation uses it.
        self._wanted: dict[str, _Wanted] = {}

    def apply(self, guest: Any) -> None:
        """Set how long libvirt waits for this guest's agent."""
        with self._of(guest._domain) as wanted:
            # A guest that has just been started has none.
            wanted.told = None
            self._set(guest._domain, wanted)

    def patience(self, domain: Any, seconds: float
                 ) -> contextlib.AbstractContextManager[None]:
        """Have Nova's next command wait this long instead, if it is more."""
        return self.exactly(
            domain, max(seconds, CONF.kvm_ext.guest_agent_timeout))

    @contextlib.contextmanager
    def exactly(self, domain: Any, seconds: float) -> Iterator[None]:
        """The same, also where it is less."""
        with self._of(domain) as wanted:
            self._set(domain, wanted, add=seconds)
            try:
                yield
            finally:
                self._set(domain, wanted, remove=seconds)

    @contextlib.contextmanager
    def _of(self, domain: Any) -> Iterator[_Wanted]:
        uuid = domain.UUIDString()
        with self._lock:
            wanted = self._wanted.setdefault(uuid, _Wanted())
            wanted.users += 1
        try:
            yield wanted
        finally:
            with self._lock:
                wanted.users -= 1
                if not wanted.users:
                    del self._wanted[uuid]

    @staticmethod
    def _set(domain: Any, wanted: _Wanted, add: float | None = None,
             remove: float | None = None) -> None:
        # What stands for libvirt in Nova's own tests has no such call.
        call = getattr(domain, 'agentSetResponseTimeout', None)
        # Of two operations on one guest the later one has the last word.
        with wanted.lock:
            if add is not None:
                wanted.seconds.append(add)
            if remove is not None:
                wanted.seconds.remove(remove)
            if call is None:
                return
            seconds = math.ceil(max(
                wanted.seconds, default=CONF.kvm_ext.guest_agent_timeout))
            now = time.monotonic()
            # A guest that is frozen waits for each call.
            if seconds == wanted.told and now - wanted.when < _LASTS:
                return
            try:
                call(seconds, 0)
                wanted.told, wanted.when = seconds, now
            except libvirt().libvirtError as e:
                # It does not run (yet, any more), or is no QEMU.
                LOG.debug('No time limit for the guest agent: %s',
                          errors.clean(e))

    @functools.cached_property
    def command(self) -> Any:
        # Here, because commands that start no guest need no such library.
        import libvirt_qemu
        # As Nova does with libvirt itself: under eventlet a call that waits
        # must run in a thread of eventlet's pool.
        return self._host._wrap_libvirt_proxy(libvirt_qemu).qemuAgentCommand

    def agent(self, domain: Any, timeout: float | None = None
              ) -> client.Agent:
        """The agent of a domain.

        :param timeout: seconds for a command that takes no time of its own;
            None for ``[kvm_ext] guest_agent_timeout``
        """
        return client.Agent(
            domain, CONF.kvm_ext.guest_agent_timeout if timeout is None
            else timeout, self.command)
