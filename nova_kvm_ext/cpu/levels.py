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

"""The levels of the x86-64 ABI as CPUs of guests: x86-64-v2 to x86-64-v4.

A level is a base model and the features that programs of that level may use:
the same CPU on Intel and AMD, and on every host that supports the level. Pure.

The System V ABI, AMD64 supplement, defines the features of each level in
section "Processor Architecture", table "Micro-Architecture Levels":
https://gitlab.com/x86-psABIs/x86-64-ABI

``x86-64-v2-AES`` is not in the ABI: it is v2 with AES-NI, a common name that
comes from Proxmox VE. v3 and v4 have AES-NI here as well, so that every level
includes the level before it, and a guest that is moved up loses nothing.

v3 and v4 have XSAVEOPT, which no program uses: the guest's kernel saves the
registers of AVX with it. Without it Debian 12's kernel (6.1) hangs at boot
under QEMU 7.2's TCG.

Nearly all CPUs with v3 have both. Measured in libvirt 11.3's test data
(tests/cputestdata): of 33 hosts with v3, AES is missing on one (Hygon C86
7185) and XSAVEOPT on one (Core i5-4670T); QEMU gave no XSAVEOPT on another
(Xeon E5-2650 v3). With the extra flags -aes and -xsaveopt the level works on
those hosts.

The base is kvm64. In libvirt 9.0 to 11.3 and QEMU 7.2 to 10.0, its features
are the baseline of the ABI, the features of every x86-64 CPU that kernels need
(apic, pae, nx and so on), SSE3 and CMPXCHG16B, and none of a single vendor.
TCG supports all of them, and so does KVM on Intel and on AMD. qemu64, the
other model without a vendor, is not suitable: libvirt's CPU map gives it svm
and sse4a, which Intel lacks, and abm and popcnt, which QEMU's qemu64 lacks.

A level deliberately has no feature against CPU vulnerabilities (spec-ctrl,
ssbd, md-clear, amd-ssbd ...), because these differ between vendors and
generations. Operators add those that their whole fleet has with ``[libvirt]
cpu_model_extra_flags``. Under KVM, QEMU shows the guest the vendor of the
host's CPU.
"""

from collections.abc import Mapping
import dataclasses
import types

from nova_kvm_ext.cpu import definition

BASE_MODEL = 'kvm64'

# Names of the ABI, which are Intel's, and libvirt's names. OSFXSR, SCE and
# OSXSAVE are bits that the guest's kernel sets; the CPU must have fxsr,
# syscall and xsave for it.
LIBVIRT_NAMES: Mapping[str, str] = types.MappingProxyType({
    'CMOV': 'cmov', 'CX8': 'cx8', 'FPU': 'fpu', 'FXSR': 'fxsr', 'MMX': 'mmx',
    'OSFXSR': 'fxsr', 'SCE': 'syscall', 'SSE': 'sse', 'SSE2': 'sse2',
    'CMPXCHG16B': 'cx16', 'LAHF-SAHF': 'lahf_lm', 'POPCNT': 'popcnt',
    'SSE3': 'pni', 'SSE4_1': 'sse4.1', 'SSE4_2': 'sse4.2', 'SSSE3': 'ssse3',
    'AES': 'aes',
    'AVX': 'avx', 'AVX2': 'avx2', 'BMI1': 'bmi1', 'BMI2': 'bmi2',
    'F16C': 'f16c', 'FMA': 'fma', 'LZCNT': 'abm', 'MOVBE': 'movbe',
    'OSXSAVE': 'xsave',
    'AVX512F': 'avx512f', 'AVX512BW': 'avx512bw', 'AVX512CD': 'avx512cd',
    'AVX512DQ': 'avx512dq', 'AVX512VL': 'avx512vl'})

_BASELINE = 'CMOV CX8 FPU FXSR MMX OSFXSR SCE SSE SSE2'
# What each level adds to the one before it.
_ADDED = (
    ('x86-64-v2', 'CMPXCHG16B LAHF-SAHF POPCNT SSE3 SSE4_1 SSE4_2 SSSE3'),
    ('x86-64-v2-AES', 'AES'),
    ('x86-64-v3', 'AVX AVX2 BMI1 BMI2 F16C FMA LZCNT MOVBE OSXSAVE'),
    ('x86-64-v4', 'AVX512F AVX512BW AVX512CD AVX512DQ AVX512VL'),
)


@dataclasses.dataclass(frozen=True)
class Level:
    """One level.

    :ivar name: as it is written in nova.conf
    :ivar abi_features: every feature of the level by the ABI's names
    """

    name: str
    abi_features: tuple[str, ...]

    @property
    def features(self) -> frozenset[str]:
        """Every feature that its programs use, in libvirt's names."""
        return frozenset(LIBVIRT_NAMES[name] for name in self.abi_features)

    @property
    def kernel_features(self) -> tuple[str, ...]:
        """Further features in libvirt's names, for the guest's kernel."""
        return ('xsaveopt',) if 'OSXSAVE' in self.abi_features else ()

    @property
    def beyond_abi(self) -> frozenset[str]:
        """Features that the psABI does not ask for at this level."""
        if self.name == 'x86-64-v2-AES':
            return frozenset(self.kernel_features)
        return frozenset({'aes', *self.kernel_features})

    @property
    def needed(self) -> frozenset[str]:
        """Every feature that a host must have for it."""
        return self.features.union(self.kernel_features)

    @property
    def cpu(self) -> definition.CPU:
        """The guest's CPU.

        All features are required by name, also those that the base has:
        the level must not depend on what a release takes the base to be.
        """
        return definition.CPU(
            mode='custom', model=BASE_MODEL, match='exact',
            features=tuple((LIBVIRT_NAMES[name], 'require')
                           for name in self.abi_features
                           if LIBVIRT_NAMES[name] not in _IN_EVERY_CPU) +
            tuple((name, 'require') for name in self.kernel_features))

    def missing(self, available: frozenset[str]) -> tuple[str, ...]:
        """Features of the level, in libvirt's names, that are not there."""
        return tuple(sorted(self.needed - available))


def _levels() -> dict[str, Level]:
    levels, features = {}, tuple(_BASELINE.split())
    for name, added in _ADDED:
        features += tuple(added.split())
        levels[name.lower()] = Level(name, features)
    return levels


# A 64-bit CPU without these does not exist, and libvirt's log and XML are
# easier to read without them.
_IN_EVERY_CPU = frozenset(
    LIBVIRT_NAMES[name] for name in _BASELINE.split())
_LEVELS = _levels()
ALL: tuple[Level, ...] = tuple(_LEVELS.values())
"""Lowest first; each has all that those before it have."""


def find(name: str) -> Level | None:
    """The level of this name, in upper or lower case."""
    return _LEVELS.get(name.lower())


def highest(available: frozenset[str]) -> Level | None:
    """The highest level that these features make, or None."""
    return next((level for level in reversed(ALL)
                 if not level.missing(available)), None)
