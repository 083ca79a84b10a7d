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

"""Known errors: CPUs."""

from nova_kvm_ext.known_errors.row import DIED
from nova_kvm_ext.known_errors.row import KnownError

ROWS: tuple[KnownError, ...] = (
    KnownError(
        'cpu-mode',
        r"CPU mode '[\w-]+' .* is not supported by hypervisor",
        'The hypervisor cannot give a guest this CPU mode.',
        'Choose another cpu_mode: host-passthrough needs virt_type = kvm; '
        'virsh domcapabilities lists what this host can do.',
        'libvirt 9.0',
        ("unsupported configuration: CPU mode 'host-passthrough' for x86_64 "
         'qemu domain on x86_64 host is not supported by hypervisor',)),
    KnownError(
        'cpu-unknown',
        r"Unknown CPU model|unknown CPU feature\b|unable to find CPU model '",
        'libvirt or QEMU does not know a CPU model or feature of this name.',
        'Correct cpu_model or [libvirt] cpu_model_extra_flags; virsh '
        'cpu-models x86_64 lists the models.',
        'libvirt 9.0; the last from the source of QEMU 7.2 (hw/core/cpu-common'
        '.c)',
        ('internal error: Unknown CPU model NoSuch',
         'unsupported configuration: unknown CPU feature: bogus',
         'internal error: Unknown CPU feature bogus',
         DIED + "qemu-system-x86_64: unable to find CPU model 'NoSuch'")),
    KnownError(
        'cpu-model-not-here',
        r'CPU model \S+ is not supported by hypervisor',
        'libvirt knows this CPU model, and QEMU on this host has none of that '
        'name.',
        'Choose one of nova-kvm-ext cpu model list. A guest that migrates has '
        'the model of the host where it started: install the same version of '
        'QEMU on both hosts.',
        'libvirt 9.0',
        ('unsupported configuration: CPU model cpu64-rhel6 is not supported '
         'by hypervisor',)),
    KnownError(
        'cpu-missing',
        r"guest CPU doesn't match specification: (extra features: \S+, )?"
        r'missing features: '
        r'|Host CPU does not provide required features: ',
        'This host cannot give a guest all features of the CPU that it must '
        'have.',
        'Choose an older cpu_model, or disable the named features with '
        '[libvirt] cpu_model_extra_flags. A guest that migrates has the CPU '
        'of the host where it started.',
        'libvirt 9.0',
        ("operation failed: guest CPU doesn't match specification: extra "
         'features: hypervisor,pku, missing features: vme,pcid',
         'the CPU is incompatible with host CPU: Host CPU does not provide '
         'required features: mpx, spec-ctrl, ssbd')),
    KnownError(
        'cpu-affinity',
        r'cannot set CPU affinity on process',
        'The guest should be pinned to CPUs that this host does not have or '
        'has switched off.',
        'Compare [compute] cpu_dedicated_set and cpu_shared_set with '
        '/sys/devices/system/cpu/online.',
        'libvirt 9.0',
        ('cannot set CPU affinity on process 184: Invalid argument',)),
    KnownError(
        'cpu-extra',
        r"guest CPU doesn't match specification: extra features: [^\s,]+"
        r'(,[^\s,]+)*\s*\Z'
        r'|Host CPU does not strictly match guest CPU'
        r'|Host CPU provides forbidden features?\b',
        'This host gives the guest features that its CPU must not have: '
        'policy forbid, match strict, or a running guest that is compared '
        'with all that it had. No feature is missing here.',
        'Remove policy forbid or match strict from the XML. Where a guest '
        'migrates, bring QEMU, libvirt and microcode of both hosts to the '
        'same version, or hard reboot the guest there.',
        'libvirt 9.0',
        ("operation failed: guest CPU doesn't match specification: extra "
         'features: hypervisor,lahf_lm',
         'the CPU is incompatible with host CPU: Host CPU does not strictly '
         'match guest CPU: Extra features: acpi, ss, pclmuldq',
         'the CPU is incompatible with host CPU: Host CPU provides forbidden '
         'features: sse2',
         'the CPU is incompatible with host CPU: Host CPU provides forbidden '
         "feature 'cx16'")),
    KnownError(
        'cpu-vendor',
        r'host CPU vendor does not match required CPU vendor',
        'The guest\'s CPU names a vendor, and this host\'s CPU is of another '
        'one.',
        'Move the guest between hosts of one vendor only (a trait or an '
        'aggregate for each), or start it again here, without the vendor.',
        'libvirt 9.0',
        ('the CPU is incompatible with host CPU: host CPU vendor does not '
         'match required CPU vendor Intel',)),
    KnownError(
        'cpu-arch',
        r'CPU arch \S+ does not match host arch',
        'The guest\'s CPU is of another architecture than this host\'s.',
        'Set the image property hw_architecture, or choose a host of that '
        'architecture.',
        'libvirt 9.0',
        ('the CPU is incompatible with host CPU: CPU arch ppc64 does not '
         'match host arch',)),
    KnownError(
        'cpu-address-bits',
        r'number of virtual CPU address bits cannot exceed'
        r'|phys-bits should be between '
        r'|Assertion `cpu->phys_bits <= \d+',
        'The guest should have more bits of physical addresses than this host '
        'or QEMU can give.',
        'Lower hw:maxphysaddr_bits (flavor) or hw_maxphysaddr_bits (image), '
        'or set the mode to passthrough; grep "address sizes" /proc/cpuinfo '
        'shows the host\'s.',
        'libvirt 9.0',
        ('unsupported configuration: The number of virtual CPU address bits '
         'cannot exceed the number supported by the host CPU',
         DIED + '2026-11-26T22:59:15.954070Z qemu-system-x86_64: phys-bits '
         'should be between 32 and 52  (but is 60)',
         # libvirt 12.8, QEMU 11.1
         DIED + '2026-11-27T18:04:28.785735Z qemu-system-x86_64: warning: '
         'Host physical bits (48) does not match phys-bits property (60)\n'
         'qemu-system-x86_64: target/i386/kvm/kvm.c:5068: kvm_get_msrs: '
         "Assertion `cpu->phys_bits <= 52' failed.")),
    KnownError(
        'cpu-invtsc',
        r"domain has 'invtsc' CPU feature but TSC frequency is not specified"
        r'|non-migratable CPU device \(invtsc flag\)',
        'The guest has the CPU feature invtsc, a clock that must not change '
        'its rate, so QEMU neither migrates nor saves the guest.',
        'Remove invtsc from [libvirt] cpu_model_extra_flags (or of the '
        'guest\'s cpu_mode host-passthrough) and hard reboot the guest; or '
        'migrate it cold.',
        'libvirt 9.0; the second from the source of 9.0 (src/qemu/'
        'qemu_migration.c)',
        ('Requested operation is not valid: cannot migrate domain: State '
         'blocked by non-migratable CPU device (invtsc flag)',
         "Requested operation is not valid: domain has 'invtsc' CPU feature "
         'but TSC frequency is not specified')),
    KnownError(
        'cpu-invtsc-missing',
        r"host doesn't support invariant TSC",
        'The guest\'s CPU asks for invtsc, and this host\'s clock, or '
        'virt_type = qemu, has none.',
        'Remove invtsc from [libvirt] cpu_model_extra_flags.',
        'libvirt 9.0',
        ("unsupported configuration: host doesn't support invariant TSC",)),
    KnownError(
        'cpu-tsc-frequency',
        r'Requested TSC frequency \d+ Hz is outside tolerance range'
        r'|\A(?!.*failed to set MSR).*TSC frequency mismatch between VM .*'
        r'kvm_arch_init_vcpu failed',
        'The guest\'s clock has a fixed frequency that is not this host\'s, '
        'and this CPU cannot scale it.',
        'Move the guest between hosts whose CPUs have one frequency, or '
        'remove the tsc timer from its XML and start it again.',
        'libvirt 9.0; the second reported on qemu-devel (QEMU 10)',
        ('unsupported configuration: Requested TSC frequency 999000000 Hz is '
         'outside tolerance range ([2595484967, 2596783033] Hz) around host '
         'frequency 2596134000 Hz and TSC scaling is not supported by the '
         'host CPU',
         DIED + '2026-11-26T22:59:15.954070Z qemu-system-x86_64: warning: '
         'TSC frequency mismatch between VM (999000 kHz) and host (2596134 '
         'kHz), and TSC scaling unavailable\nqemu-system-x86_64: '
         'kvm_init_vcpu: kvm_arch_init_vcpu failed (0): Invalid argument')),
)
