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


"""Has libvirt measure how much memory a running guest changes.

virDomainStartDirtyRateCalc() (libvirt 7.2) has QEMU watch the guest for some
seconds: QEMU compares some pages with their earlier content, which costs the
guest nothing. The other modes are not used: QEMU 7.2 crashes with
"dirty-bitmap" if the guest is emulated, and "dirty-ring" needs a guest that is
made for it. virDomainListGetStats() reports the result:
https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainStartDirtyRateCalc
"""

from collections.abc import Callable
from collections.abc import Mapping
import time
from typing import Any

from nova_kvm_ext import errors
from nova_kvm_ext.migration import forecast

# Of libvirt-domain.h; this floor is handed what libvirt gives.
_PAGE_SAMPLING = 0
_STATS_DIRTYRATE = 1 << 9
_MEASURED = 2

_MIB = 1024 * 1024
_EVERY = 0.1
_LATE = 30
"""Seconds that QEMU may take longer than it was told to."""


def measure(connection: Any, domain: Any, seconds: int,
            sleep: Callable[[float], None] = time.sleep,
            clock: Callable[[], float] = time.monotonic
            ) -> forecast.Measured:
    """How much memory a guest changes in so many seconds.

    :param seconds: 1 to 60
    :raises errors.HostError: QEMU does not end, or the guest has ended
    :raises Exception: libvirt's, as where the guest does not run, or QEMU is
        measuring it already
    """
    domain.startDirtyRateCalc(seconds, _PAGE_SAMPLING)
    deadline = clock() + seconds + _LATE
    sleep(seconds)
    while True:
        answers = connection.domainListGetStats(
            [domain], _STATS_DIRTYRATE, 0)
        stats: Mapping[str, Any] = answers[0][1] if answers else {}
        # QEMU says -1 as long as it does not know.
        rate = stats.get('dirtyrate.megabytes_per_second', -1)
        if stats.get('dirtyrate.calc_status') == _MEASURED and rate >= 0:
            # In whole MiB (QEMU, "dirty-rate" of query-dirty-rate).
            return forecast.Measured(seconds, rate * _MIB)
        if not domain.isActive():
            raise errors.HostError(
                'The guest has ended while it was measured.',
                'Measure a guest that runs.')
        if clock() > deadline:
            raise errors.HostError(
                f'QEMU has not measured the guest within '
                f'{seconds + _LATE} s.', 'Try it again when the host is less '
                'busy.')
        sleep(_EVERY)
