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

"""Known errors: network cards, displays and consoles."""

from nova_kvm_ext.known_errors.row import CLOSED
from nova_kvm_ext.known_errors.row import DIED
from nova_kvm_ext.known_errors.row import HOST_CHECK
from nova_kvm_ext.known_errors.row import KnownError

ROWS: tuple[KnownError, ...] = (
    KnownError(
        'vhost-net',
        r'vhost-net was requested for an interface, but is unavailable',
        'A network interface names the vhost driver and /dev/vhost-net '
        'cannot be opened.',
        'Run modprobe vhost_net. ' + HOST_CHECK,
        'libvirt 9.0',
        ('unsupported configuration: vhost-net was requested for an '
         'interface, but is unavailable',)),
    KnownError(
        'bridge-missing',
        r"Cannot get interface MTU on '[^']*': No such device",
        'The bridge that the guest\'s network card is plugged into does not '
        'exist.',
        'See that the Neutron agent of this host runs and made it, and that '
        'its bridge names and Nova\'s agree.',
        'libvirt 9.0',
        ("Cannot get interface MTU on 'nobr0': No such device",)),
    KnownError(
        'network-missing',
        r'Network not found: no network with matching name',
        'The guest names a network of libvirt\'s own that is not defined.',
        'Define it with virsh net-define. Guests of Nova do not use these: '
        'find out what wrote the XML.',
        'libvirt 9.0',
        ("Network not found: no network with matching name 'nonet'",)),
    KnownError(
        'tap-busy',
        r'Unable to (create|create multiple fds for|set) tap device[^:]*: '
        r'Device or resource busy',
        'The guest\'s tap device is in use, mostly by a QEMU that was left '
        'behind.',
        'Find that process (the device is in /proc/PID/fdinfo, virsh list '
        '--all names the guests) and end it.',
        'libvirt 9.0',
        ('Unable to create tap device tapx0: Device or resource busy',
         # libvirt 11.3
         'Unable to create multiple fds for tap device nke-busy0 (maybe '
         'existing device was created without multi_queue flag): Device or '
         'resource busy',
         # libvirt 12.8
         'Unable to set tap device nke-busy0 (maybe existing device was '
         "created with multi_queue flag but device XML lacks 'queues' greater "
         'than one): Device or resource busy')),
    KnownError(
        'tap-missing',
        r"target managed='no' but specified dev doesn't exist",
        'The guest\'s tap device was not made before it started.',
        'Look for an error of os-vif or of the Neutron agent just before in '
        'nova-compute\'s log.',
        'libvirt 9.0',
        ("internal error: target managed='no' but specified dev doesn't "
         'exist',)),
    KnownError(
        'vhost-user-memory',
        r"'interface' requires shared memory",
        'The guest has a vhost-user port, and its memory is not shared with '
        'the virtual switch.',
        'Give the flavor huge pages (hw:mem_page_size=large), which are '
        'shared, or the guest another kind of port.',
        'libvirt 11.3',
        ("unsupported configuration: 'interface' requires shared memory",)),
    KnownError(
        'vhost-user-socket',
        r'-chardev socket,[^:]*: Failed to connect to ',
        'Nothing listens at a socket to which the guest should connect, such '
        'as a vhost-user port of Open vSwitch or DPDK.',
        'Start the virtual switch and check that the port\'s socket exists '
        'and QEMU\'s user may open it.',
        'libvirt 9.0',
        (CLOSED + '2026-11-23T03:32:43.583952Z qemu-system-x86_64: -chardev '
         "socket,id=charnet0,path=/nope/sock: Failed to connect to "
         "'/nope/sock': No such file or directory",)),
    KnownError(
        'listen-address',
        r'Failed to bind socket: Cannot assign requested address',
        'The guest\'s display or serial console should listen on an address '
        'that this host does not have.',
        'Correct [vnc] server_listen, [spice] server_listen or '
        '[serial_console] proxyclient_address.',
        'libvirt 9.0',
        (DIED + '2026-11-23T03:31:53.537868Z qemu-system-x86_64: -vnc '
         '203.0.113.9:0,audiodev=audio1: Failed to bind socket: Cannot '
         'assign requested address',)),
    KnownError(
        'tap-queues',
        r'Unable to (create|create multiple fds for|set) tap device[^:]*: '
        r'Invalid argument',
        'The guest\'s tap device was made with queues and its network card '
        'has one queue, or the other way round.',
        'Hard reboot the guest, which makes the tap device again. Where that '
        'does not help, take multiqueue off (hw:vif_multiqueue_enabled of the '
        'flavor, hw_vif_multiqueue_enabled of the image, also of a rescue '
        'image): only virtio cards under virt_type = kvm have queues.',
        'libvirt 9.0; the second libvirt 12.8',
        ('Unable to create tap device tap0a1b2c3d-4e: Invalid argument',
         'Unable to set tap device tap0a1b2c3d-4e (maybe existing device was '
         "created with multi_queue flag but device XML lacks 'queues' greater "
         'than one): Invalid argument')),
)
