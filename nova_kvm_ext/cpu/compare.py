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

"""Can a host give that CPU, and if not, what does it lack?

The arithmetic of libvirt's own virConnectCompareHypervisorCPU over data that
can be kept, sent and tested: domain capabilities and libvirt's CPU map. Where
libvirt can be asked, as before a live migration, its answer is the one that
counts. Pure.

libvirt src/cpu/cpu_x86.c (x86Compute): the vendor must be the same where the
CPU names one, the host must have every feature that the CPU requires and none
that it forbids. The host is there what host-model would give.
"""

import dataclasses

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.cpu import definition


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The answer.

    :ivar possible: whether the host can give the CPU; None where that cannot
        be told from what is known
    :ivar reason: a sentence
    :ivar missing: features that the host lacks, or the host has and must not
    """

    possible: bool | None
    reason: str
    missing: tuple[str, ...] = ()


def available(host: capabilities.DomainCapabilities,
              known: cpu_map.CPUMap | None) -> frozenset[str] | None:
    """Every feature that a guest on this host can have, by its host-model.

    :returns: None where libvirt does not tell
    """
    if host.host_model is None:
        return None
    return host.host_model.features_by(known)


def compare(cpu: definition.CPU, host: capabilities.DomainCapabilities,
            known: cpu_map.CPUMap | None) -> Comparison:
    """Whether the host can give this CPU.

    :param cpu: from a live domain, a ``<cpu>`` document, or a decision
    :param host: what the host can do, for the guest's machine and virt type
    :param known: libvirt's CPU map on that host
    """
    if cpu.mode is not None and host.supports(cpu.mode) is False:
        return Comparison(
            False, f'this host has no CPU mode {cpu.mode} under '
                   f'{host.virt_type}')
    if cpu.model is None:
        return _without_model(cpu)
    hosts = host.host_model
    if hosts is None:
        return Comparison(
            None, 'libvirt does not tell what host-model is on this host')
    if cpu.vendor is not None and cpu.vendor != hosts.vendor:
        return Comparison(
            False, f'it is a CPU of {cpu.vendor}, and this host gives its '
                   f'guests CPUs of {hosts.vendor or "no vendor"}')
    if known is None:
        return Comparison(
            None, 'libvirt\'s CPU map is not on this host, or not for its '
                  'architecture')
    has = available(host, known)
    if has is None or cpu.model not in known.models:
        model = hosts.model if has is None else cpu.model
        return Comparison(
            None, f'libvirt\'s CPU map on this host does not have the model '
                  f'{model}')
    forbidden = has & _named(cpu, 'forbid')
    if forbidden:
        return _must_not_have(forbidden)
    # What the model has and the CPU forbids is wanted all the same: libvirt
    # takes only force, optional and disable for a word about the model.
    wanted = (cpu.required | known.models[cpu.model]) - _named(
        cpu, 'force') - _named(cpu, 'optional') - _named(cpu, 'disable')
    missing = wanted - has
    if missing:
        return Comparison(
            False, f'this host lacks {len(missing)} of its features',
            tuple(sorted(missing)))
    if cpu.match == 'strict':
        more = (has - wanted - _named(cpu, 'force') -
                _named(cpu, 'optional') - _named(cpu, 'disable'))
        if more:
            return _must_not_have(more)
    return Comparison(True, 'this host has all of its features')


def _must_not_have(features: frozenset[str]) -> Comparison:
    return Comparison(
        False, f'this host has {len(features)} features that the CPU must '
               f'not have', tuple(sorted(features)))


def _named(cpu: definition.CPU, policy: str) -> frozenset[str]:
    return frozenset(name for name, said in cpu.features if said == policy)


def _without_model(cpu: definition.CPU) -> Comparison:
    """A CPU that only names a mode, or nothing."""
    if cpu.mode == 'host-model':
        return Comparison(
            True, 'host-model is worked out on each host; this is no running '
                  'guest\'s CPU')
    if cpu.mode in ('host-passthrough', 'maximum'):
        return Comparison(
            None, f'{cpu.mode} is whatever the guest\'s own host has, and '
                  f'the XML does not say what that is')
    return Comparison(None, 'it names no model: QEMU\'s default CPU')
