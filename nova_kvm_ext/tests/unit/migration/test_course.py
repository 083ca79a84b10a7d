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

"""The arithmetic of a migration's course, by numbers worked out by hand."""

import math
from typing import Any

from oslotest import base

from nova_kvm_ext.migration import verdict


def sample(time: float, iteration: int, remaining: int = 0,
           processed: int = 0, rate: int = 0, **what: Any) -> verdict.Sample:
    return verdict.Sample(time, iteration, 1000, remaining, processed, rate,
                          **what)


def course(*samples: verdict.Sample) -> verdict.Course:
    found = verdict.Course()
    for one in samples:
        found = found.add(one)
    return found


class SampleTestCase(base.BaseTestCase):

    def test_read(self):
        stats = {'time_elapsed': 1500, 'memory_iteration': 2,
                 'memory_total': 4096, 'memory_remaining': 10,
                 'memory_processed': 20, 'memory_bps': 30,
                 'auto_converge_throttle': 40, 'memory_dirty_rate': 5}
        self.assertEqual(
            verdict.Sample(1.5, 2, 4096, 10, 20, 30, 40, 0.5, 5 * 4096),
            verdict.Sample.read(stats, 0.5))
        self.assertEqual(50, verdict.Sample.read(
            stats | {'memory_page_size': 10}).changed)

    def test_what_is_no_number_is_0(self):
        stats = {'memory_iteration': 1, 'memory_total': 1}
        for value in (-1, math.inf, math.nan, '7', None):
            self.assertEqual(0, verdict.Sample.read(
                stats | {'memory_bps': value}).rate)

    def test_what_is_not_said_is_0(self):
        self.assertEqual(verdict.Sample(1, 1, 1, 1, 1, 0, 0, 0, 0),
                         verdict.Sample(1, 1, 1, 1, 1))

    def test_none_before_memory_is_copied(self):
        for stats in ({}, {'memory_iteration': 1}, {'memory_total': 1}):
            self.assertIsNone(verdict.Sample.read(stats))


class CourseTestCase(base.BaseTestCase):

    def test_nothing_has_been_seen_at_first(self):
        self.assertEqual(verdict.Course(None, None, 0, 0, 0, ()),
                         verdict.Course())

    def test_the_first_iteration_began_when_nothing_was_sent(self):
        found = course(sample(3, 1, 900, 100, 50))
        self.assertEqual((1, 1000, 50), (found.began, found.work,
                                         found.fastest))
        # As far as is known.
        self.assertEqual(3, course(sample(3, 1, 900, 100)).began)
        self.assertEqual(0, course(sample(1, 1, 900, 100, 50)).began)

    def test_another_iteration_has_no_beginning(self):
        found = course(sample(3, 2, 900, 100, 50))
        self.assertEqual((None, 0, 50),
                         (found.began, found.work, found.fastest))

    def test_the_fastest_of_an_iteration(self):
        found = course(sample(1, 1, 900, 50, 50), sample(2, 1, 800, 150, 70),
                       sample(2, 1, 800, 150, 60))
        self.assertEqual((70, 0, 60),
                         (found.fastest, found.began, found.last.rate))

    def test_one_that_begins_anew(self):
        """QEMU counts from the beginning after a failed start."""
        before = course(sample(2, 2, 900, 100, 50))
        self.assertEqual(0, before.add(sample(1, 2, 900, 100, 50)).sent)
        for one in (sample(1, 2, 9, 9, 9), sample(3, 1, 9, 9, 9)):
            self.assertEqual(course(one), before.add(one))

    def test_one_that_ends_between_two_samples(self):
        # 100 were left; of the 200 sent in 2 s half are of the new one.
        found = course(sample(0, 1, 1000, 0, 100),
                       sample(9, 1, 100, 900, 100),
                       sample(11, 2, 300, 1100, 100))
        self.assertEqual((10, 400, 1000), (found.began, found.work,
                                           found.sent))
        self.assertEqual(
            (verdict.Iteration(10, 1000, 400, 100, 0),), found.finished)

    def test_what_is_kept_for_the_downtime(self):
        # 1 s is allowed, so that 100 of the 150 need not be sent.
        found = course(sample(0, 1, 1000, 0, 100, allowed=1),
                       sample(9, 1, 150, 850, 100, allowed=1),
                       sample(10, 2, 300, 950, 100, allowed=1))
        # 50 were sent of the new one, which found 300 + 50 - 100.
        self.assertEqual((9.5, 250, 900),
                         (found.began, found.work, found.sent))
        self.assertEqual(
            (verdict.Iteration(9.5, 1000, 250, 100, 100),), found.finished)

    def test_bandwidth_of_the_first_is_the_fastest_seen(self):
        """Pages of zeros are hardly sent."""
        found = course(sample(0, 1, 1000, 0, 0), sample(5, 1, 500, 50, 80),
                       sample(10, 1, 0, 100, 70),
                       sample(10, 2, 300, 100, 70))
        self.assertEqual(80, found.finished[0].bandwidth)

    def test_bandwidth_of_a_later_one(self):
        def third(sent: int) -> verdict.Iteration:
            return course(
                sample(0, 1, 1000, 0, 100), sample(10, 1, 0, 1000, 100),
                sample(10, 2, 400, 1000, 100),
                sample(14, 2, 0, 1000 + sent, 100),
                sample(14, 3, 300, 1000 + sent, 100)).finished[-1]

        # What went over the network, but for many pages of zeros.
        self.assertEqual(verdict.Iteration(4, 400, 300, 75), third(300))
        self.assertEqual(50, third(200).bandwidth)
        self.assertEqual(100, third(199).bandwidth)

    def test_several_between_two_samples(self):
        found = course(sample(10, 2, 50, 1000, 100),
                       sample(12, 6, 90, 1800, 100, allowed=0.5))
        # 4 of 0.5 s and 200; 50 of the 90 are for the downtime.
        self.assertEqual(
            (verdict.Iteration(0.5, 200, 200, 400, 50),), found.finished)
        self.assertEqual((12, 90, 1800),
                         (found.began, found.work, found.sent))
        self.assertEqual((), course(sample(10, 2, 50, 1000, 100), sample(
            10, 6, 90, 1800, 100)).finished)

    def test_several_long_ones_between_two_samples(self):
        """Nova has not looked for 12 s, in which 1200 were sent."""
        before = course(sample(0, 1, 1000, 0, 100),
                        sample(8, 1, 200, 800, 100))
        # The first has ended after 10 s. It and the next ones have left 1000
        # + 200 for the next ones: a mean of 400, in 10, 4 and 4 s.
        found = before.add(sample(20, 4, 200, 2000, 100))
        self.assertEqual(
            (verdict.Iteration(6, 1000, 400, 100),), found.finished)
        # 200 of the 400 were sent.
        self.assertEqual((18, 400, 1800),
                         (found.began, found.work, found.sent))
        # More remains than the mean: the last one has just begun.
        found = before.add(sample(20, 4, 800, 2000, 100))
        self.assertEqual(600, found.finished[0].left)
        self.assertEqual((20, 800, 2000),
                         (found.began, found.work, found.sent))

    def test_long_ones_of_which_nothing_is_known(self):
        # No beginning was seen: the next one has one.
        found = course(sample(8, 2, 200, 800, 100),
                       sample(20, 5, 200, 2000, 100))
        self.assertEqual(((), 18), (found.finished, found.began))
        # Nothing was sent, as where the network was away.
        found = course(sample(0, 1, 1000, 0, 100), sample(8, 1, 9, 800, 100),
                       sample(20, 4, 200, 800, 100))
        self.assertEqual(((), None), (found.finished, found.began))

    def test_a_few_iterations_are_kept(self):
        found = course(*(sample(n, n, 10, 100 * n, 10)
                         for n in range(1, 50)))
        self.assertEqual(verdict._KEPT, len(found.finished))


class WriterTestCase(base.BaseTestCase):

    def test_changes(self):
        self.assertEqual(30, verdict.Writer(10).changes(3))
        self.assertEqual(20, verdict.Writer(10, 20).changes(3))
        # By chance half of 20 are hit after 20 * ln(2) writes.
        self.assertAlmostEqual(10, verdict.Writer(10, 20, True).changes(
            2 * math.log(2)))
        self.assertEqual(verdict.Writer(15, 20, True),
                         verdict.Writer(10, 20, True).faster(1.5))

    def test_one_iteration_says_only_a_rate(self):
        self.assertEqual(
            (verdict.Writer(25),),
            verdict.writers((verdict.Iteration(4, 1000, 100, 100),)))

    def test_two_that_show_a_ceiling(self):
        short, long = (verdict.Iteration(1, 1, 50, 1),
                       verdict.Iteration(4, 1, 80, 1))
        for pair in ((short, long), (long, short)):
            in_turn, at_random = verdict.writers(pair)
            self.assertEqual(verdict.Writer(50, 80), in_turn)
            self.assertTrue(at_random.at_random)
            # It does what was seen of both.
            self.assertAlmostEqual(50, at_random.changes(1), 6)
            self.assertAlmostEqual(80, at_random.changes(4), 6)

    def test_two_of_some_milliseconds(self):
        """Memory of pages that change thousands of times a second."""
        short, long = (verdict.Iteration(0.001, 1, 50, 1),
                       verdict.Iteration(0.004, 1, 51, 1))
        _, at_random = verdict.writers((short, long))
        self.assertAlmostEqual(50, at_random.changes(0.001), 6)
        self.assertAlmostEqual(51, at_random.changes(0.004), 6)

    def test_two_that_show_none(self):
        for first, second in (
                # As many a second; fewer in the longer one; nothing.
                ((1, 50), (2, 100)), ((1, 50), (2, 40)), ((1, 0), (2, 40)),
                ((1, 50), (2, 120)), ((2, 50), (1, 50))):
            (found,) = verdict.writers(tuple(
                verdict.Iteration(seconds, 1, left, 1)
                for seconds, left in (first, second)))
            self.assertEqual(
                verdict.Writer(second[1] / second[0]), found)

    def test_in_the_end(self):
        # It leaves half of what was left each time.
        self.assertEqual(12.5, verdict.in_the_end(
            verdict.Writer(50), 100, 100, 20))
        self.assertEqual(12.5, verdict.in_the_end(
            verdict.Writer(50), 100, 100, 12.5))
        # It never gets less than this.
        self.assertEqual(100, verdict.in_the_end(
            verdict.Writer(100), 100, 100, 20))
        self.assertEqual(30, verdict.in_the_end(
            verdict.Writer(200, 30), 100, 100, 20))


class JudgeTestCase(base.BaseTestCase):

    def judge(self, *finished: verdict.Iteration, auto: bool = False,
              downtime: float = 0.5, **last: Any) -> verdict.Verdict:
        return verdict.judge(
            verdict.Course(last=sample(9, 3, **last), finished=finished),
            verdict.Limits(downtime, auto))

    def outcome(self, *finished: verdict.Iteration, **what: Any
                ) -> verdict.Outcome:
        return self.judge(*finished, **what).outcome

    def test_nothing_is_known_yet(self):
        found = verdict.judge(verdict.Course(), verdict.Limits(0.7))
        self.assertEqual((verdict.Outcome.UNKNOWN, 0, 0.7),
                         (found.outcome, found.iteration, found.allowed))
        self.assertIn('not copied yet', found.why)
        self.assertIn('from its beginning', self.judge().why)
        self.assertIn('from its beginning', self.judge(
            verdict.Iteration(1, 100, 10, 0)).why)

    def test_enough_is_what_fits_into_the_downtime(self):
        # 100 a second: 50 in 0.5 s, of which 20 are kept already.
        for left, kept, wanted in (
                (50, 0, verdict.Outcome.CONVERGES),
                (51, 0, verdict.Outcome.UNKNOWN),
                (30, 20, verdict.Outcome.CONVERGES),
                (31, 20, verdict.Outcome.UNKNOWN),
                # What is sent in 0.1 s is nothing.
                (10, 50, verdict.Outcome.CONVERGES),
                (11, 50, verdict.Outcome.UNKNOWN)):
            found = self.judge(verdict.Iteration(10, 1000, left, 100, kept))
            self.assertIs(wanted, found.outcome, f'{left}, {kept}')
            self.assertEqual(
                (3, left / 10, 100, left + kept),
                (found.iteration, found.changed, found.bandwidth,
                 found.left))
            self.assertEqual((left + kept) / 100, found.downtime)

    def test_more_is_left_than_was_sent(self):
        worse = verdict.Iteration(10, 1000, 2000, 100)
        self.assertIs(verdict.Outcome.STALLS, self.outcome(worse))
        self.assertIn('by 30 % so far', self.judge(
            worse, auto=True, throttle=30).why)
        self.assertIs(verdict.Outcome.UNKNOWN, self.outcome(
            worse, auto=True, throttle=98))
        self.assertIs(verdict.Outcome.STALLS, self.outcome(
            worse, auto=True, throttle=99))

    def test_one_that_leaves_nearly_as_much(self):
        """A steady state, where there were two."""
        steady = verdict.Iteration(10, 1000, 950, 100)
        self.assertIs(verdict.Outcome.UNKNOWN, self.outcome(steady))
        self.assertIs(verdict.Outcome.STALLS, self.outcome(steady, steady))

    def test_a_brief_iteration_needs_qemus_word(self):
        brief = verdict.Iteration(verdict._BRIEF / 2, 100, 200, 100)
        self.assertIs(verdict.Outcome.UNKNOWN, self.outcome(brief))
        for changed, outcome in ((89, verdict.Outcome.UNKNOWN),
                                 (90, verdict.Outcome.STALLS),
                                 (100, verdict.Outcome.STALLS)):
            self.assertIs(outcome, self.outcome(brief, changed=changed))

    def test_iterations_that_begin_while_much_is_to_be_sent(self):
        """As in QEMU 11.1, ten in a second, where post-copy is permitted.

        8.7 MiB are sent in a second. QEMU's dirty rate is said to be less.
        """
        def outcome(seconds: float, faster: float) -> verdict.Outcome:
            samples = []
            for number in range(int(2 * seconds)):
                left = 500 + (-15, 0, 20)[number % 3] + (
                    (faster - 1) * 43 * number / 2)
                samples.append(verdict.Sample(
                    number / 2, 20 + 5 * number, 1000, max(0, int(left)),
                    43 * number // 2, 87, allowed=0.5, changed=60))
            return verdict.judge(course(*samples),
                                 verdict.Limits(0.5)).outcome

        for faster in (1, 1.5):
            self.assertIs(verdict.Outcome.UNKNOWN, outcome(4, faster))
            for seconds in (9, 15, 15.5, 16):
                self.assertIs(verdict.Outcome.STALLS, outcome(seconds, faster))
        for faster in (0, 0.5):
            for seconds in (9, 15):
                self.assertIsNot(verdict.Outcome.STALLS,
                                 outcome(seconds, faster))

    def test_said(self):
        mib = 1 << 20
        found = self.judge(
            verdict.Iteration(10, 1000 * mib, 200 * mib, 50 * mib))
        self.assertEqual(
            'not known, iteration 3: the guest changed 20 MiB/s of its '
            'memory, 50 MiB/s were sent, and 200 MiB were left by the last '
            'iteration; to send these takes 4.00 s, and 0.50 s of downtime '
            'are allowed', str(found))
        self.assertIsNone(verdict.Verdict(changed=5).downtime)
        self.assertIsNone(verdict.Verdict(bandwidth=5).downtime)

    def test_size(self):
        for mib, wanted in ((1.234, '1.23 MiB'), (99.6, '99.6 MiB'),
                            (99.99, '100 MiB'), (100.4, '100 MiB'),
                            (1234.6, '1235 MiB')):
            self.assertEqual(wanted, verdict.size(mib * (1 << 20)))
