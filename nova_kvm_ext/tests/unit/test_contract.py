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

"""Every name and signature of Nova's private API that this package relies on.

Run against a new Nova release before anything else: a failure lists, one line
each, what has moved.
"""

import ast
import importlib
import inspect
import re
import textwrap
from typing import Any

import nova.conf
from nova import objects
from oslotest import base
from testtools import matchers

from nova_kvm_ext import contract

LIBVIRT_DRIVER = 'nova.virt.libvirt.driver:LibvirtDriver'

# How we call what we call: positional and keyword arguments, self left out.
CALLS: dict[str, tuple[int, tuple[str, ...]]] = {
    f'{LIBVIRT_DRIVER}.__init__': (2, ()),
    f'{LIBVIRT_DRIVER}.init_host': (1, ()),
    f'{LIBVIRT_DRIVER}._create_guest': (3, ('power_on',)),
    f'{LIBVIRT_DRIVER}._live_migration_operation': (7, ()),
    f'{LIBVIRT_DRIVER}._set_host_enabled': (1, ('disable_reason',)),
    f'{LIBVIRT_DRIVER}.attach_interface': (4, ()),
    f'{LIBVIRT_DRIVER}.attach_volume': (7, ()),
    f'{LIBVIRT_DRIVER}.get_available_resource': (1, ()),
    f'{LIBVIRT_DRIVER}._get_instance_disk_info_from_config': (2, ()),
    f'{LIBVIRT_DRIVER}._get_vcpu_used': (0, ()),
    f'{LIBVIRT_DRIVER}._get_disk_over_committed_size_total': (0, ()),
    'nova.virt.libvirt.host:Host.has_min_version': (1, ()),
    f'{LIBVIRT_DRIVER}._get_pci_passthrough_devices': (0, ()),
    'nova.virt.libvirt.host:Host._connect': (2, ()),
    'nova.virt.libvirt.guest:Guest.get_vcpus_info': (0, ()),
    f'{LIBVIRT_DRIVER}.manage_image_cache': (2, ()),
    f'{LIBVIRT_DRIVER}.spawn': (6, ('network_info', 'block_device_info')),
    f'{LIBVIRT_DRIVER}.destroy': (3, ()),
    f'{LIBVIRT_DRIVER}._get_guest_config': (4, ()),
    f'{LIBVIRT_DRIVER}._get_guest_xml': (5, ()),
    f'{LIBVIRT_DRIVER}.live_migration': (7, ()),
    f'{LIBVIRT_DRIVER}._live_migration': (7, ()),
    f'{LIBVIRT_DRIVER}.live_migration_abort': (1, ()),
    f'{LIBVIRT_DRIVER}.live_migration_force_complete': (1, ()),
    f'{LIBVIRT_DRIVER}._live_migration_monitor': (10, ()),
    f'{LIBVIRT_DRIVER}._get_migration_flags': (1, ()),
    f'{LIBVIRT_DRIVER}._is_post_copy_enabled': (1, ()),
    f'{LIBVIRT_DRIVER}._get_vpmems': (1, ()),
    f'{LIBVIRT_DRIVER}.pre_live_migration': (6, ()),
    f'{LIBVIRT_DRIVER}._hard_reboot': (3, ('share_info',)),
    f'{LIBVIRT_DRIVER}._check_emulation_arch': (1, ()),
    f'{LIBVIRT_DRIVER}._match_cpu_model_by_flags': (2, ()),
    f'{LIBVIRT_DRIVER}._compare_cpu': (3, ()),
    f'{LIBVIRT_DRIVER}._has_numa_support': (0, ()),
    f'{LIBVIRT_DRIVER}._get_cpu_feature_traits': (0, ()),
    f'{LIBVIRT_DRIVER}.post_live_migration_at_destination': (5, ()),
    f'{LIBVIRT_DRIVER}.update_provider_tree': (3, ()),
    'nova.virt.libvirt.host:Host.get_capabilities': (0, ()),
    'nova.virt.libvirt.host:Host.get_guest': (1, ()),
    'nova.virt.libvirt.host:Host.list_guests': (0, ()),
    'nova.virt.libvirt.guest:Guest.get_xml_desc': (0, ()),
    'nova.virt.libvirt.guest:Guest.is_active': (0, ()),
    'nova.virt.libvirt.utils:get_default_machine_type': (1, ()),
    # Remotable class methods, whose class the signature leaves out.
    'nova.objects.instance:InstanceList.get_by_host': (
        1, ('expected_attrs',)),
    'nova.objects.instance_action:InstanceActionEvent.event_start': (
        2, ('want_result',)),
    'nova.objects.instance_action:InstanceActionEvent.event_finish': (
        2, ('want_result',)),
    'nova.objects.migration:Migration.get_by_instance_and_status': (2, ()),
    f'{LIBVIRT_DRIVER}._try_fetch_image_cache': (7, ()),
    f'{LIBVIRT_DRIVER}.cache_image': (2, ()),
    'nova.virt.images:get_info': (2, ()),
    'nova.virt.images:do_image_deep_inspection': (3, ()),
    'nova.virt.libvirt.utils:fetch_image': (
        0, ('context', 'target', 'image_id', 'trusted_certs')),
    # Called as Nova calls it, and replaced while disks are looked at.
    'nova.privsep.qemu:unprivileged_qemu_img_info': (1, ('format',)),
    'nova.privsep.utils:supports_direct_io': (1, ()),
    'nova.virt.libvirt.imagecache:get_cache_fname': (1, ()),
    'nova.utils:synchronized': (1, ('external', 'lock_path')),
    'nova.compute.provider_tree:ProviderTree.data': (1, ()),
    'nova.compute.provider_tree:ProviderTree.add_traits': (2, ()),
    'nova.compute.provider_tree:ProviderTree.remove_traits': (2, ()),
    'nova.virt.libvirt.host:Host.initialize': (0, ()),
    'nova.virt.libvirt.host:Host.get_connection': (0, ()),
    'nova.virt.libvirt.host:Host._conn_event_thread': (0, ()),
    'nova.virt.libvirt.vif:LibvirtGenericVIFDriver.__init__': (1, ()),
    f'{LIBVIRT_DRIVER}._requires_quiesce': (1, ()),
    f'{LIBVIRT_DRIVER}._set_quiesced': (4, ()),
    f'{LIBVIRT_DRIVER}.snapshot': (4, ()),
    f'{LIBVIRT_DRIVER}.suspend': (2, ()),
    f'{LIBVIRT_DRIVER}.resume': (3, ()),
    f'{LIBVIRT_DRIVER}.get_info': (1, ()),
    f'{LIBVIRT_DRIVER}.get_available_nodes': (0, ()),
    'nova.virt.libvirt.host:Host._wrap_libvirt_proxy': (1, ()),
    'nova.virt.libvirt.guest:Guest.__init__': (1, ()),
    'nova.virt.libvirt.guest:Guest.sync_guest_time': (0, ()),
    # Nova's own code is left to call these; we are called around them.
    'nova.virt.libvirt.guest:Guest.freeze_filesystems': (0, ()),
    'nova.virt.libvirt.guest:Guest.thaw_filesystems': (0, ()),
    'nova.virt.libvirt.guest:Guest.snapshot': (
        1, ('no_metadata', 'disk_only', 'reuse_ext', 'quiesce')),
    'nova.virt.libvirt.guest:Guest.set_user_password': (2, ()),
    'nova.virt.libvirt.guest:Guest.shutdown': (0, ()),
    'nova.exception:InstanceQuiesceFailed': (0, ('reason',)),
    'nova.exception:QemuGuestAgentNotEnabled': (1, ()),
    'nova.exception:InstanceAgentNotEnabled': (1, ()),
    'nova.exception:InternalError': (1, ()),
    'nova.virt.libvirt.vif:LibvirtGenericVIFDriver.get_config': (5, ()),
    'nova.virt.libvirt.vif:LibvirtGenericVIFDriver.plug': (2, ()),
    'nova.virt.hardware:get_vif_multiqueue_constraint': (2, ()),
    'nova.objects.migrate_data:VIFMigrateData.get_dest_vif': (0, ()),
    'nova.api.validation.extra_specs.base:ExtraSpecValidator': (
        0, ('name', 'description', 'value')),
    'nova.objects:Service.get_by_compute_host': (2, ()),
    'nova.context:get_admin_context': (0, ()),
    'nova.virt.libvirt.config:LibvirtConfigGuest.add_device': (1, ()),
    'nova.virt.libvirt.config:LibvirtConfigGuestChannel.format_dom': (0, ()),
    'nova.virt.libvirt.blockinfo:get_disk_info': (3, ()),
    'nova.virt.images:fetch': (3, ('trusted_certs',)),
    'nova.virt.libvirt.imagebackend:Backend.by_libvirt_path': (
        2, ('image_type',)),
    'nova.virt.libvirt.imagebackend:Rbd.direct_snapshot': (5, ()),
    'nova.storage.rbd_utils:RBDDriver.create_snap': (
        2, ('pool', 'protect')),
    'nova.storage.rbd_utils:RBDVolumeProxy.__init__': (2, ('pool',)),
    'nova.storage.rbd_utils:RBDDriver.remove_snap': (
        2, ('ignore_errors', 'force')),
    'nova.virt.hardware:numa_get_constraints': (2, ()),
    'nova.image.glance:API.get': (2, ()),
    'nova.image.glance:API.update': (3, ('data', 'purge_props')),
    'nova.image.glance:API.download': (2, ('dest_path', 'trusted_certs')),
    'nova.config:parse_args': (
        1, ('default_config_files', 'configure_db', 'init_rpc')),
    'nova.db.main.api:configure': (1, ()),
    'nova.db.main.api:get_engine': (0, ()),
    'nova.db.main.api:service_create': (2, ()),
    'nova.utils:get_system_metadata_from_image': (2, ()),
    'nova.conf.neutron:register_dynamic_opts': (1, ()),
    'nova.virt.fake:FakeVirtAPI.__init__': (0, ()),
    'nova.version:version_string': (0, ()),
}

# Attributes that we read or set on Nova's objects, once made.
ATTRIBUTES = {
    'nova.virt.libvirt.config:LibvirtConfigGuest': ('devices', 'cpu'),
    'nova.virt.libvirt.config:LibvirtConfigGuestCPU': (
        'mode', 'model', 'vendor', 'features', 'match'),
    'nova.virt.libvirt.config:LibvirtConfigGuestCPUFeature': ('policy',),
    'nova.virt.libvirt.config:LibvirtConfigGuestChannel': (
        'type', 'target_name', 'source_path'),
    'nova.virt.libvirt.config:LibvirtConfigGuestInterface': (
        'net_type', 'model', 'driver_name', 'mac_addr', 'vhost_queues'),
    'nova.objects.migrate_data:VIFMigrateData': ('vif_details', 'source_vif'),
    'nova.objects.migrate_data:LibvirtLiveMigrateData': ('vifs',),
}

NAMES = (
    'nova.virt.images:IMAGE_API', 'nova.privsep:sys_admin_pctxt',
    'nova.db.main.models:BASE', 'nova.exception:InvalidConfiguration',
    'nova.exception:InvalidCPUInfo', 'nova.exception:HypervisorUnavailable',
    'nova.exception:ComputeResourcesUnavailable',
    'nova.exception:InvalidInput', 'nova.exception:MigrationPreCheckError',
    'nova.virt.libvirt.utils:CPU_TRAITS_MAPPING',
    'nova.virt.libvirt.driver:libvirt',
    'nova.api.validation.extra_specs.base:ExtraSpecValidator',
    'nova.exception:InstanceQuiesceNotSupported',
    'nova.exception:InstanceNotFound', 'nova.exception:NovaException',
    'nova.exception:ComputeHostNotFound',
    'nova.virt.libvirt.driver:DISABLE_PREFIX',
    'nova.privsep:sys_admin_pctxt.client_mode',
    # Read from the source, without an import, by host/facts.
    'nova.virt.libvirt.driver:MIN_LIBVIRT_VERSION',
    'nova.virt.libvirt.driver:MIN_QEMU_VERSION',
    'nova.virt.libvirt.driver:NEXT_MIN_LIBVIRT_VERSION',
    'nova.virt.libvirt.driver:NEXT_MIN_QEMU_VERSION',
    'nova.utils:get_root_helper',
    'nova.exception:ImageUnacceptable', 'nova.exception:InvalidDiskInfo',
    'nova.exception:ImageNotAuthorized', 'nova.exception:ImageBadRequest',
    'nova.exception:ImageQuotaExceeded', 'nova.exception:Forbidden',
    'nova.compute.power_state:SHUTDOWN',
    'nova.exception:FlavorDiskSmallerThanImage',
    'nova.compute.utils:disk_ops_semaphore',
    'nova.network.model:VIF_TYPE_TAP', 'nova.compute.vm_states:BUILDING',
    'nova.compute.vm_states:PAUSED', 'nova.compute.vm_states:SUSPENDED',
    'nova.compute.task_states:SHELVING',
)

OPTIONS = (
    (None, 'instances_path'), (None, 'state_path'), (None, 'host'),
    (None, 'instance_name_template'), (None, 'shutdown_timeout'),
    (None, 'update_resources_interval'),
    (None, 'instance_name_template'), (None, 'compute_driver'),
    (None, 'reserved_host_disk_mb'), (None, 'rootwrap_config'),
    ('workarounds', 'disable_rootwrap'), ('libvirt', 'hw_machine_type'),
    ('libvirt', 'connection_uri'),
    ('libvirt', 'virt_type'), ('libvirt', 'cpu_mode'),
    ('libvirt', 'cpu_models'), ('libvirt', 'cpu_model_extra_flags'),
    ('libvirt', 'cpu_power_management'), ('libvirt', 'pmem_namespaces'),
    ('libvirt', 'images_type'), ('libvirt', 'images_rbd_pool'),
    ('libvirt', 'images_rbd_ceph_conf'), ('libvirt', 'rbd_user'),
    ('libvirt', 'rbd_secret_uuid'), ('libvirt', 'swtpm_enabled'),
    ('compute', 'cpu_dedicated_set'), ('compute', 'cpu_shared_set'),
    ('devices', 'enabled_mdev_types'), ('pci', 'device_spec'),
    (None, 'force_raw_images'), ('compute', 'vmdk_allowed_types'),
    ('compute', 'image_type_exclude_list'),
    ('image_cache', 'subdirectory_name'),
    ('workarounds', 'disable_deep_image_inspection'),
    ('libvirt', 'live_migration_downtime'),
    ('libvirt', 'live_migration_bandwidth'),
    ('libvirt', 'live_migration_permit_post_copy'),
    ('libvirt', 'live_migration_permit_auto_converge'),
    ('vnc', 'enabled'), ('spice', 'enabled'), ('serial_console', 'enabled'),
)


def find(path: str) -> Any:
    module, _, names = path.partition(':')
    found = importlib.import_module(module)
    for name in names.split('.'):
        found = getattr(found, name)
    return found


class ContractTestCase(base.BaseTestCase):

    def check(self, differences: list[str]) -> None:
        if differences:
            self.fail('Nova has moved:\n' + '\n'.join(differences))

    def test_calls(self):
        moved = []
        for path, (positional, keywords) in CALLS.items():
            is_method = path.rpartition(':')[2].count('.') == 1
            try:
                inspect.signature(find(path)).bind(
                    *[None] * (positional + is_method),
                    **dict.fromkeys(keywords))
            except (AttributeError, ImportError, TypeError) as e:
                moved.append(f'{path}: {e}')
        self.check(moved)

    def test_overrides(self):
        """Found by reading our classes, so that none can be left out."""
        self.check(contract.differences())

    def test_what_nova_does_with_an_image(self):
        """images/hooks.py does instead what Nova does here.

        A new step is a new check, most likely: look at it, add it to
        images/verdict.py, and then here.
        """
        called = self.called_by('nova.virt.images:fetch_to_raw')
        self.assertEqual({
            '_', 'LOG.debug', 'LOG.warning', 'IMAGE_API.get',
            'check_vmdk_image', 'convert_image', 'do_image_deep_inspection',
            'exception.ImageUnacceptable', 'fetch',
            'fileutils.remove_path_on_error', 'os.rename', 'os.unlink',
            'qemu_img_info'}, called)

    def test_how_nova_asks_qemu_img(self):
        """images/questions.py steps between these two."""
        self.assertIn(
            'nova.privsep.qemu.unprivileged_qemu_img_info(path, '
            'format=format)',
            inspect.getsource(find('nova.virt.images:qemu_img_info')))

    def test_where_nova_asks_about_disks(self):
        """Each of these is under an override that has headers answer."""
        for path, question in (
                (f'{LIBVIRT_DRIVER}._get_instance_disk_info_from_config',
                 'disk_api.get_disk_info(path)'),
                (f'{LIBVIRT_DRIVER}._get_disk_over_committed_size_total',
                 'self._get_instance_disk_info_from_config('),
                (f'{LIBVIRT_DRIVER}.get_available_resource',
                 'self._get_disk_over_committed_size_total()'),
                (f'{LIBVIRT_DRIVER}.manage_image_cache',
                 'self.image_cache_manager.update('),
                ('nova.virt.disk.api:get_disk_info',
                 'images.qemu_img_info(path)'),
                ('nova.virt.libvirt.utils:get_disk_backing_file',
                 'images.qemu_img_info(path, format)')):
            self.assertIn(question, inspect.getsource(find(path)), path)

    def test_nova_saves_a_new_server(self):
        """cpu/hooks.py leaves it to Nova to save the CPU."""
        source = inspect.getsource(find(
            'nova.compute.manager:ComputeManager._build_and_run_instance'))
        spawns = source.index('self.driver.spawn(')
        saves = source.index(
            'instance.save(expected_task_state=task_states.SPAWNING)')
        self.assertGreater(saves, spawns)
        self.assertNotIn('instance.refresh(', source[spawns:saves])

    def test_how_nova_watches_a_live_migration(self):
        """migration/hooks.py hands it another guest and method to call."""
        source = inspect.getsource(
            find(f'{LIBVIRT_DRIVER}._live_migration_monitor'))
        for used in ('guest.get_job_info()', 'post_method(context',
                     'libvirt_migrate.run_tasks(guest',
                     'self._get_migration_flags('):
            self.assertIn(used, source)
        self.assertIn('self._domain.jobStats()', inspect.getsource(
            find('nova.virt.libvirt.guest:Guest.get_job_info')))
        self.assertIn('self._domain.migrateSetMaxDowntime(', inspect.getsource(
            find('nova.virt.libvirt.guest:Guest.'
                 'migrate_configure_max_downtime')))

    def test_how_nova_moves_a_guest(self):
        """migration/hooks.py knows a migration by its migrate_data."""
        source = inspect.getsource(find(f'{LIBVIRT_DRIVER}._live_migration'))
        for used in ('self._live_migration_operation,',
                     'migrate_data, guest,', 'block_migration, migrate_data,'):
            self.assertIn(used, source)
        source = inspect.getsource(
            find(f'{LIBVIRT_DRIVER}._live_migration_monitor'))
        for used in ('recover_method(context', 'find_job_type('):
            self.assertIn(used, source)

    def test_attributes(self):
        self.check([f'{path}: no attribute {name}'
                    for path, names in ATTRIBUTES.items()
                    for made in [find(path)()]
                    for name in names if name not in dir(made)])

    def test_names(self):
        moved = []
        for path in NAMES:
            try:
                find(path)
            except (AttributeError, ImportError) as e:
                moved.append(f'{path}: {e}')
        self.check(moved)

    def test_options(self):
        moved = []
        for group, name in OPTIONS:
            options = nova.conf.CONF[group] if group else nova.conf.CONF
            if name not in options:
                moved.append(f'no option [{group or "DEFAULT"}] {name}')
        self.check(moved)

    def test_modes_that_nova_allows(self):
        """Nova's own cpu_mode must take what maximum is told to it as."""
        allowed = nova.conf.CONF._get_opt_info(
            'cpu_mode', 'libvirt')['opt'].type.choices
        self.assertEqual(
            {'host-model', 'host-passthrough', 'custom', 'none'},
            set(allowed),
            'has Nova learnt maximum? Then cpu/choose.py can forget it')

    def test_what_keeps_a_guest_s_cpu(self):
        """Plain LibvirtDriver must continue reading what cpu/hooks writes."""
        objects.register_all()
        self.assertEqual(
            {'arch', 'vendor', 'topology', 'features', 'mode', 'model',
             'match'}, set(objects.VirtCPUModel.fields))
        self.assertEqual({'policy', 'name'},
                         set(objects.VirtCPUFeature.fields))
        self.assertEqual('1.0', objects.VirtCPUModel.VERSION)

    def called_by(self, path: str) -> set[str]:
        source = textwrap.dedent(inspect.getsource(find(path)))
        return {ast.unparse(node.func) for node in ast.walk(
            ast.parse(source)) if isinstance(node, ast.Call)}

    def test_how_nova_makes_a_snapshot_in_ceph(self):
        """storage/rbd.py takes the same steps, two of them later."""
        self.assertEqual(
            {'LOG.debug', 'RBDVolumeProxy', 'str', 'vol.create_snap',
             'vol.is_protected_snap', 'vol.protect_snap'},
            self.called_by('nova.storage.rbd_utils:RBDDriver.create_snap'))

    def test_what_nova_takes_from_the_driver_for_a_freeze(self):
        """It is called with another object, which has this alone."""
        source = inspect.getsource(find(f'{LIBVIRT_DRIVER}._set_quiesced'))
        self.assertEqual({'self._can_quiesce', 'self._host'}, set(
            re.findall(r'self\.\w+', source)))
        self.assertEqual(
            {'guest.freeze_filesystems()', 'guest.thaw_filesystems()'},
            set(re.findall(r'guest\.\w+\(.*?\)', source)))

    def test_how_nova_stops_the_mirror_of_a_live_snapshot(self):
        """storage/mirrors.py has the guest thawed then."""
        source = inspect.getsource(find(f'{LIBVIRT_DRIVER}._live_snapshot'))
        self.assertIn('dev = guest.get_block_device(disk_path)', source)
        freeze, stop, own, thaw = (source.rindex(words) for words in (
            'self.quiesce(', 'dev.abort_job()', '.chown(',
            'self.unquiesce('))
        self.assertEqual([freeze, stop, own, thaw],
                         sorted((freeze, stop, own, thaw)))

    def test_how_nova_gives_a_snapshot_its_properties(self):
        """When the snapshot has been made, in this thread."""
        called = self.called_by(f'{LIBVIRT_DRIVER}.snapshot')
        self.assertThat(called, matchers.ContainsAll({
            'self._create_snapshot_metadata', 'root_disk.direct_snapshot',
            'self._live_snapshot', 'self._suspend_guest_for_snapshot',
            'self._image_api.update'}))
        source = inspect.getsource(find(f'{LIBVIRT_DRIVER}.__init__'))
        self.assertIn('self._image_api = glance.API()', source)

    def test_what_the_shutdown_code_takes_from_the_driver(self):
        """It is called with another object, which must have all of it."""
        for name in ('_clean_shutdown', '_soft_reboot'):
            source = inspect.getsource(find(f'{LIBVIRT_DRIVER}.{name}'))
            self.assertIn('self._host.get_guest(instance)', source)
            self.assertIn('guest.shutdown()', source)
            self.assertNotIn('super()', source)
            self.assertNotIn('self.__', source)

    def test_what_the_sum_of_vcpus_takes_from_the_driver(self):
        """It is called with another object, which has this alone."""
        source = inspect.getsource(find(f'{LIBVIRT_DRIVER}._get_vcpu_used'))
        self.assertIn('in self._host.list_guests():', source)
        self.assertIn('len(list(vcpus))', source)
        self.assertEqual(1, source.count('self.'))
        self.assertEqual(
            1, source.count('guest.') - source.count('(guest.'))
        self.assertIn('self._uri = uri', inspect.getsource(
            find('nova.virt.libvirt.host:Host.__init__')))

    def test_how_the_sum_of_disks_finds_the_guests(self):
        """It is called with another object, which lists other domains."""
        source = inspect.getsource(find(
            f'{LIBVIRT_DRIVER}._get_disk_over_committed_size_total'))
        self.assertIn('self._host.list_instance_domains(only_running=False)',
                      source)
        self.assertIn('guest = libvirt_guest.Guest(dom)', source)
        self.assertIn('guest.get_config()', source)
        self.assertNotIn('super()', source)

    def test_what_the_list_of_pci_devices_takes_from_the_driver(self):
        """It is called with another object, which has this alone."""
        source = inspect.getsource(find(
            f'{LIBVIRT_DRIVER}._get_pci_passthrough_devices'))
        self.assertIn('self._host.list_all_devices(flags=dev_flags)', source)
        self.assertIn('self._host._get_pcidev_info(', source)
        self.assertEqual(2, source.count('self.'))
        self.assertNotIn('super()', source)

    def test_a_subclass_says_that_the_agent_is_not_there(self):
        """The API shows InstanceAgentNotEnabled and its text to the user."""
        self.assertTrue(issubclass(
            find('nova.exception:QemuGuestAgentNotEnabled'),
            find('nova.exception:InstanceAgentNotEnabled')))
        error = find('nova.exception:InstanceAgentNotEnabled')('our words')
        self.assertEqual('our words', error.format_message())

    def test_instance_fields(self):
        objects.register_all()
        self.check([f'Instance has no field {name}' for name in
                    ('compute_id', 'system_metadata', 'vcpu_model',
                     'trusted_certs', 'pci_requests', 'resources')
                    if name not in objects.Instance.fields])
