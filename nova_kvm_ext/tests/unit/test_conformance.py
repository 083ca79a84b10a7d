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

"""The machinery that runs Nova's own tests: what must fail there, fails."""

import io
import json
import os
import subprocess
import sys
from typing import Any
import unittest

import fixtures
from nova.virt.libvirt import driver as libvirt_driver
from oslotest import base
import subunit
import testtools

from nova_kvm_ext import contract
from nova_kvm_ext import driver
from nova_kvm_ext.tests.conformance import differences
from nova_kvm_ext.tests.conformance import steady
from nova_kvm_ext.tests.conformance import swap


class NovasTestCase(testtools.TestCase):
    """Stands for a class of Nova's; its tests are called by name only."""

    def passes(self) -> None:
        pass

    def fails(self) -> None:
        self.assertEqual(1, 2)

    def raises(self) -> None:
        raise KeyError('x')


class DifferencesTestCase(base.BaseTestCase):

    def run_listed(self, *tests: str, releases: tuple[int, ...] = ()
                   ) -> testtools.TestResult:
        self.useFixture(fixtures.MonkeyPatch(
            'nova_kvm_ext.tests.conformance.differences.DIFFERENCES',
            (differences.Difference(
                f'{__name__}.NovasTestCase', tests, 'so it should be',
                releases),)))
        suite = unittest.TestSuite(
            NovasTestCase(name) for name in ('passes', 'fails', 'raises'))
        result = testtools.TestResult()
        differences.mark(suite, __name__).run(result)
        return result

    def test_unlisted(self):
        result = self.run_listed()
        self.assertEqual((1, 1), (len(result.failures), len(result.errors)))

    def test_listed_failures_are_expected(self):
        result = self.run_listed('fails', 'raises')
        self.assertTrue(result.wasSuccessful())
        self.assertEqual(2, len(result.expectedFailures))

    def test_a_listed_test_that_passes_fails(self):
        result = self.run_listed('passes', 'fails', 'raises')
        (case, text), = result.failures
        self.assertIn('passes', case.id())
        self.assertIn('delete its row', text)

    def test_a_row_of_another_release(self):
        result = self.run_listed('fails', releases=(1,))
        self.assertEqual(1, len(result.failures))

    def test_a_row_without_a_test(self):
        error = self.assertRaises(LookupError, self.run_listed, 'gone')
        self.assertIn('gone', str(error))


class CallsTestCase(base.BaseTestCase):

    def added_up(self, *counts: dict[str, int]) -> tuple[int, str, str]:
        directory = self.useFixture(fixtures.TempDir())
        for number, counted in enumerate(counts):
            with open(directory.join(f'{number}.json'), 'w') as f:
                json.dump(counted, f)
        out, err = io.StringIO(), io.StringIO()
        with fixtures.MonkeyPatch('sys.stdout', out), \
                fixtures.MonkeyPatch('sys.stderr', err):
            code = swap.main(directory.path)
        return code, out.getvalue(), err.getvalue()

    def test_all_called(self):
        code, out, _ = self.added_up({'a': 1, 'b': 0}, {'a': 0, 'b': 2})
        self.assertEqual(0, code)
        self.assertIn('2  b', out)

    def test_one_never_called(self):
        code, _, err = self.added_up({'a': 1, 'b': 0}, {'a': 0, 'b': 0})
        self.assertEqual(1, code)
        self.assertIn('b', err)

    def test_one_that_nova_does_not_come_to(self):
        found = {f'KVMDriver.{name}'
                 for name, _ in contract.overrides(driver.KVMDriver)}
        for name in swap.NOT_CALLED:
            self.assertIn(name, found)
            self.assertEqual(0, self.added_up({'a': 1, name: 0})[0])

    def test_nothing_counted(self):
        self.assertEqual(1, self.added_up()[0])


class SteadyTestCase(base.BaseTestCase):

    def test_what_has_not_passed(self):
        stream = io.BytesIO()
        write = subunit.StreamResultToBytes(stream)
        for test, *states in (('passed', 'inprogress', 'success'),
                              ('left out', 'skip'), ('differs', 'xfail'),
                              ('failed', 'inprogress', 'fail'),
                              ('differs no more', 'uxsuccess'),
                              ('ended its process', 'inprogress')):
            for state in states:
                write.status(test_id=test, test_status=state)
        stream.seek(0)
        self.assertEqual(
            ['failed', 'differs no more', 'ended its process', 'never began'],
            steady.not_passed(
                ['passed', 'left out', 'differs', 'failed', 'differs no more',
                 'ended its process', 'never began'], stream))

    def test_a_test_that_hangs_ends_its_process(self):
        """After Nova's own limit is gone, as where that happened."""
        program = """
import nova.tests.functional
import threading
import unittest
from nova import test
from nova_kvm_ext.tests.conformance import steady

class HungTestCase(test.NoDBTestCase):
    def setUp(self):
        self.addCleanup(threading.Event().wait)
        super().setUp()
    def runTest(self):
        pass

steady._GRACE = 0
steady.end_hung_tests()
unittest.TextTestRunner().run(HungTestCase())
"""
        ended = subprocess.run(
            [sys.executable, '-c', program], capture_output=True, text=True,
            timeout=100, env={**os.environ, 'OS_TEST_TIMEOUT': '2'})
        self.assertEqual(1, ended.returncode, ended.stderr)
        self.assertIn('Timeout (0:00:02)!', ended.stderr)


class ShellTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MonkeyPatch(
            'nova_kvm_ext.tests.conformance.swap._calls', {}))
        self.shell = swap._shell(
            driver.KVMDriver, libvirt_driver.LibvirtDriver)

    def test_novas_name_and_our_methods(self):
        self.assertEqual('LibvirtDriver', self.shell.__name__)
        self.assertTrue(issubclass(self.shell, driver.KVMDriver))

    def test_static_and_class_methods_are_its_own(self):
        """What fixtures.MonkeyPatch would otherwise leak as functions."""
        for name in ('_get_io_devices', '_uri'):
            self.assertIn(name, vars(self.shell))

    def test_every_override_is_counted(self):
        self.assertIn('KVMDriver.init_host', swap._calls)
        made: Any = object.__new__(self.shell)
        self.assertRaises(AttributeError, made._get_guest_config, *[None] * 4)
        self.assertEqual(1, swap._calls['KVMDriver._get_guest_config'])
