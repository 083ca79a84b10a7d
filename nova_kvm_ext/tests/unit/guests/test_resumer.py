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

import json
import os
import time
from unittest import mock

import fixtures
import libvirt
from oslotest import base

from nova_kvm_ext.guests import reasons
from nova_kvm_ext.guests import resume
from nova_kvm_ext.guests import resumer
from nova_kvm_ext.tests.unit.guests import domains

ENOUGH = resume.Space(1 << 40, 1 << 41)
FULL = resume.Space(0, 1 << 41)


class LookTestCase(base.BaseTestCase):

    def look(self, domain, resume=True, space=ENOUGH):
        with mock.patch.object(resumer, 'space_for', return_value=space):
            with mock.patch.object(time, 'sleep'):
                return resumer.look(domain, resumer.Job('uuid', resume))

    def test_resumed(self):
        domain = domains.Domain(errors={'vda': 2})
        outcome = self.look(domain)
        self.assertEqual(1, domain.resumed)
        self.assertLessEqual(outcome.resumed, time.monotonic())
        self.assertEqual(('no space', ('vda',)),
                         (outcome.cause, outcome.disks))
        # Nothing is lost on the way.
        self.assertIn('/instances/disk', json.dumps(vars(outcome)))

    def test_not_resumed(self):
        for more, kwargs in (({}, {'space': FULL}), ({}, {'resume': False}),
                             ({'errors': {'vda': 1}}, {}),
                             ({'errors': {}}, {}),
                             ({'job': 1}, {}),
                             ({'control': (1, 0, 0), 'asks': False}, {})):
            domain = domains.Domain(**({'errors': {'vda': 2}} | more))
            outcome = self.look(domain, **kwargs)
            self.assertTrue(outcome.paused)
            self.assertIsNone(outcome.resumed)
            self.assertEqual(0, domain.resumed, str((more, kwargs)))

    def test_arrives_by_post_copy(self):
        """libvirt has an error in the place of the job's statistics."""
        domain = domains.Domain(errors={'vda': 2})
        with mock.patch.object(domain, 'jobInfo', side_effect=domains.Error(
                'only on the source host', 84)):
            outcome = self.look(domain)
        self.assertEqual((True, 'no space', None), (
            outcome.paused, outcome.cause, outcome.resumed))
        self.assertEqual(0, domain.resumed)
        with mock.patch.object(domain, 'jobInfo', side_effect=domains.Error(
                'no domain', 42)):
            self.assertRaises(domains.Error, self.look, domain)

    def test_libvirt_that_does_not_resume(self):
        """As where another process has the lock of a disk."""
        domain = domains.Domain(errors={'vda': 2})
        with mock.patch.object(domain, 'resume', side_effect=domains.Error(
                'Failed to get "write" lock', 1)):
            outcome = self.look(domain)
        self.assertEqual('Failed to get "write" lock', outcome.problem)
        self.assertIsNotNone(outcome.resumed)
        self.assertTrue(outcome.paused)
        with mock.patch.object(domain, 'resume', side_effect=ValueError):
            self.assertRaises(ValueError, self.look, domain)

    def test_a_try(self):
        domain = domains.Domain(errors={'vda': 2})
        outcome = self.look(domain, space=None)
        self.assertEqual(1, domain.resumed)
        self.assertIsNone(outcome.may)

    def test_paused_by_request(self):
        for number in (0, 1, 2, 3, 4, 6, 9, 12, 13):
            domain = domains.Domain(state=(3, number), asks=False)
            self.assertEqual(resumer.Outcome('uuid'), self.look(domain))
            self.assertEqual(0, domain.resumed)

    def test_paused_by_request_meanwhile(self):
        domain = domains.Domain(errors={'vda': 2})

        def ask(flags=0):
            domain.now = (3, 1)
            return {'vda': 2}

        with mock.patch.object(domain, 'diskErrors', ask):
            self.assertIsNone(self.look(domain).resumed)
        self.assertEqual(0, domain.resumed)

    def test_busy_for_a_moment(self):
        domain = domains.Domain(errors={'vda': 2})
        with mock.patch.object(domain, 'controlInfo', side_effect=[
                [2, 0, 5]] * 4 + [[0, 0, 0]] * 2):
            # Twice a look: once for its XML.
            self.assertIsNotNone(self.look(domain).resumed)


class SpaceTestCase(base.BaseTestCase):

    def disk(self, place, source):
        return reasons.Disk('vda', '', place, source)

    def test_file(self):
        space = resumer.space_for(self.disk(
            reasons.Place.FILE, os.path.abspath(__file__)))
        self.assertGreaterEqual(space.total, space.free)
        self.assertGreater(space.total, 0)

    def test_cannot_be_looked_at(self):
        for disk in (None, self.disk(reasons.Place.BLOCK, '/dev/null'),
                     self.disk(reasons.Place.NETWORK, 'pool/image'),
                     self.disk(reasons.Place.FILE, ''),
                     self.disk(reasons.Place.FILE, 'relative'),
                     self.disk(reasons.Place.FILE, '/no/such/file')):
            self.assertIsNone(resumer.space_for(disk), disk)


class RoundTestCase(base.BaseTestCase):

    JOBS = (resumer.Job('a', True), resumer.Job('b', False))

    def round(self, uri, jobs=JOBS):
        found = resumer.Round(uri, jobs)
        self.addCleanup(found.kill)
        return found

    def wait(self, found):
        deadline = time.monotonic() + 120
        while not found.over():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)

    def test_no_libvirt(self):
        found = self.round('qemu+unix:///system?socket=/no/such/socket')
        self.wait(found)
        self.assertEqual([], found.outcomes())
        self.assertFalse(found.has_answered('a'))
        found.close()

    def test_answers(self):
        # libvirt's own driver for tests has no such guest.
        found = self.round('test:///default')
        self.wait(found)
        self.assertTrue(found.has_answered('a'))
        outcomes = found.outcomes()
        self.assertEqual({'a', 'b'}, {each.uuid for each in outcomes})
        self.assertEqual([False, False], [each.paused for each in outcomes])
        self.assertTrue(all(each.problem for each in outcomes))
        self.assertEqual([], found.outcomes())
        found.close()

    def test_half_an_answer_waits(self):
        found = self.round('test:///default', ())
        self.wait(found)
        line = json.dumps({'uuid': 'a', 'disks': ['vda']}).encode() + b'\n'
        descriptor = found._answers.fileno()
        os.write(descriptor, line[:10])
        self.assertEqual([], found.outcomes())
        os.write(descriptor, line[10:])
        self.assertEqual([resumer.Outcome('a', disks=('vda',))],
                         found.outcomes())
        found.close()

    def test_no_more_than_a_process_can_be_told(self):
        jobs = [resumer.Job(str(number), True) for number in range(2000)]
        found = self.round('test:///default', jobs)
        self.assertEqual(resumer.MOST_GUESTS, len(found.jobs))


class ExplainTestCase(base.BaseTestCase):

    def explain(self, script, seconds=60.0):
        """With this in the place of the process that asks."""
        python = self.useFixture(fixtures.TempDir()).join('python')
        with open(python, 'w') as f:
            f.write(f'#!/bin/sh\necho $$ > $0.pid\necho "$@" > $0.args\n'
                    f'{script}\n')
        os.chmod(python, 0o700)
        with mock.patch.object(resumer.sys, 'executable', python):
            found = resumer.explain('uri', ['a', 'b'], seconds)
        with open(f'{python}.args') as f:
            # None is resumed.
            self.assertEqual(['uri', '-a', '-b'], f.read().split()[-3:])
        with open(f'{python}.pid') as f:
            self.assertRaises(ProcessLookupError, os.kill, int(f.read()), 0)
        return found

    def answer(self, uuid, **more):
        return 'echo \'' + json.dumps(
            {'uuid': uuid, 'disks': ['vda'], **more}) + '\''

    def test_answers(self):
        found = self.explain('\n'.join((
            self.answer('a', paused=True, words='x'), self.answer('b'))))
        # The other is not paused by an error any more.
        self.assertEqual({'a': resumer.Outcome(
            'a', paused=True, words='x', disks=('vda',))}, found)

    def test_not_waited_for_once_all_have_answered(self):
        found = self.explain('\n'.join((
            self.answer('a', paused=True), self.answer('b', paused=True),
            'exec sleep 600')))
        self.assertEqual({'a', 'b'}, set(found))

    def test_one_that_does_not_answer(self):
        found = self.explain('\n'.join((
            self.answer('a', paused=True), 'exec sleep 600')), seconds=1)
        self.assertEqual({'a'}, set(found))

    def test_no_libvirt(self):
        self.assertEqual({}, resumer.explain(
            'qemu+unix:///system?socket=/no/such/socket', ['a']))


class RunTestCase(base.BaseTestCase):

    def run_round(self, guests):
        """What is done, in its order."""
        order = []
        connection = mock.Mock(lookupByUUIDString=guests.__getitem__)
        with (mock.patch.object(libvirt, 'open', return_value=connection),
                mock.patch.object(resumer, 'space_for', return_value=ENOUGH),
                mock.patch.object(resumer, 'AT_ONCE', 1),
                mock.patch.object(resumer, '_say', lambda outcome:
                                  order.append(outcome.uuid)),
                mock.patch.object(resumer, '_set_clock', lambda domain:
                                  order.append(f'{domain.uuid} clock'))):
            resumer.run('uri', [resumer.Job(uuid, True) for uuid in guests])
        return order

    def test_clocks_come_last(self):
        """300 agents that hang are no reason that guests stay paused."""
        guests = {uuid: domains.Domain(errors={'vda': 2}, uuid=uuid)
                  for uuid in ('a', 'b', 'c')}
        guests['c'].errors = {'vda': 1}
        self.assertEqual(['a', 'b', 'c', 'a clock', 'b clock'],
                         self.run_round(guests))

    def test_no_clock_of_one_that_libvirt_does_not_resume(self):
        guest = domains.Domain(errors={'vda': 2}, uuid='a')
        with mock.patch.object(guest, 'resume', side_effect=domains.Error(
                'no')):
            self.assertEqual(['a'], self.run_round({'a': guest}))


class StuckTestCase(base.BaseTestCase):

    def test_too_many_are_stuck(self):
        guests = {str(number): domains.Domain(
            errors={'vda': 2}, control=(2, 0, 10 ** 6))
            for number in range(resumer.MOST_STUCK)}
        guests['good'] = domains.Domain(errors={'vda': 2})
        connection = mock.Mock(lookupByUUIDString=guests.__getitem__)
        jobs = [resumer.Job(uuid, True) for uuid in guests]
        with (mock.patch.object(libvirt, 'open', return_value=connection),
                mock.patch.object(resumer, 'space_for', return_value=ENOUGH),
                mock.patch.object(time, 'sleep'),
                mock.patch.object(resumer, '_say') as said):
            resumer.run('uri', jobs)
            said.assert_not_called()
            del guests['0']
            resumer.run('uri', [job for job in jobs if job.uuid != '0'])
        self.assertEqual(1, guests['good'].resumed)
        self.assertEqual(resumer.MOST_STUCK, said.call_count)
