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

"""What nova-compute counts, kept over its restarts.

A snapshot that was not quiesced, a refused image, a verdict on a migration:
they happen inside the service and leave nothing else behind. One small file
for each service below ``[DEFAULT] state_path``, replaced whole, holds them;
``nova-kvm-ext metrics`` reads it.

Which series there can be is bounded by :mod:`nova_kvm_ext.metrics.names`.
Counting never raises, waits for no guest and writes at most once a second.
"""

import atexit
from collections.abc import Mapping
import contextlib
import dataclasses
import json
import math
import os
import tempfile
import threading
import time
from typing import Any
import urllib.parse

from nova_kvm_ext import log
from nova_kvm_ext.metrics import names

LOG = log.getLogger(__name__)

_DIRECTORY = 'kvm-ext-counters'
_BYTES = 1 << 20
_MOST_SERIES = 500
"""Series of one metric whose label has no fixed list, as codes."""

_EVERY_SECONDS = 1.0


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
                len(found) < _MOST_SERIES):
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


class Counters:
    """Counts, and writes what was counted to a file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._path: str | None = None
        self._counts = Counts(time.time())
        self._written = -math.inf
        self._dirty = False
        self._at_exit = False
        self._failed = False

    def open(self, state_path: str, service: str) -> None:
        """Go on with what the service counted before.

        What was counted until now is added.

        :param state_path: ``[DEFAULT] state_path``, which outlives it
        :param service: ``[DEFAULT] host``
        """
        file = path(state_path, service)
        with self._lock:
            if file == self._path:
                return
            before = read(file)
            self._path = file
            if before is not None:
                self._merge(before)
        self.flush()
        if not self._at_exit:
            self._at_exit = True
            atexit.register(self.flush)

    def _merge(self, before: Counts) -> None:
        now = self._counts
        if before.since:
            now.since = min(now.since, before.since)
        for name, series in before.counters.items():
            mine = now.counters.setdefault(name, {})
            for key, number in series.items():
                mine[key] = mine.get(key, 0) + number
        for name, histogram in before.histograms.items():
            own = now.histograms.setdefault(
                name, Histogram([0] * len(histogram.counts)))
            own.counts = [a + b for a, b in zip(own.counts,
                                                histogram.counts)]
            own.total += histogram.total

    def add(self, metric: names.Metric, *values: str) -> None:
        """Count one.

        :param values: of the metric's labels, in their order; one that is in
            no table counts as :data:`names.OTHER`
        """
        key = tuple(metric.value(label, value) for label, value in
                    zip(metric.labels, values, strict=True))
        with self._lock:
            series = self._counts.counters.setdefault(metric.name, {})
            if key in series or len(series) < _MOST_SERIES:
                series[key] = series.get(key, 0) + 1
                self._dirty = True
        self._write()

    def observe(self, metric: names.Metric, value: float) -> None:
        """Take an observation into a histogram.

        :param value: in the unit that the metric's name has
        """
        at = next((at for at, bound in enumerate(metric.buckets)
                   if value <= bound), len(metric.buckets))
        with self._lock:
            histogram = self._counts.histograms.setdefault(
                metric.name, Histogram([0] * (len(metric.buckets) + 1)))
            histogram.counts[at] += 1
            histogram.total += max(0.0, value)
            self._dirty = True
        self._write()

    def counts(self) -> Counts:
        """What is counted; for tests."""
        return self._counts

    def flush(self) -> None:
        """Write what was counted since it was written last."""
        self._write(at_once=True)

    def _write(self, at_once: bool = False) -> None:
        problem: OSError | None = None
        with self._lock:
            now = time.monotonic()
            if self._path is None or not self._dirty or (
                    not at_once and now - self._written < _EVERY_SECONDS):
                return
            self._written = now
            try:
                _replace(self._path, self._document())
                self._dirty = self._failed = False
            except OSError as e:
                # Counted on in memory; the next time it is tried again.
                if not self._failed:
                    problem = e
                self._failed = True
        if problem is not None:
            # Without the lock: this message is counted, too.
            LOG.warning('KVML902 What this service counts for nova-kvm-ext '
                        'metrics cannot be written: %s', problem)

    def _document(self) -> Mapping[str, Any]:
        counts = self._counts
        return {'since': counts.since} | {
            name: [[list(key), number] for key, number in series.items()]
            for name, series in counts.counters.items()} | {
            name: dataclasses.asdict(histogram)
            for name, histogram in counts.histograms.items()}


def _replace(file: str, document: Mapping[str, Any]) -> None:
    """Replace a file whole, readable for all."""
    directory = os.path.dirname(file)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(
        prefix='.writing-', dir=directory)
    try:
        with os.fdopen(descriptor, 'w') as f:
            json.dump(document, f)
            os.fchmod(f.fileno(), 0o644)
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


COUNTERS = Counters()
"""Those of this process. nova-compute opens them when it starts."""
