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

import dataclasses
import os
from typing import Any

from oslotest import base

from nova_kvm_ext.boot import report
from nova_kvm_ext.boot import verify
from nova_kvm_ext.cpu import cpu_map
import nova_kvm_ext.tests
from nova_kvm_ext.vhost import proof

# A guest of `guest boot --nic bridge=... --vcpus 2` while it ran.
RUNNING = os.path.join(
    os.path.dirname(nova_kvm_ext.tests.__file__), 'data',
    'running-domain-libvirt-9.0-qemu-7.2-tcg.xml')
MAC = '52:54:00:77:6e:e4'

PASS, FAIL, SKIP = verify.Result.PASS, verify.Result.FAIL, verify.Result.SKIP

# sse4.2 and osxsave are told by leaf 1, avx2 by leaf 7; rdctl-no by none.
KNOWN = cpu_map.CPUMap(
    features={
        'sse4.2': (cpu_map.Bits((1, 0), (0, 0, 1 << 20, 0)),),
        'osxsave': (cpu_map.Bits((1, 0), (0, 0, 1 << 27, 0)),),
        'avx2': (cpu_map.Bits((7, 0), (0, 1 << 5, 0, 0)),),
    },
    models={'Nehalem': frozenset({'sse4.2'}),
            'Haswell': frozenset({'sse4.2', 'avx2', 'osxsave'})},
    signatures={'Nehalem': frozenset({(6, 26), (6, 30)}),
                'Unsigned': frozenset()})
NEHALEM_EAX, PENRYN_EAX = 0x106a3, 0x10676
# What an escape sequence may do to a terminal, and a line that is no check.
HOSTILE = '\x1b]0;owned\x07\x1b[2J\r\nPASS     all is well \u202e' + 'x' * 9999
HUGE = 10 ** 18 - 1

HOST_MODEL = """
<mode name='host-model' supported='yes'>
  <model fallback='forbid'>Nehalem</model>
  <feature policy='require' name='avx2'/>
  <feature policy='disable' name='hle'/>
</mode>
"""


def running_xml() -> str:
    with open(RUNNING) as f:
        return f.read()


def domain(**changes) -> verify.Domain:
    return dataclasses.replace(
        verify.Domain.from_xml(running_xml()), **changes)


def seen(**changes) -> report.GuestReport:
    """What the guest of the captured XML said."""
    return dataclasses.replace(
        report.GuestReport(
            kernel='6.1.0-56-cloud-amd64', cpus=2,
            cpu_vendor='GenuineIntel',
            cpu_model_name='Intel Core i7 9xx (Nehalem Class Core i7)',
            cpu_flags=frozenset({'fpu', 'sse4_2'}), memory_kib=223376,
            nics=(report.Nic('eth0', MAC, 'virtio_net'),),
            disks={'vda': 22020096},
            cpuid={(1, 0): (NEHALEM_EAX, 0x800, 1 << 20, 0x78bfbfd),
                   (7, 0): (0, 0, 0, 0)},
            agent='started', vulnerabilities={
                'meltdown': 'Not affected', 'mds': 'Mitigation: Clear'}),
        **changes)


class VerifyTestCase(base.BaseTestCase):

    def assertCheck(self, result: verify.Result, check: verify.Check,
                    *words: str):
        self.assertEqual(result, check.result, str(check))
        for word in words:
            self.assertIn(word, check.details)
        self.assertTrue(check.name)
        self.assertTrue(check.details.isprintable(), ascii(check.details))
        self.assertLess(len(check.details), 500)


class FromXMLTestCase(VerifyTestCase):

    def test_a_running_domain(self):
        found = verify.Domain.from_xml(running_xml())
        cpu = found.cpu or ''
        self.assertTrue(cpu.startswith('<cpu mode="custom"'), cpu)
        self.assertTrue(cpu.endswith('</cpu>'), cpu)
        self.assertEqual(
            verify.Domain(
                virt_type='qemu', arch='x86_64', machine='pc-i440fx-7.2',
                emulator='/usr/bin/qemu-system-x86_64', vcpus=2,
                memory_kib=262144, cpu=cpu, cpu_mode='custom',
                cpu_model='Nehalem', agent_channel=True,
                interfaces=(verify.Interface(
                    mac=MAC, net_type='ethernet', model='virtio',
                    driver='qemu'),)),
            found)

    def test_the_least(self):
        self.assertEqual(
            verify.Domain(
                virt_type='kvm', arch='x86_64', machine='q35', emulator='',
                vcpus=1, memory_kib=1024, cpu=None, cpu_mode='none',
                cpu_model=None, agent_channel=False, interfaces=()),
            verify.Domain.from_xml(
                "<domain type='kvm'><memory unit='KiB'>1024</memory>"
                "<vcpu>1</vcpu>"
                "<os><type arch='x86_64' machine='q35'>hvm</type></os>"
                "<devices/></domain>"))

    def test_a_cpu_without_mode_or_model(self):
        found = verify.Domain.from_xml(
            "<domain><os><type>hvm</type></os>"
            "<cpu><topology sockets='1'/></cpu></domain>")
        self.assertEqual(('none', None), (found.cpu_mode, found.cpu_model))
        self.assertEqual({}, verify.promised_features(found, None, KNOWN))

    def test_another_channel_is_no_agents(self):
        xml = running_xml().replace('org.qemu.guest_agent.0',
                                    'com.redhat.spice.0')
        self.assertFalse(verify.Domain.from_xml(xml).agent_channel)

    def test_interfaces(self):
        xml = running_xml().replace(
            "<interface type='ethernet'>",
            "<interface type='bridge'><mac address='52:54:00:00:00:01'/>"
            "</interface><interface type='ethernet'>")
        self.assertEqual(
            (verify.Interface('52:54:00:00:00:01', 'bridge', '', None),
             verify.Interface(MAC, 'ethernet', 'virtio', 'qemu')),
            verify.Domain.from_xml(xml).interfaces)


class PromisedFeaturesTestCase(base.BaseTestCase):

    def promised(self, cpu: str, mode: str = 'custom', host_model=HOST_MODEL,
                 known=KNOWN) -> dict[str, bool]:
        return verify.promised_features(
            domain(cpu=cpu, cpu_mode=mode), host_model, known)

    def test_of_the_running_domain(self):
        self.assertEqual(
            {'sse4.2': True, 'hypervisor': True},
            verify.promised_features(domain(), HOST_MODEL, KNOWN))

    def test_policies(self):
        self.assertEqual(
            {'a': True, 'b': True, 'c': False, 'd': False, 'e': True},
            self.promised(
                "<cpu><feature policy='require' name='a'/>"
                "<feature policy='force' name='b'/>"
                "<feature policy='disable' name='c'/>"
                "<feature policy='forbid' name='d'/>"
                "<feature name='e'/></cpu>"))

    def test_the_domain_takes_from_its_model(self):
        self.assertEqual(
            {'sse4.2': False},
            self.promised("<cpu><model>Nehalem</model>"
                          "<feature policy='disable' name='sse4.2'/></cpu>"))

    def test_unknown_model_and_no_map(self):
        for known in (KNOWN, None):
            self.assertEqual({}, self.promised(
                '<cpu><model>NoSuch</model></cpu>', known=known))

    def test_modes_without_features_promise_host_model(self):
        for mode in ('host-passthrough', 'maximum'):
            # What host-model leaves out is not excluded from them.
            self.assertEqual({'sse4.2': True, 'avx2': True},
                             self.promised('<cpu/>', mode), mode)
            self.assertEqual(
                {'sse4.2': True, 'avx2': False},
                self.promised("<cpu><feature policy='disable' name='avx2'/>"
                              "</cpu>", mode))
            self.assertEqual(
                {}, self.promised('<cpu/>', mode, host_model=None))

    def test_no_cpu(self):
        self.assertEqual({}, self.promised(None, 'none'))


class CPUModelTestCase(VerifyTestCase):

    def check(self, known=KNOWN, cpu_model='Nehalem', **changes):
        return verify.check_cpu_model(
            domain(cpu_model=cpu_model), seen(**changes), known)

    def test_pass(self):
        self.assertCheck(PASS, self.check(), 'custom Nehalem',
                         'the guest sees Intel Core i7 9xx',
                         'family 6, model 26')

    def test_fail(self):
        self.assertCheck(
            FAIL, self.check(cpuid={(1, 0): (PENRYN_EAX, 0, 0, 0)}),
            'family 6, model 23')

    def test_a_name_is_not_believed(self):
        self.assertCheck(FAIL, self.check(
            cpu_model_name='Nehalem', cpuid={(1, 0): (PENRYN_EAX, 0, 0, 0)}))

    def test_no_model_named(self):
        self.assertCheck(SKIP, self.check(cpu_model=None),
                         'custom names no model')
        self.assertCheck(SKIP, verify.check_cpu_model(
            domain(cpu=None, cpu_mode='none', cpu_model=None), seen(),
            KNOWN), 'none names no model')

    def test_nothing_to_compare(self):
        for check in (self.check(known=None), self.check(cpuid={}),
                      self.check(cpu_model='Unsigned'),
                      self.check(cpu_model='NoSuch')):
            self.assertCheck(SKIP, check, 'no signature to compare')

    def test_long_name(self):
        for length, shown in ((80, 'x' * 80), (81, 'x' * 77 + '...')):
            self.assertTrue(self.check(
                cpu_model_name='x' * length,
                cpuid={}).details.endswith(f'the guest sees {shown}'))

    def test_hostile_name(self):
        cases: list[dict[str, Any]] = [
            {}, {'cpuid': {}}, {'cpu_model': None}]
        for changes in cases:
            self.assertCheck(
                SKIP if changes else PASS,
                self.check(cpu_model_name=HOSTILE, **changes),
                ']0;owned [2J PASS all is well')


class CPUFlagsTestCase(VerifyTestCase):

    def check(self, promised, known=KNOWN, **changes):
        return verify.check_cpu_flags(
            domain(), promised, seen(**changes), known)

    def test_pass(self):
        self.assertCheck(PASS, self.check({'sse4.2': True, 'avx2': False}),
                         '1 promised, 1 excluded, 2 compared')

    def test_missing(self):
        self.assertCheck(FAIL, self.check({'sse4.2': True, 'avx2': True}),
                         '2 compared', 'avx2 is missing')

    def test_there_though_excluded(self):
        check = self.check({'sse4.2': False, 'avx2': True})
        self.assertCheck(FAIL, check)
        self.assertTrue(check.details.endswith(
            '; avx2 is missing, sse4.2 is there'), check.details)

    def test_what_the_guests_kernel_decides_is_not_compared(self):
        self.assertCheck(PASS, self.check({'sse4.2': True, 'osxsave': True}),
                         '1 compared')

    def test_what_cannot_be_told_is_not_compared(self):
        self.assertCheck(SKIP, self.check({'rdctl-no': True}))
        self.assertCheck(SKIP, self.check({'sse4.2': True}, known=None))
        self.assertCheck(SKIP, self.check(
            {'avx2': True}, cpuid={(1, 0): (0, 0, 0, 0)}))
        self.assertCheck(SKIP, self.check({}), 'custom promises no flag')

    def test_without_cpuid_linux_names_count(self):
        for known in (KNOWN, None):
            self.assertCheck(PASS, self.check(
                {'sse4.2': True, 'hypervisor': True}, known, cpuid={}),
                '1 compared')
            self.assertCheck(FAIL, self.check(
                {'avx2': True}, known, cpuid={}), 'avx2 is missing')
            self.assertCheck(FAIL, self.check(
                {'sse4.2': False}, known, cpuid={}), 'sse4.2 is there')

    def test_a_guest_that_tells_nothing(self):
        self.assertCheck(SKIP, self.check(
            {'sse4.2': True}, cpuid={}, cpu_flags=frozenset()))


class NumbersTestCase(VerifyTestCase):

    def test_vcpus(self):
        self.assertCheck(PASS, verify.check_vcpus(domain(), seen()),
                         '2 promised, 2 seen')
        for number in (0, 1, 3, HUGE):
            self.assertCheck(
                FAIL, verify.check_vcpus(domain(), seen(cpus=number)),
                f'{number} seen')

    def test_memory(self):
        for promised, got, result in (
                (262144, 223376, PASS), (262144, 262144, PASS),
                (262144, 262145, FAIL), (262144, 131072, FAIL),
                (1000, 700, PASS), (1000, 699, FAIL),
                (262144, 0, FAIL), (262144, HUGE, FAIL)):
            self.assertCheck(
                result, verify.check_memory(domain(memory_kib=promised),
                                            seen(memory_kib=got)),
                f'{promised // 1024} MiB promised, {got // 1024} MiB')


class AgentTestCase(VerifyTestCase):

    def check(self, channel: bool, wanted: bool, answer: str | None = None,
              has_agent: bool | None = None):
        return verify.check_agent(
            domain(agent_channel=channel), wanted, answer, has_agent)

    def test_a_test_guest_without_an_agent(self):
        for channel in (True, False):
            self.assertCheck(verify.Result.SKIP,
                             self.check(channel, channel, has_agent=False),
                             'install qemu-guest-agent')
        self.assertCheck(FAIL, self.check(False, True, has_agent=False),
                         'has no channel')

    def test_pass(self):
        self.assertCheck(PASS, self.check(True, True, 'answers to ping'),
                         'answers to ping')
        self.assertCheck(PASS, self.check(False, False), 'as the image asks')

    def test_fail(self):
        self.assertCheck(FAIL, self.check(True, True), 'does not answer')
        self.assertCheck(FAIL, self.check(True, False, 'answers to ping'),
                         'has a channel, the image asks for none')
        self.assertCheck(FAIL, self.check(False, True),
                         'has no channel, the image asks for one')


class NicsTestCase(VerifyTestCase):

    def check(self, *cards: report.Nic, model: str = 'virtio'):
        found = domain(interfaces=(
            verify.Interface(MAC, 'ethernet', model, 'qemu'),))
        check, = verify.check_nics(found, cards)
        return check

    def test_pass(self):
        self.assertCheck(
            PASS, self.check(report.Nic('eth0', MAC, 'virtio_net')),
            f'{MAC}: virtio on ethernet, driver qemu',
            'in the guest eth0 with driver virtio_net')

    def test_case_of_a_mac_means_nothing(self):
        self.assertCheck(PASS, self.check(
            report.Nic('eth0', MAC.upper(), 'virtio_net')))
        check, = verify.check_nics(
            domain(interfaces=(verify.Interface(
                MAC.upper(), 'ethernet', 'virtio', None),)), seen().nics)
        self.assertCheck(PASS, check)

    def test_another_mac(self):
        self.assertCheck(FAIL, self.check(
            report.Nic('eth0', '52:54:00:77:6e:e5', 'virtio_net'),
            report.Nic('eth1', '', 'virtio_net')),
            'the guest does not have it')

    def test_no_card(self):
        self.assertCheck(FAIL, self.check(), 'the guest does not have it')

    def test_another_driver(self):
        for driver in ('', 'e1000', HOSTILE):
            card = report.Nic('eth0', MAC, driver)
            self.assertCheck(FAIL, self.check(card))
            self.assertCheck(PASS, self.check(card, model='e1000'))

    def test_hostile_card(self):
        self.assertCheck(PASS, self.check(
            report.Nic(HOSTILE, MAC, 'virtio_net'),
            report.Nic('x', HOSTILE, HOSTILE)), ']0;owned')

    def test_a_guest_that_does_not_tell(self):
        check, = verify.check_nics(domain(), None)
        self.assertCheck(SKIP, check, MAC)

    def test_no_driver_in_the_xml(self):
        found = domain(interfaces=(
            verify.Interface(MAC, 'bridge', 'virtio', None),))
        check, = verify.check_nics(found, ())
        self.assertCheck(FAIL, check, 'driver left to libvirt')

    def test_each_interface_has_its_check(self):
        other = verify.Interface('52:54:00:00:00:01', 'bridge', 'e1000', None)
        found = domain(interfaces=domain().interfaces + (other,))
        self.assertEqual([PASS, FAIL], [
            check.result for check in verify.check_nics(found, seen().nics)])
        self.assertEqual(
            [], verify.check_nics(domain(interfaces=()), seen().nics))


class VulnerabilitiesTestCase(VerifyTestCase):

    def check(self, **texts):
        return verify.check_vulnerabilities(seen(vulnerabilities=texts))

    def test_all_closed(self):
        self.assertCheck(
            PASS, self.check(meltdown='Not affected', mds='Mitigation: PTI'),
            'of 2', '1 mitigated, 0 open')

    def test_what_is_open_is_no_failure(self):
        self.assertCheck(
            SKIP, self.check(mds='Vulnerable: no microcode; SMT vulnerable',
                             meltdown='Mitigation: PTI; SMT vulnerable'),
            '1 mitigated, 1 open: mds')
        for count, more in ((8, 'f7'), (9, 'f7 and 1 more')):
            self.assertTrue(self.check(**{
                f'f{n}': 'Vulnerable' for n in range(count)
            }).details.endswith(f'f6, {more}'))

    def test_a_guest_that_does_not_tell(self):
        self.assertCheck(SKIP, self.check(), 'does not tell')

    def test_hostile(self):
        self.assertCheck(SKIP, verify.check_vulnerabilities(
            report.parse('\n'.join((
                '@nke begin=1', *(f'@nke vulnerability.{"f" * 37}{n:03}='
                                  f'Vulnerable{HOSTILE[:20]!a}'
                                  for n in range(100)),
                '@nke end lines=100')))), 'of 64', 'and 56 more')


class CheckAllTestCase(base.BaseTestCase):

    def results(self, seen_, found=None, answer='answers to ping'):
        return [(check.name, check.result) for check in verify.check_all(
            found or domain(), True, answer, seen_, HOST_MODEL, KNOWN)]

    def test_all_is_well(self):
        self.assertEqual(
            [('cpu model', PASS), ('cpu flags', PASS), ('cpu flaws', PASS),
             ('vcpus', PASS), ('memory', PASS), ('guest agent', PASS),
             ('nic', PASS)], self.results(seen()))

    def test_a_silent_guest(self):
        self.assertEqual([('guest agent', FAIL), ('nic', SKIP)],
                         self.results(None, answer=None))

    def test_a_bare_domain(self):
        self.assertEqual(
            [('cpu model', SKIP), ('cpu flags', SKIP), ('cpu flaws', PASS),
             ('vcpus', PASS), ('memory', PASS), ('guest agent', PASS)],
            self.results(seen(), domain(cpu=None, cpu_mode='none',
                                        cpu_model=None, interfaces=())))

    def test_the_hosts_model_counts_for_passthrough(self):
        found = domain(cpu="<cpu mode='host-passthrough'/>",
                       cpu_mode='host-passthrough', cpu_model=None)
        self.assertIn(('cpu flags', FAIL), self.results(seen(), found))

    def test_a_report_of_nothing(self):
        checks = verify.check_all(
            domain(), True, None,
            report.parse('@nke begin=1\n@nke end lines=0\n'), None, KNOWN)
        self.assertEqual([SKIP, SKIP, SKIP, FAIL, FAIL, FAIL, FAIL],
                         [check.result for check in checks])


class VhostTestCase(base.BaseTestCase):

    def result(self, promised: bool, uses: bool | None) -> verify.Result:
        nic = proof.Nic(MAC, 'bridge', 'virtio', None, 1, None)
        check, = verify.check_vhost(
            [proof.Verdict(nic, promised, uses, 'so it is')])
        self.assertEqual(('vhost-net', f'{MAC}: so it is'),
                         (check.name, check.details))
        return check.result

    def test_promised(self):
        self.assertEqual(PASS, self.result(True, True))
        self.assertEqual(FAIL, self.result(True, False))

    def test_what_was_not_promised_or_cannot_be_seen(self):
        for promised, uses in ((True, None), (False, None), (False, True),
                               (False, False)):
            self.assertEqual(SKIP, self.result(promised, uses))
