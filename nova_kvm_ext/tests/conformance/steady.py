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

"""What Nova's functional tests lack to be steady on native threads.

With Nova 34.0.0 their fixture CellDatabases points the whole process at one
cell at a time, under a lock that keeps new readers out while a writer waits.
There one reader waits for another thread, which wants to read: so many a run
hangs for ever. And a look-up of one thread may meet the cell of another
("Compute host host_a could not be found"), in about one test of a hundred on
busy cores. Delete this module once that fixture is safe.

As a program it prints which of the tests that are named on standard input, a
line each, have not passed according to a subunit stream; it tries nothing
itself.
"""

from collections.abc import Iterable
import faulthandler
import importlib
import os
import sys
from typing import Any
from typing import BinaryIO

import subunit
import testtools

from nova_kvm_ext.tests.conformance import swap

_GRACE = 60
"""Seconds for the clean-up of a test, which no limit of Nova's covers."""

_PASSED = ('success', 'skip', 'xfail')


def steady() -> None:
    """Change Nova's tests so that they do not hang, or not for ever.

    Call it after ``nova.tests.functional`` has patched the standard library.
    """
    # By its whole name: that package has another thing called nova.
    fixture = importlib.import_module('nova.tests.fixtures.nova')
    # Writers wait until there is no reader, and readers for no writer that
    # waits.
    fixture.ReaderWriterLock.has_pending_writers = False
    end_hung_tests()


def end_hung_tests() -> None:
    """Have a test of Nova's that hangs end its process, with all stacks.

    The limit is the one that Nova gives the test, and a minute. The same holds
    for what comes after a test, the process's own end too. The tests that were
    to come have not passed then.
    """
    # Not before nova.tests has patched the standard library.
    from nova import test

    if 'OS_TEST_TIMEOUT' not in os.environ:
        return
    run = test.TestCase.run

    def bounded(self: Any, result: Any = None) -> Any:
        limit = int(os.environ['OS_TEST_TIMEOUT'])
        faulthandler.dump_traceback_later(
            limit * self.TIMEOUT_SCALING_FACTOR + _GRACE, exit=True)
        try:
            return run(self, result)
        finally:
            # The process may not come to its end.
            swap.write_calls()
            faulthandler.dump_traceback_later(_GRACE, exit=True)

    test.TestCase.run = bounded


def not_passed(wanted: Iterable[str], stream: BinaryIO) -> list[str]:
    """Those of these tests that do not pass in a stream of subunit."""
    passed = set()

    def note(test: Any) -> None:
        if test['status'] in _PASSED:
            passed.add(test['id'])

    result = testtools.StreamToDict(note)
    result.startTestRun()
    subunit.ByteStreamToStreamResult(
        stream, non_subunit_name='stdout').run(result)
    result.stopTestRun()
    return [test for test in wanted if test not in passed]


if __name__ == '__main__':
    with open(sys.argv[1], 'rb') as _stream:
        print(*not_passed(sys.stdin.read().split(), _stream), sep='\n')
