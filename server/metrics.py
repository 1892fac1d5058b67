"""Numbers of one server for Prometheus. Owns their names; docs/metrics.md explains each.

What a part counts anyway is asked for when Prometheus reads (`pull`); the rest is counted where it happens. Every
application has a registry of its own. No label has a value that a client chooses.
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
"""One value, or one for each tuple of label values."""


class Metrics:
    """Counted on the event loop, read from there as well."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_Pulled(self))
        self._pulls: list[Callable[[], Family]] = []
        Info(f"{PREFIX}build", "The running program.", registry=self.registry).info({"version": version})
        self.batches = self._counter("ingest_batches", "Batches that were committed.")
        self.values = self._counter("ingest_values", "Numbers in committed batches: scalars and layer statistics.")
        self.received_bytes = self._counter("ingest_received_bytes", "Bytes of frames that training processes sent.")
        self.refusals = self._counter("ingest_refusals", "Errors that training processes were told.", "code")
        self.commit_seconds = Histogram(
            f"{PREFIX}ingest_commit_seconds",
            "From a decoded batch to its durable commit.",
            buckets=COMMIT_BUCKETS,
            registry=self.registry,
        )
        self.live_resyncs = self._counter("live_resyncs", "Times that a viewer was too slow and frames were dropped.")
        self.alerts = self._counter("alerts", "Changes of alerts.", "kind", "state")
        self.turned_away = self._counter(
            "connections_turned_away", "Connections that were closed to keep the bounds of the process.", "cause"
        )
        self.logins = self._counter("logins", "Logins of the dashboard.", "result")

    def pull(
        self, name: str, text: str, kind: Literal["counter", "gauge"], ask: Callable[[], Values], *labels: str
    ) -> None:
        """Have ``ask`` called whenever Prometheus reads. It must be quick."""
        make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily

        def family() -> Family:
            found = make(PREFIX + name, text, labels=labels)
            values = ask()
            for label_values, value in values.items() if isinstance(values, Mapping) else (((), values),):
                found.add_metric(label_values, value)
            return found

        self._pulls.append(family)

    def families(self) -> Iterator[Family]:
        return (family() for family in self._pulls)

    def page(self) -> bytes:
        """What Prometheus reads."""
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
