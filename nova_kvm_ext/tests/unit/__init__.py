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

# First of all: under eventlet Nova's tests patch the standard library here,
# which must come before anything else is imported.
import nova.tests.unit  # noqa: F401

import os

import hypothesis

from nova_kvm_ext import log
from nova_kvm_ext.tests import policy_file

policy_file.parse_once()
# A test sees its own warnings, whatever the tests before it have seen.
log.REPEATS.quiet = 0
# Where it starts tests, GNU readline in stestr's process sets them to 80 x 24.
for name in 'COLUMNS', 'LINES':
    os.environ.pop(name, None)
# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile(
    'unit', deadline=None, database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile('unit')
