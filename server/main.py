"""The only wiring: builds the application from a `Config`, and runs it.

Owns which collaborator gets which, the order of start and stop, and the listening socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib.metadata import version
from types import FrameType

import uvicorn
from fastapi import FastAPI, WebSocket

from server.allocator import limit_arenas
from server.api import alerts, channels, errors, exports, health, rules, runs, sessions, tokens
from server.api.access import MetricsAccess, Services
from server.api.limits import RequestLimits
from server.auth.admissions import Admissions, TokenLimits
from server.auth.logins import Logins, LoginSettings
from server.auth.secret_box import load_secret_box
from server.auth.tokens import Authenticator
from server.broker import Broker, MemoryBroker
from server.broker.leases import Leases, LocalLeases, RedisLeases
from server.broker.redis_broker import RedisBroker, connect
from server.config import Config
from server.errors import ApiError, ConfigurationError
from server.exports.streams import Exporter
from server.hasty import hasty_protocol
from server.ingest.connection import IngestLimits
from server.ingest.endpoint import IngestEndpoint
from server.live import LiveEndpoint
from server.metrics import Metrics
from server.models import Scope
from server.notifications.messenger import Messenger
from server.notifications.outbound import Outbound
from server.notifications.picture import Painter
from server.notifications.sender import Sender
from server.notifications.zero_setup import add_slack_webhook, check_slack_webhook
from server.pipeline.deletion import Deleter
from server.pipeline.pipeline import FOLLOWER_IDLE, Pipeline
from server.pipeline.rehearsal import Rehearsal
from server.readiness import Check, Readiness
from server.storage import migrate
from server.storage.alerts import AlertStore
from server.storage.channels import ChannelStore
from server.storage.compaction import Compactor
from server.storage.database import Database
from server.storage.deletion import DeletionStore
from server.storage.events import EventStore
from server.storage.fleet import FleetQuery
from server.storage.heatmap import HeatmapQuery
from server.storage.histogram import HistogramQuery
from server.storage.layouts import LayoutStore
from server.storage.lru import ByteLru
from server.storage.monitors import MonitorStore
from server.storage.outbox import OutboxStore
from server.storage.reader import BucketReader
from server.storage.rules import RuleStore
from server.storage.runs import RunStore
from server.storage.segments import SegmentStore
from server.storage.series import SeriesQuery
from server.storage.sessions import SessionStore
from server.storage.spans import SpanStore
from server.storage.steps import StepReader
from server.storage.tokens import TokenStore

logger = logging.getLogger(__name__)

API = "/api/v1"
WEBSOCKET_LIMIT = 4
"""A frame of up to so many times the limit is still read, so that it can be refused with a word."""
SWITCH_INTERVAL = 0.001
"""Seconds for which a thread that computes keeps others from Python; each waits for up to all of them, and the thread
that reads and answers sockets should not wait for long."""
PING_EVERY = 20.0  # seconds
SAME_SIGNAL = 2.0  # seconds; a terminal and a wrapper like make may both pass on one Ctrl-C
REHEARSALS = 2  # of rules, at a time
PING_TIMEOUT = 60.0  # seconds; a socket is not read while its queue is full, and its pongs wait with its frames


def create_app(config: Config, database: Database | None = None) -> FastAPI:
    """The whole server as one ASGI application. Its lifespan starts and stops everything; the schema must be current.

    ``database``: one to use instead of that of the configuration; it is closed with the application all the same.
    """
    database = database if database is not None else Database(config.resolved_database_url)
    broker, leases = make_broker(config)
    metrics = Metrics(version("spikewatch"))
    cache = ByteLru(config.cache_bytes)
    run_store = RunStore(database)
    layouts = LayoutStore(database)
    fleet = FleetQuery(database, run_store, layouts)
    reader = BucketReader(database, cache)
    secrets = load_secret_box(config.secret_key, config.secret_key_file)
    channel_store = ChannelStore(database)
    if config.slack_webhook is not None:
        check_slack_webhook(config.slack_webhook, allow_private=config.notify_allow_private)
    messenger = Messenger(
        outbound=Outbound(allow_private=config.notify_allow_private),
        secrets=secrets,
        slack_api_url=config.slack_api_url,
        public_url=config.open_url,
        clock=time.time,
    )
    series = SeriesQuery(run_store, reader)
    outbox = OutboxStore(database)
    sender = Sender(outbox, messenger, Painter(series).paint, time.time)
    pipeline = make_pipeline(
        config,
        database,
        broker,
        leases,
        alerts_stored=sender.wake,
        alert_changed=lambda kind, state: metrics.alerts.labels(kind, state).inc(),
    )
    token_store, session_store = TokenStore(database), SessionStore(database)
    authenticator = Authenticator(
        token_store,
        session_store,
        admin_token=config.admin_token,
        password=None
        if config.dashboard_password is None
        else (config.dashboard_password, Scope(config.dashboard_password_scope)),
    )
    admissions = Admissions(
        authenticator,
        TokenLimits(
            connections=config.token_connections,
            new_per_second=config.token_connections_per_second,
            values_per_second=config.token_values_per_second,
        ),
    )
    logins = Logins(
        authenticator,
        session_store,
        LoginSettings(
            password=config.dashboard_password,
            days=config.session_days,
            attempts=config.login_attempts,
            window=config.login_window,
        ),
        count=lambda result: metrics.logins.labels(result).inc(),
    )
    deleter = Deleter(
        DeletionStore(database),
        forget=pipeline.forget,
        clock=time.time,
        retention_days=config.retention_days,
        look_every=config.retention_every,
    )
    ingest = IngestEndpoint(
        pipeline=pipeline,
        broker=broker,
        alerts=AlertStore(database),
        authenticator=authenticator,
        admissions=admissions,
        limits=IngestLimits(
            frame_bytes=config.max_frame_bytes,
            group_bytes=config.group_bytes,
            queued_frames=config.queued_frames,
            hello_timeout=config.hello_timeout,
        ),
        metrics=metrics,
        name=f"spikewatch/{version('spikewatch')}",
    )
    live = LiveEndpoint(broker, authenticator, admissions, metrics)
    compactor = Compactor(SpanStore(database), config.compact_every, is_ours=lambda: leases.take("compactor"))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await broker.start()
        if config.slack_webhook is not None:
            await add_slack_webhook(channel_store, secrets, config.slack_webhook, time.time())
        sender.start()
        await pipeline.start()
        tasks = [asyncio.create_task(compactor.run()), asyncio.create_task(admissions.watch())]
        deleter.start()
        try:
            yield
        finally:
            await deleter.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await pipeline.stop()
            await sender.stop()
            await messenger.close()
            await broker.stop()
            await database.close()

    app = FastAPI(
        title="Spikewatch",
        version=version("spikewatch"),
        summary="See a loss spike coming",
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.services = Services(
        database=database,
        authenticator=authenticator,
        admissions=admissions,
        logins=logins,
        tokens=token_store,
        pipeline=pipeline,
        runs=run_store,
        fleet=fleet,
        layouts=layouts,
        series=series,
        heatmap=HeatmapQuery(layouts, reader),
        histograms=HistogramQuery(database),
        events=EventStore(database),
        alerts=AlertStore(database),
        channels=channel_store,
        outbox=outbox,
        secrets=secrets,
        messenger=messenger,
        rules=RuleStore(database),
        rehearsal=Rehearsal(StepReader(database, layouts)),
        rehearsing=asyncio.Semaphore(REHEARSALS),
        exporter=Exporter(StepReader(database, layouts)),
        deleter=deleter,
        metrics=metrics,
        metrics_access=MetricsAccess(token=config.metrics_token, open_to_loopback=config.metrics_open_to_loopback),
        readiness=_readiness(config, database, broker),
        clock=time.time,
    )
    gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
        ("ingest_connections", "Open sockets of training processes.", lambda: ingest.connections),
        ("ingest_queued_frames", "Frames that were read and are not committed yet.", lambda: ingest.queued_frames),
        ("live_viewers", "Open live sockets, those of dashboards included.", lambda: live.viewers),
        ("followers", "Runs whose detectors are in memory.", lambda: pipeline.followers),
        (
            "follower_lag_seconds",
            "How far the slowest detectors lag behind.",
            lambda: pipeline.follower_lag,
        ),
        ("compaction_backlog_records", "Records in segments that wait for compaction.", lambda: compactor.backlog),
        ("broker_degraded", "1 while only what this server publishes is pushed.", lambda: broker.is_degraded),
    )
    for name, text, ask in gauges:
        metrics.pull(name, text, "gauge", ask)
    metrics.pull(
        "notifications",
        "Attempts to send a notification.",
        "counter",
        lambda: {(str(kind), str(fate)): float(count) for (kind, fate), count in sender.counts.items()},
        "channel",
        "outcome",
    )

    async def drain() -> None:
        live.drain()
        await ingest.drain(config.shutdown_timeout)

    app.state.drain = drain
    app.state.broker = broker
    errors.install(app)
    app.include_router(runs.router, prefix=API)
    app.include_router(exports.router, prefix=API)
    app.include_router(alerts.router, prefix=API)
    app.include_router(channels.router, prefix=API)
    app.include_router(rules.router, prefix=API)
    app.include_router(sessions.router, prefix=API)
    app.include_router(tokens.router, prefix=API)
    app.include_router(health.router)

    @app.websocket(f"{API}/ingest")
    async def ingest_socket(socket: WebSocket) -> None:
        await ingest.handle(socket)

    @app.websocket(f"{API}/live")
    async def live_socket(socket: WebSocket) -> None:
        await live.handle(socket)

    @app.api_route("/api/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def nothing_here(rest: str) -> None:
        raise ApiError(404, "not_found", f"there is no /api/{rest}; {API}/openapi.json lists what is")

    if config.dashboard:
        _add_dashboard(app, config)
    app.add_middleware(RequestLimits, body_bytes=config.max_body_bytes)
    return app


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
        segments=SegmentStore(database),
        monitors=MonitorStore(database),
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


def _readiness(config: Config, database: Database, broker: Broker) -> Readiness:
    """What a server needs, and what it can do without."""

    async def schema() -> None:
        if not await migrate.is_current(database):
            raise ConfigurationError("the schema of the database is not up to date: run `spikewatch migrate`")

    async def redis() -> None:
        if broker.is_degraded:
            raise ConfigurationError("Redis does not answer")

    readiness = Readiness()
    readiness.add(Check(name="database", ask=database.ping, fault="the database does not answer"))
    readiness.add(Check(name="schema", ask=schema, fault="the schema of the database is not that of this program"))
    if config.redis_url is not None:
        fault = "Redis does not answer: data is stored, the live view is degraded"
        readiness.add(Check(name="redis", ask=redis, fault=fault, is_required=False))
    return readiness


def _add_dashboard(app: FastAPI, config: Config) -> None:
    from dashboard.app import mount_dashboard
    from dashboard.config import DashboardConfig
    from dashboard.login.cookies import Cookies

    settings = DashboardConfig(api_url=config.api_url, public_url=config.public_url)
    mount_dashboard(app, settings, cookies=Cookies(suffix=f"_{config.port}"))


class Service:
    """A server on its own socket, in this thread or another. Bound at construction, so that the port is known."""

    def __init__(self, config: Config, *, migrate: bool) -> None:
        """``migrate``: bring the schema up to date first; else a schema that is not is refused.

        Raises `ConfigurationError` when the address cannot be bound.
        """
        self._socket = bind(config.host, config.port)
        self.config = config.with_port(self._socket.getsockname()[1])
        self._migrate = migrate
        self._server: _DrainingServer | None = None
        self._stopped = False
        self.ready = threading.Event()

    def run(self, on_ready: Callable[[Config], None] | None = None) -> None:
        """Serve until `stop`, SIGTERM or SIGINT. Raises `DatabaseError` and `ConfigurationError` before it is ready."""
        limit_arenas()
        sys.setswitchinterval(SWITCH_INTERVAL)
        _allow_open_files()
        try:
            asyncio.run(self._serve(on_ready))
        finally:
            self._socket.close()

    def stop(self) -> None:
        """From any thread: finish what is in flight and return from `run`."""
        self._stopped = True
        if self._server is not None:
            self._server.should_exit = True

    async def _serve(self, on_ready: Callable[[Config], None] | None) -> None:
        database = Database(self.config.resolved_database_url)
        try:
            await migrate.check_not_ahead(database)
            if self._migrate:
                await migrate.upgrade(database)
            elif not await migrate.is_current(database):
                raise ConfigurationError("the schema of the database is not up to date: run `spikewatch migrate` first")
            app = create_app(self.config, database)
            await app.state.broker.check()
        except BaseException:
            await database.close()
            raise

        def announce() -> None:
            self.ready.set()
            if on_ready is not None:
                on_ready(self.config)

        settings = uvicorn.Config(
            app,
            lifespan="on",
            log_config=None,
            access_log=False,
            http=hasty_protocol(self.config.request_timeout),
            ws="websockets-sansio",
            ws_max_size=WEBSOCKET_LIMIT * self.config.max_frame_bytes,
            ws_ping_interval=PING_EVERY,
            ws_ping_timeout=PING_TIMEOUT,
            ws_per_message_deflate=False,
            server_header=False,
            forwarded_allow_ips=self.config.trusted_proxies,
            timeout_graceful_shutdown=int(self.config.shutdown_timeout) + 1,
        )
        self._server = _DrainingServer(settings, app.state.drain, announce)
        self._server.should_exit = self._stopped
        await self._server.serve(sockets=[self._socket])


def serve(config: Config, *, migrate: bool = True, on_ready: Callable[[Config], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; see `Service`."""
    Service(config, migrate=migrate).run(on_ready)


def serve_dashboard(config: Config, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve the dashboard alone, beside a server that SPIKEWATCH_URL names, until SIGTERM or SIGINT.

    Whoever logs in does so with a token or the password of that server. Raises `ConfigurationError`.
    """
    from dashboard.app import create_app as create_dashboard
    from dashboard.config import DashboardConfig
    from dashboard.login.cookies import Cookies

    try:
        settings = DashboardConfig.from_environment(os.environ)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    listener = bind(config.host, config.port)
    config = config.with_port(listener.getsockname()[1])
    app = create_dashboard(settings, cookies=Cookies(suffix=f"_{config.port}"))
    uvicorn_config = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,
        access_log=False,
        http=hasty_protocol(config.request_timeout),
        ws="websockets-sansio",
        server_header=False,
        forwarded_allow_ips=config.trusted_proxies,
    )

    async def nothing_in_flight() -> None:
        return None

    def announce() -> None:
        if on_ready is not None:
            on_ready(config.open_url)

    server = _DrainingServer(uvicorn_config, nothing_in_flight, announce)
    try:
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        listener.close()


def _allow_open_files() -> None:
    """Take as many file descriptors as this user may: every connection needs one, and shells start with a thousand."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems allow less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ConfigurationError` in words for the terminal."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP: asyncio turns the delay of small packets (40 ms an answer) off only where the socket says so.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise ConfigurationError(
            f"cannot listen on {host}:{port} ({reason}); choose another port with --port or SPIKEWATCH_PORT"
        ) from error
    listener.setblocking(False)
    return listener


class _DrainingServer(uvicorn.Server):
    """Lets ingest connections finish before the sockets close, and returns after a signal instead of dying of it."""

    def __init__(
        self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]], announce: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._announce = announce
        self._asked_to_stop: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self._drain()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        caught = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server in order, one that comes later ends it at once."""
        now = time.monotonic()
        if self._asked_to_stop is None:
            self._asked_to_stop = now
            self.should_exit = True
        elif now - self._asked_to_stop > SAME_SIGNAL:
            self.force_exit = True
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it would show what it breaks off
