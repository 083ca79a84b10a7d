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
import dataclasses
import io
import json
import os
import tempfile
from typing import Any
from unittest import mock

import fixtures
import libvirt
from oslotest import base

from nova_kvm_ext.cmd import base as cmd_base
from nova_kvm_ext.cmd import cpu
from nova_kvm_ext.cpu import reader
from nova_kvm_ext.host import virt_type
from nova_kvm_ext.tests.unit.cpu import documents
from nova_kvm_ext.tests.unit.cpu import hosts
from nova_kvm_ext.tests.unit import test_settings

LIVE = """
<domain type='qemu'><name>one</name>
  <os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>
  <cpu mode='custom' match='exact' check='full'><model>{}</model></cpu>
</domain>
"""


class LibvirtError(libvirt.libvirtError):

    def __init__(self, code: int, text: str) -> None:
        Exception.__init__(self, text)
        self._code = code

    def get_error_code(self) -> int:
        return self._code

    def __str__(self) -> str:
        return str(self.args[0])


class FakeConnection:
    """libvirt on a host whose documents are kept in tests/data."""

    def __init__(self) -> None:
        self.documents = {'qemu': documents.TCG, 'kvm': documents.INTEL}
        self.compared: list[tuple[str, str]] = []
        self.answer: int | Exception = 2

    def getDomainCapabilities(self, emulator: Any, arch: str, machine: Any,
                              kind: str, flags: int = 0) -> str:
        return documents.load(self.documents[kind])

    def getLibVersion(self) -> int:
        return 9_000_000

    def getCPUModelNames(self, arch: str) -> list[str]:
        return ['Nehalem']

    def compareHypervisorCPU(self, emulator: Any, arch: str, machine: Any,
                             kind: str, xml: str, flags: int) -> int:
        self.compared.append((kind, xml))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def lookupByUUIDString(self, name: str) -> Any:
        raise LibvirtError(libvirt.VIR_ERR_INVALID_ARG, 'no UUID')

    def lookupByName(self, name: str) -> Any:
        if name != 'one':
            raise LibvirtError(libvirt.VIR_ERR_NO_DOMAIN, 'no domain')
        return mock.Mock(XMLDesc=lambda: LIVE.format('Nehalem'))


class CPUCommandTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.connection = FakeConnection()
        self.configure('[kvm_ext]\nvirt_type = qemu\n')
        self.useFixture(fixtures.MockPatchObject(
            cmd_base, 'libvirt_connection',
            side_effect=lambda uri, read_only: contextlib.nullcontext(
                self.connection)))
        self.useFixture(fixtures.MockPatchObject(
            cmd_base, 'read_conf', side_effect=lambda files: self.conf))
        self.useFixture(fixtures.MockPatchObject(
            reader, 'read_map', return_value=documents.KNOWN))

    def configure(self, text: str) -> None:
        conf = test_settings.configuration(text)
        self.conf = mock.Mock(
            wraps=conf, kvm_ext=conf.kvm_ext, state_path='/nonexistent',
            instances_path='/nonexistent', __getitem__=None,
            libvirt=mock.Mock(hw_machine_type=['x86_64=q35'],
                              connection_uri='test:///none'))
        self.conf.__getitem__ = lambda _, group: conf[group]

    def end(self, command: type, *arguments: str) -> tuple[int, str, str]:
        stdout, stderr = io.StringIO(), io.StringIO()
        instance = command(mock.Mock(stdout=stdout), None)
        parser = instance.get_parser('nova-kvm-ext cpu')
        with contextlib.redirect_stderr(stderr):
            code = instance.run(parser.parse_args(arguments))
        return code, stdout.getvalue(), stderr.getvalue()

    def json(self, command: type, *arguments: str, code: int = 0) -> Any:
        ended, stdout, stderr = self.end(command, *arguments, '-f', 'json')
        self.assertEqual(code, ended, stderr)
        return json.loads(stdout)


class ShowTestCase(CPUCommandTestCase):

    def test_host_wide(self):
        found = self.json(cpu.Show)
        self.assertEqual('host-model', found['cpu_mode'])
        self.assertEqual('[libvirt] cpu_mode', found['asked_by'])
        self.assertEqual([], found['warnings'])
        self.assertIn(
            {'name': 'avx2', 'policy': 'require', 'origin': 'host expansion',
             'asked_by': '[libvirt] cpu_mode', 'can_differ': None},
            found['features'])

    def test_what_if(self):
        found = self.json(
            cpu.Show, '--extra-spec', 'kvm_ext:cpu_model=x86-64-v3')
        self.assertEqual('x86-64-v3', found['cpu_model'])
        self.assertIn('<model>kvm64</model>', found['xml'])
        found = self.json(
            cpu.Show, '--property', 'kvm_ext_cpu_model=x86-64-v2')
        self.assertEqual({'image'},
                         {f['asked_by'] for f in found['features']})

    def test_for_people(self):
        code, stdout, stderr = self.end(
            cpu.Show, '--flavor-spec', 'kvm_ext:cpu_model=Nehalem',
            '--property', 'kvm_ext_cpu=1')
        self.assertEqual(0, code)
        self.assertIn('model Nehalem (flavor)', stdout)
        self.assertIn('kvm_ext_cpu means nothing', stderr)

    def test_required_trait(self):
        code, _, stderr = self.end(
            cpu.Show, '--flavor-spec', 'kvm_ext:cpu_model=Nehalem',
            '--property', 'trait:HW_CPU_X86_AVX2=required')
        self.assertEqual(2, code)
        self.assertIn('HW_CPU_X86_AVX2', stderr)

    def test_refused(self):
        self.configure('[kvm_ext]\nvirt_type = qemu\n'
                       'cpu_mode = host-passthrough\n')
        code, stdout, stderr = self.end(cpu.Show)
        self.assertEqual((3, ''), (code, stdout))
        self.assertIn('[kvm_ext] cpu_mode = host-passthrough', stderr)

    def test_none_warns(self):
        self.configure('[kvm_ext]\nvirt_type = qemu\ncpu_mode = none\n')
        found = self.json(cpu.Show)
        self.assertEqual(([], None, 1), (
            found['features'], found['xml'], len(found['warnings'])))

    def test_auto(self):
        """Settled as the driver settles it, with the same kept answer."""
        self.configure('[kvm_ext]\nvirt_type = auto\ncpu_mode = custom\n'
                       'cpu_model = nehalem\n')
        probe = self.useFixture(fixtures.MockPatchObject(
            virt_type, 'probe', return_value=(True, 'it ran'))).mock
        found = self.json(cpu.Show)
        self.assertEqual('kvm', found['virt_type'])
        self.assertIn('it ran', found['virt_type_reason'])
        _, _, choice = probe.call_args.args
        self.assertEqual(('Nehalem',), choice.models)
        self.assertEqual('/nonexistent/kvm-ext-probe.json',
                         probe.call_args.kwargs['cache_file'])

    def test_nonsense_from_libvirt(self):
        self.useFixture(fixtures.MockPatchObject(
            self.connection, 'getDomainCapabilities', return_value='<x'))
        code, _, stderr = self.end(cpu.Show)
        self.assertEqual(3, code)
        self.assertEqual(1, stderr.count('\n'))


class DoubtsTestCase(CPUCommandTestCase):
    """What a guest may get or not, and what it lacks against CPU flaws."""

    def setUp(self):
        super().setUp()
        has = ('ibpb', 'amd-ssbd', 'cmp_legacy', 'invtsc')
        self.useFixture(fixtures.MockPatchObject(
            reader, 'read_map', return_value=dataclasses.replace(
                hosts.MAP, register_features=frozenset(has))))
        self.useFixture(fixtures.MockPatchObject(
            self.connection, 'getDomainCapabilities',
            side_effect=lambda emulator, arch, machine, kind, flags=0:
            hosts.capabilities(kind, has=has)))

    def test_host_model(self):
        self.configure('[kvm_ext]\nvirt_type = kvm\n')
        found = self.json(cpu.Show)
        self.assertEqual(['cmp_legacy', 'invtsc', 'topoext'],
                         list(found['can_differ']))
        [feature] = [f for f in found['features'] if f['name'] == 'invtsc']
        self.assertIn('cannot migrate', feature['can_differ'])
        self.assertEqual({'missing': [], 'nova_conf': None},
                         found['mitigations'])

    def test_a_level(self):
        self.configure('[kvm_ext]\nvirt_type = kvm\ncpu_mode = custom\n'
                       'cpu_model = x86-64-v2\n')
        found = self.json(cpu.Show)
        self.assertEqual({}, found['can_differ'])
        self.assertEqual(
            ['ibpb', 'amd-ssbd'],
            [one['name'] for one in found['mitigations']['missing']])
        self.assertEqual(
            '[libvirt] cpu_model_extra_flags = ibpb, amd-ssbd',
            found['mitigations']['nova_conf'])

    def test_mode_none(self):
        self.configure('[kvm_ext]\nvirt_type = kvm\ncpu_mode = none\n')
        self.assertEqual(2, len(self.json(cpu.Show)['mitigations']['missing']))

    def test_emulated(self):
        found = self.json(cpu.Show)
        self.assertIsNone(found['mitigations'])
        self.assertEqual(['cmp_legacy', 'invtsc'], list(found['can_differ']))

    def test_for_people(self):
        for text in ('', 'cpu_mode = custom\ncpu_model = x86-64-v3\n'):
            self.configure(f'[kvm_ext]\nvirt_type = kvm\n{text}')
            code, stdout, stderr = self.end(cpu.Show)
            self.assertEqual(0, code, stderr)
            self.assertLessEqual(max(map(len, stdout.splitlines())), 80)
            if text:
                self.assertIn('ibpb (Spectre v2, CVE-2017-5715)', stdout)
                self.assertIn('cpu_model_extra_flags = ibpb', stdout)
            else:
                self.assertIn('invtsc: libvirt leaves it out', stdout)
                self.assertIn('nothing that this host has', stdout)


class ModelListTestCase(CPUCommandTestCase):

    def test_list(self):
        rows = {row['name']: row for row in self.json(cpu.ModelList)}
        self.assertEqual(53 + 4, len(rows))
        self.assertEqual(
            {'name': 'Nehalem', 'usable': 'yes', 'vendor': 'Intel',
             'deprecated': False, 'missing': []}, rows['Nehalem'])
        self.assertEqual(
            ['hle', 'invpcid', 'pcid', 'rtm', 'tsc-deadline', 'x2apic'],
            rows['Haswell']['missing'])
        self.assertEqual(5, len(rows['x86-64-v4']['missing']))
        # Not in this map, so nothing is known of what it lacks.
        self.assertIsNone(rows['Snowridge']['missing'])

    def test_usable(self):
        rows = self.json(cpu.ModelList, '--usable')
        self.assertEqual(18 + 3, len(rows))
        self.assertEqual({'yes'}, {row['usable'] for row in rows})

    def test_for_people(self):
        _, stdout, _ = self.end(cpu.ModelList)
        self.assertIn('hle, invpcid, pcid', stdout)

    def test_nothing_told(self):
        self.connection.documents['qemu'] = documents.NO_CPU
        rows = self.json(cpu.ModelList)
        self.assertEqual({('unknown', None)},
                         {(row['usable'], row['missing']) for row in rows})


class CompareTestCase(CPUCommandTestCase):

    def write(self, text: str) -> str:
        directory = self.useFixture(fixtures.TempDir()).path
        path = os.path.join(directory, 'cpu.xml')
        with open(path, 'w') as f:
            f.write(text)
        return path

    def incompatible(self) -> None:
        self.connection.answer = LibvirtError(
            libvirt.VIR_ERR_CPU_INCOMPATIBLE,
            'the CPU is incompatible with host CPU: features: pcid')

    def test_domain(self):
        found = self.json(cpu.Compare, 'one')
        self.assertEqual(('yes', [], None), (
            found['possible'], found['missing'], found['libvirt']))
        [(kind, xml)] = self.connection.compared
        self.assertEqual('qemu', kind)
        self.assertIn('<model>Nehalem</model>', xml)

    def test_file(self):
        self.incompatible()
        found = self.json(cpu.Compare, self.write(LIVE.format('Haswell')),
                          code=2)
        self.assertEqual('no', found['possible'])
        self.assertIn('pcid', found['missing'])
        self.assertIn('incompatible', found['libvirt'])

    def test_libvirt_has_the_last_word(self):
        self.incompatible()
        found = self.json(cpu.Compare, 'one', code=2)
        self.assertEqual(('no', []), (found['possible'], found['missing']))

    def test_libvirt_has_no_word(self):
        self.connection.answer = LibvirtError(
            libvirt.VIR_ERR_NO_SUPPORT, 'too old')
        self.assertEqual('no', self.json(
            cpu.Compare, self.write(LIVE.format('Haswell')),
            code=2)['possible'])

    def test_cannot_be_told(self):
        path = self.write("<domain type='kvm'><cpu mode='host-passthrough'/>"
                          "</domain>")
        found = self.json(cpu.Compare, path, code=3)
        self.assertEqual(('unknown', 'kvm'),
                         (found['possible'], found['virt_type']))
        self.assertEqual([], self.connection.compared)

    def test_for_people(self):
        self.incompatible()
        code, stdout, _ = self.end(
            cpu.Compare, self.write(LIVE.format('Haswell')))
        self.assertEqual(2, code)
        self.assertIn('hle, invpcid, pcid', stdout)

    def refused(self, name: str) -> str:
        code, stdout, stderr = self.end(cpu.Compare, name)
        self.assertEqual((3, ''), (code, stdout))
        self.assertEqual(1, stderr.count('\n'))
        self.assertTrue(stderr[:-1].isprintable())
        return stderr

    def test_hostile_files(self):
        for text in ('', 'x', '<cpu', '<x/>',
                     '<cpu>' * 100000, '<!DOCTYPE x><cpu/>',
                     '<cpu>' + ' ' * (5 << 20) + '</cpu>'):
            self.refused(self.write(text))

    def test_what_is_odd_is_not_known(self):
        for text in ('<cpu mode="no"/>', '<cpu><model>\x9b31m</model></cpu>',
                     '<cpu match="exact"><model>Nehalem</model>'
                     '<feature policy="wish" name="aes"/></cpu>',
                     '<cpu match="exact"><model>Nehalem</model>'
                     '<feature policy="require" name="a;b"/></cpu>'):
            code, stdout, stderr = self.end(cpu.Compare, self.write(text))
            self.assertEqual(3, code, stdout)
            self.assertIn('does not understand', stdout)
            self.assertIn('is not understood', stderr)
            self.assertTrue(stderr.replace('\n', '').isprintable())

    def test_no_file(self):
        self.assertIn('no such domain', self.refused('two'))
        self.assertIn('cannot be read', self.refused('/no/such/file'))
        self.assertIn('not a regular file', self.refused('/dev/null'))
        with tempfile.TemporaryDirectory() as directory:
            pipe = os.path.join(directory, 'pipe')
            os.mkfifo(pipe)
            self.assertIn('not a regular file', self.refused(pipe))
            self.refused(directory)
