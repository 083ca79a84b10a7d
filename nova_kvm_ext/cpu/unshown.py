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

"""Features that host-model reports incompletely.

libvirt compares a guest's CPU with host-model. QEMU gives some features that
host-model does not show, and a host has many that no guest gets. Pure tables.
"""

from collections.abc import Iterable
import dataclasses
import re
import types


@dataclasses.dataclass(frozen=True)
class Given:
    """When QEMU gives a feature that host-model does not show.

    :ivar vendors: of the host's CPU; empty for all
    :ivar virt_types: ``kvm``, ``qemu``
    :ivar sure: False where the host's kernel decides, and nothing tells
    :ivar since: version of QEMU; an older one shows it with host-model, or
        does not give it
    """

    vendors: frozenset[str] = frozenset()
    virt_types: frozenset[str] = frozenset({'kvm'})
    sure: bool = True
    since: tuple[int, int] = (0, 0)


_AMD = frozenset({'AMD', 'Hygon'})
_ANY = frozenset({'kvm', 'qemu'})

# QEMU target/i386/cpu.c, feature_word_info: no_autoenable_flags are what
# -cpu host does not have by itself; topoext "is always allowed" under KVM,
# ht is set since 10.0 for each guest that has more than one CPU.
# x86_cpu_load_model() gives hypervisor to each guest.
#
# arch-capabilities: KVM emulates the register on AMD too (Linux
# arch/x86/kvm/x86.c, kvm_get_arch_capabilities(), which sets the bits below
# there). Since 10.1, QEMU's -cpu host does not have it on AMD, and a guest
# that asks gets it.
_GIVEN = types.MappingProxyType({
    'topoext': Given(),
    'ht': Given(virt_types=_ANY, since=(10, 0)),
    'hypervisor': Given(virt_types=_ANY),
    'arch-capabilities': Given(vendors=_AMD, since=(10, 1)),
    'rdctl-no': Given(vendors=_AMD, since=(10, 1)),
    'mds-no': Given(vendors=_AMD, since=(10, 1)),
    'pschange-mc-no': Given(vendors=_AMD, since=(10, 1)),
    'skip-l1dfl-vmentry': Given(vendors=_AMD, since=(10, 1)),
    # Kernels of 6.9 and later, or older ones that were patched.
    'gds-no': Given(vendors=_AMD, sure=False, since=(10, 1)),
    'rfds-no': Given(vendors=_AMD, sure=False, since=(10, 1)),
    'its-no': Given(vendors=_AMD, sure=False, since=(10, 1)),
})
NAMES = frozenset(_GIVEN)

HOST_ONLY = frozenset({
    'acpi', 'cmt', 'dca', 'ds', 'ds_cpl', 'dtes64', 'est', 'extapic', 'ht',
    'ibs', 'intel-pt', 'invtsc', 'lwp', 'mbm_local', 'mbm_total', 'monitor',
    'nodeid_msr', 'ospke', 'osxsave', 'pbe', 'perfctr_nb', 'skinit', 'smx',
    'svm-lock', 'tce', 'tm', 'tm2', 'topoext', 'wdt', 'xtpr'})
"""Features of a host's CPU that host-model does not give to a guest.

Measured: libvirt's test data (tests/cputestdata of 11.3) has 51 CPUs both as
the host's and as what QEMU gives on that host; these are never among the
latter. libvirt src/qemu/qemu_capabilities.c (ignoredFeatures) names some.
"""

NOT_MIGRATABLE = frozenset({'invtsc'})
"""Features with which QEMU refuses to migrate a guest.

QEMU target/i386/cpu.c, unmigratable_flags.
"""


def _qemu(machine: str | None) -> tuple[int, int] | None:
    """The version of QEMU by its newest machine type, as pc-q35-10.1.

    Distributions have names of their own, which do not tell.
    """
    found = re.fullmatch(r'pc-(?:q35|i440fx)-(\d+)\.(\d+)', machine or '')
    return (int(found[1]), int(found[2])) if found else None


def given(features: Iterable[str], vendor: str | None,
          virt_type: str | None, machine: str | None
          ) -> tuple[frozenset[str], frozenset[str]]:
    """Those features that guests get though host-model does not show them.

    :param vendor: of the CPU that host-model gives
    :param machine: machine type of domain capabilities, which is the newest
        that this QEMU has
    :returns: those that they surely get, and those that they perhaps get
    """
    names = NAMES.intersection(features)
    if not names:
        return frozenset(), frozenset()
    qemu = _qemu(machine)
    found = {
        name: row for name in names
        if virt_type in (None, *(row := _GIVEN[name]).virt_types) and
        (qemu is None or qemu >= row.since) and
        (not row.vendors or vendor in row.vendors)}
    return (frozenset(n for n, row in found.items() if row.sure),
            frozenset(n for n, row in found.items() if not row.sure))


CAN_DIFFER = types.MappingProxyType({
    'cmp_legacy': 'QEMU gives it to guests with more than one core',
    'ht': 'QEMU gives it to guests with more than one CPU',
    'invtsc': 'libvirt leaves it out, because a guest with it cannot migrate',
    'ospke': 'it follows what the guest\'s kernel does',
    'osxsave': 'it follows what the guest\'s kernel does',
    'topoext': 'QEMU gives it with the EPYC models under KVM, whether '
               'host-model shows it or not',
})
"""Features of host-model that a guest may get or not, and why.

Measured with libvirt 12.8 and QEMU 11.1 on AMD: a guest with host-model has
topoext in its live XML, and neither cmp_legacy nor invtsc (tests/data). QEMU
target/i386/cpu.c, cpu_x86_cpuid(); libvirt src/cpu/cpu_x86.c,
virCPUx86CopyMigratable().
"""


def can_differ(features: Iterable[str], vendor: str | None, virt_type: str
               ) -> dict[str, str]:
    """Which features of host-model can differ from what guests get, and why.

    :param features: those that host-model shows
    :param vendor: of the CPU that host-model gives
    """
    names = CAN_DIFFER.keys() & set(features)
    if vendor in _AMD and virt_type == 'kvm':
        names |= {'topoext'}
    return {name: CAN_DIFFER[name] for name in sorted(names)}
