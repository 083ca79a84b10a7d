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

"""Tests of the parser of the test guest's report."""

import unittest

import hypothesis
from hypothesis import strategies

from nova_kvm_ext.boot import report

LINES = (
    'kernel=6.1.0-56-cloud-amd64',
    'cpu.vendor=AuthenticAMD',
    'cpu.model_name=AMD EPYC Processor',
    'cpu.flags=fpu sse4_2 avx2',
    'cpus=2',
    'memory_kib=223376',
    'nic.0.name=eth0',
    'nic.0.mac=52:54:00:12:34:56',
    'nic.0.driver=virtio_net',
    'disk.vda.bytes=22020096',
    'cpuid=7:0:00000000:219c07a9:00000004:ac000000',
    'cpuid=80000001:0:00800f12:00000000:004001f7:2c100800',
    'vulnerability.mds=Mitigation: Clear CPU buffers; SMT = vulnerable',
    'agent=started',
)
ANYTHING = hypothesis.settings(max_examples=300, deadline=None, database=None)


def console(*lines, count=None, newline='\r\n'):
    count = len(lines) if count is None else count
    return newline.join(
        f'@nke {line}'
        for line in ('begin=1', *lines, f'end lines={count}', 'done'))


def replaced(key, value):
    return tuple(f'{key}={value}' if line.startswith(f'{key}=') else line
                 for line in LINES)


class TestParse(unittest.TestCase):

    def parsed(self, text):
        found = report.parse(text)
        self.assertIsNotNone(found)
        return found

    def test_everything_is_read(self):
        self.assertEqual(
            report.GuestReport(
                kernel='6.1.0-56-cloud-amd64',
                cpus=2,
                cpu_vendor='AuthenticAMD',
                cpu_model_name='AMD EPYC Processor',
                cpu_flags=frozenset({'fpu', 'sse4_2', 'avx2'}),
                memory_kib=223376,
                nics=(report.Nic('eth0', '52:54:00:12:34:56', 'virtio_net'),),
                disks={'vda': 22020096},
                cpuid={(7, 0): (0, 0x219c07a9, 4, 0xac000000),
                       (0x80000001, 0): (0x800f12, 0, 0x4001f7, 0x2c100800)},
                agent='started',
                vulnerabilities={
                    'mds': 'Mitigation: Clear CPU buffers; '
                           'SMT = vulnerable'}),
            report.parse(console(*LINES)))

    def test_no_report_yet(self):
        whole = console(*LINES)
        for text in ('', 'SeaBIOS (version 1.16)\r\n', '@nke', '@nke \n',
                     whole[:whole.index('@nke cpus')],
                     whole[:whole.index('@nke end')],
                     whole[whole.index('@nke kernel'):]):
            with self.subTest(text=text[-40:]):
                self.assertIsNone(report.parse(text))

    def test_a_line_lost_or_added_is_noticed(self):
        for count in (len(LINES) - 1, len(LINES) + 1, 10 ** 5):
            with self.subTest(count=count):
                self.assertIsNone(report.parse(console(*LINES, count=count)))

    def test_an_end_without_a_number_is_no_end(self):
        for end in ('end', 'end lines=', 'end lines=-1', 'end lines=13x',
                    'end lines=٣', 'end lines=' + '9' * 5000):
            with self.subTest(end=end[:20]):
                self.assertIsNone(report.parse(
                    console(*LINES).replace(f'end lines={len(LINES)}', end)))

    def test_any_newlines(self):
        for newline in ('\n', '\r\n', '\r\r\n', '\r', '\n\n'):
            with self.subTest(newline=newline):
                self.assertEqual(
                    2, self.parsed(console(*LINES, newline=newline)).cpus)

    def test_other_words_on_the_console(self):
        text = console(*LINES).replace(
            '@nke cpus', '[    3.1] e1000: link=up\r\nfoo=@nke cpus')
        text = f'\x1bc\x1b[?7l\x1b[2J{text}\r\nlogin: '
        self.assertEqual(report.parse(console(*LINES)), report.parse(text))

    def test_freeze_events_are_no_report_lines(self):
        text = console(*LINES).replace(
            '@nke end', '@nke fsfreeze freeze\r\n@nke end')
        self.assertEqual('started', self.parsed(text).agent)

    def test_the_newest_complete_report_wins(self):
        second = console(*replaced('cpus', 4))
        third = console(*replaced('cpus', 8))
        unfinished = third[:third.index('@nke end')]
        self.assertEqual(
            4, self.parsed('\n'.join([console(*LINES), second])).cpus)
        self.assertEqual(
            4, self.parsed('\n'.join([second, unfinished])).cpus)
        self.assertEqual(
            4, self.parsed('\n'.join([unfinished, second])).cpus)

    def test_wrong_types_become_unknown(self):
        found = self.parsed(console(
            'kernel=', 'cpus=two', 'memory_kib=-5', 'nic.x.name=eth0',
            'nic.1.mac=aa', 'disk.vda.bytes=1e9', 'disk./etc.bytes=1',
            'cpuid=7:0:0', 'cpuid=xyz:0:0:0:0:0',
            'cpuid=123456789:0:0:0:0:0', 'frobnicate=1'))
        self.assertEqual(
            report.GuestReport(
                kernel='', cpus=0, cpu_vendor='', cpu_model_name='',
                cpu_flags=frozenset(), memory_kib=0,
                nics=(report.Nic('', 'aa', ''),), disks={'vda': 0}, cpuid={},
                agent=''),
            found)

    def test_numbers_are_bounded(self):
        found = self.parsed(console('cpus=' + '9' * 5000))
        self.assertEqual(0, found.cpus)

    def test_sizes_and_counts_are_bounded(self):
        found = self.parsed(console(
            'kernel=' + 'k' * 5000,
            'cpu.flags=' + 'f' * 6000 + ' g',
            *(f'nic.{n}.name=eth{n}' for n in range(200)),
            *(f'disk.sd{n}.bytes=1' for n in range(200)),
            *(f'vulnerability.f{n}={"v" * 300}' for n in range(80)),
            'vulnerability.../x=Vulnerable', 'vulnerability.=Vulnerable',
            *(f'cpuid={n:x}:0:0:0:0:0' for n in range(540))))
        self.assertEqual(128, len(found.kernel))
        self.assertEqual({'f' * 128, 'g'}, found.cpu_flags)
        self.assertEqual(64, len(found.nics))
        self.assertEqual('eth63', found.nics[-1].name)
        self.assertEqual(64, len(found.disks))
        self.assertEqual(512, len(found.cpuid))
        self.assertEqual(64, len(found.vulnerabilities))
        self.assertEqual({'v' * 256}, {*found.vulnerabilities.values()})

    def test_a_report_without_end_is_dropped(self):
        self.assertIsNone(report.parse(console(
            *(f'key{n}=x' for n in range(2000)))))

    def test_an_endless_console_costs_little(self):
        for noise in ('x', '\n', '@nke k=\n', '@nke begin=1\n', '@nke '):
            with self.subTest(noise=noise):
                noise *= (1 << 20) // len(noise) + 1
                self.assertEqual(
                    2, self.parsed(noise + '\n' + console(*LINES)).cpus)
                # Only the end of a console is looked at.
                self.assertIsNone(
                    report.parse(console(*LINES) + '\n' + noise))

    def test_control_characters_are_dropped(self):
        found = self.parsed(console(
            'cpu.model_name=\x1b[31mEvil\x00\x07\x9b\u202e CPU',
            'agent=sta\x08rted', 'nic.0.name=\x1b]0;x\x07'))
        self.assertEqual('[31mEvil CPU', found.cpu_model_name)
        self.assertEqual('started', found.agent)
        self.assertEqual(']0;x', found.nics[0].name)

    @ANYTHING
    @hypothesis.given(strategies.text())
    def test_no_text_raises(self, text):
        report.parse(text)

    @ANYTHING
    @hypothesis.given(strategies.lists(
        strategies.one_of(
            strategies.sampled_from((*LINES, 'begin=1', 'end lines=1',
                                     'cpuid=', 'nic.0.', 'disk..bytes=',
                                     'vulnerability.mds=\x1b[2J')),
            strategies.text(max_size=20)),
        max_size=30))
    def test_no_report_raises_and_what_it_says_is_printable(self, lines):
        found = report.parse(
            console(*lines, count=sum('=' in line for line in lines)))
        if found:
            self.assertTrue(''.join((
                found.kernel, found.cpu_vendor, found.cpu_model_name,
                found.agent, *found.cpu_flags, *found.disks,
                *found.vulnerabilities, *found.vulnerabilities.values(),
                *(nic.name + nic.mac + nic.driver
                  for nic in found.nics or ()))).isprintable())
