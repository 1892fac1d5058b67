"""Deliveries that fail: what is repeated, what is given up, and what nobody gets twice."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import pytest

from server.errors import DatabaseUnavailableError
from server.storage.channels import ChannelStore
from server.storage.database import Database
from server.storage.outbox import OutboxStore
from tests.support.alerting import Detectors, bot, channel, prediction, spike
from tests.support.dispatching import failed, sending, settle, the_channel
from tests.support.postbox import Postbox
from tests.support.slack import SlackServer

CAME_AND_WENT = "🟠 Came and went: Loss spike at step 712, over by step 712, run name of run"
JSON = {"Content-Type": "application/json"}


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
