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

"""Facts about a host as frozen data.

Pure: defines the form of facts, not their source.
:mod:`nova_kvm_ext.host.facts` reads them.
"""

from collections.abc import Mapping
import dataclasses

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.host import distribution
from nova_kvm_ext.host import options
from nova_kvm_ext.host import storage_model


@dataclasses.dataclass(frozen=True)
class DeviceFacts:
    """A character device such as /dev/kvm.

    :ivar path: its path
    :ivar present: whether there is a character device of that name
    :ivar mode: permission bits, 0 if not present
    :ivar owner: uid, or -1
    :ivar group: gid, or -1
    :ivar open_error: errno name (``EACCES``) of this process's attempt to
        open it for reading and writing; None where it opened or is not there
    :ivar kind: what there is instead of a character device: ``a directory``,
        ``a plain file`` ...; '' where there is nothing
    :ivar number: ``major:minor``, or ''
    :ivar acl: whether more than the permission bits decides who may open it
    """

    path: str
    present: bool
    mode: int = 0
    owner: int = -1
    group: int = -1
    open_error: str | None = None
    kind: str = ''
    number: str = ''
    acl: bool = False


@dataclasses.dataclass(frozen=True)
class VhostFacts:
    """What the kernel shows of a running guest's vhost-net.

    :ivar pid: of its QEMU; None where no such process is seen
    :ivar descriptors: how many descriptors of /dev/vhost-net it has open, one
        for each queue; None where this process may not look
    :ivar threads: how many threads of the kernel serve it, one for each
        descriptor; None where kernel threads are not seen (in a PID
        namespace)
    :ivar fall_backs: how often QEMU has said since its start that it does not
        use vhost-net; None where its log cannot be read
    :ivar switches: how often these threads have waited for work, which
        grows with the packets; None where that is not seen
    """

    pid: int | None = None
    descriptors: int | None = None
    threads: int | None = None
    fall_backs: int | None = None
    switches: int | None = None


@dataclasses.dataclass(frozen=True)
class InstallFacts:
    """Where Nova and this package are installed.

    :ivar nova_directories: directories of the ``nova.virt`` package
    :ivar door: path of nova/virt/kvm_ext as this installation has it, or
        None where it has none
    :ivar error: why ``nova.virt.kvm_ext`` cannot be found, or None
    :ivar python: the Python that was asked; '' for the one of this process
    :ivar how: why it is held for the one of nova-compute
    :ivar has_package: whether that Python finds ``nova_kvm_ext``
    :ivar unknown: why the Python of nova-compute could not be asked, or ''
    :ivar elsewhere: whether it could not because nova-compute has a file
        system of its own
    """

    nova_directories: tuple[str, ...]
    door: str | None
    error: str | None
    python: str = ''
    how: str = ''
    has_package: bool = True
    unknown: str = ''
    elsewhere: bool = False


@dataclasses.dataclass(frozen=True)
class CPUFacts:
    """What the kernel says of this host's processor.

    :ivar arch: uname's name of the architecture
    :ivar vendor: ``vendor_id`` of /proc/cpuinfo, '' elsewhere than on x86
    :ivar virtualization: ``vmx``, ``svm``, or None where the kernel shows
        neither
    :ivar virtual: whether this is a virtual machine (flag ``hypervisor``)
    :ivar locked: whether the firmware switched virtualization off; None
        where that cannot be known
    :ivar locked_source: where ``locked`` is from, or why it is not known
    """

    arch: str
    vendor: str = ''
    virtualization: str | None = None
    virtual: bool = False
    locked: bool | None = None
    locked_source: str = ''


@dataclasses.dataclass(frozen=True)
class ModuleFacts:
    """One kernel module, or what could be one.

    :ivar state: ``loaded``; ``builtin``; ``loadable``, in this kernel's
        modules.dep; ``missing``
    :ivar blocked: file and line of modprobe.d that prevent it from being
        loaded, or ''
    :ivar nested: its parameter ``nested`` as the kernel shows it, or None
    """

    name: str
    state: str
    blocked: str = ''
    nested: str | None = None

    @property
    def there(self) -> bool:
        """Whether its code is in the running kernel."""
        return self.state in ('loaded', 'builtin')


@dataclasses.dataclass(frozen=True)
class KernelFacts:
    """The running kernel.

    :ivar release: as uname says it
    :ivar loads_modules: whether it can load modules at all
    :ivar modules_installed: whether there is a modules.dep for this release:
        not so after an upgrade that took the running kernel's modules away
    :ivar modules: kvm, the kvm_* that there are or that this processor
        needs, and vhost_net, by name
    :ivar misc: ``major:minor`` by name of the misc devices that a driver has
        registered: ``kvm`` is there when KVM works in the kernel, whatever
        became of its node
    """

    release: str
    loads_modules: bool
    modules_installed: bool
    modules: Mapping[str, ModuleFacts]
    misc: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class UserFacts:
    """The user and groups that libvirt runs QEMU as.

    :ivar user: as qemu.conf or the distribution's default has it
    :ivar group: likewise
    :ivar source: where they are from, one for an operator
    :ivar uid: None where the user does not exist
    :ivar gid: None where the group does not exist
    :ivar groups: every gid of the process, the primary one among them
    :ivar error: why qemu.conf could not be read, or is invalid, or ''
    :ivar unreadable: whether ``error`` is that this process may not read it
    :ivar by_libvirt: whether user and group are the running libvirt's own
        answer
    """

    user: str
    group: str
    source: str
    uid: int | None
    gid: int | None
    groups: tuple[int, ...] = ()
    error: str = ''
    unreadable: bool = False
    by_libvirt: bool = False

    @property
    def known(self) -> bool:
        """Whether this is QEMU's user, and not one that is assumed."""
        return self.by_libvirt or not self.error


@dataclasses.dataclass(frozen=True)
class UseFacts:
    """What happened to opening a device as a user.

    :ivar path: of the device
    :ivar tried: True if it was opened as that user; False if the answer is
        judged from permission bits, because this process may not change its
        user, or opened the device itself
    :ivar error: errno name (``EACCES``), or None if it opens
    :ivar api_version: of ``/dev/kvm``, the answer to KVM_GET_API_VERSION;
        None where it was not asked
    """

    path: str
    tried: bool
    error: str | None
    api_version: int | None = None

    @property
    def works(self) -> bool:
        return self.error is None


@dataclasses.dataclass(frozen=True)
class PostCopyFacts:
    """What the kernel lets QEMU's user have for post-copy.

    :ivar looked: whether it was checked: only where nova.conf permits
        post-copy
    :ivar call: what the system call userfaultfd said to that user: errno's
        name, '' for success; None where it was not tried
    :ivar sysctl: of vm.unprivileged_userfaultfd; '' where there is none, as
        before Linux 5.2
    :ivar device: of /dev/userfaultfd; None where there is none, as before
        Linux 6.1
    """

    looked: bool = False
    call: str | None = None
    sysctl: str = ''
    device: UseFacts | None = None


@dataclasses.dataclass(frozen=True)
class UdevRule:
    """What a rule file sets for a device; '' for what it leaves alone."""

    file: str
    device: str
    group: str
    mode: str


@dataclasses.dataclass(frozen=True)
class UdevFacts:
    """udev on this host.

    :ivar running: whether a udev daemon answers (/run/udev/control)
    :ivar rules: those for kvm and vhost-net, in the order in which udev
        applies them
    """

    running: bool
    rules: tuple[UdevRule, ...]


@dataclasses.dataclass(frozen=True)
class DirectoryFacts:
    """A directory that guests need.

    :ivar path: of the directory
    :ivar what: for an operator: the option or program it belongs to
    :ivar error: errno name of looking at it (``ENOENT``), or None
    :ivar mode: permission bits
    :ivar owner: uid
    :ivar group: gid
    :ivar writable: whether this process may make files in it
    :ivar barrier: the directory on the way that QEMU's user may not enter,
        itself included, or ''
    :ivar free: bytes that its file system still takes from this process
    :ivar total: bytes of the file system
    :ivar free_files: inodes left, None where there is no such limit
    :ivar read_only: whether it is mounted read-only
    :ivar disks: how many guests have a disk in it, of Nova's directory of
        instances; None where that is not known
    :ivar guests: how many guests have a directory in it, likewise
    """

    path: str
    what: str
    error: str | None
    mode: int = 0
    owner: int = -1
    group: int = -1
    writable: bool = False
    barrier: str = ''
    free: int = 0
    total: int = 0
    free_files: int | None = None
    read_only: bool = False
    disks: int | None = None
    guests: int | None = None


@dataclasses.dataclass(frozen=True)
class ProgramFacts:
    """A program that another one is going to run.

    :ivar name: as it is asked for
    :ivar path: where it is, or None where it is not or cannot be run
    """

    name: str
    path: str | None


@dataclasses.dataclass(frozen=True)
class EmulatorFacts:
    """The QEMU program for guests of this architecture.

    :ivar path: of the program, or None where there is none
    :ivar version: (major, minor, micro), or None where it did not say
    :ivar accelerators: what ``-accel help`` lists
    :ivar error: why it could not be run, or ''
    :ivar vouched: the virt_type for which libvirt gave domain capabilities of
        this program, so that it was not run here; '' where it was
    """

    path: str | None
    version: tuple[int, int, int] | None = None
    accelerators: tuple[str, ...] = ()
    error: str = ''
    vouched: str = ''


@dataclasses.dataclass(frozen=True)
class NovaFacts:
    """What the installed Nova demands.

    Versions are (major, minor, micro); None where Nova's source could not be
    read.

    :ivar libvirt: the oldest libvirt that it starts with
    :ivar qemu: the oldest QEMU
    :ivar next_libvirt: the oldest of the next release but one
    :ivar next_qemu: the same for QEMU
    """

    libvirt: tuple[int, int, int] | None = None
    qemu: tuple[int, int, int] | None = None
    next_libvirt: tuple[int, int, int] | None = None
    next_qemu: tuple[int, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class LibvirtPlace:
    """Where libvirt runs (:mod:`nova_kvm_ext.host.libvirt_place`).

    :ivar here: whether it sees the same files as the process that asks;
        None where that is not known
    :ivar reason: how that is known, or why it is not
    :ivar remote: whether its URI uses a network
    """

    here: bool | None = None
    reason: str = 'it was not checked'
    remote: bool = False


@dataclasses.dataclass(frozen=True)
class ProbeFacts:
    """What happened to the probe guest (:mod:`nova_kvm_ext.host.probe`).

    :ivar virt_type: ``kvm`` or ``qemu``
    :ivar runs: whether a 64-bit guest runs; None where that is not known
    :ivar reason: what happened, or why it was not started
    :ivar tried: whether it was started, or was to be and libvirt could not
    """

    virt_type: str
    runs: bool | None
    reason: str
    tried: bool = False


@dataclasses.dataclass(frozen=True)
class EarlyFacts:
    """What is known of a host when the driver starts, without a look at it.

    :ivar virt_type: the type of guests here, ``auto`` resolved
    :ivar emulator: the QEMU of which libvirt has told what guests of this
        type can have; '' where it has not told
    :ivar probe: what the probe guest has shown in this boot of the host;
        None where it has to be started
    :ivar vhost_net: ``[kvm_ext] vhost_net``
    :ivar helper: the first program of the command that oslo.privsep runs
    """

    virt_type: str
    emulator: str = ''
    probe: ProbeFacts | None = None
    vhost_net: str = 'prefer'
    helper: tuple[ProgramFacts, ...] = ()


@dataclasses.dataclass(frozen=True)
class LibvirtFacts:
    """What libvirt answered.

    Asking costs minutes where QEMU's user may not open /dev/kvm, because
    libvirt 9 looks at QEMU again for each question and QEMU hangs for a while
    each time. So some of it may be left out.

    :ivar uri: the libvirt that was asked
    :ivar error: why it cannot be reached, in libvirt's words, or ''
    :ivar hangs: whether ``error`` is that no answer came
    :ivar unasked: why it was not asked at all, or not about QEMU; '' if
        everything was
    :ivar version: libvirt's own, or None
    :ivar qemu: QEMU's as libvirt sees it, or None
    :ivar user: (uid, gid) that this libvirtd gives QEMU (security label
        ``dac``), or None
    :ivar emulator: QEMU's program for this architecture, as its
        capabilities name it, or ''
    :ivar offers_kvm: whether its capabilities list the domain type kvm for
        this architecture; None where not asked
    :ivar refuses: by virt_type asked for, why libvirt gives no domain
        capabilities
    :ivar machines: machine types for this architecture
    :ivar models: CPU model names that libvirt knows
    :ivar domain_capabilities: what CPUs guests of the virt_type in use can
        have; nothing is known of them where it was not asked
    """

    uri: str
    error: str = ''
    hangs: bool = False
    unasked: str = ''
    version: tuple[int, int, int] | None = None
    qemu: tuple[int, int, int] | None = None
    user: tuple[int, int] | None = None
    emulator: str = ''
    offers_kvm: bool | None = None
    refuses: Mapping[str, str] = dataclasses.field(default_factory=dict)
    machines: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    domain_capabilities: capabilities.DomainCapabilities = (
        capabilities.DomainCapabilities())


@dataclasses.dataclass(frozen=True)
class HostFacts:
    """Everything that the checks look at.

    :ivar devices: ``/dev/kvm`` and ``/dev/vhost-net`` by path
    :ivar qemu_user: QEMU's user: libvirt's own answer, else qemu.conf's
    :ivar configured_user: qemu.conf's, or the distribution's default
    :ivar kvm_use: opening /dev/kvm as QEMU's user
    :ivar group_names: group name by gid, as far as needed
    :ivar root: whether the facts were read by root, who alone can try what
        QEMU's user may
    :ivar privsep: the programs that start privsep's helper, in the order in
        which they run one another
    :ivar cpu_map: libvirt's CPU map of x86, None where it is not installed
    :ivar post_copy: whether QEMU's user can do post-copy
    :ivar place: whether libvirt sees the files that were read
    :ivar service: whether nova-compute itself has read them, as its user and
        in its file system
    :ivar storage: Ceph
    """

    options: options.HostOptions
    distribution: distribution.Distribution
    systemd: bool
    cpu: CPUFacts
    kernel: KernelFacts
    qemu_user: UserFacts
    configured_user: UserFacts
    devices: Mapping[str, DeviceFacts]
    kvm_use: UseFacts
    udev: UdevFacts
    install: InstallFacts
    nova: NovaFacts
    privsep: tuple[ProgramFacts, ...]
    directories: tuple[DirectoryFacts, ...]
    emulator: EmulatorFacts
    libvirt: LibvirtFacts
    probe: ProbeFacts
    group_names: Mapping[int, str]
    root: bool
    cpu_map: cpu_map.CPUMap | None
    place: LibvirtPlace = LibvirtPlace()
    post_copy: PostCopyFacts = PostCopyFacts()
    service: bool = False
    storage: storage_model.StorageFacts = storage_model.StorageFacts()

    @property
    def has_kvm(self) -> bool:
        """Whether the running kernel has KVM, by either sign of it."""
        device = self.devices['/dev/kvm']
        return 'kvm' in self.kernel.misc or (
            device.present and device.open_error is None and
            device.number == '10:232')

    @property
    def runs_kvm(self) -> bool:
        """Whether a guest under KVM has just run: proof against all else."""
        return self.probe.virt_type == 'kvm' and self.probe.runs is True

    @property
    def virt_type(self) -> str:
        """The type of this host's guests, ``auto`` resolved."""
        settings = self.options.settings
        if settings is None:
            return 'kvm'
        if settings.virt_type != 'auto':
            return settings.virt_type
        works = self.probe.runs if self.probe.runs is not None else (
            self.kvm_use.works)
        return 'kvm' if works else 'qemu'
