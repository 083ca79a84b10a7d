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

"""Known errors: disks, secrets and full file systems."""

from nova_kvm_ext.known_errors.row import CLOSED
from nova_kvm_ext.known_errors.row import DIED
from nova_kvm_ext.known_errors.row import HOST_CHECK
from nova_kvm_ext.known_errors.row import KnownError

ROWS: tuple[KnownError, ...] = (
    KnownError(
        'disk-locked',
        r'Failed to get (shared )?"(write|consistent read)" lock',
        'Another process has this disk open: a second guest, a QEMU that was '
        'left behind, or qemu-img.',
        'Find it on every host that shares the storage (fuser or lsof, virsh '
        'list --all) and end it; never start a disk twice.',
        'libvirt 9.0',
        (DIED + '2026-11-23T03:31:55.383647Z qemu-system-x86_64: -device '
         '{"driver":"ide-hd","drive":"libvirt-1-format"}: Failed to get '
         '"write" lock\nIs another process using the image '
         '[/var/lib/nova/instances/x/disk]?',)),
    KnownError(
        'disk-permission',
        r"Could not open '[^']*': Permission denied"
        r"|Cannot access (storage|backing) file .*: Permission denied",
        'QEMU\'s user may not open a disk of the guest, or not enter a '
        'directory on the way to it.',
        'Let the user enter [DEFAULT] instances_path (namei -l shows the '
        'path), leave dynamic_ownership = 1 in qemu.conf, and look for '
        'AppArmor or SELinux denials in dmesg. ' + HOST_CHECK,
        'libvirt 9.0',
        (DIED + '2026-11-23T03:31:55.677899Z qemu-system-x86_64: -blockdev '
         '{"driver":"file","filename":"/srv/sub/d.img"}: Could not open '
         "'/srv/sub/d.img': Permission denied",
         "Cannot access storage file '/srv/sub/d.img' (as uid:64055, "
         'gid:64055): Permission denied')),
    KnownError(
        'disk-missing',
        r'Cannot access (storage|backing) file .*: No such file or directory',
        'A disk of the guest, or the base image under it, is gone.',
        'See that the storage is mounted. A lost base comes back to '
        '[DEFAULT] instances_path/_base by a boot from the same image on '
        'this host; a lost disk is lost.',
        'libvirt 9.0',
        ("Cannot access storage file '/nope/disk': No such file or directory",
         "Cannot access backing file '/srv/_base/raw.img' of storage file "
         "'/srv/ov.qcow2' (as uid:64055, gid:64055): No such file or "
         'directory')),
    KnownError(
        'disk-format',
        r'Image is not in \w+ format|Unsupported qcow2 version',
        'A disk does not have the format that the guest\'s XML names, or its '
        'header is damaged.',
        'Look with qemu-img info -f and the named format. A base image that '
        'was changed after guests were made from it has to be restored.',
        'libvirt 9.0',
        (DIED + '2026-11-23T03:31:51.408591Z qemu-system-x86_64: -blockdev '
         '{"driver":"qcow2","file":"libvirt-1-storage"}: Image is not in '
         'qcow2 format',
         CLOSED + '2026-11-23T03:31:55.775081Z qemu-system-x86_64: -blockdev '
         '{"driver":"qcow2","file":"libvirt-1-storage"}: Unsupported qcow2 '
         'version 9')),
    KnownError(
        'disk-full',
        r"\A(?!.*Unable to write to '[^']*/cgroup/).*No space left on device",
        'A file system is full.',
        'Free space where the instances are kept ([DEFAULT] '
        'instances_path), in /var/lib/libvirt, /etc/libvirt and /var/log. ' +
        HOST_CHECK,
        'libvirt 9.0',
        ("cannot write data to file '/etc/libvirt/qemu/f.xml.new': No space "
         'left on device',)),
    KnownError(
        'disk-driver',
        r"Unknown driver '\w+'|module block-block-\S+ not found",
        'QEMU on this host has no driver for this kind of storage.',
        'Install it (Debian and Ubuntu: qemu-block-extra, Fedora and SUSE: '
        'qemu-block-rbd, RHEL: qemu-kvm-block-rbd). ' + HOST_CHECK,
        'libvirt 9.0',
        (CLOSED + 'qemu: module block-block-rbd not found, do you want to '
         'install qemu-block-extra package?\n2026-11-23T03:31:52.148306Z '
         'qemu-system-x86_64: -blockdev {"driver":"rbd"}: Unknown driver '
         "'rbd'",)),
    KnownError(
        'disk-target-taken',
        r"target '\w+' duplicated for disk sources",
        'The guest has a disk of that device name already.',
        'Leave the device name of the attachment out, so that Nova chooses a '
        'free one.',
        'libvirt 9.0',
        ("XML error: target 'vda' duplicated for disk sources '/srv/d' and "
         "'/srv/e'",)),
    KnownError(
        'secret-missing',
        r'Secret not found: no secret with matching',
        'libvirt on this host does not have the secret that opens the '
        'storage.',
        'Define it (virsh secret-define, secret-set-value) with the UUID of '
        '[libvirt] rbd_secret_uuid or of Cinder\'s rbd_secret_uuid.',
        'libvirt 9.0 and 11.3',
        ('Secret not found: no secret with matching uuid '
         "'11111111-2222-3333-4444-555555555555'",)),
    KnownError(
        'console-log',
        r"Unable to open file: \S*console\.log",
        'The guest\'s console log cannot be made: its directory is missing, '
        'or virtlogd may not enter it.',
        'See that [DEFAULT] instances_path is mounted and that AppArmor or '
        'SELinux allows virtlogd.',
        'libvirt 9.0',
        ('Unable to open file: /nope/console.log: No such file or '
         'directory',)),
)
