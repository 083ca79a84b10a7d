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
"""CPU features by which a guest protects itself from CPU vulnerabilities.

Levels and most named models have none of them, so a guest may lack features
that its host has. This module finds these features and the flags that add
them. Pure.

The table is that of QEMU's documentation of CPU models, "Important CPU
features for Intel x86 hosts" and "... for AMD x86 hosts":
https://www.qemu.org/docs/master/system/qemu-cpu-models.html
(docs/system/cpu-models-x86.rst.inc). ``pdpe1gb``, which is there too, only
affects speed. Names are libvirt's.
"""

from collections.abc import Collection
from collections.abc import Iterable
import dataclasses

# Where Linux says what it does about each flaw; files are named below.
DIRECTORY = '/sys/devices/system/cpu/vulnerabilities'

# What an x86 guest without <cpu> has, says the same page.
DEFAULT_MODEL = 'qemu64'

# Features that the register IA32_ARCH_CAPABILITIES tells are seen by guests
# that have this feature alone.
_REGISTER = 'arch-capabilities'


@dataclasses.dataclass(frozen=True)
class Mitigation:
    """A feature that a guest should have where its host has it.

    :ivar name: in libvirt's spelling
    :ivar against: the flaw, for an operator
    :ivar file: of Linux's :data:`DIRECTORY`, where the guest says what it
        does about the flaw
    :ivar required: whether the guest cannot protect itself without the
        feature; if not, the feature saves the guest work that is not needed
    :ivar register: whether IA32_ARCH_CAPABILITIES tells it
    :ivar only_with: a feature without which it has no use, or ''
    :ivar instead_of: features that are of no use where the host has this one
    """

    name: str
    against: str
    file: str
    required: bool = True
    register: bool = False
    only_with: str = ''
    instead_of: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f'{self.name} ({self.against})'


_SPECTRE_V2 = 'Spectre v2, CVE-2017-5715'
_SSB = 'Speculative Store Bypass, CVE-2018-3639'
_MDS = 'MDS, CVE-2018-12126 and others'
_TAA = 'TSX Asynchronous Abort, CVE-2019-11135'

INTEL: tuple[Mitigation, ...] = (
    Mitigation('pcid', 'cost of the fix for Meltdown, CVE-2017-5754',
               'meltdown', required=False),
    Mitigation('spec-ctrl', _SPECTRE_V2, 'spectre_v2'),
    Mitigation('stibp', _SPECTRE_V2, 'spectre_v2'),
    Mitigation('ssbd', _SSB, 'spec_store_bypass'),
    Mitigation('md-clear', _MDS, 'mds'),
    Mitigation('mds-no', f'host not affected: {_MDS}', 'mds',
               required=False, register=True),
    Mitigation('taa-no', f'host not affected: {_TAA}', 'tsx_async_abort',
               required=False, register=True),
    Mitigation('tsx-ctrl', _TAA, 'tsx_async_abort', required=False,
               register=True, only_with='rtm'),
    Mitigation('bhi-no', 'host not affected: Branch History Injection, '
               'CVE-2022-0001', 'spectre_v2', required=False, register=True),
    Mitigation('gds-no', 'host not affected: Gather Data Sampling, '
               'CVE-2022-40982', 'gather_data_sampling', required=False,
               register=True),
    Mitigation('rfds-no', 'host not affected: Register File Data Sampling, '
               'CVE-2023-28746', 'reg_file_data_sampling', required=False,
               register=True),
)
AMD: tuple[Mitigation, ...] = (
    Mitigation('ibpb', _SPECTRE_V2, 'spectre_v2'),
    Mitigation('stibp', _SPECTRE_V2, 'spectre_v2'),
    Mitigation('amd-ssbd', _SSB, 'spec_store_bypass'),
    # QEMU advises it beside amd-ssbd, for older kernels in guests.
    Mitigation('virt-ssbd', _SSB, 'spec_store_bypass'),
    Mitigation('amd-no-ssb', f'host not affected: {_SSB}',
               'spec_store_bypass', required=False,
               instead_of=('amd-ssbd', 'virt-ssbd')),
)
# Hygon's CPUs are made after AMD's first EPYC, and have its features.
_VENDORS = {'Intel': INTEL, 'AMD': AMD, 'Hygon': AMD}


def of_vendor(vendor: str | None) -> tuple[Mitigation, ...] | None:
    """The table of a vendor, as libvirt names it; None where QEMU has none."""
    return _VENDORS.get(vendor or '')


@dataclasses.dataclass(frozen=True)
class Lack:
    """What guests of a host lack though they could have it.

    :ivar missing: in the table's order
    :ivar flags: what adds it, for ``[libvirt] cpu_model_extra_flags``
    """

    missing: tuple[Mitigation, ...] = ()
    flags: tuple[str, ...] = ()

    @property
    def required(self) -> tuple[Mitigation, ...]:
        """Those without which a guest cannot protect itself."""
        return tuple(m for m in self.missing if m.required)


def lack(guests: Collection[frozenset[str]], available: frozenset[str],
         vendor: str | None, left_out: Collection[str] = ()) -> Lack:
    """What guests lack that their host has.

    :param guests: the features of each CPU that guests here may have
    :param available: every feature that a guest of the host can have
    :param vendor: of the host's CPU, which KVM shows to each guest
    :param left_out: features that an operator has removed on purpose
    """
    table = of_vendor(vendor) or ()
    useless = {name for m in table if m.name in available
               for name in m.instead_of}
    missing: list[Mitigation] = []
    flags: list[str] = []
    for mitigation in table:
        name = mitigation.name
        if (name not in available or name in useless or
                name in left_out):
            continue
        without = [has for has in guests if name not in has and (
            not mitigation.only_with or mitigation.only_with in has)]
        if not without:
            continue
        missing.append(mitigation)
        if mitigation.register and _REGISTER in available and any(
                _REGISTER not in has for has in without):
            flags.append(_REGISTER)
        flags.append(name)
    return Lack(tuple(missing), tuple(dict.fromkeys(flags)))


def option(flags: Iterable[str],
           extra: Iterable[tuple[str, str]] = ()) -> str:
    """The line of nova.conf that adds flags to those that are there.

    :param extra: (name, policy) pairs of the flags that are there
    """
    there = [('-' if policy == 'disable' else '') + name
             for name, policy in extra]
    return (f'[libvirt] cpu_model_extra_flags = '
            f'{", ".join(dict.fromkeys([*there, *flags]))}')
