"""The gauges of a server that Prometheus reads straight from its parts."""

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
    gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
        ("ingest_connections", "Open sockets of training processes.", lambda: ingest.connections),
        ("ingest_queued_frames", "Frames that were read and are not committed yet.", lambda: ingest.queued_frames),
        ("live_viewers", "Open live sockets, those of dashboards included.", lambda: live.viewers),
        ("followers", "Runs whose detectors are in memory.", lambda: pipeline.followers),
        ("follower_lag_seconds", "How far the slowest detectors lag behind.", lambda: pipeline.follower_lag),
        ("compaction_backlog_records", "Records in segments that wait for compaction.", lambda: compactor.backlog),
        ("broker_degraded", "1 while only what this server publishes is pushed.", lambda: broker.is_degraded),
    )
    for name, text, ask in gauges:
        metrics.pull(name, text, "gauge", ask)
