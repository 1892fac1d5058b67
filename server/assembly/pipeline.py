"""Builds the broker, and the pipeline that commits, publishes and detects, for a server or for an import."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from client_sdk import answers
from server.broker import Broker, MemoryBroker
from server.broker.leases import Leases, LocalLeases, RedisLeases
from server.broker.redis_broker import RedisBroker, connect
from server.config import Config
from server.notifications.recipients import recipients
from server.pipeline.announcer import Announcer
from server.pipeline.committer import Committer
from server.pipeline.followers import Followers, FollowerStores
from server.pipeline.pipeline import Pipeline
from server.pipeline.publisher import Publisher
from server.pipeline.rule_keeper import RuleKeeper
from server.pipeline.run_state_keeper import RunStateKeeper
from server.pipeline.writer_registry import WriterRegistry
from server.storage.database import Database
from server.storage.detector_states import DetectorStateStore
from server.storage.fleet import FleetQuery
from server.storage.layouts import LayoutStore
from server.storage.loss_choices import LossChoiceStore
from server.storage.measurements.commits import CommitStore
from server.storage.measurements.logged_steps import LoggedStepsQuery
from server.storage.measurements.reader import BucketReader
from server.storage.measurements.segments import SegmentStore
from server.storage.rules import RuleStore
from server.storage.runs import RunStore

FOLLOWER_IDLE = 120.0  # seconds without a commit after which the detectors of a run leave memory

HISTORY_CACHE = 4 * 2**20
"""Bytes of history that are cached for telling late records from a training that went back."""


def make_broker(config: Config) -> tuple[Broker, Leases]:
    """Return the broker and the leases of a server, which connect when they are started.

    Raises `ConfigurationError` if the Redis URL is invalid.
    """
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
    on_alerts: Callable[[Sequence[answers.Alert]], None] = lambda alerts: None,
) -> Pipeline:
    """Return a pipeline over a database and a broker. ``on_alerts`` is described at `Publisher`."""
    runs, layouts = RunStore(database), LayoutStore(database)
    states = DetectorStateStore(database, recipients)
    announcer = Announcer(FleetQuery(database, runs, layouts), broker, config.run_messages_per_second)
    publisher = Publisher(broker, announcer, runs.project_of, on_alerts=on_alerts)
    writers = WriterRegistry(runs, broker, publisher, clock=time.time)
    rules = RuleKeeper(RuleStore(database), states, clock=time.time, look_every=config.heartbeat_every)
    write_lock = asyncio.Lock()
    followers = Followers(
        stores=FollowerStores(
            runs=runs,
            layouts=layouts,
            segments=SegmentStore(database),
            states=states,
            losses=LossChoiceStore(database),
        ),
        leases=leases if leases is not None else LocalLeases(),
        publish=publisher.concluded,
        rules=lambda: rules.current,
        connected_runs=lambda: writers.connected_runs,
        write_lock=write_lock,
        clock=time.time,
        idle_after=follower_idle,
    )
    return Pipeline(
        writers=writers,
        committer=Committer(
            CommitStore(database),
            LoggedStepsQuery(BucketReader(database, HISTORY_CACHE)),
            clock=time.time,
            write_lock=write_lock,
        ),
        publisher=publisher,
        followers=followers,
        run_states=RunStateKeeper(
            runs=runs,
            writers=writers,
            followers=followers,
            publisher=publisher,
            rules=rules,
            clock=time.time,
            stale_after=config.stale_after,
            heartbeat_every=config.heartbeat_every,
        ),
    )
