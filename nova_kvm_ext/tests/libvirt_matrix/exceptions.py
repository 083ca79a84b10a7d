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
"""Differences from libvirt that are meant, each with its reason.

One that no longer differs is an error.
"""

from nova_kvm_ext.tests.libvirt_matrix import verdicts

_REGISTER = (
    'In software no guest has the register IA32_ARCH_CAPABILITIES, and '
    'libvirt leaves its features in the live XML: no host can give the guest '
    'what its XML says, its own host neither.')

ALL: tuple[verdicts.Exception_, ...] = (
    verdicts.Exception_(
        'cputest host', 'Core-i5-4670T features',
        'libvirt hides hle and rtm of the steppings of Haswell on which TSX '
        'does not work (x86DataFilterTSX). Features of a host are libvirt\'s '
        'to tell; CPUID is only read for whether the host has KVM.'),
    *(verdicts.Exception_(
        f'start {what}, gets less (qemu)', '',
        'libvirt compares no custom CPU in software, and QEMU starts the '
        'guest without the features that it cannot give: a guest with another '
        'CPU than nova.conf asks for, about which nobody says a word.')
      for what in ('model', 'level')),
    *(verdicts.Exception_(
        f'start {what}, gets less (kvm)', '',
        'At a start libvirt uses the host\'s own CPUID, which has what KVM '
        'hides on a machine without nested virtualization; '
        'virConnectCompareHypervisorCPU says no, and with it Nova\'s own '
        'check at start-up.') for what in ('model', 'level')),
    *(verdicts.Exception_(
        'live self (qemu)', name, _REGISTER) for name in (
            'Cascadelake-Server-noTSX', 'Cascadelake-Server-v3', 'Cooperlake',
            'GraniteRapids', 'SapphireRapids', 'SierraForest')),
    *(verdicts.Exception_(f'live from {version} (qemu)', 'Denverton',
                          _REGISTER) for version in ('11.3.0', '12.8.0')),
    *(verdicts.Exception_(
        'document (qemu)', f'{version} {host}host-passthrough',
        'libvirt\'s comparison takes any CPU without a model; a start refuses '
        'the mode host-passthrough in software.')
      for version in ('9.0.0', '11.3.0') for host in ('', 'host+')),
    verdicts.Exception_(
        'document of a host (qemu)', '',
        'Where QEMU calls the model usable, libvirt looks at no feature, '
        'vendor or architecture of a host\'s CPU. No guest has such a CPU.'),
)
