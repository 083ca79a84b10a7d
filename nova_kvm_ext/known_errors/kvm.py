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

"""Known errors: /dev/kvm and its modules."""

from nova_kvm_ext.known_errors.row import DIED
from nova_kvm_ext.known_errors.row import HOST_CHECK
from nova_kvm_ext.known_errors.row import KnownError

ROWS: tuple[KnownError, ...] = (
    KnownError(
        'kvm-permission',
        r'Could not access KVM kernel module: Permission denied',
        'QEMU\'s user may not open /dev/kvm.',
        'Give the device to its group (udevadm trigger --action=add '
        '--name-match=kvm; without udev chgrp kvm /dev/kvm && chmod 0660 '
        '/dev/kvm) and make sure that QEMU\'s user is in that group. ' +
        HOST_CHECK,
        'libvirt 9.0',
        (DIED + 'Could not access KVM kernel module: Permission denied\n'
         '2026-11-23T03:34:19.590383Z qemu-system-x86_64: -accel kvm: failed '
         'to initialize kvm: Permission denied',)),
    KnownError(
        'kvm-no-device',
        r'Could not access KVM kernel module: No such (file|device)',
        'QEMU finds no /dev/kvm, or no module behind it. QEMU\'s user may not '
        'open the device (libvirt 11 then shows QEMU none); or kvm_intel or '
        'kvm_amd is not loaded; or the firmware has virtualization switched '
        'off.',
        'Where ls -l /dev/kvm shows the device, give it to its group (udevadm '
        'trigger --action=add --name-match=kvm; without udev chgrp kvm '
        '/dev/kvm && chmod 0660 /dev/kvm). Otherwise run modprobe kvm_intel '
        '(or kvm_amd), and if that fails enable VT-x or SVM in the firmware; '
        'or choose virt_type = qemu. ' + HOST_CHECK,
        'libvirt 11.3',
        (DIED + '2026-11-26T23:27:01.877765Z qemu-system-x86_64: -accel kvm: '
         'Could not access KVM kernel module: No such file or directory\n'
         '2026-11-26T23:27:01.877826Z qemu-system-x86_64: -accel kvm: failed '
         'to initialize kvm: No such file or directory',
         # libvirt 1.3: github.com/kimchi-project/kimchi/issues/1051
         'internal error: QEMU / QMP failed: Could not access KVM kernel '
         'module: No such file or directory\nfailed to initialize KVM: No '
         'such file or directory',)),
    KnownError(
        'kvm-not-offered',
        r"does not support virt type 'kvm'"
        r"|the accel 'kvm' is not supported"
        r'|could not get preferred machine for \S+ type=kvm'
        r'|could not find capabilities for domaintype=kvm',
        'QEMU cannot use KVM on this host: /dev/kvm is gone, the kvm_intel '
        'or kvm_amd module is not loaded, or the CPU lacks virtualization.',
        'Run modprobe kvm_intel (or kvm_amd) and restart libvirt if it keeps '
        'its old answer; or choose virt_type = qemu. ' + HOST_CHECK,
        'libvirt 9.0; the last reported of 4.8 '
        '(github.com/dmacvicar/terraform-provider-libvirt/issues/442)',
        ("unsupported configuration: Emulator '/usr/bin/qemu-system-x86_64' "
         "does not support virt type 'kvm'",
         "invalid argument: the accel 'kvm' is not supported by "
         "'/usr/bin/qemu-system-x86_64' on this host",
         'invalid argument: could not get preferred machine for '
         '/usr/bin/qemu-system-x86_64 type=kvm',
         'invalid argument: could not find capabilities for '
         'domaintype=kvm')),
    KnownError(
        'kvm-wrong-device',
        r'kvm version too old'
        r'|failed to initialize kvm: Inappropriate ioctl for device',
        'What is at /dev/kvm is not the device of KVM.',
        'Make it again: rm /dev/kvm && mknod --mode=0660 /dev/kvm c 10 232 && '
        'chgrp kvm /dev/kvm.',
        'libvirt 9.0',
        (DIED + 'kvm version too old\n2026-11-23T03:34:30.704574Z '
         'qemu-system-x86_64: -accel kvm: failed to initialize kvm: '
         'Inappropriate ioctl for device',)),
    KnownError(
        'kvm-busy',
        r'KVM_CREATE_VM\) failed: 16|failed to initialize kvm: Device or '
        r'resource busy',
        'Another hypervisor (VirtualBox, VMware) holds the CPU\'s '
        'virtualization.',
        'Stop it and unload its modules: KVM cannot share them.',
        'reported (github.com/kubernetes/minikube/issues/4913)',
        (DIED + 'ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy\n'
         'failed to initialize KVM: Device or resource busy',)),
    KnownError(
        'kvm-msr',
        r'\A(?!.*error while loading state).*error: failed to set MSR '
        r'|\A(?!.*error while loading state).*kvm_buf_set_msrs: Assertion',
        'QEMU was refused a CPU register by this host\'s KVM, as happens '
        'where KVM is nested or emulated and the guest CPU is copied from '
        'the host.',
        'Choose virt_type = qemu or auto, or cpu_mode = none or a named '
        'cpu_model.',
        'libvirt 9.0',
        (DIED + 'qemu-system-x86_64: error: failed to set MSR 0x10a to 0x0\n'
         'qemu-system-x86_64: ../../target/i386/kvm/kvm.c:3025: '
         "kvm_buf_set_msrs: Assertion `ret == cpu->kvm_msr_buf->nmsrs' "
         'failed.',)),
)
