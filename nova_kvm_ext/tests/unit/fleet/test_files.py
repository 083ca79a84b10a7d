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

import os

import fixtures
from oslotest import base

from nova_kvm_ext import errors
from nova_kvm_ext.fleet import export
from nova_kvm_ext.fleet import files
from nova_kvm_ext.tests.unit.cpu import hosts
from nova_kvm_ext.tests.unit.fleet import fleets


class FilesTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path

    def write(self, name, text):
        path = os.path.join(self.directory, name)
        with open(path, 'w') as f:
            f.write(text)
        return path


class PathsTestCase(FilesTestCase):

    def test_directory_and_files(self):
        a = self.write('a.json', '')
        b = self.write('b.xml', '')
        c = self.write('notes.txt', '')
        self.assertEqual((a, b), files.paths([self.directory]))
        self.assertEqual((c, a, b), files.paths([c, self.directory]))

    def test_nothing_there(self):
        for place, words in ((self.directory, 'no file whose name ends in '
                                              '.json or .xml'),
                             ('/no/such', 'No such file')):
            e = self.assertRaises(errors.InvalidRequest, files.paths, [place])
            self.assertIn(words, str(e))
            self.assertIn(place, str(e))


class ReadTestCase(FilesTestCase):

    def read(self, x86_map=hosts.MAP, **kwargs):
        return files.read(files.paths([self.directory]), x86_map, **kwargs)

    def test_exports(self):
        self.write('x.json', export.to_json(fleets.host('one')))
        self.write('y.json', '\n' + export.to_json(fleets.host('two')))
        found = self.read()
        self.assertEqual(['one', 'two'], [h.host for h in found.hosts])
        self.assertEqual((), found.refused)
        self.assertIs(found.hosts[0].cpu, found.hosts[1].cpu)

    def test_domain_capabilities(self):
        text = hosts.capabilities()
        self.write('compute1.xml', text)
        # Other paths and machines are the same CPUs.
        self.write('compute2.xml', text.replace(
            'pc-i440fx-7.2', 'pc-q35-10.0').replace('/usr/bin', '/opt'))
        self.write('compute3.xml', hosts.capabilities(lacks=('svm',)))
        self.write('compute4.xml', text.replace('kvm</domain>',
                                                'qemu</domain>'))
        found = self.read()
        self.assertEqual(['compute1', 'compute2', 'compute3', 'compute4'],
                         [h.host for h in found.hosts])
        self.assertIs(found.hosts[0].cpu, found.hosts[1].cpu)
        self.assertNotIn('svm', found.hosts[2].cpu.features)
        self.assertEqual('qemu', found.hosts[3].cpu.caps.virt_type)
        self.assertEqual(fleets.host('a').cpu.digest,
                         found.hosts[0].cpu.digest)

    def test_document_that_begins_with_a_declaration(self):
        self.write('a.xml', "<?xml version='1.0'?>\n" + hosts.capabilities())
        self.assertIn('svm', self.read().hosts[0].cpu.features)

    def test_without_a_map(self):
        self.write('a.xml', hosts.capabilities())
        self.assertIsNone(self.read(None).hosts[0].cpu.features)

    def test_bad_file_costs_its_host(self):
        self.write('a.xml', '<domainCapabilities')
        self.write('b.json', 'nothing')
        self.write('c.json', export.to_json(fleets.host('c')))
        self.write('d.json', '')
        os.mkfifo(os.path.join(self.directory, 'e.xml'))
        os.mkdir(os.path.join(self.directory, 'f.xml'))
        os.symlink('/no/such', os.path.join(self.directory, 'g.xml'))
        found = self.read()
        self.assertEqual(['c'], [h.host for h in found.hosts])
        self.assertEqual(6, len(found.refused))
        for name, said in zip('abdefg', found.refused):
            self.assertIn(f'{self.directory}/{name}.', said)

    def test_progress(self):
        for name in 'abc':
            self.write(f'{name}.json', '')
        seen: list[int] = []
        self.read(progress=seen.append)
        self.assertEqual([1, 2, 3], seen)

    def test_long_file_is_not_read_whole(self):
        path = self.write('a.json', ' ' * (5 << 20))
        self.assertEqual((4 << 20) + 1, len(files.read_file(path)))
