"""Metrics, readiness and logs, on which operators rely."""

from __future__ import annotations

import io
import json
import logging
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from server import logs
from server.auth.tokens import new_session, new_token
from server.log_actions import LogAction
from server.metrics import Metrics
from server.readiness import Check, Health, Readiness
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, record

METRICS_TOKEN = "a token for prometheus"


def numbers(text: str) -> dict[str, float]:
    """Return the value of each sample, keyed by its name and labels."""
    return {
        sample.name + "".join(f"[{value}]" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_what_goes_through(server: RunningServer) -> None:
    with server.connect("/live"), server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello()
        writer.commit(
            *(record(step, float("nan") if step == 30 else 1.0, block=[[1, 2], [3, 4]]) for step in range(40))
        )
        with server.connect("/ingest") as rude:
            rude.send("text")
            rude.recv(timeout=20)
        found = numbers(httpx.get(f"{server.url}/metrics").text)
        while not found.get("spikewatch_alerts_total[nonfinite][open]"):
            found = numbers(httpx.get(f"{server.url}/metrics").text)
    assert found["spikewatch_ingest_connections"] == 1
    assert found["spikewatch_live_viewers"] == 1
    assert found["spikewatch_ingest_batches_total"] == 1
    assert found["spikewatch_ingest_values_total"] == 40 * 5
    assert found["spikewatch_ingest_commit_seconds_count"] == 1
    assert found["spikewatch_ingest_refusals_total[malformed]"] == 1
    assert found["spikewatch_followers"] == 1
    assert found["spikewatch_ingest_queued_frames"] == 0
    assert found["process_resident_memory_bytes"] > 1_000_000
    assert any(name.startswith("spikewatch_build_info") for name in found)


def test_every_metric_is_explained_in_the_documentation(server: RunningServer) -> None:
    document = (Path(__file__).parents[2] / "docs" / "reference" / "server-metrics.md").read_text()
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
    for family in families:
        if family.name.startswith("spikewatch_") and not family.name.endswith("_created"):
            assert family.documentation, family.name
            assert f"`{family.name}" in document, family.name


def test_every_action_of_the_log_is_explained_in_the_documentation() -> None:
    document = (Path(__file__).parents[2] / "docs" / "reference" / "server-metrics.md").read_text(encoding="utf-8")
    table = document.partition("| action | what happened |\n|---|---|\n")[2]
    listed = [f"| `{action}` | {action.description} |" for action in LogAction]
    assert table.splitlines() == listed, "server-metrics.md and server/log_actions.py must list the same actions"


def test_every_log_record_with_an_action_uses_a_defined_one() -> None:
    sources = (Path(__file__).parents[2] / "server").rglob("*.py")
    undefined = [str(path) for path in sources if re.search(r"\"action\": f?\"", path.read_text(encoding="utf-8"))]
    assert undefined == [], "use a member of LogAction instead of a string"


def test_two_servers_in_one_process_count_apart() -> None:
    one, other = Metrics("1"), Metrics("1")
    one.batches.inc(3)
    assert numbers(one.page().decode())["spikewatch_ingest_batches_total"] == 3
    assert numbers(other.page().decode())["spikewatch_ingest_batches_total"] == 0


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[RunningServer]:
    with running_server(tmp_path, metrics_token=METRICS_TOKEN, metrics_open_to_loopback=False) as running:
        yield running


def test_metrics_ask_for_a_token_that_may_see_all(guarded: RunningServer) -> None:
    with guarded.api() as api:
        made = [
            api.post("/tokens", json={"scope": "read", "project": project}).json()["token"] for project in (None, "p")
        ]

    def status(token: str | None) -> int:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.get(f"{guarded.url}/metrics", headers=headers).status_code

    assert [status(token) for token in (METRICS_TOKEN, guarded.token, *made)] == [200, 200, 200, 403]
    assert [status(token) for token in (None, "wrong", METRICS_TOKEN + "x")] == [401] * 3
    with guarded.api(METRICS_TOKEN) as api:
        assert api.get("/runs").status_code == 401, "the token gives access to nothing else"


def test_only_this_machine_reads_metrics_without_a_token(server: RunningServer) -> None:
    assert httpx.get(f"{server.url}/metrics").status_code == 200
    proxied = {"X-Forwarded-For": "203.0.113.9"}
    assert httpx.get(f"{server.url}/metrics", headers=proxied).status_code == 401


def test_readiness_names_what_is_down_and_health_only_lives(server: RunningServer) -> None:
    assert httpx.get(f"{server.url}/readyz").json() == {"status": "ok", "checks": {"database": "ok", "schema": "ok"}}
    path = server.database_url.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'future'")
    answer = httpx.get(f"{server.url}/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    assert answer.json()["checks"] == {
        "database": "ok",
        "schema": "the schema of the database is not that of this program",
    }
    assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}


async def test_an_optional_dependency_degrades_and_a_needed_one_decides(caplog: pytest.LogCaptureFixture) -> None:
    async def up() -> None: ...

    async def down() -> None:
        raise OSError("host db.internal refused")

    readiness = Readiness()
    readiness.add(Check(name="database", ask=up, fault="away"))
    readiness.add(Check(name="redis", ask=down, fault="the live view is degraded", is_required=False))
    assert await readiness.look() == (Health.DEGRADED, {"database": "ok", "redis": "the live view is degraded"})
    readiness.add(Check(name="disk", ask=down, fault="full"))
    health, checks = await readiness.look()
    assert (health, checks["disk"]) == (Health.UNAVAILABLE, "full")
    assert "db.internal" in caplog.text, "the log contains what the public answer omits"


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize("form", ["text", "json"])
def test_logs_hold_no_secret(form: str) -> None:
    stream = io.StringIO()
    logs.configure(form, "info", stream)  # type: ignore[arg-type]
    token, session = new_token(), new_session()
    logger = logging.getLogger("server.test")
    logger.info("a token %s and a login %s", token, session)
    logger.info("GET /runs?a=b&token=%s Authorization: Bearer %s", "hunter2hunter2", "opaque-secret")
    logger.warning(
        "no answer from postgresql://me:hunter2@db/x", extra={"action": "gone", "url": "redis://u:hunter2@r"}
    )
    logger.warning("posting", extra={"action": "x", "to": "https://hooks.slack.com/services/T0/B0/hunter2"})
    try:
        raise ValueError(token)
    except ValueError:
        logger.exception("failed", extra={"action": "failed"})
    written = stream.getvalue()
    for secret in (token, session, "hunter2", "opaque-secret"):
        assert secret not in written
    assert "postgresql://me:…@db/x" in written


@pytest.mark.usefixtures("restored_logging")
def test_a_client_cannot_fill_the_log_with_tracebacks() -> None:
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    try:
        b"\xff".decode()
    except UnicodeDecodeError:
        logging.getLogger("uvicorn.error").exception("Invalid UTF-8 sequence received from client.")
        logging.getLogger("uvicorn.error").exception("something else")
    fault, own = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (fault["level"], "Traceback" in str(fault)) == ("warning", False)
    assert (own["level"], "Traceback" in str(own)) == ("error", True)


@pytest.mark.usefixtures("restored_logging")
def test_json_logs_are_one_object_a_line_with_their_fields() -> None:
    uvicorn.Config(app="any:app")  # gives its loggers handlers of their own
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    logging.getLogger("uvicorn.error").info("from\nuvicorn")
    logging.getLogger("server.x").debug("not shown")
    logging.getLogger("server.x").warning(
        "gone %s", 3, extra={"action": "gone", "run_id": "r", "count": 4, "none": None}
    )
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["logger"], first["message"]) == ("uvicorn.error", "from\nuvicorn")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", second.pop("time"))
    assert second == {
        "level": "warning", "logger": "server.x", "message": "gone 3", "action": "gone", "run_id": "r", "count": 4,
        "none": None,
    }  # fmt: skip
