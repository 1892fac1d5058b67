"""Refusals name the field at fault, so that no program has to read it out of a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.server import running_server
from tests.support.writer import Writer, record


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        running_server(tmp_path_factory.mktemp("errors")) as server,
        server.connect("/ingest") as socket,
        server.api() as client,
    ):
        writer = Writer(socket)
        writer.hello("run")
        writer.commit(record(0, 1.0, block=[[1, 2], [3, 4]]))
        yield client


RULE: dict[str, Any] = {"id": "high", "name": "High", "scalar": "loss", "condition": "above", "value": 2.0}
SILENCE: dict[str, Any] = {"until": 1.0, "run_id": "nobody"}


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("GET", "/runs?limit=0", None, "limit"),
        ("GET", "/runs?cursor=x", None, "cursor"),
        ("GET", "/runs?state=asleep", None, "state"),
        ("GET", "/runs/run/series", None, "keys"),
        ("GET", "/runs/run/series?keys=,", None, "keys"),
        ("GET", "/runs/run/series?keys=unheard", None, "keys"),
        ("GET", "/runs/run/series?keys=loss&from=9&to=3", None, "from"),
        ("GET", "/runs/run/heatmap?stat=unheard", None, "stat"),
        ("GET", "/runs/run/histogram?layer=unheard", None, "layer"),
        ("GET", "/runs/run/export?format=zip&keys=loss", None, "keys"),
        ("GET", "/runs/run/export?format=zip&stats=grad_norm", None, "stats"),
        ("GET", "/runs/run/export?keys=unheard", None, "keys"),
        ("GET", "/runs/run/export?stats=unheard", None, "stats"),
        ("GET", "/alerts?level=deafening", None, "level"),
        ("PUT", "/rules/high", {**RULE, "value": "much"}, "value"),
        ("PUT", "/rules/high", {**RULE, "scalar": None}, "scalar"),
        ("PUT", "/rules/low", RULE, "id"),
        ("PUT", "/rules", {"rules": [RULE, {**RULE, "id": "b", "for_steps": 0}]}, "rules.1.for_steps"),
        ("PUT", "/rules", {"rules": [RULE, RULE]}, "rules.1.id"),
        ("POST", "/rules/test", {"rule": {**RULE, "name": " "}, "run": "run"}, "rule.name"),
        ("POST", "/rules/test", {"rule": RULE}, "run"),
        ("PUT", "/notifications", {"digest": {"threshold": 0}}, "digest.threshold"),
        ("PUT", "/notifications", {"silences": [SILENCE]}, "silences.0.run_id"),
        ("POST", "/tokens", {"scope": "everything"}, "scope"),
        ("POST", "/tokens", {"scope": "read", "project": "a\0b"}, "project"),
        ("POST", "/tokens", {"scope": "read", "label": "a\0b"}, "label"),
        ("POST", "/sessions", {}, "secret"),
    ],
)
def test_a_refusal_names_the_field_at_fault(
    api: httpx.Client, method: str, path: str, body: dict[str, Any] | None, field: str
) -> None:
    answer = api.request(method, path, json=body)
    assert answer.is_client_error
    assert answer.json()["field"] == field


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("GET", "/runs/nobody", None),
        ("GET", "/nowhere", None),
        ("POST", "/sessions", b"{no json"),
        ("DELETE", "/sessions/current", None),
    ],
)
def test_a_refusal_about_no_field_has_none(api: httpx.Client, method: str, path: str, content: bytes | None) -> None:
    answer = api.request(method, path, content=content, headers={"Content-Type": "application/json"})
    assert answer.is_client_error
    assert set(answer.json()) == {"error", "message"}
