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
import re
import stat
from typing import Any
from unittest import mock

import fixtures
from oslotest import base
from prometheus_client import parser

from nova_kvm_ext import counters
from nova_kvm_ext.guest_agent import client
from nova_kvm_ext.guests import model
from nova_kvm_ext.guests import reasons
from nova_kvm_ext.guests import verdicts
from nova_kvm_ext.host import model as host_model
from nova_kvm_ext.images import verdict
from nova_kvm_ext.metrics import names
from nova_kvm_ext.metrics import samples
from nova_kvm_ext.metrics import text
from nova_kvm_ext.storage import consistency
from nova_kvm_ext.tests.unit.guests import test_verdicts
from nova_kvm_ext.vhost import proof


class NamesTestCase(base.BaseTestCase):
    """https://prometheus.io/docs/practices/naming/"""

    def test_conventions(self):
        for metric in names.ALL:
            self.assertRegex(metric.name, '^nova_kvm_ext_[a-z][a-z_]*$')
            self.assertEqual(metric.kind is names.Kind.COUNTER,
                             metric.name.endswith('_total'), metric.name)
            self.assertEqual(metric.kind is names.Kind.HISTOGRAM,
                             bool(metric.buckets), metric.name)
            self.assertNotRegex(metric.name, '(ms|milliseconds|percent|mb)$')
            self.assertTrue(metric.help.endswith('.'), metric.name)
            for label, values in metric.labels.items():
                self.assertRegex(label, '^[a-z][a-z_]*$')
                self.assertTrue(values)

    def test_each_name_once(self):
        self.assertEqual(len(names.ALL),
                         len({metric.name for metric in names.ALL}))

    def test_every_word_of_ours_has_its_value(self):
        """What a room can say must not become "other"."""
        for metric, label, words in (
                (names.GUESTS, 'state', model.STATES.values()),
                (names.PAUSED, 'reason', [
                    reason.name.lower() for reason in reasons.Reason]),
                (names.SNAPSHOTS, 'reason', [
                    reason.name.lower() for reason in consistency.Reason]),
                (names.AGENTS, 'state', [
                    client.AgentState.NO_CHANNEL.value,
                    client.AgentState.DISCONNECTED.value,
                    client.AgentState.CONNECTED.value]),
                (names.CONVERSIONS, 'format', verdict.CONVERTED_FORMATS),
                (names.REFUSALS, 'check', [
                    *verdict._FAILED, *re.findall(
                        r"_refuse\(\s*'([^']+)'", _source(verdict))])):
            known = metric.labels[label]
            self.assertEqual(
                [], [word for word in words
                     if names.said(word) not in known], metric.name)


def _source(module: Any) -> str:
    with open(module.__file__) as f:
        return f.read()


class TextTestCase(base.BaseTestCase):

    def parsed(self, found=(), counts=None) -> dict[tuple, float]:
        rendered = text.render(found, counts).decode()
        return {(sample.name, *sorted(sample.labels.values())): sample.value
                for family in parser.text_string_to_metric_families(rendered)
                for sample in family.samples}

    def guests(self, *guests: model.Guest) -> dict[tuple, float]:
        return self.parsed(samples.of_guests(
            [verdicts.judge(guest, test_verdicts.TODAY)
             for guest in guests], 1000.0))

    def test_health(self):
        found = self.parsed(samples.of_health([('nova-compute', 'WARN')]))
        self.assertEqual(1, found[
            'nova_kvm_ext_service_health', 'WARN', 'nova_compute'])
        self.assertEqual(0, found[
            'nova_kvm_ext_service_health', 'PASS', 'nova_compute'])

    def test_snapshots_that_can_be(self):
        """Each reason goes with one answer, as the image says it."""
        self.assertEqual(
            {(reason.name.lower(), consistency.Consistency(reason).answer)
             for reason in consistency.Reason},
            {(key[2], key[1]) for key in names.SNAPSHOTS.series})

    def test_a_host_without_a_guest(self):
        found = self.guests()
        self.assertEqual(0, found['nova_kvm_ext_guests_hung', 'yes'])
        self.assertEqual(0, found['nova_kvm_ext_guests', 'running'])
        self.assertEqual(0, found['nova_kvm_ext_guests_frozen',])

    def test_guests(self):
        guest = test_verdicts.guest
        found = self.guests(
            guest(), guest(
                uuid='bad', process=model.Process(
                    7, 'T', replaced=True, why='x'), state=3,
                paused=model.Paused('io_error', 'by an I/O error'),
                frozen=model.Frozen(400.0, 'x'), machine='pc-i440fx-1.7',
                nics=(proof.Nic('m', 'bridge', 'virtio', 'vhost', 1, None),),
                vhost=host_model.VhostFacts(7, 0, 0), odd='odd'))
        for key, value in (
                (('guests', 'running'), 1), (('guests', 'paused'), 1),
                (('guests_paused', 'io_error'), 1),
                (('guests_hung', 'yes'), 1), (('guests_hung', 'no'), 1),
                (('guests_frozen',), 1), (('guest_frozen_seconds', 'bad'),
                                          600),
                (('guests_qemu_outdated', 'yes'), 1),
                (('guests_qemu_version', '7.2.22'), 2),
                (('guests_machine_outdated', 'yes'), 1),
                (('guests_cpu_drift', 'unknown'), 2),
                (('network_cards', 'no', 'yes'), 1),
                *((('guest_problem', 'bad', problem), 1) for problem in (
                    'hung', 'paused_by_error', 'frozen', 'vhost_lost',
                    'qemu_outdated', 'machine_outdated', 'not_read'))):
            name, *labels = key
            self.assertEqual(value, found[
                (f'nova_kvm_ext_{name}', *sorted(labels))], str(key))
        self.assertFalse([key for key in found if 'u' in key[1:]])

    def test_how_many_are_frozen(self):
        frozen = dataclasses.replace(test_verdicts.GUEST,
                                     frozen=model.Frozen(1, 'x'))
        found = self.guests(frozen, frozen, test_verdicts.GUEST)
        self.assertEqual(2, found['nova_kvm_ext_guests_frozen',])

    def test_series_that_are_there_before_they_count(self):
        self.assertEqual([], list(names.LOGGED.series))
        self.assertEqual([], list(names.FROZEN_SECONDS.series))
        self.assertEqual([('yes',), ('no',), ('unknown',)],
                         list(names.HUNG.series))

    def test_seconds_frozen(self):
        name = 'nova_kvm_ext_guest_frozen_seconds'
        for since, seconds in ((990, 10), (1000, 0), (1001, 0)):
            found = self.guests(dataclasses.replace(
                test_verdicts.GUEST, frozen=model.Frozen(since, 'x')))
            self.assertEqual(seconds, found[name, 'u'])

    def test_buckets_stay(self):
        """With others all that was observed before is dropped."""
        self.assertEqual(
            {names.FREEZES.name: (0.1, 0.5, 1, 2, 5, 10, 30, 60, 300),
             names.DOWNTIME.name: (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)},
            {metric.name: metric.buckets for metric in names.ALL
             if metric.kind is names.Kind.HISTOGRAM})

    def test_checks(self):
        found = self.parsed(samples.of_checks(
            {'KVM101': 'FAIL', 'KVM102': 'PASS', 'KVM201': 'nonsense',
             'by a tenant': 'FAIL'}, 5.0))
        self.assertEqual(
            {('nova_kvm_ext_host_check', 'FAIL', 'KVM101'): 1.0,
             ('nova_kvm_ext_host_check', 'FAIL', 'other'): 1.0,
             ('nova_kvm_ext_host_checks', 'PASS'): 1.0,
             ('nova_kvm_ext_host_checks', 'WARN'): 0.0,
             ('nova_kvm_ext_host_checks', 'FAIL'): 2.0,
             ('nova_kvm_ext_host_checks', 'SKIP'): 0.0,
             ('nova_kvm_ext_host_check_timestamp_seconds',): 5.0}, found)

    def test_counted(self):
        counted = counters.Counters()
        counted.add(names.REFUSALS, 'mbr')
        counted.add(names.LOGGED, 'KVML403')
        for seconds in (0.1, 0.3, 100):
            counted.observe(names.DOWNTIME, seconds)
        found = self.parsed(counts=counted.counts())
        downtime = 'nova_kvm_ext_migration_downtime_seconds'
        for key, value in (
                (('nova_kvm_ext_image_refusals_total', 'mbr'), 1),
                (('nova_kvm_ext_image_refusals_total', 'luks'), 0),
                (('nova_kvm_ext_log_messages_total', 'KVML403'), 1),
                ((f'{downtime}_bucket', '0.1'), 1),
                ((f'{downtime}_bucket', '0.5'), 2),
                ((f'{downtime}_bucket', '+Inf'), 3),
                ((f'{downtime}_count',), 3), ((f'{downtime}_sum',), 100.4)):
            self.assertEqual(value, found[key], str(key))

    def test_no_other_metric_than_those_of_the_reference(self):
        counted = counters.Counters()
        found = self.guests(test_verdicts.GUEST) | self.parsed(
            counts=counted.counts())
        known = {metric.name for metric in names.ALL}
        self.assertEqual([], [
            key for key in found if key[0] not in known and
            re.sub('_(bucket|count|sum)$', '', key[0]) not in known])

    def test_file(self):
        directory = self.useFixture(fixtures.TempDir()).path
        path = os.path.join(directory, 'a.prom')
        with fixtures.MonkeyPatch('os.umask', os.umask):
            before = os.umask(0o077)
            self.addCleanup(os.umask, before)
            text.write(path, b'x 1\n')
        text.write(path, b'x 2\n')
        with open(path) as f:
            self.assertEqual('x 2\n', f.read())
        self.assertEqual(0o644, stat.S_IMODE(os.stat(path).st_mode))
        self.assertEqual(['a.prom'], os.listdir(directory))

    def test_a_file_that_cannot_be_replaced(self):
        directory = self.useFixture(fixtures.TempDir()).path
        path = os.path.join(directory, 'a.prom')
        with mock.patch.object(text.os, 'replace', side_effect=OSError):
            self.assertRaises(OSError, text.write, path, b'x')
        self.assertEqual([], os.listdir(directory))
