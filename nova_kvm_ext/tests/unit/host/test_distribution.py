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


from oslotest import base

from nova_kvm_ext.host import distribution


class DistributionTestCase(base.BaseTestCase):

    def find(self, text: str) -> distribution.Distribution:
        return distribution.from_os_release(text)

    def test_by_name_and_kin(self):
        for text, family in (
                ('ID=debian\n', 'debian'), ('ID=ubuntu\nID_LIKE=debian\n',
                                            'ubuntu'),
                ('ID=linuxmint\nID_LIKE="ubuntu debian"', 'ubuntu'),
                ('ID=kali\nID_LIKE=debian', 'debian'),
                ('ID="rhel"', 'rhel'), ('ID="centos"', 'rhel'),
                ("ID='almalinux'\nID_LIKE='rhel centos fedora'", 'rhel'),
                ('ID=fedora', 'fedora'), ('ID=sles', 'suse'),
                ('ID="opensuse-tumbleweed"', 'suse'),
                ('ID=arch', ''), ('', ''), ('nonsense', ''),
                ('ID="unclosed', '')):
            self.assertEqual(family, self.find(text).family, text)

    def test_comments_and_lines_without_a_value(self):
        for text in ('#ID=debian\nID=fedora\n', 'ID=fedora\n#ID=debian\n',
                     'ID=fedora\nID\n', 'ID\nID=fedora'):
            self.assertEqual('fedora', self.find(text).family, text)

    def test_the_last_word_is_the_hosts(self):
        self.assertEqual('Debian GNU/Linux 12', self.find(
            'PRETTY_NAME="Debian GNU/Linux 12"\nID=debian\n').name)
        self.assertEqual('this distribution', self.find('').name)

    def test_service_of_libvirt(self):
        for text, service in (
                ('ID=rhel\nVERSION_ID="8.10"', 'libvirtd'),
                ('ID=rhel\nVERSION_ID="9.4"', 'virtqemud'),
                ('ID=opensuse-leap\nVERSION_ID=15.6', 'libvirtd'),
                ('ID=opensuse-tumbleweed', 'virtqemud'),
                ('ID=debian', 'libvirtd'), ('ID=fedora', 'virtqemud')):
            self.assertEqual(service, self.find(text).libvirt_service, text)

    def test_packages(self):
        self.assertEqual('qemu-system-arm', self.find(
            'ID=debian').qemu_package('aarch64'))
        self.assertEqual('qemu-kvm', self.find(
            'ID=fedora').qemu_package('s390x'))
        # Of an architecture that is in no table: as of the first.
        self.assertEqual('qemu-system-x86', self.find(
            'ID=debian').qemu_package('riscv64'))
        for text, command in (
                ('ID=debian', 'apt-get install --reinstall'),
                ('ID=fedora', 'dnf reinstall'),
                ('ID=sles', 'zypper install --force')):
            self.assertEqual(command, self.find(text).reinstall)

    def test_libvirts_own_default_where_nothing_is_known(self):
        self.assertEqual('root', self.find('ID=arch').qemu_user)
