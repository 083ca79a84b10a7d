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

ALL: tuple[verdicts.Exception_, ...] = (
    verdicts.Exception_(
        'cputest host', 'Core-i5-4670T features',
        'libvirt hides hle and rtm of the steppings of Haswell on which TSX '
        'does not work (x86DataFilterTSX). Features of a host are libvirt\'s '
        'to tell; CPUID is only read for whether the host has KVM.'),
)
