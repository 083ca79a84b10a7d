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

"""How the distributions with KVM differ: names, packages, commands.

Pure: a table, and the parser of /etc/os-release that selects a row. No other
module knows a distribution by its name.

The names of QEMU's user and group are those with which the packages of libvirt
are built (meson options qemu_user and qemu_group): debian/rules and
libvirt.spec of each. The packages' names are those of Debian 12, Ubuntu 24.04,
Fedora 40, RHEL 9 and openSUSE Leap 15.
"""

import dataclasses
import shlex


@dataclasses.dataclass(frozen=True)
class Distribution:
    """What a remedy must call things on this host.

    :ivar name: for people
    :ivar family: ``debian``, ``ubuntu``, ``fedora``, ``rhel``, ``suse``, or
        '' for one that is not known
    :ivar qemu_user: the user that libvirt gives QEMU unless qemu.conf says
        otherwise
    :ivar qemu_group: the same for the group
    :ivar kvm_rules: the rule file that sets /dev/kvm's group and mode, and
        its package
    :ivar install: command that installs packages
    :ivar qemu_packages: package of QEMU by architecture
    :ivar emulators: where QEMU may be, ``{arch}`` standing for QEMU's name
        of the architecture
    :ivar libvirt_package: libvirt with its QEMU driver
    :ivar libvirt_service: systemd's unit of it
    :ivar kernel_modules: the package that has kvm and vhost_net
    """

    name: str
    family: str
    qemu_user: str
    qemu_group: str
    kvm_rules: tuple[str, str]
    install: str
    qemu_packages: tuple[tuple[str, str], ...]
    emulators: tuple[str, ...]
    libvirt_package: str
    libvirt_service: str
    kernel_modules: str

    @property
    def qemu_rbd(self) -> str:
        """The package with QEMU's block driver rbd."""
        return {'debian': 'qemu-block-extra', 'ubuntu': 'qemu-block-extra',
                'rhel': 'qemu-kvm-block-rbd'}.get(
                    self.family, 'qemu-block-rbd')

    @property
    def reinstall(self) -> str:
        """Command that installs packages again."""
        return {'apt-get install': 'apt-get install --reinstall',
                'dnf install': 'dnf reinstall',
                'zypper install': 'zypper install --force',
                }.get(self.install, self.install)

    def qemu_package(self, arch: str) -> str:
        """The package with QEMU for guests of an architecture."""
        return dict(self.qemu_packages).get(arch, self.qemu_packages[0][1])


_SYSTEMD_RULES = '/usr/lib/udev/rules.d/50-udev-default.rules'
_DEBIAN_QEMU = (('x86_64', 'qemu-system-x86'), ('aarch64', 'qemu-system-arm'),
                ('ppc64le', 'qemu-system-ppc'),
                ('s390x', 'qemu-system-s390x'))

_FAMILIES = {
    'debian': Distribution(
        'Debian', 'debian', 'libvirt-qemu', 'libvirt-qemu',
        (_SYSTEMD_RULES, 'udev'), 'apt-get install', _DEBIAN_QEMU,
        ('/usr/bin/qemu-system-{arch}',), 'libvirt-daemon-system', 'libvirtd',
        'linux-image-amd64'),
    'ubuntu': Distribution(
        'Ubuntu', 'ubuntu', 'libvirt-qemu', 'kvm',
        (_SYSTEMD_RULES, 'udev'), 'apt-get install',
        # Ubuntu has QEMU for s390x in a package of that name too.
        _DEBIAN_QEMU, ('/usr/bin/qemu-system-{arch}',),
        'libvirt-daemon-system', 'libvirtd', 'linux-modules-extra-{release}'),
    'fedora': Distribution(
        'Fedora', 'fedora', 'qemu', 'qemu',
        (_SYSTEMD_RULES, 'systemd-udev'), 'dnf install',
        (('x86_64', 'qemu-kvm'),),
        ('/usr/bin/qemu-system-{arch}', '/usr/bin/qemu-kvm'),
        'libvirt-daemon-kvm', 'virtqemud', 'kernel-modules-core-{release}'),
    'rhel': Distribution(
        'RHEL', 'rhel', 'qemu', 'qemu',
        (_SYSTEMD_RULES, 'systemd-udev'), 'dnf install',
        (('x86_64', 'qemu-kvm'),), ('/usr/libexec/qemu-kvm',),
        'libvirt-daemon-kvm', 'virtqemud', 'kernel-modules-core-{release}'),
    'suse': Distribution(
        'SUSE', 'suse', 'qemu', 'qemu',
        (_SYSTEMD_RULES, 'udev'), 'zypper install',
        (('x86_64', 'qemu-x86'), ('aarch64', 'qemu-arm'),
         ('ppc64le', 'qemu-ppc'), ('s390x', 'qemu-s390x')),
        ('/usr/bin/qemu-system-{arch}', '/usr/bin/qemu-kvm'),
        'libvirt-daemon-qemu', 'libvirtd', 'kernel-default'),
}
# libvirt's own default user is root. Its documentation calls things as
# Fedora does.
_UNKNOWN = dataclasses.replace(
    _FAMILIES['fedora'], name='this distribution', family='',
    qemu_user='root', qemu_group='root', install='install',
    kvm_rules=(_SYSTEMD_RULES, 'systemd'))

# ID of os-release, where it is not the name of the family.
_IDS = {'rhel': 'rhel', 'centos': 'rhel', 'rocky': 'rhel',
        'almalinux': 'rhel', 'ol': 'rhel', 'sles': 'suse',
        'opensuse': 'suse', 'opensuse-leap': 'suse',
        'opensuse-tumbleweed': 'suse', 'sle-micro': 'suse'}


def from_os_release(text: str) -> Distribution:
    """The distribution that a text of /etc/os-release names.

    https://www.freedesktop.org/software/systemd/man/latest/os-release.html

    :returns: one with ``family`` '' where it is not known; never fails
    """
    values = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition('=')
        if equals and not key.startswith('#'):
            try:
                values[key] = ''.join(shlex.split(value))
            except ValueError:
                values[key] = value
    version = values.get('VERSION_ID', '')
    for name in (values.get('ID', ''), *values.get('ID_LIKE', '').split()):
        family = _IDS.get(name, name)
        if family in _FAMILIES:
            break
    else:
        return dataclasses.replace(
            _UNKNOWN, name=values.get('PRETTY_NAME') or _UNKNOWN.name)
    found = dataclasses.replace(
        _FAMILIES[family],
        name=values.get('PRETTY_NAME') or _FAMILIES[family].name)
    major = version.partition('.')[0]
    if family == 'rhel' and major == '8':
        # The modular daemons are the default from RHEL 9 on.
        found = dataclasses.replace(
            found, libvirt_service='libvirtd',
            kernel_modules='kernel-modules-{release}')
    if family == 'suse' and values.get('ID') == 'opensuse-tumbleweed':
        found = dataclasses.replace(found, libvirt_service='virtqemud')
    return found
