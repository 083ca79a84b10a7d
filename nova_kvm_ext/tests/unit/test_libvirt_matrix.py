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
"""What tools/run-libvirt-matrix reads, counts and prints.

On a made-up libvirt; the real ones are the tool's own.
"""

import contextlib
import io
import json
import pathlib
import tempfile
from typing import Any
from unittest import mock

from oslotest import base

from nova_kvm_ext.tests.libvirt_matrix import __main__ as command
from nova_kvm_ext.tests.libvirt_matrix import documents
from nova_kvm_ext.tests.libvirt_matrix import live
from nova_kvm_ext.tests.libvirt_matrix import report
from nova_kvm_ext.tests.libvirt_matrix import sources
from nova_kvm_ext.tests.libvirt_matrix import verdicts

_TESTS = """
#define DO_TEST_COMPARE(arch, host, cpu, result) \\
    DO_TEST(arch, cpuTestCompare, host, cpu, NULL, 0, NULL, 0, result)
    DO_TEST_COMPARE(VIR_ARCH_X86_64, "host", "fits", VIR_CPU_COMPARE_SUPERSET);
    DO_TEST_COMPARE(VIR_ARCH_X86_64, "host", "more",
                    VIR_CPU_COMPARE_INCOMPATIBLE);
    DO_TEST_UPDATE(VIR_ARCH_X86_64, "host", "fits", VIR_CPU_COMPARE_IDENTICAL);
    DO_TEST_BASELINE(VIR_ARCH_X86_64, "two", 0, 0);
    DO_TEST_BASELINE(VIR_ARCH_X86_64, "none", 0, -1);
"""
_FILES = {
    'tests/cputest.c': _TESTS,
    'tests/cputestdata/x86_64-host.xml':
        "<cpu><arch>x86_64</arch><model>small</model>"
        "<feature name='avx'/></cpu>",
    'tests/cputestdata/x86_64-fits.xml':
        "<cpu match='exact'><model>small</model></cpu>",
    'tests/cputestdata/x86_64-more.xml':
        "<cpu match='exact'><model>small</model>"
        "<feature name='avx2' policy='require'/></cpu>",
    'tests/cputestdata/x86_64-host+fits.xml':
        "<cpu match='exact'><model>small</model>"
        "<feature name='avx' policy='require'/></cpu>",
    'tests/cputestdata/x86_64-baseline-two.xml':
        "<cpuTest><cpu><arch>x86_64</arch><model>small</model></cpu>"
        "<cpu><arch>x86_64</arch><model>small</model>"
        "<feature name='avx'/></cpu></cpuTest>",
    'tests/cputestdata/x86_64-baseline-two-result.xml':
        "<cpu match='exact'><model>small</model></cpu>",
    'tests/domaincapsdata/qemu.x86_64.xml':
        "<domainCapabilities><domain>kvm</domain><arch>x86_64</arch><cpu>"
        "<mode name='host-model' supported='yes'><model>small</model>"
        "</mode><mode name='custom' supported='yes'>"
        "<model usable='yes'>small</model></mode></cpu>"
        "</domainCapabilities>",
    'src/qemu/qemu_capabilities.c': 'virQEMUCapsIsCPUUsable(',
    'src/cpu_map/x86_small.xml':
        "<cpus><model name='small'><feature name='sse'/></model></cpus>",
    'src/cpu_map/x86_features.xml':
        "<cpus><feature name='sse'><cpuid eax_in='1' edx='1'/></feature>"
        "<feature name='avx'><cpuid eax_in='1' ecx='1'/></feature>"
        "<feature name='avx2'><cpuid eax_in='7' ebx='1'/></feature></cpus>",
}


def _verdict(ours, theirs, name='a', kind='compare'):
    return verdicts.Verdict('11.3.0', kind, name, ours, theirs, 'because')


class SourceTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = pathlib.Path(directory.name) / 'libvirt-11.3.0'
        for name, text in _FILES.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_text(text)

    def _run(self, *arguments):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), \
                contextlib.redirect_stderr(io.StringIO()):
            code = command.main(
                ['--only', 'sources', '--source', str(self.path),
                 *arguments])
        return code, out.getvalue()

    def test_every_row_is_asked(self):
        found = {(v.kind, v.name): (v.ours, v.theirs)
                 for v in documents.Source(self.path).judge()}
        self.assertEqual({
            ('cputest compare', 'x86_64 host/fits'): (True, True),
            ('cputest compare', 'x86_64 host/more'): (False, False),
            ('cputest compare', 'x86_64 host/host+fits'): (True, True),
            ('cputest baseline', 'x86_64 baseline-two-result on 0'):
                (True, True),
            ('cputest baseline', 'x86_64 baseline-two-result on 1'):
                (True, True)},
            {key: both for key, both in found.items()
             if key[0].startswith('cputest')})
        self.assertEqual((True, True), found[
            'domaincaps model', 'qemu.x86_64 small compare'])
        self.assertEqual((True, True), found[
            'domaincaps host-model', 'qemu.x86_64'])

    def test_what_libvirt_does_not_trust_is_not_asked(self):
        (self.path / 'src/qemu/qemu_capabilities.c').write_text('')
        names = [v.name for v in documents.Source(self.path).judge()]
        self.assertIn('qemu.x86_64 small check', names)
        self.assertNotIn('qemu.x86_64 small compare', names)

    def test_no_source(self):
        (self.path / 'tests/cputest.c').unlink()
        e = self.assertRaises(sources.Unavailable, documents.Source, self.path)
        self.assertIn(str(self.path), str(e))

    def test_all_agrees(self):
        code, said = self._run()
        self.assertEqual(0, code, said)
        self.assertIn('libvirt 11.3.0, its source: 7 documents', said)
        self.assertLessEqual(max(map(len, said.splitlines())), 80)

    def test_one_differs(self):
        (self.path / 'tests/cputest.c').write_text(
            _TESTS.replace('INCOMPATIBLE', 'IDENTICAL'))
        code, said = self._run()
        self.assertEqual(1, code)
        self.assertIn('we say no, libvirt yes', said)
        self.assertIn('x86_64 host/more', said)
        code, said = self._run('-f', 'json')
        self.assertEqual(1, code)
        [bed] = json.loads(said)
        self.assertEqual(['x86_64 host/more'],
                         [v['name'] for v in bed['differ']])

    def test_nothing_there(self):
        self.path = self.path.parent
        code, said = self._run()
        self.assertEqual(2, code)
        self.assertIn('nothing', said)


def _captured(number, **starts):
    """What one root said; starts are answers of inside.py by guest."""
    return {
        'cpu_map': {'x86_small.xml': _FILES['src/cpu_map/x86_small.xml'],
                    'x86_f.xml': _FILES['src/cpu_map/x86_features.xml']},
        'own': {
            'libvirt': number, 'qemu': 10000002, 'documents': {
                'kvm': {'pc': None},
                'qemu': {'pc': _FILES['tests/domaincapsdata/qemu.x86_64.xml'],
                         'q35': None}},
            'compared': {'kvm': {}, 'qemu': {'more': {
                'asked': _FILES['tests/cputestdata/x86_64-more.xml'],
                'answer': False, 'words': 'incompatible with host CPU'}}},
            'started': {'kvm': {}, 'qemu': starts}},
        'others': {'started': {'qemu': {}}}}


_LIVE: dict[str, Any] = {
    'asked': "<cpu mode='custom'><model>small</model></cpu>",
    'live': "<cpu mode='custom' match='exact' check='full'>"
            "<model>small</model></cpu>", 'words': '',
    'answer_before': True, 'answer': True, 'said': ''}
_NOT_FOR_ITS_CPU = _LIVE | {'live': None, 'words': 'qemu: no memory'}
_REFUSED = _LIVE | {'live': None, 'words': 'CPU is incompatible with host CPU'}


class LiveTestCase(base.BaseTestCase):

    def judge(self, **starts):
        [bed] = live.judge({'trixie': _captured(11003000, **starts)})
        return bed

    def test_what_starts(self):
        bed = self.judge(small=_LIVE)
        self.assertEqual('libvirt 11.3.0 with QEMU 10.0.2', bed.name)
        self.assertEqual((2, 1), (bed.documents, bed.started))
        self.assertEqual(['there are no guests of type kvm'], bed.notes)
        self.assertEqual({
            ('live self (qemu)', 'small'): verdicts.AGREE,
            ('start model (qemu)', 'small'): verdicts.AGREE,
            ('document (qemu)', 'more'): verdicts.AGREE},
            {(v.kind, v.name): v.outcome for v in bed.judged})

    def test_a_model_that_libvirt_refuses(self):
        bed = self.judge(small=_REFUSED)
        self.assertEqual({'small'}, {v.name for v in bed.judged
                                     if v.outcome == verdicts.DIFFER})

    def test_a_guest_that_gets_less(self):
        bed = self.judge(small=_LIVE | {'live': _LIVE['live'].replace(
            '</cpu>', '<feature policy="disable" name="sse"/></cpu>')})
        self.assertIn('start model, gets less (qemu)',
                      {v.kind for v in bed.judged})

    def test_what_fails_for_another_reason_is_no_verdict(self):
        bed = self.judge(small=_NOT_FOR_ITS_CPU)
        self.assertEqual(['more'], [v.name for v in bed.judged])
        self.assertIn('another reason', bed.notes[-1])
        self.assertIn('no memory', bed.notes[-1])

    def test_guests_of_another_libvirt(self):
        found = {'trixie': _captured(11003000, small=_LIVE),
                 'sid': _captured(12008000)}
        more = _LIVE | {'live': None, 'words': _REFUSED['words'],
                        'asked': _FILES['tests/cputestdata/x86_64-more.xml']}
        found['sid']['others']['started']['qemu'] = {
            'trixie small': _LIVE, 'trixie more': more}
        _, bed = live.judge(found)
        self.assertEqual({'small': (True, True), 'more': (False, False)}, {
            v.name: (v.ours, v.theirs) for v in bed.judged
            if v.kind == 'live from 11.3.0 (qemu)'})

    def test_each_gets_the_guests_of_the_others(self):
        found = {'trixie': _captured(11003000, small=_LIVE, other=_REFUSED,
                                     **{'small-v2': _LIVE}),
                 'sid': _captured(12008000, small=_LIVE)}
        self.assertEqual(
            {'qemu': {'trixie small': _LIVE['live']}, 'kvm': {}},
            live._guests_of_others('sid', found))


class VerdictTestCase(base.BaseTestCase):

    def test_outcomes(self):
        for ours, theirs, expected in (
                (True, True, verdicts.AGREE), (False, False, verdicts.AGREE),
                (True, False, verdicts.DIFFER),
                (False, True, verdicts.DIFFER),
                (None, True, verdicts.UNKNOWN),
                (None, False, verdicts.UNKNOWN),
                # libvirt gives an error: it does not start there either.
                (None, None, verdicts.AGREE), (False, None, verdicts.AGREE),
                (True, None, verdicts.DIFFER)):
            self.assertEqual(expected, _verdict(ours, theirs).outcome)

    def test_exceptions(self):
        meant = verdicts.Exception_('compare', 'a', 'we know better')
        wrong, right = _verdict(True, False), _verdict(True, True)
        self.assertEqual(verdicts.EXPECTED,
                         verdicts.outcome(wrong, [meant]))
        self.assertEqual(verdicts.AGREE, verdicts.outcome(right, [meant]))
        self.assertEqual(verdicts.DIFFER, verdicts.outcome(
            _verdict(True, False, name='b'), [meant]))
        self.assertEqual([], verdicts.unused([wrong, right], [meant]))
        self.assertEqual([meant], verdicts.unused([right], [meant]))
        # What was not looked at is no reason to take an exception away.
        self.assertEqual([], verdicts.unused([], [meant]))

    def test_an_exception_without_use_fails(self):
        bed = report.Bed('libvirt', judged=[_verdict(True, True)])
        self.assertEqual(0, report.exit_code([bed]))
        with mock.patch('nova_kvm_ext.tests.libvirt_matrix.exceptions.ALL',
                        (verdicts.Exception_('compare', 'a', 'because'),)):
            self.assertEqual(1, report.exit_code([bed]))
            self.assertIn('no longer differs', report.details([bed]))

    def test_one_bed_missing(self):
        bed = report.Bed('libvirt', judged=[_verdict(True, True)])
        self.assertEqual(2, report.exit_code(
            [bed, report.Bed('other', missing=['no network'])]))
