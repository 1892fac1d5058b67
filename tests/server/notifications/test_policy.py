"""The delivery policy: which notifications are sent, skipped and held back, and when."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from client_sdk.protocol import Alert
from server.notification import (
    Change,
    Channel,
    Digest,
    NotificationSettings,
    NotifiedIncident,
    OutboxRow,
    QuietHours,
    Silence,
    change_of,
    cooldown_group_of,
    incident_of,
)
from server.notifications.notification_text import alert_notification
from server.notifications.policy import (
    ESCALATION_GAP,
    MAX_NEWS_AGE,
    MAX_PER_HOUR,
    DeliveryPlan,
    incidents_after,
    plan_deliveries,
)
from tests.support.alerting import bot, prediction, settled, spike

NOW = 1_800_000_000.0  # 08:00 in UTC
SETTINGS = NotificationSettings(digest=Digest(window_seconds=60.0, threshold=5), cooldown_seconds=600.0)
BOT = bot()


def row(number: int, alert: Alert, change: Change = Change.OPENED, **changes: Any) -> OutboxRow:
    made = OutboxRow(
        id=number,
        message_id=f"m{number}",
        channel_id="channel",
        run_id=alert.run_id,
        run_name=alert.run_id,
        project="demo",
        incident_id=incident_of(alert),
        change=change,
        alert=msgspec.structs.replace(alert, opened_at=NOW),
        created_at=NOW,
        still_open=alert.state != "resolved",
    )
    return dataclasses.replace(made, **changes)


def notified(alert: Alert, **changes: Any) -> NotifiedIncident:
    made = NotifiedIncident(
        incident_id=incident_of(alert),
        run_id=alert.run_id,
        cooldown_group=cooldown_group_of(alert),
        level=alert.level,
        notified_at=NOW - 5.0,
    )
    return dataclasses.replace(made, **{"thread": "1.0", **changes})


def make(
    rows: Sequence[OutboxRow],
    known: Sequence[NotifiedIncident] = (),
    settings: NotificationSettings = SETTINGS,
    channel: Channel = BOT,
    now: float = NOW,
    *,
    times: Sequence[float] = (),
) -> DeliveryPlan:
    result = plan_deliveries(channel, rows, known, settings, now, sent_times={"run": times})
    decided = [number for delivery in result.send for number in delivery.ids]
    decided += [item.id for group, _ in (*result.skip, *result.hold) for item in group]
    assert sorted(decided) == sorted(item.id for item in rows), "every row is decided exactly once"
    return result


def sent(result: DeliveryPlan) -> list[tuple[int, ...]]:
    return [tuple(item.id for item in delivery.reports) for delivery in result.send]


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ((None, None), prediction(), Change.OPENED),
        (("warning", "open"), prediction(), None),
        (("watch", "open"), prediction(), Change.ESCALATED),
        (("warning", "open"), settled(prediction(), "hit", 712), Change.CONFIRMED),
        (("warning", "open"), settled(prediction(), "late", 790), Change.CONFIRMED),
        (("warning", "open"), settled(prediction(), "false", 760), Change.FALSE_ALARM),
        (("warning", "open"), prediction(state="resolved"), Change.RESOLVED),
        (("warning", "resolved"), prediction(state="resolved"), None),
        (("warning", "open"), spike(state="ended"), Change.ENDED),
        (("warning", "ended"), spike(state="ended"), None),
        (("warning", "ended"), spike(), None),
        ((None, None), spike(state="ended"), Change.OPENED),
        ((None, None), spike(state="resolved"), Change.OPENED),
        ((None, None), settled(prediction(), "hit", 712), Change.CONFIRMED),
    ],
)
def test_a_change_of_an_alert_has_one_name(before: tuple[str, str], now: Alert, expected: Change | None) -> None:
    assert change_of(now, *before) is expected


def test_an_incident_is_sent_once_and_then_its_changes() -> None:
    alert = prediction()
    first = make([row(1, alert)])
    assert sent(first) == [(1,)]
    [known] = incidents_after(first.send[0], "1.0", NOW)
    assert (known.thread, known.level, known.closed) == ("1.0", "warning", False)
    escalated = prediction(level="critical")
    follow = make([row(2, escalated, Change.ESCALATED)], [known], now=NOW + ESCALATION_GAP)
    assert sent(follow) == [(2,)]
    assert follow.send[0].incident == known
    [known] = incidents_after(follow.send[0], "2.0", NOW)
    assert (known.thread, known.level) == ("1.0", "critical")
    confirmed = settled(escalated, "hit", 712)
    last = make([row(3, confirmed, Change.CONFIRMED), row(4, spike(settles=alert))], [known])
    assert sent(last) == [(3,)]
    over = msgspec.structs.replace(spike(settles=alert), state="resolved")
    assert sent(make([row(5, over, Change.RESOLVED)], incidents_after(last.send[0], None, NOW))) == [(5,)]


def test_changes_during_an_outage_are_sent_as_one() -> None:
    alert = prediction()
    rows = [row(1, alert), row(2, prediction(level="critical"), Change.ESCALATED)]
    assert sent(make(rows)) == [(2,)]
    rows = [
        row(1, alert, still_open=False),
        row(2, settled(alert, "hit", 712), Change.CONFIRMED),
        row(3, spike(settles=alert)),
    ]
    assert sent(make(rows)) == [(2,)]


@pytest.mark.parametrize("change", [Change.FALSE_ALARM, Change.RESOLVED])
def test_an_incident_that_ended_before_it_was_sent_is_not_sent(change: Change) -> None:
    result = make([row(1, prediction(), still_open=False), row(2, settled(prediction(), "false", 760), change)])
    assert (sent(result), result.skip[0][1]) == ([], "over before it was sent")


@pytest.mark.parametrize(
    "changes", [(Change.OPENED,), (Change.OPENED, Change.ESCALATED), (Change.OPENED, Change.RESOLVED)]
)
def test_an_event_that_came_and_went_is_sent_once(changes: Sequence[Change]) -> None:
    rows = [
        row(number, spike(state="resolved" if change is Change.RESOLVED else "open"), change, still_open=False)
        for number, change in enumerate(changes, 1)
    ]
    result = make(rows)
    [delivery] = result.send
    assert sorted(delivery.ids) == [item.id for item in rows]
    assert delivery.reports[0].change is not Change.RESOLVED
    assert delivery.reports[0].alert == rows[-1].alert
    [known] = incidents_after(delivery, "1.0", NOW)
    assert known.closed


def test_a_watch_that_came_and_went_is_not_sent() -> None:
    assert make([row(1, spike(level="watch"), still_open=False)]).skip[0][1] == "over before it was sent"


def test_the_end_of_an_event_that_was_acknowledged_or_silenced_is_not_its_first_notification() -> None:
    rows = [row(1, spike(), acknowledged=True, still_open=False)]
    rows.append(row(2, spike(state="resolved"), Change.RESOLVED, acknowledged=True))
    assert sent(make(rows)) == []


def test_a_prediction_that_becomes_critical_within_seconds_is_one_notification() -> None:
    together = make([row(1, prediction()), row(2, prediction(level="critical"), Change.ESCALATED)])
    assert sent(together) == [(2,)]
    [known] = incidents_after(make([row(1, prediction())]).send[0], "1.0", NOW)
    critical = row(2, prediction(level="critical"), Change.ESCALATED)
    held = make([critical], [known], now=NOW + 2.0)
    assert held.hold == [([critical], NOW + ESCALATION_GAP)]
    assert sent(make([critical], [known], now=NOW + ESCALATION_GAP)) == [(2,)]
    over = dataclasses.replace(critical, still_open=False)
    assert sent(make([over], [known], now=NOW + ESCALATION_GAP)) == []
    came = row(3, settled(prediction(level="critical"), "hit", 712), Change.CONFIRMED)
    assert sent(make([critical, came], [known], now=NOW + 2.0)) == [(3,)]


def test_alerts_about_one_step_are_one_notification_and_one_end() -> None:
    jump = spike()
    batch = prediction(id="b", kind="bad-batch", evidence={"incident_id": jump.id})
    assert sent(make([row(1, jump), row(2, batch)])) == [(2,)]
    [known] = incidents_after(make([row(1, jump)]).send[0], "1.0", NOW)
    assert make([row(2, batch)], [known], now=NOW + 60.0).skip[0][1] == "the incident was sent already"
    end = make([row(3, msgspec.structs.replace(batch, state="resolved"), Change.RESOLVED)], [known])
    assert sent(end) == [(3,)]
    [known] = incidents_after(end.send[0], "1.0", NOW)
    assert sent(make([row(4, spike(state="resolved"), Change.RESOLVED)], [known])) == []


def test_the_end_of_a_run_is_one_notification_for_each_incident() -> None:
    jump = spike(state="ended")
    worse = prediction(id="d", kind="divergence", level="critical", state="ended", evidence={"incident_id": jump.id})
    rows = [row(1, jump, Change.ENDED, still_open=False), row(2, worse, Change.ENDED, still_open=False)]
    result = make(rows, [notified(spike())])
    assert sent(result) == [(2,)]
    assert result.skip[0][1] == "the incident was sent already"


def test_an_event_that_lasted_to_the_end_of_its_run_did_not_come_and_go() -> None:
    result = make([row(1, spike(state="ended"), still_open=False)])
    text = alert_notification(result.send[0].reports[0], None, "")
    assert text.headline == "Loss spike at step 712, and the run ended so, run run"
    assert text.advice


def test_the_end_of_a_less_severe_alert_does_not_end_its_incident() -> None:
    known = notified(spike(level="critical"))
    end = row(1, msgspec.structs.replace(spike(), state="resolved"), Change.RESOLVED)
    assert sent(make([end], [known])) == []


def test_a_run_sends_a_few_messages_an_hour_and_then_one_digest() -> None:
    sent_at = [NOW - 3_000.0, NOW - 2_000.0, NOW - 1_000.0, NOW - 700.0]
    assert len(sent_at) == MAX_PER_HOUR
    known = [notified(spike(), incident_id=f"i{at}", notified_at=at) for at in sent_at]
    more = [row(number, spike(id=f"s{number}")) for number in range(1, 58)]
    held = make(more, known, times=sent_at)
    assert sent(held) == []
    assert {until for _, until in held.hold} == {NOW + 600.0}
    worse = row(99, spike(id="worse", level="critical"))
    assert sent(make([worse], known, times=sent_at)) == [(99,)]
    other = row(98, spike("other", id="other"))
    assert sent(make([other], known, times=sent_at)) == [(98,)]
    assert sent(make(more, known, now=NOW + 600.0, times=sent_at)) == [tuple(range(1, 58))]


def test_a_stream_of_alarms_stays_within_the_bound() -> None:
    times: list[float] = []
    known: list[NotifiedIncident] = []
    waiting = [
        (NOW + 60.0 * number, row(number + 1, spike(id=f"s{number}"), created_at=NOW + 60.0 * number, still_open=False))
        for number in range(61)
    ]
    reported: set[int] = set()
    while waiting:
        now = min(due for due, _ in waiting)
        result = make([item for due, item in waiting if due <= now], known, now=now, times=times)
        waiting = [(due, item) for due, item in waiting if due > now]
        waiting += [(until, item) for group, until in result.hold for item in group]
        for delivery in result.send:
            times.append(now)
            known += incidents_after(delivery, None, now)
            reported |= {item.id for item in delivery.reports}
    assert all(sum(at <= other < at + 3_600.0 for other in times) <= MAX_PER_HOUR for at in times)
    assert len(reported) == 61, "none is lost"


def test_a_second_incident_of_a_run_waits_for_the_cooldown_unless_it_is_more_severe() -> None:
    known = [notified(prediction(), notified_at=NOW - 100.0)]
    again = prediction(id="p2")
    assert make([row(1, again)], known).hold == [((row(1, again),), NOW + 500.0)]
    assert sent(make([row(1, msgspec.structs.replace(again, level="critical"))], known)) == [(1,)]
    assert sent(make([row(1, again)], known, now=NOW + 500.0)) == [(1,)]
    assert sent(make([row(1, prediction("other"))], known)) == [(1,)]
    assert sent(make([row(1, prediction(id="l", kind="lr-jump"))], known)) == [(1,)]
    rules = [prediction(id=name, kind="custom-rule", evidence={"rule": name}) for name in ("a", "b")]
    assert sent(make([row(1, rules[0])], [notified(rules[1])])) == [(1,)]
    assert make([row(1, msgspec.structs.replace(rules[0], id="c"))], [notified(rules[0])]).hold
    assert make([row(1, spike())], known).hold, "a spike and its prediction share a cooldown"


def test_two_hundred_runs_at_once_are_one_message() -> None:
    rows = [row(number, prediction(f"r{number}")) for number in range(1, 201)]
    result = make(rows)
    assert len(result.send) == 1
    assert len(result.send[0].reports) == 200
    known = incidents_after(result.send[0], "1.0", NOW)
    assert all(item.in_digest and item.thread is None for item in known)
    late = make([row(900, prediction("late"))], known, now=NOW + 10.0)
    assert late.hold[0][1] == NOW + 60.0
    over = make([row(901, settled(rows[0].alert, "false", 760), Change.FALSE_ALARM)], known, now=NOW + 90.0)
    assert (sent(over), over.skip[0][1]) == ([], "sent in a digest")


def test_a_storm_that_builds_up_slowly_costs_few_single_messages() -> None:
    known: list[NotifiedIncident] = []
    sizes: list[int] = []
    waiting: list[tuple[float, OutboxRow]] = [
        (NOW + number * 0.25, row(number + 1, prediction(f"r{number}"), created_at=NOW + number * 0.25))
        for number in range(200)
    ]
    while waiting:
        now = min(due for due, _ in waiting)
        result = make([item for due, item in waiting if due <= now], known, now=now)
        waiting = [(due, item) for due, item in waiting if due > now]
        waiting += [(until, item) for group, until in result.hold for item in group]
        for delivery in result.send:
            sizes.append(len(delivery.reports))
            known += incidents_after(delivery, f"{now}", now)
    assert sizes == [1, 1, 1, 1, 196]


def test_quiet_hours_hold_what_is_not_critical() -> None:
    quiet = dataclasses.replace(SETTINGS, quiet_hours=QuietHours(start="22:00", end="10:30", timezone="Europe/Berlin"))
    result = make([row(1, prediction())], settings=quiet)
    assert result.hold == [([row(1, prediction())], NOW + 5_400.0)], (
        "it is 09:00 in Berlin, and quiet hours end at 10:30"
    )
    assert sent(make([row(1, prediction(level="critical"))], settings=quiet)) == [(1,)]
    assert sent(make([row(1, prediction())], settings=quiet, now=NOW + 5_400.0)) == [(1,)]
    own = bot(settings={"channel": "#ml", "quiet_hours": {"start": "00:00", "end": "01:00"}})
    assert sent(make([row(1, prediction())], settings=quiet, channel=own)) == [(1,)]


@pytest.mark.parametrize(
    "silence",
    [
        {},
        {"run_id": "run"},
        {"project": "demo"},
        {"kind": "spike-predicted"},
        {"run_id": "run", "project": "demo", "kind": "spike-predicted"},
    ],
)
def test_a_silence_matches_all_of_its_fields(silence: dict[str, str]) -> None:
    held = dataclasses.replace(SETTINGS, silences=(Silence(id="s", until=NOW + 1, **silence),))
    assert make([row(1, prediction())], settings=held).skip[0][1] == "silenced"
    assert sent(make([row(1, prediction())], settings=held, now=NOW + 2)) == [(1,)]
    if silence:
        other = dataclasses.replace(row(1, prediction("other", kind="lr-jump")), project="other")
        assert sent(make([other], settings=held)) == [(1,)]


def test_a_silenced_alert_is_not_sent() -> None:
    assert make([row(1, prediction(), silenced_until=NOW + 1)]).skip[0][1] == "silenced"


def test_an_acknowledged_alert_is_not_sent_again() -> None:
    worse = row(1, prediction(level="critical"), Change.ESCALATED, acknowledged=True)
    assert make([worse], [notified(prediction())]).skip == [([worse], "acknowledged")]
    late = row(1, prediction(), acknowledged=True)
    assert make([late]).skip == [([late], "acknowledged")], (
        "a channel that was not notified of it needs no notification"
    )


@pytest.mark.parametrize(("result", "change"), [("hit", Change.CONFIRMED), ("false", Change.FALSE_ALARM)])
def test_the_end_of_an_acknowledged_alert_is_sent(result: Any, change: Change) -> None:
    over = row(1, settled(prediction(), result, 712), change, acknowledged=True)
    assert sent(make([over], [notified(prediction())])) == [(1,)]


def test_old_changes_are_not_sent() -> None:
    assert sent(make([row(1, prediction())], now=NOW + MAX_NEWS_AGE + 1)) == []
    late = msgspec.structs.replace(prediction(), opened_at=NOW - MAX_NEWS_AGE - 1)
    assert sent(make([dataclasses.replace(row(1, prediction()), alert=late)])) == []
