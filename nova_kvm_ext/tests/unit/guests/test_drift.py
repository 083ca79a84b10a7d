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

"""The CPU that a guest has, and the one that it would get today."""

import dataclasses
from typing import Any
from unittest import mock

from oslotest import base

from nova_kvm_ext.cpu import choose
from nova_kvm_ext.cpu import definition
from nova_kvm_ext.cpu import usable
from nova_kvm_ext.guests import drift
from nova_kvm_ext.guests import model
from nova_kvm_ext.guests import verdicts
from nova_kvm_ext.tests.unit.cpu import documents
from nova_kvm_ext.tests.unit.guests import test_verdicts
from nova_kvm_ext.tests.unit import test_settings

GUEST, LIVE = test_verdicts.GUEST, test_verdicts.LIVE


class DriftTestCase(base.BaseTestCase):
    """Under KVM on an Intel server, by hand-made documents."""

    def setUp(self):
        super().setUp()
        self.host = documents.host(documents.INTEL)

    def judge(self, text: str, images: str = '', **what: Any) -> drift.Drift:
        found = test_settings.settings(
            f'[kvm_ext]\nimage_cpu_modes = {images}\n{text}')
        return drift.judge(test_verdicts.guest(**what), self.today(found))

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
                [test_verdicts.guest(
                    uuid=str(number), specs=asks if number > 4 else {})
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

    def test_a_guest_of_32_bits(self):
        self.assertIs(False, self.custom('Nehalem', arch='i686').drift)

    def test_an_emulated_guest(self):
        """It has what QEMU can emulate of its model, and no more tomorrow."""
        lacks = dataclasses.replace(LIVE, features=(
            *LIVE.features, ('sse4.2', 'disable')))
        can = self.host.available - {'sse4.2'}
        with mock.patch.object(usable.Host, 'available', can):
            found = self.custom('Nehalem', configured=None, cpu=lacks)
            self.assertIs(False, found.drift, str(found))
            found = self.custom(
                'Nehalem', '[libvirt]\ncpu_model_extra_flags = sse4.2\n',
                configured=None, cpu=lacks)
        self.assertEqual((True, ('sse4.2',)), (found.drift, found.gained))

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
                         drift.judge(test_verdicts.guest(cpu=None), today))

    def test_no_cpu_at_all(self):
        none = definition.CPU(mode='custom', model='qemu64', check='none')
        found = self.judge('cpu_mode = none', cpu=none, configured=none)
        self.assertIs(False, found.drift)

    def test_not_known(self):
        self.assertIsNone(drift.judge(GUEST, model.Today()).drift)
        self.assertIsNone(drift.judge(
            test_verdicts.guest(cpu=None), model.Today()).drift)
        refused = self.judge('cpu_mode = host-model', specs={
            'kvm_ext:cpu_mode': 'nonsense'})
        self.assertIsNone(refused.drift)
        self.assertIn('refused today', refused.details)
        foreign = self.judge('cpu_mode = host-model', arch='aarch64')
        self.assertIsNone(foreign.drift)
