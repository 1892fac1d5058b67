"""Composes the ASGI application of a server from its parts.

`server.assembly` builds the larger parts from the configuration, and `server.serving` runs the application on a socket.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from importlib.metadata import version

from fastapi import FastAPI, WebSocket
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from client_sdk import answers
from server.agents.endpoint import AgentEndpoint
from server.agents.questions import Questions
from server.api import (
    alerts,
    audits,
    channels,
    errors,
    exports,
    health,
    losses,
    replays,
    rules,
    run_details,
    runs,
    sessions,
    tokens,
)
from server.api.access import MetricsAccess, Services
from server.api.document import add_document
from server.api.limits import RequestLimits
from server.api.methods import OtherMethods
from server.api.run_risk import RunRisk
from server.assembly.access import make_access
from server.assembly.background import Background
from server.assembly.dashboard import add_dashboard
from server.assembly.gauges import add_gauges
from server.assembly.notifications import make_notifications
from server.assembly.pipeline import make_broker, make_pipeline
from server.assembly.readiness import make_readiness
from server.config import Config
from server.errors import ApiError
from server.exports.archive import Archiver
from server.exports.exporter import Exporter
from server.ingest.connection import IngestLimits
from server.ingest.endpoint import IngestEndpoint
from server.live import LiveEndpoint
from server.metrics import Metrics
from server.pipeline.deletion import Deleter
from server.pipeline.rule_backtest import RuleBacktest
from server.pipeline.run_replay import RunReplay
from server.storage.alerts import AlertStore
from server.storage.audits import AuditStore
from server.storage.database import Database
from server.storage.deletion import DeletionStore
from server.storage.events import EventStore
from server.storage.fleet import FleetQuery
from server.storage.layouts import LayoutStore
from server.storage.loss_choices import LossChoiceStore
from server.storage.measurements.compaction import Compactor
from server.storage.measurements.heatmap import HeatmapQuery
from server.storage.measurements.histogram import HistogramQuery
from server.storage.measurements.histogram_history import HistogramHistory
from server.storage.measurements.reader import BucketReader
from server.storage.measurements.series import SeriesQuery
from server.storage.measurements.spans import SpanStore
from server.storage.measurements.steps import StepReader
from server.storage.rules import RuleStore
from server.storage.run_details import RunDetailStore
from server.storage.runs import RunStore

API = "/api/v1"
MAX_BACKTESTS = 2  # concurrent backtests of alert rules and replays of runs


def create_app(config: Config, database: Database | None = None) -> FastAPI:
    """Return the whole server as one ASGI application, whose lifespan starts and stops everything.

    The schema must be current. A ``database`` that is passed is used instead of the configured one and is closed with
    the application as well.
    """
    database = database if database is not None else Database(config.resolved_database_url)
    broker, leases = make_broker(config)
    metrics = Metrics(version("spikewatch"))
    run_store, layouts = RunStore(database), LayoutStore(database)
    reader = BucketReader(database, config.cache_bytes)
    series = SeriesQuery(run_store, reader)
    notifications = make_notifications(config, database, series, metrics)

    def on_alerts(alerts: Sequence[answers.Alert]) -> None:
        notifications.dispatcher.wake()
        for alert in alerts:
            metrics.alerts.labels(alert.kind, alert.state).inc()

    pipeline = make_pipeline(config, database, broker, leases, on_alerts=on_alerts)
    access = make_access(config, database, metrics)
    deleter = Deleter(
        DeletionStore(database),
        forget=pipeline.forget,
        announce=pipeline.publisher.deleted,
        clock=time.time,
        retention_days=config.retention_days,
        look_every=config.retention_every,
    )
    ingest = IngestEndpoint(
        pipeline=pipeline,
        broker=broker,
        alerts=AlertStore(database),
        authenticator=access.authenticator,
        admissions=access.admissions,
        limits=IngestLimits(
            frame_bytes=config.max_frame_bytes,
            group_bytes=config.group_bytes,
            queued_frames=config.queued_frames,
            hello_timeout=config.hello_timeout,
        ),
        metrics=metrics,
        name=f"spikewatch/{version('spikewatch')}",
    )
    live = LiveEndpoint(broker, access.authenticator, access.admissions, metrics)
    compactor = Compactor(SpanStore(database), config.compact_every, is_ours=lambda: leases.take("compactor"))
    add_gauges(metrics, ingest=ingest, live=live, pipeline=pipeline, compactor=compactor, broker=broker)
    agents = AgentEndpoint(
        lambda: Questions(app.state.services), authenticator=access.authenticator, version=version("spikewatch")
    )
    background = Background(
        database=database,
        broker=broker,
        notifications=notifications,
        pipeline=pipeline,
        compactor=compactor,
        admissions=access.admissions,
        agents=agents,
        deleter=deleter,
    )
    exporter = Exporter(StepReader(database, layouts))
    app = FastAPI(
        title="Spikewatch",
        version=version("spikewatch"),
        summary="See a loss spike coming",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=lambda _: background.running(),
    )
    app.state.services = Services(
        database=database,
        authenticator=access.authenticator,
        admissions=access.admissions,
        logins=access.logins,
        tokens=access.tokens,
        pipeline=pipeline,
        runs=run_store,
        run_details=RunDetailStore(database),
        fleet=FleetQuery(database, run_store, layouts),
        layouts=layouts,
        series=series,
        heatmap=HeatmapQuery(layouts, reader),
        histograms=HistogramQuery(database),
        events=EventStore(database),
        alerts=AlertStore(database),
        losses=LossChoiceStore(database),
        audits=AuditStore(database),
        channels=notifications.channels,
        outbox=notifications.outbox,
        secrets=notifications.secrets,
        messenger=notifications.messenger,
        rules=RuleStore(database),
        backtest=RuleBacktest(StepReader(database, layouts), run_store),
        replay=RunReplay(StepReader(database, layouts), run_store, AlertStore(database)),
        backtest_slots=asyncio.Semaphore(MAX_BACKTESTS),
        exporter=exporter,
        archiver=Archiver(exporter, HistogramHistory(database), EventStore(database), AlertStore(database)),
        deleter=deleter,
        metrics=metrics,
        run_risk=RunRisk(metrics, FleetQuery(database, run_store, layouts), AlertStore(database)),
        metrics_access=MetricsAccess(token=config.metrics_token, open_to_loopback=config.metrics_open_to_loopback),
        readiness=make_readiness(config, database, broker),
        clock=time.time,
    )

    async def drain() -> None:
        live.drain()
        await ingest.drain(config.shutdown_timeout)

    app.state.drain = drain
    app.state.broker = broker
    _add_routes(app, ingest, live, agents)
    if config.dashboard:
        add_dashboard(app, config)
    app.add_middleware(RequestLimits, body_bytes=config.max_body_bytes)
    return app


def _add_routes(app: FastAPI, ingest: IngestEndpoint, live: LiveEndpoint, agents: AgentEndpoint) -> None:
    errors.install(app)
    add_document(app, f"{API}/openapi.json")
    for room in (runs, run_details, losses, audits, replays, exports, alerts, channels, rules, sessions, tokens):
        app.include_router(room.router, prefix=API)
    app.include_router(health.router)

    @app.websocket(f"{API}/ingest")
    async def ingest_socket(socket: WebSocket) -> None:
        await ingest.handle(socket)

    @app.websocket(f"{API}/live")
    async def live_socket(socket: WebSocket) -> None:
        await live.handle(socket)

    app.router.routes.append(Route("/mcp", agents, methods=["POST"], include_in_schema=False))
    app.router.routes.append(OtherMethods(app.router))
    app.mount("/api", nothing_here)


async def nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a path below ``/api`` that no route has, in place of the dashboard. A socket is closed."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 4404, "reason": "there is no such socket"})
        return
    raise ApiError(404, "not_found", f"there is no {scope['path']}; {API}/openapi.json lists what there is")
