"""Dispatch from the outbox over real sockets: once, in order, and again only where a retry can help."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import hmac
import io
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import select

from server.errors import DatabaseUnavailableError
from server.notification import RATE_WINDOW, Channel, Digest, NotificationSettings, Silence
from server.notifications.dispatcher import Dispatcher
from server.notifications.picture import Panel, draw
from server.notifications.policy import ESCALATION_GAP, MAX_PER_HOUR
from server.schema import outbox
from server.storage.alerts import AlertStore
from server.storage.channels import ChannelStore
from server.storage.database import Database
from server.storage.outbox import OutboxStore
from tests.support.alerting import Detectors, bot, channel, messenger, prediction, settled, spike
from tests.support.postbox import Postbox
from tests.support.slack import SlackServer

JSON = {"Content-Type": "application/json"}
PICTURE = draw([Panel(title="loss", points=[(1.0, 1.0), (2.0, 2.0)], logarithmic=True)], 2, None)


@pytest.fixture
def slack() -> Iterator[SlackServer]:
    with SlackServer() as server:
        yield server
        assert server.problems == []


@pytest.fixture
def detectors(database: Database) -> Detectors:
    return Detectors(database)


async def render_picture(run_id: str, step: int, predicted: tuple[int, int, int] | None) -> bytes:
    assert (run_id, step, predicted) == ("run", 627, (698, 712, 731))
    return PICTURE


class WatchedOutbox(OutboxStore):
    """An outbox that announces every change that it has stored."""

    changed: asyncio.Condition
    """Condition of the running test, notified after each change."""

    @classmethod
    async def announce(cls) -> None:
        async with cls.changed:
            cls.changed.notify_all()

    async def sent(self, *args: Any) -> None:
        await super().sent(*args)
        await self.announce()

    async def skip(self, *args: Any) -> None:
        await super().skip(*args)
        await self.announce()

    async def hold_back(self, *args: Any) -> None:
        await super().hold_back(*args)
        await self.announce()

    async def give_up(self, *args: Any) -> None:
        await super().give_up(*args)
        await self.announce()

    async def disable(self, *args: Any) -> None:
        await super().disable(*args)
        await self.announce()

    async def retry_later(self, *args: Any) -> None:
        await super().retry_later(*args)
        await self.announce()


@pytest.fixture(autouse=True)
async def outbox_changes() -> None:
    WatchedOutbox.changed = asyncio.Condition()


@contextlib.asynccontextmanager
async def sending(
    database: Database,
    api_url: str = "http://127.0.0.1:1/",
    *,
    clock: Callable[[], float] = time.time,
    patience: float = 5.0,
    quick: bool = True,
) -> AsyncIterator[Dispatcher]:
    """Run a dispatcher. With ``quick`` it retries without a wait."""
    wire = messenger(api_url, timeout=patience)
    wait = (lambda low, _: 0.0) if quick else (lambda low, _: low)
    dispatcher = Dispatcher(WatchedOutbox(database), wire, render_picture, clock, poll=0.05, uniform=wait)
    dispatcher.start()
    try:
        yield dispatcher
    finally:
        await dispatcher.stop()
        await wire.close()


async def settle(database: Database) -> dict[str, list[str]]:
    """Wait until no row is pending, and return the notes or else the changes of the rows by their final state."""
    rows: list[Any] = []

    async def is_settled() -> bool:
        async with database.read() as connection:
            rows[:] = (await connection.execute(select(outbox).order_by(outbox.c.id))).all()
        return bool(rows) and all(row.state != "pending" for row in rows)

    await changes_until(is_settled)
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row.state, []).append(row.change if row.note is None else row.note)
    return found


async def changes_until(is_reached: Callable[[], Awaitable[bool]]) -> None:
    """Wait for changes of the outbox until a condition holds."""
    async with asyncio.timeout(20), WatchedOutbox.changed:
        while not await is_reached():
            await WatchedOutbox.changed.wait()


async def the_channel(database: Database) -> Channel:
    [found] = await ChannelStore(database).all()
    return found


async def failed(database: Database) -> Channel:
    """Wait until a delivery attempt has failed, and return the channel."""

    async def has_failed() -> bool:
        return (await the_channel(database)).failures > 0

    await changes_until(has_failed)
    return await the_channel(database)


async def test_an_incident_is_one_thread_with_a_picture(
    database: Database, detectors: Detectors, slack: SlackServer
) -> None:
    ahead = [0.0]  # seconds; the escalation comes long enough after the first message
    await ChannelStore(database).put(bot(settings={"channel": "#ml", "picture": True}))
    alert = prediction()
    async with sending(database, slack.api_url, clock=lambda: time.time() + ahead[0]) as dispatcher:
        for step in (
            [alert],
            [prediction(level="critical")],
            [settled(prediction(level="critical"), "hit", 712), spike(settles=alert)],
            [spike(settles=alert, state="resolved")],
        ):
            await detectors.hold(*step)
            dispatcher.wake()
            await settle(database)
            ahead[0] += ESCALATION_GAP
    headlines = [message.text for message in slack.messages]
    assert headlines == [
        "🟠 Spike predicted in ~85 steps (step 712, 698–731), run name of run",
        "🔴 Now critical: spike predicted in ~85 steps (step 712, 698–731), run name of run",
        "🎯 Confirmed: it came at step 712: lead 109 steps, run name of run",
        "🟢 Resolved at step 712: Loss spike at step 712, run name of run",
    ]
    first, *later = slack.messages
    assert first.thread is None
    assert [message.thread for message in later] == [first.ts] * 3
    assert slack.messages[1].payload["reply_broadcast"] is True
    [upload] = slack.files.values()
    assert (upload.done, upload.thread, upload.data) == (True, first.ts, PICTURE)
    assert Image.open(io.BytesIO(upload.data)).size == (760, 380)
    assert len({message.payload["metadata"]["event_payload"]["message_id"] for message in slack.messages}) == 4


async def test_a_webhook_message_names_its_incident(
    database: Database, detectors: Detectors, slack: SlackServer
) -> None:
    await ChannelStore(database).put(channel("slack-webhook", slack.webhook))
    async with sending(database) as dispatcher:
        await detectors.hold(prediction())
        await settle(database)
        await detectors.hold(settled(prediction(), "false", 760))
        dispatcher.wake()
        await settle(database)
    [_, last] = slack.messages
    assert last.text == "⚪ False alarm: it did not come by step 760, run name of run"
    assert "about: Spike predicted at step 712, opened at step 603" in last.words
    assert (await the_channel(database)).last_sent_at is not None


async def test_a_signed_message_can_be_verified(database: Database, detectors: Detectors) -> None:
    with Postbox() as postbox:
        await ChannelStore(database).put(channel("webhook", postbox.url("/hook?x=1")))
        async with sending(database):
            await detectors.hold(prediction())
            await settle(database)
        [posted] = postbox.requests
    stamp = posted.headers["X-Spikewatch-Timestamp"]
    expected = hmac.new(b"k" * 32, stamp.encode() + b"." + posted.body, hashlib.sha256).hexdigest()
    assert posted.headers["X-Spikewatch-Signature"] == f"v1={expected}"
    assert abs(int(stamp) - time.time()) < 60
    body = posted.json
    assert posted.headers["Idempotency-Key"] == body["message_id"]
    assert (body["event"], body["alert"]["kind"], body["run"]["name"]) == (
        "alert.opened",
        "spike-predicted",
        "name of run",
    )


async def test_apprise_delivers_to_other_services(database: Database, detectors: Detectors) -> None:
    with Postbox() as postbox:
        await ChannelStore(database).put(channel("apprise", f"json://127.0.0.1:{postbox.port}/x"))
        async with sending(database):
            await detectors.hold(prediction(message="@everyone [look](http://evil.example)"))
            await settle(database)
        [posted] = postbox.requests
    body = posted.json
    assert body["title"] == "Spike predicted in ~85 steps (step 712, 698–731), run name of run"
    assert body["type"] == "warning"
    assert "＠everyone [look] (http:∕∕evil.example)" in body["message"]
    assert "https://spikes.example/runs/run?step=627" in body["message"].splitlines()


@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 500, "body": "oops"},
        {"status": 429, "body": "rate_limited", "headers": {"Retry-After": "0"}},
        {"status": 503},
        {"status": 200, "cut": True},
        {"status": 200, "hang": True},
    ],
    ids=["500", "429", "503", "cut off", "slow"],
)
async def test_a_temporary_failure_is_retried(
    database: Database, detectors: Detectors, slack: SlackServer, trouble: dict[str, Any]
) -> None:
    await ChannelStore(database).put(channel("slack-webhook", slack.webhook))
    slack.answer(**{"body": "", **trouble})
    async with sending(database, patience=0.5) as dispatcher:
        await detectors.hold(prediction())
        assert await settle(database) == {"sent": ["opened"]}
        assert dispatcher.counts == {("slack-webhook", "retry"): 1, ("slack-webhook", "sent"): 1}
    [message] = slack.messages
    assert "may be a repetition" in message.words
    first, second = (request.json["metadata"]["event_payload"] for request in slack.requests)
    assert first == second


CAME_AND_WENT = "🟠 Came and went: Loss spike at step 712, over by step 712, run name of run"


@pytest.mark.parametrize("saves", [1, 2])
async def test_a_backlog_after_an_outage_reports_what_came_and_went(
    database: Database, detectors: Detectors, slack: SlackServer, saves: int
) -> None:
    """The spike of a fast run opens and ends in one save, otherwise in two; no server sends meanwhile."""
    await ChannelStore(database).put(channel("slack-webhook", slack.webhook))
    for state in ("open", "resolved")[-saves:]:
        await detectors.hold(spike(state=state))
    async with sending(database):
        settled_rows = await settle(database)
    assert settled_rows == {"sent": ["opened", "resolved"][:saves]}
    assert [message.text for message in slack.messages] == [CAME_AND_WENT]


@pytest.mark.parametrize("status", [429, 500])
async def test_a_spike_that_ends_while_slack_fails_is_reported_once(
    database: Database, detectors: Detectors, slack: SlackServer, status: int
) -> None:
    await ChannelStore(database).put(channel("slack-webhook", slack.webhook))
    slack.answer(status, "", headers={"Retry-After": "30"})
    now = time.time()
    clock = [now]
    async with sending(database, clock=lambda: clock[0], quick=False) as dispatcher:
        await detectors.hold(spike(), now=now - 1)
        await failed(database)
        await detectors.hold(spike(state="resolved"), now=now)
        clock[0] = now + 31.0
        dispatcher.wake()
        assert await settle(database) == {"sent": ["opened", "resolved"]}
    assert [message.text for message in slack.messages] == [CAME_AND_WENT]
    first, second = (request.json["metadata"]["event_payload"]["message_id"] for request in slack.requests)
    assert first == second, "a repetition has the same id"


async def test_a_stream_of_alarms_is_a_few_messages_and_a_digest(
    database: Database, detectors: Detectors, slack: SlackServer
) -> None:
    await ChannelStore(database).put(channel("slack-webhook", slack.webhook))
    await ChannelStore(database).save_settings(NotificationSettings(cooldown_seconds=0.0))
    now = time.time()
    for number in range(MAX_PER_HOUR):
        await detectors.hold(spike(id=f"s{number}"), now=now + 60.0 * number - 1.0)
        async with sending(database, clock=functools.partial(float, now + 60.0 * number)):
            await settle(database)
    for number in range(MAX_PER_HOUR, 20):
        await detectors.hold(spike(id=f"s{number}"), now=now + 60.0 * number - 1.0)

    async def is_held() -> bool:
        return await OutboxStore(database).next_due() == pytest.approx(now + RATE_WINDOW)

    async with sending(database, clock=lambda: now + 1_200.0):
        await changes_until(is_held)
    assert len(slack.messages) == MAX_PER_HOUR
    async with sending(database, clock=lambda: now + RATE_WINDOW + 1.0):
        await settle(database)
    assert len(slack.messages) == MAX_PER_HOUR + 1
    assert slack.messages[-1].text.startswith("🟠 16 alerts within 15 min, run name of run")


async def test_a_retry_after_header_is_obeyed(database: Database, detectors: Detectors, slack: SlackServer) -> None:
    await ChannelStore(database).put(bot())
    slack.answer(429, '{"ok": false, "error": "ratelimited"}', headers={"Retry-After": "30", **JSON})
    now = time.time()
    clock = [now]
    async with sending(database, slack.api_url, clock=lambda: clock[0]):
        await detectors.hold(prediction(), now=now - 1)
        assert (await failed(database)).last_error == "429 ratelimited"
        assert await OutboxStore(database).next_due() == pytest.approx(now + 30.0)
        clock[0] = now + 30.5
        assert await settle(database) == {"sent": ["opened"]}
    assert len(slack.requests) == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((404, "no_service"), "404 no_service"),
        ((403, "invalid_token"), "403 invalid_token"),
        ((410, "channel_is_archived"), "410"),
        ((302, ""), "redirect"),
    ],
)
async def test_a_wrong_webhook_is_switched_off_with_its_reason(
    database: Database, detectors: Detectors, slack: SlackServer, answer: tuple[int, str], reason: str
) -> None:
    await ChannelStore(database).put(channel("slack-webhook", slack.webhook))
    slack.always(*answer, headers={"Location": slack.url("/elsewhere")})
    async with sending(database):
        await detectors.hold(prediction())
        assert list(await settle(database)) == ["failed"]
        held = await the_channel(database)
        assert (held.enabled, reason in (held.disabled_reason or "")) == (False, True)
        await detectors.hold(prediction("other"))
    assert [request.path for request in slack.requests] == ["/services/T000/B000/secret"]


@pytest.mark.parametrize(("change", "word"), [({"token": "xoxb-2"}, "invalid_auth"), ({}, "channel_not_found")])
async def test_a_wrong_bot_is_switched_off_with_its_reason(
    database: Database, detectors: Detectors, slack: SlackServer, change: dict[str, str], word: str
) -> None:
    slack.token = change.get("token", slack.token)
    await ChannelStore(database).put(bot(settings={"channel": "#nobody", "picture": False}))
    async with sending(database, slack.api_url):
        await detectors.hold(prediction())
        await settle(database)
    assert word in ((await the_channel(database)).disabled_reason or "")


async def test_refused_blocks_are_followed_by_plain_words(
    database: Database, detectors: Detectors, slack: SlackServer
) -> None:
    await ChannelStore(database).put(channel("slack-webhook", slack.webhook))
    slack.answer(400, "invalid_blocks")
    async with sending(database):
        await detectors.hold(prediction())
        assert await settle(database) == {"sent": ["opened"]}
    [message] = slack.messages
    assert "blocks" not in message.payload
    assert message.text.startswith("Spike predicted in ~85 steps")


async def test_a_message_that_nobody_takes_is_given_up_and_the_next_is_sent(
    database: Database, detectors: Detectors, slack: SlackServer
) -> None:
    await ChannelStore(database).put(channel("slack-webhook", slack.webhook))
    slack.answer(400, "invalid_payload", times=2)
    async with sending(database):
        await detectors.hold(prediction())
        assert await settle(database) == {"failed": ["400 invalid_payload"]}
        await detectors.hold(prediction("other"))
        assert await settle(database) == {"failed": ["400 invalid_payload"], "sent": ["opened"]}


async def test_a_storm_is_one_message(database: Database, detectors: Detectors, slack: SlackServer) -> None:
    await ChannelStore(database).put(bot())
    await detectors.storm([f"r{number}" for number in range(30)])
    async with sending(database, slack.api_url):
        assert await settle(database) == {"sent": ["opened"] * 30}
    [message] = slack.messages
    assert "30 runs raised alerts" in message.text


async def test_two_dispatchers_send_everything_once(database: Database, detectors: Detectors) -> None:
    store = ChannelStore(database)
    calm = NotificationSettings(digest=Digest(window_seconds=60.0, threshold=1_000), cooldown_seconds=0.0)
    await store.save_settings(calm)
    with Postbox() as postbox:
        for number in range(4):
            await store.put(channel("webhook", postbox.url(f"/{number}"), channel_id=f"c{number}"))
        other = Database(
            str(database.url.render_as_string(hide_password=False)).replace("+aiosqlite", "").replace("+asyncpg", "")
        )
        try:
            async with sending(database) as one, sending(other) as two:
                for number in range(5):
                    await detectors.hold(prediction(f"r{number}"))
                    one.wake()
                    two.wake()
                assert await settle(database) == {"sent": ["opened"] * 20}
        finally:
            await other.close()
        keys = [request.headers["Idempotency-Key"] for request in postbox.requests]
    assert len(keys) == len(set(keys)) == 20


async def test_another_dispatcher_takes_over_when_one_dies(
    database: Database, detectors: Detectors, slack: SlackServer
) -> None:
    await ChannelStore(database).put(bot())
    await detectors.hold(prediction())
    store = OutboxStore(database)
    now = time.time() + 1
    claimed = await store.claim("dead", now, now + 60)
    assert claimed is not None
    [row] = (await store.read(claimed.id, now)).waiting
    assert await store.begin(claimed.id, "dead", [row.id], now + 60)
    assert await store.claim("another", now + 59, now + 99) is None
    async with sending(database, slack.api_url, clock=lambda: now + 61):
        assert await settle(database) == {"sent": ["opened"]}
    [message] = slack.messages
    assert f"message {row.message_id} · may be a repetition" in message.words
    assert not await store.begin(claimed.id, "dead", [row.id], now + 99)


async def test_a_message_in_flight_when_a_server_is_killed_is_repeated_and_marked(
    database: Database, database_url: str, detectors: Detectors, slack: SlackServer
) -> None:
    await ChannelStore(database).put(bot())
    await detectors.hold(prediction())
    slack.answer(200, hang=True)
    command = [sys.executable, "-m", "tests.support.dispatcher_process", database_url, slack.api_url]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        await asyncio.to_thread(slack.wait, 1)
    finally:
        process.kill()
        await process.wait()
    ahead = time.time() + 61
    async with sending(database, slack.api_url, clock=lambda: ahead):
        assert await settle(database) == {"sent": ["opened"]}
    first, second = (json.loads(request.body)["metadata"]["event_payload"]["message_id"] for request in slack.requests)
    assert first == second
    [message] = slack.messages
    assert f"message {first} · may be a repetition" in message.words


async def test_an_outage_of_the_database_repeats_no_delivered_message(
    database: Database, detectors: Detectors, slack: SlackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ChannelStore(database).put(bot())
    await detectors.hold(prediction())
    note = OutboxStore.sent
    outages = iter([True, True])

    async def sent(self: OutboxStore, *args: Any) -> None:
        if next(outages, False):
            raise DatabaseUnavailableError("the database is away")
        await note(self, *args)

    monkeypatch.setattr(OutboxStore, "sent", sent)
    monkeypatch.setattr("server.notifications.dispatcher.RECORD_DELAYS", (0.0, 0.0, 0.0))
    async with sending(database, slack.api_url):
        assert await settle(database) == {"sent": ["opened"]}
    assert len(slack.messages) == 1


async def test_imported_runs_notify_nobody(database: Database, detectors: Detectors) -> None:
    await ChannelStore(database).put(bot())
    await detectors.hold(prediction(), sdk="import")
    assert await OutboxStore(database).next_due() is None


async def test_a_channel_receives_only_alerts_that_match_it(database: Database, detectors: Detectors) -> None:
    store = ChannelStore(database)
    await store.put(bot(id="all"))
    await store.put(bot(id="critical", min_level="critical"))
    await store.put(bot(id="project", project="another"))
    await store.put(bot(id="kind", kinds=("spike",)))
    await store.put(bot(id="off", enabled=False))
    await detectors.hold(prediction())
    async with database.read() as connection:
        assert list((await connection.execute(select(outbox.c.channel_id))).scalars()) == ["all"]


async def test_silenced_alerts_are_skipped(database: Database, detectors: Detectors, slack: SlackServer) -> None:
    store = ChannelStore(database)
    await store.put(bot())
    silence = Silence(id="00000000-0000-0000-0000-000000000000", until=time.time() + 60, kind="lr-jump")
    await store.save_settings(dataclasses.replace(NotificationSettings(), silences=(silence,)))
    await detectors.hold(prediction("a", kind="lr-jump"))
    await detectors.hold(prediction("b"))
    await AlertStore(database).silence("p-b", time.time() + 60)
    async with sending(database, slack.api_url):
        assert await settle(database) == {"skipped": ["silenced", "silenced"]}
    assert slack.requests == []


async def test_an_acknowledged_alert_is_not_sent_until_it_ends(
    database: Database, detectors: Detectors, slack: SlackServer
) -> None:
    await ChannelStore(database).put(bot(settings={"channel": "#ml", "picture": False}))
    async with sending(database, slack.api_url) as dispatcher:
        await detectors.hold(prediction())
        dispatcher.wake()
        await settle(database)
        await AlertStore(database).acknowledge("p-run", time.time())
        await detectors.hold(prediction(level="critical"))
        dispatcher.wake()
        assert (await settle(database))["skipped"] == ["acknowledged"]
        await detectors.hold(settled(prediction(level="critical"), "false", 760))
        dispatcher.wake()
        await settle(database)
    first, last = slack.messages
    assert "Spike predicted" in first.text
    assert "did not come" in last.text
    assert last.thread == first.ts


@pytest.mark.parametrize(
    ("status", "state", "enabled"),
    [(404, "failed", False), (302, "failed", False), (400, "failed", True)],
    ids=["gone", "moved", "refused"],
)
async def test_apprise_does_not_retry_final_failures(
    database: Database, detectors: Detectors, status: int, state: str, enabled: bool
) -> None:
    with Postbox() as postbox, Postbox() as elsewhere:
        postbox.answer(status, headers={"Location": elsewhere.url()})
        secret = f"json://127.0.0.1:{postbox.port}/x?redirect=yes"
        await ChannelStore(database).put(channel("apprise", secret))
        async with sending(database):
            await detectors.hold(prediction())
            assert list(await settle(database)) == [state]
        assert (len(postbox.requests), len(elsewhere.requests)) == (1, 0)
    kept = await the_channel(database)
    assert kept.enabled is enabled
    assert enabled or str(status) in str(kept.disabled_reason)


async def test_apprise_retries_temporary_failures(database: Database, detectors: Detectors) -> None:
    with Postbox() as postbox:
        postbox.answer(503)
        await ChannelStore(database).put(channel("apprise", f"json://127.0.0.1:{postbox.port}/x"))
        async with sending(database) as dispatcher:
            await detectors.hold(prediction())
            assert await settle(database) == {"sent": ["opened"]}
            assert dispatcher.counts == {("apprise", "retry"): 1, ("apprise", "sent"): 1}


async def test_a_name_that_cannot_be_resolved_is_retried(database: Database, detectors: Detectors) -> None:
    await ChannelStore(database).put(channel("webhook", "https://nobody.invalid/hook"))
    async with sending(database, quick=False):
        await detectors.hold(prediction())
        held = await failed(database)
    assert (held.enabled, held.last_error) == (True, "the name nobody.invalid cannot be looked up")
