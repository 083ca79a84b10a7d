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

"""Known errors: memory and huge pages."""

from nova_kvm_ext.known_errors.row import CLOSED
from nova_kvm_ext.known_errors.row import KnownError

ROWS: tuple[KnownError, ...] = (
    KnownError(
        'numa-node',
        r'NUMA node \d+ is unavailable',
        'The guest should have memory of a NUMA node that this host does not '
        'have.',
        'Cold migrate the guest: its placement is from another host, or from '
        'before a change of this one\'s hardware.',
        'libvirt 9.0',
        ('unsupported configuration: NUMA node 5 is unavailable',)),
    KnownError(
        'memory',
        r'cannot set up guest memory',
        'The host has too little free memory for this guest.',
        'Check free -m; raise [DEFAULT] reserved_host_memory_mb or lower '
        'ram_allocation_ratio so that the scheduler knows.',
        'libvirt 9.0',
        (CLOSED + '2026-11-23T03:31:50.778220Z qemu-system-x86_64: cannot '
         "set up guest memory 'pc.ram': Cannot allocate memory",)),
    KnownError(
        'memory-locked',
        r'locking memory failed',
        'The guest\'s memory should be locked, and this is more than its '
        'limit or than the host has.',
        'Check the flavor\'s and image\'s hw:locked_memory, and the host\'s '
        'free memory.',
        'libvirt 9.0',
        (CLOSED + '2026-11-23T03:31:51.113297Z qemu-system-x86_64: mlockall: '
         'Cannot allocate memory\n2026-11-23T03:31:51.113392Z '
         'qemu-system-x86_64: locking memory failed',)),
    KnownError(
        'hugepages-not-mounted',
        r'hugetlbfs filesystem is not mounted'
        r'|Unable to find any usable hugetlbfs mount',
        'The guest asks for huge pages, and no hugetlbfs of that page size '
        'is mounted for libvirt.',
        'Mount it (mount -t hugetlbfs none /dev/hugepages; for 1 GiB pages '
        'with -o pagesize=1G) and restart libvirt.',
        'libvirt 9.0',
        ('internal error: hugetlbfs filesystem is not mounted or disabled by '
         'administrator config',
         'internal error: Unable to find any usable hugetlbfs mount for '
         '1048576 KiB')),
    KnownError(
        'hugepages-none-left',
        r'unable to map backing store for guest RAM',
        'There are too few free huge pages for this guest.',
        'Reserve more (vm.nr_hugepages, or hugepages= for the kernel), or '
        'tell Nova which are taken by [DEFAULT] reserved_huge_pages.',
        'libvirt 9.0',
        (CLOSED + '2026-11-23T03:31:51.113297Z qemu-system-x86_64: unable to '
         'map backing store for guest RAM: Cannot allocate memory',)),
)
