"""Late records through real servers: two ranks, alerts, and the way out of one database into another."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from client_sdk.protocol import Record
from tests.server.imports.conftest import workshop_at
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, record

LAYERS = [[1.0, 2.0], [3.0, 4.0]]


@pytest.fixture
def server(tmp_path: Path, database_url: str) -> Iterator[RunningServer]:
    """A running server on each kind of database in turn."""
    with running_server(tmp_path / "server", database_url=database_url) as started:
        yield started


def training(first: int, last: int, loss: float = 1.0) -> list[Record]:
    return [record(step, loss, block=LAYERS) for step in range(first, last)]


def validation(step: int, **scalars: float) -> Record:
    return Record(step=step, time=2_000_000.0 + step, scalars=scalars)


def log_two_ranks(server: RunningServer) -> None:
    """Log a run whose ranks validate late, in another order, and whose first rank goes back once."""
    with server.connect("/ingest") as one, server.connect("/ingest") as two:
        first, second = Writer(one), Writer(two)
        first.hello(writer="first", rank=0)
        second.hello(writer="second", rank=1)
        first.commit(*training(0, 40))
        second.commit(*(record(step, 2.0) for step in range(40)))
        first.commit(validation(20, val_loss=0.2), validation(10, val_loss=0.1), *training(40, 60))
        second.commit(validation(0, accuracy=0.0), *(record(step, 2.0) for step in range(40, 60)))
        second.commit(validation(1, accuracy=0.1))
        first.commit(validation(30, val_loss=0.3))
        first.commit(*training(50, 80, loss=0.9))
        first.commit(validation(55, val_loss=0.55), *training(80, 90, loss=0.9))
        first.finish()
        second.finish()


def wait_for_end(server: RunningServer, run_id: str = "run") -> Any:
    with server.connect(f"/live?run={run_id}") as live, server.api() as api:
        while (run := api.get(f"/runs/{run_id}").json())["state"] == "running" or run["stage"] is None:
            live.recv(timeout=20)
        return run


def series(server: RunningServer, key: str, run_id: str = "run") -> dict[int, float]:
    with server.api() as api:
        found = api.get(f"/runs/{run_id}/series", params={"keys": key}).json()["series"][key]
    return dict(zip(found["step"], found["last"], strict=True))


def steps_of(data: bytes) -> pd.DataFrame:
    """Return the rows of a Parquet export without the id of the run."""
    return pq.read_table(io.BytesIO(data)).drop_columns(["run"]).to_pandas()


def test_late_records_of_two_ranks_are_merged_into_their_steps(server: RunningServer) -> None:
    log_two_ranks(server)
    run = wait_for_end(server)
    shown = [(item["rank"], item["attempt"], item["first_step"], item["last_step"]) for item in run["attempts"]]
    assert shown == [(0, 0, 0, 59), (0, 1, 50, 89), (1, 0, 0, 59)]
    assert series(server, "val_loss") == {10: 0.1, 20: 0.2, 30: 0.3, 55: 0.55}
    assert series(server, "accuracy") == {0: 0.0, 1: 0.1}
    assert series(server, "loss") == {step: 1.0 if step < 50 else 0.9 for step in range(90)}


async def test_late_records_go_out_and_come_back_the_same(server: RunningServer, tmp_path: Path) -> None:
    log_two_ranks(server)
    before = wait_for_end(server)
    with server.api() as api:
        assert api.put("/runs/run/loss", json={"scalar": "val_loss"}).status_code == 200
        archive = api.get("/runs/run/export", params={"format": "zip"}).content
        rows = steps_of(api.get("/runs/run/export", params={"format": "parquet"}).content)
        events = api.get("/runs/run/events").json()
    file = tmp_path / "run.zip"
    file.write_bytes(archive)
    (tmp_path / "database").mkdir()
    async with workshop_at(tmp_path / "database") as workshop:
        (imported,) = await workshop.import_all(file)
        run = await workshop.details(imported.run_id)
        assert run["loss_choice"] == {"scalar": "val_loss", "by": "code"}
        again = (await workshop.table(imported.run_id, tmp_path)).to_pandas()
        names = ("rank", "attempt", "first_step", "last_step")
        assert [[item[name] for name in names] for item in run["attempts"]] == [
            [item[name] for name in names] for item in before["attempts"]
        ]
    pd.testing.assert_frame_equal(again, rows)
    assert [event["step"] for event in events if event["kind"] == "rollback"] == [50]


def test_an_alert_outlives_late_records_and_never_steps_back(server: RunningServer) -> None:
    with server.connect("/live?run=run") as live, server.connect("/ingest") as socket, server.api() as api:
        writer = Writer(socket)
        writer.hello()
        writer.commit(*(record(step, math.nan if step >= 40 else 1.0) for step in range(45)))
        while not (found := api.get("/alerts", params={"run": "run"}).json()):
            live.recv(timeout=20)
        (opened,) = found
        for step in range(30):
            writer.commit(validation(step, val_loss=1.0))
        writer.commit(*(record(step) for step in range(45, 60)))
        while api.get("/runs/run").json()["loss"] is None:
            live.recv(timeout=20)
        (held,) = api.get("/alerts", params={"run": "run"}).json()
        assert (held["id"], held["state"]) == (opened["id"], "open"), "late records are no records without the finding"
        assert held["updated_step"] >= opened["updated_step"]
        writer.commit(validation(3, val_loss=2.0), *(record(step) for step in range(60, 100)))
        while (over := api.get("/alerts", params={"run": "run"}).json()[0])["state"] == "open":
            live.recv(timeout=20)
        writer.finish()
    assert (over["id"], over["state"]) == (opened["id"], "resolved")
    assert over["updated_step"] > held["updated_step"]
    assert wait_for_end(server)["ended_with"] is None
