"""Broker of several servers, built on capped streams in Redis. Each server reads only the streams that its subscribers
need.

Messages go through a bounded outbox to Redis, and from there to the subscribers of every server, the publishing one
included, so that all of them see the same order and the same cursors. While Redis is unreachable, subscribers are
notified that the view is degraded, and messages of this server reach its own subscribers directly. When Redis is back,
all subscribers are asked to read everything again. Publishing never waits and never fails.

A cursor is ``GENERATION-MILLISECONDS-NUMBER``; `scripts` describes the generation.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, InvalidResponse, NoPermissionError, RedisError

from server.broker import scripts
from server.broker.entries import EntryId, Fields, format_id, parse_cursor, parse_entry, parse_id
from server.broker.live_message import (
    BROADCAST_TYPES,
    CONTROL_TYPES,
    DEGRADED,
    RESTORED,
    RESYNC,
    Interest,
    LiveMessage,
    QueuedMessage,
    control_message,
)
from server.broker.shielded_calls import ShieldedCalls
from server.broker.subscription import Subscription
from server.errors import ConfigurationError
from server.log_actions import LogAction

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT = 2.0  # seconds after which a silent Redis counts as unreachable
WAIT = 200  # milliseconds of one read; a newly requested stream is read from the next read on
BATCH = 128  # messages sent at once
OUTBOX = 4096  # messages waiting for Redis; beyond it the oldest is dropped and subscribers read everything again
RUN_EXPIRY = 3600.0  # seconds of silence after which the stream of a run expires
RETRY_DELAYS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between attempts to reach Redis; the last delay is repeated

TROUBLE = (RedisError, OSError, TimeoutError)


class _Outgoing(NamedTuple):
    type: str
    run_id: str
    project: str
    payload: bytes


def connect(url: str, password: str | None = None) -> Redis:
    """Return a client that times out quickly and never retries by itself. Does not connect yet.

    ``password`` is used where the URL contains none. Raises `ConfigurationError` if the URL is not the URL of a Redis
    server.
    """
    try:
        client: Redis = Redis.from_url(
            url,
            password=password,
            socket_timeout=ANSWER_TIMEOUT,
            socket_connect_timeout=ANSWER_TIMEOUT,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            "SPIKEWATCH_REDIS_URL cannot be read; use redis://:PASSWORD@HOST:6379/0, rediss://… or unix://PATH"
        ) from error
    return client


class RedisBroker:
    """Broker on a Redis server. See the module for its behaviour during outages."""

    def __init__(
        self,
        redis: Redis,
        capacity: int,
        *,
        run_tail: int = 256,
        tail: int = 4096,
        delays: Sequence[float] = RETRY_DELAYS,
    ) -> None:
        """Create a broker that owns the client: `stop` closes it.

        ``capacity`` is the maximum number of messages queued for each subscriber. ``run_tail`` and ``tail`` are the
        numbers of entries kept in the stream of a run and in the stream of all runs. ``delays`` are the seconds between
        attempts to reach Redis; the last one is repeated.
        """
        self._redis = redis
        self._capacity = capacity
        self._run_tail = run_tail
        self._tail = tail
        self._delays = delays
        self._publish = redis.register_script(scripts.PUBLISH)
        self._renew = redis.register_script(scripts.RENEW)
        self._resume = redis.register_script(scripts.RESUME)
        self._outbox: deque[_Outgoing] = deque()
        self._sending: list[_Outgoing] = []
        self._filled = asyncio.Event()
        self._readers: dict[str, dict[Subscription, EntryId]] = {scripts.BROADCAST: {}}
        """Subscriptions that read each stream, and the id up to which each subscription has received it."""
        self._positions: dict[str, EntryId] = {}
        """Id up to which each stream has been read."""
        self._joined = 0
        """Number of subscriptions so far. A read that began before a new subscription is repeated."""
        self._generation = ""
        self._last: EntryId = (0, 0)
        self._is_up = False
        self._has_gap = False
        """Whether subscribers on other servers may have missed a message of this server."""
        self._task: asyncio.Task[None] | None = None
        self._calls = ShieldedCalls()

    @property
    def is_degraded(self) -> bool:
        return not self._is_up

    async def check(self) -> None:
        try:
            await self._calls.call(self._redis.ping())
        except TROUBLE as error:
            # The client wraps errors in the first answer on a new connection.
            reason = error.__cause__ or error
            if isinstance(reason, AuthenticationError | NoPermissionError):
                raise ConfigurationError(f"Redis refused the login ({reason}); correct SPIKEWATCH_REDIS_URL") from error
            if isinstance(reason, InvalidResponse):
                raise ConfigurationError(
                    "the server at SPIKEWATCH_REDIS_URL is not a Redis server; correct the URL"
                ) from error
            # Redis is unreachable: the server starts without it.

    async def start(self) -> None:
        """Connect if Redis is reachable, and keep connecting in the background."""
        try:
            await self._connect()
        except TROUBLE as error:
            self._disconnect(error)
        self._task = asyncio.create_task(self._stay_connected())

    async def stop(self) -> None:
        """Send queued messages within `ANSWER_TIMEOUT`, then close the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(*TROUBLE):
            async with asyncio.timeout(ANSWER_TIMEOUT):
                self._outbox.extendleft(reversed(self._sending))
                while self._is_up and self._outbox:
                    await self._send_some()
        await self._calls.wait_done()
        with contextlib.suppress(*TROUBLE):
            await self._redis.aclose()

    async def publish(self, message: LiveMessage) -> None:
        outgoing = _Outgoing(message.type, message.run_id, message.project, msgspec.json.encode(message.body))
        if not self._is_up:
            self._deliver_locally(outgoing)
            return
        if len(self._outbox) >= OUTBOX:
            self._outbox.popleft()
            self._has_gap = True
        self._outbox.append(outgoing)
        self._filled.set()

    @contextlib.asynccontextmanager
    async def subscribe(
        self,
        *,
        run_ids: frozenset[str] | None,
        project: str | None,
        types: frozenset[str] | None = None,
        cursor: str | None = None,
    ) -> AsyncIterator[Subscription]:
        subscription = Subscription(self._capacity, Interest(run_ids=run_ids, project=project, types=types))
        streams = _streams_of(subscription.interest)
        await self._attach(subscription, streams, cursor)
        try:
            yield subscription
        finally:
            for stream in streams:
                self._readers[stream].pop(subscription, None)
                if not self._readers[stream] and stream != scripts.BROADCAST:
                    del self._readers[stream]
                    self._positions.pop(stream, None)

    async def _attach(self, subscription: Subscription, streams: Sequence[str], cursor: str | None) -> None:
        """Register a subscription for its streams, after queueing the messages that it missed."""
        generation, seen = parse_cursor(cursor)
        answer: Sequence[Any] = ()
        if self._is_up:
            try:
                keys = [scripts.GENERATION, scripts.TAIL, *streams]
                args: list[str | int] = ["" if seen is None else format_id(seen), self._capacity]
                answer = await self._calls.call(self._resume(keys=keys, args=args))
            except TROUBLE as error:  # If more than this one call fails, the reader finds out as well.
                logger.warning(
                    "a viewer cannot resume, because Redis does not answer (%s)",
                    error,
                    extra={"action": LogAction.REDIS_FAILED},
                )
        # No await from here on: an entry read in between would be lost.
        last = parse_id(answer[1]) if answer else self._last
        missed: list[tuple[EntryId, Fields]] | None = None
        if answer and seen is not None and answer[0].decode() == generation == self._generation:
            is_recent = seen <= last and last[0] - seen[0] < RUN_EXPIRY * 1000
            if is_recent and all(found is not None for found in answer[2:]):
                missed = sorted(parse_entry(item) for found in answer[2:] for item in found)
        subscription.is_resumed = missed is not None
        subscription.cursor = self._cursor(last if missed is None or seen is None else seen)
        for number, fields in missed or ():
            self._offer(subscription, number, fields)
        if missed is None and cursor is not None:
            subscription.offer(control_message(RESYNC, subscription.cursor))
        if not self._is_up:
            subscription.offer(control_message(DEGRADED, subscription.cursor))
        for stream in streams:
            self._readers.setdefault(stream, {})[subscription] = last
            # Other subscriptions may have received later entries already: they skip what is read again.
            self._positions[stream] = min(self._positions.get(stream, last), last)
        self._joined += 1

    async def _stay_connected(self) -> None:
        """Send and read while Redis is reachable; reconnect with growing delays when it is not."""
        delays = self._retry_delays()
        while True:
            if self._is_up:
                await self._exchange()
                delays = self._retry_delays()
            await asyncio.sleep(next(delays))
            try:
                await self._connect()
            except TROUBLE as error:
                logger.debug("Redis does not answer (%s)", error, extra={"action": LogAction.REDIS_AWAY})
            except Exception:  # A Redis failure of any kind degrades the live view and nothing else.
                logger.exception("Redis returned an unexpected answer", extra={"action": LogAction.REDIS_FAILED})

    def _retry_delays(self) -> Iterator[float]:
        return itertools.chain(self._delays, itertools.repeat(self._delays[-1]))

    async def _connect(self) -> None:
        """Connect to Redis, and start to read at its newest entry."""
        process = str((await self._calls.call(self._redis.info("server")))["run_id"])[:8]
        held = (await self._calls.call(self._redis.get(scripts.GENERATION)) or b"").decode()
        # A restarted Redis may have lost its last entries, so cursors of an earlier process are invalid.
        if self._has_gap or not held.startswith(process):
            held = await self._start_generation(held, process)
        newest = await self._calls.call(self._redis.xrevrange(scripts.TAIL, count=1))
        self._last = parse_id(newest[0][0]) if newest else (0, 0)
        self._generation = held
        self._positions = dict.fromkeys(self._readers, self._last)
        for readers in self._readers.values():
            for subscription in readers:
                readers[subscription] = self._last
        self._is_up = True
        for kind in (RESTORED, RESYNC):
            self._offer_all(control_message(kind, self._cursor(self._last)))
        logger.info("Redis is reachable", extra={"action": LogAction.REDIS_UP})

    async def _start_generation(self, held: str, process: str) -> str:
        """Record that messages may be missing, and return the current generation.

        Does nothing if another server has begun a generation since ``held``.
        """
        self._has_gap = False
        keys = [scripts.GENERATION, scripts.TAIL, scripts.BROADCAST]
        args: list[str | int] = [held, process + secrets.token_hex(4), self._tail]
        try:
            answer: bytes = await self._calls.call(self._renew(keys=keys, args=args))
        except TROUBLE:
            self._has_gap = True
            raise
        return answer.decode()

    async def _exchange(self) -> None:
        """Send and read until Redis is unreachable."""
        tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._send())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is not None and not isinstance(error, TROUBLE):
                    logger.error(
                        "reading or sending live messages failed",
                        exc_info=error,
                        extra={"action": LogAction.REDIS_FAILED},
                    )
                self._disconnect(error)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _disconnect(self, error: BaseException | None) -> None:
        """Continue without Redis: deliver the unsent messages to the subscribers of this server."""
        logger.warning(
            "Redis does not answer (%s); the live view is degraded, everything else works",
            error,
            extra={"action": LogAction.REDIS_LOST},
        )
        self._is_up = False
        self._offer_all(control_message(DEGRADED, self._cursor(self._last)))
        for outgoing in (*self._sending, *self._outbox):
            self._deliver_locally(outgoing)
        self._sending = []
        self._outbox.clear()

    async def _send(self) -> None:
        while True:
            if self._has_gap:
                await self._start_generation(self._generation, self._generation[:8])
            while not self._outbox:
                self._filled.clear()
                await self._filled.wait()
            await self._send_some()

    async def _send_some(self) -> None:
        self._sending = [self._outbox.popleft() for _ in range(min(BATCH, len(self._outbox)))]
        keys = [scripts.TAIL, scripts.BROADCAST]
        args: list[str | bytes | int] = [self._tail, self._run_tail, int(RUN_EXPIRY * 1000)]
        for item in self._sending:
            keys.append(scripts.run_stream(item.run_id))
            args += [item.type, item.run_id, item.project, item.payload]
            args += [int(item.type not in CONTROL_TYPES), int(item.type in BROADCAST_TYPES)]
        await self._calls.call(self._publish(keys=keys, args=args))
        self._sending = []

    async def _read(self) -> None:
        while True:
            joined = self._joined
            asked: dict[Any, Any] = {stream: format_id(position) for stream, position in self._positions.items()}
            # No count: the streams are capped, and one answer must show all of them at the same moment.
            answer = await self._calls.call(self._redis.xread(asked, block=WAIT))
            if joined != self._joined:
                continue
            found: list[tuple[EntryId, Fields, str]] = []
            for name, items in answer:
                stream = name.decode()
                if len(items) < (self._run_tail if stream.startswith(scripts.RUN_STREAMS) else self._tail):
                    found += [(*parse_entry(item), stream) for item in items]
                else:  # The answer is so long that entries may have been dropped before it was read.
                    self._skip(stream, parse_id(items[-1][0]))
            for number, fields, stream in sorted(found, key=lambda item: item[0]):
                self._receive(stream, number, fields)

    def _skip(self, stream: str, number: EntryId) -> None:
        logger.warning(
            "live messages are read too slowly; viewers read everything again", extra={"action": LogAction.TAIL_SKIPPED}
        )
        self._last = max(self._last, number)
        self._positions[stream] = number
        readers = self._readers[stream]
        for subscription in readers:
            readers[subscription] = number
            subscription.offer(control_message(RESYNC, self._cursor(number)))

    def _receive(self, stream: str, number: EntryId, fields: Fields) -> None:
        self._last = max(self._last, number)
        if stream in self._positions:
            self._positions[stream] = number
        if fields[b"t"] == b"gap":
            generation = fields[b"b"].decode()
            if generation != self._generation:
                self._generation = generation
                self._offer_all(control_message(RESYNC, self._cursor(number)))
            return
        for subscription, had in list(self._readers.get(stream, {}).items()):
            if number > had:
                self._readers[stream][subscription] = number
                self._offer(subscription, number, fields)

    def _offer(self, subscription: Subscription, number: EntryId, fields: Fields) -> None:
        kind = fields[b"t"].decode()
        if subscription.interest.covers(fields[b"r"].decode(), fields[b"p"].decode(), kind):
            subscription.offer(QueuedMessage(type=kind, cursor=self._cursor(number), payload=fields[b"b"]))

    def _deliver_locally(self, outgoing: _Outgoing) -> None:
        """Deliver a message without Redis.

        The cursor does not advance: a subscriber that comes back with it is asked to read everything again.
        """
        self._has_gap = True
        queued = QueuedMessage(type=outgoing.type, cursor=self._cursor(self._last), payload=outgoing.payload)
        for subscription in self._subscriptions():
            if subscription.interest.covers(outgoing.run_id, outgoing.project, outgoing.type):
                subscription.offer(queued)

    def _offer_all(self, queued: QueuedMessage) -> None:
        for subscription in self._subscriptions():
            subscription.offer(queued)

    def _subscriptions(self) -> set[Subscription]:
        return {subscription for readers in self._readers.values() for subscription in readers}

    def _cursor(self, number: EntryId) -> str:
        return f"{self._generation or 'none'}-{format_id(number)}"


def _streams_of(interest: Interest) -> list[str]:
    """Return the streams that contain everything that a subscriber wants, with as little else as possible."""
    if interest.types is not None and interest.types <= BROADCAST_TYPES:
        return [scripts.BROADCAST]
    if interest.run_ids is None:
        return [scripts.TAIL]
    return [scripts.run_stream(run_id) for run_id in sorted(interest.run_ids)]
