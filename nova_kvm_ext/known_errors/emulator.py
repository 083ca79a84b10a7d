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

"""Known errors: QEMU itself, and what it can do."""

from nova_kvm_ext.known_errors.row import DIED
from nova_kvm_ext.known_errors.row import KnownError

ROWS: tuple[KnownError, ...] = (
    KnownError(
        'no-hvm',
        r"no supported architecture for os type 'hvm'"
        r'|could not find capabilities for arch=',
        'libvirt knows no emulator that can run this guest: QEMU is not '
        'installed, or KVM was asked for and is not there.',
        'Install QEMU for the guest\'s architecture, load kvm_intel or '
        'kvm_amd, and restart libvirt.',
        'reported (github.com/vagrant-libvirt/vagrant-libvirt/issues/740, '
        'github.com/dmacvicar/terraform-provider-libvirt/issues/11)',
        ("internal error: no supported architecture for os type 'hvm'",
         'invalid argument: could not find capabilities for arch=x86_64 '
         'domaintype=kvm')),
    KnownError(
        'emulator-none',
        r'No emulator found for arch|unable to find any emulator to serve',
        'QEMU for the guest\'s architecture is not installed.',
        'Install it (Debian and Ubuntu: qemu-system-x86, Fedora, RHEL and '
        'SUSE: qemu-kvm) and restart libvirt; or correct the image property '
        'hw_architecture.',
        'libvirt 9.0',
        ("unsupported configuration: No emulator found for arch 'x86_64'",
         "unsupported configuration: unable to find any emulator to serve "
         "'x86_64' architecture")),
    KnownError(
        'emulator-missing',
        r'Cannot check QEMU binary|QEMU binary \S+ is not executable',
        'The QEMU program that the guest names is missing or cannot be run.',
        'Install QEMU for the guest\'s architecture (Debian and Ubuntu: '
        'qemu-system-x86, Fedora, RHEL and SUSE: qemu-kvm).',
        'libvirt 9.0',
        ('Cannot check QEMU binary /usr/bin/nope: No such file or directory',
         'QEMU binary /etc/passwd is not executable: Permission denied')),
    KnownError(
        'emulator-broken',
        r'Failed to read pidfile \S+/qmp\.pid'
        r'|Failed to start QEMU binary \S+ for probing: '
        r'(?!.*(Permission denied|kvm))',
        'libvirt asked QEMU what it can do and got no answer: the program '
        'does not start or is not QEMU.',
        'Run the guest\'s emulator with --version; install QEMU again if that '
        'fails.',
        'libvirt 9.0',
        ('Failed to read pidfile /var/lib/libvirt/qemu/qmp-O5Y3Y3/qmp.pid: '
         'No such file or directory',
         'internal error: Failed to start QEMU binary '
         "/var/lib/libvirt/qemu-mine for probing: qemu-mine: fatal: could "
         "not load module for type 'tcg-accel-ops'\n")),
    KnownError(
        'emulator-permission',
        r'Failed to start QEMU binary \S+ for probing: .*Permission denied',
        'QEMU\'s user may not run the QEMU program that the guest names, or '
        'not read a part of it: the mode of a file or directory, a mount '
        'with noexec, AppArmor or SELinux.',
        'Check the path with namei -l, and look for DENIED in dmesg; give '
        'programs in unusual places to AppArmor '
        '(/etc/apparmor.d/local/usr.sbin.libvirtd) or SELinux (restorecon).',
        'libvirt 9.0',
        ('internal error: Failed to start QEMU binary /var/lib/libvirt/emu '
         'for probing: libvirt:  error : cannot execute binary '
         '/var/lib/libvirt/emu: Permission denied\n',
         'internal error: Failed to start QEMU binary '
         '/var/lib/libvirt/closed/qemu for probing: qemu: error trying to '
         'access /var/lib/libvirt/closed/../lib/x86_64-linux-gnu/qemu/'
         'accel-tcg-x86_64.so: Permission denied\n')),
    KnownError(
        'machine-type',
        r"does not support machine type"
        r"|the machine '[^']*' is not supported by emulator"
        # In place of the first, of a name that is of no family of QEMU's.
        r"|Machine type '[^']*' supports PCI but no PCI controller added",
        'QEMU on this host does not know the guest\'s machine type.',
        'Compare [libvirt] hw_machine_type and the image property '
        'hw_machine_type with what virsh domcapabilities or '
        'qemu-system-x86_64 -machine help lists here.',
        'libvirt 9.0, the last libvirt 12.8',
        ("unsupported configuration: Emulator '/usr/bin/qemu-system-x86_64' "
         "does not support machine type 'pc-foo-9.9'",
         "invalid argument: the machine 'nomach' is not supported by "
         "emulator '/usr/bin/qemu-system-x86_64'",
         "internal error: Machine type 'pc-none-9.9' supports PCI but no PCI "
         'controller added')),
    KnownError(
        'machine-cpus',
        r'Maximum CPUs greater than specified machine type limit'
        r'|more than \d+ vCPUs are only supported on q35',
        'The flavor has more vCPUs than the machine type supports.',
        'Give the image hw_machine_type=q35 (255 vCPUs; with hw_viommu_model='
        'intel as many as the machine type has: 288 in QEMU 7.2), or use a '
        'smaller flavor.',
        'libvirt 9.0; the second from the source of 9.0 (src/qemu/'
        'qemu_validate.c)',
        ('unsupported configuration: Maximum CPUs greater than specified '
         'machine type limit 255',
         'unsupported configuration: more than 255 vCPUs are only supported '
         'on q35-based machine types')),
    KnownError(
        'machine-eim',
        r'more than \d+ vCPUs require extended interrupt mode'
        r'|APIC ID \d+ requires x2APIC feature in CPU',
        'The guest has more than 255 vCPUs. Those above need an IOMMU that '
        'delivers their interrupts, and a CPU with x2APIC.',
        'Give the flavor hw:viommu_model=intel (or the image hw_viommu_model) '
        'and the image hw_machine_type=q35, and guests a CPU that has x2apic '
        '(cpu_model_extra_flags); or use a smaller flavor.',
        'libvirt 9.0',
        ('unsupported configuration: more than 255 vCPUs require extended '
         'interrupt mode enabled on the iommu device',
         # libvirt 11.3, QEMU 10.0
         DIED + 'Unexpected error in apic_common_set_id() at '
         'hw/intc/apic_common.c:447:\n2026-11-26T23:42:13.189250Z '
         'qemu-system-x86_64: APIC ID 255 requires x2APIC feature in CPU\n'
         'Try x2apic=on in -cpu.')),
    KnownError(
        'device-model',
        r'is not a valid device model name',
        'QEMU on this host does not have a device that the guest asks for.',
        'Check the image properties that name models (hw_vif_model, '
        'hw_video_model, hw_scsi_model ...), or install what brings the '
        'device (Debian: qemu-system-gui, qemu-system-modules-*).',
        'libvirt 9.0',
        (DIED + '2026-11-23T03:31:53.621317Z qemu-system-x86_64: -device '
         '{"driver":"nosuchmodel","netdev":"hostnet0","id":"net0"}: '
         "'nosuchmodel' is not a valid device model name",)),
    KnownError(
        'firmware',
        r"Unable to find any firmware to satisfy 'efi'"
        r"|Unable to find 'efi' firmware that is compatible"
        r'|unable to find any master var store for loader',
        'The image asks for UEFI, and this host has no firmware of that kind '
        'that fits (secure boot, machine type, format).',
        'Install the firmware (Debian and Ubuntu: ovmf, Fedora and RHEL: '
        'edk2-ovmf, SUSE: qemu-ovmf-x86_64), or check the image properties '
        'hw_firmware_type and os_secure_boot.',
        'libvirt 9.0; the second reported of 10.0 '
        '(aahlenst.dev/blog/finding-efi-firmware-that-is-compatible)',
        ("operation failed: Unable to find any firmware to satisfy 'efi'",
         "operation failed: Unable to find 'efi' firmware that is compatible "
         'with the current configuration',
         'operation failed: unable to find any master var store for loader: '
         '/usr/share/OVMF/OVMF_CODE.fd')),
    KnownError(
        'tpm',
        r"TPM version '[^']*' is not supported",
        'The guest asks for an emulated TPM, and swtpm is not installed or '
        'cannot do that version.',
        'Install swtpm (Debian: swtpm and swtpm-tools) and restart libvirt; '
        'set [libvirt] swtpm_enabled only where swtpm is installed.',
        'libvirt 9.0',
        ("unsupported configuration: TPM version '2.0' is not supported",)),
    KnownError(
        'sev',
        r"\bSEV(-\w+)?'? launch security is not supported",
        'The guest asks for memory encryption, and this host\'s CPU, kernel '
        'or QEMU has no SEV.',
        'Remove hw_mem_encryption from flavor and image, or load kvm_amd with '
        'sev=1 on a host that has it.',
        'libvirt 9.0',
        ('unsupported configuration: SEV launch security is not supported '
         'with this QEMU binary',
         # libvirt 11.3
         "unsupported configuration: 'sev' launch security is not supported "
         'with this QEMU binary')),
)
