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

"""The options of nova.conf that the host checks need, as frozen data.

Pure, except the configuration object that the caller passes. An option that
cannot be used is a fact here, not an error: the check of this option reports
it.
"""

from collections.abc import Callable
import dataclasses
import shlex
from typing import Any

from oslo_config import cfg

from nova_kvm_ext import errors
from nova_kvm_ext import option_values
from nova_kvm_ext.settings import Settings


@dataclasses.dataclass(frozen=True)
class HostOptions:
    """A nova.conf as far as this host must fit it.

    :ivar files: the files that were read; without any, Nova's defaults of
        paths say nothing about this host
    :ivar how: why it is these, for people, or ''
    :ivar settings: the resolved ``[kvm_ext]``, None where it is refused
    :ivar problem: why it, or another option here, is refused, or ''
    :ivar remedy: what repairs that
    :ivar compute_driver: ``[DEFAULT] compute_driver``, None if unset
    :ivar compute_driver_source: the file that set it, or what else did
    :ivar instances_path: ``[DEFAULT] instances_path``
    :ivar state_path: ``[DEFAULT] state_path``
    :ivar machine_types: machine type by architecture, as ``[libvirt]
        hw_machine_type`` has it
    :ivar helper: the words that start privsep's helper
    :ivar helper_option: the option that says so
    :ivar reserved_disk_mb: ``[DEFAULT] reserved_host_disk_mb``
    :ivar images_type: ``[libvirt] images_type``
    :ivar post_copy: ``[libvirt] live_migration_permit_post_copy``
    :ivar rbd_pool: ``[libvirt] images_rbd_pool``
    :ivar ceph_conf: ``[libvirt] images_rbd_ceph_conf``
    :ivar rbd_user: ``[libvirt] rbd_user``; None where it is not set: Nova
        treats an empty one otherwise
    :ivar rbd_secret: ``[libvirt] rbd_secret_uuid``, or ''
    """

    files: tuple[str, ...]
    settings: Settings | None
    problem: str = ''
    remedy: str = ''
    how: str = ''
    compute_driver: str | None = None
    compute_driver_source: str = ''
    instances_path: str = '/var/lib/nova/instances'
    state_path: str = '/var/lib/nova'
    machine_types: tuple[tuple[str, str], ...] = ()
    helper: tuple[str, ...] = ()
    helper_option: str = ''
    reserved_disk_mb: int = 0
    images_type: str = 'default'
    post_copy: bool = False
    rbd_pool: str = 'rbd'
    ceph_conf: str = ''
    rbd_user: str | None = None
    rbd_secret: str = ''

    @property
    def ceph_disks(self) -> bool:
        """Whether Nova makes guests' disks in Ceph."""
        return self.images_type == 'rbd'

    @property
    def ceph(self) -> bool:
        """Whether guests have disks in Ceph, of Nova or of Cinder.

        With Cinder that is known only where nova.conf names user or secret.
        """
        return bool(self.ceph_disks or self.rbd_user or self.rbd_secret)

    @property
    def local_disks(self) -> bool:
        """Whether Nova makes guests' disks as files in instances_path.

        Not of those that boot from a volume. With rbd they are in Ceph, with
        lvm in a volume group.
        """
        return self.images_type not in ('rbd', 'lvm')

    @classmethod
    def from_conf(cls, nova: cfg.ConfigOpts,
                  how: str = '') -> 'HostOptions':
        """Read them; never fails.

        :param nova: a configuration with Nova's options and ours
        :param how: why it was read from these files
        """
        settings = None
        problems: list[errors.KVMExtError] = []
        try:
            settings = Settings.from_conf(nova)
        except errors.InvalidOption as e:
            problems.append(e)

        def value(group: str, name: str, otherwise: Any) -> Any:
            try:
                return nova[group][name] if group else nova[name]
            except (cfg.ConfigSourceValueError,
                    cfg.TemplateSubstitutionError) as e:
                problems.append(errors.InvalidOption(
                    f'[{group or "DEFAULT"}] {name} cannot be used: '
                    f'{errors.clean(str(e).rpartition(" is not valid: ")[2])}'
                    f'.', 'Correct it and start the service again.'))
                return otherwise

        machines = []
        for item in value('libvirt', 'hw_machine_type', ()) or ():
            arch, equals, machine = item.partition('=')
            if equals:
                machines.append((arch.strip(), machine.strip()))
        driver = value('', 'compute_driver', None)
        helper, helper_option = cls._helper(nova, value)
        return cls(
            files=tuple((nova.config_file if 'config_file' in nova else
                         None) or ()), settings=settings,
            how=how, compute_driver=driver,
            compute_driver_source=option_values.source(
                nova, None, 'compute_driver') if driver else '',
            instances_path=value('', 'instances_path', cls.instances_path),
            state_path=value('', 'state_path', cls.state_path),
            machine_types=tuple(machines), helper=helper,
            helper_option=helper_option,
            reserved_disk_mb=value('', 'reserved_host_disk_mb', 0),
            images_type=value('libvirt', 'images_type', 'default'),
            post_copy=value('libvirt', 'live_migration_permit_post_copy',
                            False),
            rbd_pool=value('libvirt', 'images_rbd_pool', 'rbd') or 'rbd',
            ceph_conf=value('libvirt', 'images_rbd_ceph_conf', '') or '',
            rbd_user=value('libvirt', 'rbd_user', None),
            rbd_secret=value('libvirt', 'rbd_secret_uuid', '') or '',
            problem=problems[0].problem if problems else '',
            remedy=problems[0].remedy if problems else '')

    @staticmethod
    def _helper(nova: cfg.ConfigOpts, value: Callable[[str, str, Any], Any]
                ) -> tuple[tuple[str, ...], str]:
        """How oslo.privsep starts the helper, and which option says so.

        Without a command it is nova.utils.get_root_helper() and
        privsep-helper.
        """
        option = '[nova_sys_admin] helper_command'
        nova.register_group(cfg.OptGroup('nova_sys_admin'))
        if 'helper_command' not in nova.nova_sys_admin:
            # nova.privsep registers it, which the commands do not import.
            nova.register_opt(cfg.StrOpt('helper_command'),
                              group='nova_sys_admin')
        command = nova.nova_sys_admin.helper_command
        if command:
            try:
                return tuple(shlex.split(command)), option
            except ValueError:
                # An unclosed quote: oslo.privsep fails over it as well.
                return (command,), option
        if value('workarounds', 'disable_rootwrap', False):
            return (('sudo', 'privsep-helper'),
                    '[workarounds] disable_rootwrap')
        rootwrap = value('', 'rootwrap_config', '/etc/nova/rootwrap.conf')
        return (('sudo', 'nova-rootwrap', rootwrap, 'privsep-helper'),
                '[DEFAULT] rootwrap_config')
