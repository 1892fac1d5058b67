"""Dispatch from the outbox over real sockets: once, in order, and again only where a retry can help."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import hmac
import io
import time

import pytest
from PIL import Image
from sqlalchemy import select

from server.notification import RATE_WINDOW, Digest, NotificationSettings, Silence
from server.notifications.policy import ESCALATION_GAP, MAX_PER_HOUR
from server.schema import outbox
from server.storage.alerts import AlertStore
from server.storage.channels import ChannelStore
from server.storage.database import Database
from server.storage.outbox import OutboxStore
from tests.support.alerting import Detectors, bot, channel, prediction, settled, spike
from tests.support.dispatching import PICTURE, changes_until, sending, settle, the_channel
from tests.support.postbox import Postbox
from tests.support.slack import SlackServer

CAME_AND_WENT = "🟠 Came and went: Loss spike at step 712, over by step 712, run name of run"


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
