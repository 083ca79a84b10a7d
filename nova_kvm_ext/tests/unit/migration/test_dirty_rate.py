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


"""Measuring how much memory a guest changes, and what follows from it."""

import itertools
from typing import Any
from unittest import mock

import libvirt
from oslotest import base

from nova_kvm_ext import errors
from nova_kvm_ext.migration import dirty_rate
from nova_kvm_ext.migration import forecast
from nova_kvm_ext.migration import verdict

MIB = 1024 * 1024


class Connection:
    """A libvirt that is done after so many questions."""

    def __init__(self, rate: int, after: int = 2) -> None:
        self._rate = rate
        self._left = after
        self.asked: list[Any] = []

    def domainListGetStats(self, domains: Any, stats: int, flags: int) -> Any:
        self.asked.append((domains, stats, flags))
        self._left -= 1
        return [(domains[0], {'dirtyrate.calc_status': 1} if self._left else {
            'dirtyrate.calc_status': 2,
            'dirtyrate.megabytes_per_second': self._rate})]


class MeasureTestCase(base.BaseTestCase):

    def test_measured(self):
        domain, connection = mock.Mock(), Connection(7)
        sleep = mock.Mock()
        found = dirty_rate.measure(
            connection, domain, 5, sleep, lambda: 0)
        self.assertEqual(forecast.Measured(5, 7 * MIB), found)
        # VIR_DOMAIN_DIRTYRATE_MODE_PAGE_SAMPLING, VIR_DOMAIN_STATS_DIRTYRATE
        domain.startDirtyRateCalc.assert_called_once_with(5, 0)
        self.assertEqual([([domain], 512, 0)] * 2, connection.asked)
        self.assertEqual(mock.call(5), sleep.call_args_list[0])

    def test_qemu_that_does_not_know(self):
        """It says -1, which is no rate and has no root."""
        connection = mock.Mock()
        connection.domainListGetStats.side_effect = [
            [(None, {'dirtyrate.calc_status': 2,
                     'dirtyrate.megabytes_per_second': rate})]
            for rate in (-1, 0)]
        self.assertEqual(forecast.Measured(1, 0), dirty_rate.measure(
            connection, mock.Mock(), 1, mock.Mock(), lambda: 0))

    def test_never_ends(self):
        ticks = itertools.count(0, 10)
        self.assertRaises(
            errors.HostError, dirty_rate.measure, Connection(1, 10 ** 6),
            mock.Mock(), 1, mock.Mock(),
            lambda: next(ticks))

    def test_guest_that_ends_meanwhile(self):
        answers: list[Any] = [[], [(None, {})], [(None, {
            'dirtyrate.calc_status': 2})]]
        for answer in answers:
            connection, domain = mock.Mock(), mock.Mock()
            connection.domainListGetStats.return_value = answer
            domain.isActive.return_value = False
            error = self.assertRaises(
                errors.HostError, dirty_rate.measure, connection, domain, 1,
                mock.Mock(), lambda: 0)
            self.assertIn('has ended', str(error))

    def test_libvirts_errors_pass(self):
        domain = mock.Mock()
        domain.startDirtyRateCalc.side_effect = ValueError('not running')
        self.assertRaises(ValueError, dirty_rate.measure, Connection(1),
                          domain, 1)

    def test_numbers_are_libvirts(self):
        self.assertEqual(libvirt.VIR_DOMAIN_DIRTYRATE_MODE_PAGE_SAMPLING,
                         dirty_rate._PAGE_SAMPLING)
        self.assertEqual(libvirt.VIR_DOMAIN_STATS_DIRTYRATE,
                         dirty_rate._STATS_DIRTYRATE)
        self.assertEqual(libvirt.VIR_DOMAIN_DIRTYRATE_MEASURED,
                         dirty_rate._MEASURED)


class ForecastTestCase(base.BaseTestCase):

    def forecast(self, long: float, short: float, bandwidth: float = 8,
                 memory: float = 1024, allowed: float = 0.5
                 ) -> forecast.Forecast:
        return forecast.forecast(
            forecast.Measured(10, long * MIB),
            forecast.Measured(1, short * MIB), memory * MIB,
            bandwidth * MIB, allowed)

    def outcome(self, *args: float, **kwargs: float) -> str:
        return self.forecast(*args, **kwargs).outcome.name

    def test_idle(self):
        self.assertEqual('CONVERGES', self.outcome(0, 0))
        self.assertEqual('CONVERGES', self.outcome(0, 0, bandwidth=1000))

    def test_slow(self):
        self.assertEqual('CONVERGES', self.outcome(1, 2))
        self.assertEqual('CONVERGES', self.outcome(4, 4, 20))
        self.assertEqual('CONVERGES', self.outcome(100, 100, 1000))

    def test_fast(self):
        self.assertEqual('STALLS', self.outcome(20, 20))
        self.assertEqual('STALLS', self.outcome(6.4, 64))
        self.assertEqual('STALLS', self.outcome(2000, 3000, 1000))

    def test_a_small_ceiling(self):
        # 4 MiB are written to all the time: 0.4 MiB/s in ten seconds.
        self.assertEqual('CONVERGES', self.outcome(0, 4, bandwidth=20))

    def test_few_pages_are_looked_at(self):
        # Two pages of those that QEMU looked at had changed, or none; that may
        # be one, or six.
        self.assertEqual('UNKNOWN', self.outcome(4, 4))
        self.assertEqual('UNKNOWN', self.outcome(0, 0, bandwidth=3))
        self.assertIn('few pages', self.forecast(4, 4).why)

    def test_the_long_look_counts(self):
        # 200 MiB in ten seconds are 16 in each, or more at once.
        self.assertEqual('STALLS', self.outcome(20, 20))
        for short in (0, 2):
            found = self.forecast(20, short)
            self.assertIs(verdict.Outcome.UNKNOWN, found.outcome)
            self.assertIn('does not write alike', found.why)
            self.assertGreater(found.needed, 20 * MIB)
        self.assertEqual('CONVERGES', self.outcome(20, 0, bandwidth=100))
        # No guest changes more than its memory.
        self.assertEqual(256 * MIB, self.forecast(
            12.8, 128, memory=128).needed)

    def test_paused(self):
        found = forecast.forecast(
            forecast.Measured(10, 0), forecast.Measured(1, 0), 128 * MIB,
            MIB, 0.5, paused=True)
        self.assertIs(verdict.Outcome.CONVERGES, found.outcome)
        self.assertIn('is paused', found.why)
        self.assertEqual(128, found.first)

    def test_how_wrong_a_measurement_may_be(self):
        mib = 1 << 20
        for seconds, rate, wrong in (
                # Two looks can miss 3 MiB; a rate is rounded by half a MiB;
                # 95 of 100 samples of 50 pages are no further off than 14.
                (1, 0, 3), (10, 0, 5), (4, 0, 3), (1, 100, 28.284271)):
            measured = forecast.Measured(seconds, rate * mib)
            self.assertAlmostEqual(seconds * rate + wrong,
                                   measured.changed(1) / mib, 5)
            self.assertAlmostEqual(max(0, seconds * rate - wrong),
                                   measured.changed(-1) / mib, 5)

    def test_what_a_paused_guest_takes(self):
        look = forecast.Measured(1, 0)
        for bandwidth, first in ((10, 100), (0, None)):
            found = forecast.forecast(look, look, 1000, bandwidth, 0.5, True)
            self.assertEqual((first, 0, 0, 0), (
                found.first, found.left, found.downtime, found.needed))

    def test_near_the_bandwidth(self):
        self.assertEqual('UNKNOWN', self.outcome(8, 8))
        self.assertEqual('UNKNOWN', self.outcome(7.8, 8))

    def test_bandwidth_not_known(self):
        found = self.forecast(20, 20, bandwidth=0)
        self.assertIs(verdict.Outcome.UNKNOWN, found.outcome)
        self.assertIsNone(found.first)
        self.assertIn('live_migration_bandwidth is 0', found.why)

    def test_the_bandwidth_needed_suffices(self):
        for long, short in ((20, 20), (6.4, 64), (0, 3), (4, 4), (1, 9)):
            needed = self.forecast(long, short, bandwidth=0).needed / MIB
            self.assertEqual('CONVERGES', self.outcome(
                long, short, bandwidth=needed * 1.01), f'{long} {short}')

    def test_numbers(self):
        found = self.forecast(6.4, 64)
        self.assertEqual(128, found.first)
        self.assertAlmostEqual(8, found.downtime, delta=1)
        self.assertEqual(found.left / 8 / MIB, found.downtime)
        # Both looks saw 64 MiB change. That is what is left, and not the
        # most that may have changed.
        self.assertAlmostEqual(64, found.left / MIB, delta=0.1)

    def test_the_most_that_may_have_changed(self):
        # 9 MiB in a second, and 12 in ten: by chance up to 17.5 and 21.8.
        found = self.forecast(1.2, 9)
        self.assertAlmostEqual(17.485, found.needed * 0.5 / MIB, 2)
        # 30 MiB in a second, and 12 in ten: these have the last word.
        found = self.forecast(1.2, 30)
        self.assertAlmostEqual(21.798, found.needed * 0.5 / MIB, 2)
