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

"""The tables of the benchmarks' page, which needs no benchmark to be made."""

import json
import os

import fixtures
from oslotest import base

from nova_kvm_ext.tests import bench_dense
from nova_kvm_ext.tests import bench_page


def taken(wall: float, processes: int) -> list[dict[str, float]]:
    return [{'wall': wall, 'cpu': wall / 2, 'processes': processes,
             'calls': 7, 'virDomainCreate': 0.5, 'guests a minute': 20}]


RESULT = {
    'nova': '34.0.0', 'date': '2026-11-27', 'running': 2, 'at once': 8,
    'load': [0.1, 0.2],
    'machine': {'processor': 'x', 'CPUs': 2, 'memory': '4 GiB',
                'kernel': '6', 'python': '3.11', 'libvirt': '9.0.0',
                'qemu': '7.2.0'},
    'guests': {
        '100': {'periodic update': {'LibvirtDriver': taken(10, 201),
                                    'KVMDriver': taken(0.1, 1)}},
        '400': {'periodic update': {'LibvirtDriver': taken(40, 801),
                                    'KVMDriver': taken(0.4, 1)}}},
    'monitor hangs': {'KVMDriver': taken(5, 1)},
    'boots': {'spawn': {'LibvirtDriver': taken(0.65, 5),
                        'KVMDriver': taken(0.5, 1)},
              'at once': {'LibvirtDriver': taken(8, 40),
                          'KVMDriver': taken(6, 8)}}}


class BenchPageTestCase(base.BaseTestCase):

    def test_rows(self):
        rows = list(bench_dense.rows(RESULT))
        self.assertIn(('periodic update, 100 guests', 'KVMDriver', '1', '7',
                       '0.100', '0.050', '0.010'), rows)
        self.assertIn(('update, a monitor hangs', 'KVMDriver', '1', '7',
                       '5.000', '2.500', ''), rows)
        self.assertEqual({7}, {len(row) for row in rows})

    def test_exponent(self):
        self.assertAlmostEqual(1, bench_dense.exponent(
            RESULT, 'periodic update', 'KVMDriver'))
        self.assertIsNone(bench_dense.exponent(
            RESULT, 'image cache', 'KVMDriver'))

    def test_report(self):
        said = bench_dense.report(RESULT)
        self.assertIn('1.30 times virDomainCreate', said)
        self.assertIn('20.0 guests a minute', said)
        for line in said.splitlines():
            self.assertLessEqual(len(line), 100)

    def test_page(self):
        place = self.useFixture(fixtures.TempDir()).path
        with open(os.path.join(place, 'nova-34.json'), 'w') as f:
            json.dump(RESULT, f)
        with open(os.path.join(place, 'soak.json'), 'w') as f:
            json.dump({'told': [
                {'driver': 'KVMDriver', 'boots': 25, 'MiB': 174.5},
                {'driver': 'KVMDriver', 'boots': 0, 'MiB': 170.5},
                {'driver': 'KVMDriver', 'caches': {}}]}, f)
        text = bench_page.text(bench_page.results(place))
        self.assertIn('Nova 34\n~~~~~~~\n', text)
        self.assertIn('   * - periodic update, 400 guests\n     - KVMDriver\n',
                      text)
        self.assertEqual({'KVMDriver': [(0, 170.5), (25, 174.5)]},
                         bench_page.soak(place))
        self.assertEqual({}, bench_page.soak(place + '/none'))
