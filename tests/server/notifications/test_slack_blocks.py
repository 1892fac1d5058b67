"""Slack accepts the blocks whatever the author of a run has typed."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_sdk.protocol import Alert, Forecast, Outcome
from server.notification import Change
from server.notifications.channels.apprise_url import neutralized
from server.notifications.notification_text import (
    Notification,
    alert_notification,
    channel_test_notification,
    digest_notification,
)
from server.notifications.slack_blocks import payload, plain_payload
from tests.server.notifications.test_policy import notified, row
from tests.support.alerting import PUBLIC_URL, prediction, settled
from tests.support.slack import faults, texts, unescape

EVIL = "<!channel> *bold* _it_ ~no~ `code` <https://evil.example|click> & @here :smile: https://evil.example\n\x00"


def message(alert: Alert, change: Change = Change.OPENED, follows: bool = False, **changes: Any) -> Notification:
    return alert_notification(row(1, alert, change, **changes), notified(alert) if follows else None, PUBLIC_URL)


def words(shown: Notification) -> str:
    return "\n".join(unescape(text["text"]) for text in texts(payload(shown)["blocks"]))


def test_a_prediction_says_when_why_and_what_to_try() -> None:
    shown = message(prediction(), run_name="gpt-small", stage="unstable")
    assert shown.headline == "Spike predicted in ~85 steps (step 712, 698–731), run gpt-small"
    text = words(shown)
    for expected in (
        "`gpt-small`",
        "unstable",
        "1.21 (242 of 200)",
        "blocks.0.attn_proj.weight 41%, head.weight 22%",
        "stale second moment",
        "4.8e−12",
        "1. Save a checkpoint now",
        "Open run at step 627",
        "Acknowledge",
        "Silence 1 h",
    ):
        assert expected in text
    assert faults(payload(shown)) == []
    buttons = next(block for block in payload(shown)["blocks"] if block["type"] == "actions")["elements"]
    assert [button["url"] for button in buttons] == [
        f"{PUBLIC_URL}/runs/run?step=627",
        f"{PUBLIC_URL}/alerts/p-run?do=acknowledge",
        f"{PUBLIC_URL}/alerts/p-run?do=silence",
    ]


@pytest.mark.parametrize(
    ("alert", "change", "headline"),
    [
        (
            prediction(level="critical"),
            Change.ESCALATED,
            "Now critical: spike predicted in ~85 steps (step 712, 698–731), run r",
        ),
        (settled(prediction(), "hit", 718), Change.CONFIRMED, "Confirmed: it came at step 718: lead 115 steps, run r"),
        (settled(prediction(), "false", 760), Change.FALSE_ALARM, "False alarm: it did not come by step 760, run r"),
        (
            prediction(state="resolved"),
            Change.RESOLVED,
            "Resolved at step 627: Spike predicted at step 712, run r",
        ),
    ],
)
def test_later_messages_report_the_change(alert: Alert, change: Change, headline: str) -> None:
    shown = message(alert, change, follows=True, run_name="r")
    assert shown.headline == headline
    assert "about: Spike predicted at step 712, opened at step 603" in words(shown)
    assert faults(payload(shown)) == []


def test_the_outcome_shows_what_was_said_when() -> None:
    path = (
        Forecast(step=563, low=674, best=786, high=968, level="watch"),
        Forecast(step=600, low=680, best=770, high=900, level="watch"),
        Forecast(step=688, low=730, best=751, high=790, level="warning"),
    )
    came = Outcome(result="hit", step=752, lead=64, first_seen_lead=149)
    alert = prediction(state="resolved", forecasts=path, outcome=came, updated_step=753)
    shown = message(alert, Change.CONFIRMED, follows=True, run_name="r")
    assert shown.headline == "Confirmed: it came at step 752: lead 64 steps, run r"
    text = words(shown)
    assert "*Forecast at step 563*\nstep 786 (674–968), watch" in text
    assert "*Forecast at step 688*\nstep 751 (730–790), warning" in text
    assert "step 770" not in text
    assert "*First signs*\nstep 603, 149 steps before the spike" in text
    assert faults(payload(shown)) == []
    late = msgspec.structs.replace(came, lead=None)
    unwarned = message(msgspec.structs.replace(alert, outcome=late), Change.CONFIRMED, follows=True, run_name="r")
    assert unwarned.headline == "Confirmed: it came at step 752, without a warning, run r"


def test_an_event_that_came_and_went_is_reported_as_such() -> None:
    shown = message(prediction(kind="spike", title="Loss spike at step 600"), run_name="r", still_open=False)
    assert shown.headline == "Came and went: Loss spike at step 600, over by step 627, run r"
    assert "What to try" not in words(shown)
    assert faults(payload(shown)) == []


def test_a_digest_of_one_run_lists_its_alerts() -> None:
    rows = [
        row(number, prediction(step=number, kind="spike"), run_name=EVIL, still_open=number > 1)
        for number in range(1, 15)
    ]
    shown = digest_notification(rows, 60.0, PUBLIC_URL)
    assert shown.headline.startswith("14 alerts within 1 s, run ")
    assert "• step 1: Spike predicted at step 712 (over)\n• step 2: Spike predicted at step 712\n" in words(shown)
    assert "and 4 more" in words(shown)
    assert faults(payload(shown)) == []


def test_text_of_an_author_is_never_markup() -> None:
    alert = prediction(
        title=EVIL, message=EVIL * 100, layers=(EVIL, EVIL), cause=EVIL, kind="custom-rule", advice=(EVIL,) * 100
    )
    for change, follows in ((Change.OPENED, False), (Change.ESCALATED, True), (Change.RESOLVED, True)):
        sent = payload(message(alert, change, follows, run_name=EVIL, project=EVIL, stage=EVIL))
        assert faults(sent) == []
        for text in texts(sent["blocks"]):
            assert "<" not in text["text"]
            if text["type"] == "mrkdwn":
                outside = re.sub(r"`[^`\n]*`", "", text["text"])
                assert not re.search(r"://|@|[_~]\w", outside.replace("λ_", "")), text
        assert "<" not in sent["text"]


@given(
    st.text(max_size=400),
    st.text(max_size=4_000),
    st.lists(st.text(max_size=300), max_size=12),
    st.sampled_from(list(Change)),
    st.booleans(),
)
def test_any_text_stays_within_the_limits_of_slack(
    name: str, sentence: str, listed: list[str], change: Change, follows: bool
) -> None:
    alert = prediction(
        title=name, message=sentence, layers=tuple(listed), layer_shares=(), advice=tuple(listed), kind="bad-batch"
    )
    shown = message(alert, change, follows, run_name=name, project=name)
    assert faults(payload(shown)) == []
    assert faults({**plain_payload(shown), "blocks": []}) == []


def test_a_digest_names_a_few_of_many_runs() -> None:
    rows = [row(number, prediction(f"r{number}"), run_name=EVIL) for number in range(200)]
    shown = digest_notification(rows, 60.0, PUBLIC_URL)
    assert shown.headline == "200 runs raised alerts within 1 s"
    assert "and 190 more" in words(shown)
    assert faults(payload(shown)) == []


def test_a_test_message_is_valid() -> None:
    assert faults(payload(channel_test_notification("id", EVIL, PUBLIC_URL, 0.0))) == []


def test_a_repetition_is_recognisable() -> None:
    shown = dataclasses.replace(message(prediction()), is_repeat=True)
    assert "message m1 · may be a repetition of one with this id" in words(shown)


@given(st.text())
def test_neutralized_text_has_no_mention_and_no_link(text: str) -> None:
    assert not re.search(r"@|<|>|\]\(|://", neutralized(text + EVIL))
