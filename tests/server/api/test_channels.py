"""Channels and notification settings over HTTP: stored, replaced and tested, and secrets never returned."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.models import Scope
from tests.server.api.test_runs import make_token
from tests.support.postbox import Postbox
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer

WEBHOOK = "https://hooks.slack.com/services/T000/B000/verysecret"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[httpx.Client]:
    with running_server(tmp_path, notify_allow_private=True) as server, server.api() as client:
        yield client


def slack(**changes: Any) -> dict[str, Any]:
    return {"name": "ml", "kind": "slack-webhook", "secret": WEBHOOK, **changes}


def test_the_kinds_of_channels_are_listed_with_the_fields_of_their_forms(api: httpx.Client) -> None:
    kinds = api.get("/channels/kinds").json()["kinds"]
    assert [(kind["name"], kind["label"]) for kind in kinds] == [
        ("slack-webhook", "Slack, incoming webhook"),
        ("slack-bot", "Slack, bot token"),
        ("apprise", "another service, apprise URL"),
        ("webhook", "signed JSON webhook"),
    ]
    shown = [[field["name"] for field in kind["fields"] if not field["advanced"]] for kind in kinds]
    assert shown == [["secret"], ["secret", "channel"], ["secret"], ["secret"]]
    channel = kinds[1]["fields"][1]
    assert (channel["in_settings"], channel["required"], channel["secret"]) == (True, True, False)
    assert [field["secret"] for kind in kinds for field in kind["fields"] if field["name"] == "secret"] == [True] * 4


def put(api: httpx.Client, *channels: dict[str, Any]) -> list[dict[str, Any]]:
    answer = api.put("/channels", json={"channels": list(channels)})
    assert answer.status_code == 200, answer.text
    listed: list[dict[str, Any]] = answer.json()["channels"]
    return listed


def test_a_channel_is_listed_without_its_secret(api: httpx.Client, tmp_path: Path) -> None:
    put(api, slack(project="gpt", min_level="critical", kinds=["spike-predicted"]))
    [channel] = api.get("/channels").json()["channels"]
    assert {
        "name": "ml",
        "kind": "slack-webhook",
        "target": "hooks.slack.com/…",
        "project": "gpt",
        "min_level": "critical",
        "kinds": ["spike-predicted"],
        "enabled": True,
        "disabled_reason": None,
        "settings": {"picture": True},
        "last_sent_at": None,
        "last_error": None,
    }.items() <= channel.items()
    assert "verysecret" not in api.get("/channels").text
    for file in (tmp_path / "data").iterdir():
        assert b"verysecret" not in file.read_bytes(), file
    assert (tmp_path / "data" / "secret.key").stat().st_mode & 0o777 == 0o600


def test_a_list_replaces_the_channels_and_keeps_known_secrets(api: httpx.Client) -> None:
    with Postbox() as postbox:
        first, second = put(api, slack(secret=postbox.url("/first")), slack(name="gone"))
        renamed = {"id": first["id"], "name": "renamed", "kind": "slack-webhook"}
        added = {"name": "hook", "kind": "webhook", "secret": "https://example.com/hook"}
        kept = put(api, added, renamed)
        assert [channel["name"] for channel in kept] == ["hook", "renamed"]
        assert kept[0]["signing_key"].startswith("swsk_")
        assert "signing_key" not in api.get("/channels").text
        assert api.put(f"/channels/{second['id']}", json=slack()).status_code == 404
        test = api.post(f"/channels/{first['id']}/test").json()
        assert (test["ok"], test["answer"]) == (True, "200"), test
        assert [request.path for request in postbox.requests] == ["/first"]


def test_a_list_can_be_put_back_as_it_came(api: httpx.Client) -> None:
    put(api, slack(), {"name": "hook", "kind": "webhook", "secret": "https://example.com/hook"})
    listed = api.get("/channels").json()
    assert put(api, *listed["channels"]) == listed["channels"]


def test_a_test_returns_the_answer_of_the_receiving_service(api: httpx.Client) -> None:
    with Postbox() as postbox:
        [channel] = put(api, slack(secret=postbox.url()))
        postbox.answer(404, "no_service")
        test = api.post(f"/channels/{channel['id']}/test").json()
        assert (test["ok"], test["answer"]) == (False, "404 no_service")
    test = api.post(f"/channels/{channel['id']}/test").json()
    assert not test["ok"]
    assert "no connection to 127.0.0.1" in test["answer"]


def test_one_channel_is_changed_and_removed(api: httpx.Client) -> None:
    [channel] = put(api, slack())
    path = f"/channels/{channel['id']}"
    changed = api.put(path, json={"name": "off", "kind": "slack-webhook", "enabled": False}).json()
    assert (changed["name"], changed["enabled"], changed["created_at"]) == ("off", False, channel["created_at"])
    assert api.delete(path).json() == {"id": channel["id"], "removed": True}
    assert api.delete(path).status_code == 404
    assert api.get("/channels").json() == {"channels": []}


@pytest.mark.parametrize(
    ("channel", "message", "field"),
    [
        (slack(secret=None), "needs one", "secret"),
        (slack(secret="not a url"), "URL", "secret"),
        (slack(secret="ftp://example.com"), "https", "secret"),
        ({"name": "b", "kind": "slack-bot", "secret": "xoxp-1", "settings": {"channel": "C1"}}, "xoxb-", "secret"),
        ({"name": "b", "kind": "slack-bot", "secret": "xoxb-1"}, "settings.channel", "settings.channel"),
        ({"name": "a", "kind": "apprise", "secret": "nothing://x"}, "apprise", "secret"),
        ({"name": "a", "kind": "apprise", "secret": "syslog://"}, "server itself", "secret"),
        (slack(id="not there"), "no channel", "id"),
        (slack(settings={"quiet_hours": {"start": "22:00", "end": "7:00"}}), "end", "settings.quiet_hours.end"),
        (
            slack(settings={"quiet_hours": {"start": "22:00", "end": "07:00", "timezone": "Mars/Olympus"}}),
            "time zone",
            "settings.quiet_hours.timezone",
        ),
        (slack(signing_key="x" * 20), "signing_key", "signing_key"),
        (slack(kind="carrier-pigeon"), "slack-webhook, slack-bot, apprise, webhook", "kind"),
        (slack(settings={"chanel": "#ml"}), "chanel", "settings.chanel"),
    ],
)
def test_a_channel_that_cannot_work_is_refused_with_a_reason(
    api: httpx.Client, channel: dict[str, Any], message: str, field: str
) -> None:
    answer = api.put("/channels", json={"channels": [channel]})
    assert answer.status_code == 400
    assert message in answer.json()["message"]
    assert answer.json()["field"] == f"channels.0.{field}"
    assert "verysecret" not in answer.text
    assert api.get("/channels").json() == {"channels": []}


@pytest.mark.parametrize(
    "secret",
    [
        "https://127.0.0.1/x",
        "https://2130706433/x",
        "https://[::1]/x",
        "https://169.254.169.254/latest/meta-data",
        "https://10.0.0.8/x",
        "http://example.com/x",
    ],
)
def test_addresses_of_the_servers_own_network_are_refused(tmp_path: Path, secret: str) -> None:
    with running_server(tmp_path) as server, server.api() as api:
        answer = api.put("/channels", json={"channels": [{"name": "x", "kind": "webhook", "secret": secret}]})
        assert answer.status_code == 400
        assert "SPIKEWATCH_NOTIFY_ALLOW_PRIVATE" in answer.json()["message"]


@pytest.mark.parametrize("url", ["json://127.0.0.1/x", "mailto://user:word@example.com?smtp=10.0.0.8"])
def test_an_apprise_url_with_an_address_of_the_own_network_is_refused(tmp_path: Path, url: str) -> None:
    with running_server(tmp_path) as server, server.api() as api:
        answer = api.put("/channels", json={"channels": [{"name": "x", "kind": "apprise", "secret": url}]})
        assert answer.status_code == 400
        assert "own network" in answer.json()["message"]


@pytest.mark.parametrize("url", ["json://localhost:{port}/x", "json://localhost.:{port}/x"])
def test_apprise_does_not_connect_to_a_name_that_resolves_to_the_server(tmp_path: Path, url: str) -> None:
    with Postbox() as postbox, running_server(tmp_path) as server, server.api() as api:
        [channel] = put(api, {"name": "x", "kind": "apprise", "secret": url.format(port=postbox.port)})
        test = api.post(f"/channels/{channel['id']}/test").json()
        assert not test["ok"]
        assert "own network" in test["answer"]
        assert postbox.requests == []


def test_a_name_that_resolves_to_the_server_is_refused_at_delivery(tmp_path: Path) -> None:
    with Postbox() as postbox, running_server(tmp_path) as server, server.api() as api:
        [channel] = put(api, {"name": "x", "kind": "webhook", "secret": f"https://localhost:{postbox.port}/x"})
        test = api.post(f"/channels/{channel['id']}/test").json()
        assert not test["ok"]
        assert "own network" in test["answer"]
        assert postbox.requests == []


def test_notification_settings_are_kept(tmp_path: Path) -> None:
    quiet = {"start": "22:00", "end": "07:30", "timezone": "Europe/Berlin", "min_level": "critical"}
    with running_server(tmp_path) as server, server.api() as api:
        assert api.get("/notifications").json() == {
            "quiet_hours": None,
            "digest": {"window_seconds": 60.0, "threshold": 5},
            "cooldown_seconds": 600.0,
            "silences": [],
        }
        with server.connect("/ingest") as socket:
            Writer(socket).hello("run")
        until = time.time() + 60
        wanted = {
            "quiet_hours": quiet,
            "digest": {"window_seconds": 30, "threshold": 3},
            "cooldown_seconds": 0,
            "silences": [{"run_id": "run", "until": until, "reason": "known"}, {"kind": "lr-jump", "until": until}],
        }
        assert api.put("/notifications", json=wanted).status_code == 200
        kept = api.get("/notifications").json()
        assert kept["quiet_hours"] == quiet
        assert {(s["run_id"], s["kind"], s["reason"]) for s in kept["silences"]} == {
            ("run", None, "known"),
            (None, "lr-jump", ""),
        }
        assert api.put("/notifications", json=kept).json() == kept
        refused = api.put("/notifications", json={"silences": [{"run_id": "nobody", "until": until}]})
        assert (refused.status_code, refused.json()["error"]) == (400, "unknown_run")


def test_only_administrators_of_all_projects_see_channels(server: RunningServer) -> None:
    writer = make_token(server, "w" * 20, Scope.WRITE)
    narrow = make_token(server, "a" * 20, Scope.ADMIN, "gpt")
    for token in (writer, narrow):
        with server.api(token) as api:
            for answer in (
                api.get("/channels"),
                api.get("/channels/kinds"),
                api.put("/channels", json={"channels": []}),
                api.post("/channels/x/test"),
                api.delete("/channels/x"),
                api.get("/notifications"),
                api.put("/notifications", json={}),
            ):
                assert answer.status_code == 403
