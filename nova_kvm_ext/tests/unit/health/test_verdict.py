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

"""What the state of nova-compute means, by its table of limits."""

import copy
from typing import Any

from oslotest import base

from nova_kvm_ext import exit_codes
from nova_kvm_ext.health import verdict

WELL: dict[str, Any] = {
    'version': 1, 'host': 'a', 'written': 5e8, 'clock': 1000.0,
    'boot_id': 'this', 'phase': 'running', 'since': 100.0, 'interval': 60,
    'process': {'pid': 7, 'started': 9, 'namespace': 'pid:[1]'},
    'update': {'began': 990.0, 'finished': 1000.0, 'succeeded': 1000.0,
               'error': ''},
    'libvirt': {'answers': True, 'since': 100.0, 'seen': 1000.0,
                'reason': ''},
    'placement': {'answered': 1000.0},
    'host_check': {'mode': 'enforce', 'at': 990.0,
                   'results': {'KVM101': 'PASS', 'KVM105': 'WARN'},
                   'fault': ''}}


def state(**changes):
    """WELL with members changed, those of an inner one by its name."""
    made = copy.deepcopy(WELL)
    for name, value in changes.items():
        if isinstance(value, dict):
            made[name].update(value)
        else:
            made[name] = value
    return made


class VerdictTestCase(base.BaseTestCase):

    def judge(self, clock=1010.0, process=verdict.RUNS, boot='this',
              **changes):
        parts = verdict.judge(state(**changes), clock, boot, process)
        self.parts = {part.name: part for part in parts}
        return ' '.join(self.parts[name].result for name in (
            'nova-compute', 'libvirt', 'Placement', 'host check'))

    def test_codes(self):
        self.assertEqual(
            {code.name: int(code) for code in exit_codes.ExitCode
             if code.name in verdict.CODES}, verdict.CODES)

    def test_well(self):
        self.assertEqual('PASS PASS PASS PASS', self.judge())
        self.assertEqual('PASS PASS PASS PASS',
                         self.judge(process=verdict.NOT_SEEN))
        self.assertEqual('PASS PASS PASS PASS', self.judge(boot=''))
        self.assertEqual(
            {'nova-compute': 'it runs; last update 10 s ago',
             'libvirt': 'it answered 10 s ago',
             'Placement': 'it answered 10 s ago',
             'host check': '2 checks, no failure 20 s ago'},
            {name: part.details for name, part in self.parts.items()})

    def test_the_file_has_this_version(self):
        self.assertEqual(WELL['version'], verdict.VERSION)

    def test_a_look_that_began_as_the_last_one_ended(self):
        """That is a clock with large steps, and none is under way."""
        self.assertEqual('PASS PASS PASS PASS', self.judge(
            1065, update={'began': 1000.0}))

    def test_no_time_is_negative(self):
        for clock in 990.5, 999.9, 1000.0, 1000.4:
            self.judge(clock)
            self.assertEqual('it answered 0 s ago',
                             self.parts['libvirt'].details)

    def test_since_when_libvirt_does_not_answer(self):
        self.judge(libvirt={'answers': False, 'since': 960.0,
                            'reason': 'lost'})
        self.assertEqual('it does not answer, since 50 s: lost',
                         self.parts['libvirt'].details)

    def test_the_worst_first(self):
        self.judge(libvirt={'answers': False, 'since': 960.0},
                   host_check={'fault': 'x', 'mode': 'warn'},
                   placement={'answered': None}, interval=None)
        self.assertEqual(
            ['libvirt', 'host check', 'Placement', 'nova-compute'],
            [part.name for part in verdict.ordered(self.parts.values())])

    def test_the_process(self):
        for process in verdict.ENDED, verdict.STOPPED:
            self.assertEqual('FAIL UNKNOWN UNKNOWN UNKNOWN',
                             self.judge(process=process))
            self.assertIn('before nova-compute failed: it answered',
                          self.parts['libvirt'].details)

    def test_what_failed_before_stays_a_failure(self):
        self.assertEqual(
            'FAIL FAIL UNKNOWN UNKNOWN', self.judge(
                process=verdict.ENDED,
                libvirt={'answers': False, 'since': 900, 'reason': 'lost'}))

    def test_booted_again(self):
        self.assertEqual('FAIL UNKNOWN UNKNOWN UNKNOWN',
                         self.judge(boot='another'))

    def test_starting(self):
        fresh = {'phase': 'starting', 'since': 1000.0,
                 'update': {'began': None, 'finished': None,
                            'succeeded': None},
                 'libvirt': {'answers': None},
                 'placement': {'answered': None},
                 'host_check': {'at': None, 'results': {}}}
        self.assertEqual('WARN UNKNOWN UNKNOWN UNKNOWN',
                         self.judge(1300, **fresh))
        self.assertEqual('FAIL UNKNOWN UNKNOWN UNKNOWN',
                         self.judge(1301, **fresh))
        # Started, and Nova has not asked yet.
        fresh['phase'] = 'running'
        self.assertEqual('PASS UNKNOWN UNKNOWN UNKNOWN',
                         self.judge(1120, **fresh))
        self.assertEqual('WARN UNKNOWN UNKNOWN UNKNOWN',
                         self.judge(1121, **fresh))
        self.assertEqual('FAIL UNKNOWN UNKNOWN UNKNOWN',
                         self.judge(1181, **fresh))

    def test_updates_that_do_not_come(self):
        for clock, results in ((1120, 'PASS PASS PASS PASS'),
                               (1121, 'WARN UNKNOWN PASS PASS'),
                               (1180, 'WARN UNKNOWN PASS PASS'),
                               (1181, 'FAIL UNKNOWN UNKNOWN UNKNOWN')):
            self.assertEqual(results, self.judge(clock), str(clock))
        self.assertIn('message bus', self.parts['nova-compute'].details)
        self.assertEqual('PASS PASS PASS PASS',
                         self.judge(1660, interval=600))
        self.assertEqual('WARN UNKNOWN PASS PASS',
                         self.judge(1661, interval=600))

    def test_updates_that_are_switched_off(self):
        self.assertEqual('PASS PASS PASS PASS',
                         self.judge(99999, interval=None))
        self.assertIn('not known', self.parts['nova-compute'].details)

    def test_a_look_that_lasts(self):
        for clock, results in ((1070, 'PASS PASS PASS PASS'),
                               (1071, 'WARN UNKNOWN PASS PASS'),
                               (1130, 'WARN UNKNOWN PASS PASS'),
                               (1131, 'FAIL UNKNOWN UNKNOWN UNKNOWN')):
            self.assertEqual(results, self.judge(
                clock, update={'began': 1010}), str(clock))

    def test_updates_that_fail(self):
        broken = {'finished': 1005, 'began': 1001, 'error': 'no database'}
        self.assertEqual('WARN PASS PASS PASS', self.judge(update=broken))
        self.assertIn('no database', self.parts['nova-compute'].details)
        broken = {'finished': 1185, 'began': 1184, 'error': 'no database'}
        self.assertEqual('FAIL UNKNOWN UNKNOWN UNKNOWN',
                         self.judge(1190, update=broken))
        for clock, result in ((1180, 'WARN'), (1181, 'FAIL')):
            self.judge(clock, update={
                'finished': 1175, 'began': 1174, 'error': 'no database'})
            self.assertEqual(result, self.parts['nova-compute'].result)
        # What libvirt is to blame for is not said twice.
        self.assertEqual('PASS FAIL PASS PASS', self.judge(
            1190, update=broken, libvirt={
                'answers': False, 'since': 1003, 'reason': 'lost: 1'}))
        self.assertIn('lost: 1', self.parts['libvirt'].details)

    def test_placement(self):
        for looked, result in ((1060, 'PASS'), (1090, 'PASS'),
                               (1091, 'WARN'), (1120, 'WARN'),
                               (1150, 'WARN'), (1151, 'FAIL'),
                               (1180, 'FAIL')):
            update = {'began': looked - 1, 'finished': looked,
                      'succeeded': looked}
            self.judge(looked + 1, update=update)
            self.assertEqual(result, self.parts['Placement'].result,
                             str(looked))
            self.judge(looked + 1, update=update,
                       since=1000, placement={'answered': None})
            self.assertEqual(
                'UNKNOWN' if result == 'PASS' else result,
                self.parts['Placement'].result, str(looked))

    def test_the_host_check(self):
        fault = 'Host check KVM404 x: full.'
        self.assertEqual('PASS PASS PASS FAIL', self.judge(
            host_check={'fault': fault}))
        self.assertEqual(fault, self.parts['host check'].details)
        self.assertEqual('PASS PASS PASS WARN', self.judge(
            host_check={'fault': fault, 'mode': 'warn'}))
        self.assertEqual('PASS PASS PASS PASS', self.judge(
            host_check={'fault': fault, 'mode': 'off'}))

    def test_worst(self):
        def worst(*results):
            return verdict.worst(verdict.Part('a', result, '')
                                 for result in results)

        self.assertEqual('FAIL', worst('PASS', 'UNKNOWN', 'FAIL', 'WARN'))
        self.assertEqual('WARN', worst('PASS', 'UNKNOWN', 'WARN'))
        self.assertEqual('UNKNOWN', worst('PASS', 'UNKNOWN'))
        self.assertEqual('PASS', worst('PASS', 'PASS'))
        self.assertEqual('UNKNOWN', worst())

    def test_file_names_stay_in_their_directory(self):
        for host, name in (('cmp-1.example', 'of-cmp-1.example.json'),
                           ('../a', 'of-..%2Fa.json'), ('..', 'of-...json'),
                           ('é', 'of-%C3%A9.json')):
            self.assertEqual(name, verdict.file_name(host))
