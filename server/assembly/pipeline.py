"""The broker, and the pipeline that commits and detects: for a server, or for an import."""

from __future__ import annotations

import time
from collections.abc import Callable

from server.broker import Broker, MemoryBroker
from server.broker.leases import Leases, LocalLeases, RedisLeases
from server.broker.redis_broker import RedisBroker, connect
from server.config import Config
from server.pipeline.pipeline import FOLLOWER_IDLE, Pipeline
from server.storage.database import Database
from server.storage.detector_states import DetectorStateStore
from server.storage.fleet import FleetQuery
from server.storage.layouts import LayoutStore
from server.storage.measurements.commits import CommitStore
from server.storage.measurements.segments import SegmentStore
from server.storage.rules import RuleStore
from server.storage.runs import RunStore


def make_broker(config: Config) -> tuple[Broker, Leases]:
    """Raises `ConfigurationError`. Connects to nothing yet."""
    if config.redis_url is None:
        return MemoryBroker(config.live_queue, tail=config.live_tail), LocalLeases()
    redis = connect(config.redis_url, config.redis_password)
    broker = RedisBroker(redis, config.live_queue, run_tail=config.live_run_tail, tail=config.live_tail)
    return broker, RedisLeases(redis, config.lease_seconds, is_away=lambda: broker.is_degraded)


def make_pipeline(
    config: Config,
    database: Database,
    broker: Broker,
    leases: Leases | None = None,
    *,
    follower_idle: float = FOLLOWER_IDLE,
    alerts_stored: Callable[[], None] = lambda: None,
    alert_changed: Callable[[str, str], None] = lambda kind, state: None,
) -> Pipeline:
    """What commits and detects, for a server or for an import."""
    run_store, layouts = RunStore(database), LayoutStore(database)
    return Pipeline(
        runs=run_store,
        fleet=FleetQuery(database, run_store, layouts),
        layouts=layouts,
        commits=CommitStore(database),
        segments=SegmentStore(database),
        monitors=DetectorStateStore(database),
        rules=RuleStore(database),
        broker=broker,
        leases=leases if leases is not None else LocalLeases(),
        clock=time.time,
        announcements_per_second=config.run_messages_per_second,
        stale_after=config.stale_after,
        heartbeat_every=config.heartbeat_every,
        follower_idle=follower_idle,
        alerts_stored=alerts_stored,
        alert_changed=alert_changed,
    )
