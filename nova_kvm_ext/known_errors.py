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

"""The libvirt errors that we know: what they mean and what mends them.

One table and nothing else. :func:`nova_kvm_ext.errors.explain` looks a text
up in it. Pure.

A row is for one cause. Its pattern takes that cause's words and no other
row's, so the order of the rows has no meaning; a text that no row takes is
not explained at all. libvirt's words change from release to release, and
QEMU's are quoted in them, so a pattern holds on to the part that carries the
meaning and leaves out paths, names and numbers. Remedies name no path of
this host either; ``nova-kvm-ext host check`` is what looks at the host.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class KnownError:
    """One row.

    :ivar name: what documentation and logs call it
    :ivar pattern: what the text contains (regular expression; ``.`` takes
        line ends too)
    :ivar cause: why, in sentences
    :ivar remedy: what an operator can do about it, in sentences
    :ivar seen: the version of libvirt that said it when the fault was made,
        or ``reported`` and where
    :ivar said: texts as they came, each whole
    """

    name: str
    pattern: str
    cause: str
    remedy: str
    seen: str
    said: tuple[str, ...]


_HOST_CHECK = ('Run nova-kvm-ext host check: it names the cause and the '
               'command for this host.')

# What libvirt puts before the last words of a QEMU that ended. 10.0 and later
# add "(vm='NAME')".
_DIED = 'internal error: process exited while connecting to monitor: '
_CLOSED = 'internal error: qemu unexpectedly closed the monitor: '

TABLE: tuple[KnownError, ...] = (
    # /dev/kvm and its modules
    KnownError(
        'kvm-permission',
        r'Could not access KVM kernel module: Permission denied',
        'The user that QEMU runs as may not open /dev/kvm.',
        'Give the device back to its group (udevadm trigger --action=add '
        '--name-match=kvm; without udev chgrp kvm /dev/kvm && chmod 0660 '
        '/dev/kvm) and see to it that QEMU\'s user is in that group. ' +
        _HOST_CHECK,
        'libvirt 9.0',
        (_DIED + 'Could not access KVM kernel module: Permission denied\n'
         '2026-11-23T03:34:19.590383Z qemu-system-x86_64: -accel kvm: failed '
         'to initialize kvm: Permission denied',)),
    KnownError(
        'kvm-no-device',
        r'Could not access KVM kernel module: No such (file|device)',
        'There is no /dev/kvm, or no module behind it: kvm_intel or kvm_amd '
        'is not loaded, or the firmware has virtualization switched off.',
        'Run modprobe kvm_intel (or kvm_amd), and if that fails enable VT-x '
        'or SVM in the firmware; or choose virt_type = qemu. ' + _HOST_CHECK,
        'reported (libvirt 1.3: github.com/kimchi-project/kimchi/issues/1051)',
        ('internal error: QEMU / QMP failed: Could not access KVM kernel '
         'module: No such file or directory\nfailed to initialize KVM: No '
         'such file or directory',)),
    KnownError(
        'kvm-not-offered',
        r"does not support virt type 'kvm'"
        r"|the accel 'kvm' is not supported"
        r'|could not get preferred machine for \S+ type=kvm',
        'QEMU cannot use KVM on this host: /dev/kvm is gone, the kvm_intel '
        'or kvm_amd module is not loaded, or the CPU lacks virtualization.',
        'Run modprobe kvm_intel (or kvm_amd) and restart libvirt if it keeps '
        'its old answer; or choose virt_type = qemu. ' + _HOST_CHECK,
        'libvirt 9.0',
        ("unsupported configuration: Emulator '/usr/bin/qemu-system-x86_64' "
         "does not support virt type 'kvm'",
         "invalid argument: the accel 'kvm' is not supported by "
         "'/usr/bin/qemu-system-x86_64' on this host",
         'invalid argument: could not get preferred machine for '
         '/usr/bin/qemu-system-x86_64 type=kvm')),
    KnownError(
        'kvm-wrong-device',
        r'kvm version too old'
        r'|failed to initialize kvm: Inappropriate ioctl for device',
        'What is at /dev/kvm is not the device of KVM.',
        'Make it anew: rm /dev/kvm && mknod --mode=0660 /dev/kvm c 10 232 && '
        'chgrp kvm /dev/kvm.',
        'libvirt 9.0',
        (_DIED + 'kvm version too old\n2026-11-23T03:34:30.704574Z '
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
        (_DIED + 'ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy\n'
         'failed to initialize KVM: Device or resource busy',)),
    KnownError(
        'kvm-msr',
        r'failed to set MSR|kvm_buf_set_msrs',
        'QEMU was refused a CPU register by this host\'s KVM, as happens '
        'where KVM is nested or emulated and the guest CPU is copied from '
        'the host.',
        'Choose virt_type = qemu or auto, or cpu_mode = none or a named '
        'cpu_model.',
        'libvirt 9.0',
        (_DIED + 'qemu-system-x86_64: error: failed to set MSR 0x10a to 0x0\n'
         'qemu-system-x86_64: ../../target/i386/kvm/kvm.c:3025: '
         "kvm_buf_set_msrs: Assertion `ret == cpu->kvm_msr_buf->nmsrs' "
         'failed.',)),

    # The emulator
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
        r'Failed to read pidfile \S+/qmp\.pid',
        'libvirt asked QEMU what it can do and got no answer: the program '
        'does not start or is no QEMU.',
        'Run the guest\'s emulator with --version by hand; install QEMU '
        'again if that fails.',
        'libvirt 9.0',
        ('Failed to read pidfile /var/lib/libvirt/qemu/qmp-O5Y3Y3/qmp.pid: '
         'No such file or directory',)),
    KnownError(
        'machine-type',
        r"does not support machine type"
        r"|the machine '[^']*' is not supported by emulator",
        'QEMU on this host does not know the guest\'s machine type.',
        'Compare [libvirt] hw_machine_type and the image property '
        'hw_machine_type with what virsh domcapabilities or '
        'qemu-system-x86_64 -machine help lists here.',
        'libvirt 9.0',
        ("unsupported configuration: Emulator '/usr/bin/qemu-system-x86_64' "
         "does not support machine type 'pc-foo-9.9'",
         "invalid argument: the machine 'nomach' is not supported by "
         "emulator '/usr/bin/qemu-system-x86_64'")),
    KnownError(
        'machine-cpus',
        r'Maximum CPUs greater than specified machine type limit',
        'The flavor has more vCPUs than the machine type takes.',
        'Give the image hw_machine_type=q35, or use a smaller flavor.',
        'libvirt 9.0',
        ('unsupported configuration: Maximum CPUs greater than specified '
         'machine type limit 255',)),
    KnownError(
        'device-model',
        r'is not a valid device model name',
        'QEMU on this host does not have a device that the guest asks for.',
        'Look at the image properties that name models (hw_vif_model, '
        'hw_video_model, hw_scsi_model ...), or install what brings the '
        'device (Debian: qemu-system-gui, qemu-system-modules-*).',
        'libvirt 9.0',
        (_DIED + '2026-11-23T03:31:53.621317Z qemu-system-x86_64: -device '
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
        'edk2-ovmf, SUSE: qemu-ovmf-x86_64), or look at the image properties '
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
        'set [libvirt] swtpm_enabled only where it is.',
        'libvirt 9.0',
        ("unsupported configuration: TPM version '2.0' is not supported",)),
    KnownError(
        'sev',
        r'SEV launch security is not supported',
        'The guest asks for memory encryption, and this host\'s CPU, kernel '
        'or QEMU has no SEV.',
        'Take hw_mem_encryption off flavor and image, or load kvm_amd with '
        'sev=1 on a host that has it.',
        'libvirt 9.0',
        ('unsupported configuration: SEV launch security is not supported '
         'with this QEMU binary',)),

    # CPU and memory
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
        r'Unknown CPU model|unknown CPU feature:',
        'libvirt knows no CPU model or feature of that name.',
        'Correct cpu_model or [libvirt] cpu_model_extra_flags; virsh '
        'cpu-models x86_64 lists the models.',
        'libvirt 9.0',
        ('internal error: Unknown CPU model NoSuch',
         'unsupported configuration: unknown CPU feature: bogus')),
    KnownError(
        'cpu-missing',
        r"guest CPU doesn't match specification"
        r'|the CPU is incompatible with host CPU',
        'This host cannot give a guest all features of the CPU that it must '
        'have.',
        'Choose an older cpu_model, or disable the named features with '
        '[libvirt] cpu_model_extra_flags. A guest that migrates brings the '
        'CPU of the host where it started.',
        'libvirt 9.0',
        ("operation failed: guest CPU doesn't match specification: extra "
         'features: hypervisor,pku, missing features: vme,pcid',
         'the CPU is incompatible with host CPU: Host CPU does not provide '
         'required features: mpx, spec-ctrl, ssbd')),
    KnownError(
        'cpu-affinity',
        r'cannot set CPU affinity on process',
        'The guest is to be pinned to CPUs that this host does not have '
        'or has switched off.',
        'Compare [compute] cpu_dedicated_set and cpu_shared_set with '
        '/sys/devices/system/cpu/online.',
        'libvirt 9.0',
        ('cannot set CPU affinity on process 184: Invalid argument',)),
    KnownError(
        'numa-node',
        r'NUMA node \d+ is unavailable',
        'The guest is to have memory of a NUMA node that this host does not '
        'have.',
        'Cold migrate the guest: its placement is from another host, or from '
        'before a change of this one\'s hardware.',
        'libvirt 9.0',
        ('unsupported configuration: NUMA node 5 is unavailable',)),
    KnownError(
        'memory',
        r'cannot set up guest memory',
        'The host has too little free memory for this guest.',
        'Look at free -m; raise [DEFAULT] reserved_host_memory_mb or lower '
        'ram_allocation_ratio so that the scheduler knows.',
        'libvirt 9.0',
        (_CLOSED + '2026-11-23T03:31:50.778220Z qemu-system-x86_64: cannot '
         "set up guest memory 'pc.ram': Cannot allocate memory",)),
    KnownError(
        'memory-locked',
        r'locking memory failed',
        'The guest\'s memory is to be locked, and that is more than its '
        'limit or than the host has.',
        'Look at the flavor\'s and image\'s hw:locked_memory, and at the '
        'host\'s free memory.',
        'libvirt 9.0',
        (_CLOSED + '2026-11-23T03:31:51.113297Z qemu-system-x86_64: mlockall: '
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
        (_CLOSED + '2026-11-23T03:31:51.113297Z qemu-system-x86_64: unable to '
         'map backing store for guest RAM: Cannot allocate memory',)),

    # libvirt itself
    KnownError(
        'libvirt-down',
        r"Failed to connect socket to '(?![^']*/virtlo[gc])[^']*': "
        r'(No such file or directory|Connection refused)',
        'libvirt is not running, or it listens elsewhere.',
        'Start it (systemctl start libvirtd or virtqemud; without systemd '
        'virtlogd -d and libvirtd -d), or correct [libvirt] connection_uri.',
        'libvirt 9.0',
        ("Failed to connect socket to '/var/run/libvirt/libvirt-sock': No "
         'such file or directory',
         "Failed to connect socket to '/var/run/libvirt/virtqemud-sock': "
         'Connection refused')),
    KnownError(
        'libvirt-permission',
        r"Failed to connect socket to '[^']*': Permission denied"
        r'|authentication (unavailable|failed|cancelled)',
        'This user may not talk to libvirt.',
        'Add the user to the group that unix_sock_group in libvirtd.conf or '
        'polkit lets in (mostly libvirt) and start the service or the '
        'session again; or run as root.',
        'libvirt 9.0',
        ("Failed to connect socket to '/var/run/libvirt/libvirt-sock': "
         'Permission denied',
         'authentication unavailable: no polkit agent available to '
         "authenticate action 'org.libvirt.unix.manage'")),
    KnownError(
        'libvirt-gone',
        r'Cannot write data: Broken pipe'
        r'|End of file while reading data'
        r'|Cannot recv data: Connection reset by peer',
        'libvirt ended, or was restarted, in the middle of a call.',
        'Look why: journalctl -u libvirtd -u virtqemud. Then try again; '
        'guests run on meanwhile.',
        'libvirt 9.0',
        ('Cannot write data: Broken pipe',
         'End of file while reading data: Input/output error',
         'Cannot recv data: Connection reset by peer')),
    KnownError(
        'virtlogd-down',
        r"Failed to connect socket to '[^']*/virtlogd-sock': "
        r'(No such file or directory|Connection refused)',
        'virtlogd, which writes the guests\' console logs, is not running.',
        'Start it: systemctl start virtlogd.socket; without systemd virtlogd '
        '-d.',
        'libvirt 9.0',
        ("Failed to connect socket to '/run/libvirt/virtlogd-sock': No such "
         'file or directory',)),
    KnownError(
        'domain-busy',
        r'cannot acquire state change lock',
        'Another call holds this guest, often because its QEMU or its '
        'storage hangs.',
        'Look at the holder that is named and at the guest\'s storage '
        '(dmesg, processes in state D); restarting libvirt frees the lock '
        'and leaves the guest running.',
        'reported (github.com/digitalocean/go-libvirt/issues/90)',
        ('Timed out during operation: cannot acquire state change lock (held '
         'by monitor=remoteDispatchDomainBlockStats)',)),
    KnownError(
        'domain-exists',
        r"domain '[^']*' already exists with uuid",
        'libvirt has another domain of this name, which Nova did not make or '
        'lost sight of.',
        'Find it with virsh list --all; undefine it if it belongs to nobody, '
        'or change [DEFAULT] instance_name_template.',
        'libvirt 9.0',
        ("operation failed: domain 'dup' already exists with uuid "
         '7b642eda-65ac-4575-8d6b-8e308a2394be',)),
    KnownError(
        'apparmor',
        r'cannot load AppArmor profile',
        'AppArmor refused the profile that libvirt wrote for this guest.',
        'Look at dmesg for DENIED, and see that /etc/apparmor.d/libvirt and '
        'abstractions/libvirt-qemu are those of the installed libvirt '
        '(apparmor_parser -r).',
        'reported (libvirt 7.5: '
        'github.com/void-linux/void-packages/issues/31904)',
        ("internal error: cannot load AppArmor profile "
         "'libvirt-aa58ea57-f6d7-48b1-b727-de97f4c508af'",)),

    # Disks
    KnownError(
        'disk-locked',
        r'Failed to get (shared )?"(write|consistent read)" lock',
        'Another process has this disk open: a second guest, a QEMU that was '
        'left behind, or qemu-img.',
        'Find it on every host that shares the storage (fuser or lsof, virsh '
        'list --all) and end it; never start a disk twice.',
        'libvirt 9.0',
        (_DIED + '2026-11-23T03:31:55.383647Z qemu-system-x86_64: -device '
         '{"driver":"ide-hd","drive":"libvirt-1-format"}: Failed to get '
         '"write" lock\nIs another process using the image '
         '[/var/lib/nova/instances/x/disk]?',)),
    KnownError(
        'disk-permission',
        r"Could not open '[^']*': Permission denied"
        r"|Cannot access (storage|backing) file .*: Permission denied",
        'QEMU\'s user may not open a disk of the guest, or not enter a '
        'directory on the way to it.',
        'Let it traverse [DEFAULT] instances_path (namei -l shows the path), '
        'leave dynamic_ownership = 1 in qemu.conf, and look for AppArmor or '
        'SELinux denials in dmesg. ' + _HOST_CHECK,
        'libvirt 9.0',
        (_DIED + '2026-11-23T03:31:55.677899Z qemu-system-x86_64: -blockdev '
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
        (_DIED + '2026-11-23T03:31:51.408591Z qemu-system-x86_64: -blockdev '
         '{"driver":"qcow2","file":"libvirt-1-storage"}: Image is not in '
         'qcow2 format',
         _CLOSED + '2026-11-23T03:31:55.775081Z qemu-system-x86_64: -blockdev '
         '{"driver":"qcow2","file":"libvirt-1-storage"}: Unsupported qcow2 '
         'version 9')),
    KnownError(
        'disk-full',
        r'No space left on device',
        'A file system is full.',
        'Free space where the instances are kept ([DEFAULT] '
        'instances_path), in /var/lib/libvirt, /etc/libvirt and /var/log. ' +
        _HOST_CHECK,
        'libvirt 9.0',
        ("cannot write data to file '/etc/libvirt/qemu/f.xml.new': No space "
         'left on device',)),
    KnownError(
        'disk-driver',
        r"Unknown driver '\w+'|module block-block-\S+ not found",
        'QEMU on this host has no driver for this kind of storage.',
        'Install it (Debian and Ubuntu: qemu-block-extra, Fedora and RHEL: '
        'qemu-kvm-block-rbd).',
        'libvirt 9.0',
        (_CLOSED + 'qemu: module block-block-rbd not found, do you want to '
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
        'libvirt 9.0',
        ('Secret not found: no secret with matching uuid '
         "'11111111-2222-3333-4444-555555555555'",)),
    KnownError(
        'console-log',
        r"Unable to open file: \S*console\.log",
        'The guest\'s console log cannot be made: its directory is gone or '
        'closed to virtlogd.',
        'See that [DEFAULT] instances_path is mounted and that AppArmor or '
        'SELinux lets virtlogd in.',
        'libvirt 9.0',
        ('Unable to open file: /nope/console.log: No such file or '
         'directory',)),

    # Network
    KnownError(
        'vhost-net',
        r'vhost-net was requested for an interface, but is unavailable',
        'A network interface names the vhost driver and /dev/vhost-net '
        'cannot be opened.',
        'Run modprobe vhost_net. ' + _HOST_CHECK,
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
        'look who wrote the XML.',
        'libvirt 9.0',
        ("Network not found: no network with matching name 'nonet'",)),
    KnownError(
        'tap-busy',
        r'Unable to create tap device \S+: Device or resource busy',
        'The guest\'s tap device is in use, mostly by a QEMU that was left '
        'behind.',
        'Find that process (the device is in /proc/PID/fdinfo, virsh list '
        '--all names the guests) and end it.',
        'libvirt 9.0',
        ('Unable to create tap device tapx0: Device or resource busy',)),
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
        'vhost-user-socket',
        r'-chardev socket,[^:]*: Failed to connect to ',
        'Nothing listens at a socket that the guest is to connect to, such '
        'as a vhost-user port of Open vSwitch or DPDK.',
        'Start the virtual switch and see that the port\'s socket is there '
        'and open to QEMU\'s user.',
        'libvirt 9.0',
        (_CLOSED + '2026-11-23T03:32:43.583952Z qemu-system-x86_64: -chardev '
         "socket,id=charnet0,path=/nope/sock: Failed to connect to "
         "'/nope/sock': No such file or directory",)),
    KnownError(
        'listen-address',
        r'Failed to bind socket: Cannot assign requested address',
        'The guest\'s display or serial console is to listen on an address '
        'that this host does not have.',
        'Correct [vnc] server_listen, [spice] server_listen or '
        '[serial_console] proxyclient_address.',
        'libvirt 9.0',
        (_DIED + '2026-11-23T03:31:53.537868Z qemu-system-x86_64: -vnc '
         '203.0.113.9:0,audiodev=audio1: Failed to bind socket: Cannot '
         'assign requested address',)),

    # PCI and hot-plug
    KnownError(
        'pci-no-iommu',
        r"host doesn't support passthrough of host PCI devices",
        'The guest asks for a host device, and this host has no IOMMU '
        'switched on.',
        'Enable VT-d or AMD-Vi in the firmware, boot with intel_iommu=on '
        '(amd_iommu is on by itself) and load vfio_pci.',
        'libvirt 9.0',
        ("unsupported configuration: host doesn't support passthrough of "
         'host PCI devices',)),
    KnownError(
        'pci-group',
        r'group \d+ is not viable',
        'Another device of the same IOMMU group is still in the hands of a '
        'host driver.',
        'Bind every device of the group to vfio-pci, or put the card in a '
        'slot with a group of its own.',
        'reported (github.com/kubevirt/kubevirt/issues/6718)',
        (_CLOSED + '2021-11-03T08:06:48.563014Z qemu-kvm: -device '
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
        'The device\'s bus takes no devices while the guest runs.',
        'Use virtio or scsi (image properties hw_disk_bus, hw_vif_model), '
        'or stop the guest first.',
        'libvirt 9.0',
        ("internal error: unable to execute QEMU command 'device_add': Bus "
         "'pci.0' does not support hotplugging",
         "Operation not supported: disk bus 'sata' cannot be hotplugged.")),

    # Live migration
    KnownError(
        'migration-connect',
        r"unable to connect to server at '[^']*'",
        'The other host\'s libvirt or QEMU cannot be reached.',
        'Look at [libvirt] live_migration_uri, at the other host\'s libvirt '
        '(listening socket) and at the firewall (libvirt\'s port and 49152 '
        'to 49215).',
        'libvirt 9.0',
        ("unable to connect to server at '127.0.0.1:1': Connection "
         'refused',)),
    KnownError(
        'migration-name',
        r"Unable to resolve address '|Could not resolve hostname",
        'This host does not know the other host\'s name.',
        'Put it into DNS or /etc/hosts, or set [libvirt] '
        'live_migration_inbound_addr there to an address.',
        'libvirt 9.0',
        ("Unable to resolve address 'nohost.invalid' service '16509': Name or "
         'service not known',
         'Cannot recv data: ssh: Could not resolve hostname nohost.invalid: '
         'Name or service not known: Connection reset by peer')),
    KnownError(
        'migration-tls',
        r'Cannot read CA certificate',
        'libvirt is to use TLS and this host has no CA certificate for it.',
        'Install the certificates in /etc/pki/CA and /etc/pki/libvirt on '
        'every host, or use another [libvirt] live_migration_scheme.',
        'libvirt 9.0',
        ("Cannot read CA certificate '/etc/pki/CA/cacert.pem': No such file "
         'or directory',)),
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
)
