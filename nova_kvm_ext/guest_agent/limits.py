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

"""How long libvirt waits for an agent, and how agents are asked.

libvirt waits for ever by itself. Every command that Nova gives is under the
limit that is set here; :class:`client.Agent` asks what we ask, with the same.
"""

from collections.abc import Iterator
import contextlib
import functools
from typing import Any

from nova import conf as nova_conf
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import client

LOG = logging.getLogger(__name__)
CONF = nova_conf.CONF


def libvirt() -> Any:
    """libvirt as Nova has it: its tests put another in its place."""
    return libvirt_driver.libvirt


class Limits:
    """The time that agents have.

    :param host: nova.virt.libvirt.host.Host
    """

    def __init__(self, host: Any) -> None:
        self._host = host

    def apply(self, guest: Any) -> None:
        """Set how long libvirt waits for this guest's agent."""
        self.set(guest._domain, CONF.kvm_ext.guest_agent_timeout)

    @staticmethod
    def set(domain: Any, seconds: int) -> None:
        # What stands for libvirt in Nova's own tests has no such call.
        call = getattr(domain, 'agentSetResponseTimeout', None)
        if call is None:
            return
        try:
            call(seconds, 0)
        except libvirt().libvirtError as e:
            # It does not run (yet, any more), or is no QEMU.
            LOG.debug('No time limit for the guest agent: %s',
                      errors.clean(e))

    @contextlib.contextmanager
    def patience(self, domain: Any, seconds: int) -> Iterator[None]:
        """Have Nova's next command wait this long instead."""
        usual = CONF.kvm_ext.guest_agent_timeout
        self.set(domain, max(seconds, usual))
        try:
            yield
        finally:
            self.set(domain, usual)

    @functools.cached_property
    def command(self) -> Any:
        # Here, because commands that start no guest need no such library.
        import libvirt_qemu
        # As Nova does with libvirt itself: under eventlet a call that waits
        # must run in a thread of eventlet's pool.
        return self._host._wrap_libvirt_proxy(libvirt_qemu).qemuAgentCommand

    def agent(self, domain: Any) -> client.Agent:
        return client.Agent(domain, CONF.kvm_ext.guest_agent_timeout,
                            self.command)
