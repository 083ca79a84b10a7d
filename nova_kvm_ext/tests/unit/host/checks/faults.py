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

"""Ways to break a host, and what must be said of each."""

from collections.abc import Callable
import dataclasses
import os

from nova_kvm_ext.host import storage_model
from nova_kvm_ext.tests.unit.host import fake_host

MODEL_OPTIONS = {'cpu_mode': 'custom', 'cpu_models': ('Icelake-Server',)}


def no_virtualization(host):
    host.loaded()
    host.remove('/dev/kvm')
    host.write('/proc/cpuinfo', 'vendor_id : AuthenticAMD\nflags : fpu\n')


def no_nested(host):
    no_virtualization(host)
    host.write('/proc/cpuinfo',
               'vendor_id : AuthenticAMD\nflags : fpu hypervisor\n')


def locked(host):
    host.loaded()
    host.remove('/dev/kvm')
    host.write('/dev/kmsg', '6,1,2,-;x86/cpu: VMX (outside TXT) disabled by '
                            'BIOS\n')


def unloaded(host):
    host.loaded()
    host.remove('/dev/kvm')


def cpu_module_unloaded(host):
    unloaded(host)
    host.write('/proc/modules', 'kvm 1 0 - Live 0x0\n')


def forbidden_module(host):
    unloaded(host)
    host.write('/proc/modules', 'kvm 1 0 - Live 0x0\n')
    host.write('/etc/modprobe.d/no.conf',
               '# no KVM here\ninstall kvm-intel /bin/false\n')


def no_module(host):
    unloaded(host)
    host.write(f'/lib/modules/{fake_host.RELEASE}/modules.dep', 'a.ko:\n')


def upgraded_kernel(host):
    unloaded(host)
    host.remove(f'/lib/modules/{fake_host.RELEASE}/modules.dep')


def closed(host):
    host.node('/dev/kvm', mode=0o600, group=0)


def wrong_group(host):
    host.node('/dev/kvm', group=65534)


def not_in_group(host):
    user = host.user
    host.write('/etc/passwd', f'{user}:x:107:107::/:/bin/false\n')


def closed_without_udev(host):
    closed(host)
    host.remove('/run/udev/control')


def wrong_user(host):
    host.write('/etc/libvirt/qemu.conf', 'user = "nobody"\n'
                                         'group = "nogroup"\n')
    host.connection.user = (65534, 65534)


def in_its_place(host):
    host.remove('/dev/kvm')
    host.write('/dev/kvm')


def directory_in_its_place(host):
    host.remove('/dev/kvm')
    os.mkdir(host.path('/dev/kvm'))


def out_of_reach(host):
    os.chmod(host.path('/var/lib/nova'), 0o700)
    host.runs = None


def another_device(host):
    host.node('/dev/kvm', number=(1, 3))
    host.runs = False


EMULATORS = '/usr/bin/qemu-system-x86_64', '/usr/libexec/qemu-kvm'


def no_emulator(host):
    for path in EMULATORS:
        host.remove(path)
    host.connection.emulator = ''


def emulator_without_kvm(host):
    host.runs = False
    for path in EMULATORS:
        host.program(path, 'tcg')


def emulator_that_does_not_run(host):
    for path in EMULATORS:
        os.chmod(host.path(path), 0o644)


def no_vhost(host):
    host.write('/proc/modules', 'kvm_intel 1 0 - Live 0x0\n'
                                'kvm 1 1 kvm_intel, Live 0x0\n')
    host.remove('/sys/class/misc/vhost-net/dev')
    host.remove('/dev/vhost-net')


def setting(**settings):
    def change(host):
        host.settings |= settings
    return change


def option(**options):
    def change(host):
        host.options |= options
    return change


def connection(**attributes):
    def change(host):
        for name, value in attributes.items():
            setattr(host.connection, name, value)
    return change


def removed(path):
    return lambda host: host.remove(path)


def written(path, text):
    return lambda host: host.write(path, text)


def ceph(**found):
    return lambda host: host.ceph(**found)


def ceph_service(**found):
    """Seen by nova-compute itself."""
    def change(host):
        host.ceph(**found)
        host.service = True
    return change


def ceph_options(**options):
    """Ceph is well, and nova.conf says something else."""
    def change(host):
        host.ceph()
        host.options |= options
    return change


def prefixed(**found):
    """rbd_user is written as Ceph writes it, and as Nova must not have it."""
    def change(host):
        host.ceph(step='connect', **found)
        host.options['rbd_user'] = 'client.nova'
        host.service = True
    return change


def ceph_volumes(**found):
    """Disks are local; nova.conf has the secret for Cinder's volumes."""
    def change(host):
        host.ceph(**found)
        host.options['images_type'] = 'qcow2'
    return change


NO_SECRET = storage_model.SecretFacts(False, None, 'Secret not found')
NO_UUID = storage_model.SecretFacts(
    None, None, 'must be a valid UUID', malformed=True)
NO_VALUE = storage_model.SecretFacts(True, False, 'does not have a value')
DENIED = 'RADOS permission denied (error connecting to the cluster)'
TIMED_OUT = 'RADOS timed out (error connecting to the cluster)'


@dataclasses.dataclass(frozen=True)
class Fault:
    """One way of breaking a host, and what must be said.

    :ivar details: regular expression
    :ivar remedy: regular expression; a dict has one by family
    """

    name: str
    change: Callable[[fake_host.FakeHost], object]
    code: str
    result: str
    details: str
    remedy: str | dict[str, str] = ''
    fix: tuple[str, ...] = ()


TRIGGER = 'udevadm trigger --action=add --name-match=kvm --settle'

FAULTS = (
    Fault('no virtualization', no_virtualization, 'KVM101', 'FAIL',
          'AuthenticAMD.*neither vmx nor svm', 'firmware'),
    Fault('not nested', no_nested, 'KVM101', 'FAIL',
          'virtual machine.*neither', 'nested'),
    Fault('locked by the firmware', locked, 'KVM102', 'FAIL',
          'VMX .outside TXT. disabled by BIOS', 'firmware set-up'),
    Fault('nothing loaded', unloaded, 'KVM103', 'FAIL',
          'kvm is not loaded', '^modprobe kvm$', ('modprobe kvm',)),
    Fault('kvm_intel not loaded', cpu_module_unloaded, 'KVM104', 'FAIL',
          'kvm_intel is not loaded', '^modprobe kvm_intel$',
          ('modprobe kvm_intel',)),
    Fault('module forbidden', forbidden_module, 'KVM104', 'FAIL',
          '/etc/modprobe.d/no.conf:2: install kvm-intel',
          'Remove the line /etc/modprobe.d/no.conf:2'),
    Fault('no module', no_module, 'KVM103', 'FAIL',
          f'not among the modules of the kernel {fake_host.RELEASE}', {
              'debian': 'apt-get install linux-image-amd64',
              'ubuntu': f'apt-get install linux-modules-extra-'
                        f'{fake_host.RELEASE}',
              'fedora': f'dnf install kernel-modules-core-'
                        f'{fake_host.RELEASE}',
              'rhel': f'dnf install kernel-modules-core-{fake_host.RELEASE}',
              'suse': 'zypper install kernel-default'}),
    Fault('modules gone after an upgrade', upgraded_kernel, 'KVM103', 'FAIL',
          'running kernel.*are not installed', '^reboot$'),
    Fault('/dev/kvm closed', closed, 'KVM204', 'FAIL',
          'root:root 0600 instead of group kvm, mode 0660',
          f'^{TRIGGER}$', (TRIGGER,)),
    Fault('/dev/kvm closed, no udev', closed_without_udev, 'KVM204', 'FAIL',
          'root:root 0600',
          '^chgrp kvm /dev/kvm && chmod 0660 /dev/kvm$',
          ('chgrp kvm /dev/kvm', 'chmod 0660 /dev/kvm')),
    Fault('wrong group', wrong_group, 'KVM204', 'FAIL',
          'root:nogroup 0660', f'^{TRIGGER}$', (TRIGGER,)),
    Fault('not in the group', not_in_group, 'KVM205', 'FAIL',
          'root:kvm 0660', {
              'debian': '^usermod -a -G kvm libvirt-qemu && systemctl restart '
                        'libvirtd$',
              # Its group is kvm by qemu_group.
              'ubuntu': '',
              'fedora': '^usermod -a -G kvm qemu && systemctl restart '
                        'virtqemud$',
              'rhel': '^usermod -a -G kvm qemu && systemctl restart '
                      'virtqemud$',
              'suse': '^usermod -a -G kvm qemu && systemctl restart '
                      'libvirtd$'}),
    Fault('wrong user', wrong_user, 'KVM205', 'FAIL',
          'nobody: permission denied', {
              'debian': 'user = "libvirt-qemu".*systemctl restart libvirtd',
              'ubuntu': 'user = "libvirt-qemu"',
              'fedora': 'user = "qemu".*systemctl restart virtqemud',
              'rhel': 'user = "qemu"', 'suse': 'user = "qemu"'}),
    Fault('no such user', written('/etc/libvirt/qemu.conf', 'user = "x"\n'),
          'KVM201', 'WARN', 'there is no user x .user in ',
          'sed -i .*/etc/libvirt/qemu.conf'),
    Fault('no such group', written('/etc/libvirt/qemu.conf', 'group="x"\n'),
          'KVM201', 'WARN', 'there is no group x'),
    Fault('no user, libvirt is not installed', written(
        '/etc/passwd', 'root:x:0:0::/:/bin/sh\n'), 'KVM201', 'WARN',
        'there is no user', {
            'debian': 'apt-get install libvirt-daemon-system',
            'ubuntu': 'apt-get install libvirt-daemon-system',
            'fedora': 'dnf install libvirt-daemon-kvm',
            'rhel': 'dnf install libvirt-daemon-kvm',
            'suse': 'zypper install libvirt-daemon-qemu'}),
    Fault('qemu.conf is nonsense', written(
        '/etc/libvirt/qemu.conf', '\n\nuser = qemu\n'), 'KVM201', 'WARN',
        'line 3', 'Correct that line'),
    Fault('libvirt not restarted', connection(user=(0, 0)), 'KVM201', 'WARN',
          'still gives QEMU the user 0', {
              'debian': '^systemctl restart libvirtd$',
              'ubuntu': '^systemctl restart libvirtd$',
              'fedora': '^systemctl restart virtqemud$',
              'rhel': '^systemctl restart virtqemud$',
              'suse': '^systemctl restart libvirtd$'}),
    Fault('/dev/kvm missing', removed('/dev/kvm'), 'KVM202', 'FAIL',
          'has been removed', '^mknod /dev/kvm c 10 232 && ',
          ('mknod /dev/kvm c 10 232', TRIGGER)),
    Fault('/dev/kvm is a file', in_its_place, 'KVM202', 'FAIL',
          'a plain file', '^mv /dev/kvm /dev/kvm.wrong && mknod '),
    Fault('/dev/kvm is a directory', directory_in_its_place, 'KVM202',
          'FAIL', 'a directory'),
    Fault('/dev/kvm is another device', another_device, 'KVM202', 'FAIL',
          '1:3, KVM is 10:232', '^rm /dev/kvm && mknod'),
    Fault('no udev rule', written(
        '/usr/lib/udev/rules.d/50-udev-default.rules', 'KERNEL=="tun"\n'),
        'KVM203', 'WARN', 'no rule', {
            'debian': '^apt-get install --reinstall udev && udevadm trigger '
                      '--action=add --name-match=kvm$',
            'ubuntu': '^apt-get install --reinstall udev && ',
            'fedora': '^dnf reinstall systemd-udev && ',
            'rhel': '^dnf reinstall systemd-udev && ',
            'suse': '^zypper install --force udev && '}),
    Fault('vhost_net not loaded', no_vhost, 'KVM301', 'WARN',
          'vhost_net is not loaded', '^modprobe vhost_net$',
          ('modprobe vhost_net',)),
    Fault('no /dev/vhost-net', no_vhost, 'KVM302', 'WARN',
          'does not exist', '^modprobe vhost_net$', ('modprobe vhost_net',)),
    Fault('/dev/vhost-net removed', removed('/dev/vhost-net'), 'KVM302',
          'WARN', 'does not exist', '^mknod -m 0660 /dev/vhost-net c 10 238'),
    Fault('other compute_driver', option(
        compute_driver='libvirt.LibvirtDriver',
        compute_driver_source='/etc/nova/nova-compute.conf'), 'KVM401', 'FAIL',
        '/etc/nova/nova-compute.conf sets compute_driver = '
        'libvirt.LibvirtDriver',
        '^Set .DEFAULT. compute_driver = kvm_ext.KVMDriver in '
        '/etc/nova/nova-compute.conf, or remove it there.$'),
    Fault('driver of the environment', option(
        compute_driver='fake.FakeDriver',
        compute_driver_source='the environment variable X'), 'KVM401', 'FAIL',
        'the environment variable X sets', 'KVMDriver.$'),
    Fault('no compute_driver', option(compute_driver=None), 'KVM401', 'WARN',
          'nova-compute does not start', 'kvm_ext.KVMDriver'),
    Fault('refused options', option(
        settings=None, problem='A and B contradict.', remedy='Remove A.'),
        'KVM402', 'FAIL', 'contradict', '^Remove A.$'),
    Fault('foreign virt_type', setting(virt_type='lxc'), 'KVM402', 'FAIL',
          'virt_type = lxc', 'kvm, qemu or auto'),
    Fault('no sudo', removed('/usr/bin/sudo'), 'KVM403', 'FAIL',
          '^sudo of sudo nova-rootwrap', {
              'debian': '^apt-get install sudo$',
              'ubuntu': '^apt-get install sudo$',
              'fedora': '^dnf install sudo$', 'rhel': '^dnf install sudo$',
              'suse': '^zypper install sudo$'}),
    Fault('helper of a moved venv', written(
        '/usr/bin/privsep-helper', '#!/gone/bin/python\n'), 'KVM403', 'WARN',
        '^privsep-helper of ', 'helper_command'),
    Fault('no instances_path', removed('/var/lib/nova/instances'), 'KVM404',
          'FAIL', 'does not exist',
          '^install -d -o nova -g nova /var/lib/nova/instances$'),
    Fault('instances_path out of reach', out_of_reach, 'KVM404', 'WARN',
          'may not enter /var/lib/nova: only guests that boot from a volume',
          '^chmod o.x /var/lib/nova$'),
    Fault('no directory of channels', lambda host: (
        host.remove('/run/libvirt/qemu/channel')), 'KVM406', 'WARN',
        'has not run', {
            'debian': '^systemctl start libvirtd$',
            'ubuntu': '^systemctl start libvirtd$',
            'fedora': '^systemctl start virtqemud$',
            'rhel': '^systemctl start virtqemud$',
            'suse': '^systemctl start libvirtd$'}),
    Fault('no QEMU', no_emulator, 'KVM501', 'FAIL', 'libvirt knows no QEMU', {
        'debian': '^apt-get install qemu-system-x86 && ',
        'ubuntu': '^apt-get install qemu-system-x86 && ',
        'fedora': '^dnf install qemu-kvm && ',
        'rhel': '^dnf install qemu-kvm && ',
        'suse': '^zypper install qemu-x86 && '}),
    Fault('QEMU without kvm', emulator_without_kvm, 'KVM501', 'FAIL',
          'built without kvm'),
    Fault('QEMU that does not run', emulator_that_does_not_run, 'KVM501',
          'WARN', 'cannot be run by this process'),
    Fault('old libvirt', connection(version=7_010_000), 'KVM503', 'FAIL',
          '7.10.0 is older than 8.0.0', '8.0.0'),
    Fault('libvirt soon too old', connection(version=9_000_000), 'KVM503',
          'WARN', 'will need 10.0.0', '10.0.0'),
    Fault('old QEMU', connection(qemu=6_001_000), 'KVM504', 'FAIL',
          '6.1.0 is older than 6.2.0'),
    Fault('QEMU soon too old', connection(qemu=8_002_001), 'KVM504', 'WARN',
          'will need 8.2.2'),
    Fault('unknown machine type', option(
        machine_types=(('x86_64', 'pc-9.9'), ('aarch64', 'x'))), 'KVM505',
        'WARN', 'x86_64=pc-9.9', '-machine help'),
    Fault('stale libvirt', connection(kvm=False), 'KVM506', 'FAIL',
          'offers no KVM, though.*out of date.*the accel', {
              'debian': '^systemctl restart libvirtd$',
              'ubuntu': '^systemctl restart libvirtd$',
              'fedora': '^systemctl restart virtqemud$',
              'rhel': '^systemctl restart virtqemud$',
              'suse': '^systemctl restart libvirtd$'}),
    Fault('libvirt offers what is not there', unloaded, 'KVM506', 'FAIL',
          'libvirt offers KVM, which is wrong', 'restart'),
    Fault('libvirt offers what does not work', lambda host: setattr(
        host, 'runs', False), 'KVM506', 'FAIL',
        'libvirt offers KVM, but a 64-bit guest does not run', 'qemu or auto'),
    Fault('no guest runs', lambda host: setattr(host, 'runs', False),
          'KVM508', 'FAIL', 'the guest did not run', 'qemu or auto'),
    Fault('model that this CPU cannot be', setting(**MODEL_OPTIONS),
          'KVM507', 'FAIL', 'Icelake-Server: this host', 'cpu model list'),
    Fault('one of two models', setting(
        cpu_mode='custom', cpu_models=('Nehalem', 'Icelake-Server')),
        'KVM507', 'FAIL', 'Icelake-Server: this host'),
    Fault('unknown model', setting(
        cpu_mode='custom', cpu_models=('Nehalen',)), 'KVM507', 'FAIL',
        'knows no such', 'Is Nehalem meant'),
    Fault('userfaultfd closed', written(
        '/proc/sys/vm/unprivileged_userfaultfd', '0\n'), 'KVM701', 'WARN',
        'gets no userfaultfd .vm.unprivileged_userfaultfd = 0.: .*every '
        'live migration to this host fails',
        '^echo vm.unprivileged_userfaultfd=1 > /etc/sysctl.d/'
        '60-qemu-postcopy-migration.conf && sysctl -p /etc/'),
    Fault('post-copy that Nova does not permit', lambda host: (
        setting(migration_stalled='post-copy')(host),
        option(post_copy=False)(host)), 'KVM701', 'WARN',
        'nothing is done about', '^Set .*permit_post_copy = true'),
    Fault('no model', setting(cpu_mode='custom'), 'KVM402', 'FAIL',
          'names no CPU model'),
    Fault('mode that needs KVM', setting(
        virt_type='qemu', cpu_mode='host-passthrough'), 'KVM402', 'FAIL',
        'no such CPU mode'),
    Fault('no bindings', ceph(modules={
        'rados': "No module named 'rados'", 'rbd': ''}, step=''), 'KVM601',
        'FAIL', "does not import rados .No module named 'rados'", {
            'debian': '^apt-get install python3-rados;.*site-packages',
            'ubuntu': '^apt-get install python3-rados;',
            'fedora': '^dnf install python3-rados;',
            'rhel': '^dnf install python3-rados;',
            'suse': '^zypper install python3-rados;'}),
    Fault('no binding at all', ceph(modules={'rados': 'x', 'rbd': 'y'},
                                    step=''), 'KVM601', 'FAIL',
          'rados and rbd', 'install python3-rados python3-rbd;'),
    Fault('no ceph', ceph(programs={'ceph': None, 'rbd': None}), 'KVM601',
          'FAIL', 'no program ceph', '^apt-get install ceph-common$'),
    Fault('no rbd', ceph(programs={'ceph': '/usr/bin/ceph', 'rbd': None}),
          'KVM601', 'WARN', 'no program rbd', '^apt-get install ceph-common$'),
    Fault('Python of nova-compute that does not answer', ceph(
        unknown='does not answer within 25 s'), 'KVM601', 'WARN',
        'not known: /usr/bin/python3 does not answer', 'less busy'),
    Fault('no block driver', ceph(driver=False), 'KVM602', 'FAIL',
          'no driver rbd .what QEMU said', {
              'debian': '^apt-get install qemu-block-extra$',
              'ubuntu': '^apt-get install qemu-block-extra$',
              'fedora': '^dnf install qemu-block-rbd$',
              'rhel': '^dnf install qemu-kvm-block-rbd$',
              'suse': '^zypper install qemu-block-rbd$'}),
    Fault('QEMU that does not tell', ceph(driver=None), 'KVM602', 'WARN',
          'not known: what QEMU said'),
    Fault('no block driver for volumes', ceph_volumes(driver=False),
          'KVM602', 'WARN', 'guests with a volume in Ceph',
          'qemu-block-extra'),
    Fault('no secret', ceph(secret=NO_SECRET), 'KVM603', 'FAIL',
          'libvirt has no secret 1{8}-', 'secret-define'),
    Fault('secret without a value', ceph(secret=NO_VALUE), 'KVM603', 'FAIL',
          'has no value', 'secret-set-value 1{8}-'),
    Fault('no secret for volumes', ceph_volumes(secret=NO_SECRET), 'KVM603',
          'WARN', 'guests with a volume in Ceph', 'secret-define'),
    Fault('secret with the key of another', ceph(
        key_error=DENIED, key_errno=13), 'KVM603', 'FAIL',
        'Ceph refuses the value', 'ceph auth get-key client.nova; or correct '
        '.libvirt. rbd_user'),
    Fault('secret that is no key', ceph(
        key_error='RADOS invalid argument', key_errno=22), 'KVM603', 'FAIL',
        'Ceph refuses the value'),
    Fault('user without a secret', ceph_options(rbd_secret=''), 'KVM603',
          'FAIL', 'rbd_secret_uuid is not', 'rbd_secret_uuid'),
    Fault('user of no name without a secret', ceph_options(
        rbd_user='', rbd_secret=''), 'KVM603', 'FAIL',
        'rbd_secret_uuid is not', 'remove rbd_user'),
    Fault('secret without a user', ceph_options(rbd_user=None), 'KVM603',
          'FAIL', 'rbd_user is not', 'rbd_user.*without "client."'),
    Fault('secret of a user of no name', ceph_options(rbd_user=''), 'KVM603',
          'FAIL', 'rbd_user is not', 'rbd_user'),
    Fault('secret that is not a UUID', ceph(secret=NO_UUID), 'KVM603', 'FAIL',
          'rbd_secret_uuid = 1{8}-.* is not a UUID .must be a valid',
          'virsh secret-list'),
    Fault('secret for something else', ceph(
        secret=storage_model.SecretFacts(True, True, usage='volume')),
        'KVM603', 'FAIL', 'secret 1{8}-.* has the usage volume',
        'usage type ceph'),
    Fault('secret without a UUID, for volumes', ceph_volumes(secret=NO_UUID),
          'KVM603', 'WARN', 'is not a UUID', 'virsh secret-list'),
    Fault('secret with a key for which Ceph has no use', ceph(
        key_error='error connecting to the cluster', key_errno=95), 'KVM603',
        'FAIL', 'Ceph refuses the value', "profile rbd'"),
    Fault('no ceph.conf', ceph_service(
        step='conf', errno=2, error='conf_read_file'), 'KVM604', 'FAIL',
        'reads no configuration: in no place', 'Copy ceph.conf'),
    Fault('no ceph.conf, seen by another user', ceph(
        step='conf', errno=2, error='conf_read_file'), 'KVM604', 'WARN',
        'seen as this user'),
    Fault('ceph.conf with nonsense', ceph_service(
        step='conf', errno=22, error='RADOS invalid argument'), 'KVM604',
        'FAIL', 'reads no configuration', 'NAME = VALUE'),
    Fault('ceph.conf that ends the process', ceph(
        step='conf', signal=6, error='gives no answer: Assertion'), 'KVM604',
        'FAIL', 'ends the process that reads ceph.conf .gives.*nova-compute '
        'too', 'not ASCII.*byte order mark'),
    Fault('process that is ended while it reads ceph.conf', ceph_service(
        step='conf', signal=9, error='gives no answer'), 'KVM604', 'WARN',
        'not known: gives no answer', 'less busy'),
    Fault('ceph.conf that hangs', ceph_service(
        step='conf', error='does not answer within 25 s'), 'KVM604', 'WARN',
        'not known: does not answer', 'less busy'),
    Fault('ceph.conf without a monitor', ceph_service(
        step='connect', errno=2, error='RADOS object not found',
        monitors=False), 'KVM604', 'WARN', 'no monitor, or no key.*ceph.conf '
        'has no mon_host', 'generate-minimal-conf.*SRV'),
    Fault('monitors whose names are not known', ceph_service(
        step='connect', errno=22, error='RADOS invalid argument',
        key_error='RADOS invalid argument', key_errno=22), 'KVM604', 'WARN',
        'cannot use mon_host of ceph.conf', 'getent hosts'),
    Fault('keyring without a key', ceph(
        step='connect', errno=5, error='RADOS I/O error'), 'KVM604', 'WARN',
        'no key of client.nova in its keyring', 'ceph auth get client.nova'),
    Fault('another way to authenticate', ceph(
        step='connect', errno=95, error='error connecting to the cluster',
        key_errno=95, key_error='error connecting to the cluster'),
        'KVM604', 'FAIL', 'the way of auth_client_required in ceph.conf',
        'cephx'),
    Fault('authentication without cephx', ceph(
        step='connect', errno=13, error=DENIED, cephx=False,
        key_errno=95, key_error='error connecting to the cluster'),
        'KVM604', 'FAIL', 'the way of auth_client_required in ceph.conf',
        'cephx'),
    Fault('keyring without the user', ceph(
        step='connect', errno=1, error='RADOS permission error'), 'KVM604',
        'FAIL', 'refuses client.nova', 'ceph auth get client.nova'),
    Fault('no keyring', ceph_service(
        step='connect', errno=2, error='RADOS object not found'), 'KVM604',
        'FAIL',
        'no key of client.nova', 'ceph auth get client.nova'),
    Fault('unknown user', ceph(step='connect', errno=13, error=DENIED),
          'KVM604', 'FAIL', 'refuses client.nova: .* keyring of this host '
          'has another key of the user or none', 'rbd_user'),
    Fault('user with the prefix, without a keyring', prefixed(
        errno=2, error='RADOS object not found'), 'KVM604', 'FAIL',
        'no key of client.client.nova', 'or remove "client." from'),
    Fault('user with the prefix', prefixed(errno=13, error=DENIED), 'KVM604',
          'FAIL', 'refuses client.client.nova', 'or remove "client." from'),
    Fault('no monitor', ceph(step='connect', errno=110, error=TIMED_OUT),
          'KVM604', 'WARN', 'no monitor.*timed out', 'mon_host'),
    Fault('Ceph that hangs', ceph(
        step='connect', error='does not answer within 25 s'), 'KVM604',
        'WARN', 'does not answer', 'mon_host'),
    Fault('no pool', ceph(
        step='pool', errno=2, error='error opening pool'), 'KVM605', 'FAIL',
        'Ceph has no pool vms', 'ceph osd pool ls'),
    Fault('pool of others', ceph(
        step='read', errno=1, error='RADOS permission error'), 'KVM605',
        'FAIL', 'does not let client.nova read', 'ceph auth caps'),
    Fault('host that Ceph has fenced', ceph(
        step='read', errno=108, error='RADOS connection was shutdown'),
        'KVM605', 'FAIL', 'blocklist',
        'ceph osd blocklist rm'),
    Fault('pool that may only be read', ceph(
        step='write', errno=1, error='RADOS permission error'), 'KVM605',
        'FAIL', 'does not let client.nova write to', 'ceph auth caps'),
    Fault('pool that is erasure coded', ceph(
        step='write', errno=95, error='Failed to operate write op'),
        'KVM605', 'FAIL', 'the pool vms cannot hold images.*erasure coded',
        'a replicated pool.*rbd_default_data_pool = vms'),
    Fault('user who may not call classes', ceph(
        step='class', errno=1, error='RADOS permission error'), 'KVM605',
        'FAIL', 'let client.nova call the class rbd in the pool vms',
        "osd 'profile rbd pool=vms'"),
    Fault('OSDs without the class', ceph(
        step='class', errno=95, error='failed to read'), 'KVM605', 'FAIL',
        'OSDs of the pool vms have no class rbd', 'osd_class_dir'),
    Fault('no data pool', ceph(
        step='data', data_pool='ec', errno=2, error='RADOS object not found'),
        'KVM605', 'FAIL', 'no pool ec, which.*data of disks in the pool vms '
        '.rbd_default_data_pool', 'rbd config pool list vms'),
    Fault('data pool that may not be written to', ceph(
        step='data', data_pool='ec', errno=1, error='RADOS permission error'),
        'KVM605', 'FAIL', 'does not let client.nova write to the pool ec',
        'pool=ec'),
    Fault('data pool that does not answer', ceph(
        step='data', data_pool='ec', errno=110, error='RADOS timed out'),
        'KVM605', 'WARN', 'the pool ec does not answer', 'ceph osd tree'),
    Fault('pool that does not take a write', ceph(
        step='write', errno=110, error='RADOS timed out'), 'KVM605', 'WARN',
        'does not answer', 'ceph osd tree'),
    Fault('full pool', ceph(full=True), 'KVM605', 'WARN',
          'the pool vms is full', 'quota'),
    Fault('no OSD', ceph(step='read', errno=110, error='RADOS timed out'),
          'KVM605', 'WARN', 'does not answer', 'ceph osd tree.*client.nova '
          'has a capability for OSDs'),
)
