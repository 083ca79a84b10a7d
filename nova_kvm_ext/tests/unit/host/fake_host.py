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


"""A healthy KVM host as a directory tree, for tests to break."""

import os
import stat
from typing import Any
from unittest import mock

import fixtures

from nova_kvm_ext import conf
from nova_kvm_ext.host import facts
from nova_kvm_ext.host import model
from nova_kvm_ext.host import options
from nova_kvm_ext.host import probe
from nova_kvm_ext.host import storage_model
from nova_kvm_ext.settings import Settings

RELEASE = '6.1.0-1'
KVM_GID = 36
QEMU_UID = 107

_RULES = ('KERNEL=="kvm", GROUP="kvm", MODE="0660", '
          'OPTIONS+="static_node=kvm"\n'
          'KERNEL=="vhost-net", GROUP="kvm", MODE="0660"\n')

# os-release, and the user and group of QEMU, of each distribution.
DISTRIBUTIONS = {
    'debian': ('ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian 12"\n',
               'libvirt-qemu', 'libvirt-qemu'),
    'ubuntu': ('ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\n',
               'libvirt-qemu', 'kvm'),
    'fedora': ('ID=fedora\nVERSION_ID=40\n', 'qemu', 'qemu'),
    'rhel': ('ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\n',
             'qemu', 'qemu'),
    'suse': ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n'
             'VERSION_ID="15.6"\n', 'qemu', 'qemu'),
}

CAPABILITIES = """\
<capabilities>
  <host><secmodel><model>dac</model><doi>0</doi>
    <baselabel type='kvm'>+{uid}:+{gid}</baselabel></secmodel></host>
  <guest><os_type>hvm</os_type><arch name='x86_64'>
    {emulator}
    <machine maxCpus='255'>pc-i440fx-8.2</machine>
    <machine canonical='pc-i440fx-8.2' maxCpus='255'>pc</machine>
    <machine maxCpus='255'>q35</machine>
    <domain type='qemu'/>{kvm}</arch></guest>
</capabilities>
"""
DOMAIN_CAPABILITIES = """\
<domainCapabilities><domain>{virt_type}</domain><cpu>
  <mode name='host-passthrough' supported='{passthrough}'/>
  <mode name='maximum' supported='yes'/>
  <mode name='host-model' supported='yes'><model>Nehalem</model>
    <vendor>Intel</vendor></mode>
  <mode name='custom' supported='yes'>
    <model usable='yes'>Nehalem</model>
    <model usable='no'>Icelake-Server</model>
  </mode></cpu></domainCapabilities>
"""
CPU_MAP = """\
<cpus><feature name='popcnt'><cpuid eax_in='0x01' ecx='0x00800000'/></feature>
<model name='Nehalem'><feature name='popcnt'/></model></cpus>
"""


class FakeLibvirtError(Exception):

    def get_error_code(self) -> int:
        return 1


class FakeConnection:
    """A libvirt that answers as asked to.

    :ivar kvm: whether it offers KVM
    :ivar user: (uid, gid) that it says it gives QEMU
    :ivar emulator: the QEMU that it has found, or ''
    :ivar here: whether it sees the files of this host
    :ivar asked: the calls that made it look at QEMU
    """

    def __init__(self) -> None:
        self.kvm = True
        self.version = 10_000_000
        self.qemu = 8_002_002
        self.user = (QEMU_UID, KVM_GID)
        self.emulator = '/usr/bin/qemu-system-x86_64'
        self.here = True
        self.asked: list[str] = []

    def getLibVersion(self) -> int:
        return self.version

    def getVersion(self) -> int:
        self.asked.append('getVersion')
        return self.qemu

    def getCapabilities(self) -> str:
        self.asked.append('getCapabilities')
        return CAPABILITIES.format(
            uid=self.user[0], gid=self.user[1],
            emulator=f'<emulator>{self.emulator}</emulator>'
            if self.emulator else '',
            kvm="<domain type='kvm'/>" if self.kvm else '')

    def getCPUModelNames(self, arch: str) -> list[str]:
        return ['Nehalem', 'Icelake-Server']

    def getDomainCapabilities(self, emulator: str | None, arch: str,
                              machine: str | None, virt_type: str,
                              flags: int = 0) -> str:
        if emulator is not None:
            raise FakeLibvirtError(
                f'QEMU binary {emulator} is not executable: Permission '
                f'denied' if self.here else f'Cannot check QEMU binary '
                f'{emulator}: No such file or directory')
        if virt_type == 'kvm' and not self.kvm:
            raise FakeLibvirtError('invalid argument: the accel \'kvm\' is '
                                   'not supported')
        return DOMAIN_CAPABILITIES.format(
            virt_type=virt_type,
            passthrough='yes' if virt_type == 'kvm' else 'no')


class FakeHost(fixtures.Fixture):
    """A tree below :attr:`root`, and what its libvirt and guest say.

    The process is not root, so what QEMU's user may is judged.
    """

    def __init__(self, family: str = 'debian') -> None:
        self.family = family

    def _setUp(self) -> None:
        # A host's own directories can be entered, whatever these tests' umask.
        self.addCleanup(os.umask, os.umask(0o022))
        self.root = self.useFixture(fixtures.TempDir()).path
        self.nodes: dict[str, os.stat_result] = {}
        self.connection: Any = FakeConnection()
        self.runs: bool | None = True
        self.tried: model.ProbeFacts | None = None
        self.cache_dir: str | None = '/nowhere'
        self.uri, self.service = 'qemu:///system', False
        self.settings: dict[str, Any] = {}
        self.options: dict[str, Any] = {'post_copy': True}
        self.storage = storage_model.StorageFacts()
        self.install = model.InstallFacts(('/site/nova/virt',), '/site/x',
                                          None)
        self._real_stat, self._real_geteuid = os.stat, os.geteuid
        for name, replacement in (
                ('os.stat', self._stat), ('os.geteuid', lambda: 1000),
                ('os.uname', lambda: mock.Mock(machine='x86_64')),
                ('nova_kvm_ext.host.door.read_install',
                 lambda: self.install),
                ('nova_kvm_ext.host.facts.read_nova',
                 lambda install: model.NovaFacts(
                     (8, 0, 0), (6, 2, 0), (10, 0, 0), (8, 2, 2))),
                ('subprocess.run', self._run),
                ('nova_kvm_ext.host.storage_facts.read',
                 lambda *args: self.storage),
                ('nova_kvm_ext.host.probe_answers.cached_run', self._probe)):
            self.useFixture(fixtures.MonkeyPatch(name, replacement))
        self._make()

    def _stat(self, path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        return self.nodes.get(path) or self._real_stat(path, *args, **kwargs)

    def _run(self, command: list[str], **kwargs: Any) -> Any:
        """QEMU, without a process."""
        if not os.access(command[0], os.X_OK):
            raise PermissionError(13, 'Permission denied', command[0])
        with open(command[0]) as f:
            version, accelerators = f.read().split('\n', 1)
        return mock.Mock(stdout=version if command[1] == '--version' else
                         f'Accelerators supported:\n{accelerators}')

    def _probe(self, connection: Any, **kwargs: Any) -> probe.ProbeResult:
        if not connection.kvm:
            return probe.ProbeResult(False, 'the guest did not run', 0.0)
        return probe.ProbeResult(self.runs, {
            True: 'the guest ran', False: 'the guest did not run',
            None: 'libvirt was too busy'}[self.runs], 1.0)

    def path(self, path: str) -> str:
        return os.path.join(self.root, path.lstrip('/'))

    def write(self, path: str, text: str = '') -> str:
        real = self.path(path)
        os.makedirs(os.path.dirname(real), exist_ok=True)
        with open(real, 'w') as f:
            f.write(text)
        return real

    def remove(self, path: str) -> None:
        real = self.path(path)
        self.nodes.pop(real, None)
        if os.path.isdir(real):
            os.rmdir(real)
        else:
            os.unlink(real)

    def node(self, path: str, mode: int = 0o660, owner: int = 0,
             group: int = KVM_GID, number: tuple[int, int] = (10, 232)
             ) -> None:
        """Let a plain file look like a character device."""
        real = self.write(path)
        # st_rdev is no part of the tuple.
        self.nodes[real] = os.stat_result(
            (stat.S_IFCHR | mode, 1, 1, 1, owner, group, 0, 0, 0, 0),
            {'st_rdev': os.makedev(*number)})

    def _make(self) -> None:
        release, user, group = DISTRIBUTIONS[self.family]
        self.user = user
        self.write('/etc/os-release', release)
        self.write('/etc/passwd',
                   f'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n'
                   f'{user}:x:{QEMU_UID}:{KVM_GID}::/:/bin/false\n')
        self.write('/etc/group', f'root:x:0:\nkvm:x:{KVM_GID}:\n'
                                 f'nogroup:x:65534:\n{user}:x:107:\n')
        self.connection.user = (
            QEMU_UID, KVM_GID if group == 'kvm' else 107)
        self.write('/proc/cpuinfo', 'vendor_id\t: GenuineIntel\n'
                                    'flags\t\t: fpu vmx sse2\n')
        self.write('/proc/sys/kernel/osrelease', f'{RELEASE}\n')
        self.write('/proc/modules', 'kvm_intel 1 0 - Live 0x0\n'
                                    'kvm 1 1 kvm_intel, Live 0x0\n'
                                    'vhost_net 1 0 - Live 0x0\n')
        self.write(f'/lib/modules/{RELEASE}/modules.dep',
                   'kernel/arch/x86/kvm/kvm.ko.xz: x\n'
                   'kernel/arch/x86/kvm/kvm-intel.ko.xz: kernel/kvm.ko.xz\n'
                   'kernel/arch/x86/kvm/kvm-amd.ko.xz:\n'
                   'kernel/drivers/vhost/vhost_net.ko.xz:\n')
        self.write('/sys/module/kvm/x')
        self.write('/sys/module/kvm_intel/parameters/nested', 'Y\n')
        self.write('/sys/class/misc/kvm/dev', '10:232\n')
        self.write('/sys/class/misc/vhost-net/dev', '10:238\n')
        self.write('/proc/sys/vm/unprivileged_userfaultfd', '1\n')
        self.write('/run/udev/control')
        self.write('/run/systemd/system/x')
        self.write('/usr/lib/udev/rules.d/50-udev-default.rules', _RULES)
        self.write('/etc/libvirt/qemu.conf', '# nothing\n')
        self.write('/usr/share/libvirt/cpu_map/x86_Nehalem.xml', CPU_MAP)
        self.node('/dev/kvm')
        self.node('/dev/vhost-net', number=(10, 238))
        for path in ('/var/lib/nova/instances', '/run/libvirt/qemu/channel',
                     '/var/tmp'):
            os.makedirs(self.path(path))
        for path in ('/', '/var', '/run'):
            os.chmod(self.path(path), 0o755)
        for program in ('/usr/bin/qemu-system-x86_64',
                        '/usr/libexec/qemu-kvm'):
            self.program(program, 'tcg\nkvm')
        for program in ('sudo', 'nova-rootwrap', 'privsep-helper'):
            self.program(f'/usr/bin/{program}')

    def program(self, path: str, accelerators: str = '',
                version: str = '8.2.2') -> None:
        real = self.write(
            path, f'QEMU emulator version {version} (x)\n{accelerators}')
        os.chmod(real, 0o755)

    def ceph(self, secret: storage_model.SecretFacts | None = None,
             driver: bool | None = True, **ceph: Any) -> None:
        """Disks are in Ceph, which works but for what is given."""
        self.options |= {
            'images_type': 'rbd', 'rbd_pool': 'vms', 'rbd_user': 'nova',
            'rbd_secret': '11111111-2222-3333-4444-555555555555'}
        found: dict[str, Any] = {
            'asked': True, 'python': '/usr/bin/python3',
            'modules': {'rados': '', 'rbd': ''},
            'programs': {'ceph': '/usr/bin/ceph', 'rbd': '/usr/bin/rbd'},
            'step': 'done', 'key_error': ''}
        self.storage = storage_model.StorageFacts(
            storage_model.CephFacts(**found | ceph),
            secret or storage_model.SecretFacts(True, True), driver,
            '' if driver else 'what QEMU said')

    def loaded(self, *names: str) -> None:
        """Only these modules are loaded; those of KVM are gone."""
        self.write('/proc/modules',
                   ''.join(f'{name} 1 0 - Live 0x0\n' for name in names))
        for path in ('/sys/module/kvm/x',
                     '/sys/module/kvm_intel/parameters/nested'):
            os.unlink(self.path(path))
        os.rmdir(self.path('/sys/module/kvm_intel/parameters'))
        os.rmdir(self.path('/sys/module/kvm_intel'))
        os.rmdir(self.path('/sys/module/kvm'))
        self.remove('/sys/class/misc/kvm/dev')
        os.rmdir(self.path('/sys/class/misc/kvm'))

    def facts(self, connect: Any = True) -> model.HostFacts:
        """What is read of it.

        :param connect: True for :attr:`connection`, None not to ask libvirt,
            or an exception to be refused with
        """
        def connection() -> Any:
            if isinstance(connect, Exception):
                raise connect
            return self.connection

        settings: dict[str, Any] = {
            option.dest: option.default
            for _, options_ in conf.list_opts() for option in options_
            if option.dest in Settings.__dataclass_fields__
        } | {
            'virt_type': 'kvm', 'virt_type_option': '[kvm_ext] virt_type',
            'cpu_mode': None, 'cpu_mode_option': '[kvm_ext] cpu_mode',
            'cpu_models': (), 'cpu_models_option': '[kvm_ext] cpu_model',
            'extra_flags': ()} | self.settings
        settings.pop('cpu_model', None)
        wanted: dict[str, Any] = {
            'files': ('/etc/nova/nova.conf',),
            'settings': Settings(**settings),
            'compute_driver': 'kvm_ext.KVMDriver',
            'helper': ('sudo', 'nova-rootwrap', '/etc/nova/rootwrap.conf',
                       'privsep-helper'),
            'helper_option': '[DEFAULT] rootwrap_config'} | self.options
        return facts.read_host(
            options.HostOptions(**wanted), self.uri,
            connection if connect is not None else None,
            cache_dir=self.cache_dir, service=self.service, tried=self.tried,
            root=self.root)
