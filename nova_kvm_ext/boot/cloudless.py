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

"""Nova in one process without a cloud.

Gives the driver what Nova provides in a cloud: configuration, Nova's main
database in an SQLite file, an image service that serves one local file, and an
instance. It changes nothing outside its own directory and starts no guest.
"""

import datetime
import os
import shutil
import subprocess
from typing import Any
import uuid

from nova.compute import vm_states
import nova.conf
from nova import config
from nova import context as nova_context
from nova.db.main import api as db_api
from nova.db.main import models
from nova.network import model as network_model
from nova import objects
import nova.privsep
from nova import utils
from nova.virt import fake
from nova.virt import hardware
from nova.virt import images
from oslo_log import log as oslo_logging

from nova_kvm_ext.boot import leftovers
from nova_kvm_ext import errors
from nova_kvm_ext.host import configuration

CONF = nova.conf.CONF

# An operator's own nova.conf may be given, for its CPU choice and libvirt
# settings. What would make a throw-away guest reach other guests, other
# machines or the cloud's services is set aside, whatever that file says.
_SET_ASIDE: tuple[tuple[str | None, str, Any], ...] = (
    (None, 'host', 'nova-kvm-ext'),
    # Nova's own template counts up, so would reuse a real guest's name.
    (None, 'instance_name_template',
     leftovers.DOMAIN_PREFIX + '%(uuid)s'),
    (None, 'use_syslog', False),
    (None, 'use_journal', False),
    (None, 'use_stderr', False),
    (None, 'log_config_append', None),
    (None, 'log_dir', None),
    # Would switch off CPUs that real guests are pinned to.
    ('libvirt', 'cpu_power_management', False),
    ('compute', 'cpu_dedicated_set', None),
    ('compute', 'cpu_shared_set', None),
    ('libvirt', 'images_type', 'default'),
    ('libvirt', 'pmem_namespaces', []),
    ('libvirt', 'swtpm_enabled', False),
    ('libvirt', 'volume_use_multipath', False),
    ('libvirt', 'volume_enforce_multipath', False),
    ('devices', 'enabled_mdev_types', []),
    ('pci', 'device_spec', []),
    ('vnc', 'enabled', False),
    ('spice', 'enabled', False),
    ('serial_console', 'enabled', False),
)


def configure(directory: str, state_path: str,
              config_files: list[str]) -> None:
    """Load Nova's configuration and keep its state in one directory.

    Runs what Nova would hand to its privileged daemon in this process, which
    therefore has to be root.

    :param directory: an existing directory that QEMU's user can traverse
    :param state_path: where the driver saves answers from boot to boot
    :param config_files: nova.conf files, later ones first in rank
    :raises errors.InvalidOption: a file cannot be used
    """
    empty = os.path.join(directory, 'no-config.d')
    os.makedirs(empty, exist_ok=True)
    # An explicit empty directory keeps oslo.config from /etc/nova/*.conf.d.
    arguments = ['nova-kvm-ext', '--config-dir', empty]
    for path in config_files:
        arguments += ['--config-file', path]
    with configuration.parsed(config_files):
        config.parse_args(arguments, default_config_files=[],
                          configure_db=False, init_rpc=False)
    database = f'sqlite:///{os.path.join(directory, "nova.sqlite")}'
    for group, name, value in _SET_ASIDE + (
            (None, 'state_path', state_path),
            (None, 'instances_path', os.path.join(directory, 'instances')),
            (None, 'log_file', os.path.join(directory, 'nova.log')),
            ('oslo_concurrency', 'lock_path',
             os.path.join(directory, 'locks')),
            ('database', 'connection', database),
            ('api_database', 'connection', database)):
        CONF.set_override(name, value, group=group)
    oslo_logging.setup(CONF, 'nova')
    nova.conf.neutron.register_dynamic_opts(CONF)
    nova.privsep.sys_admin_pctxt.set_client_mode(False)
    os.makedirs(CONF.instances_path, exist_ok=True)
    objects.register_all()
    db_api.configure(CONF)
    models.BASE.metadata.create_all(db_api.get_engine())
    # The driver switches its compute service on and off. Not by the object,
    # which would announce it on a message queue.
    db_api.service_create(context(), {
        'host': CONF.host, 'binary': 'nova-compute', 'topic': 'compute',
        'report_count': 0, 'disabled': False})


class LocalImage:
    """An image service with one image, the file at ``path``.

    Stands where Nova has its Glance client, so that the image goes through
    Nova's own checks, conversion and cache.

    :param disk_format: as Glance would declare it, ``qcow2`` for example
    :param properties: image properties, as a tenant would set them
    """

    def __init__(self, path: str, disk_format: str,
                 properties: dict[str, str]) -> None:
        self.path = path
        self.id = str(uuid.uuid4())
        self._meta: dict[str, Any] = {
            'id': self.id, 'name': os.path.basename(path),
            'status': 'active', 'container_format': 'bare',
            'disk_format': disk_format, 'size': os.path.getsize(path),
            'min_disk': 0, 'min_ram': 0, 'owner': None, 'checksum': None,
            'properties': dict(properties),
        }

    def get(self, context: Any, image_id: str,
            *args: Any, **kwargs: Any) -> dict[str, Any]:
        return dict(self._meta)

    def download(self, context: Any, image_id: str,
                 data: Any = None, dest_path: str | None = None,
                 trusted_certs: Any = None) -> None:
        assert dest_path is not None, 'Nova fetches disk images into a file'
        shutil.copyfile(self.path, dest_path)

    def serve(self, driver: Any) -> None:
        """Take Glance's place for a driver and for Nova's image cache."""
        images.IMAGE_API = self
        driver._image_api = self

    def meta(self) -> objects.ImageMeta:
        """The image as Nova sees it.

        :raises errors.InvalidOption: a property has a value that Nova does
            not allow
        """
        for key, value in self._meta['properties'].items():
            # One by one, because Nova's error does not name the property.
            try:
                objects.ImageMetaProps.from_dict({key: value})
            except ValueError as e:
                raise errors.InvalidOption(
                    f'Nova refuses the image property {key}={value}: '
                    f'{errors.clean(e)}.') from e
        return objects.ImageMeta.from_dict(dict(self._meta))


def virtapi() -> Any:
    """What a driver uses to call the compute manager: waits for nothing."""
    return fake.FakeVirtAPI()


def context() -> Any:
    return nova_context.RequestContext(
        user_id='nova-kvm-ext', project_id='nova-kvm-ext', is_admin=True)


def create_instance(ctx: Any, instance_uuid: str, image: LocalImage, *,
                    vcpus: int, memory_mb: int,
                    extra_specs: dict[str, str]) -> objects.Instance:
    """Create the database record of an instance, as the API would.

    :param memory_mb: memory in MiB
    :raises errors.InvalidOption: flavor and image ask for something that only
        a cloud can give, or contradict each other
    """
    flavor = objects.Flavor(
        id=1, flavorid='nova-kvm-ext', name='nova-kvm-ext', vcpus=vcpus,
        memory_mb=memory_mb, root_gb=0, ephemeral_gb=0, swap=0,
        rxtx_factor=1.0, vcpu_weight=0, disabled=False, is_public=False,
        description=None, extra_specs=dict(extra_specs), projects=[],
        created_at=None, updated_at=None, deleted_at=None, deleted=False)
    image_meta = image.meta()
    try:
        numa_topology = hardware.numa_get_constraints(flavor, image_meta)
    except Exception as e:
        # Each bad extra spec has an exception class of its own in Nova.
        raise errors.InvalidOption(
            f'Nova refuses this flavor and image: {errors.clean(e)}.') from e
    if numa_topology is not None:
        raise errors.InvalidOption(
            'The flavor or image asks for NUMA, huge pages or dedicated '
            'CPUs: which of this host\'s are free only a cloud knows.',
            'Leave those extra specs and properties out.')
    instance = objects.Instance(
        ctx, uuid=instance_uuid, user_id=ctx.user_id,
        project_id=ctx.project_id, host=CONF.host, node=CONF.host,
        compute_id=1, hostname='nova-kvm-ext', display_name='nova-kvm-ext',
        display_description='throw-away guest', image_ref=image.id,
        kernel_id='', ramdisk_id='', vcpus=vcpus, memory_mb=memory_mb,
        root_gb=0, ephemeral_gb=0, flavor=flavor, old_flavor=None,
        new_flavor=None, vm_state=vm_states.BUILDING, task_state=None,
        power_state=None, config_drive='', os_type=None, architecture=None,
        root_device_name=None, key_data=None, key_name=None,
        launched_at=datetime.datetime.now(datetime.timezone.utc),
        metadata={}, numa_topology=None, trusted_certs=None, vcpu_model=None,
        resources=None, pci_requests=objects.InstancePCIRequests(
            instance_uuid=instance_uuid, requests=[]),
        system_metadata=utils.get_system_metadata_from_image(
            image.get(ctx, image.id), flavor))
    instance.create()
    # What a driver reads and create() leaves unset.
    instance.pci_devices = objects.PciDeviceList(objects=[])
    instance.device_metadata = None
    instance.migration_context = None
    return instance


def network(tap: str | None,
            bridge: str | None) -> network_model.NetworkInfo:
    """No port, or one whose tap device Nova creates and deletes.

    VIF type tap needs no os-vif plugin: the Linux bridge one is gone since
    os-vif 5 (Nova 34). The caller adds the tap to the bridge when it is there.

    :param tap: name for the tap device
    :param bridge: name of an existing Linux bridge
    :raises errors.HostError: there is no such bridge
    """
    if tap is None or bridge is None:
        return network_model.NetworkInfo([])
    if not os.path.isdir(f'/sys/class/net/{bridge}/bridge'):
        raise errors.HostError(
            f'--nic bridge={bridge}: there is no such Linux bridge.',
            f'Make it: ip link add {bridge} type bridge && '
            f'ip link set {bridge} up')
    port = str(uuid.uuid4())
    # 52:54:00 is QEMU's own prefix, locally administered.
    mac = ':'.join(['52', '54', '00', port[0:2], port[2:4], port[4:6]])
    return network_model.NetworkInfo([network_model.VIF(
        id=port, address=mac, devname=tap, active=True,
        type=network_model.VIF_TYPE_TAP,
        vnic_type=network_model.VNIC_TYPE_NORMAL,
        network=network_model.Network(
            id=str(uuid.uuid4()), bridge=bridge, label='nova-kvm-ext',
            subnets=[]))])


def add_to_bridge(tap: str, bridge: str) -> None:
    """Plug a tap device into a Linux bridge, as Neutron's agent would.

    :raises errors.HostError: ``ip`` refuses
    """
    result = subprocess.run(['ip', 'link', 'set', tap, 'master', bridge],
                            capture_output=True, text=True, timeout=30)
    if result.returncode:
        raise errors.HostError(
            f'{tap} cannot be added to the bridge {bridge}: '
            f'{errors.clean(result.stderr)}.')
