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

"""Alert rules, dashboard and units against the table of metrics."""

import configparser
import json
import os
import re
import shlex
from typing import Any
import unittest

from oslotest import base
import yaml

import nova_kvm_ext
from nova_kvm_ext.metrics import names

TOP = os.path.dirname(os.path.dirname(nova_kvm_ext.__file__))
ETC = os.path.join(TOP, 'etc')

LABELS = {label: values for metric in names.ALL
          for label, values in metric.labels.items()}


def series() -> set[str]:
    """Every name that a query may have."""
    found = set()
    for metric in names.ALL:
        if metric.kind is names.Kind.HISTOGRAM:
            found |= {f'{metric.name}_{part}'
                      for part in ('bucket', 'sum', 'count')}
        else:
            found.add(metric.name)
    return found


@unittest.skipUnless(os.path.isdir(os.path.join(ETC, 'prometheus')),
                     'only in the source tree')
class MonitoringFilesTestCase(base.BaseTestCase):

    def read(self, *path: str) -> str:
        with open(os.path.join(TOP, *path)) as f:
            return f.read()

    def rules(self) -> list[dict[str, Any]]:
        groups = yaml.safe_load(self.read(
            'etc', 'prometheus', 'nova-kvm-ext.rules.yml'))['groups']
        return [rule for group in groups for rule in group['rules']]

    def dashboard(self) -> dict[str, Any]:
        return json.loads(self.read('etc', 'grafana', 'nova-kvm-ext.json'))

    def queries(self) -> list[str]:
        return [rule['expr'] for rule in self.rules()] + [
            target['expr'] for panel in self.dashboard()['panels']
            for target in panel['targets']]

    def test_every_name_in_a_query_is_a_metric(self):
        known = series()
        for query in self.queries():
            used = set(re.findall(r'\bnova_kvm_ext_\w+\b(?=[^.\]])', query))
            self.assertTrue(used or 'node_textfile' in query, query)
            self.assertEqual(set(), used - known, query)

    def test_every_value_in_a_query_is_one_of_its_label(self):
        for query in self.queries():
            for name, selectors in re.findall(
                    r'(nova_kvm_ext_\w+)\{([^}]*)\}', query):
                metric = next(m for m in names.ALL if m.name in (
                    name, re.sub('_(bucket|sum|count)$', '', name)))
                for label, value in re.findall(
                        r'(\w+)!?="([^"]*)"', selectors):
                    self.assertIn(label, metric.labels, query)
                    known = metric.labels[label]
                    if not known[0].startswith('('):
                        self.assertIn(value, known, query)

    def test_each_alert_says_what_is_wrong_and_is_documented(self):
        guide = self.read('doc', 'source', 'admin', 'monitoring.rst')
        alerts = [rule['alert'] for rule in self.rules()]
        self.assertEqual(len(alerts), len(set(alerts)))
        self.assertEqual(
            alerts, re.findall(r'^   \* - ``(NovaKvmExt\w+)``$', guide,
                               re.MULTILINE))
        for rule in self.rules():
            self.assertEqual({'summary', 'description'},
                             set(rule['annotations']), rule['alert'])
            self.assertIn(rule['labels']['severity'],
                          ('critical', 'warning', 'info'))

    def test_panels(self):
        panels = self.dashboard()['panels']
        self.assertEqual(len(panels), len({p['id'] for p in panels}))
        self.assertEqual(len(panels), len({p['title'] for p in panels}))
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            place = panel['gridPos']
            self.assertLessEqual(place['x'] + place['w'], 24)
            cells = {(x, y) for x in range(place['x'],
                                           place['x'] + place['w'])
                     for y in range(place['y'], place['y'] + place['h'])}
            self.assertEqual(set(), taken & cells, panel['title'])
            taken |= cells
            for target in panel['targets']:
                self.assertIn('instance=~"$instance"', target['expr'])
                labels = re.findall(r'{{(\w+)}}', target['legendFormat'])
                self.assertEqual([], [
                    label for label in labels
                    if label not in LABELS and label != 'instance'])

    def test_units(self):
        unit = configparser.ConfigParser(interpolation=None)
        unit.read_string(self.read(
            'etc', 'systemd', 'nova-kvm-ext-metrics.service'))
        command = shlex.split(unit['Service']['ExecStart'])
        self.assertEqual(['/usr/bin/nova-kvm-ext', 'metrics', '--textfile'],
                         command[:3])
        rule, = [rule['expr'] for rule in self.rules()
                 if 'node_textfile' in rule['expr']]
        self.assertRegex(command[3], re.search('file=~"(.*)"', rule)[1])
        timer = configparser.ConfigParser(interpolation=None)
        timer.read_string(self.read(
            'etc', 'systemd', 'nova-kvm-ext-metrics.timer'))
        self.assertIn('Timer', timer)
