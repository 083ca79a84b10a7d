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

"""Documents of real and made-up hosts, and as much of libvirt's CPU map.

Those in tests/data were captured from the versions that their names tell, on
a host whose KVM hides most features; ``by-hand`` were written for what could
not be captured.
"""

import glob
import os

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.cpu import usable
from nova_kvm_ext import tests

_DATA = os.path.join(os.path.dirname(tests.__file__), 'data')
_PREFIX = 'domcapabilities-'

# As libvirt 9.0 has them.
MODELS = {
    '486':
        'fpu pse vme',
    'pentium':
        'cx8 de fpu mce mmx msr pse tsc vme',
    'pentium2':
        'cmov cx8 de fpu fxsr mca mce mmx msr mtrr pae pat pge pse pse36 '
        'sep tsc vme',
    'pentium3':
        'cmov cx8 de fpu fxsr mca mce mmx msr mtrr pae pat pge pse pse36 '
        'sep sse tsc vme',
    'qemu64':
        'apic clflush cmov cx16 cx8 de fpu fxsr lm mca mce mmx msr mtrr nx '
        'pae pat pge pni pse pse36 sep sse sse2 svm syscall tsc',
    'kvm64':
        'apic clflush cmov cx16 cx8 de fpu fxsr lm mca mce mmx msr mtrr nx '
        'pae pat pge pni pse pse36 sep sse sse2 syscall tsc',
    'Penryn':
        'apic clflush cmov cx16 cx8 de fpu fxsr lahf_lm lm mca mce mmx msr '
        'mtrr nx pae pat pge pni pse pse36 sep sse sse2 sse4.1 ssse3 '
        'syscall tsc',
    'Nehalem':
        'apic clflush cmov cx16 cx8 de fpu fxsr lahf_lm lm mca mce mmx msr '
        'mtrr nx pae pat pge pni popcnt pse pse36 sep sse sse2 sse4.1 '
        'sse4.2 ssse3 syscall tsc',
    'Westmere':
        'aes apic clflush cmov cx16 cx8 de fpu fxsr lahf_lm lm mca mce mmx '
        'msr mtrr nx pae pat pge pni popcnt pse pse36 sep sse sse2 sse4.1 '
        'sse4.2 ssse3 syscall tsc',
    'Haswell':
        'aes apic avx avx2 bmi1 bmi2 clflush cmov cx16 cx8 de erms fma fpu '
        'fsgsbase fxsr hle invpcid lahf_lm lm mca mce mmx movbe msr mtrr nx '
        'pae pat pcid pclmuldq pge pni popcnt pse pse36 rdtscp rtm sep smep '
        'sse sse2 sse4.1 sse4.2 ssse3 syscall tsc tsc-deadline x2apic xsave',
    'Haswell-noTSX':
        'aes apic avx avx2 bmi1 bmi2 clflush cmov cx16 cx8 de erms fma fpu '
        'fsgsbase fxsr invpcid lahf_lm lm mca mce mmx movbe msr mtrr nx pae '
        'pat pcid pclmuldq pge pni popcnt pse pse36 rdtscp sep smep sse '
        'sse2 sse4.1 sse4.2 ssse3 syscall tsc tsc-deadline x2apic xsave',
    'Skylake-Server':
        '3dnowprefetch abm adx aes apic arat avx avx2 avx512bw avx512cd '
        'avx512dq avx512f avx512vl bmi1 bmi2 clflush clwb cmov cx16 cx8 de '
        'erms f16c fma fpu fsgsbase fxsr hle invpcid lahf_lm lm mca mce mmx '
        'movbe mpx msr mtrr nx pae pat pcid pclmuldq pdpe1gb pge pni popcnt '
        'pse pse36 rdrand rdseed rdtscp rtm sep smap smep sse sse2 sse4.1 '
        'sse4.2 ssse3 syscall tsc tsc-deadline vme x2apic xgetbv1 xsave '
        'xsavec xsaveopt',
    'Opteron_G2':
        'apic clflush cmov cx16 cx8 de fpu fxsr lahf_lm lm mca mce mmx msr '
        'mtrr nx pae pat pge pni pse pse36 rdtscp sep sse sse2 svm syscall '
        'tsc',
    'EPYC':
        '3dnowprefetch abm adx aes apic arat avx avx2 bmi1 bmi2 clflush '
        'clflushopt cmov cr8legacy cx16 cx8 de f16c fma fpu fsgsbase fxsr '
        'fxsr_opt lahf_lm lm mca mce misalignsse mmx mmxext movbe msr mtrr '
        'nx osvw pae pat pclmuldq pdpe1gb pge pni popcnt pse pse36 rdrand '
        'rdseed rdtscp sep sha-ni smap smep sse sse2 sse4.1 sse4.2 sse4a '
        'ssse3 svm syscall tsc vme xgetbv1 xsave xsavec xsaveopt',
}
OTHER_FEATURES = (
    'hypervisor rdrand ssbd invtsc avx512f avx512bw avx512cd avx512dq '
    'avx512vl sha-ni umip pku vaes la57 movdiri gfni')
# What the documents name besides.
_NAMED_FEATURES = (
    '3dnow 3dnowext acpi arch-capabilities cldemote cmp_legacy cmpccxadd '
    'fb-clear fbsdp-no fdp-excptn-only fsrc fsrm fsrs fzrm gds-no intel-psfd '
    'lfence-always-serializing monitor movdir64b npt nrip-save '
    'null-sel-clr-base pcommit pks pschange-mc-no psdp-no rdpid rfds-no rsba '
    'sbdr-ssdp-no skip-l1dfl-vmentry ss svme-addr-chk taa-no topoext '
    'tsc_adjust tsx-ldtrk vgif wbnoinvd xsaveerptr zero-fcs-fds')
REGISTER_FEATURES = frozenset({'rdctl-no', 'mds-no'})

KNOWN = cpu_map.CPUMap(
    features={name: () for name in sorted(set(
        ' '.join(MODELS.values()).split() + OTHER_FEATURES.split() +
        _NAMED_FEATURES.split()))},
    models={name: frozenset(features.split())
            for name, features in MODELS.items()},
    signatures={}, register_features=REGISTER_FEATURES)


def names() -> list[str]:
    """Every document there is."""
    return sorted(
        os.path.basename(path)[len(_PREFIX):-len('.xml')]
        for path in glob.glob(os.path.join(_DATA, f'{_PREFIX}*.xml')))


def load(name: str) -> str:
    with open(os.path.join(_DATA, f'{_PREFIX}{name}.xml')) as f:
        return f.read()


def host(name: str, known: cpu_map.CPUMap | None = KNOWN) -> usable.Host:
    """The host that a document tells of."""
    caps = capabilities.parse(load(name))
    return usable.Host(caps.virt_type or 'kvm', caps, known)


TCG = 'libvirt-9.0-qemu-7.2-pc-qemu'
NEW_TCG = 'libvirt-11.3-qemu-10.0-pc-qemu'
BROKEN_KVM = 'libvirt-9.0-qemu-7.2-pc-kvm'
NEW_BROKEN_KVM = 'libvirt-11.3-qemu-10.0-pc-kvm'
INTEL = 'by-hand-libvirt-8-intel-kvm'
AMD = 'by-hand-libvirt-12-amd-kvm'
NEWEST_KVM = 'libvirt-12.8-qemu-11.1-q35-kvm'
NO_CPU = 'by-hand-no-cpu'
ONLY_CUSTOM = 'by-hand-only-custom'
ARM = 'by-hand-aarch64-kvm'
