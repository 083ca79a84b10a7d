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

import contextlib
import io
import json
import os
from unittest import mock

import fixtures
from oslotest import base

from nova_kvm_ext.cmd import fleet
from nova_kvm_ext.cpu import reader
from nova_kvm_ext.fleet import cloud
from nova_kvm_ext.fleet import drain
from nova_kvm_ext.fleet import export
from nova_kvm_ext.tests.unit.cpu import hosts
from nova_kvm_ext.tests.unit.fleet import fleets

LIVE = """<domain type='kvm' id='1'><name>one</name>
  <cpu mode='custom' match='exact' check='full'>
    <model fallback='forbid'>{}</model><vendor>AMD</vendor></cpu>
</domain>"""


class FleetTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.useFixture(fixtures.MockPatchObject(
            reader, 'read_map', lambda: hosts.MAP))
        self.exports = os.path.join(self.directory, 'exports')
        os.mkdir(self.exports)

    def write(self, *named):
        for host in named:
            self.file(f'exports/{host.host}.json', export.to_json(host))

    def file(self, name, text):
        path = os.path.join(self.directory, name)
        with open(path, 'w') as f:
            f.write(text)
        return path

    def run_command(self, command, *words, form='json'):
        """Exit code, what is printed (parsed if JSON), and what is warned."""
        found = command(mock.Mock(), None)
        parser = found.get_parser('x')
        if form:
            words = (*words, '-f', form)
        out, err = io.StringIO(), io.StringIO()
        found.app.stdout = out
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
            code = found.run(parser.parse_args(words))
        text = out.getvalue()
        return (code, json.loads(text) if form == 'json' and text else text,
                err.getvalue())

    def run_on_files(self, command, *words, **kwargs):
        return self.run_command(command, *words, self.exports, **kwargs)


class KindsTestCase(FleetTestCase):

    def test_json(self):
        self.write(fleets.host('a', kernel='6.1', libvirt='9.0.0'),
                   fleets.host('b', kernel='6.12', libvirt='9.0.0'),
                   fleets.host('c', 'Nehalem'))
        code, rows, err = self.run_on_files(fleet.Kinds)
        self.assertEqual((0, ''), (code, err))
        self.assertEqual(
            [(2, 'x86-64-v3', 'AMD', ['a', 'b']),
             (1, 'x86-64-v2', 'Intel', ['c'])],
            [(row['hosts'], row['level'], row['vendor'], row['names'])
             for row in rows])
        self.assertEqual({'6.1': 1, '6.12': 1}, rows[0]['kernel'])
        self.assertEqual({'9.0.0': 2}, rows[0]['libvirt'])

    def test_table(self):
        self.write(fleets.host('a', kernel='6.1', libvirt='9.0.0'),
                   fleets.host('b', kernel='6.12', libvirt='9.0.0'),
                   fleets.host('c', 'kvm64'))
        code, text, _ = self.run_on_files(fleet.Kinds, form='table')
        self.assertEqual(0, code)
        self.assertRegex(text, r'EPYC/\w{4} +\| +2 \| x86-64-v3 \| 9.0.0 +\| '
                               r'not known \| kernel')
        self.assertNotIn('None', text)
        self.assertLessEqual(max(map(len, text.splitlines())), 80)

    def test_hosts(self):
        self.write(*map(fleets.host, ('az1-a', 'az1-b', 'az2-a')))
        code, rows, _ = self.run_on_files(
            fleet.Kinds, '--hosts', 'az1-*', '--hosts', 'nobody')
        self.assertEqual((0, ['az1-a', 'az1-b']), (code, rows[0]['names']))
        code, _, err = self.run_on_files(fleet.Kinds, '--hosts', 'x*')
        self.assertEqual(3, code)
        self.assertIn('az1-a, az1-b, az2-a', err)

    def test_sources(self):
        for words in ((), (self.exports, '--os-cloud', 'mine')):
            code, _, err = self.run_command(fleet.Kinds, *words)
            self.assertEqual(3, code)
            self.assertIn('--os-cloud', err)

    def test_file_that_cannot_be_read(self):
        self.write(fleets.host('a'))
        self.file('exports/b.json', '{')
        code, rows, err = self.run_on_files(fleet.Kinds)
        self.assertEqual((0, 1), (code, len(rows)))
        self.assertIn('warning: ' + self.exports, err)

    def test_no_file_can_be_read(self):
        self.file('exports/b.json', '{')
        code, _, err = self.run_on_files(fleet.Kinds)
        self.assertEqual(3, code)
        self.assertIn('No host could be read', err)

    def test_cloud(self):
        found = cloud.Read((fleets.host('a'),), ('b publishes nothing.',), {})
        with (mock.patch.object(cloud, 'connect', autospec=True) as connect,
              mock.patch.object(cloud, 'read', autospec=True,
                                return_value=found)):
            code, rows, err = self.run_command(
                fleet.Kinds, '--os-cloud', 'mine')
        connect.assert_called_once_with('mine')
        self.assertEqual((0, ['a']), (code, rows[0]['names']))
        self.assertIn('warning: b publishes nothing.', err)


class BaselineTestCase(FleetTestCase):

    def test_baseline(self):
        self.write(fleets.host('a'), fleets.host('b', lacks=('sha-ni',)))
        code, row, _ = self.run_on_files(fleet.Baseline)
        self.assertEqual(0, code)
        self.assertEqual(('EPYC', 'x86-64-v3', 2, 2),
                         (row['cpu_model'], row['level'], row['hosts'],
                          row['kinds']))
        self.assertIn('cpu_model_extra_flags = +hypervisor, -sha-ni',
                      row['nova_conf'])
        self.assertEqual([['sha-ni'], []],
                         [loss['features'] for loss in row['loses']])
        self.assertEqual([['sha-ni']],
                         [gain['features'] for gain in row['gains']])
        self.assertNotIn('sha-ni', row['features'])
        self.assertIn('avx2', row['features'])

    def test_table(self):
        self.write(fleets.host('a'), fleets.host('b', 'Skylake-Server'))
        code, text, _ = self.run_on_files(fleet.Baseline, form='table')
        self.assertIn('cpu_model = x86-64-v3', text)
        self.assertIn('2 vendors', text)
        self.assertLessEqual(max(map(len, text.splitlines())), 80)

    def test_mitigations(self):
        self.write(fleets.host('a', has=('vme',)),
                   fleets.host('b', 'Skylake-Server', has=('vme',)))
        # pcid is one of Intel's; the other host lacks it.
        _, row, _ = self.run_on_files(fleet.Baseline, '--mitigations')
        self.assertNotIn('cpu_model_extra_flags', row['nova_conf'])
        self.write(fleets.host('a', has=('pcid', 'vme')))
        _, row, _ = self.run_on_files(fleet.Baseline, '--mitigations')
        self.assertIn('cpu_model_extra_flags = +pcid', row['nova_conf'])
        _, row, _ = self.run_on_files(fleet.Baseline)
        self.assertNotIn('cpu_model_extra_flags', row['nova_conf'])

    def test_none(self):
        self.write(fleets.untold('a'))
        code, _, err = self.run_on_files(fleet.Baseline)
        self.assertEqual(3, code)
        self.assertIn('No host tells', err)


class MatrixTestCase(FleetTestCase):

    def setUp(self):
        super().setUp()
        self.write(fleets.host('a1'), fleets.host('a2'),
                   fleets.host('b', lacks=('sha-ni',)), fleets.untold('d'))

    def test_counts(self):
        code, rows, _ = self.run_on_files(fleet.Matrix)
        self.assertEqual(0, code)
        self.assertEqual(
            [(1, 0, 0, 3, 0), (1, 2, 0, 1, 0), (2, 1, 1, 1, 2)],
            sorted((row['hosts'], row['to_hosts'], row['not_to'],
                    row['unknown'], row['from_hosts']) for row in rows))

    def test_from(self):
        for wanted in ('a2', f'EPYC/{fleets.host("a").cpu.digest[:4]}'):
            code, rows, _ = self.run_on_files(fleet.Matrix, '--from', wanted)
            self.assertEqual(0, code)
            found = {row['kind'][-4:]: (row['to'], row['back'],
                                        row['missing']) for row in rows}
            lacks = fleets.host('b', lacks=('sha-ni',)).cpu.digest[:4]
            self.assertEqual(('no', 'yes', ['sha-ni']), found[lacks])
            self.assertIn(('unknown', 'unknown', []), found.values())

    def test_from_as_table(self):
        _, text, _ = self.run_on_files(
            fleet.Matrix, '--from', 'a1', form='table')
        self.assertIn('lacks sha-ni', text)
        self.assertLessEqual(max(map(len, text.splitlines())), 80)

    def test_from_nowhere(self):
        code, _, err = self.run_on_files(fleet.Matrix, '--from', 'x')
        self.assertEqual(3, code)
        self.assertIn('--from x', err)

    def test_page(self):
        path = os.path.join(self.directory, 'page.html')
        code, _, _ = self.run_on_files(fleet.Matrix, '--page', path)
        self.assertEqual(0, code)
        with open(path, encoding='utf-8') as f:
            self.assertIn('4 hosts of 3 kinds', f.read())
        self.assertEqual({'page.html', 'exports'},
                         set(os.listdir(self.directory)))

    def test_page_that_cannot_be_written(self):
        code, _, err = self.run_on_files(
            fleet.Matrix, '--page', '/no/such/page.html')
        self.assertEqual(3, code)
        self.assertIn('--page /no/such/page.html', err)


class AdmitTestCase(FleetTestCase):

    def admit(self, new, *words):
        path = self.file('new.json', export.to_json(new))
        return self.run_on_files(fleet.Admit, path, *words)

    def test_may_join(self):
        self.write(fleets.host('a'))
        code, row, _ = self.admit(fleets.host('new', has=('vme',)))
        self.assertEqual((0, 'yes', []), (code, row['may_join'],
                                          row['lost']))

    def test_may_not(self):
        self.write(fleets.host('a'))
        code, row, _ = self.admit(fleets.host('new', lacks=('svm',)))
        self.assertEqual((2, 'no', ['svm'], ['svm']),
                         (code, row['may_join'], row['missing'],
                          row['lost']))

    def test_by_the_cpu_of_its_guests(self):
        self.write(fleets.host('a'))
        cpu = self.file('cpu.xml', '<cpu mode="custom" match="exact">'
                                   '<model>Nehalem</model></cpu>')
        code, row, _ = self.admit(
            fleets.host('new', lacks=('svm',)), '--cpu', cpu)
        self.assertEqual((0, 'yes', ['svm']),
                         (code, row['may_join'], row['lost']))

    def test_cpu_without_a_model(self):
        self.write(fleets.host('a'))
        cpu = self.file('cpu.xml', '<cpu mode="host-passthrough"/>')
        code, _, err = self.admit(fleets.host('new'), '--cpu', cpu)
        self.assertEqual(3, code)
        self.assertIn('the mode host-passthrough', err)

    def test_not_known(self):
        self.write(fleets.host('a'))
        code, row, _ = self.admit(fleets.untold('new'))
        self.assertEqual((3, 'unknown'), (code, row['may_join']))

    def test_no_export(self):
        self.write(fleets.host('a'))
        code, _, err = self.run_on_files(
            fleet.Admit, self.file('new.json', '{'))
        self.assertEqual(3, code)
        self.assertIn('new.json', err)


class DrainTestCase(FleetTestCase):

    def setUp(self):
        super().setUp()
        self.write(fleets.host('a'), fleets.host('b', lacks=('svm',)))
        self.epyc = self.file('epyc.xml', LIVE.format('EPYC'))
        self.small = self.file('small.xml', LIVE.format('kvm64').replace(
            '<vendor>AMD</vendor>', ''))

    def drain(self, *words, **kwargs):
        return self.run_on_files(fleet.Drain, *words, **kwargs)

    def test_each_can_go(self):
        code, rows, _ = self.drain('b', '--guest', self.epyc,
                                   '--guest', self.small)
        self.assertEqual(0, code)
        self.assertEqual(
            [('epyc', 'EPYC', 'yes', 1, ['a']),
             ('small', 'kvm64', 'yes', 1, ['a'])],
            [(row['guest'], row['model'], row['can_go'], row['to_hosts'],
              row['hosts']) for row in rows])

    def test_one_cannot(self):
        code, rows, _ = self.drain('a', '--guest', self.epyc,
                                   '--guest', self.small)
        self.assertEqual(2, code)
        self.assertEqual([('epyc', 'no', {'svm': 1}), ('small', 'yes', {})],
                         [(row['guest'], row['can_go'], row['keeping'])
                          for row in rows])
        code, text, _ = self.drain('a', '--guest', self.epyc, form='table')
        self.assertIn('svm', text)

    def test_not_known(self):
        odd = self.file('odd.xml', '<domain><cpu mode="host-passthrough"/>'
                                   '</domain>')
        code, rows, _ = self.drain('a', '--guest', odd)
        self.assertEqual((3, 'unknown'), (code, rows[0]['can_go']))
        self.assertIn('host-passthrough', rows[0]['reason'])

    def test_cloud(self):
        found = cloud.Read((fleets.host('a'),), (), {})
        guest = drain.Guest('one', None, 'why')
        with (mock.patch.object(cloud, 'connect', autospec=True),
              mock.patch.object(cloud, 'read', autospec=True,
                                return_value=found),
              mock.patch.object(cloud, 'guests', autospec=True,
                                return_value=(guest,)) as guests):
            code, rows, _ = self.run_command(
                fleet.Drain, 'b', '--os-cloud', 'mine')
        self.assertEqual('b', guests.call_args.args[1])
        self.assertEqual((3, 'why'), (code, rows[0]['reason']))

    def test_whose_guests(self):
        code, _, err = self.drain('a')
        self.assertEqual(3, code)
        self.assertIn('--guest', err)


class FitTestCase(FleetTestCase):

    def test_codes(self):
        epyc = self.file('epyc.xml', LIVE.format('EPYC'))
        lacks = fleets.host('b', lacks=('svm',))
        for named, code, words in (
                ((fleets.host('a'), lacks), 0, 'runs on 1 hosts, not on 1, '
                                               'not known of 0'),
                ((lacks,), 2, 'on 0 hosts, not on 1'),
                ((lacks, fleets.untold('c')), 3, 'not known of 1')):
            for file in os.listdir(self.exports):
                os.unlink(os.path.join(self.exports, file))
            self.write(*named)
            found, rows, err = self.run_on_files(fleet.Fit, epyc)
            self.assertEqual(code, found)
            self.assertIn(words, err)
            self.assertEqual(len(named), len(rows))

    def test_standard_input(self):
        self.write(fleets.host('a'))
        with mock.patch('sys.stdin') as stdin:
            stdin.buffer.read.return_value = LIVE.format('EPYC').encode()
            code, _, _ = self.run_on_files(fleet.Fit, '-')
        self.assertEqual(0, code)

    def test_no_cpu(self):
        self.write(fleets.host('a'))
        code, _, err = self.run_on_files(
            fleet.Fit, self.file('x.xml', '<network/>'))
        self.assertEqual(3, code)
        self.assertIn('x.xml', err)
