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

"""What the layout bed says of what it saw."""

import configparser
import json
import threading
from unittest import mock
from urllib import request

from http import server
from oslotest import base

from nova_kvm_ext.tests.layouts import placement
from nova_kvm_ext.tests.layouts import report
from nova_kvm_ext.tests.layouts import system


def _layout(*results, missing=''):
    steps = [report.Step(result, f'what was seen {number}', 12.3)
             for number, result in enumerate(results)]
    return report.Layout('Debian 13, full disk', missing=missing, **dict(
        zip(('starts', 'check', 'boots'), steps)))


class ReportTestCase(base.BaseTestCase):

    def test_good(self):
        layouts = [_layout('yes', 'yes', 'yes'), _layout('-', 'yes', '-')]
        self.assertEqual(0, report.exit_code(layouts))
        self.assertEqual([True, True], [
            found['good'] for found in report.for_programs(layouts)])

    def test_wrong(self):
        for position in range(3):
            results = ['yes'] * 3
            results[position] = 'NO'
            self.assertEqual(1, report.exit_code([
                _layout('yes', 'yes', 'yes'), _layout(*results),
                report.Layout('split', missing='no root')]))

    def test_not_tried(self):
        self.assertEqual(2, report.exit_code([]))
        self.assertEqual(2, report.exit_code([
            _layout('yes', 'yes', 'yes'),
            report.Layout('split', missing='no root')]))
        # What was not looked at is not good.
        self.assertEqual(1, report.exit_code([report.Layout('split')]))

    def test_table(self):
        text = report.table([
            _layout('yes', 'NO', '-'),
            report.Layout('split', missing='no root ' * 30)])
        self.assertLessEqual(max(map(len, text.splitlines())), 80)
        self.assertEqual(
            'Debian 13, full disk'.ljust(29) + 'yes 12 s'.rjust(17) +
            'NO 12 s'.rjust(17) + '-'.rjust(17), text.splitlines()[1])
        for number in range(3):
            self.assertIn(f'what was seen {number}', text)
        self.assertIn('no root no root', text)
        json.dumps(report.for_programs([_layout('yes', 'NO', '-')]))

    def test_looked(self):
        def no():
            raise system.Wrong('service ended')

        def not_here():
            raise report.NotHere('no virtqemud')

        clock = iter(range(9)).__next__
        self.assertEqual(
            report.Step('yes', 'up', 1), report.looked(lambda: 'up', clock))
        self.assertEqual(
            report.Step('NO', 'service ended', 1), report.looked(no, clock))
        self.assertEqual(
            report.Step('-', 'no virtqemud', 1),
            report.looked(not_here, clock))


class SystemTestCase(base.BaseTestCase):

    def test_settings(self):
        text = system.as_text(system.merged(
            system.COMMON, {'kvm_ext': {'virt_type': 'kvm', 'cpu_model': 'x'},
                            'libvirt': {'connection_uri': 'qemu:///system'}}))
        found = configparser.ConfigParser(default_section='')
        found.read_string(text)
        self.assertEqual({'virt_type': 'kvm', 'cpu_model': 'x'},
                         dict(found['kvm_ext']))
        self.assertEqual('kvm_ext.KVMDriver',
                         found['DEFAULT']['compute_driver'])
        self.assertEqual('auto', system.COMMON['kvm_ext']['virt_type'])

    def test_host_check(self):
        rows = {'KVM101': {'result': 'PASS', 'details': 'a'},
                'KVM204': {'result': 'WARN', 'details': 'b'},
                'KVM405': {'result': 'FAIL', 'details': 'full'}}
        self.assertEqual({'KVM405': 'full'}, system.bad(rows))
        self.assertEqual(
            'exit code 2; 1 PASS, 1 WARN, 1 FAIL (KVM204)\n'
            'KVM405 FAIL: full', system.told(2, rows))

    def test_errors_of(self):
        self.assertEqual('1 ERROR b', system.errors_of(
            '1 INFO a\n1 ERROR b\n1 INFO c'))
        self.assertEqual('a | b', system.errors_of('a\nb'))

    def test_wait_for(self):
        self.assertEqual('x', system.wait_for('x', lambda: 'x'))
        e = self.assertRaises(
            system.Wrong, system.wait_for, 'socket', lambda: None, -1)
        self.assertIn('no socket', str(e))


class RegisteredTestCase(base.BaseTestCase):
    """When nova-compute is up, and when it is not."""

    def _here(self, before, after, ended, log):
        here = system.System(mock.Mock())
        rows = iter([before])

        def start(name, _):
            here._daemons[name] = mock.Mock(
                **{'poll.return_value': ended, 'returncode': ended})

        patched = mock.patch.multiple(
            here, service=lambda: next(rows, after), path=mock.Mock(),
            start=start, compute_log=lambda: log)
        patched.start()
        self.addCleanup(patched.stop)
        here.start_compute('nova-compute')
        return here

    def test_first_start(self):
        here = self._here(
            {}, {'report_count': 0, 'disabled': 0}, None,
            'x INFO y Guests run with virt_type=qemu (why).')
        self.assertEqual('Guests run with virt_type=qemu (why). Service '
                         'enabled', here.registered())

    def test_ended_before_it_registered(self):
        here = self._here({}, {}, 1, '1 ERROR no such user')
        e = self.assertRaises(system.Wrong, here.registered)
        self.assertIn('nova-compute ended with 1', str(e))
        self.assertIn('no such user', str(e))

    def test_ended_after_an_earlier_one_had_registered(self):
        row = {'report_count': 7, 'disabled': 0}
        here = self._here(row, row, 0, '')
        e = self.assertRaises(system.Wrong, here.registered)
        self.assertIn('nova-compute ended with 0', str(e))

    def test_another_driver(self):
        here = self._here({}, {'report_count': 0, 'disabled': 0}, None,
                          'x INFO started')
        e = self.assertRaises(system.Wrong, here.registered)
        self.assertIn('not with KVMDriver', str(e))


class PlacementTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        serving = server.HTTPServer(('127.0.0.1', 0), placement.Handler)
        self.url = f'http://127.0.0.1:{serving.server_port}'
        thread = threading.Thread(target=serving.serve_forever,
                                  kwargs={'poll_interval': 0.05})
        thread.start()
        self.addCleanup(serving.server_close)
        self.addCleanup(thread.join)
        self.addCleanup(serving.shutdown)

    def _ask(self, method, path, body=None):
        with request.urlopen(request.Request(
                self.url + path, method=method,
                data=None if body is None else json.dumps(body).encode()),
                timeout=30) as answer:
            return json.loads(answer.read() or 'null')

    def test_inventory_is_kept(self):
        self._ask('POST', '/resource_providers', {'uuid': 'u', 'name': 'n'})
        self._ask('PUT', '/resource_providers/u/inventories', {
            'resource_provider_generation': 0,
            'inventories': {'VCPU': {'total': 2}}})
        self.assertEqual(
            {'resource_provider_generation': 1,
             'inventories': {'VCPU': {'total': 2}}},
            self._ask('GET', '/resource_providers/u/inventories'))
        [found] = self._ask('GET', '/resource_providers?in_tree=u')[
            'resource_providers']
        self.assertEqual(('n', 1), (found['name'], found['generation']))
        self.assertEqual([], self._ask(
            'GET', '/resource_providers?in_tree=v')['resource_providers'])
