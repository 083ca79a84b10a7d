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

"""Every known error, produced for real."""

import fcntl
import os
import pathlib
import re
import struct
import subprocess
from typing import Any

import libvirt
import testtools

from nova_kvm_ext import errors
from nova_kvm_ext import known_errors
from nova_kvm_ext.tests.functional import faults

domain = faults.domain

_LIVE = (libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER)

# Linux include/uapi/linux/if_tun.h
_TUNSETIFF = 0x400454ca
_IFF_TAP_NO_PI = 0x1002


def cpu(model: str, feature: str = '', check: str = 'partial') -> str:
    return (f"<cpu mode='custom' match='exact' check='{check}'>"
            f"<model fallback='forbid'>{model}</model>{feature}</cpu>")


def disk(path: Any, format: str = 'raw', target: str = 'hda',
         bus: str = 'ide') -> str:
    return (f"<disk type='file'><driver name='qemu' type='{format}'/>"
            f"<source file='{path}'/><target dev='{target}' bus='{bus}'/>"
            f"</disk>")


# By name of the row: guests that cannot be.
GUESTS: dict[str, tuple[str, ...]] = {
    'emulator-none': (domain(machine=" arch='sparc64'"),),
    'emulator-missing': (
        domain(emulator='<emulator>/usr/bin/no-qemu</emulator>'),
        domain(emulator='<emulator>/etc/passwd</emulator>')),
    'emulator-broken': (domain(emulator='<emulator>/bin/true</emulator>'),),
    'machine-type': (domain(machine=" machine='pc-none-9.9'"),
                     domain(machine=" machine='pc-i440fx-99.9'")),
    'emulator-permission': (
        domain(emulator='<emulator>/var/lib/libvirt/emulator</emulator>'),),
    'machine-cpus': (domain(settings='<vcpu>1000</vcpu>'),),
    'machine-eim': (domain(machine=" machine='q35'",
                           settings='<vcpu>256</vcpu>'),),
    'device-model': (domain(
        devices="<interface type='ethernet'><model type='none-such'/>"
                "</interface>"),),
    'firmware': (
        domain(settings='<features><acpi/></features>').replace(
            '</type>', "</type><loader readonly='yes' type='pflash'>"
                       '/none/OVMF.fd</loader>'),),
    'tpm': (domain(devices="<tpm model='tpm-tis'><backend type='emulator' "
                           "version='2.0'/></tpm>"),),
    'sev': (domain(settings="<launchSecurity type='sev'><policy>0x1</policy>"
                            "</launchSecurity>"),),
    'cpu-mode': (domain(settings="<cpu mode='host-passthrough'/>"),),
    'cpu-unknown': (
        domain(settings=cpu('NoSuch')),
        domain(settings=cpu('Nehalem',
                            "<feature policy='require' name='bogus'/>"))),
    'cpu-missing': (
        domain(settings=cpu('Cascadelake-Server', check='full')),),
    'cpu-model-not-here': (domain(settings=cpu('cpu64-rhel6')),),
    'cpu-extra': (
        domain(settings=cpu('qemu64', check='full')),
        domain(settings=cpu('qemu64').replace("'exact'", "'strict'")),
        domain(settings=cpu('qemu64',
                            "<feature policy='forbid' name='sse2'/>"))),
    'cpu-vendor': (domain(settings=cpu('qemu64').replace(
        '</model>', '</model><vendor>Intel</vendor>')),),
    'cpu-address-bits': (domain(settings=cpu('qemu64').replace(
        '</cpu>', "<maxphysaddr mode='emulate' bits='60'/></cpu>")),),
    'cpu-invtsc-missing': (domain(settings=cpu(
        'qemu64', "<feature policy='require' name='invtsc'/>",
        check='none')),),
    'cpu-affinity': (domain(settings="<vcpu cpuset='4000'>1</vcpu>"),),
    'numa-node': (domain(settings="<numatune><memory mode='strict' "
                                  "nodeset='50'/></numatune>"),),
    'memory': (domain(memory=200 * 2**20),),
    'memory-locked': (domain(
        memory=64, settings="<memoryBacking><locked/></memoryBacking>"
        "<memtune><hard_limit unit='MiB'>1</hard_limit></memtune>"),),
    'disk-missing': (domain(devices=disk('/none/disk')),),
    'disk-driver': (domain(
        devices="<disk type='network'><driver name='qemu' type='raw'/>"
        "<source protocol='rbd' name='pool/volume'><host name='127.0.0.1' "
        "port='1'/></source><target dev='vda' bus='virtio'/></disk>"),),
    'secret-missing': (domain(
        devices="<disk type='network'><driver name='qemu' type='raw'/>"
        "<auth username='user'><secret type='ceph' "
        "uuid='11111111-2222-3333-4444-555555555555'/></auth>"
        "<source protocol='rbd' name='pool/volume'><host name='127.0.0.1' "
        "port='1'/></source><target dev='vda' bus='virtio'/></disk>"),),
    'secret-named-badly': tuple(domain(
        devices="<disk type='network'><driver name='qemu' type='raw'/>"
        f"{auth}<source protocol='rbd' name='pool/volume'>"
        "<host name='127.0.0.1' port='1'/></source>"
        "<target dev='vda' bus='virtio'/></disk>") for auth in (
            "<auth username='user'><secret type='ceph' uuid='none'/></auth>",
            "<auth username='user'><secret type='ceph'/></auth>",
            "<auth><secret type='ceph' uuid='none'/></auth>")),
    'console-log': (domain(
        devices="<serial type='pty'><log file='/none/console.log'/>"
                "</serial>"),),
    'bridge-missing': (domain(
        devices="<interface type='bridge'><source bridge='no-bridge'/>"
                "<model type='virtio'/></interface>"),),
    'network-missing': (domain(
        devices="<interface type='network'><source network='no-net'/>"
                "</interface>"),),
    'tap-missing': (domain(
        devices="<interface type='ethernet'><target dev='no-tap' "
                "managed='no'/><model type='virtio'/></interface>"),),
    'vhost-user-socket': (domain(
        settings="<memoryBacking><source type='memfd'/>"
                 "<access mode='shared'/></memoryBacking>",
        devices="<interface type='vhostuser'><source type='unix' "
                "path='/none/sock' mode='client'/><model type='virtio'/>"
                "</interface>"),),
    'vhost-user-memory': (domain(
        devices="<interface type='vhostuser'><source type='unix' "
                "path='/none/sock' mode='client'/><model type='virtio'/>"
                "</interface>"),),
    # 203.0.113.0/24 is for documentation (RFC 5737).
    'listen-address': (domain(
        devices="<graphics type='vnc' listen='203.0.113.9'/>"),),
}

# By row and place: to those libvirt 11.3 has no objection, unlike 9.0, to
# these 9.0 has none, and to the last libvirt 12.8 with QEMU 11.1 has none.
ONLY_OLD = {('cpu-extra', 1), ('cpu-vendor', 0)}
ONLY_NEW = {('vhost-user-memory', 0)}
NOT_NEWEST = {('cpu-address-bits', 0)}

# Rows that a test of its own below makes.
TESTS = {
    'kvm-permission', 'kvm-no-device', 'kvm-not-offered',
    'kvm-wrong-device', 'vhost-net',
    'disk-locked', 'disk-permission', 'disk-format', 'disk-full',
    'disk-target-taken', 'domain-exists', 'hugepages-not-mounted',
    'hugepages-none-left', 'libvirt-down', 'libvirt-permission',
    'libvirt-gone', 'virtlogd-down', 'virtlockd-down', 'virtnetworkd-down',
    'virtsecretd-down', 'virtnodedevd-down', 'virtstoraged-down',
    'virtinterfaced-down', 'virtnwfilterd-down', 'tap-busy', 'tap-queues',
    'hotplug-slots', 'hotplug-unsupported', 'pci-no-iommu', 'remote-down',
    'remote-name', 'migration-connect', 'ssh-host-key', 'ssh-login',
    'ssh-connect', 'ssh-netcat', 'sasl', 'tls-file', 'tls-own-certificate',
    'tls-peer-certificate', 'tls-refused', 'tls-handshake', 'cgroup',
    'cgroup-cpuset', 'cpu-arch', 'cpu-invtsc', 'cpu-tsc-frequency'}

# Seen by hand on a host where the fault can be made.
ELSEWHERE = {
    'kvm-msr': 'needs a KVM that refuses registers',
    **dict.fromkeys(
        ('ceph-no-answer', 'ceph-key', 'ceph-monitors', 'ceph-command',
         'ceph-configuration', 'ceph-configuration-letters', 'ceph-pool',
         'ceph-permission', 'ceph-image-gone', 'ceph-image-there',
         'ceph-blocklisted', 'ceph-osds', 'ceph-authentication',
         'ceph-data-pool', 'ceph-not-created', 'ceph-cannot-create',
         'secret-without-value'), 'needs a Ceph'),
    'secret-of-another-kind': 'needs a secret',
    'migration-post-copy': 'needs two libvirts; tools/run-migration-tests',
}


class GuestTestCase(faults.FaultTestCase):

    def test_guests_that_cannot_be(self) -> None:
        # What may not be run: its interpreter is no program.
        self.inside("printf '#!/etc/passwd\\n' > /var/lib/libvirt/emulator; "
                    'chmod 755 /var/lib/libvirt/emulator')
        # On a host that has it, QEMU would look for a Ceph: five minutes.
        self.inside("""
            for modules in /usr/lib/*/qemu; do
                [ -e "$modules/block-rbd.so" ] || continue
                cp -a "$modules" /var/lib/libvirt/modules
                rm /var/lib/libvirt/modules/block-rbd.so
                mount --bind /var/lib/libvirt/modules "$modules"
            done""")
        others = (ONLY_OLD if self.new else ONLY_NEW) | (
            NOT_NEWEST if self.newest else set())
        wrong = []
        for name, guests in GUESTS.items():
            for place, xml in enumerate(guests):
                if (name, place) not in others:
                    try:
                        self.assert_explained(name, lambda: self.start(xml))
                    except AssertionError as e:
                        wrong.append(f'{name} {place}: {e}')
        self.assertEqual([], wrong)

    def test_no_firmware(self) -> None:
        # Where QEMU's packages describe it; a host may have none at all.
        self.inside('for d in /usr/share/qemu/firmware /etc/qemu/firmware; do '
                    '! [ -d $d ] || mount --no-mtab -t tmpfs none $d; done')
        self.assert_explained('firmware', lambda: self.start(domain(
            os=" firmware='efi'", settings='<features><acpi/></features>')))

    def test_domain_capabilities(self) -> None:
        ask = self.connection.getDomainCapabilities
        self.assert_explained(
            'emulator-none', lambda: ask(None, 'sparc64', None, 'qemu'))
        self.assert_explained(
            'machine-type', lambda: ask(None, 'x86_64', 'none', 'qemu'))

    def test_domain_exists(self) -> None:
        self.running()
        self.assert_explained('domain-exists', lambda: self.start(
            domain('running').replace('<name>', (
                '<uuid>11111111-2222-3333-4444-555555555555</uuid><name>'))))

    def test_pci(self) -> None:
        if os.path.isdir('/sys/kernel/iommu_groups') and os.listdir(
                '/sys/kernel/iommu_groups'):
            self.skipTest('this host has an IOMMU')
        self.assert_explained('pci-no-iommu', lambda: self.start(domain(
            devices="<hostdev mode='subsystem' type='pci' managed='yes'>"
                    "<source><address domain='0' bus='0xfe' slot='1' "
                    "function='0'/></source></hostdev>")))

    def test_tap_busy(self) -> None:
        tap = 'nke-busy0'
        with open('/dev/net/tun', 'r+b', buffering=0) as tun:
            # Goes with the file.
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack(
                '16sH22x', tap.encode(), _IFF_TAP_NO_PI))
            self.assert_explained('tap-busy', lambda: self.start(domain(
                devices=f"<interface type='ethernet'><target dev='{tap}' "
                        f"managed='no'/><model type='virtio'/>"
                        f"</interface>")))

    def test_tap_queues(self) -> None:
        """A tap device and the XML: both with queues, or both without."""
        for queues, mode in ((1, ''), (2, ' multi_queue')):
            tap = f'nke-queues{queues}'
            subprocess.run(f'ip tuntap add {tap} mode tap{mode}', shell=True,
                           check=True)
            self.addCleanup(subprocess.run, ['ip', 'link', 'delete', tap])
            for model, xml_queues in (
                    ('virtio', 1), ('virtio', 2), ('e1000', 1),
                    ('rtl8139', 1), ('e1000e', 1)):
                driver = f" queues='{xml_queues}'" if xml_queues > 1 else ''
                xml = domain(
                    machine=" machine='q35'", settings='<vcpu>2</vcpu>',
                    devices=f"<interface type='ethernet'>"
                            f"<target dev='{tap}' managed='no'/>"
                            f"<model type='{model}'/><driver name='qemu'"
                            f"{driver}/></interface>")
                if (queues > 1) == (xml_queues > 1):
                    self.start(xml)
                else:
                    self.assert_explained(
                        'tap-queues', lambda: self.start(xml))

    def test_cpu_of_another_architecture(self) -> None:
        for xml, name in (
                ('<cpu><arch>ppc64</arch><model>POWER9</model></cpu>',
                 'cpu-arch'),
                ("<cpu match='exact'><model>Cascadelake-Server</model></cpu>",
                 'cpu-missing'),
                # libvirt 11.3 asks nothing of the vendor under emulation, nor
                # of a feature that a guest is not to have.
                *([] if self.new else [
                    ("<cpu match='exact'><model>qemu64</model>"
                     '<vendor>Intel</vendor></cpu>', 'cpu-vendor'),
                    ("<cpu match='exact'><model>qemu64</model><feature "
                     "policy='disable' name='bogus'/></cpu>",
                     'cpu-unknown')])):
            self.assert_explained(
                name, lambda: self.connection.compareHypervisorCPU(
                    None, 'x86_64', None, 'qemu', xml,
                    libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE))

    def test_tsc_frequency(self) -> None:
        if 'constant_tsc' not in pathlib.Path('/proc/cpuinfo').read_text():
            self.skipTest('this host does not know its frequency')
        try:
            self.start(domain(
                settings="<clock offset='utc'><timer name='tsc' "
                         "frequency='999000000'/></clock>"))
        except libvirt.libvirtError as e:
            self.assertEqual('cpu-tsc-frequency', errors.explain(e).name)

    def test_control_groups(self) -> None:
        """A hierarchy of version 1 of its own, as in a container."""
        place = '/sys/fs/cgroup/cpuset'
        self.private.stop_libvirtd()
        try:
            self.inside(f'mount --no-mtab -t tmpfs none /sys/fs/cgroup; '
                        f'mkdir {place}; '
                        f'mount --no-mtab -t cgroup -o cpuset none {place}; '
                        f'! [ -e {place}/machine ]')
        except RuntimeError:
            self.private.start_libvirtd()
            self.skipTest('this kernel has no such hierarchy to give')
        self.addCleanup(self.inside, (
            f'umount --no-mtab {place} || true; mount --no-mtab -t cgroup '
            f'-o cpuset none {place}; find {place}/machine -depth -type d '
            f'-exec rmdir {{}} + || true'))
        self.private.start_libvirtd()
        self.connect()
        last = (os.cpu_count() or 1) - 1
        if last == 0:
            self.skipTest('this host has one CPU')
        self.inside(f'mkdir {place}/machine; echo 0 > {place}/machine/'
                    f'cpuset.mems; echo {last} > {place}/machine/cpuset.cpus')
        xml = domain(settings="<vcpu cpuset='0'>1</vcpu>")
        self.assert_explained('cgroup-cpuset', lambda: self.start(xml))
        self.inside(f'find {place}/machine -depth -type d -exec rmdir {{}} '
                    f'+; mount --no-mtab -o remount,ro,bind {place}')
        self.assert_explained('cgroup', lambda: self.start(xml))

    def test_hotplug(self) -> None:
        port = "<controller type='pci' model='pcie-root-port' index='{}'/>"
        guest = self.running(
            machine=" machine='q35'",
            devices="<controller type='pci' index='0' model='pcie-root'/>" +
                    port.format(1) + port.format(2))
        image = self.image()
        attach = guest.attachDevice
        self.assert_explained('disk-missing', lambda: attach(
            disk('/none', target='vda', bus='virtio')))
        self.assert_explained('bridge-missing', lambda: attach(
            "<interface type='bridge'><source bridge='no-bridge'/>"
            "<model type='virtio'/></interface>"))
        self.assert_explained('hotplug-unsupported', lambda: attach(
            disk(image, target='sda', bus='sata')))
        attach(disk(image, target='vda', bus='virtio'))
        self.assert_explained('disk-target-taken', lambda: attach(
            disk(image, target='vda', bus='virtio')))
        self.assert_explained('disk-locked', lambda: attach(
            disk(image, target='vdb', bus='virtio')))
        attach(disk(self.image('second'), target='vdb', bus='virtio'))
        self.assert_explained('hotplug-slots', lambda: attach(
            disk(self.image('third'), target='vdc', bus='virtio')))

    def test_migration(self) -> None:
        guest = self.running()
        for uri, name in (
                ('qemu+tcp://127.0.0.1:1/system', 'remote-down'),
                ('qemu+tcp://127.0.0.1:49151/system', 'migration-connect'),
                ('qemu+tcp://nohost.invalid/system', 'remote-name'),
                ('qemu+tls://127.0.0.1:1/system', 'tls-file')):
            self.assert_explained(name, lambda: guest.migrateToURI3(
                uri, {}, _LIVE))


class DiskTestCase(faults.FaultTestCase):

    def test_locked(self) -> None:
        devices = disk(self.image())
        self.running(devices=devices)
        self.assert_explained(
            'disk-locked', lambda: self.start(domain(devices=devices)))

    def test_permission(self) -> None:
        (self.instances / 'closed').mkdir(mode=0o700)
        self.assert_explained('disk-permission', lambda: self.start(domain(
            devices=disk(self.image('closed/image')))))

    def test_format(self) -> None:
        self.assert_explained('disk-format', lambda: self.start(domain(
            devices=disk(self.image(), 'qcow2'))))
        self.assert_explained('disk-format', lambda: self.start(domain(
            devices=disk(self.image(content=b'QFI\xfb\0\0\0\x09'),
                         'qcow2'))))

    def test_base_missing(self) -> None:
        base, overlay = self.image('base'), self.instances / 'overlay'
        subprocess.run(
            ['qemu-img', 'create', '-q', '-f', 'qcow2', '-b', base,
             '-F', 'raw', overlay], check=True)
        os.remove(base)
        self.assert_explained('disk-missing', lambda: self.start(domain(
            devices=disk(overlay, 'qcow2'))))

    def test_full(self) -> None:
        self.inside('mkdir -p /etc/libvirt/qemu; mount --no-mtab -t tmpfs '
                    '-o size=16k,mode=755 none /etc/libvirt/qemu; '
                    'dd if=/dev/zero of=/etc/libvirt/qemu/fill bs=4k '
                    '2>/dev/null || true')
        self.assert_explained('disk-full', lambda: self.start(domain()))


class HugePagesTestCase(faults.FaultTestCase):

    XML = domain(settings='<memoryBacking><hugepages/></memoryBacking>')

    def test_not_mounted(self) -> None:
        self.assert_explained('hugepages-not-mounted',
                              lambda: self.start(self.XML))

    def test_other_size(self) -> None:
        self.mount()
        self.assert_explained('hugepages-not-mounted', lambda: self.start(
            self.XML.replace('<hugepages/>', '<hugepages><page size="1" '
                             'unit="G"/></hugepages>')))

    def test_none_left(self) -> None:
        free = re.search(r'HugePages_Free: +(\d+)',
                         pathlib.Path('/proc/meminfo').read_text())
        if free is None or int(free[1]):
            self.skipTest('this host has huge pages to give')
        self.mount()
        self.assert_explained('hugepages-none-left',
                              lambda: self.start(self.XML))

    def mount(self) -> None:
        """Give this libvirtd a hugetlbfs, of the default page size."""
        self.private.stop_libvirtd()
        self.inside('mkdir /var/lib/libvirt/huge; mount --no-mtab -t '
                    'hugetlbfs none /var/lib/libvirt/huge; sed -i '
                    '\'s,hugetlbfs_mount.*,hugetlbfs_mount="/var/lib/libvirt/'
                    'huge",\' /etc/libvirt/qemu.conf')
        self.private.start_libvirtd()
        self.connect()


class KVMTestCase(faults.FaultTestCase):
    """The states of /dev/kvm."""

    def setUp(self) -> None:
        super().setUp()
        if not os.path.exists('/dev/kvm'):
            self.skipTest('this host has no /dev/kvm to remove')
        # libvirt looks now, and finds KVM.
        self.start(domain(type='kvm'))

    def test_permission(self) -> None:
        self.inside('chmod 0600 /dev/kvm; chown 0:0 /dev/kvm')
        # libvirt 11.3, unlike 9.0, leaves a node that QEMU's user may not
        # open out of the /dev that it makes for QEMU.
        name = 'kvm-no-device' if self.new else 'kvm-permission'
        self.assert_explained(name, lambda: self.start(domain(type='kvm')))

    def test_wrong_device(self) -> None:
        self.inside('mount --no-mtab --bind /dev/null /dev/kvm')
        self.assert_explained('kvm-wrong-device',
                              lambda: self.start(domain(type='kvm')))

    def test_not_offered(self) -> None:
        """libvirt looks again and finds none."""
        self.private.stop_libvirtd()
        self.inside('mount --no-mtab --bind /dev/null /dev/kvm; '
                    'rm -rf /var/cache/libvirt/qemu')
        self.private.start_libvirtd()
        self.connect()
        self.assert_explained('kvm-not-offered',
                              lambda: self.start(domain(type='kvm')))
        self.assert_explained(
            'kvm-not-offered',
            lambda: self.start(domain(type='kvm', machine=" machine='pc'")))
        self.assert_explained(
            'kvm-not-offered', lambda: self.connection.getDomainCapabilities(
                None, 'x86_64', None, 'kvm'))

    def test_cpu_missing(self) -> None:
        """One of the two must ask for what this CPU does not have."""
        refused = []
        for model in ('EPYC-Milan', 'Cascadelake-Server'):
            try:
                self.start(domain(type='kvm', settings=cpu(model)))
            except libvirt.libvirtError as e:
                refused.append(errors.explain(e).name)
        self.assertEqual({'cpu-missing'}, set(refused))

    def test_cpu(self) -> None:
        guest = cpu('qemu64', check='none')
        for name, settings in (
                ('cpu-extra', cpu('qemu64', "<feature policy='forbid' "
                                            "name='cx16'/>")),
                ('cpu-address-bits', guest.replace(
                    '</cpu>', "<maxphysaddr mode='emulate' bits='60'/>"
                              '</cpu>'))):
            self.assert_explained(name, lambda: self.start(
                domain(type='kvm', settings=settings)))

    def test_cpu_that_cannot_move(self) -> None:
        xml = domain('running', type='kvm', settings=cpu(
            'qemu64', "<feature policy='require' name='invtsc'/>",
            check='none'))
        try:
            guest = self.connection.createXML(xml)
        except libvirt.libvirtError as e:
            self.assertEqual('cpu-invtsc-missing', errors.explain(e).name)
            self.skipTest('this host has no invariant TSC')
        self.addCleanup(self.destroy, guest)
        self.assert_explained('cpu-invtsc', lambda: guest.save(
            '/var/lib/libvirt/saved'))

    def test_vhost_net(self) -> None:
        if os.path.exists('/dev/vhost-net'):
            self.skipTest('this host has vhost-net')
        self.assert_explained('vhost-net', lambda: self.start(domain(
            type='kvm',
            devices="<interface type='ethernet'><model type='virtio'/>"
                    "<driver name='vhost'/></interface>")))


class TableTestCase(testtools.TestCase):

    def test_every_row_says_where_it_was_seen(self) -> None:
        """Made here, made elsewhere by hand, or from a report."""
        made = set(GUESTS) | TESTS
        for row in known_errors.TABLE:
            self.assertEqual(
                1, (row.name in made) + (row.name in ELSEWHERE) +
                row.seen.startswith(('reported', 'source')), row.name)
        self.assertEqual(
            set(), (made | set(ELSEWHERE)) -
            {row.name for row in known_errors.TABLE})
