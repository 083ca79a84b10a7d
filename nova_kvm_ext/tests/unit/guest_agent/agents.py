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

"""What the driver does about guest agents, on Nova's fake libvirt.

The guest is a domain that has an agent in it; Nova's own code calls it.
"""

import json
from typing import Any
from unittest import mock

import fixtures
from nova import context
from nova import objects
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt.libvirt import guest as libvirt_guest
from oslo_utils.fixture import uuidsentinel as uuids

from nova_kvm_ext import driver
from nova_kvm_ext.guest_agent import holds
from nova_kvm_ext.guest_agent import hooks
from nova_kvm_ext.guest_agent import ledger
from nova_kvm_ext.guest_agent import limits
from nova_kvm_ext.tests.unit import driver_base

LIMIT = 7
XML = """<domain type='kvm' id='1'><devices><channel type='unix'>
<target type='virtio' name='org.qemu.guest_agent.0' state='{}'/></channel>
</devices></domain>"""
NO_CHANNEL = "<domain type='kvm' id='1'><devices/></domain>"
UNRESPONSIVE = fakelibvirt.VIR_ERR_AGENT_UNRESPONSIVE
SILENT = 'Guest agent is not responding: Guest agent not available for now'


def libvirt_error(code: int, text: str) -> Exception:
    return fakelibvirt.make_libvirtError(
        fakelibvirt.libvirtError, text, error_code=code)


class Domain:
    """A running domain with an agent, which may be made to misbehave.

    :ivar broken: libvirt call or agent command -> exception that it raises;
        where it is 'late:NAME', the command takes effect all the same
    :ivar count: how many file systems can be frozen
    """

    def __init__(self) -> None:
        self.xml = XML.format('connected')
        self.active = True
        self.saved = False
        self.frozen = False
        self.count = 2
        self.broken: dict[str, BaseException] = {}
        self.timeout = -2
        self.calls: list[str] = []
        self.timeouts: dict[str, int] = {}
        self.password: str | None = None
        self.during: dict[str, Any] = {}

    def _do(self, name: str) -> None:
        self.calls.append(name)
        self.timeouts[name] = self.timeout
        if name in self.during:
            self.during.pop(name)()
        if name in self.broken:
            raise self.broken[name]

    def UUIDString(self) -> str:
        return uuids.instance

    def ID(self) -> int:
        return 1 if self.active else -1

    def XMLDesc(self, flags: int = 0) -> str:
        return self.xml

    def isActive(self) -> bool:
        return self.active

    def state(self, flags: int = 0) -> list[int]:
        return [1, 1] if self.active else [5, 0]

    def hasManagedSaveImage(self, flags: int) -> bool:
        return self.saved

    def agentSetResponseTimeout(self, seconds: int, flags: int) -> None:
        self.timeout = seconds

    def info(self) -> list[int]:
        return [1 if self.active else 5, 0, 0, 0, 0]

    def fsFreeze(self) -> int:
        self.frozen = 'late:fsFreeze' in self.broken or self.frozen
        if 'late:fsFreeze' in self.broken:
            raise self.broken['late:fsFreeze']
        self._do('fsFreeze')
        self.frozen = True
        return self.count

    def fsThaw(self) -> int:
        self._do('fsThaw')
        return self._thaw()

    def _thaw(self) -> int:
        thawed, self.frozen = self.frozen * self.count, False
        return thawed

    def setUserPassword(self, user: str, password: str, flags: int) -> None:
        self._do('setUserPassword')
        self.password = password

    def setTime(self, time: Any = None, flags: int = 0) -> None:
        self._do('setTime')

    def shutdown(self) -> None:
        self._do('shutdown')

    def shutdownFlags(self, flags: int) -> None:
        self._do(f'shutdownFlags {flags}')
        self.active = False

    def command(self, domain: Any, request: str, seconds: int, flags: int
                ) -> str:
        """What stands for libvirt_qemu.qemuAgentCommand."""
        name = json.loads(request)['execute']
        self._do(name)
        answer: Any = {}
        if name == 'guest-fsfreeze-thaw':
            answer = self._thaw()
        elif name == 'guest-fsfreeze-status':
            answer = 'frozen' if self.frozen else 'thawed'
        elif name == 'guest-info':
            answer = {'version': '7.2', 'supported_commands': []}
        elif name == 'guest-shutdown':
            self.active = False
        return json.dumps({'return': answer})


class HooksTestCase(driver_base.DriverTestCase):

    def setUp(self):
        super().setUp()
        self.flags(host='host', shutdown_timeout=60)
        self.flags(guest_agent_timeout=LIMIT, group='kvm_ext')
        # What Nova's fake libvirt has not.
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.driver.libvirt.'
            'VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN', 1))
        self.driver = self.started()
        self.domain = Domain()
        self.guest = libvirt_guest.Guest(self.domain)
        self.serve(self.driver)
        self.context = context.get_admin_context()
        self.instance = objects.Instance(
            self.context, id=1, uuid=uuids.instance, user_id='u',
            project_id='p', image_ref=uuids.image, os_type=None,
            key_data=None, vcpu_model=None, system_metadata={
                'image_hw_qemu_guest_agent': 'yes'})
        self.ledger = ledger.Ledger(driver.CONF.state_path, 'host')
        self.log = self.useFixture(fixtures.FakeLogger('nova_kvm_ext'))

    def serve(self, drvr: driver.KVMDriver) -> None:
        """Have a driver find the domain."""
        self.connection = mock.Mock(
            lookupByUUIDString=mock.Mock(return_value=self.domain),
            listAllDomains=mock.Mock(return_value=[]))
        for name, value in (
                ('get_guest', mock.Mock(return_value=self.guest)),
                ('get_connection', mock.Mock(return_value=self.connection)),
                ('list_guests', mock.Mock(return_value=[self.guest]))):
            self.useFixture(fixtures.MockPatchObject(
                drvr._host, name, value))
        # Each domain answers for itself.
        drvr._guest_agents.limits.__dict__['command'] = (
            lambda domain, *args: domain.command(domain, *args))

    def another_service(self) -> hooks.GuestAgents:
        """The one that is started after this one was killed."""
        # The kernel drops the locks of a process that dies.
        for freeze in self.freezes().values():
            freeze.entry.release()
        service = hooks.GuestAgents(self.driver._host)
        service.limits.__dict__['command'] = self.domain.command
        return service

    def quiesce(self, **properties: str) -> None:
        self.driver.quiesce(self.context, self.instance, self.image(
            **properties))

    def unquiesce(self) -> None:
        self.driver.unquiesce(self.context, self.instance, self.image())

    def image(self, **properties: str) -> objects.ImageMeta:
        return objects.ImageMeta.from_dict({'properties': {
            'hw_qemu_guest_agent': 'yes'} | properties})

    def asked_while_frozen(self) -> list[str]:
        """What libvirt and the agent are asked from now on of a frozen guest.

        :returns: a list to which each call is added
        """
        asked: list[str] = []

        def spy(of: Any, name: str) -> None:
            call = getattr(of, name)

            def ask(*args: Any, **kwargs: Any) -> Any:
                if self.domain.frozen:
                    asked.append(name)
                return call(*args, **kwargs)

            self.useFixture(fixtures.MockPatchObject(of, name, ask))

        for name in ('get_guest', 'get_connection'):
            spy(self.driver._host, name)
        for name in ('XMLDesc', 'agentSetResponseTimeout', 'fsThaw',
                     'isActive', 'state', 'command'):
            spy(self.domain, name)
        return asked

    def freezes(self) -> dict[str, holds.Freeze]:
        return self.driver._guest_agents.freezes.guests.holds._freezes

    def expire(self, lasting: bool = False) -> None:
        """Ten minutes pass.

        :param lasting: for a freeze by Nova's API alone
        """
        for freeze in self.freezes().values():
            for hold in freeze.holds:
                if hold.lasting or not lasting:
                    hold.since -= limits.VOLUME_FREEZE_LIMIT + 1
            if freeze.answered is not None:
                freeze.answered -= limits.VOLUME_FREEZE_LIMIT + 1

    def settled(self) -> None:
        """The guest is thawed, and nothing says otherwise."""
        self.assertFalse(self.domain.frozen)
        self.assertEqual([], self.ledger.left_behind())
        self.assertEqual({}, self.freezes())
        self.assertEqual(LIMIT, self.domain.timeout)
