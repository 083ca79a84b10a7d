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

"""Known errors: live migration."""

from nova_kvm_ext.known_errors.row import CLOSED
from nova_kvm_ext.known_errors.row import KnownError

ROWS: tuple[KnownError, ...] = (
    KnownError(
        'migration-post-copy',
        r'Postcopy is not supported',
        'Nova permits post-copy, and QEMU on the destination cannot do it: '
        'the kernel gives its user no userfaultfd. So no guest can move '
        'there, whether it would be switched to post-copy or not.',
        'On the destination: sysctl -w vm.unprivileged_userfaultfd=1, and the '
        'same in /etc/sysctl.d; nova-kvm-ext host check tests this (KVM701). '
        'Or set [libvirt] live_migration_permit_post_copy = false on both '
        'hosts.',
        'libvirt 9.0, QEMU 7.2',
        ("internal error: unable to execute QEMU command "
         "'migrate-set-capabilities': Postcopy is not supported",)),
    KnownError(
        'migration-unsafe',
        r'Unsafe migration: ',
        'libvirt sees that the guest\'s disks could be damaged: they are '
        'cached by the host, or are not on shared storage.',
        'Set [libvirt] disk_cachemodes to none for them, or migrate with '
        'block migration.',
        'reported (github.com/autotest/tp-libvirt/pull/386)',
        ('Unsafe migration: Migration may lead to data corruption if disks '
         'use cache != none',)),
    KnownError(
        'migration-nested',
        r'Nested (VMX )?virtualization does not support live migration'
        r'|required capabilities for nested virtualization migration',
        'The guest can run nested guests (its CPU has vmx or svm), and the '
        'kernel or QEMU here cannot move the state of those.',
        'Use Linux 4.20 and QEMU 4.1 or later on both hosts; or take vmx and '
        'svm from the guest\'s CPU ([libvirt] cpu_model_extra_flags), or '
        'migrate the guest cold.',
        'reported (QEMU 4.0: github.com/kata-containers/runtime/issues/1747; '
        'the second from the source of QEMU 4.1, target/i386/kvm.c)',
        ("internal error: unable to execute QEMU command 'migrate': Nested "
         'VMX virtualization does not support live migration yet',
         "internal error: unable to execute QEMU command 'migrate': Kernel do "
         'not provide required capabilities for nested virtualization '
         'migration. (CAP_NESTED_STATE=0, CAP_EXCEPTION_PAYLOAD=0)')),
    KnownError(
        'migration-cpu-state',
        r"error while loading state for instance \w+ of device 'cpu",
        'QEMU on the destination could not take over the state of the '
        'guest\'s CPU: CPU, microcode, kernel or QEMU differ from the '
        'source\'s. The guest runs on at the source.',
        'Bring kernel, microcode and QEMU of both hosts to the same version, '
        'and give guests a named cpu_model that both have instead of '
        'host-passthrough. What QEMU says before it (failed to set MSR ...) '
        'names the register.',
        'reported (QEMU 5.1: github.com/kubevirt/kubevirt/issues/5068 has '
        'its first line; the second from the source of QEMU 7.2, migration/'
        'savevm.c)',
        (CLOSED + '2021-02-21T02:17:50.604694Z qemu-kvm: error: failed to set '
         'MSR 0x48e to 0xfff9fffe04006172\n2021-02-21T02:17:50.604800Z '
         'qemu-kvm: error while loading state for instance 0x0 of device '
         "'cpu'\n2021-02-21T02:17:50.604900Z qemu-kvm: load of migration "
         'failed: Operation not permitted',)),
)
