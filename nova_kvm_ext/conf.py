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

"""The options of ``[kvm_ext]`` and the one answer they give with Nova's own.

:func:`register_opts` adds the options to a configuration, :func:`list_opts`
hands them to oslo-config-generator, and :class:`Settings` is the frozen
answer that everything else reads. Pure but for the configuration object it
is given: never imports the global CONF, Nova or libvirt, and decides nothing
that depends on the host.
"""

import dataclasses
import re
from typing import Any

from oslo_config import cfg

from nova_kvm_ext import errors

GROUP = cfg.OptGroup(
    'kvm_ext',
    title='KVM driver options',
    help="""
Options of the nova-kvm-ext compute driver (``compute_driver =
kvm_ext.KVMDriver``).

An option left unset here means what ``[libvirt]`` says, so a nova.conf
written for Nova's own libvirt driver works unchanged. An option set in both
groups must have the same value in both; the service refuses to start
otherwise.
""")

_OPTS: list[cfg.Opt] = [
    cfg.StrOpt(
        'virt_type',
        choices=[
            ('kvm', 'Hardware virtualization. The service is told nothing '
                    'about hosts where KVM is broken: guests fail to start.'),
            ('qemu', 'Emulation in software (TCG): works everywhere, slowly.'),
            ('auto', 'kvm where a 64-bit guest really runs under it, qemu '
                     'elsewhere.'),
        ],
        help="""
Virtualization type of the guests.

``auto`` starts a tiny guest under KVM when the service starts, through
libvirt, so as the user that QEMU runs as and with the configured CPU. kvm is
taken only if that guest gets into 64-bit mode and counts to fifty million
within seconds: a /dev/kvm that opens and a libvirt that reports KVM are not
enough, as hosts with broken or emulated nested virtualization have both. The
log says which type was taken and why. The answer is kept under
``[DEFAULT] state_path`` for as long as the kernel, its boot, QEMU, libvirt,
the permissions of /dev/kvm and the CPU choice stay the same.

The test guest is an x86-64 one. On other architectures ``auto`` goes by
whether libvirt offers KVM.

Possible values:

* Unset: what ``[libvirt] virt_type`` says.
* ``kvm``, ``qemu``, ``auto``

Related options:

* ``[libvirt] virt_type``: must agree if both are set.
* ``cpu_mode``: ``host-passthrough`` needs kvm.
"""),
    cfg.StrOpt(
        'cpu_mode',
        choices=[
            ('host-model', 'The named model and features closest to the '
                           'host CPU; guests can migrate between like hosts.'),
            ('host-passthrough', 'The host CPU as it is; guests migrate only '
                                 'between identical hosts. Needs KVM.'),
            ('maximum', 'Every feature that the hypervisor can give. Under '
                        'qemu the best CPU there is; under kvm much the same '
                        'as host-passthrough.'),
            ('custom', 'The model that cpu_model names.'),
            ('none', 'No CPU element: the default of QEMU (qemu64), on which '
                     'guests built for x86-64-v2 or later do not boot.'),
        ],
        help="""
CPU mode of the guests.

Possible values:

* Unset: what ``[libvirt] cpu_mode`` says.
* ``host-model``, ``host-passthrough``, ``maximum``, ``custom``, ``none``

Related options:

* ``[libvirt] cpu_mode``: must agree if both are set. It has no ``maximum``;
  Nova's own code is told ``host-passthrough`` then, the nearest mode it
  knows, and the guest's XML says ``maximum``.
* ``cpu_model``: required with ``custom`` and refused with the others.
* ``[libvirt] cpu_model_extra_flags``: features added to or taken from the
  CPU.
"""),
    cfg.StrOpt(
        'cpu_model',
        # Model names of libvirt's cpu_map and of QEMU: Nehalem,
        # Skylake-Server-v3, POWER9, gen15a-base, z14.2-base, 486.
        regex=r'^[A-Za-z0-9][A-Za-z0-9._-]*$',
        help="""
Named CPU model of the guests, for ``cpu_mode = custom``.

Possible values:

* Unset: what ``[libvirt] cpu_models`` says.
* A model that libvirt knows, in upper or lower case, for example
  ``Nehalem`` or ``EPYC-Rome``. ``virsh domcapabilities`` lists them.

Related options:

* ``cpu_mode``: must be ``custom``.
* ``[libvirt] cpu_models`` (also written ``cpu_model``): must name the same
  model if both are set.
"""),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register the options of ``[kvm_ext]``; again does no harm."""
    conf.register_group(GROUP)
    conf.register_opts(_OPTS, group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """The options for oslo-config-generator (``oslo.config.opts``)."""
    return [(GROUP, _OPTS)]


def _read(conf: cfg.ConfigOpts, group: str, name: str) -> Any:
    """The value of an option, a bad one refused in our own words.

    :raises errors.InvalidOption: the value is not one of the allowed ones
    """
    try:
        return conf[group][name]
    except cfg.ConfigSourceValueError as e:
        # oslo.config: "Value for option NAME from LocationInfo(...,
        # detail='FILE') is not valid: Valid values are [...], but found X"
        where = re.search(r"detail='([^']*)'", str(e))
        reason = str(e).partition(' is not valid: ')[2] or str(e)
        raise errors.InvalidOption(
            f'[{group}] {name}' + (f' in {where[1]}' if where else '') +
            f' cannot be used: {errors.clean(reason)}.',
            'Correct it and start the service again.') from e


def _is_set(conf: cfg.ConfigOpts, group: str, name: str) -> bool:
    """Whether the operator gave this option a value, here or anywhere."""
    location = conf.get_location(name, group)
    return location is not None and location.location.is_user_controlled


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
    """

    virt_type: str
    virt_type_option: str
    cpu_mode: str | None
    cpu_mode_option: str
    cpu_models: tuple[str, ...]
    cpu_models_option: str
    extra_flags: tuple[str, ...]

    @classmethod
    def from_conf(cls, conf: cfg.ConfigOpts) -> 'Settings':
        """Read ``[kvm_ext]`` and the options of ``[libvirt]`` behind it.

        :param conf: a configuration with both groups registered
        :raises errors.InvalidOption: a value is not allowed, or the two
            groups contradict each other
        """
        virt_type, virt_type_option = cls._resolve(
            conf, 'virt_type', 'virt_type')
        cpu_mode, cpu_mode_option = cls._resolve(conf, 'cpu_mode', 'cpu_mode')
        models, models_option = cls._resolve(conf, 'cpu_model', 'cpu_models')
        if isinstance(models, str):
            models = [models]
        return cls(
            virt_type=virt_type, virt_type_option=virt_type_option,
            cpu_mode=cpu_mode, cpu_mode_option=cpu_mode_option,
            cpu_models=tuple(models), cpu_models_option=models_option,
            extra_flags=tuple(
                flag.lower() for flag in
                _read(conf, 'libvirt', 'cpu_model_extra_flags')))

    @staticmethod
    def _resolve(conf: cfg.ConfigOpts, ours: str,
                 novas: str) -> tuple[Any, str]:
        """One value from our option and Nova's, and the option it is from."""
        our_value = _read(conf, GROUP.name, ours)
        nova_value = _read(conf, 'libvirt', novas)
        our_option = f'[{GROUP.name}] {ours}'
        nova_option = f'[libvirt] {novas}'
        if our_value is None:
            return nova_value, nova_option
        if _is_set(conf, 'libvirt', novas):
            said = nova_value if isinstance(nova_value, list) else [nova_value]
            if [our_value.lower()] != [str(v).lower() for v in said]:
                raise errors.InvalidOption(
                    f'{our_option} = {our_value} and {nova_option} = '
                    f'{", ".join(map(str, said))} contradict each other.',
                    f'Remove {nova_option}, or give both the same value.')
        return our_value, our_option
