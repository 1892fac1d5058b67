"""The API against its own OpenAPI document: whatever is asked, the answer is one that the document allows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

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
