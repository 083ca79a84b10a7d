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

"""The part of the driver for CPUs: what KVMDriver's overrides call.

Handles Nova's objects and asks libvirt through Nova's Host; decides nothing.
Passes facts to the pure modules of cpu/ and their decisions to the designer.
Turns a refusal into the exception with which Nova shows a text to the user.

The CPU of a running guest is kept in ``instance.vcpu_model``, where Nova keeps
the CPU that it configured. The topology distinguishes the two: Nova always
writes one, and a CPU for a comparison needs none. So plain LibvirtDriver,
which may run the guest next, compares the same CPU.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import contextvars
import functools
import os
import re
from typing import Any

from nova.compute import task_states
from nova import context as nova_context
from nova import exception
from nova import objects
from nova.virt.libvirt import driver as nova_driver
from nova.virt.libvirt import utils as libvirt_utils

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import choose
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import document
from nova_kvm_ext.cpu import reader
from nova_kvm_ext.cpu import stored
from nova_kvm_ext.cpu import traits
from nova_kvm_ext.cpu import usable
from nova_kvm_ext import designer
from nova_kvm_ext import errors
from nova_kvm_ext import live_xml
from nova_kvm_ext import log
from nova_kvm_ext import request
from nova_kvm_ext.settings import Settings

LOG = log.getLogger(__name__)

# libvirt src/cpu/cpu_x86.c: what it cannot parse it cannot run either. Of
# errors without such words it is not known whether the guest would start.
_STUMBLES = re.compile('unknown CPU (feature|model)', re.IGNORECASE)

ArchOf = Callable[[Any], str | None]

_MAPPING = libvirt_utils.CPU_TRAITS_MAPPING


def _runs(xml: str) -> bool:
    """Whether a domain's XML is a running one's: only that has an id."""
    return document.parse(xml, 'the domain\'s XML').get('id') is not None


def _arch(xml: str) -> str | None:
    """The architecture of a domain's guest; None where not told."""
    found = document.parse(xml, 'the domain\'s XML').find('os/type')
    return None if found is None else found.get('arch')


def _vcpu_model(cpu: definition.CPU) -> Any:
    """The object that is kept with the instance; see :func:`stored.cpu_of`."""
    return objects.VirtCPUModel(
        arch=None, vendor=cpu.vendor, topology=None, mode='custom',
        model=cpu.model, match=cpu.match, features=[
            objects.VirtCPUFeature(name=name, policy=policy)
            for name, policy in cpu.features])


class CPUHooks:
    """The CPUs of this host's guests.

    :param host: nova.virt.libvirt.host.Host
    :ivar choice: the host-wide choice; None until :meth:`settle`, and until
        then every hook leaves Nova's result alone
    """

    def __init__(self, host: Any) -> None:
        self._nova_host = host
        self._settings: Settings | None = None
        # Without libvirt's CPU map until that is needed: to read it takes as
        # long as a tenth of Nova's start.
        self._bare: usable.Host | None = None
        self._mapped = False
        self.choice: choose.CPUChoice | None = None
        # What the hard reboot under way in this thread or greenlet is of, and
        # the CPU to keep: Nova configures the guest in the same one.
        self._rebooting: contextvars.ContextVar[
            tuple[str, definition.CPU | None] | None] = (
            contextvars.ContextVar('rebooting', default=None))

    @property
    def host(self) -> usable.Host | None:
        """What guests of this host can have; None until that is settled."""
        return self._host

    @property
    def told(self) -> capabilities.DomainCapabilities | None:
        """What libvirt has told of that."""
        return None if self._bare is None else self._bare.caps

    @property
    def _host(self) -> usable.Host | None:
        if self._bare is not None and not self._mapped:
            self._bare, self._mapped = reader.with_map(self._bare), True
        return self._bare

    def diagnostics(self, instance: Any) -> dict[str, Any]:
        """The guest's exact CPU, for its server's diagnostics.

        ``nova-kvm-ext fleet drain`` reads it there.
        """
        cpu = None if self.choice is None else stored.cpu_of(instance)
        return {} if cpu is None else {stored.DIAGNOSTICS_KEY: cpu.to_xml()}

    # -- at start-up ----------------------------------------------------------

    def settle(self, settings: Settings,
               virt_type: str) -> choose.CPUChoice:
        """Make the host-wide choice. Asks libvirt.

        :param virt_type: the resolved type
        :raises errors.InvalidOption: it cannot be
        :raises errors.HostError: libvirt's answer cannot be read
        """
        self._settings = settings
        self._bare = self._read_host(virt_type)
        self._mapped = False
        host = self._bare
        if settings.cpu_models or settings.extra_flags:
            host = self.host or host
        if host.caps.odd:
            LOG.warning('KVML201 libvirt\'s answer about domain capabilities '
                        'has what this driver does not understand and leaves '
                        'out: %s.', usable.some(host.caps.odd))
        host = self._bare = self._asked(
            host, choose.questions(settings, host))
        self.choice = choose.choose(settings, host)
        for warning in self.choice.warnings:
            LOG.warning('KVML202 %s', warning)
        return self.choice

    def _asked(self, host: usable.Host,
               cpus: tuple[definition.CPU, ...]) -> usable.Host:
        """The host with libvirt's answers about some CPUs, each kept."""
        if not cpus:
            return host
        return reader.with_answers(
            self._nova_host.get_connection(), host, cpus)

    def _read_host(self, virt_type: str) -> usable.Host:
        """What libvirt says of the machine type that guests get by default.

        Asked on the connection: Nova's Host would keep the answer, and must
        not look at the host before Nova's own init_host does.
        """
        arch = os.uname().machine
        unknown = usable.Host(virt_type, capabilities.DomainCapabilities(
            arch=arch, virt_type=virt_type))
        if virt_type not in ('kvm', 'qemu'):
            return unknown
        try:
            return reader.read_host(
                self._nova_host.get_connection(), virt_type, arch,
                libvirt_utils.get_default_machine_type(arch), mapped=False)
        except nova_driver.libvirt.libvirtError as e:
            # KVM that is broken must not keep the service from starting:
            # Nova starts too, and its other guests must be looked after.
            LOG.warning('KVML203 libvirt does not tell which CPUs %(type)s '
                        'guests can have, so that none is refused before it '
                        'fails: %(error)s',
                        {'type': virt_type,
                         'error': errors.with_explanation(e)})
            return unknown

    def errands(self, host: str) -> Iterator[Callable[[], None]]:
        """Keep the CPUs of guests that were started before this driver was.

        :param host: nova-compute's name of this host
        :returns: one thing to do for each such guest
        """
        running = {guest.uuid: guest
                   for guest in self._nova_host.list_guests()}
        if not running:
            return
        # A libvirt that gives the XML at once needs no second question.
        waits = self._nova_host.has_min_version(live_xml.XML_WAITS)
        for instance in objects.InstanceList.get_by_host(
                nova_context.get_admin_context(), host,
                expected_attrs=['vcpu_model']):
            guest = running.get(instance.uuid)
            if guest is not None and stored.cpu_of(instance) is None:
                yield functools.partial(
                    self._look_at, instance, guest, waits)

    def _look_at(self, instance: Any, guest: Any, waits: bool) -> None:
        """Keep the CPU of a running guest, for whose XML nobody waits.

        :param guest: nova.virt.libvirt.guest.Guest
        :param waits: whether libvirt may have to wait for the XML
        :raises errors.HostError: it would wait for QEMU now
        """
        if waits and live_xml.owes(guest._domain):
            raise errors.HostError(
                f'libvirt waits for an answer of QEMU of instance '
                f'{instance.uuid}')
        self.started(instance, guest.get_xml_desc)

    # -- a guest's configuration ----------------------------------------------

    @property
    def matches_models(self) -> bool:
        """Whether the model is chosen by :meth:`configure` in the end.

        Nova's own way, which refuses the boot where extra flags or an image
        would have made the difference, is then not needed.
        """
        return self._host is not None and self._host.known is not None

    @contextlib.contextmanager
    def configuring(self, instance: Any) -> Iterator[None]:
        """Nova writes what it configures over the CPU that a guest has had.

        The CPU that was kept is true until the guest has started with another.
        """
        had = stored.cpu_of(instance) if self.choice is not None else None
        yield
        if had is not None:
            instance.vcpu_model = _vcpu_model(had)

    def _forget(self, instance: Any) -> None:
        """A domain that was defined and not started has no CPU yet.

        A stopped server that was resized or moved gets the CPU of a new one
        when it starts, and nothing must be kept of the one before.
        """
        if stored.cpu_of(instance) is not None:
            instance.vcpu_model = None
            instance.save()

    def configure(self, guest: Any, instance: Any, image_meta: Any,
                  arch_of: ArchOf) -> None:
        """Give Nova's finished guest its CPU.

        :param guest: nova.virt.libvirt.config.LibvirtConfigGuest
        :param arch_of: tells the architecture that an image asks for
        :raises nova.exception.InvalidInput: the request contradicts itself or
            is not allowed; no other host would do better
        :raises nova.exception.InvalidCPUInfo: this host cannot do it
        """
        if self.choice is None or self._host is None:
            return
        found = self._request(instance)
        for name in found.unknown():
            LOG.warning('KVML204 This driver knows no %s. Is it misspelt?',
                        name,
                        instance=instance)
        arch = arch_of(image_meta)
        if guest.cpu is None or arch != self._host_arch:
            self._refuse_emulated(found, arch)
            return
        whose, kept = self._rebooting.get() or ('', None)
        if kept is not None and whose == instance.uuid:
            designer.set_cpu(guest.cpu, kept)
            return
        chosen = self._choose(instance, image_meta, found)
        LOG.debug('CPU: %(mode)s %(model)s, as %(said)s asks.',
                  {'mode': chosen.mode, 'model': chosen.model or '',
                   'said': chosen.said}, instance=instance)
        designer.set_cpu(guest.cpu, chosen.cpu)

    @property
    def _host_arch(self) -> str | None:
        return self._nova_host.get_capabilities().host.cpu.arch

    @staticmethod
    def _request(instance: Any) -> request.GuestRequest:
        return request.GuestRequest.read(
            instance.flavor.extra_specs or {}, instance.system_metadata or {})

    @staticmethod
    def _refuse_emulated(found: request.GuestRequest,
                         arch: str | None) -> None:
        """Nova chooses the CPU of guests of another architecture."""
        with _as_novas(exception.InvalidInput):
            for name in ('cpu_mode', 'cpu_model'):
                wish = found.wish(name)
                if wish is not None:
                    raise errors.InvalidRequest(
                        f'{wish.said}: guests of another architecture than '
                        f'their host\'s (here {errors.clean(arch, 40)}) get '
                        f'the CPU that Nova gives them.',
                        'Leave it out.')

    def _choose(self, instance: Any, image_meta: Any,
                found: request.GuestRequest) -> choose.GuestChoice:
        choice, settings = self.choice, self._settings
        assert choice and settings and self._host
        # At most one question for each model, of which there are some 150.
        self._bare = self._asked(self._host, choose.questions_of_guest(
            choice, found, self._host))
        needs = choose.GuestNeeds(
            found, request.required_traits(instance.flavor.extra_specs or {}),
            frozenset(image_meta.properties.get('traits_required') or ()))

        def on(host: usable.Host) -> choose.GuestChoice:
            return choose.choose_for_guest(
                choice, needs, settings, host, _MAPPING)

        try:
            return on(self._host)
        except errors.InvalidRequest as refused:
            # A host of which nothing is known can do everything: what is
            # refused there is wrong on every host.
            with _as_novas(exception.InvalidInput):
                on(usable.Host('kvm', capabilities.DomainCapabilities()))
            # Nova tries other hosts after this one.
            raise exception.InvalidCPUInfo(reason=str(refused)) from refused

    # -- what a guest got -----------------------------------------------------

    def started(self, instance: Any, get_xml: Callable[[], str]) -> None:
        """Keep the CPU that a guest has now; say so if it had another.

        :param get_xml: gives the XML of its domain, running or not
        """
        if self.choice is None:
            return
        try:
            xml = get_xml()
            runs, got = _runs(xml), self._running_cpu(xml)
        except (nova_driver.libvirt.libvirtError, exception.NovaException,
                errors.HostError) as e:
            if isinstance(e, exception.InstanceNotFound) or (
                    errors.libvirt_error_code(e) ==
                    nova_driver.libvirt.VIR_ERR_NO_DOMAIN):
                # It was deleted meanwhile.
                return
            LOG.warning('KVML205 The guest\'s CPU cannot be read, so that it '
                        'is not known for a live migration: %s',
                        errors.clean(e),
                        instance=instance)
            return
        try:
            if not runs:
                self._forget(instance)
                return
            # Nova may have to ask the database for what was kept.
            had = stored.cpu_of(instance)
            if got is None or got == had:
                return
            if had is not None:
                self._say_drift(instance, had, got)
            instance.vcpu_model = _vcpu_model(got)
            # Nova's compute manager saves a new server as soon as spawn() has
            # returned; where it ends before, :meth:`errands` come to it.
            if instance.task_state != task_states.SPAWNING:
                instance.save()
        except Exception:
            # The guest runs. Nova saves the instance too when it is done, and
            # whatever ails the database must not end the guest.
            LOG.warning('KVML206 The guest\'s CPU could not be kept.',
                        exc_info=True,
                        instance=instance)

    def _running_cpu(self, xml: str) -> definition.CPU | None:
        """The CPU in a domain's live XML, as far as it tells.

        libvirt replaces host-model and custom by what QEMU really gave and
        marks it by check='full' (src/qemu/qemu_process.c,
        qemuProcessUpdateLiveGuestCPU). host-passthrough and maximum stay as
        they are: what host-model gives here is the part of them that can be
        named, and that a host must have to take the guest over.

        :returns: None for a domain that does not run or is emulated on
            another architecture, and where nothing is told
        """
        cpu = definition.CPU.parse(xml, 'the domain\'s XML')
        if not self._is_ours(_arch(xml)):
            return None
        if cpu.mode == 'custom' and cpu.check == 'full' and cpu.model:
            return definition.CPU(
                mode='custom', model=cpu.model, vendor=cpu.vendor,
                match='exact', features=cpu.features)
        expansion = self._host and self._host.caps.host_model
        if (cpu.mode not in ('host-passthrough', 'maximum') or
                not expansion or not _runs(xml)):
            return None
        return definition.CPU(
            mode='custom', model=expansion.model, vendor=expansion.vendor,
            match='minimum', features=definition.CPU(
                features=expansion.features
            ).with_features(cpu.features).features)

    def _is_ours(self, arch: str | None) -> bool:
        """Whether an architecture's guests are those of this host's CPUs."""
        return arch is None or self._host is None or (
            arch == self._host.caps.arch or
            arch in ('x86_64', 'i686') and self._host.is_x86)

    def _say_drift(self, instance: Any, had: definition.CPU,
                   got: definition.CPU) -> None:
        assert self._host is not None
        change = definition.difference(had, got, self._host.known)
        if change:
            LOG.warning('KVML207 The guest has another CPU than before: %s.',
                        change,
                        instance=instance)

    # -- hard reboot ----------------------------------------------------------

    @contextlib.contextmanager
    def rebooting(self, instance: Any, arch_of: ArchOf) -> Iterator[None]:
        """A hard reboot: settle the CPU before Nova destroys the domain.

        :param arch_of: tells the architecture that an image asks for
        :raises nova.exception.InvalidInput: see :meth:`configure`
        :raises nova.exception.InvalidCPUInfo: likewise; the guest still runs
        """
        if self.choice is None:
            yield
            return
        self._look_late(instance)
        kept = self._kept(instance)
        if kept is None and arch_of(instance.image_meta) == self._host_arch:
            self._choose(instance, instance.image_meta,
                         self._request(instance))
        token = self._rebooting.set((instance.uuid, kept))
        try:
            yield
        finally:
            self._rebooting.reset(token)

    def _look_late(self, instance: Any) -> None:
        """Keep the CPU of a guest that :meth:`errands` has not come to."""
        assert self._settings is not None
        if self._settings.keep_guest_cpu and stored.cpu_of(instance) is None:
            self.started(instance, lambda: self._nova_host.get_guest(
                instance).get_xml_desc())

    def _kept(self, instance: Any) -> definition.CPU | None:
        """The CPU to continue with, or None for a new one."""
        had = stored.cpu_of(instance)
        assert self._settings is not None
        if not self._settings.keep_guest_cpu or had is None:
            return None
        if had.match == 'minimum':
            # host-passthrough and maximum: no XML says the whole of it.
            return None
        problem = self._cannot_give(had)
        if problem is None:
            return had
        LOG.warning('KVML208 The guest cannot keep its CPU: %s', problem,
                    instance=instance)
        return None

    # -- live migration -------------------------------------------------------

    def check_guest(self, guest_cpu: Any, instance: Any,
                    arch_of: ArchOf) -> bool:
        """Whether this host can give a guest of another host its CPU.

        :param guest_cpu: objects.VirtCPUModel, or anything else that Nova
            compares
        :param instance: whose guest it is; None at Nova's start-up check
        :param arch_of: tells the architecture that an image asks for
        :returns: False if that is not for this driver to say
        :raises nova.exception.InvalidCPUInfo: it cannot
        """
        if (self._host is None or not self._host.is_x86 or
                not isinstance(guest_cpu, objects.VirtCPUModel) or
                guest_cpu.model is None):
            return False
        if instance is not None and not self._is_ours(
                arch_of(instance.image_meta)):
            # Emulated: the host's CPU has no part in it.
            return False
        problem = self._cannot_give(stored.from_object(guest_cpu))
        if problem is not None:
            LOG.error('KVML209 A guest cannot migrate here: %s', problem)
            raise exception.InvalidCPUInfo(reason=problem)
        return True

    def _cannot_give(self, cpu: definition.CPU) -> str | None:
        """Why this host cannot give that CPU, or None if it can.

        libvirt decides; what is missing is worked out where it does not say.
        Where neither knows, the guest is not refused: the start or the
        migration tells.
        """
        assert self._host is not None
        found, answer = reader.settled(
            self._nova_host.get_connection(), self._host, cpu)
        if answer.possible is None and _STUMBLES.search(answer.words or ''):
            return f'libvirt says: {answer.words}'
        if found.possible is False:
            return (f'{found}.' if found.missing or not answer.words else
                    f'{found} (libvirt says: {answer.words}).')
        for warning in found.warnings:
            LOG.warning('KVML210 %s', warning)
        if found.possible is None:
            LOG.warning('KVML211 Whether this host can give a guest the CPU '
                        'that it has is not known: %(reason)s.%(libvirt)s',
                        {'reason': found, 'libvirt': '' if not answer.words
                         else f' (libvirt says: {answer.words})'})
        return None

    # -- traits ---------------------------------------------------------------

    def feature_traits(self, novas: dict[str, bool]) -> dict[str, bool]:
        """Nova's traits about CPU features, made true.

        :param novas: whether each is true, as Nova has it
        """
        if self.choice is None or self._host is None:
            return novas
        sets = self.choice.guests_features(self._host)
        if not sets:
            return novas
        has = traits.of_features(frozenset().union(*sets), _MAPPING)
        return novas | {name: name in has for name in traits.known(_MAPPING)}

    def our_traits(self) -> frozenset[str]:
        """The modes, models and levels that guests can have."""
        if self.choice is None or self._host is None:
            return frozenset()
        assert self._settings is not None
        return traits.of_host(
            self._host,
            self.choice.models + self._settings.image_cpu_models,
            self.choice.features)


@contextlib.contextmanager
def _as_novas(kind: Callable[..., Exception]) -> Iterator[None]:
    """Turn our refusals into an exception of Nova's."""
    try:
        yield
    except errors.InvalidRequest as e:
        raise kind(reason=str(e)) from e
