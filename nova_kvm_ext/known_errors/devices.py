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

"""Known errors: PCI devices and hot-plug."""

from nova_kvm_ext.known_errors.row import CLOSED
from nova_kvm_ext.known_errors.row import KnownError

ROWS: tuple[KnownError, ...] = (
    KnownError(
        'pci-no-iommu',
        r"host doesn't support passthrough of host PCI devices"
        r'|VFIO PCI device assignment is not supported by the host',
        'The guest asks for a host device, and this host has no IOMMU '
        'switched on.',
        'Enable VT-d or AMD-Vi in the firmware, boot with intel_iommu=on '
        '(amd_iommu is on by itself) and load vfio_pci.',
        'libvirt 9.0; the second libvirt 12.8',
        ("unsupported configuration: host doesn't support passthrough of "
         'host PCI devices',
         'unsupported configuration: VFIO PCI device assignment is not '
         'supported by the host')),
    KnownError(
        'pci-group',
        r'group \d+ is not viable',
        'Another device of the same IOMMU group is still bound to a host '
        'driver.',
        'Bind every device of the group to vfio-pci, or put the card in a '
        'slot with a group of its own.',
        'reported (github.com/kubevirt/kubevirt/issues/6718)',
        (CLOSED + '2021-11-03T08:06:48.563014Z qemu-kvm: -device '
         'vfio-pci,host=0000:01:00.0,id=ua-gpu1,bus=pci.5,addr=0x0: vfio '
         '0000:01:00.0: group 1 is not viable\nPlease ensure all devices '
         'within the iommu_group are bound to their vfio bus driver.',)),
    KnownError(
        'hotplug-slots',
        r'No more available PCI slots',
        'The guest has no free slot for another device.',
        'Raise [libvirt] num_pcie_ports (for machine type q35) and hard '
        'reboot the guest.',
        'libvirt 9.0',
        ('internal error: No more available PCI slots',)),
    KnownError(
        'hotplug-unsupported',
        r'does not support hotplugging|cannot be hotplugged',
        'The device\'s bus accepts no devices while the guest runs.',
        'Use virtio or scsi (image properties hw_disk_bus, hw_vif_model), '
        'or stop the guest first.',
        'libvirt 9.0',
        ("internal error: unable to execute QEMU command 'device_add': Bus "
         "'pci.0' does not support hotplugging",
         "Operation not supported: disk bus 'sata' cannot be hotplugged.")),
)
