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

"""The part of the driver for metrics: opens and writes the counters."""

from nova import conf as nova_conf

from nova_kvm_ext import counters
from nova_kvm_ext.host.checks import runner
from nova_kvm_ext import log
from nova_kvm_ext import log_codes
from nova_kvm_ext.metrics import names

CONF = nova_conf.CONF


def start(host: str) -> None:
    """Go on with what this service counted before it was started.

    :param host: nova-compute's name of this host
    """
    counters.COUNTERS.open(CONF.state_path, host)
    log.listen(_logged)


def keep() -> None:
    """Write what was counted and not written yet; called periodically."""
    counters.COUNTERS.flush()


def _logged(code: str) -> None:
    # A message may quote what a guest wrote.
    if code in log_codes.BY_CODE or code in runner.codes():
        counters.COUNTERS.add(names.LOGGED, code)
