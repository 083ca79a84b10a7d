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
refuses what this driver cannot run. :func:`probe` finds out what it needs to
know for that, with a connection to libvirt that it is handed.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from nova_kvm_ext import conf
from nova_kvm_ext.cpu import choose
from nova_kvm_ext import errors
from nova_kvm_ext.host import probe as probe_guest

SUPPORTED = ('kvm', 'qemu')


@dataclasses.dataclass(frozen=True)
class VirtType:
    """The resolved type and why it is that."""

    value: str
    reason: str


def resolve(settings: conf.Settings,
            probe: Callable[[], tuple[bool, str]]) -> VirtType:
    """The type of this host's guests.

    :param probe: tells whether a guest really runs under KVM, and a sentence
        that says how it is known; called for ``auto`` only, as it costs
        seconds
    :raises errors.InvalidOption: a type that is neither KVM nor QEMU
    """
    said = f'{settings.virt_type_option} = {settings.virt_type}'
    if settings.virt_type == 'auto':
        runs, reason = probe()
        return VirtType('kvm' if runs else 'qemu', f'{said}: {reason}')
    if settings.virt_type not in SUPPORTED:
        raise errors.InvalidOption(
            f'{said} is nothing that compute_driver = kvm_ext.KVMDriver runs '
            f'({", ".join(SUPPORTED)}).',
            'Set compute_driver = libvirt.LibvirtDriver, or another '
            'virt_type.')
    return VirtType(settings.virt_type, said)


def probe(connection: Any, arch: str, choice: choose.CPUChoice,
          cache_file: str, directory: str) -> tuple[bool, str]:
    """Whether a guest with this CPU really runs under KVM on this host.

    :param connection: libvirt.virConnect, or Nova's proxy of one
    :param arch: the host's architecture, as uname says it
    :param cache_file: where the answer is kept
    :param directory: a directory that QEMU's user can traverse
    :returns: the answer and a sentence that says how it is known
    :raises errors.HostError: the test guest's disk cannot be written
    """
    if probe_guest.supported(arch):
        try:
            result = probe_guest.cached_run(
                connection, cache_file=cache_file, cpu_xml=choice.to_xml(),
                directory=directory)
        except OSError as e:
            raise errors.HostError(
                f'The test guest for virt_type = auto cannot be written to '
                f'{directory} ([DEFAULT] instances_path): {e.strerror}.',
                'Make that directory writable for this service.') from e
        return result.runs, result.reason
    try:
        connection.getDomainCapabilities(None, arch, None, 'kvm')
    except Exception as e:
        if errors.libvirt_error_code(e) is None:
            raise
        return False, f'libvirt offers no KVM: {errors.clean(e)}'
    return True, f'libvirt offers KVM; there is no test guest for {arch}'
