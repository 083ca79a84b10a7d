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

"""The part of the driver for vhost-net, from its start to a guest's end.

Reads facts, has :mod:`policy`, :mod:`queues` and :mod:`proof` decide, applies
the decision to Nova's objects, and turns a refusal into the exception whose
text Nova shows to the user.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import copy
import dataclasses
from typing import Any

from nova import exception
from nova.objects import migrate_data as migrate_data_obj
from nova.virt import hardware
from nova.virt.libvirt import config as vconfig

from nova_kvm_ext import designer
from nova_kvm_ext import errors
from nova_kvm_ext.host import facts
from nova_kvm_ext.host import model
from nova_kvm_ext import log
from nova_kvm_ext import request
from nova_kvm_ext.settings import Settings
from nova_kvm_ext import traits
from nova_kvm_ext.vhost import policy
from nova_kvm_ext.vhost import privileged
from nova_kvm_ext.vhost import process
from nova_kvm_ext.vhost import proof
from nova_kvm_ext.vhost import queues
from nova_kvm_ext import words

LOG = log.getLogger(__name__)

TRAIT = traits.name('vhost_net')

# In the details of a VIF during a live migration, and nowhere else: what the
# destination says of itself, and how many queues the running interface has.
_DESTINATION = 'kvm_ext_vhost_net'
_QUEUES = 'kvm_ext_queues'

_MODULE = 'vhost_net'

_NOT_LOOKED_AT = policy.HostState(False, 'nobody asked')


@contextlib.contextmanager
def _refusals_said() -> Iterator[None]:
    """A refused flavor or image as the exception that Nova does not retry.

    InvalidInput aborts a build instead of trying the next host, and its words
    are in the instance's fault.
    """
    try:
        yield
    except errors.InvalidRequest as e:
        raise exception.InvalidInput(reason=str(e)) from e


class VhostNet:
    """vhost-net on this host.

    Until :meth:`start`, interfaces are left as Nova has them.
    """

    def __init__(self) -> None:
        self._settings: Settings | None = None
        self._virt_type = ''

    # At the start of the service

    def start(self, settings: Settings, virt_type: str) -> None:
        """Load the module if it is to be, and see whether the host can.

        :param virt_type: the resolved one
        :raises errors.HostError: it cannot, and ``[kvm_ext] vhost_net`` is
            require
        """
        self._settings, self._virt_type = settings, virt_type
        if virt_type != 'kvm':
            if settings.vhost_net == policy.REQUIRE:
                LOG.warning('KVML301 [kvm_ext] vhost_net = require has no '
                            'effect: there is no vhost-net for guests of '
                            'virt_type = %s.', virt_type)
            return
        if settings.vhost_net == policy.OFF:
            LOG.info('Guests do not use vhost-net: [kvm_ext] vhost_net = off.')
            return
        state = self._look(load=settings.load_vhost_net)
        if state.can:
            LOG.info('Guests use vhost-net: %s.', state.reason)
            return
        if settings.vhost_net == policy.REQUIRE:
            raise errors.HostError(
                f'[kvm_ext] vhost_net = require, and this host cannot do '
                f'vhost-net: {state.reason}.',
                'Or set [kvm_ext] vhost_net = prefer.')
        LOG.warning('KVML302 Guests do not use vhost-net, on slower userspace '
                    'virtio: %s.', state.reason)

    def _look(self, load: bool = False) -> policy.HostState:
        """Whether the host can do vhost-net at this moment.

        Opening the device loads the module, so this is not done where
        vhost-net is not wanted.

        :param load: run modprobe too if it cannot
        """
        device = facts.read_device(policy.DEVICE)
        modprobe_said = root_error = None
        try:
            if device.open_error in policy.DENIED:
                device = self._read_as_root()
            if load and not policy.opens(device):
                modprobe_said = privileged.modprobe(_MODULE)
                device = self._read_as_root()
        except Exception as e:
            # Of any class: privsep's own and what starting sudo brings. The
            # service can do without the answer, and says what it lacks.
            root_error = errors.clean(e) or type(e).__name__
        return policy.host_state(device, modprobe_said, root_error)

    @staticmethod
    def _read_as_root() -> model.DeviceFacts:
        return model.DeviceFacts(*privileged.read_device(policy.DEVICE))

    def traits(self) -> set[str]:
        """The trait of a host whose KVM guests get vhost-net, if it is one."""
        wanted = (self._settings is not None and self._virt_type == 'kvm' and
                  self._settings.vhost_net != policy.OFF)
        return {TRAIT} if wanted and self._look().can else set()

    # For each interface

    def _decide(self, interface: Any, destination: dict[str, Any] | None = None
                ) -> policy.VhostDecision:
        """The driver of an interface.

        :param destination: what the destination of a live migration said
        """
        assert self._settings is not None
        setting = self._settings.vhost_net
        host = None
        if destination is not None:
            setting = destination['setting']
            host = policy.HostState(
                destination['can'], destination['reason'])
        seen = (self._virt_type, getattr(interface, 'net_type', None),
                getattr(interface, 'model', None))
        if policy.unfit(*seen) is not None or setting == policy.OFF:
            host = _NOT_LOOKED_AT
        return policy.decide(setting, *seen, host or self._look())

    def refine(self, interface: Any, instance: Any, vif: Any,
               image_meta: Any, flavor: Any) -> None:
        """Decide driver and queues of an interface that Nova has built.

        :param interface: nova.virt.libvirt.config.LibvirtConfigGuestInterface
            or a hostdev configuration
        """
        if self._settings is None:
            return
        told = vif.get('details') or {}
        designer.set_vhost(
            interface, self._decide(interface, told.get(_DESTINATION)))
        # vhost-user has its queues from Nova: its switch counts them too.
        if (getattr(interface, 'vhost_queues', None) is None or
                interface.net_type not in policy.TAP_BACKED):
            return
        count = told.get(_QUEUES)
        if vif['type'] in queues.ONE_QUEUE_TAPS:
            count = 1
        if count is None:
            # What asks for nonsense was refused, or is older than we are.
            with contextlib.suppress(errors.InvalidRequest):
                count = min(
                    int(interface.vhost_queues),
                    self._queue_limit(instance, image_meta, flavor).limit)
        if count is not None:
            designer.set_queues(interface, count)

    def image_of_tap(self, instance: Any, vif: Any, image_meta: Any) -> Any:
        """The image by which an interface's queues are decided.

        A guest in rescue has the XML of the rescue image, and the tap device
        that was made for its own.

        :param image_meta: what the interface is made of otherwise
        :returns: ``image_meta``, or a copy with the multiqueue of the
            instance's own image where the tap device is made in advance
        """
        if self._settings is None or not queues.made_before(
                vif['type'], vif.get('details') or {}):
            return image_meta
        try:
            own, seen = (
                hardware.get_vif_multiqueue_constraint(instance.flavor, image)
                for image in (instance.image_meta, image_meta))
        except Exception:
            return image_meta   # Of any class: Nova asks the same next.
        if own == seen:
            return image_meta
        image_meta = image_meta.obj_clone()
        image_meta.properties.hw_vif_multiqueue_enabled = own
        return image_meta

    @staticmethod
    def _asked(instance: Any, flavor: Any) -> request.GuestRequest:
        return request.GuestRequest.read(
            flavor.extra_specs, instance.system_metadata)

    def _queue_limit(self, instance: Any, image_meta: Any,
                     flavor: Any) -> queues.QueueLimit:
        """:raises errors.InvalidRequest: flavor or image are invalid"""
        assert self._settings is not None
        return queues.decide(
            self._asked(instance, flavor), flavor.vcpus,
            hardware.get_vif_multiqueue_constraint(flavor, image_meta),
            self._settings.max_vhost_queues)

    def as_plugged(self, instance: Any, vif: Any,
                   get_config: Callable[..., Any]) -> Any:
        """The instance as Nova has to see it when it makes the tap device.

        :param get_config: of the VIF driver: what the XML will have
        :returns: the instance, or a copy without multiqueue where its
            interface has one queue
        """
        if self._settings is None:
            return instance
        image_meta, flavor = instance.image_meta, instance.flavor
        try:
            if not hardware.get_vif_multiqueue_constraint(flavor, image_meta):
                return instance
            # Of a guest that comes in a live migration from a driver that
            # says how many it runs with.
            count = (vif.get('meta') or {}).get(_QUEUES)
            if count is None:
                count = getattr(get_config(
                    instance, vif, image_meta, flavor, self._virt_type),
                    'vhost_queues', None)
        except Exception:
            return instance     # Of any class: Nova asks the same next.
        if int(count or 1) > 1:
            return instance
        seen = instance.obj_clone()
        seen.flavor.extra_specs.pop('hw:vif_multiqueue_enabled', None)
        seen.system_metadata.pop('image_hw_vif_multiqueue_enabled', None)
        return seen

    # When a guest or a port starts

    def before_start(self, instance: Any, image_meta: Any,
                     guest: Any) -> None:
        """Refuse or log, for each interface of a guest that shall start.

        :param guest: nova.virt.libvirt.config.LibvirtConfigGuest
        :raises nova.exception.InvalidInput: flavor or image are invalid
        :raises nova.exception.ComputeResourcesUnavailable: an interface would
            lose vhost-net, and it is required; Nova tries another host
        """
        if self._settings is None:
            return
        self._check_queues(instance, image_meta)
        for device in guest.devices:
            if isinstance(device, vconfig.LibvirtConfigGuestInterface):
                self._insist(instance, device)

    def before_attach(self, instance: Any, image_meta: Any, vif: Any,
                      get_config: Callable[..., Any]) -> None:
        """The same for one port, before anything of it is plugged in.

        :param get_config: of the VIF driver
        :raises nova.exception.NovaException: as :meth:`before_start`. Nova
            logs it and tells the user that the port could not be attached
        """
        if self._settings is None:
            return
        self._check_queues(instance, image_meta)
        self._insist(instance, get_config(
            instance, vif, image_meta, instance.flavor, self._virt_type))

    def _check_queues(self, instance: Any, image_meta: Any) -> None:
        asked = self._asked(instance, instance.flavor)
        if queues.NAME in asked.flavor or queues.NAME in asked.image:
            with _refusals_said():
                self._queue_limit(instance, image_meta, instance.flavor)

    def _insist(self, instance: Any, interface: Any) -> None:
        decision = self._decide(interface)
        if not decision.lost:
            return
        assert self._settings is not None
        if self._settings.vhost_net == policy.REQUIRE:
            raise exception.ComputeResourcesUnavailable(
                reason=f'interface {interface.mac_addr} would lose vhost-net, '
                f'and [kvm_ext] vhost_net = require: {decision.reason}')
        LOG.warning('KVML303 Interface %(mac)s does not use vhost-net, on '
                    'slower userspace virtio: %(reason)s.',
                    {'mac': interface.mac_addr, 'reason': decision.reason},
                    instance=instance, subject=interface.mac_addr)

    def guest_started(self, instance: Any,
                      get_xml: Callable[[], str]) -> None:
        """Log each interface that lacks what it was promised.

        :param get_xml: gives the running domain's XML
        """
        if (self._settings is None or self._virt_type != 'kvm' or
                self._settings.vhost_net == policy.OFF):
            return
        try:
            xml = get_xml()
            guest = proof.running(xml)
            verdicts = [] if guest is None else proof.judge(
                proof.nics(xml), self._kernel_facts(guest))
        except Exception as e:
            # The guest runs. That it cannot be looked at, whatever the
            # reason, must not fail its start.
            LOG.warning('KVML304 Whether the guest uses vhost-net cannot be '
                        'seen: %s.', errors.clean(e), instance=instance)
            return
        for verdict in verdicts:
            self._say(instance, verdict)

    @staticmethod
    def _kernel_facts(guest: proof.Running) -> model.VhostFacts:
        seen = process.read_vhost([guest])[guest.uuid]
        if seen.fall_backs is None and (seen.descriptors or seen.threads):
            # QEMU's log is root's.
            with contextlib.suppress(Exception):
                seen = dataclasses.replace(
                    seen, fall_backs=privileged.read_fall_backs(guest.name))
        return seen

    def _say(self, instance: Any, verdict: proof.Verdict) -> None:
        assert self._settings is not None
        said = {'mac': verdict.nic.mac, 'details': verdict.details,
                'lacks': words.LACKS_VHOST if verdict.broken else
                'does not use vhost-net, and [kvm_ext] vhost_net = require'}
        # One whose XML another driver wrote, on the source of a migration.
        unasked = (self._settings.vhost_net == policy.REQUIRE and
                   verdict.nic.unfit is None and verdict.uses is False)
        if verdict.broken or unasked:
            LOG.warning('KVML305 Interface %(mac)s %(lacks)s: %(details)s.',
                        said, instance=instance, subject=verdict.nic.mac)
        elif verdict.promised and verdict.uses is None:
            LOG.info('Interface %(mac)s names vhost-net; whether it uses it '
                     'cannot be told (%(details)s).', said, instance=instance)

    # In a live migration

    def answer_migration(self, instance: Any, migrate_data: Any,
                         get_config: Callable[..., Any]) -> None:
        """On the destination: tell the source what its XML shall say.

        Nova has the source write the XML, which knows nothing of this host.

        :param migrate_data: nova.objects.LibvirtLiveMigrateData
        :param get_config: of the VIF driver
        :raises nova.exception.MigrationPreCheckError: an interface would lose
            vhost-net, and it is required here
        """
        vifs = self._migrating(migrate_data)
        if not vifs or self._virt_type != 'kvm':
            return
        assert self._settings is not None
        setting = self._settings.vhost_net
        state = _NOT_LOOKED_AT if setting == policy.OFF else self._look()
        for vif in vifs:
            if setting == policy.REQUIRE and not state.can:
                interface = get_config(
                    instance, vif.get_dest_vif(), instance.image_meta,
                    instance.flavor, self._virt_type)
                try:
                    self._insist(instance, interface)
                except exception.ComputeResourcesUnavailable as e:
                    raise exception.MigrationPreCheckError(
                        reason=e.format_message()) from e
            vif.vif_details = vif.vif_details | {_DESTINATION: {
                'setting': setting, **dataclasses.asdict(state)}}

    def tell_queues(self, instance: Any, migrate_data: Any,
                    get_guest: Callable[..., Any]) -> None:
        """On the source: tell the destination how many queues the guest has.

        The destination makes the tap device before the source writes the XML.
        What Neutron binds there replaces all of a VIF but its ``meta``. The
        VIFs are those that Nova's compute manager would make next.

        :param migrate_data: nova.objects.LibvirtLiveMigrateData
        :param get_guest: of Nova's Host object
        """
        if self._settings is None:
            return
        try:
            vifs = instance.get_network_info()
            if ('vifs' in migrate_data or
                    not hardware.get_vif_multiqueue_constraint(
                        instance.flavor, instance.image_meta) or
                    not any(queues.made_before(
                        vif['type'], vif.get('details') or {})
                        for vif in vifs)):
                return
            running = self._running_queues(get_guest(instance))
            vifs = copy.deepcopy(vifs)
            for vif in vifs:
                count = running.get(vif['address'].lower())
                if count is not None:
                    vif['meta'][_QUEUES] = count
            migrate_data.vifs = (
                migrate_data_obj.VIFMigrateData.create_skeleton_migrate_vifs(
                    vifs))
        except Exception as e:
            # The destination goes by its own options then, as it would
            # without this.
            LOG.warning('KVML306 The queues of the running interfaces cannot '
                        'be told to the destination: %s.', errors.clean(e),
                        instance=instance)

    @staticmethod
    def _running_queues(guest: Any) -> dict[str, int]:
        """How many queues each interface has, by MAC address."""
        return {nic.mac.lower(): nic.queues
                for nic in proof.nics(guest.get_xml_desc())}

    def before_migration(self, instance: Any, migrate_data: Any,
                         get_guest: Callable[..., Any]) -> None:
        """On the source: have each interface keep its number of queues.

        A guest cannot change it while it runs, and the limits may have
        changed since it was started, or be others than the destination's.

        :param migrate_data: nova.objects.LibvirtLiveMigrateData
        :param get_guest: of Nova's Host object
        """
        vifs = self._migrating(migrate_data)
        if not vifs:
            return
        try:
            running = self._running_queues(get_guest(instance))
        except Exception as e:
            # Nova asks for the same XML next, and has its own ways when that
            # fails; before them, an exception would leave a migration behind.
            LOG.warning('KVML307 The queues of the running interfaces cannot '
                        'be seen: %s.', errors.clean(e), instance=instance)
            return
        for vif in vifs:
            count = running.get(vif.source_vif['address'].lower())
            if count is not None:
                vif.vif_details = vif.vif_details | {_QUEUES: count}

    def _migrating(self, migrate_data: Any) -> list[Any]:
        """The VIFs of a live migration; none where Neutron is too old."""
        if (self._settings is None or migrate_data is None or
                'vifs' not in migrate_data):
            return []
        return list(migrate_data.vifs or ())
