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

"""Whether a host can give a CPU, and which features it lacks.

The algorithm of libvirt's virConnectCompareHypervisorCPU on data that can be
kept, sent and tested: domain capabilities and libvirt's CPU map. Where libvirt
can be asked, as before a live migration, libvirt's answer counts
(:func:`judge`). Exceptions are features that libvirt does not find in its
host-model and QEMU gives anyway: QEMU decides in a start with check='full' and
in a migration, and both succeed with them. Pure.

libvirt src/cpu/cpu_x86.c (x86Compute): the vendor must be the same if the
CPU names one, the host must have every feature that the CPU requires and none
that it forbids. The host is represented by host-model. Since 11.0
(src/qemu/qemu_domain.c, qemuDomainCheckCPU) a CPU that only removes features
from a usable model is always accepted, and for models that are new in the map
QEMU's blockers count.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import unshown

# libvirt src/cpu/cpu_x86.c: archs
_X86 = ('x86_64', 'i686')


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The answer.

    :ivar possible: whether the host can give the CPU; None where that cannot
        be told from what is known
    :ivar reason: a clause
    :ivar missing: features that the host lacks, or the host has and must not
    :ivar unshown: features that host-model does not show here and QEMU gives
        anyway; libvirt's own comparison may miss them
    :ivar warnings: sentences about what works and will hurt
    :ivar stands: whether libvirt's yes would not change it: its comparison
        does not look at what this answer is about
    """

    possible: bool | None
    reason: str
    missing: tuple[str, ...] = ()
    unshown: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    stands: bool = False

    def __str__(self) -> str:
        return self.reason + (
            f': {", ".join(self.missing)}' if self.missing else '')


def shown(host: capabilities.DomainCapabilities,
          known: cpu_map.CPUMap | None) -> frozenset[str] | None:
    """Every feature that a guest with host-model gets on this host.

    :returns: None where libvirt does not tell
    """
    if host.host_model is None:
        return None
    return host.host_model.features_by(known)


def available(host: capabilities.DomainCapabilities,
              known: cpu_map.CPUMap | None) -> frozenset[str] | None:
    """Every feature that a guest on this host can have, as libvirt tells it.

    :returns: None where libvirt does not tell
    """
    found = shown(host, known)
    return found | host.supported if found and host.supported else found


def compare(cpu: definition.CPU, host: capabilities.DomainCapabilities,
            known: cpu_map.CPUMap | None,
            address_bits: int | None = None) -> Comparison:
    """Whether the host can give this CPU.

    :param cpu: from a live domain, a ``<cpu>`` document, or a decision
    :param host: what the host can do, for the guest's machine and virt type
    :param known: libvirt's CPU map on that host
    :param address_bits: bits of a physical address that the host has, if
        domain capabilities do not tell
    """
    found = _compare(cpu, host, known, address_bits or host.address_bits)
    if found.possible is not False and cpu.odd:
        found = dataclasses.replace(
            found, possible=None,
            stands=True,
            reason=f'this driver does not understand {_few(cpu.odd)}')
    elif found.possible:
        found = dataclasses.replace(
            found, warnings=tuple(_warnings(cpu)))
    return found


def judge(found: Comparison, libvirts: bool | None) -> Comparison:
    """The answer that counts.

    :param found: by our arithmetic
    :param libvirts: by libvirt's, about the same CPU without what is
        ``found.unshown``; None where it was not asked, or has no answer
    """
    if libvirts is None or found.possible is libvirts:
        return found
    if not libvirts:
        return dataclasses.replace(
            found, possible=False, warnings=(),
            reason='libvirt says that this host cannot give it'
            if found.possible else found.reason)
    if found.stands:
        return found
    return dataclasses.replace(
        found, possible=True, missing=(),
        reason='libvirt says that this host can give it')


def _few(names: Iterable[str], limit: int = 4) -> str:
    """Names in a sentence, which may be many where the document is odd."""
    listed = list(names)
    more = len(listed) - limit
    return ', '.join(listed[:limit]) + (f' and {more} more' if more > 0
                                        else '')


def _warnings(cpu: definition.CPU) -> Iterator[str]:
    stuck = cpu.required & unshown.NOT_MIGRATABLE
    if stuck:
        yield (f'A guest with {", ".join(sorted(stuck))} cannot be live '
               f'migrated: QEMU refuses to. Disable it for guests that shall '
               f'move.')


def _compare(cpu: definition.CPU, host: capabilities.DomainCapabilities,
             known: cpu_map.CPUMap | None,
             address_bits: int | None) -> Comparison:
    if cpu.mode is not None and host.supports(cpu.mode) is False:
        return Comparison(
            False, f'this host has no CPU mode {cpu.mode} under '
                   f'{host.virt_type}', stands=True)
    if cpu.arch is not None and host.arch is not None and not (
            cpu.arch == host.arch or cpu.arch in _X86 and host.arch in _X86):
        return Comparison(
            False, f'it is a CPU of the architecture {cpu.arch}, and guests '
                   f'here are {host.arch}', stands=True)
    if (cpu.address_bits is not None and address_bits is not None and
            cpu.address_bits > address_bits):
        return Comparison(
            False, f'its physical addresses have {cpu.address_bits} bits, and '
                   f'those of this host {address_bits}', stands=True)
    if cpu.model is None:
        return _without_model(cpu)
    if (host.models and host.model(cpu.model) is None and
            cpu.fallback == 'forbid' and not cpu.is_hosts):
        return Comparison(
            False, f'QEMU on this host does not have the CPU model '
                   f'{cpu.model}' +
                   (', though libvirt\'s CPU map has it'
                    if known is not None and cpu.model in known.models
                    else ''), stands=True)
    hosts = host.host_model
    if hosts is None:
        return Comparison(
            None, 'libvirt does not tell what host-model is on this host')
    if known is None:
        return _vendors(cpu, hosts) or Comparison(
            None, 'libvirt\'s CPU map is not on this host, or not for its '
                  'architecture')
    ours = host.model(cpu.model)
    if (known.compares_by_qemu and ours is not None and
            ours.usable == 'yes' and not cpu.is_hosts and
            cpu.names == cpu.named('disable') and
            not _unknown(cpu, known)):
        return Comparison(True, 'QEMU calls its model usable, and it has no '
                                'further feature')
    wrong = _vendors(cpu, hosts)
    if wrong is not None:
        return wrong
    has = available(host, known)
    if has is None or cpu.model not in known.models:
        model = hosts.model if has is None else cpu.model
        return Comparison(
            None, f'libvirt\'s CPU map on this host does not have the model '
                  f'{model}')
    return _features(cpu, host, known, has)


def _vendors(cpu: definition.CPU, hosts: definition.CPU
             ) -> Comparison | None:
    if cpu.vendor is None or cpu.vendor == hosts.vendor:
        return None
    if hosts.vendor is None and hosts.odd:
        return Comparison(
            None, 'the vendor of this host\'s CPU is not understood')
    return Comparison(
        False, f'it is a CPU of {cpu.vendor}, and this host gives its '
               f'guests CPUs of {hosts.vendor or "no vendor"}')


def _unknown(cpu: definition.CPU, known: cpu_map.CPUMap) -> list[str]:
    """Features that libvirt on this host does not know.

    Except required ones, which are missing.
    """
    unknown = cpu.names - cpu.named('require') - known.feature_names
    return [name for name, _ in cpu.features if name in unknown]


def _features(cpu: definition.CPU, host: capabilities.DomainCapabilities,
              known: cpu_map.CPUMap, has: frozenset[str]) -> Comparison:
    """The arithmetic, where model and features of both are known."""
    assert host.host_model is not None and cpu.model is not None
    forbidden = has & cpu.named('forbid')
    blockers = _blockers(cpu, host, known)
    # Where libvirt goes by blockers, it does not look at forbidden features:
    # such a guest starts without them on a host that has them (libvirt 11.3,
    # check='partial').
    if forbidden and (blockers is None or cpu.is_hosts):
        return _must_not_have(forbidden)
    # What the model has and the CPU forbids is wanted all the same: libvirt
    # takes only force, optional and disable for a word about the model.
    if blockers is None:
        wanted = (cpu.required | known.models[cpu.model]) - cpu.free
        missing = wanted - has
    else:
        wanted = cpu.named('require')
        missing = (wanted - has) | (blockers - cpu.named('disable'))
    if cpu.is_hosts:
        return _of_a_host(missing - unshown.HOST_ONLY)
    surely, perhaps = unshown.given(
        missing, host.host_model.vendor, host.virt_type, host.machine)
    missing -= surely
    if missing - perhaps:
        return Comparison(
            False, f'this host lacks {len(missing)} of its features',
            tuple(sorted(missing)))
    if missing:
        return Comparison(
            None, 'whether QEMU gives these features depends on the host\'s '
                  'kernel, and libvirt does not tell', tuple(sorted(missing)),
            tuple(sorted(surely | missing)), stands=True)
    unknown = _unknown(cpu, known)
    if unknown:
        return Comparison(
            None, f'libvirt on this host does not know the feature '
                  f'{_few(unknown)}')
    if cpu.match == 'strict' and blockers is None:
        more = has - wanted - cpu.free
        if more:
            return _must_not_have(more)
    if host.supported:
        # Those that only the second look at domain capabilities has.
        surely |= (wanted & host.supported) - (
            shown(host, known) or frozenset())
    return Comparison(
        True, 'this host has all of its features' if not surely else
        'this host can give all of its features, though host-model does not '
        f'show {", ".join(sorted(surely))}', unshown=tuple(sorted(surely)))


def _blockers(cpu: definition.CPU, host: capabilities.DomainCapabilities,
              known: cpu_map.CPUMap) -> frozenset[str] | None:
    """What QEMU says that the model lacks here, where libvirt uses that.

    :returns: None where libvirt uses its CPU map
    """
    assert cpu.model is not None
    found = host.model(cpu.model)
    if cpu.model not in known.strict_models or found is None:
        return None
    if found.usable == 'yes':
        return frozenset()
    return None if found.blockers is None else frozenset(found.blockers)


def _of_a_host(missing: frozenset[str]) -> Comparison:
    """No guest has all that its host has: what is missing proves nothing."""
    if missing:
        return Comparison(
            None, 'it is a host\'s CPU and no guest\'s, and guests of that '
                  'host may have less than it; guests here cannot have these '
                  'features of it', tuple(sorted(missing)))
    return Comparison(
        True, 'it is a host\'s CPU and no guest\'s; this host has every '
              'feature of it that a guest can have')


def _must_not_have(features: frozenset[str]) -> Comparison:
    return Comparison(
        False, f'this host has {len(features)} features that the CPU must '
               f'not have', tuple(sorted(features)))


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
