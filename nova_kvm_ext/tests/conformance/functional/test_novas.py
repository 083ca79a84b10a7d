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

"""Nova's functional tests of its libvirt driver, on ours."""

import unittest

# First of all: they patch the standard library for eventlet, Nova 32's second.
import nova.tests.functional  # noqa: F401
import nova.test  # noqa: F401,H306

from nova_kvm_ext.tests.conformance import steady
from nova_kvm_ext.tests.conformance import suites
from nova_kvm_ext.tests.conformance import swap

swap.swap()
steady.steady()


def load_tests(loader: unittest.TestLoader, tests: unittest.TestSuite,
               pattern: str | None) -> unittest.TestSuite:
    return suites.load(loader, suites.functional())
