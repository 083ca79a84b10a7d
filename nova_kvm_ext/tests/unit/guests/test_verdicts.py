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

"""All that there is to say of a guest, but its CPU."""

import dataclasses
from typing import Any

import libvirt
from oslotest import base

from nova_kvm_ext.cpu import definition
from nova_kvm_ext.guests import model
from nova_kvm_ext.guests import reasons
from nova_kvm_ext.guests import verdicts
from nova_kvm_ext.host import model as host_model
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
            self.assertEqual(reason.number, getattr(
                libvirt, f'VIR_DOMAIN_PAUSED_{name}', {
                    # Not in libvirt-python before 9.2.
                    'API_ERROR': 14}.get(name)))
            self.assertIs(reason, reasons.Reason.of(reason.number))
        # None of this libvirt's is missing.
        self.assertLessEqual(
            {number for name, number in vars(libvirt).items()
             if name.startswith('VIR_DOMAIN_PAUSED_') and
             name != 'VIR_DOMAIN_PAUSED_LAST'},
            {reason.number for reason in reasons.Reason})
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
