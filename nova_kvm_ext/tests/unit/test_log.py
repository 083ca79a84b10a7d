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

import logging
import threading
from unittest import mock

import fixtures
from oslo_context import context
from oslotest import base

from nova_kvm_ext import log
from nova_kvm_ext import log_codes


class _Lines(logging.Handler):

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))


class RepeatsTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.now = 1000.0
        self.repeats = log.Repeats(60, lambda: self.now)
        self.useFixture(fixtures.MonkeyPatch(
            'nova_kvm_ext.log.REPEATS', self.repeats))
        self.log = log.getLogger(f'{__name__}.{self.id()}')
        self.handler = _Lines()
        self.log.logger.addHandler(self.handler)
        self.log.logger.setLevel(logging.INFO)
        self.log.logger.propagate = False
        self.instance = mock.Mock(uuid='an instance')

    def said(self) -> list[str]:
        lines, self.handler.lines = self.handler.lines, []
        return [text for _, text in lines]

    def test_said_once_and_then_with_the_number(self):
        for _ in range(7):
            self.log.warning('KVML405 %s', 'hangs', instance=self.instance)
            self.now += 9
        self.assertEqual(['KVML405 hangs'], self.said())
        self.now = 1060
        self.log.warning('KVML405 %s', 'hangs', instance=self.instance)
        self.assertEqual(['KVML405 hangs (left out in the last 60 s: 6 more '
                          'of this)'], self.said())

    def test_what_goes_on_is_said_less_and_less(self):
        times = []
        for minute in range(24 * 60):
            self.now = 1000 + 60 * minute
            self.log.error('KVML410 a')
            if self.said():
                times.append(minute)
        self.assertEqual([0, 1, 3, 7, 15, 31, 63, 123, 183], times[:9])
        self.assertEqual({60}, {b - a for a, b in zip(times[7:], times[8:],
                                                      strict=False)})

    def test_what_comes_back_is_said_at_once(self):
        for self.now in 1000, 1060, 1120, 2000:
            self.log.error('KVML410 a')
        self.assertEqual(3, len(self.said()))
        for self.now in 2030, 2060:
            self.log.error('KVML410 a')
        self.assertEqual(1, len(self.said()))

    def test_other_things_are_said(self):
        other = mock.Mock(uuid='another')
        for _ in range(2):
            self.log.warning('KVML305 a', instance=self.instance)
            self.log.warning('KVML305 a', instance=other)
            self.log.warning('KVML305 b', instance=other)
            self.log.warning('KVML304 b', instance=other)
            self.log.info('KVML304 b', instance=other)
            for uuid in 'one', 'two':
                self.log.warning('KVML813 a', instance_uuid=uuid)
        self.assertEqual(8, len(self.said()))

    def test_a_subject_is_the_thing_whatever_the_text(self):
        for seconds in 1, 2, 3:
            self.log.warning('KVML305 after %d s', seconds, subject='mac',
                             instance=self.instance)
            self.log.warning('KVML305 after %d s', seconds, subject='mac 2',
                             instance=self.instance)
        self.assertEqual(2, len(self.said()))

    def test_two_requests_are_two_snapshots(self):
        self.assertTrue(log_codes.BY_CODE['KVML404'].each_request)
        for _ in range(2):
            context.RequestContext(overwrite=True)
            for _ in range(3):
                self.log.error('KVML404 a', instance=self.instance)
                self.log.error('KVML405 a', instance=self.instance)
        self.assertEqual(['KVML404 a', 'KVML405 a', 'KVML404 a'], self.said())

    def test_the_code_of_a_check(self):
        for _ in range(2):
            self.log.error('%s', 'Host check KVM404 x: full.')
        self.assertEqual(1, len(self.said()))

    def test_debug_has_them_all(self):
        self.log.logger.setLevel(logging.DEBUG)
        for _ in range(2):
            self.log.warning('KVML305 100%% {} %s', 'a')
        self.assertEqual([('WARNING', 'KVML305 100% {} a'),
                          ('DEBUG', 'KVML305 100% {} a')],
                         self.handler.lines)

    def test_a_number_after_an_odd_text(self):
        for self.now in 1000, 1001, 1061:
            self.log.warning('KVML305 100% {} %(a)s')
        self.assertIn('1 more', self.said()[-1])

    def test_wrong_arguments_are_not_ours(self):
        record = logging.LogRecord('a', logging.ERROR, 'a', 1, '%d %d', ('a',),
                                   None)
        self.assertTrue(self.repeats.filter(record))

    def test_bounded(self):
        for number in range(log.KEPT + 50):
            self.log.warning('KVML305 a', subject=number)
            # It is seen all the time.
            self.log.warning('KVML305 a', subject='b')
        self.assertEqual(log.KEPT, len(self.repeats))
        self.said()
        self.log.warning('KVML305 a', subject=number)
        self.log.warning('KVML305 a', subject='b')
        self.assertEqual([], self.said())
        self.log.warning('KVML305 a', subject=1)
        self.assertEqual(1, len(self.said()))

    def test_many_threads_say_it_once(self):
        start = threading.Barrier(8)

        def speak():
            start.wait()
            for number in range(200):
                self.log.warning('KVML305 a', subject=number)

        threads = [threading.Thread(target=speak) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(200, len(self.said()))
        self.assertEqual(7 * 200, sum(
            said.left_out for said in self.repeats._said.values()))

    def test_every_logger_of_the_package_has_it(self):
        self.useFixture(fixtures.MonkeyPatch(
            'nova_kvm_ext.log.REPEATS', log.Repeats()))
        one = log.getLogger('nova_kvm_ext.one')
        self.assertIs(one, log.getLogger('nova_kvm_ext.one'))
        self.assertEqual(1, one.logger.filters.count(log.REPEATS))
