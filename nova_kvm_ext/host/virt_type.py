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

"""Whether this host's guests run under KVM or in software.

:func:`resolve` is pure: it decides what ``virt_type = auto`` means and
refuses what this driver cannot run. :func:`probe` finds the facts for this
decision; the caller passes its connection to libvirt.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any

from nova_kvm_ext.cpu import choose
from nova_kvm_ext import errors
from nova_kvm_ext.host import kvm_proof
from nova_kvm_ext.host import probe as probe_guest
from nova_kvm_ext.host import probe_answers
from nova_kvm_ext.settings import Settings

SUPPORTED = ('kvm', 'qemu')


@dataclasses.dataclass(frozen=True)
class VirtType:
    """The resolved type and why it is that."""

    value: str
    reason: str


def resolve(settings: Settings,
            probe: Callable[[], tuple[bool | None, str]]) -> VirtType:
    """The type of this host's guests.

    :param probe: tells whether a guest really runs under KVM, None where
        that is not known, and a sentence that says why; called for ``auto``
        only, as it costs seconds
    :raises errors.InvalidOption: a type that is neither KVM nor QEMU
    :raises errors.HostError: ``auto``, and whether KVM runs is not known.
        Either choice could be wrong for every guest of this host
    """
    said = f'{settings.virt_type_option} = {settings.virt_type}'
    if settings.virt_type == 'auto':
        runs, reason = probe()
        if runs is None:
            raise errors.HostError(
                f'{said} cannot be decided: whether KVM runs guests here is '
                f'not known: {reason}.',
                'Start the service again when libvirt and the host are less '
                'busy, or set [kvm_ext] virt_type to kvm or qemu.')
        return VirtType('kvm' if runs else 'qemu', f'{said}: {reason}')
    if settings.virt_type not in SUPPORTED:
        raise errors.InvalidOption(
            f'{said} is nothing that compute_driver = kvm_ext.KVMDriver runs '
            f'({", ".join(SUPPORTED)}).',
            'Set compute_driver = libvirt.LibvirtDriver, or another '
            'virt_type.')
    return VirtType(settings.virt_type, said)


def directories(instances_path: str, state_path: str) -> tuple[str, ...]:
    """Where the test guest's disk can be, the best first.

    instances_path is a directory that libvirt sees too, and QEMU's user can
    enter. It may be full. The others serve where libvirt and nova-compute
    share them.
    """
    return (instances_path, state_path, '/var/tmp', '/dev/shm')


def probe(connection: Any, arch: str, choice: choose.CPUChoice,
          cache_file: str, places: Sequence[str]
          ) -> tuple[bool | None, str]:
    """Whether a guest with this CPU really runs under KVM on this host.

    :param connection: libvirt.virConnect, or Nova's proxy of one
    :param arch: the host's architecture, as uname says it
    :param cache_file: where the answer is kept
    :param places: see :func:`directories`
    :returns: the answer, None where it is not known, and a sentence that
        says how it is known, or why not
    """
    if probe_guest.supported(arch):
        result = probe_answers.cached_run(
            connection, cache_file=cache_file, cpu_xml=choice.to_xml(),
            directories=places)
        return result.runs, result.reason
    try:
        connection.getDomainCapabilities(None, arch, None, 'kvm')
    except Exception as e:
        if errors.libvirt_error_code(e) is None:
            raise
        said = errors.clean(e)
        if kvm_proof.find(str(e)) is None:
            return None, f'libvirt does not tell: {said}'
        return False, f'libvirt offers no KVM: {said}'
    return True, f'libvirt offers KVM; there is no test guest for {arch}'
