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


"""Runs the tests in the machine, all in this one process.

Importing Nova takes most of a minute there. Reads what to run from
``machine.json`` of the environment, and writes to the machine's ports: the
results in subunit's format, and for who watches a line of JSON for each test.
"""

# First of all, as in boot/worker.py.
import nova.cmd.compute  # noqa: F401

import datetime
import json
import os
import sys
from typing import Any
import unittest

import subunit
import testtools

from nova_kvm_ext.tests.kvm import base
from nova_kvm_ext.tests.kvm import migration


class _Said(testtools.StreamResult):
    """Says each test's outcome and seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._started: dict[str, datetime.datetime] = {}

    def status(  # type: ignore[override]
            self, test_id: str | None = None, test_status: str | None = None,
            timestamp: datetime.datetime | None = None, **kwargs: Any
    ) -> None:
        if test_id is None or test_status is None or timestamp is None:
            return
        if test_status == 'inprogress':
            self._started[test_id] = timestamp
            return
        base.say('test', id=test_id, status=test_status, seconds=(
            timestamp - self._started.get(test_id, timestamp)
        ).total_seconds())


def main() -> int:
    """Exit code: 0 all passed, 1 a test failed."""
    base.say('log', text='the tests are being loaded')
    # Longer than base.Child waits for one step of a test on a busy host.
    os.environ['OS_TEST_TIMEOUT'] = '3600'
    with open(os.path.join(sys.prefix, 'machine.json')) as f:
        told = json.load(f)
    if not told['tests']:
        migration.serve()
        return 0
    tests = unittest.defaultTestLoader.loadTestsFromNames(told['tests'])
    summary = testtools.StreamSummary()
    result: Any = testtools.ExtendedToStreamDecorator(
        testtools.CopyStreamResult([
            subunit.StreamResultToBytes(base.port('results')), _Said(),
            summary]))
    result.startTestRun()
    tests.run(result)
    result.stopTestRun()
    return 0 if summary.wasSuccessful() else 1


if __name__ == '__main__':
    sys.exit(main())
