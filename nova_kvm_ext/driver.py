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

"""KVMDriver: the overrides of Nova's libvirt driver.

Each override has a few lines and makes no decision: facts go to a pure
function, and its decision goes to the designer. Nova's driver is private API
that changes with each release. So few methods are overridden, each override
calls ``super()`` and refines the result, and passes other arguments unchanged.
"""

from collections.abc import Iterator
import contextlib
import functools
import os
import time
from typing import Any

from nova.compute import power_state
from nova.compute import task_states
from nova import conf as nova_conf
from nova import exception
from nova.virt.libvirt import driver

from nova_kvm_ext import conf
from nova_kvm_ext.cpu import choose
from nova_kvm_ext.cpu import hooks as cpu_hooks
from nova_kvm_ext import designer
from nova_kvm_ext import errors
from nova_kvm_ext.fleet import hooks as fleet_hooks
from nova_kvm_ext.guest_agent import channel
from nova_kvm_ext.guest_agent import hooks as guest_agent_hooks
from nova_kvm_ext.guests import bulk
from nova_kvm_ext.guests import descriptions
from nova_kvm_ext.guests import errands
from nova_kvm_ext.guests import hooks as guests_hooks
from nova_kvm_ext.health import hooks as health_hooks
from nova_kvm_ext.host import hooks as host_hooks
from nova_kvm_ext.host import node_devices
from nova_kvm_ext.host import virt_type
from nova_kvm_ext.images import hooks as images_hooks
from nova_kvm_ext.images import questions
from nova_kvm_ext import log
from nova_kvm_ext.metrics import hooks as metrics_hooks
from nova_kvm_ext.migration import departures
from nova_kvm_ext.migration import hooks as migration_hooks
from nova_kvm_ext.migration import starts
from nova_kvm_ext.settings import Settings
from nova_kvm_ext.storage import hooks as storage_hooks
from nova_kvm_ext import traits
from nova_kvm_ext.vhost import hooks as vhost_hooks
from nova_kvm_ext.vhost import vif

LOG = log.getLogger(__name__)
CONF = nova_conf.CONF
conf.register_opts(CONF)

_OF_QEMU = ('kvm', 'qemu')
"""Types of guests that Nova reaches at qemu:///system."""


@contextlib.contextmanager
def _wrong_options_said() -> Iterator[None]:
    """Turn our refusals into Nova's exception, with the reason in the log.

    The log comes first: what catches the exception logs a traceback.
    """
    try:
        yield
    except errors.KVMExtError as e:
        LOG.critical('KVML101 %s', e)
        raise exception.InvalidConfiguration(str(e)) from e


class KVMDriver(driver.LibvirtDriver):
    """Nova's libvirt driver for operators of KVM hosts.

    Loaded by ``compute_driver = kvm_ext.KVMDriver``.
    """

    def __init__(self, virtapi: Any, read_only: bool = False) -> None:
        # Nova's __init__ reads options too, and its loader takes a bad value
        # for a class of the wrong type.
        with _wrong_options_said():
            settings = Settings.from_conf(CONF)
        for override in settings.overrides:
            LOG.info('%s.', override)
        if CONF.libvirt.virt_type not in _OF_QEMU and (
                settings.virt_type_option == '[kvm_ext] virt_type'):
            # Nova's __init__ takes the URI of libvirt from it.
            CONF.set_override('virt_type', 'kvm', group='libvirt')
        super().__init__(virtapi, read_only)
        self._vhost_net = vhost_hooks.VhostNet()
        self.vif_driver = vif.KVMVIFDriver(
            self._host, vhost_net=self._vhost_net)
        self._cpu = cpu_hooks.CPUHooks(self._host)
        self._departures = departures.Departures()
        self._migrations = migration_hooks.Migrations(self._host)
        self._starts = starts.Starts(self._host)
        self._published = fleet_hooks.Published()
        self._guest_agents = guest_agent_hooks.GuestAgents(self._host)
        self._snapshots = storage_hooks.Snapshots(
            self, self._guest_agents.freezes)
        self._io_pauses = guests_hooks.IOPauses(self._host)
        self._health = health_hooks.Health()
        self._host_check = host_hooks.HostCheck(self, self._health.checked)
        self._images: images_hooks.ImageFetch | None = None
        self._numa_support = False
        self._vcpus = bulk.VCPUs(self._host)
        self._descriptions = descriptions.Descriptions(self._host)
        self._errands = errands.Errands()

    @host_hooks.explains_libvirt_errors
    def init_host(self, host: str) -> None:
        """Settle virt_type and CPU, then let Nova start up with them.

        :raises nova.exception.InvalidConfiguration: an option is wrong, or
            this host cannot run guests; the log has what and the remedy
        """
        metrics_hooks.start(CONF.host)
        with (self._health.starting(),
              host_hooks.process_ends_unless_started(self._host)):
            with _wrong_options_said():
                began = time.monotonic()
                self._settle_options()
                self._host_check.at_start(
                    self._cpu.told, time.monotonic() - began)
            super().init_host(host)
        self._published.start(
            self._host.get_connection, lambda: self._cpu.host, host)
        self._errands.begin(
            self._guest_agents.errands, self._starts.errands,
            functools.partial(self._cpu.errands, host))
        self._guest_agents.service_starts()
        self._images = images_hooks.ImageFetch(Settings.from_conf(CONF))
        self.capabilities.update(self._images.capabilities())

    def _settle_options(self) -> None:
        """Resolve ``[kvm_ext]`` and tell Nova's own options the answer.

        This is the place where the driver changes Nova's options. Nova
        reads virt_type, cpu_mode and cpu_models in its start-up check, in
        the guest's XML, in the VIF driver and for the placement traits, and
        all of them must see the same. It happens before Nova's init_host,
        which reads them first, and asks Nova's Host object for nothing but
        its connection: Host caches capabilities at the first look, which
        must come after Nova has powered up dedicated CPUs.
        """
        settings = Settings.from_conf(CONF)
        # Nova registers its libvirt event loop here, once, whoever calls
        # first. It must precede the first connection.
        self._host.initialize()
        # Nova tries a connection that it has each time it is asked for one.
        connect = self._host.get_connection
        arch = os.uname().machine
        models = (connect().getCPUModelNames(arch)
                  if settings.cpu_models else ())

        def probe_kvm() -> tuple[bool | None, str]:
            return virt_type.probe(
                connect(), arch, choose.as_configured(settings, models),
                cache_file=os.path.join(
                    CONF.state_path, 'kvm-ext-probe.json'),
                places=virt_type.directories(
                    CONF.instances_path, CONF.state_path))

        resolved = virt_type.resolve(settings, probe_kvm)
        choice = self._cpu.settle(settings, resolved.value)
        LOG.info('Guests run with virt_type=%(type)s (%(why)s), '
                 'cpu_mode=%(mode)s (%(mode_option)s)%(models)s.',
                 {'type': resolved.value, 'why': resolved.reason,
                  'mode': choice.mode or 'as Nova chooses',
                  'mode_option': settings.cpu_mode_option,
                  'models': ''.join(f' {m}' for m in choice.models)})
        for name, value in (('virt_type', resolved.value),
                            ('cpu_mode', choice.nova_mode),
                            ('cpu_models', list(choice.nova_models))):
            if CONF.libvirt[name] != value:
                CONF.set_override(name, value, group='libvirt')
        self._vhost_net.start(settings, resolved.value)

    @host_hooks.explains_libvirt_errors
    def _get_guest_config(self, instance: Any, network_info: Any,
                          image_meta: Any, disk_info: Any,
                          *args: Any, **kwargs: Any) -> Any:
        """Nova's finished guest, refined."""
        with self._cpu.configuring(instance):
            guest = super()._get_guest_config(
                instance, network_info, image_meta, disk_info,
                *args, **kwargs)
        self._cpu.configure(guest, instance, image_meta,
                            self._check_emulation_arch)
        wanted = image_meta.properties.get('hw_qemu_guest_agent')
        decision = channel.decide(
            # Nova reads nonsense as False, so only then it matters what the
            # tenant wrote.
            wanted, written=None if wanted is not False else
            instance.system_metadata.get('image_hw_qemu_guest_agent'),
            policy=CONF.kvm_ext.guest_agent)
        if not decision.understood:
            LOG.warning('KVML401 %s guest agent channel: %s.',
                        'A' if decision.attach else 'No', decision.reason,
                        instance=instance)
        designer.set_guest_agent_channel(guest, decision)
        self._vhost_net.before_start(instance, image_meta, guest)
        return guest

    @host_hooks.explains_libvirt_errors
    def _create_guest(self, context: Any, xml: str, instance: Any,
                      *args: Any, **kwargs: Any) -> Any:
        """Every way in which a guest's domain is made comes through here."""
        if instance.task_state == task_states.RESCUING:
            self._starts.check(instance, self._live_migration_uri)
        guest = super()._create_guest(context, xml, instance, *args, **kwargs)
        self._guest_started(instance, guest)
        return guest

    @host_hooks.explains_libvirt_errors
    def attach_interface(self, context: Any, instance: Any, image_meta: Any,
                         vif: Any) -> None:
        # Before Nova plugs it: what it does not catch leaves the VIF plugged.
        self._vhost_net.before_attach(
            instance, image_meta, vif, self.vif_driver.get_config)
        super().attach_interface(context, instance, image_meta, vif)
        self._vhost_net.guest_started(
            instance, lambda: self._host.get_guest(instance).get_xml_desc())

    @host_hooks.explains_libvirt_errors
    def attach_volume(self, context: Any, connection_info: Any,
                      instance: Any, mountpoint: Any, disk_bus: Any = None,
                      device_type: Any = None,
                      encryption: Any = None) -> None:
        super().attach_volume(context, connection_info, instance, mountpoint,
                              disk_bus, device_type, encryption)

    @host_hooks.explains_libvirt_errors
    def _live_migration_operation(
            self, context: Any, instance: Any, dest: Any,
            block_migration: Any, migrate_data: Any, *args: Any,
            **kwargs: Any) -> None:
        with self._migrations.operating(migrate_data):
            super()._live_migration_operation(
                context, instance, dest, block_migration, migrate_data,
                *args, **kwargs)

    def check_can_live_migrate_source(
            self, context: Any, instance: Any, dest_check_data: Any,
            block_device_info: Any = None) -> Any:
        data = super().check_can_live_migrate_source(
            context, instance, dest_check_data, block_device_info)
        self._vhost_net.tell_queues(instance, data, self._host.get_guest)
        return data

    def live_migration(self, context: Any, instance: Any, dest: Any,
                       post_method: Any, recover_method: Any,
                       block_migration: Any = False,
                       migrate_data: Any = None) -> None:
        self._vhost_net.before_migration(
            instance, migrate_data, self._host.get_guest)
        super().live_migration(
            context, instance, dest, post_method, recover_method,
            block_migration, migrate_data)

    def _live_migration(
            self, context: Any, instance: Any, dest: Any, post_method: Any,
            recover_method: Any, block_migration: Any, migrate_data: Any,
            *args: Any, **kwargs: Any) -> None:
        with (self._departures.leaving(instance),
              self._migrations.moving(migrate_data)):
            super()._live_migration(
                context, instance, dest, post_method, recover_method,
                block_migration, migrate_data, *args, **kwargs)

    def _live_migration_monitor(
            self, context: Any, instance: Any, guest: Any, dest: Any,
            post_method: Any, recover_method: Any, block_migration: Any,
            migrate_data: Any, *args: Any, **kwargs: Any) -> None:
        with self._migrations.watching(
                self, context, instance, guest, post_method, recover_method,
                migrate_data) as (guest, post_method, recover_method):
            super()._live_migration_monitor(
                context, instance, guest, dest, post_method, recover_method,
                block_migration, migrate_data, *args, **kwargs)

    def _get_migration_flags(self, *args: Any, **kwargs: Any) -> int:
        """Asked for by the monitor alone, in whose thread it is known."""
        return self._migrations.flags(
            super()._get_migration_flags(*args, **kwargs))

    def live_migration_abort(self, instance: Any) -> None:
        """Nova asks for it too when it starts and finds a migration cut."""
        with self._departures.aborting(instance):
            super().live_migration_abort(instance)

    def pre_live_migration(self, context: Any, instance: Any,
                           block_device_info: Any, network_info: Any,
                           disk_info: Any, migrate_data: Any) -> Any:
        self._vhost_net.answer_migration(
            instance, migrate_data, self.vif_driver.get_config)
        return super().pre_live_migration(
            context, instance, block_device_info, network_info, disk_info,
            migrate_data)

    def post_live_migration_at_destination(
            self, context: Any, instance: Any, network_info: Any,
            block_migration: bool = False,
            block_device_info: Any = None) -> None:
        """A guest has moved here, which is no start."""
        super().post_live_migration_at_destination(
            context, instance, network_info, block_migration,
            block_device_info)
        self._guest_started(instance, self._host.get_guest(instance))
        self._guest_agents.migrated(instance)

    def _guest_started(self, instance: Any, guest: Any) -> None:
        """What there is to do once a guest is here, running or not."""
        get_xml = functools.cache(guest.get_xml_desc)
        self._cpu.started(instance, get_xml)
        self._vhost_net.guest_started(instance, get_xml)
        self._guest_agents.limits.apply(guest)
        self._snapshots.guest_started(instance)

    def _hard_reboot(self, context: Any, instance: Any,
                     *args: Any, **kwargs: Any) -> None:
        """With the CPU that the guest has had, if that is asked for."""
        # A start comes here too.
        self._starts.check(instance, self._live_migration_uri)
        with self._cpu.rebooting(instance, self._check_emulation_arch):
            super()._hard_reboot(context, instance, *args, **kwargs)

    def _has_numa_support(self) -> bool:
        """Nova's answer, which stays yes: asked for twice at each boot."""
        self._numa_support = self._numa_support or super()._has_numa_support()
        return self._numa_support

    def _match_cpu_model_by_flags(self, models: Any, *args: Any,
                                  **kwargs: Any) -> Any:
        """Any model for now: _get_guest_config() chooses the right one.

        Nova would refuse the boot here, and counts neither extra flags nor
        what an image requires.
        """
        if self._cpu.matches_models:
            return models[0]
        return super()._match_cpu_model_by_flags(models, *args, **kwargs)

    def _compare_cpu(self, guest_cpu: Any, host_cpu_str: Any, instance: Any,
                     *args: Any, **kwargs: Any) -> None:
        """A live migration to this host is judged by the guest's own CPU."""
        if not self._cpu.check_guest(
                guest_cpu, instance, self._check_emulation_arch):
            super()._compare_cpu(
                guest_cpu, host_cpu_str, instance, *args, **kwargs)

    def _get_cpu_feature_traits(self) -> dict[str, bool]:
        """Traits about CPU features, as guests here really get them."""
        return self._cpu.feature_traits(super()._get_cpu_feature_traits())

    @host_hooks.explains_libvirt_errors
    def update_provider_tree(self, provider_tree: Any, nodename: str,
                             allocations: Any = None) -> None:
        """Nova's inventory and traits, and this driver's own traits."""
        self._health.placement_answered()
        super().update_provider_tree(provider_tree, nodename, allocations)
        add, remove = traits.changes(
            provider_tree.data(nodename).traits, self._our_traits())
        provider_tree.add_traits(nodename, *add)
        provider_tree.remove_traits(nodename, *remove)

    def _our_traits(self) -> set[str]:
        """The custom traits that are true of this host."""
        images = self._images.traits() if self._images else set()
        return {*self._cpu.our_traits(), *self._vhost_net.traits(), *images}

    def _resume_guest_after_snapshot(
            self, context: Any, live_snapshot: bool,
            original_power_state: int, instance: Any, guest: Any,
            *args: Any, **kwargs: Any) -> None:
        super()._resume_guest_after_snapshot(
            context, live_snapshot, original_power_state, instance, guest,
            *args, **kwargs)
        if not live_snapshot:
            self._guest_agents.resumed(instance, guest)

    def _clean_shutdown(self, instance: Any, timeout: int,
                        retry_interval: int) -> Any:
        """Nova's, after the agent was asked and with the power button only."""
        view, left = self._guest_agents.shut_down(self, instance, timeout)
        return super()._clean_shutdown.__func__(
            view, instance, left, retry_interval)

    def _soft_reboot(self, instance: Any) -> Any:
        """Nova's, with the agent asked first."""
        rebooted = super()._soft_reboot.__func__(
            self._guest_agents.reboot(self, instance), instance)
        if rebooted:
            self._guest_agents.limits.apply(self._host.get_guest(instance))
        return rebooted

    def _can_quiesce(self, instance: Any, image_meta: Any) -> None:
        """Nova's answer, for the channel that the guest really has."""
        seen = self._guest_agents.see(instance)
        super()._can_quiesce(instance, seen.told(image_meta))
        seen.must_listen(instance)

    def _set_quiesced(self, *args: Any) -> None:
        """Nova's, of which the numbers that agents answer are kept."""
        super()._set_quiesced.__func__(
            self._guest_agents.freezes.guests.counting(self), *args)

    def quiesce(self, context: Any, instance: Any, image_meta: Any) -> None:
        self._guest_agents.freezes.quiesce(
            instance, self._requires_quiesce(image_meta),
            functools.partial(self._can_quiesce, instance, image_meta),
            functools.partial(super().quiesce, context, instance, image_meta))

    def unquiesce(self, context: Any, instance: Any, image_meta: Any) -> None:
        self._guest_agents.freezes.unquiesce(instance, functools.partial(
            super().unquiesce, context, instance, image_meta))

    @host_hooks.explains_libvirt_errors
    def _create_image(self, *args: Any, **kwargs: Any) -> Any:
        """Nova's, of disks: in Ceph, too, which has errors of its own."""
        with (contextlib.nullcontext() if self._images is None else
              self._images.asked_once()):
            return super()._create_image(*args, **kwargs)

    @host_hooks.explains_libvirt_errors
    def _cleanup_rbd(self, instance: Any) -> None:
        """Nova's removal of a guest's disks from Ceph."""
        super()._cleanup_rbd(instance)

    @host_hooks.explains_libvirt_errors
    def snapshot(self, context: Any, instance: Any, image_id: Any,
                 update_task_state: Any) -> None:
        """Nova's, of a root disk; its image says whether it is quiesced."""
        with self._snapshots.taking(image_id):
            super().snapshot(context, instance, image_id, update_task_state)

    @host_hooks.explains_libvirt_errors
    def _live_snapshot(self, context: Any, instance: Any, guest: Any,
                       *args: Any, **kwargs: Any) -> None:
        thaw = functools.partial(
            self.unquiesce, context, instance, instance.image_meta)
        with self._snapshots.live(instance, guest, thaw) as mirrored:
            super()._live_snapshot(
                context, instance, mirrored, *args, **kwargs)

    @host_hooks.explains_libvirt_errors
    def _volume_snapshot_create(self, context: Any, instance: Any, guest: Any,
                                *args: Any, **kwargs: Any) -> None:
        required = self._requires_quiesce(instance.image_meta)
        with self._snapshots.of_volume(instance, guest, required) as view:
            super()._volume_snapshot_create(
                context, instance, view, *args, **kwargs)

    def _suspend_guest_for_snapshot(
            self, context: Any, live_snapshot: bool,
            current_power_state: int, instance: Any) -> None:
        """Nova copies the disk of a guest that does not run: a cold one."""
        off = current_power_state == power_state.SHUTDOWN
        suspended = off and self._snapshots.is_suspended(instance)
        # Nova does not suspend a guest that sleeps (S3) or has crashed, and
        # copies its disk.
        if suspended or not (live_snapshot or off):
            image_meta = instance.image_meta
            self._snapshots.cold(
                instance, self._requires_quiesce(image_meta),
                functools.partial(self._can_quiesce, instance, image_meta),
                suspended)
        elif off:
            self._snapshots.of_guest_that_is_off()
        super()._suspend_guest_for_snapshot(
            context, live_snapshot, current_power_state, instance)

    @host_hooks.explains_libvirt_errors
    def get_available_resource(self, nodename: str) -> Any:
        """Nova's periodic look at what this host has, and ours."""
        # Nova asks once a minute ([DEFAULT] update_resources_interval).
        with self._health.updating():
            self._guest_agents.freezes.settle()
            metrics_hooks.keep()
            self._io_pauses.step()
            self._errands.go_on()
            with self._host_check.again():
                return self._published.add_to(
                    super().get_available_resource(nodename))

    def _handle_conn_event(self, enabled: bool, reason: Any) -> None:
        """The connection to libvirt is made, or lost."""
        self._health.connection(enabled, reason)
        super()._handle_conn_event(enabled, reason)

    def _get_vcpu_used(self) -> int:
        """Nova's sum, for which libvirt is asked once."""
        return super()._get_vcpu_used.__func__(
            self._vcpus.view(self))

    def _get_disk_over_committed_size_total(self) -> int:
        """Nova's sum, in which a guest that is busy is not waited for."""
        with self._descriptions.view(self) as view:
            return super()._get_disk_over_committed_size_total.__func__(view)

    if not node_devices.kept_by_nova(driver.LibvirtDriver):
        # Nova 31 to 33: Nova 34 makes the list once (functools.cache).
        def _get_pci_passthrough_devices(self) -> Any:
            """Nova's list of PCI devices, each of which is asked once."""
            return super()._get_pci_passthrough_devices.__func__(
                node_devices.View(self))

    def _get_instance_disk_info_from_config(
            self, *args: Any, **kwargs: Any) -> Any:
        """Nova's look at a guest's disks, without a process for each."""
        with questions.by_headers():
            return super()._get_instance_disk_info_from_config(
                *args, **kwargs)

    def manage_image_cache(self, context: Any, all_instances: Any) -> None:
        """Nova's pass over its image cache, which looks at each disk."""
        with questions.by_headers():
            super().manage_image_cache(context, all_instances)

    def emit_event(self, event: Any) -> None:
        """Why a guest is paused is said before Nova says that it is."""
        self._io_pauses.noticed(event)
        super().emit_event(event)

    def pause(self, instance: Any) -> None:
        with self._io_pauses.pausing(instance):
            super().pause(instance)

    def _can_set_admin_password(self, image_meta: Any) -> None:
        super()._can_set_admin_password(
            self._guest_agents.password_image(image_meta))

    def set_admin_password(self, instance: Any, new_pass: str) -> None:
        with self._guest_agents.setting_password(instance):
            super().set_admin_password(instance, new_pass)

    def get_diagnostics(self, instance: Any) -> Any:
        return (super().get_diagnostics(instance) |
                self._cpu.diagnostics(instance) |
                self._io_pauses.diagnostics(instance) |
                self._migrations.diagnostics(instance) |
                self._guest_agents.diagnostics(instance))

    def _try_fetch_image_cache(self, image: Any, fetch_func: Any,
                               context: Any, filename: Any, image_id: Any,
                               instance: Any, size: Any, *args: Any,
                               **kwargs: Any) -> None:
        """Every way in which a root disk's image is fetched comes here."""
        if self._images is None:
            return super()._try_fetch_image_cache(
                image, fetch_func, context, filename, image_id, instance,
                size, *args, **kwargs)
        with (self._images.paths_hidden(),
              self._images.asked_once()):
            super()._try_fetch_image_cache(
                image, self._images.instead_of(fetch_func, size), context,
                filename, image_id, instance, size, *args, **kwargs)

    def cache_image(self, context: Any, image_id: Any) -> bool:
        """Fetch an image ahead of its first boot."""
        fetched = (self._images is not None and
                   self._images.cache(context, image_id))
        # Nova's sees to the file's age and says what it did.
        return super().cache_image(context, image_id) or fetched
