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
from typing import Any
from unittest import mock

import libvirt
from oslotest import base

from nova_kvm_ext.cpu import choose
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.guests import drift
from nova_kvm_ext.guests import model
from nova_kvm_ext.guests import reasons
from nova_kvm_ext.guests import verdicts
from nova_kvm_ext.host import model as host_model
from nova_kvm_ext.tests.unit.cpu import documents
from nova_kvm_ext.tests.unit import test_settings
from nova_kvm_ext.vhost import proof


def cpu(text: str) -> definition.CPU:
    return definition.CPU.parse(text)


NEHALEM = cpu('<cpu mode="custom" match="exact"><model>Nehalem</model></cpu>')
LIVE = dataclasses.replace(NEHALEM, check='full', features=(
    ('hypervisor', 'require'), ('lahf_lm', 'require')))
GUEST = model.Guest(
    'u', 'instance-1', 1, domain_type='kvm', arch='x86_64',
    machine='pc-q35-7.2', emulator='/usr/bin/qemu', qemu='7.2.22', cpu=LIVE,
    configured=NEHALEM, specs={}, of_nova=True, channel=False,
    process=model.Process(70, 'S', replaced=False),
    control=model.Control())
TODAY = model.Today(
    '7.2.22', 'x86_64', {'x86_64': '/usr/bin/qemu'},
    {'x86_64': {
        'q35': model.Machine('q35', 'pc-q35-7.2', False),
        'pc-q35-7.2': model.Machine('pc-q35-7.2', None, False),
        'pc-i440fx-1.7': model.Machine('pc-i440fx-1.7', None, True)}})


def guest(**what: Any) -> model.Guest:
    return dataclasses.replace(GUEST, **what)


def judge(today: model.Today = TODAY, **what: Any) -> verdicts.Verdict:
    return verdicts.judge(guest(**what), today)


class VerdictTestCase(base.BaseTestCase):

    def test_up_to_date(self):
        found = judge()
        self.assertEqual((False, False, False, '7.2.22', 'pc-q35-7.2'),
                         (found.outdated, found.hangs.value,
                          found.old_machine.value, found.qemu, found.newest))
        self.assertEqual((), found.findings)

    def test_old_qemu(self):
        for what, old in (
                ({'process': model.Process(70, 'S', replaced=True,
                                           why='gone')}, True),
                ({'qemu': '7.2.9'}, True),
                # Of a guest whose log is not there.
                ({'qemu': None}, False),
                ({'qemu': None, 'process': model.Process(70, 'S')}, None),
                # Its version says no, though nobody may look.
                ({'process': model.Process(70, 'S')}, None),
                # It has a QEMU of its own.
                ({'emulator': '/opt/qemu', 'qemu': '9.0.0'}, False)):
            found = judge(**what)
            self.assertIs(old, found.old_qemu.value, str(what))
            self.assertEqual(bool(old), found.outdated)

    def test_old_qemu_says_both_versions(self):
        self.assertEqual('runs 7.2.9, today\'s is 7.2.22',
                         judge(qemu='7.2.9').old_qemu.why)
        gone = model.Process(70, 'S', replaced=True, why='gone')
        for what, wanted in (
                ({}, 'gone; runs 7.2.22, today\'s is 7.2.22'),
                ({'qemu': None},
                 'gone; its version is not known, today\'s is 7.2.22'),
                ({'emulator': '/opt/qemu'}, 'gone; runs 7.2.22')):
            self.assertEqual(wanted, judge(process=gone,
                                           **what).old_qemu.why)

    def test_state_is_libvirts(self):
        self.assertEqual([*range(8)], sorted(model.STATES))
        for number, name in model.STATES.items():
            self.assertEqual(number, getattr(libvirt, 'VIR_DOMAIN_' + {
                'no state': 'NOSTATE', 'shutting down': 'SHUTDOWN',
                'shut off': 'SHUTOFF', 'suspended': 'PMSUSPENDED'}.get(
                name, name.upper())))
            self.assertEqual(name, judge(state=number).state)
        self.assertEqual('no state', judge(state=None).state)
        self.assertEqual('no state', judge(state=99).state)

    def test_reason_of_a_pause_is_libvirts(self):
        for reason in reasons.Reason:
            name = {'NOT_KNOWN': 'UNKNOWN', 'IO_ERROR': 'IOERROR'}.get(
                reason.name, reason.name)
            self.assertEqual(reason.number,
                             getattr(libvirt, f'VIR_DOMAIN_PAUSED_{name}'))
            self.assertIs(reason, reasons.Reason.of(reason.number))
        self.assertIs(reasons.Reason.NOT_KNOWN, reasons.Reason.of(99))

    def test_what_nobody_has_said(self):
        plain = model.Guest('u', 'n')
        self.assertEqual(model.Control(0, 0), model.Control())
        self.assertIs(False, plain.of_nova)
        found = verdicts.judge(plain, model.Today())
        self.assertEqual(
            ('no state', None, None, None, None, 'no channel'),
            (found.state, found.hangs.value, found.old_qemu.value,
             found.old_machine.value, found.cpu.drift, found.agent))

    def test_agent(self):
        self.assertEqual(
            ['no channel', 'disconnected', 'connected'],
            [judge(channel=channel).agent
             for channel in (None, False, True)])

    def test_version_of_one_that_was_not_replaced(self):
        self.assertEqual('7.2.22', judge(qemu=None).qemu)
        self.assertIsNone(judge(qemu=None, process=model.Process(
            70, 'S', replaced=True)).qemu)

    def test_machine(self):
        self.assertTrue(judge(machine='pc-i440fx-1.7').old_machine.value)
        gone = judge(machine='pc-q35-2.4').old_machine
        self.assertTrue(gone.value)
        self.assertIn('hard reboot fails', gone.why)
        self.assertIsNone(judge(
            machine='pc-q35-2.4', emulator='/opt/qemu').old_machine.value)
        self.assertIsNone(judge(model.Today()).old_machine.value)
        self.assertIsNone(judge(arch='sparc').old_machine.value)

    def test_hangs(self):
        for what, hangs in (
                ({'process': model.Process(7, 'T')}, True),
                ({'process': model.Process(7, 't')}, True),
                ({'process': model.Process(7, 'Z')}, True),
                ({'control': model.Control(2, 30)}, True),
                ({'control': model.Control(2, 10)}, True),
                ({'control': model.Control(2, 9.9)}, False),
                ({'control': model.Control()}, False),
                ({'process': model.Process(7, 'X')}, True),
                # A job, as a migration, may take its time.
                ({'control': model.Control(1, 3000)}, False),
                ({'control': model.Control(3, 0)}, True),
                ({'process': model.Process(7, 'D', stuck=True)}, None),
                ({'process': model.Process(7, 'D')}, False),
                ({'process': model.Process(), 'control': None}, None)):
            self.assertIs(hangs, judge(**what).hangs.value, str(what))

    def test_findings(self):
        found = judge(
            process=model.Process(7, 'T', replaced=True, why='x'),
            frozen=model.Frozen(1, 'by hand'), machine='pc-i440fx-1.7',
            paused=model.Paused('io_error', 'by an I/O error'))
        self.assertEqual(
            ['hangs', 'paused by an I/O error', 'frozen', 'QEMU', 'machine'],
            [text.partition(':')[0] for text in found.findings])

    def test_other_findings(self):
        lost = host_model.VhostFacts(70, 0, 0)
        self.assertEqual(
            ('mac: does not use vhost-net, though its XML names it',
             'not read: odd'),
            judge(nics=(proof.Nic('mac', 'bridge', 'virtio', 'vhost', 1,
                                  None),
                        proof.Nic('other', 'bridge', 'virtio', None, 1,
                                  None)),
                  vhost=lost, odd='odd').findings)

    def test_the_channel_of_a_guest_that_was_not_read(self):
        self.assertEqual(
            ['no channel', 'disconnected', 'connected', None],
            [judge(**what).agent for what in (
                {'channel': None}, {'channel': False}, {'channel': True},
                {'channel': None, 'odd': 'odd'})])

    def test_answers_in_words(self):
        self.assertEqual(['yes', 'no', 'unknown'], [
            verdicts.Answer(value).word for value in (True, False, None)])

    def test_qemu_of_another_architecture(self):
        for arch, wanted in (('', '7.2.22'), ('x86_64', '7.2.22'),
                             ('i686', '7.2.22'), ('aarch64', None)):
            self.assertEqual(wanted, judge(
                arch=arch, emulator='').qemu_today, arch)

    def test_a_pause_that_somebody_asked_for_is_no_finding(self):
        found = judge(paused=model.Paused('user', 'by request'))
        self.assertEqual(((), False), (found.findings, found.broken))


class DriftTestCase(base.BaseTestCase):
    """Under KVM on an Intel server, by hand-made documents."""

    def setUp(self):
        super().setUp()
        self.host = documents.host(documents.INTEL)

    def judge(self, text: str, images: str = '', **what: Any) -> drift.Drift:
        found = test_settings.settings(
            f'[kvm_ext]\nimage_cpu_modes = {images}\n{text}')
        return drift.judge(guest(**what), self.today(found))

    def today(self, settings: Any) -> model.Today:
        choice = choose.as_configured(
            settings, (m.name for m in self.host.caps.models))
        return model.Today(
            settings=settings, cpus={'kvm': model.CPUs(self.host, choice)})

    def test_one_choice_for_the_same_wishes(self):
        """Hundreds of guests have few flavors."""
        today = self.today(test_settings.settings(
            '[kvm_ext]\ncpu_mode = custom\ncpu_model = Penryn\n'))
        asks = {'kvm_ext:cpu_model': 'Nehalem'}
        with mock.patch.object(
                choose, 'choose_for_guest',
                side_effect=choose.choose_for_guest) as chosen:
            found = verdicts.judge_all(
                [guest(uuid=str(number), specs=asks if number > 4 else {})
                 for number in range(7)], today)
        self.assertEqual(2, chosen.call_count)
        self.assertEqual([True] * 5 + [False] * 2,
                         [verdict.cpu.drift for verdict in found])

    def custom(self, models: str, more: str = '', **what: Any) -> drift.Drift:
        return self.judge(
            f'cpu_mode = custom\ncpu_model = {models}\n{more}', **what)

    def test_the_same_model(self):
        """QEMU's models can have more than libvirt's of the same name."""
        found = self.custom('Nehalem')
        self.assertIs(False, found.drift, str(found))

    def test_another_model(self):
        found = self.custom('Penryn')
        self.assertTrue(found.drift)
        self.assertEqual(('Nehalem', 'Penryn'), (found.now, found.next))
        self.assertIn('sse4.2', found.lost)

    def test_one_of_several(self):
        found = self.judge(
            '[libvirt]\ncpu_mode = custom\ncpu_models = Penryn, Nehalem\n')
        self.assertIs(False, found.drift)

    def test_another_flag(self):
        found = self.custom(
            'Nehalem', '[libvirt]\ncpu_model_extra_flags = aes\n')
        self.assertEqual((True, ('aes',), ()),
                         (found.drift, found.gained, found.lost))

    def test_kept(self):
        found = self.custom('Penryn', 'keep_guest_cpu = true\n')
        self.assertEqual((True, True, 'Nehalem'),
                         (found.drift, found.kept, found.next))

    def test_kept_as_the_driver_keeps_it(self):
        self.assertEqual(
            definition.CPU(
                mode='custom', model='Nehalem', fallback='forbid',
                match='exact', features=LIVE.features),
            drift.kept_form(LIVE))

    def test_cannot_be_kept(self):
        self.host = dataclasses.replace(
            self.host, answers={drift.kept_form(LIVE): False})
        found = self.custom('Penryn', 'keep_guest_cpu = true\n')
        self.assertFalse(found.kept)
        self.assertIn('does not help', found.details)

    def test_a_flavor_that_asks(self):
        found = self.judge(
            'cpu_mode = host-model', specs={'kvm_ext:cpu_model': 'Nehalem'})
        self.assertIs(False, found.drift, str(found))

    def test_a_flavor_that_is_not_seen(self):
        """Nova before 32 does not write extra specs into the XML."""
        found = self.custom('Penryn', specs=None)
        self.assertIsNone(found.drift)
        self.assertIn('flavor or image', found.details)

    def test_an_image_that_may_have_asked(self):
        found = self.custom(
            'Penryn', 'image_cpu_models = Nehalem', images='custom')
        self.assertIsNone(found.drift)

    def test_a_guest_that_is_not_novas(self):
        found = self.custom('Penryn', specs=None, of_nova=False)
        self.assertTrue(found.drift)

    def test_host_passthrough(self):
        """The host's kernel is the same as long as the guest runs."""
        passthrough = definition.CPU(mode='host-passthrough')
        for replaced, expected in ((False, False), (True, None),
                                   (None, None)):
            found = self.judge(
                'cpu_mode = host-passthrough', cpu=passthrough,
                configured=passthrough,
                process=model.Process(7, 'S', replaced=replaced))
            self.assertIs(expected, found.drift)
        found = self.custom(
            'Nehalem', cpu=passthrough, configured=passthrough)
        self.assertTrue(found.drift)

    def host_model(self, features: dict[str, str]) -> definition.CPU:
        expansion = self.host.caps.host_model
        return dataclasses.replace(
            expansion, check='full',
            features=tuple((dict(expansion.features) | features).items()))

    def test_host_model(self):
        asked = definition.CPU(mode='host-model')
        found = self.judge('cpu_mode = host-model', configured=asked,
                           cpu=self.host_model({}))
        self.assertIs(False, found.drift, str(found))
        # What host-model does not tell the truth about.
        for name in ('topoext', 'hypervisor', 'arch-capabilities',
                     'cmp_legacy', 'invtsc'):
            found = self.judge('cpu_mode = host-model', configured=asked,
                               cpu=self.host_model({name: 'require'}))
            self.assertIs(False, found.drift, str(found))
        # A microcode or a QEMU with one feature more.
        found = self.judge('cpu_mode = host-model', configured=asked,
                           cpu=self.host_model({'avx': 'disable'}))
        self.assertEqual((True, ('avx',), ()),
                         (found.drift, found.gained, found.lost))

    def test_what_is_said(self):
        asked = definition.CPU(mode='host-model')
        passthrough, maximum = (definition.CPU(mode=mode) for mode in (
            'host-passthrough', 'maximum'))
        other = dataclasses.replace(self.host_model({}), model='Penryn')
        host_model, host_cpu, none = (
            f'cpu_mode = {mode}' for mode in (
                'host-model', 'host-passthrough', 'none'))
        penryn, level = (f'cpu_mode = custom\ncpu_model = {model}'
                         for model in ('Penryn', 'x86-64-v2'))
        by_mode, by_model = ('as [kvm_ext] cpu_mode asks',
                             'as [kvm_ext] cpu_model asks')
        hidden = 'no XML says all that host-passthrough gives'
        lost = f'loses popcnt, sse4.2, {by_model}'
        for text, what, expected, details in (
                (host_cpu, {'cpu': passthrough, 'configured': passthrough,
                            'process': model.Process(
                                7, 'S', replaced=True)},
                 None, f'{hidden}, and its QEMU is not today\'s'),
                (host_cpu, {'cpu': passthrough, 'configured': passthrough,
                            'process': model.Process(7, 'S')}, None, hidden),
                # Transient domains: nothing says what was asked for.
                (host_cpu, {'cpu': passthrough, 'configured': None}, None,
                 hidden),
                (host_cpu, {'cpu': maximum, 'configured': None}, True,
                 f'maximum is now host-passthrough, {by_mode}'),
                (penryn, {'configured': None}, True,
                 f'model Nehalem is now Penryn, {lost}'),
                (penryn, {'configured': LIVE}, True,
                 f'model Nehalem is now Penryn, {lost}'),
                (f'{host_cpu}\n[libvirt]\ncpu_model_extra_flags = -aes\n',
                 {'cpu': passthrough, 'configured': passthrough}, True,
                 f'host-passthrough is now with other extra flags, '
                 f'{by_mode}'),
                (host_model, {'configured': asked, 'cpu': self.host_model(
                    {'3dnow': 'require'})}, True, f'loses 3dnow, {by_mode}'),
                (host_model, {'configured': asked, 'cpu': other}, True,
                 f'model Penryn is now Haswell-noTSX, gains aes, avx, avx2, '
                 f'bmi1, bmi2, erms, fma, fsgsbase, invpcid, movbe, pcid, '
                 f'pclmuldq and 7 more, {by_mode}'),
                (host_model, {'configured': asked, 'cpu': dataclasses.replace(
                    other, model='Unknown')}, True,
                 f'model Unknown is now Haswell-noTSX, {by_mode}'),
                (none, {}, True, f'Nehalem is now none, {by_mode}'),
                (level, {'configured': None}, True,
                 f'model Nehalem is now kvm64, {by_model}')):
            found = self.judge(text, **what)
            self.assertEqual((expected, details),
                             (found.drift, found.details), text)

    def test_a_host_model_that_is_not_told(self):
        self.host = dataclasses.replace(
            self.host, caps=dataclasses.replace(
                self.host.caps, host_model=None))
        found = self.judge('cpu_mode = host-model', configured=definition.CPU(
            mode='host-model'))
        self.assertEqual(
            (None, 'what host-model gives today is not known'),
            (found.drift, found.details))

    def test_what_today_lacks(self):
        today = self.today(test_settings.settings('[kvm_ext]\n'))
        unknown = 'what guests get today is not known'
        for lacks, details in (
                ({'settings': None}, unknown), ({'cpus': {}}, unknown),
                ({'cpus': {'kvm': model.CPUs(self.host, None, 'broken')}},
                 'broken')):
            self.assertEqual(
                drift.Drift(None, 'Nehalem', details=details),
                drift.judge(GUEST, dataclasses.replace(today, **lacks)))
        self.assertEqual(drift.Drift(None, details='its XML tells no CPU'),
                         drift.judge(guest(cpu=None), today))

    def test_no_cpu_at_all(self):
        none = definition.CPU(mode='custom', model='qemu64', check='none')
        found = self.judge('cpu_mode = none', cpu=none, configured=none)
        self.assertIs(False, found.drift)

    def test_not_known(self):
        self.assertIsNone(drift.judge(GUEST, model.Today()).drift)
        self.assertIsNone(drift.judge(guest(cpu=None), model.Today()).drift)
        refused = self.judge('cpu_mode = host-model', specs={
            'kvm_ext:cpu_mode': 'nonsense'})
        self.assertIsNone(refused.drift)
        self.assertIn('refused today', refused.details)
        foreign = self.judge('cpu_mode = host-model', arch='aarch64')
        self.assertIsNone(foreign.drift)
