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

"""The result of ``[kvm_ext]`` and Nova's ``[libvirt]`` together.

:class:`Settings` is the frozen result that all other modules read. Pure,
except the configuration object that the caller passes: never imports the
global CONF, Nova or libvirt, and decides nothing that depends on the host.
"""

import dataclasses
from typing import Any

from oslo_config import cfg

from nova_kvm_ext import option_values


@dataclasses.dataclass(frozen=True)
class Settings:
    """The host-wide choices of nova.conf, each with the option that made it.

    :ivar virt_type: ``kvm``, ``qemu``, ``auto``, or another type that Nova's
        own option allows
    :ivar cpu_mode: a value of ``[kvm_ext] cpu_mode``, or None where nobody
        chose one
    :ivar cpu_models: models in order of preference; more than one only from
        ``[libvirt] cpu_models``
    :ivar extra_flags: ``[libvirt] cpu_model_extra_flags`` in lower case
    :ivar image_cpu_modes: modes that a tenant may ask for
    :ivar image_cpu_models: models and levels that a tenant may ask for
    :ivar keep_guest_cpu: whether a hard reboot keeps the guest's CPU
    :ivar vhost_net: ``prefer``, ``require`` or ``off``
    :ivar load_vhost_net: whether to load the module at start
    :ivar max_vhost_queues: queues of an interface at most; None for as many
        as the kernel allows
    :ivar guest_agent: a value of ``[kvm_ext] guest_agent``
    :ivar guest_agent_timeout: seconds
    :ivar host_check: ``enforce``, ``warn`` or ``off``
    :ivar resume_io_paused: ``never`` or ``auto``
    :ivar migration_stalled: what happens to a live migration that will not
        converge
    :ivar migration_stalled_allowed: what flavors and images may ask for there
    :ivar image_max_virtual_gb: GiB
    :ivar overrides: what ``[kvm_ext]`` overrides in ``[libvirt]``
    """

    virt_type: str
    virt_type_option: str
    cpu_mode: str | None
    cpu_mode_option: str
    cpu_models: tuple[str, ...]
    cpu_models_option: str
    extra_flags: tuple[str, ...]
    image_cpu_modes: tuple[str, ...]
    image_cpu_models: tuple[str, ...]
    keep_guest_cpu: bool
    vhost_net: str
    load_vhost_net: bool
    max_vhost_queues: int | None
    guest_agent: str
    guest_agent_timeout: int
    host_check: str
    resume_io_paused: str
    migration_stalled: str
    migration_stalled_allowed: tuple[str, ...]
    image_max_virtual_gb: int
    overrides: tuple[option_values.Override, ...] = ()

    @classmethod
    def from_conf(cls, conf: cfg.ConfigOpts) -> 'Settings':
        """Read ``[kvm_ext]`` and the options of ``[libvirt]`` behind it.

        :param conf: a configuration with both groups registered
        :raises errors.InvalidOption: a value is not allowed
        """
        def ours(name: str) -> Any:
            return option_values.read(conf, option_values.OURS, name)

        virt_type = option_values.Pair(conf, 'virt_type', 'virt_type')
        mode = option_values.Pair(conf, 'cpu_mode', 'cpu_mode')
        model = option_values.Pair(conf, 'cpu_model', 'cpu_models')
        overrides = [pair.override() for pair in (virt_type, mode, model)]
        cpu_mode, cpu_models = mode.value, model.value
        if isinstance(cpu_models, str):
            cpu_models = [cpu_models]
        # A mode and a model are one choice of two options. A deployment tool
        # sets [libvirt]'s whether or not they fit what is set here.
        if mode.is_ours and cpu_mode != 'custom' and not model.is_ours and (
                cpu_models):
            overrides.append(mode.override(model))
            cpu_models = []
        elif model.is_ours and not mode.is_ours and cpu_mode not in (
                None, 'custom'):
            overrides.append(model.override(mode))
            cpu_mode = 'custom'
        return cls(
            virt_type=virt_type.value, virt_type_option=virt_type.option,
            cpu_mode=cpu_mode, cpu_mode_option=mode.option,
            cpu_models=tuple(cpu_models), cpu_models_option=model.option,
            overrides=tuple(filter(None, overrides)),
            extra_flags=tuple(
                flag.lower() for flag in option_values.read(
                    conf, option_values.NOVAS, 'cpu_model_extra_flags')),
            image_cpu_modes=tuple(ours('image_cpu_modes')),
            image_cpu_models=tuple(ours('image_cpu_models')),
            keep_guest_cpu=ours('keep_guest_cpu'),
            vhost_net=ours('vhost_net'),
            load_vhost_net=ours('load_vhost_net'),
            max_vhost_queues=ours('max_vhost_queues'),
            guest_agent=ours('guest_agent'),
            guest_agent_timeout=ours('guest_agent_timeout'),
            host_check=ours('host_check'),
            resume_io_paused=ours('resume_io_paused'),
            migration_stalled=ours('migration_stalled'),
            migration_stalled_allowed=tuple(
                ours('migration_stalled_allowed')),
            image_max_virtual_gb=ours('image_max_virtual_gb'))
