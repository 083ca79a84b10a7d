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

"""Prometheus' text format of samples and counters, and its file.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import os
import tempfile

import prometheus_client
from prometheus_client import core
from prometheus_client import registry

from nova_kvm_ext.metrics import counted
from nova_kvm_ext.metrics import names
from nova_kvm_ext.metrics import samples


class _Collector(registry.Collector):
    """Hands prometheus_client what was collected already."""

    def __init__(self, families: Iterable[core.Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[core.Metric]:
        return self._families


def render(found: Iterable[samples.Sample], counts: counted.Counts | None
           ) -> bytes:
    """The text of all metrics.

    :param counts: what nova-compute counted; None where that is not known
    """
    collected = prometheus_client.CollectorRegistry(auto_describe=False)
    collected.register(_Collector([
        *_gauges(found), *(() if counts is None else _counted(counts))]))
    return prometheus_client.generate_latest(collected)


def _gauges(found: Iterable[samples.Sample]) -> Iterator[core.Metric]:
    families: dict[str, core.GaugeMetricFamily] = {}
    for sample in found:
        metric = sample.metric
        if metric.name not in families:
            families[metric.name] = core.GaugeMetricFamily(
                metric.name, metric.help, labels=list(metric.labels))
        families[metric.name].add_metric(sample.labels, sample.value)
    yield from families.values()


def _counted(counts: counted.Counts) -> Iterator[core.Metric]:
    since = core.GaugeMetricFamily(
        names.COUNTED_SINCE.name, names.COUNTED_SINCE.help)
    since.add_metric((), counts.since)
    yield since
    for metric in names.COUNTED.values():
        if metric.kind is names.Kind.HISTOGRAM:
            histogram = counts.histograms.get(metric.name)
            numbers = [0] * (len(metric.buckets) + 1) if (
                histogram is None) else histogram.counts
            bounds = [*map(str, metric.buckets), '+Inf']
            yield core.HistogramMetricFamily(
                metric.name, metric.help, buckets=[
                    (bound, sum(numbers[:at + 1]))
                    for at, bound in enumerate(bounds)],
                sum_value=0.0 if histogram is None else histogram.total)
            continue
        family = core.CounterMetricFamily(
            metric.name, metric.help, labels=list(metric.labels))
        series = counts.counters.get(metric.name, {})
        for key in sorted({*series, *metric.series}):
            family.add_metric(key, series.get(key, 0))
        yield family


def write(path: str, text: bytes) -> None:
    """Replace the file of node_exporter's textfile collector.

    It takes files whose name ends in ``.prom``, and must never see half of
    one: https://github.com/prometheus/node_exporter#textfile-collector

    :param path: of the file, readable for all users afterwards
    :raises OSError: it cannot be written; the old one is left as it was
    """
    directory = os.path.dirname(os.path.abspath(path))
    descriptor, temporary = tempfile.mkstemp(
        prefix='.nova-kvm-ext-', suffix='.tmp', dir=directory)
    try:
        with os.fdopen(descriptor, 'wb') as f:
            f.write(text)
            os.fchmod(f.fileno(), 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
