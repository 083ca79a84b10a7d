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

"""Reads the counters of nova-compute from their file.

:mod:`nova_kvm_ext.counters` writes the file. :mod:`nova_kvm_ext.metrics.names`
limits the series, for any content of the file.
"""

import dataclasses
import json
import math
import os
from typing import Any
import urllib.parse

from nova_kvm_ext.metrics import names

_DIRECTORY = 'kvm-ext-counters'
_BYTES = 1 << 20
MOST_SERIES = 500
"""Series of one metric whose label has no fixed list, as codes."""


@dataclasses.dataclass
class Histogram:
    """Observations.

    :ivar counts: one for each bucket, not added up, and the last for more
    """

    counts: list[int]
    total: float = 0.0


@dataclasses.dataclass
class Counts:
    """What was counted.

    :ivar since: seconds since 1970
    :ivar counters: numbers by name of the metric and values of its labels
    :ivar histograms: by name
    """

    since: float = 0.0
    counters: dict[str, dict[tuple[str, ...], int]] = dataclasses.field(
        default_factory=dict)
    histograms: dict[str, Histogram] = dataclasses.field(default_factory=dict)


def path(state_path: str, service: str) -> str:
    """The file of a service.

    :param state_path: ``[DEFAULT] state_path``
    :param service: its own name, ``[DEFAULT] host``
    """
    return os.path.join(
        state_path, _DIRECTORY,
        f'of-{urllib.parse.quote(service, safe="")}.json')


def read(file: str) -> Counts | None:
    """What a service has counted.

    What cannot be understood is left out: a counter that begins at 0 again
    is nothing that Prometheus has not seen.

    :returns: None where there is no such file, or it is none of ours
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW |
                             os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, 'rb') as f:
            whole = json.loads(f.read(_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(whole, dict):
        return None
    found = Counts(_number(whole.get('since')))
    for metric in names.COUNTED.values():
        if metric.kind is names.Kind.HISTOGRAM:
            histogram = _histogram(metric, whole.get(metric.name))
            if histogram is not None:
                found.histograms[metric.name] = histogram
        else:
            found.counters[metric.name] = _series(
                metric, whole.get(metric.name))
    return found


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return 0.0
    return float(value) if math.isfinite(value) and value >= 0 else 0.0


def _series(metric: names.Metric, rows: Any) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    for row in rows if isinstance(rows, list) else ():
        if not (isinstance(row, list) and len(row) == 2 and
                isinstance(row[0], list)):
            continue
        values, number = row
        if (len(values) == len(metric.labels) and
                all(isinstance(value, str) for value in values) and
                len(found) < MOST_SERIES):
            found[tuple(
                metric.value(label, value)[:100]
                for label, value in zip(metric.labels, values))] = int(
                    _number(number))
    return found


def _histogram(metric: names.Metric, row: Any) -> Histogram | None:
    if not isinstance(row, dict) or not isinstance(row.get('counts'), list):
        return None
    counts = [int(_number(count)) for count in row['counts']]
    if len(counts) != len(metric.buckets) + 1:
        # Another release had other buckets.
        return None
    return Histogram(counts, _number(row.get('total')))
