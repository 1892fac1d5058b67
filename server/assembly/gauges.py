"""Gauges whose values Prometheus reads directly from the parts of a server."""

from __future__ import annotations

from collections.abc import Callable

from server.broker import Broker
from server.ingest.endpoint import IngestEndpoint
from server.live import LiveEndpoint
from server.metrics import Metrics
from server.pipeline.pipeline import Pipeline
from server.storage.measurements.compaction import Compactor


def add_gauges(
    metrics: Metrics,
    *,
    ingest: IngestEndpoint,
    live: LiveEndpoint,
    pipeline: Pipeline,
    compactor: Compactor,
    broker: Broker,
) -> None:
    """Add one gauge for each value to the metrics of a server; docs/reference/server-metrics.md explains them."""
    gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
        ("ingest_connections", "Open sockets of training processes.", lambda: ingest.connections),
        ("ingest_queued_frames", "Frames that were read and are not committed yet.", lambda: ingest.queued_frames),
        ("live_viewers", "Open live sockets, including those of dashboards.", lambda: live.viewers),
        ("followers", "Runs whose detectors are in memory.", lambda: len(pipeline.followers)),
        (
            "follower_lag_seconds",
            "Seconds for which the slowest detectors have had unread segments.",
            lambda: pipeline.followers.lag,
        ),
        ("compaction_backlog_records", "Records in segments that wait for compaction.", lambda: compactor.backlog),
        (
            "broker_degraded",
            "1 while viewers get only what this server publishes.",
            lambda: broker.is_degraded,
        ),
    )
    for name, text, ask in gauges:
        metrics.pull(name, text, "gauge", ask)
