"""The server metrics of one process for Prometheus. Owns their names; docs/reference/server-metrics.md explains each.

Values that a part of the server keeps anyway are read when Prometheus asks (`pull`); the others are counted where they
occur. Every application has its own registry. No client can choose the value of a label, except the names of the few
runs that `server.api.run_risk` exports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "spikewatch_"
COMMIT_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds

Family = CounterMetricFamily | GaugeMetricFamily
Values = float | Mapping[tuple[str, ...], float]
"""A single value, or one value per tuple of label values."""


class Metrics:
    """Counters, gauges and histograms of one application. Used from the event loop only."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_Pulled(self))
        self._pulls: list[Callable[[], Family]] = []
        Info(f"{PREFIX}build", "The running program.", registry=self.registry).info({"version": version})
        self.batches = self._counter("ingest_batches", "Batches that were committed.")
        self.values = self._counter("ingest_values", "Values in committed batches: scalars and layer statistics.")
        self.received_bytes = self._counter("ingest_received_bytes", "Bytes of frames from training processes.")
        self.refusals = self._counter("ingest_refusals", "Errors sent to training processes.", "code")
        self.commit_seconds = Histogram(
            f"{PREFIX}ingest_commit_seconds",
            "Time from a decoded batch to its durable commit.",
            buckets=COMMIT_BUCKETS,
            registry=self.registry,
        )
        self.live_resyncs = self._counter("live_resyncs", "Times that a viewer was too slow and lost frames.")
        self.alerts = self._counter("alerts", "Changes of alerts.", "kind", "state")
        self.turned_away = self._counter(
            "connections_turned_away", "Connections closed to keep the limits of the process.", "cause"
        )
        self.logins = self._counter("logins", "Logins of the dashboard.", "result")

    def pull(
        self, name: str, text: str, kind: Literal["counter", "gauge"], ask: Callable[[], Values], *labels: str
    ) -> None:
        """Add a metric whose value is ``ask()`` at the time that Prometheus reads it. ``ask`` must return quickly."""
        make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily

        def family() -> Family:
            found = make(PREFIX + name, text, labels=labels)
            values = ask()
            for label_values, value in values.items() if isinstance(values, Mapping) else (((), values),):
                found.add_metric(label_values, value)
            return found

        self._pulls.append(family)

    def families(self) -> Iterator[Family]:
        """Yield the metrics that were added with `pull`, with their current values."""
        return (family() for family in self._pulls)

    def page(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, labelnames=labels, registry=self.registry)


class _Pulled(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Family]:
        return ()

    def collect(self) -> Iterable[Family]:
        return self._metrics.families()
