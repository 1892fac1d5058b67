"""Several servers on one Postgres and one Redis behave like a single one, whichever of them a client uses."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import client_sdk
from client_sdk.protocol import Ack, AlertNotice, Error
from tests.server.pipeline.test_pipeline import STEPS, facts, send, training, until_settled
from tests.server.test_live import receive
from tests.support.postgres import Postgres
from tests.support.redis import Redis
from tests.support.replicas import Replica, replica
from tests.support.server import RunningServer, running_server
from tests.support.tcp_proxy import TcpProxy
from tests.support.writer import Writer, record


@pytest.fixture
def pair(tmp_path: Path, postgres: Postgres, redis: Redis) -> Iterator[tuple[RunningServer, RunningServer]]:
    """Two servers in this process that share a database and a Redis."""
    url = postgres.create_database(is_current=True)
    with contextlib.ExitStack() as stack:
        one, two = (
            stack.enter_context(
                running_server(tmp_path, database_url=url, redis_url=redis.url, lease_seconds=0.6, heartbeat_every=0.2)
            )
            for _ in range(2)
        )
        yield one, two


@pytest.fixture
def places(tmp_path: Path, postgres: Postgres, own_redis: Redis) -> dict[str, str]:
    """Settings of servers that share a new database and a Redis that may be killed."""
    url = postgres.create_database(is_current=True)
    return {"database_url": url, "redis_url": own_redis.url}


def losses(api_of: RunningServer | Replica, run_id: str) -> list[float | None]:
    with api_of.api() as api:
        answer = api.get(f"/runs/{run_id}/series", params={"keys": "loss", "points": 10_000}).json()
    assert answer["bucket_steps"] == 1
    found: list[float | None] = answer["series"]["loss"]["last"]
    return found


def test_viewers_and_trainings_receive_what_happens_on_other_servers(pair: tuple[RunningServer, RunningServer]) -> None:
    one, two = pair
    run_id = uuid.uuid4().hex
    with two.connect(f"/live?runs={run_id}") as live, one.connect("/ingest") as here, two.connect("/ingest") as there:
        receive(live, "subscribed")
        leader, other = Writer(here), Writer(there)
        leader.hello(run_id, "rank0")
        other.hello(run_id, "rank1", rank=1)
        other.commit(record(0))
        leader.send(*(record(step, float("nan") if step == 30 else 1.0) for step in range(40)))
        advance = receive(live, "advance")
        while not other.alerts:
            message = other.receive()
            if isinstance(message, AlertNotice):
                other.alerts.append(message)
        assert (other.alerts[0].alert.kind, other.alerts[0].alert.run_id) == ("nonfinite", run_id)
        receive(live, "alert")
    # The viewer continues at the other server and receives what followed the last message that it has seen.
    with one.connect(f"/live?runs={run_id}&cursor={advance['cursor']}") as live:
        subscribed = receive(live)
        assert (subscribed["resumed"], subscribed["cursor"]) == (True, advance["cursor"])
        assert receive(live, "alert")["alert"]["kind"] == "nonfinite"


def test_detectors_follow_a_run_to_its_server(tmp_path: Path, pair: tuple[RunningServer, RunningServer]) -> None:
    records = training()
    with running_server(tmp_path / "alone") as alone, alone.connect("/live") as live:
        send(alone, records, 20, finish=True)
        expected = facts(*until_settled(alone, live))
    with pair[0].connect("/live") as live:
        for part, server in enumerate((pair[0], pair[1], pair[0], pair[1]), 1):
            send(server, records[: STEPS * part // 4], 20, finish=part == 4)
        assert facts(*until_settled(pair[0], live)) == expected


def test_a_run_that_one_server_deletes_is_gone_at_the_other(pair: tuple[RunningServer, RunningServer]) -> None:
    one, two = pair
    run_id = uuid.uuid4().hex
    with two.connect("/ingest") as socket, one.api() as api, two.api() as other:
        writer = Writer(socket)
        writer.hello(run_id)
        writer.commit(*(record(step) for step in range(10)))
        assert api.delete(f"/runs/{run_id}").status_code < 300
        writer.send(record(10))
        error = writer.expect(Error)
        assert (error.code, error.retryable) == ("run_deleted", False)
        while other.get(f"/runs/{run_id}").status_code == 410:
            pass
        assert other.get(f"/runs/{run_id}").status_code == 404
        assert other.get("/alerts").json() == []


def test_a_server_that_hangs_in_a_batch_adds_nothing_when_it_resumes(tmp_path: Path, places: dict[str, str]) -> None:
    run_id = uuid.uuid4().hex
    with replica(tmp_path, "one", **places) as one, replica(tmp_path, "two", **places) as two:
        with one.connect("/ingest") as hung, two.connect("/ingest") as socket:
            before = Writer(hung)
            before.hello(run_id)
            before.commit(*(record(step, 1.0) for step in range(10)))
            for _ in range(5):
                before.send(record(before.seq, 1.0))
            one.pause()
            for step in range(before.seq, 60):
                before.send(record(step, 1.0))
            after = Writer(socket)
            after.hello(run_id)  # waits for a transaction that hangs with the server, if there is one
            reached = after.seq
            assert 10 <= reached <= 15
            after.commit(*(record(step, 2.0) for step in range(reached, 30)))
            one.go_on()
            while not isinstance(answer := before.receive(), Error):
                if isinstance(answer, Ack):  # otherwise an alert: its detectors may continue for a moment
                    assert answer.seq <= reached
            assert answer.code in {"writer_taken", "storage_unavailable"}
            after.commit(*(record(step, 2.0) for step in range(30, 60)))
        assert losses(two, run_id) == [1.0] * reached + [2.0] * (60 - reached)


def test_a_training_moves_at_once_when_its_server_ends_and_needs_no_redis(
    tmp_path: Path, places: dict[str, str], own_redis: Redis
) -> None:
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(replica(tmp_path, "one", **places))
        two = stack.enter_context(replica(tmp_path, "two", **places))
        balancer = stack.enter_context(TcpProxy([one.port]))
        run = client_sdk.init(
            project="moves", url=balancer.url, token="sw_" + "test" * 10, directory=tmp_path / "spool"
        )
        try:
            for step in range(50):
                client_sdk.log({"loss": float(step)}, step=step)
            assert client_sdk.flush(30)
            own_redis.kill()
            for step in range(50, 100):
                client_sdk.log({"loss": float(step)}, step=step)
            assert client_sdk.flush(30), "without Redis data is stored and acknowledged"
            balancer.ports = [two.port, one.port]
            one.process.terminate()
            for step in range(100, 200):
                client_sdk.log({"loss": float(step)}, step=step)
            assert client_sdk.flush(30)
            assert one.process.wait(20) == 0
        finally:
            client_sdk.finish(30)
        assert losses(two, run.id) == [float(step) for step in range(200)]
        assert client_sdk.status().dropped == 0
