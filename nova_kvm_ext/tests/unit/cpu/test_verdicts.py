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

"""Verdicts that were once wrong, each with what libvirt and QEMU do."""

from typing import Any

from oslotest import base

from nova_kvm_ext.cpu import capabilities
from nova_kvm_ext.cpu import compare
from nova_kvm_ext.cpu import cpu_map
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import levels
from nova_kvm_ext.cpu import reader
from nova_kvm_ext.cpu import traits
from nova_kvm_ext.cpu import unshown
from nova_kvm_ext.cpu import usable

CPU = definition.CPU

_ROME = (
    'lm nx pae apic cx16 pni ssse3 sse4.1 sse4.2 popcnt avx avx2 svm clzero '
    'lahf_lm')
_X2 = 'x2apic hypervisor xsaves cmp_legacy topoext arch-capabilities'
_MODELS = {
    'EPYC-Rome': _ROME, 'EPYC': _ROME.replace(' clzero', ''),
    'qemu64': 'lm nx pae apic cx16 pni svm',
    'Skylake': 'lm nx pae apic cx16 pni avx hle rtm',
    'Nehalem': 'lm nx pae apic cx16 pni', 'cpu64-rhel6': 'lm nx',
    'pentium3': 'pae apic'}
KNOWN = cpu_map.CPUMap(
    {name: () for name in ' '.join((
        *_MODELS.values(), _X2, 'invtsc ht monitor osxsave cmt extapic ibs '
        'ssbd pcid rdctl-no mds-no pschange-mc-no skip-l1dfl-vmentry gds-no '
        'rdseed')).split()},
    {name: frozenset(text.split()) for name, text in _MODELS.items()}, {})


def host(model: str = 'EPYC-Rome', vendor: str = 'AMD',
         features: str = 'x2apic hypervisor xsaves cmp_legacy',
         models: str = '', virt_type: str = 'kvm', extra: str = '',
         known: cpu_map.CPUMap | None = KNOWN) -> usable.Host:
    written = ''.join(
        f"<feature policy='{'disable' if n[0] == '-' else 'require'}' "
        f"name='{n.lstrip('-')}'/>" for n in features.split())
    caps = capabilities.parse(
        f"<domainCapabilities><domain>{virt_type}</domain>"
        f"<arch>x86_64</arch><cpu><mode name='host-passthrough' "
        f"supported='yes'/><mode name='host-model' supported='yes'>"
        f"<model fallback='forbid'>{model}</model><vendor>{vendor}</vendor>"
        f"{extra}{written}</mode><mode name='custom' supported='yes'>"
        f"{models}</mode></cpu></domainCapabilities>")
    return usable.Host(virt_type, caps, known)


def live(model: str, *features: str, vendor: str | None = None,
         more: str = '') -> CPU:
    """The CPU of a running guest."""
    written = ''.join(
        f"<feature policy='{'disable' if n[0] == '-' else 'require'}' "
        f"name='{n.lstrip('-')}'/>" for n in features)
    return CPU.parse(
        f"<cpu mode='custom' match='exact' check='full'>"
        f"<model fallback='forbid'>{model}</model>"
        f"{f'<vendor>{vendor}</vendor>' if vendor else ''}{more}{written}"
        f"</cpu>")


def verdict(cpu: CPU, on: usable.Host, bits: int | None = None
            ) -> compare.Comparison:
    return compare.compare(cpu, on.caps, on.known, bits)


class GuestsAtHomeTestCase(base.BaseTestCase):
    """A guest that runs is not refused where it runs."""

    def test_topoext(self):
        cpu = live('EPYC-Rome', 'x2apic', 'hypervisor', 'topoext',
                   vendor='AMD')
        found = verdict(cpu, host())
        self.assertEqual((True, ('topoext',)), (
            found.possible, found.unshown))
        self.assertIn('host-model does not show topoext', found.reason)
        # Software has none to give.
        self.assertIs(False, verdict(cpu, host(virt_type='qemu')).possible)

    def test_ht_of_a_guest_with_more_than_one_cpu(self):
        for virt_type in ('kvm', 'qemu'):
            self.assertIs(True, verdict(
                live('Nehalem', 'ht'), host(virt_type=virt_type)).possible)

    def test_arch_capabilities_on_amd(self):
        cpu = live('EPYC', 'arch-capabilities', 'rdctl-no', 'mds-no',
                   'pschange-mc-no')
        self.assertIs(True, verdict(cpu, host()).possible)
        self.assertIs(True, verdict(cpu, host(vendor='Hygon')).possible)
        # Intel's host-model shows it where it is there.
        found = verdict(live('Nehalem', 'arch-capabilities'),
                        host('Nehalem', 'Intel'))
        self.assertEqual((False, ('arch-capabilities',)),
                         (found.possible, found.missing))

    def test_what_the_kernel_decides_is_not_known(self):
        found = verdict(live('EPYC', 'gds-no'), host())
        self.assertEqual((None, ('gds-no',)), (found.possible, found.missing))
        self.assertIsNone(compare.judge(found, True).possible)

    def test_what_libvirt_calls_supported(self):
        cpu = live('Nehalem', 'ssbd')
        on = host('Nehalem', 'Intel')
        self.assertIs(False, verdict(cpu, on).possible)
        told = usable.Host('kvm', capabilities.dataclasses.replace(
            on.caps, supported=frozenset({'ssbd'})), KNOWN)
        found = verdict(cpu, told)
        self.assertEqual((True, ('ssbd',)), (found.possible, found.unshown))
        # A new guest does not get it by itself.
        self.assertIn('ssbd', told.available)
        self.assertNotIn('ssbd', told.shown)

    def test_an_older_qemu_gives_only_what_host_model_shows(self):
        for machine, wanted in (
                ('pc-q35-10.1', True), ('pc-i440fx-11.1', True),
                ('pc', True), (None, True), ('pc-q35-rhel9.6.0', True),
                ('pc-q35-10.0', False), ('pc-i440fx-9.2', False)):
            surely, _ = unshown.given(
                ('arch-capabilities',), 'AMD', 'kvm', machine)
            self.assertEqual(wanted, bool(surely), machine)
        for sure, names in (
                (True, ('rdctl-no', 'mds-no', 'pschange-mc-no',
                        'skip-l1dfl-vmentry')),
                (False, ('gds-no', 'rfds-no', 'its-no'))):
            for name in names:
                self.assertEqual(
                    ({name}, set())[::1 if sure else -1],
                    unshown.given((name,), 'Hygon', 'kvm', 'pc-q35-10.1'))
                for vendor, machine in (('AMD', 'pc-q35-10.0'),
                                        ('Intel', 'pc-q35-10.1')):
                    self.assertEqual((set(), set()), unshown.given(
                        (name,), vendor, 'kvm', machine))
        for machine, wanted in (('pc-q35-10.0', True), ('pc-q35-7.2', False)):
            surely, _ = unshown.given(('ht',), 'Intel', 'qemu', machine)
            self.assertEqual(wanted, bool(surely), machine)


class ImpossibleTestCase(base.BaseTestCase):

    def no(self, *args: Any) -> compare.Comparison:
        found = verdict(*args)
        self.assertIs(False, found.possible, str(found))
        return found

    def test_a_model_that_this_qemu_lacks(self):
        on = host(models="<model usable='yes'>qemu64</model>")
        found = self.no(live('cpu64-rhel6'), on)
        self.assertIn('QEMU on this host does not have', found.reason)
        self.assertIn('though libvirt', found.reason)
        # libvirt's comparison does not look at that, its start does.
        self.assertIs(False, compare.judge(found, True).possible)
        # With fallback='allow' libvirt takes another model.
        self.assertIs(True, verdict(CPU('custom', 'cpu64-rhel6'),
                                    on).possible)
        refused = usable.check_model('cpu64-rhel6', on)
        self.assertIn('QEMU on this host does not have it', refused.problem)

    def test_address_bits(self):
        cpu = live('pentium3',
                   more="<maxphysaddr mode='emulate' bits='52'/>")
        limited = host(
            extra="<maxphysaddr mode='passthrough' limit='48'/>")
        for found in (self.no(cpu, limited), self.no(cpu, host(), 48)):
            self.assertIn('52 bits', found.reason)
            self.assertIs(False, compare.judge(found, True).possible)
        for bits in (52, None):
            self.assertIs(True, verdict(cpu, host(), bits).possible)

    def test_another_architecture(self):
        cpu = CPU.parse('<cpu><arch>ia64</arch><model>Nehalem</model></cpu>')
        self.assertIn('ia64', self.no(cpu, host()).reason)
        self.assertIs(True, verdict(CPU.parse(
            '<cpu><arch>i686</arch><model>Nehalem</model></cpu>'),
            host()).possible)

    def test_a_feature_that_libvirt_does_not_know(self):
        for policy in ('disable', 'optional', 'force', 'forbid'):
            found = verdict(
                CPU('custom', 'Nehalem', features=(('avx10', policy),)),
                host())
            self.assertIsNone(found.possible, policy)
            self.assertIn('avx10', found.reason)
        self.no(CPU('custom', 'Nehalem', features=(('avx10', 'require'),)),
                host())

    def test_invtsc_is_warned_of(self):
        cpu = live('pentium3', 'invtsc')
        found = verdict(cpu, host(features='hypervisor invtsc'))
        self.assertIs(True, found.possible)
        self.assertIn('invtsc cannot be live migrated', found.warnings[0])
        self.assertEqual((), self.no(cpu, host()).warnings)


class HostsCPUTestCase(base.BaseTestCase):
    """What virsh capabilities writes is no guest's CPU."""

    CPU = CPU.parse(
        '<capabilities><host><cpu><arch>x86_64</arch><model>EPYC-Rome</model>'
        '<vendor>AMD</vendor>' + ''.join(
            f"<feature name='{n}'/>" for n in (
                'ht monitor osxsave cmt xsaves cmp_legacy extapic ibs '
                'topoext invtsc').split()) +
        '</cpu></host></capabilities>')

    def test_of_the_same_host(self):
        found = verdict(self.CPU, host())
        self.assertIs(True, found.possible)
        self.assertIn('no guest', found.reason)

    def test_what_is_missing_is_no_proof(self):
        found = verdict(self.CPU, host('Nehalem', 'AMD'))
        self.assertIsNone(found.possible)
        self.assertIn('clzero', found.missing)
        self.assertNotIn('monitor', found.missing)
        self.assertIn('host\'s CPU and no guest\'s', found.reason)

    def test_of_another_vendor(self):
        self.assertIs(False, verdict(
            self.CPU, host('Nehalem', 'Intel')).possible)


class Libvirt11TestCase(base.BaseTestCase):
    """QEMU's word about a model counts where libvirt compares."""

    def setUp(self):
        super().setUp()
        self.known = cpu_map.CPUMap(
            KNOWN.features, KNOWN.models, {}, compares_by_qemu=True,
            strict_models=frozenset({'EPYC-Rome'}))

    def test_a_usable_model_less_features_is_always_accepted(self):
        models = "<model usable='yes'>qemu64</model>"
        for known, wanted in ((self.known, True), (KNOWN, False)):
            on = host('Nehalem', 'Intel', models=models, known=known)
            self.assertIs(wanted, verdict(CPU('custom', 'qemu64', features=(
                ('pni', 'disable'),)), on).possible)
            self.assertIs(False, verdict(CPU('custom', 'qemu64', features=(
                ('apic', 'require'),)), on).possible)

    def test_blockers_of_a_model_that_is_new_in_the_map(self):
        models = ("<model usable='no'>EPYC-Rome</model>"
                  "<blockers model='EPYC-Rome'><feature name='rdseed'/>"
                  "</blockers>")
        on = host(models=models, known=self.known)
        found = verdict(CPU('custom', 'EPYC-Rome'), on)
        self.assertEqual((False, ('rdseed',)), (
            found.possible, found.missing))
        self.assertIs(True, verdict(CPU('custom', 'EPYC-Rome', features=(
            ('rdseed', 'disable'),)), on).possible)
        self.assertIs(True, verdict(
            CPU('custom', 'EPYC-Rome'),
            host(models=models)).possible)


class AcceptedTestCase(base.BaseTestCase):
    """What libvirt would run is not refused."""

    MODELS = ("<model usable='no' vendor='AMD'>EPYC-Rome</model>"
              "<blockers model='EPYC-Rome'><feature name='xsaves'/>"
              "</blockers><model usable='yes'>Nehalem</model>"
              "<model usable='yes'>qemu64</model>"
              "<model usable='no'>Skylake</model>")

    def test_epyc_rome_without_xsaves(self):
        on = host(features='x2apic', models=self.MODELS)
        self.assertIsNone(usable.check_model('EPYC-Rome', on))
        said = usable.doubt('EPYC-Rome', on)
        self.assertIn('lacks xsaves, says QEMU', said)
        self.assertIn('cpu_model_extra_flags = -xsaves', said)
        # With the flag there is nothing to say.
        self.assertIsNone(usable.doubt(
            'EPYC-Rome', on, [('xsaves', 'disable')]))

    def asked(self, on: usable.Host, model: str, answer: bool | None,
              flags: tuple[tuple[str, str], ...] = ()) -> usable.Host:
        cpu = usable.question(model, flags, on)
        assert cpu is not None
        return usable.Host(on.virt_type, on.caps, on.x86_map,
                           answers={cpu: answer})

    def test_libvirt_s_answer_counts(self):
        on = host('Nehalem', 'Intel', models=self.MODELS)
        for answer, refused in ((True, False), (False, True), (None, True)):
            self.assertEqual(refused, usable.check_model(
                'Skylake', self.asked(on, 'Skylake', answer)) is not None)
        # Nobody knows the map: QEMU's word, but for what libvirt says.
        blind = host('Nehalem', 'Intel', models=self.MODELS, known=None)
        self.assertIsNotNone(usable.check_model('Skylake', blind))
        for answer in (True, None):
            on = self.asked(blind, 'Skylake', answer)
            self.assertIsNone(usable.check_model('Skylake', on))
            self.assertIn('unusable here', usable.doubt('Skylake', on))

    def test_few_missing_features_are_offered_as_flags(self):
        on = host('Nehalem', 'Intel', models=self.MODELS)
        refused = usable.check_model('Skylake', on)
        self.assertEqual(('avx', 'hle', 'rtm'), refused.missing)
        self.assertIn('cpu_model_extra_flags = -avx, -hle, -rtm',
                      refused.remedy)
        refused = usable.check_model('EPYC-Rome', on)
        self.assertGreater(len(refused.missing), 3)
        self.assertNotIn('cpu_model_extra_flags', refused.remedy)

    def test_qemu64_needs_svm(self):
        """QEMU calls it usable, libvirt's map gives it svm."""
        on = host('Nehalem', 'Intel', models=self.MODELS)
        flags = (('pni', 'disable'),)
        self.assertIsNone(usable.check_model('qemu64', on, flags))
        self.assertIn('lacks svm', usable.doubt('qemu64', on, flags))
        self.assertEqual(('unknown', ('svm',)), usable.state(
            on.caps.model('qemu64'), on))
        refused = usable.check_model(
            'qemu64', self.asked(on, 'qemu64', False, flags), flags)
        self.assertIn('-svm', refused.remedy)
        self.assertIsNone(usable.question('Nehalem', (), on))


class LevelTestCase(base.BaseTestCase):
    """Hygon C86 has x86-64-v3 and no AES."""

    def setUp(self):
        super().setUp()
        v3 = levels.find('x86-64-v3')
        self.known = cpu_map.CPUMap(
            {n: () for n in v3.needed},
            {'Dhyana': v3.needed | {'lm'}, 'kvm64': frozenset({'fpu'})}, {})
        self.on = host('Dhyana', 'Hygon', '-aes', known=self.known)

    def test_what_works_is_offered(self):
        refused = usable.check_model('x86-64-v3', self.on)
        self.assertEqual(('aes',), refused.missing)
        self.assertIn('the psABI does not ask for', refused.problem)
        self.assertIn('Use x86-64-v2.', refused.remedy)
        self.assertIn('cpu_model_extra_flags = -aes', refused.remedy)
        self.assertIsNone(usable.check_model(
            'x86-64-v3', self.on, [('aes', 'disable')]))

    def test_what_the_psabi_asks_for_is_not_offered(self):
        on = host('Dhyana', 'Hygon', '-avx2', known=self.known)
        refused = usable.check_model('x86-64-v3', on)
        self.assertNotIn('cpu_model_extra_flags', refused.remedy)
        self.assertNotIn('psABI', refused.problem)

    def test_the_trait_goes_with_the_flag(self):
        name = 'CUSTOM_KVM_EXT_CPU_LEVEL_X86_64_V3'
        self.assertNotIn(name, traits.of_host(self.on))
        self.assertIn(name, traits.of_host(
            self.on, flags=[('aes', 'disable')]))


class FakeLibvirt:
    """Answers that are handed in.

    :ivar asked: features that were asked about as optional, by question
    """

    def __init__(self, *answers: Any, version: int = 9_000_000,
                 shown: str = '', capabilities: Any = '<x/>') -> None:
        self._answers = list(answers)
        self._version = version
        self._shown = shown
        self._capabilities = capabilities
        self.asked: list[CPU] = []
        self.flags: list[int] = []

    def compareHypervisorCPU(self, emulator: Any, arch: Any, machine: Any,
                             virt_type: str, xml: str, flags: int) -> int:
        self.asked.append(CPU.parse(xml))
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def getLibVersion(self) -> int:
        return self._version

    def getDomainCapabilities(self, *question: Any) -> str:
        self.flags.append(question[-1])
        feature = (f"<feature policy='require' name='{self._shown}'/>"
                   if question[-1] else '')
        return (
            "<domainCapabilities><domain>kvm</domain><cpu>"
            "<mode name='host-model' supported='yes'><model>EPYC</model>"
            f"{feature}</mode></cpu></domainCapabilities>")

    def getCapabilities(self) -> str:
        if isinstance(self._capabilities, Exception):
            raise self._capabilities
        return self._capabilities


class LibvirtError(Exception):

    def __init__(self, code: int, words: str = 'no') -> None:
        super().__init__(words)
        self._code = code

    def get_error_code(self) -> int:
        return self._code


class ReaderTestCase(base.BaseTestCase):

    def settled(self, cpu: CPU, libvirt: FakeLibvirt
                ) -> tuple[bool | None, int]:
        found, _ = reader.settled(libvirt, host(), cpu)
        return found.possible, len(libvirt.asked)

    def test_libvirt_is_asked_again_without_what_it_misses(self):
        cpu = live('EPYC-Rome', 'topoext')
        missed = LibvirtError(91, 'required features: topoext')
        libvirt = FakeLibvirt(missed, 2)
        self.assertEqual((True, 2), self.settled(cpu, libvirt))
        self.assertEqual((('topoext', 'optional'),),
                         libvirt.asked[1].features)
        # Where libvirt says no for another reason, that counts.
        self.assertEqual((False, 2), self.settled(
            cpu, FakeLibvirt(missed, missed)))
        self.assertEqual((True, 1), self.settled(cpu, FakeLibvirt(2)))

    def test_libvirt_counts(self):
        possible = live('EPYC-Rome')
        missing = live('Nehalem', 'pcid')
        for cpu, answer, wanted in (
                (possible, 1, True), (possible, 0, False),
                (possible, LibvirtError(91), False),
                (possible, LibvirtError(1), True),
                (missing, 2, True), (missing, LibvirtError(1), False)):
            self.assertEqual((wanted, 1), self.settled(
                cpu, FakeLibvirt(answer)), f'{cpu} {answer}')

    def test_libvirt_is_not_asked_about_a_host_s_cpu(self):
        self.assertEqual((True, 0), self.settled(
            HostsCPUTestCase.CPU, FakeLibvirt()))

    def test_supported_features(self):
        """Asked for where libvirt has the flag, 12.5 and later."""
        libvirt = FakeLibvirt(version=12_005_000, shown='ssbd')
        found = reader.read_host(libvirt, 'kvm', 'x86_64', root='/nowhere')
        self.assertEqual({'ssbd'}, found.caps.supported)
        self.assertEqual([0, reader.SUPPORTED_CPU_FEATURES], libvirt.flags)
        libvirt = FakeLibvirt(version=12_004_000, shown='ssbd')
        found = reader.read_host(libvirt, 'kvm', 'x86_64', root='/nowhere')
        self.assertEqual(frozenset(), found.caps.supported)
        self.assertEqual([0], libvirt.flags)
        self.assertIsNone(found.known)

    def test_address_bits(self):
        libvirt = FakeLibvirt(capabilities=(
            "<capabilities><host><cpu><maxphysaddr mode='emulate' bits='48'/>"
            "</cpu></host></capabilities>"))
        self.assertEqual(48, reader.read_address_bits(libvirt, '/nowhere'))
        for text in ('<capabilities/>', '<', LibvirtError(1)):
            self.assertIsNone(reader.read_address_bits(
                FakeLibvirt(capabilities=text), '/nowhere'))
