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

"""The part of the driver for guest agents: what knows Nova.

The driver creates :class:`GuestAgents` and calls it from its overrides. It
makes sure that Nova uses the channel that a guest really has, that agents shut
guests down and set clocks and passwords, and that their data is shown.
Freezing and thawing is in :mod:`nova_kvm_ext.guest_agent.freezes`.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import contextvars
import dataclasses
import functools
import math
import time
from typing import Any

from lxml import etree
from nova import conf as nova_conf
from nova import exception

from nova_kvm_ext import errors
from nova_kvm_ext.guest_agent import channel
from nova_kvm_ext.guest_agent import client
from nova_kvm_ext.guest_agent import freezes
from nova_kvm_ext.guest_agent import frozen
from nova_kvm_ext.guest_agent import limits
from nova_kvm_ext import log
from nova_kvm_ext import words

LOG = log.getLogger(__name__)
CONF = nova_conf.CONF


@dataclasses.dataclass(frozen=True)
class Seen:
    """A guest's channel as it really is.

    :ivar known: False where there is no such domain, or libvirt did not say
    :ivar connected: of :func:`channel.connected`
    :ivar running: whether anything could be connected
    """

    known: bool = False
    connected: bool | None = None
    running: bool = False

    def told(self, image_meta: Any) -> Any:
        """The image as it would be, had the guest's channel come from it.

        Nova asks the image alone whether a guest has an agent.

        :param image_meta: nova.objects.ImageMeta, which stays as it is
        """
        there = self.connected is not None
        if not self.known or there == bool(
                image_meta.properties.get('hw_qemu_guest_agent', False)):
            return image_meta
        image_meta = image_meta.obj_clone()
        image_meta.properties.hw_qemu_guest_agent = there
        return image_meta

    def must_listen(self, instance: Any) -> None:
        """Refuse at once what would fail later.

        :raises nova.exception.QemuGuestAgentNotEnabled: nothing in the guest
            has the channel open
        """
        if self.running and self.connected is False:
            raise exception.QemuGuestAgentNotEnabled(
                f'The QEMU guest agent of instance {instance.uuid} is not '
                f'connected: it is not installed, or not running.')


class GuestAgents:
    """The agents of a host's guests.

    :param host: nova.virt.libvirt.host.Host
    :ivar limits: how long they are waited for
    :ivar freezes: which of them are frozen
    """

    def __init__(self, host: Any) -> None:
        self._host = host
        self.limits = limits.Limits(host)
        self.freezes = freezes.Freezes(host, self.limits)
        # Nova's check before setting a password is not told the instance.
        self._password_of: contextvars.ContextVar[Seen] = (
            contextvars.ContextVar('password_of', default=Seen()))

    # What is there.

    def see(self, instance: Any) -> Seen:
        """Check a guest's channel, by its live XML."""
        try:
            xml = self._host.get_guest(instance).get_xml_desc()
            return Seen(True, channel.connected(xml),
                        etree.fromstring(xml).get('id') is not None)
        except (exception.NovaException, limits.libvirt().libvirtError,
                # No XML at all.
                etree.XMLSyntaxError, ValueError, TypeError) as e:
            LOG.debug('The agent channel cannot be seen, so that the image '
                      'counts: %s', errors.clean(e), instance=instance)
            return Seen()

    def diagnostics(self, instance: Any) -> dict[str, Any]:
        """What the agent tells, for the API of the form before 2.48."""
        try:
            facts = client.look(
                self._host.get_guest(instance)._domain,
                CONF.kvm_ext.guest_agent_timeout, command=self.limits.command)
        except (errors.AgentError, exception.NovaException) as e:
            return {words.AGENT_DIAGNOSTICS: {
                'state': words.UNKNOWN,
                'problem': errors.without_paths(errors.clean(e))}}
        found = dataclasses.asdict(facts)
        since = self.freezes.since(instance.uuid)
        found |= {'state': facts.state.value,
                  'problem': errors.without_paths(facts.problem),
                  'frozen_since': None if since is None else
                  words.when(since)}
        return {words.AGENT_DIAGNOSTICS: found}

    def errands(self) -> Iterator[Callable[[], None]]:
        """Set the limit for guests that run: a thing to do for each."""
        for guest in self._host.list_guests():
            yield functools.partial(self.limits.apply, guest)

    def service_starts(self) -> None:
        """Thaw what was left frozen."""
        self.freezes.settle()

    # Agents at work.

    def migrated(self, instance: Any) -> None:
        """A guest has come here by live migration.

        It was stopped for a while, and libvirt here has its own idea of how
        long to wait. Nova sets the clock after a cold migration only.
        """
        with self._not_in_the_way(instance):
            guest = self._host.get_guest(instance)
            self.limits.apply(guest)
            # A guest without a channel has nobody to ask. A frozen one does
            # not set its clock.
            if (self.see(instance).connected is None or
                    not self.freezes.arrived(instance, guest)):
                guest.sync_guest_time()

    def resumed(self, instance: Any, guest: Any) -> None:
        """A guest runs again that Nova had suspended for a cold snapshot."""
        with self._not_in_the_way(instance):
            if guest.is_active():
                self.limits.apply(guest)
                guest.sync_guest_time()

    @staticmethod
    @contextlib.contextmanager
    def _not_in_the_way(instance: Any) -> Iterator[None]:
        """What Nova did is done, whether or not the agent can be set up."""
        try:
            yield
        except (exception.NovaException, limits.libvirt().libvirtError) as e:
            LOG.warning('KVML416 The guest agent has no time limit or the '
                        'clock is not set: %s',
                        errors.clean(e), instance=instance)

    def shut_down(self, driver: Any, instance: Any, timeout: int
                  ) -> tuple[Any, int]:
        """Ask the agent to shut the guest down, before Nova presses a button.

        virDomainShutdown(), which Nova calls, asks the agent too, but waits
        for the guest's end for 60 s whatever Nova's own limit is, again each
        time it is called, and presses the power button only after that.

        :param timeout: seconds that Nova gives the guest
        :returns: what Nova's code is to take for the driver, and the seconds
            that are left to it
        """
        if not self.see(instance).connected:
            return driver, timeout
        started = time.monotonic()
        domain = self._host.get_guest(instance)._domain
        # libvirt may take as long again to find out whether it listens.
        self._ask_to_shut_down(instance, domain, max(1, min(
            CONF.kvm_ext.guest_agent_timeout, timeout // 3)))
        left = timeout - math.ceil(time.monotonic() - started)
        return _Driver(driver, self._host, _press), max(1, left)

    def reboot(self, driver: Any, instance: Any) -> Any:
        """The same for a soft reboot, in which Nova must ask.

        :returns: what Nova's code is to take for the driver
        """
        if not self.see(instance).connected:
            return driver

        def ask_first(guest: Any) -> None:
            self._ask_to_shut_down(instance, guest._domain,
                                   CONF.kvm_ext.guest_agent_timeout)
            _press(guest)

        return _Driver(driver, self._host, ask_first)

    def _ask_to_shut_down(self, instance: Any, domain: Any,
                          seconds: int) -> None:
        """Returns when the guest is down, the agent refuses, or time is up."""
        with self.limits.exactly(domain, seconds):
            try:
                # An agent that obeys does not answer. The wait ends with it.
                self.limits.agent(domain).ask(
                    'guest-shutdown', lambda reply: None, seconds,
                    mode='powerdown')
            except errors.AgentError as e:
                LOG.debug('Asked to shut the guest down: %s', e,
                          instance=instance)

    @contextlib.contextmanager
    def setting_password(self, instance: Any) -> Iterator[None]:
        """Around Nova's setting of the admin password.

        None of the guest's words gets out: what has been told a password can
        repeat it.

        :raises nova.exception.InstanceAgentNotEnabled: the agent does not
            answer. Of all exceptions it is the one whose text Nova's API
            hands on.
        :raises nova.exception.InternalError: the agent refuses
        """
        silent = (
            f'The guest agent of instance {instance.uuid} does not answer, so '
            'the password is not set. Check whether qemu-guest-agent runs in '
            'the guest.')
        seen = self.see(instance)
        token = self._password_of.set(seen)
        try:
            if seen.running and seen.connected is False:
                raise exception.InstanceAgentNotEnabled(silent)
            yield
        except NotImplementedError:
            raise exception.InstanceAgentNotEnabled(silent) from None
        except (exception.InternalError, *frozen.UNREADABLE) as e:
            code = errors.libvirt_error_code(e.__context__)
            if code in client.NO_ANSWER:
                raise exception.InstanceAgentNotEnabled(silent) from None
            raise exception.InternalError(
                f'The guest agent did not set the password (libvirt error '
                f'{code}). What it says is not repeated here, as it may have '
                f'the password in it.') from None
        finally:
            self._password_of.reset(token)

    def password_image(self, image_meta: Any) -> Any:
        """:meth:`Seen.told` for the guest whose password is being set."""
        return self._password_of.get().told(image_meta)


def _press(guest: Any) -> None:
    """Press the power button, whatever agent there is."""
    libvirt = limits.libvirt()
    try:
        guest._domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
    except libvirt.libvirtError as e:
        # It is down by now, most likely. Nova looks again in any case.
        LOG.debug('Power button: %s', errors.clean(e))


class _Host:
    """Nova's Host, whose guests are shut down in our way."""

    def __init__(self, host: Any, shutdown: Callable[[Any], None]) -> None:
        self._real = host
        self._shutdown = shutdown

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_guest(self, instance: Any) -> Any:
        guest = self._real.get_guest(instance)
        guest.shutdown = functools.partial(self._shutdown, guest)
        return guest


class _Driver:
    """The driver as Nova's code sees it while it shuts a guest down.

    Nova's loop gets its guests from its host and calls shutdown() on them;
    this is where that can be made something else without copying the loop,
    for this one guest and this one thread.
    """

    def __init__(self, driver: Any, host: Any,
                 shutdown: Callable[[Any], None]) -> None:
        self._real = driver
        self._host = _Host(host, shutdown)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
