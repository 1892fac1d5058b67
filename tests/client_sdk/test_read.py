"""Reading runs back in Python, from a real server."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from client_sdk.errors import ConfigurationError, TransportError
from client_sdk.protocol import AlertNotice, Layout
from client_sdk.read import Server
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, histogram, record

OTHER = Layout(id=0, layers=("only",), statistics=("grad_norm",))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("read")) as server:
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello("full", "one")
            for start in range(0, 3_000, 1_000):
                writer.commit(*(record(start + at, float(start + at), block=[[at, 1], [2, 3]]) for at in range(1_000)))
            writer.commit(record(2_000, math.nan, extra=1.0), record(2_001, 0.5, block=[[math.nan] * 2] * 2))
            if not writer.alerts:
                writer.expect(AlertNotice)
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello("full", "two", rank=1, layouts=(OTHER,))
            writer.commit(record(4, 9.0, block=[[7]], only_here=1.0))
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello("other", "three", project="other")
            writer.commit(record(3, histograms=(histogram("update", [[2] * 64] * 2),)))
        yield server


@pytest.fixture
def reader(running: RunningServer) -> Server:
    return Server(running.url, running.token)


def test_a_series_has_every_step_that_no_later_attempt_replaced(reader: Server) -> None:
    step, loss, time = reader.run("full").series("loss")
    np.testing.assert_array_equal(step, np.arange(2_002))
    np.testing.assert_array_equal(loss, [*range(2_000), math.nan, 0.5])
    assert time[3] == 1_000_003.0
    first = reader.run("full").series("loss", attempt=0)
    np.testing.assert_array_equal(first.value, np.arange(3_000))
    assert reader.run("full").series("extra").step.tolist() == [2_000]
    assert reader.run("full").series("only_here").step.tolist() == [4]
    assert len(reader.run("full").series("lambda_max").step) == 0


def test_the_loss_is_read_under_the_name_that_was_chosen(running: RunningServer, reader: Server) -> None:
    assert len(reader.run("full").loss().step) == len(reader.run("full").series("loss").step)
    with running.api() as api:
        assert api.put("/runs/full/loss", json={"scalar": "extra"}).status_code == 200
    chosen = reader.run("full")
    assert (chosen.summary.loss_name, chosen.info["loss_choice"]) == ("extra", {"scalar": "extra", "by": "run"})
    assert chosen.loss().value.tolist() == [1.0]
    with running.api() as api:
        assert api.put("/runs/full/loss", json={"scalar": None}).status_code == 200
    assert reader.run("full").summary.loss_name == "loss"


def test_layers_are_steps_by_layers(reader: Server) -> None:
    layers = reader.run("full").layers("grad_norm")
    assert layers.layers == ("first", "second")
    assert layers.values.shape == (2_000, 2)
    assert layers.values.dtype == np.float32
    assert layers.values[1_234].tolist() == [234, 2]
    assert layers.step.tolist() == list(range(2_000))
    other = reader.run("full").layers("grad_norm", rank=1)
    assert (other.layers, other.values.tolist()) == (("only",), [[7.0]])


def test_an_attempt_that_does_not_exist_is_an_error(reader: Server) -> None:
    run = reader.run("full")
    for read in (lambda: run.series("loss", attempt=7), lambda: run.layers("grad_norm", attempt=7)):
        with pytest.raises(TransportError, match=r"has no attempt 7; it has 0, 1") as raised:
            read()
        assert (raised.value.code, raised.value.retryable) == ("unknown_attempt", False)
    with pytest.raises(TransportError, match="has no attempt 3"):
        reader.run("other").to_pandas(attempt=3)


def test_a_data_frame_has_a_row_for_each_call_of_log(reader: Server) -> None:
    frame = reader.run("full").to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert len(frame) == 2_003
    assert frame[frame["rank"] == 1]["only_here"].tolist() == [1.0]
    assert list(reader.run("full").to_pandas(["extra"]).columns) == ["rank", "attempt", "step", "time", "extra"]
    assert len(reader.run("other").to_pandas()) == 1
    assert len(reader.run("other").to_pandas(attempt=0)) == 1


def test_histograms_events_and_alerts_are_read_back(reader: Server) -> None:
    run = reader.run("other")
    found = run.histogram("first", step=1)
    assert found is not None
    assert (found.step, found.edges.shape, found.counts.tolist()) == (3, (65,), [2] * 64)
    assert found.dip is None
    assert run.histogram("first", "ratio") is None
    assert [event["kind"] for event in reader.run("full").events()].count("rollback") == 1
    assert "nonfinite" in {alert["kind"] for alert in reader.run("full").alerts()}
    assert run.alerts() == []
    with pytest.raises(TransportError, match="no layer 'none'"):
        run.histogram("none")


def test_runs_are_listed_and_found(reader: Server) -> None:
    assert {run.id for run in reader.runs()} == {"full", "other"}
    assert [run.id for run in reader.runs(project="other")] == ["other"]
    assert reader.runs(state="crashed") == []
    assert "full" in repr(reader.run("full"))


def test_a_run_is_saved_whole_or_not_at_all(reader: Server, tmp_path: Path) -> None:
    saved = reader.run("full").save(tmp_path / "run.parquet")
    assert pq.read_table(saved).num_rows == 3_003
    assert len(pd.read_csv(reader.run("full").save(tmp_path / "run.csv"))) == 3_003
    with zipfile.ZipFile(reader.run("full").save(tmp_path / "run.zip")) as everything:
        assert "histograms.parquet" in everything.namelist()
    with pytest.raises(ConfigurationError, match=r"\.parquet or \.csv"):
        reader.run("full").save(tmp_path / "run.xlsx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.csv", "run.parquet", "run.zip"]


def test_what_is_wrong_has_the_code_of_the_server(reader: Server, running: RunningServer) -> None:
    for ask, code in (
        (lambda: reader.run("none"), "unknown_run"),
        (lambda: reader.run("full").series("nothing"), "unknown_scalar"),
        (lambda: reader.run("full").layers("nothing"), "unknown_statistic"),
        (lambda: Server(running.url, "wrong").runs(), "unauthenticated"),
        (lambda: Server("http://127.0.0.1:9", "none").runs(), "unreachable"),
    ):
        with pytest.raises(TransportError) as raised:
            ask()
        assert raised.value.code == code
    with pytest.raises(ConfigurationError):
        Server("file:///etc")
