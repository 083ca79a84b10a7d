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

"""Counters of nova-compute that survive its restarts.

Snapshots that were not quiesced, refused images and verdicts on migrations
happen inside the service and leave no other trace. One small file for each
service in ``[DEFAULT] state_path``, always replaced as a whole, has the
counters; ``nova-kvm-ext metrics`` reads it.

:mod:`nova_kvm_ext.metrics.names` limits the series. Counting never raises,
waits for no guest and writes at most once a second.
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

from nova_kvm_ext import log
from nova_kvm_ext.metrics import counted
from nova_kvm_ext.metrics import names

LOG = log.getLogger(__name__)

_EVERY_SECONDS = 1.0


class Counters:
    """Counts, and writes what was counted to a file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._path: str | None = None
        self._counts = counted.Counts(time.time())
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
        file = counted.path(state_path, service)
        with self._lock:
            if file == self._path:
                return
            before = counted.read(file)
            self._path = file
            if before is not None:
                self._merge(before)
        self.flush()
        if not self._at_exit:
            self._at_exit = True
            atexit.register(self.flush)

    def _merge(self, before: counted.Counts) -> None:
        now = self._counts
        if before.since:
            now.since = min(now.since, before.since)
        for name, series in before.counters.items():
            mine = now.counters.setdefault(name, {})
            for key, number in series.items():
                mine[key] = mine.get(key, 0) + number
        for name, histogram in before.histograms.items():
            own = now.histograms.setdefault(
                name, counted.Histogram([0] * len(histogram.counts)))
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
            if key in series or len(series) < counted.MOST_SERIES:
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
                metric.name,
                counted.Histogram([0] * (len(metric.buckets) + 1)))
            histogram.counts[at] += 1
            histogram.total += max(0.0, value)
            self._dirty = True
        self._write()

    def counts(self) -> counted.Counts:
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
