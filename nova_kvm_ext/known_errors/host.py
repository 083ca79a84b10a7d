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

"""Known errors: guests, their locks and confinement on this host."""

from nova_kvm_ext.known_errors.row import KnownError

ROWS: tuple[KnownError, ...] = (
    KnownError(
        'domain-busy',
        r'cannot acquire state change lock',
        'Another call has locked this guest, often because its QEMU or its '
        'storage hangs.',
        'Check the holder that is named and the guest\'s storage (dmesg, '
        'processes in state D); restarting libvirt frees the lock and leaves '
        'the guest running.',
        'reported (github.com/digitalocean/go-libvirt/issues/90)',
        ('Timed out during operation: cannot acquire state change lock (held '
         'by monitor=remoteDispatchDomainBlockStats)',)),
    KnownError(
        'domain-exists',
        r"domain '[^']*' already exists with uuid",
        'libvirt has another domain of this name, which Nova did not make or '
        'no longer knows.',
        'Find it with virsh list --all; undefine it if nobody needs it, or '
        'change [DEFAULT] instance_name_template.',
        'libvirt 9.0',
        ("operation failed: domain 'dup' already exists with uuid "
         '7b642eda-65ac-4575-8d6b-8e308a2394be',)),
    KnownError(
        'apparmor',
        r'cannot load AppArmor profile',
        'AppArmor refused the profile that libvirt wrote for this guest.',
        'Check dmesg for DENIED, and see that /etc/apparmor.d/libvirt and '
        'abstractions/libvirt-qemu are those of the installed libvirt '
        '(apparmor_parser -r).',
        'reported (libvirt 7.5: '
        'github.com/void-linux/void-packages/issues/31904)',
        ("internal error: cannot load AppArmor profile "
         "'libvirt-aa58ea57-f6d7-48b1-b727-de97f4c508af'",)),
    KnownError(
        'cgroup',
        r"Unable to write to '[^']*/cgroup/(?![^']*/cpuset\.(cpus|mems)')"
        r"[^']*': (Permission denied|Read-only file system|Device or resource "
        r'busy|Operation not permitted)'
        r'|Failed to create (v\d )?controller \w+ for group: ',
        'libvirt may not write the guest\'s control groups: it runs in a '
        'container whose /sys/fs/cgroup is read-only or not its own, or '
        'another program (a container engine, systemd) owns these groups.',
        'Give the container of libvirt the host\'s control groups '
        '(privileged, cgroup namespace host, /sys/fs/cgroup read-write), or '
        'set cgroup_controllers = [] in qemu.conf, with which guests have no '
        'limits of CPU.',
        'libvirt 9.0; the second from the source of 9.0 (src/util/'
        'vircgroup.c)',
        ('Failed to create v1 controller cpuset for group: Read-only file '
         'system',
         "Unable to write to '/sys/fs/cgroup/machine.slice/cgroup."
         "subtree_control': Read-only file system")),
    KnownError(
        'cgroup-cpuset',
        r"Unable to write to '[^']*/cgroup/[^']*/cpuset\.(cpus|mems)': "
        r"|Unable to write to '[^']*/cgroup/[^']*/(tasks|cgroup\.procs|"
        r"cgroup\.threads)': No space left on device",
        'The guest\'s control group gets no CPU or no NUMA node: those that '
        'it should have are offline, or its parent group does not have them. '
        'No disk is full, and no permission is missing.',
        'Compare [compute] cpu_dedicated_set and cpu_shared_set with '
        'cpuset.cpus and cpuset.mems of the parent group (machine or '
        'machine.slice, in a container that container\'s) and with '
        '/sys/devices/system/cpu/online; write the missing CPUs back into '
        'the parent group.',
        'libvirt 9.0; the last two from the source of Linux 6.1 (kernel/'
        'cgroup/cpuset.c)',
        ("Unable to write to '/sys/fs/cgroup/cpuset/machine/qemu-1-fault."
         "libvirt-qemu/emulator/cpuset.cpus': Permission denied",
         "Unable to write to '/sys/fs/cgroup/cpuset/machine/qemu-1-fault."
         "libvirt-qemu/emulator/cpuset.cpus': No space left on device",
         "Unable to write to '/sys/fs/cgroup/cpuset/machine/tasks': No space "
         'left on device')),
)
