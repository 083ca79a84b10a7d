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

"""Which CPU this host's guests get: the host-wide choice, checked.

Pure: takes frozen settings, gives a frozen choice or refuses with the option,
the value and the remedy. Never reads the configuration or the host.
"""

from collections.abc import Sequence
import dataclasses
import difflib

from lxml import etree

from nova_kvm_ext import conf
from nova_kvm_ext import errors

# CPU modes that Nova's own [libvirt] cpu_mode does not know, and the nearest
# one that it does. Nova's start-up check, traits and stored instance CPU
# (objects.VirtCPUModel) accept nothing else.
_NEAREST_NOVA_MODE = {'maximum': 'host-passthrough'}


@dataclasses.dataclass(frozen=True)
class CPUChoice:
    """The CPU of this host's guests.

    :ivar mode: CPU mode of the guest's XML, or None to leave it to Nova
        (host-model; host-passthrough on aarch64)
    :ivar models: for ``custom``, model names in order of preference
    :ivar features: (name, policy) pairs, policy ``require`` or ``disable``
    """

    mode: str | None
    models: tuple[str, ...]
    features: tuple[tuple[str, str], ...]

    @property
    def nova_mode(self) -> str | None:
        """The value for Nova's own ``[libvirt] cpu_mode``."""
        if self.mode is None:
            return None
        return _NEAREST_NOVA_MODE.get(self.mode, self.mode)

    def to_xml(self) -> str | None:
        """The ``<cpu>`` element of an x86 guest, without topology.

        https://libvirt.org/formatdomain.html#cpu-model-and-topology

        :returns: None for the mode ``none``, which has no element
        """
        if self.mode == 'none':
            return None
        cpu = etree.Element('cpu', mode=self.mode or 'host-model')
        if self.models:
            etree.SubElement(cpu, 'model').text = self.models[0]
        for name, policy in self.features:
            etree.SubElement(cpu, 'feature', name=name, policy=policy)
        return etree.tostring(cpu, encoding='unicode')


def _feature(flag: str) -> tuple[str, str]:
    """A flag of nova.conf, such as ``pcid`` or ``-pcid``: name and policy."""
    policy = 'disable' if flag.startswith('-') else 'require'
    return flag.lstrip('+-'), policy


def _known_name(model: str, known_models: Sequence[str],
                option: str) -> str:
    """A model in libvirt's own spelling; nova.conf may use any case.

    :raises errors.InvalidOption: libvirt does not know it
    """
    names = {name.lower(): name for name in known_models}
    if not names:
        return model
    if model.lower() in names:
        return names[model.lower()]
    near = difflib.get_close_matches(model.lower(), names, n=3)
    meant = ' or '.join(names[name] for name in near)
    raise errors.InvalidOption(
        f'{option} = {model}: libvirt on this host knows no such CPU model.',
        (f'Is {meant} meant? ' if meant else '') +
        'virsh domcapabilities lists those that it knows.')


def choose(settings: conf.Settings, virt_type: str,
           known_models: Sequence[str] = ()) -> CPUChoice:
    """The CPU that the settings ask for, if that can be.

    :param virt_type: the resolved type, ``kvm`` or ``qemu``
    :param known_models: the models that libvirt knows for this host's
        architecture; empty where it does not tell (not on x86, for one)
    :raises errors.InvalidOption: mode, model and virt_type do not go together
    """
    mode, models = settings.cpu_mode, settings.cpu_models
    if mode == 'custom' and not models:
        raise errors.InvalidOption(
            f'{settings.cpu_mode_option} = custom names no CPU model.',
            'Set [kvm_ext] cpu_model to one of those that virsh '
            'domcapabilities lists.')
    if models and mode != 'custom':
        raise errors.InvalidOption(
            f'{settings.cpu_models_option} = {", ".join(models)} has no '
            f'effect: {settings.cpu_mode_option} is {mode or "unset"}.',
            'Set [kvm_ext] cpu_mode = custom, or remove the model.')
    # libvirt src/qemu/qemu_capabilities.c (virQEMUCapsIsCPUModeSupported):
    # host-passthrough exists only where guests run on the host's own CPU.
    if mode == 'host-passthrough' and virt_type == 'qemu':
        raise errors.InvalidOption(
            f'{settings.cpu_mode_option} = host-passthrough cannot work with '
            f'virt_type = qemu ({settings.virt_type_option} = '
            f'{settings.virt_type}): guests run in software.',
            'Set [kvm_ext] cpu_mode = maximum or host-model.')
    return CPUChoice(
        mode,
        tuple(_known_name(model, known_models, settings.cpu_models_option)
              for model in models),
        tuple(map(_feature, settings.extra_flags)))
