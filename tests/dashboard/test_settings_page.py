"""The settings page: channels and quiet hours as forms, and their actions."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec
import pytest

from client_sdk.answers import Channel, Lead, Notifications, Precision, Silence
from dashboard import ids
from dashboard.client import ApiClient
from dashboard.config import DashboardConfig
from dashboard.forms.actions import FormActions, parse_form_action
from dashboard.forms.fields import FieldError
from dashboard.pages.alerts import precision
from dashboard.pages.channel_form import channel_body, channel_editor, channel_list
from dashboard.pages.registry import PAGES
from dashboard.pages.settings import quiet_hours, silence, silences
from dashboard.shell.page import action_handlers
from server.api.channels import kind_answer
from server.notifications.channels.registry import KINDS

CHANNEL = Channel(id="c", name="training", kind="slack-bot", settings={"channel": "#a", "picture": False})

CHANNEL_KINDS = [kind_answer(kind) for kind in KINDS]
KIND_ANSWER = msgspec.to_builtins({"kinds": CHANNEL_KINDS})


def test_an_empty_secret_keeps_the_stored_one() -> None:
    fields = {"name": "n", "kind": "slack-bot", "channel": "#b", "min_level": "watch", "secret": "", "kinds": "spike"}
    sent = channel_body(fields, CHANNEL, CHANNEL_KINDS)
    assert "secret" not in sent
    assert sent["settings"] == {"picture": False, "channel": "#b"}
    assert sent["kinds"] == ["spike"]
    with pytest.raises(FieldError, match="secret"):
        channel_body(fields, None, CHANNEL_KINDS)


@pytest.mark.parametrize(
    ("field", "changes"), [("name", {"name": ""}), ("channel", {"channel": ""}), ("kinds", {"kinds": "spike, spikes"})]
)
def test_a_wrong_channel_is_refused_at_its_field(field: str, changes: dict[str, str]) -> None:
    with pytest.raises(FieldError) as caught:
        channel_body({"name": "n", "kind": "slack-bot", "channel": "#b", "secret": "x", **changes}, None, CHANNEL_KINDS)
    assert caught.value.field == field


def test_the_editor_shows_the_fields_of_the_chosen_kind() -> None:
    def conditions(channel: Channel) -> list[tuple[str, bool]]:
        editor: Any = channel_editor(channel, CHANNEL_KINDS)
        labels = editor.children[1].children[0].children
        return [(getattr(label, "data-values"), label.hidden) for label in labels if hasattr(label, "data-when")]

    everywhere = "slack-webhook slack-bot apprise webhook"
    assert conditions(CHANNEL) == [(everywhere, False), ("slack-bot", False)]
    assert conditions(Channel(id="d", name="hook", kind="webhook")) == [(everywhere, False), ("slack-bot", True)]


def test_a_change_of_the_kind_drops_the_fields_of_the_former_kind() -> None:
    fields = {"name": "n", "kind": "webhook", "channel": "#a", "secret": "https://x", "min_level": "watch"}
    assert channel_body(fields, CHANNEL, CHANNEL_KINDS)["settings"] == {"picture": False}


def test_quiet_hours_are_times_of_the_day() -> None:
    assert quiet_hours({"on": "no", "start": "never"}) is None
    hours = quiet_hours({"on": "yes", "start": "9:30", "end": "17:00", "timezone": "", "min_level": "watch"})
    assert hours is not None
    assert (hours.start, hours.end, hours.timezone) == ("09:30", "17:00", "UTC")
    with pytest.raises(FieldError, match="end"):
        quiet_hours({"on": "yes", "start": "22:00", "end": "25:00"})


def test_a_reason_that_a_channel_was_switched_off_is_shown() -> None:
    off = Channel(id="c", name="n", kind="webhook", enabled=False, disabled_reason="no_service", last_error="404")
    assert "no_service" in str(channel_list([off], CHANNEL_KINDS, 0.0))
    assert "No channel yet" in str(channel_list([], CHANNEL_KINDS, 0.0))


def test_expired_silences_are_not_shown() -> None:
    made = silence({"hours": "2", "kind": "spike", "reason": "x"}, 100.0, "id")
    assert (made.until, made.kind, made.run_id) == (7_300.0, "spike", None)
    shown = str(silences(Notifications(silences=(made, Silence(id="old", until=50.0, reason="gone"))), [], 100.0))
    assert "of every kind" in shown
    assert "gone" not in shown


def test_precision_counts_predictions_that_were_settled() -> None:
    assert precision(Precision()) == ["No prediction has been settled yet."]
    shown = precision(Precision(settled=4, hit=2, early=1, false=1, lead_steps=Lead(median=60.0)))
    assert "3 of 4 predictions came true" in str(shown[0])
    assert shown[1] == " (2 hit, 1 came early, 1 did not come); median lead 60 steps"


class Api:
    """Transport that records the requests and gives one prepared answer to all that change something."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        self.asked.append((request.method, request.url.path.removeprefix("/api/v1"), body))
        if request.method == "GET":
            empty: dict[str, Any] = {
                "rules": {"rules": []}, "channels": {"channels": []}, "kinds": KIND_ANSWER, "notifications": {},
            }  # fmt: skip
            return httpx.Response(200, json=empty.get(request.url.path.rsplit("/", 1)[1], {"runs": []}))
        return self.answer


async def do(api: Api, verb: str, form: str, **fields: str) -> dict[str, dict[str, Any]]:
    client = ApiClient(DashboardConfig(), transport=httpx.MockTransport(api))
    action = parse_form_action({"verb": verb, "subject": None, "form": form, "fields": fields, "number": 1})
    assert action is not None
    try:
        return await FormActions(action_handlers(PAGES), clock=lambda: 1_000.0).perform(action, client)
    finally:
        await client.aclose()


RULE = {"name": "n", "watches": "scalar", "scalar": "loss", "condition": "above", "value": "1", "for_steps": "1",
        "cooldown_minutes": "0", "level": "watch"}  # fmt: skip


@pytest.mark.parametrize(
    ("message", "field", "fields"),
    [
        ("value: a finite number", "value", {"value": "a finite number"}),
        ("rules.0.scalar: which one?", "rules.0.scalar", {"scalar": "which one?"}),
        ("which one?", "scalar", {"scalar": "which one?"}),
        ("something else entirely", None, {"": "something else entirely"}),
        ("value: a finite number", None, {"": "value: a finite number"}),
        ("nowhere: to be seen", "nowhere", {"": "nowhere: to be seen"}),
    ],
)
async def test_a_refusal_is_shown_at_its_field_or_at_the_foot_of_the_form(
    message: str, field: str | None, fields: dict[str, str]
) -> None:
    refusal = {"error": "invalid_rule", "message": message} | ({} if field is None else {"field": field})
    api = Api(httpx.Response(400, json=refusal))
    shown = await do(api, "save-rule", "rule", **RULE)
    assert shown[ids.FORM_RESULT]["data"]["errors"] == fields
    assert ids.RULE_EDITOR not in shown, "what was typed must stay"


async def test_a_server_that_is_away_loses_nothing_that_was_typed() -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    client = ApiClient(DashboardConfig(), transport=httpx.MockTransport(away))
    action = parse_form_action({"verb": "save-rule", "form": "rule", "fields": RULE})
    assert action is not None
    shown = await FormActions(action_handlers(PAGES)).perform(action, client)
    await client.aclose()
    assert "no answer" in shown[ids.FORM_RESULT]["data"]["errors"][""]


async def test_a_new_channel_leaves_the_others_as_they_are() -> None:
    api = Api(httpx.Response(200, json={"channels": []}))
    await do(api, "save-channel", "channel", name="n", kind="slack-webhook", secret="https://x", min_level="watch")
    ((_, path, sent),) = [asked for asked in api.asked if asked[0] == "PUT"]
    assert path == "/channels"
    assert [(channel["name"], channel["secret"]) for channel in sent["channels"]] == [("n", "https://x")]


@pytest.mark.parametrize("data", [None, 3, {}, {"verb": 3}, {"verb": "x", "fields": [1]}])
async def test_a_browser_may_send_anything(data: Any) -> None:
    action = parse_form_action(data)
    if action is not None:
        client = ApiClient(DashboardConfig())
        assert await FormActions(action_handlers(PAGES)).perform(action, client) == {}
        await client.aclose()
