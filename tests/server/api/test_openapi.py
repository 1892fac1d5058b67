"""The API against its own OpenAPI document: whatever is asked, the answer is one that the document allows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.core.result import Ok

from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, histogram, record

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("openapi")) as server:
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello("full")
            writer.commit(*(record(step, math.nan if step == 9 else 1.0, block=[[1, 2], [3, 4]]) for step in range(20)))
            writer.commit(record(20, histograms=(histogram("update", [[1] * 64, [3] * 64]),)))
        yield server


def test_answers_are_what_the_document_says(filled: RunningServer) -> None:
    document = schemathesis.openapi.from_url(f"{filled.url}/api/v1/openapi.json")
    operations = [result.ok() for result in document.get_all_operations() if isinstance(result, Ok)]
    assert len(operations) >= 10
    for operation in operations:

        @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case: Case[Any]) -> None:
            if "run_id" in case.path_parameters:
                case.path_parameters["run_id"] = "full"
            case.call_and_validate(headers=filled.headers, checks=CHECKS)

        ask()


def operations(server: RunningServer) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the method, the path and the description of every operation that needs a token."""
    document = httpx.get(f"{server.url}/api/v1/openapi.json").json()
    for path, found in document["paths"].items():
        for method, operation in found.items():
            if operation.get("security"):
                yield method.upper(), path, operation


def filled_in(path: str, run_id: str) -> str:
    for name in ("alert_id", "channel_id", "rule_id", "project"):
        path = path.replace(f"{{{name}}}", "none")
    return path.replace("{run_id}", run_id).replace("{token_id}", "999999")


def test_the_document_lists_the_refusals_that_are_sent_and_no_others(filled: RunningServer) -> None:
    """Asks without a token, with one that may not, about a run that is not there, and with invalid parameters."""
    with filled.api() as admin:
        reader = admin.post("/tokens", json={"scope": "read", "project": "mine"}).json()["token"]
    wrong = {"limit": "x", "keys": ",", "from": "x", "format": "x", "sensitivity": "x", "which": "x", "stat": ""}
    found = 0
    for method, path, operation in operations(filled):
        listed = {int(status) for status in operation["responses"]}
        assert 422 not in listed
        assert {500, 503} < listed
        assert (429 in listed, 413 in listed) == (path == "/api/v1/sessions", "requestBody" in operation)
        sent: dict[str, int] = {}
        address = filled.url + filled_in(path, "none")
        body: dict[str, Any] | None = {} if "requestBody" in operation else None
        sent["nobody"] = httpx.request(method, address, json=body).status_code
        for name, token in (("reader", reader), ("admin", filled.token)):
            headers = {"Authorization": f"Bearer {token}"}
            sent[name] = httpx.request(method, address, json=body, headers=headers).status_code
            other = httpx.request(method, address, json=body, headers=headers, params={"project": "other"})
            sent[f"{name}, another project"] = other.status_code
        sent["invalid"] = httpx.request(method, address, params=wrong, json=body, headers=filled.headers).status_code
        assert sent["nobody"] == 401
        assert set(sent.values()) <= listed, (method, path, sent)
        if "{run_id}" in path and "requestBody" not in operation:
            assert sent["admin"] in {400, 404}
        found += 1
    assert found > 30


def test_the_document_says_what_a_call_without_changes_answers(filled: RunningServer) -> None:
    with filled.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello("kept", "kept")
        writer.commit(record(0, 1.0, block=[[1, 2], [3, 4]]))
    with filled.api() as api:
        for path, query in (("series", {"keys": "loss"}), ("heatmap", {"stat": "grad_norm"})):
            address = f"/runs/kept/{path}"
            tag = api.get(address, params=query).headers["etag"]
            assert api.get(address, params=query, headers={"If-None-Match": tag}).status_code == 304
            document = api.get("/openapi.json").json()
            assert "304" in document["paths"][f"/api/v1/runs/{{run_id}}/{path}"]["get"]["responses"]
