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


"""The result of a live migration that has ended, in one line.

Pure: takes the statistics of libvirt's event for a completed job
(VIR_DOMAIN_EVENT_ID_JOB_COMPLETED), the same as those of
virDomainGetJobStats() with VIR_DOMAIN_JOB_STATS_COMPLETED. Any entry may be
missing.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from nova_kvm_ext.migration import verdict


@dataclasses.dataclass(frozen=True)
class Completed:
    """A live migration that has ended. None is what is not known.

    :ivar seconds: that it took
    :ivar downtime: seconds for which the guest was stopped
    :ivar iterations: over its memory
    :ivar sent: bytes, of memory and disks
    :ivar throughput: bytes a second, of memory
    """

    seconds: float | None = None
    downtime: float | None = None
    iterations: int | None = None
    sent: int | None = None
    throughput: float | None = None

    @classmethod
    def read(cls, stats: Mapping[str, Any]) -> 'Completed':
        """From the statistics of a completed job."""
        def number(name: str) -> int | None:
            value = stats.get(name)
            return (value if isinstance(value, int) and value >= 0 and
                    not isinstance(value, bool) else None)

        def seconds(name: str) -> float | None:
            value = number(name)
            return None if value is None else value / 1000

        return cls(seconds('time_elapsed'), seconds('downtime'),
                   number('memory_iteration'), number('data_processed'),
                   number('memory_bps') or None)

    @classmethod
    def until(cls, sample: verdict.Sample) -> 'Completed':
        """What the last look at a job that runs told of its end."""
        return cls(sample.time, None, sample.iteration, sample.processed,
                   sample.rate or None)

    def __str__(self) -> str:
        def said(value: float | None, form: str) -> str:
            return 'not known' if value is None else form.format(value)

        def size(value: float | None, unit: str) -> str:
            return ('not known' if value is None else
                    verdict.size(value) + unit)

        return (f'downtime {said(self.downtime, "{:.3f} s")}, iterations '
                f'{said(self.iterations, "{}")}, sent '
                f'{size(self.sent, "")}, throughput '
                f'{size(self.throughput, "/s")}, duration '
                f'{said(self.seconds, "{:.1f} s")}')
