"""Exports as pandas and pyarrow read them."""

from __future__ import annotations

import io
import json
import math
import sqlite3
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from client_sdk.protocol import Layout
from server.exports.exporter import Exporter, Format
from server.models import RunState
from server.storage.database import Database
from server.storage.fleet import FleetQuery
from server.storage.layouts import LayoutStore
from server.storage.measurements.steps import Selection, StepReader
from server.storage.runs import RunStore
from tests.server.storage.conftest import Stores
from tests.server.storage.measurements.test_compaction import compactor, read_everything
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, record

GROWN = Layout(id=1, layers=("second", "third"), statistics=("grad_norm",))
WIDE = Layout(id=0, layers=tuple(f"layer{i}" for i in range(100)), statistics=("grad_norm", "v_rms"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two ranks; rank 0 rolls back from 9 to 5, logs NaN, leaves things out, and has a second layout."""
    with running_server(tmp_path_factory.mktemp("export")) as server:
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello("full", "one", name="a run", config={"lr": 0.1}, tags=("a",))
            writer.commit(*(record(step, step / 7, block=[[step, math.nan], [2, 3]]) for step in range(10)))
            writer.commit(record(5, math.nan, extra=math.inf), record(6, 0.25))
            writer.hello(
                "full",
                "one",
                name="a run",
                layouts=(
                    *(
                        [
                            Layout(
                                id=0,
                                layers=("first", "second"),
                                statistics=("grad_norm", "update_norm"),
                                sizes=(30, 40),
                            )
                        ]
                    ),
                    GROWN,
                ),
            )
            writer.commit(record(7, 0.5, layout=1, block=[[7], [8]]))
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello("full", "two", rank=1)
            writer.commit(record(0, 3.0, block=[[1, 2], [3, 4]], only_here=1.0))
        with server.connect("/ingest") as socket:
            Writer(socket).hello("empty", "three", layouts=())
        yield server


@pytest.fixture
def api(filled: RunningServer) -> Iterator[httpx.Client]:
    with filled.api() as client:
        yield client


def test_pandas_reads_the_parquet_export(api: httpx.Client) -> None:
    frame = pd.read_parquet(io.BytesIO(api.get("/runs/full/export").content))
    assert list(frame.columns[:5]) == ["run", "attempt", "rank", "step", "time"]
    assert list(frame["step"]) == [*range(10), 5, 6, 7, 0]
    assert list(frame["attempt"]) == [0] * 10 + [1] * 3 + [0]
    assert list(frame["rank"]) == [0] * 13 + [1]
    assert frame["loss"][3] == 3 / 7
    assert frame["extra"][10] == math.inf
    assert frame["only_here"][13] == 1.0
    assert set(frame["run"]) == {"full"}
    np.testing.assert_array_equal(frame["layer_grad_norm"][3], np.array([3, 2, math.nan], np.float32))
    np.testing.assert_array_equal(frame["layer_grad_norm"][12], np.array([math.nan, 7, 8], np.float32))
    assert frame["layer_grad_norm"][10] is None
    assert frame["layer_update_norm"][12] is None


def test_parquet_distinguishes_missing_scalars_from_nan(api: httpx.Client) -> None:
    table = pq.read_table(io.BytesIO(api.get("/runs/full/export").content))
    loss, extra = table["loss"], table["extra"]
    assert loss.null_count == 0
    assert math.isnan(loss[10].as_py())
    assert extra.null_count == len(extra) - 1


def test_parquet_describes_the_run_and_the_layers(api: httpx.Client) -> None:
    schema = pq.read_schema(io.BytesIO(api.get("/runs/full/export").content))
    about = json.loads(schema.metadata[b"spikewatch"])
    assert about["run"]["name"] == "a run"
    assert about["run"]["config"] == {"lr": 0.1}
    assert about["sizes"]["0"] == {"first": 30, "second": 40}
    field = schema.field("layer_grad_norm")
    assert json.loads(field.metadata[b"layers"]) == {"0": ["first", "second", "third"], "1": ["first", "second"]}
    assert json.loads(field.metadata[b"spikewatch"]) == {"kind": "statistic", "name": "grad_norm"}
    assert str(field.type.value_type) == "float"


def test_pandas_reads_the_csv_exports(api: httpx.Client) -> None:
    scalars = pd.read_csv(io.StringIO(api.get("/runs/full/export", params={"format": "csv"}).text))
    assert list(scalars.columns) == ["run", "attempt", "rank", "step", "time", "extra", "loss", "only_here"]
    assert scalars["loss"][3] == 3 / 7
    assert scalars["extra"][10] == math.inf
    long = pd.read_csv(io.StringIO(api.get("/runs/full/export", params={"format": "csv", "layers": True}).text))
    assert list(long.columns[5:7]) == ["layer", "grad_norm"]
    wide = long[(long["rank"] == 0) & (long["attempt"] == 0)].pivot(index="step", columns="layer", values="grad_norm")
    assert list(wide["first"]) == list(range(10))
    assert set(long["layer"]) == {"first", "second", "third"}


def test_columns_can_be_chosen(api: httpx.Client) -> None:
    chosen = api.get("/runs/full/export", params={"keys": "loss", "stats": ""})
    assert pq.read_schema(io.BytesIO(chosen.content)).names[5:] == ["loss"]
    chosen = api.get("/runs/full/export", params={"keys": "", "stats": "grad_norm"})
    table = pq.read_table(io.BytesIO(chosen.content))
    assert table.schema.names[5:] == ["layer_grad_norm"]
    assert table.num_rows == 14


def test_a_zip_contains_the_whole_run_and_allows_no_choice_of_columns(api: httpx.Client) -> None:
    answer = api.get("/runs/full/export", params={"format": "zip"})
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as held:
        assert held.testzip() is None
        assert pq.read_table(io.BytesIO(held.read("steps.parquet"))).num_rows == 14
        assert [json.loads(line)["kind"] for line in held.read("events.jsonl").splitlines()].count("rollback") == 1
    for given in ({"keys": "loss"}, {"stats": ""}):
        refused = api.get("/runs/full/export", params={"format": "zip", **given})
        assert (refused.status_code, refused.json()["error"]) == (400, "invalid_parameter")


def test_scalars_with_the_name_of_a_column_get_an_underscore(server: RunningServer) -> None:
    with server.connect("/ingest") as socket, server.api() as api:
        writer = Writer(socket)
        writer.hello("clash")
        writer.commit(record(3, block=[[1, 2], [3, 4]], layer_grad_norm=5.0, rank=6.0))
        table = pq.read_table(io.BytesIO(api.get("/runs/clash/export").content))
        assert table["rank_"].to_pylist() == [6.0]
        assert table["layer_grad_norm"].to_pylist() == [5.0]
        assert table["layer_grad_norm_"].to_pylist() == [[1.0, 3.0]]


def test_a_run_without_steps_is_an_empty_table(api: httpx.Client) -> None:
    answer = api.get("/runs/empty/export")
    table = pq.read_table(io.BytesIO(answer.content))
    assert (table.num_rows, table.schema.names) == (0, ["run", "attempt", "rank", "step", "time"])
    assert api.get("/runs/empty/export", params={"format": "csv"}).text == '"run","attempt","rank","step","time"\n'


@pytest.mark.parametrize("form", Format)
def test_an_export_that_fails_is_incomplete_and_logged_in_one_line(
    server: RunningServer, caplog: pytest.LogCaptureFixture, form: Format
) -> None:
    with server.connect("/ingest") as socket, server.api() as api:
        writer = Writer(socket)
        writer.hello("damaged")
        writer.commit(record(1), record(2))
        connection = sqlite3.connect(Path(server.database_url.removeprefix("sqlite:///")))
        with connection:
            assert connection.execute("UPDATE segments SET payload = x'00'").rowcount == 1
        connection.close()
        with pytest.raises(httpx.RemoteProtocolError):
            api.get("/runs/damaged/export", params={"format": form})
        assert api.get("/runs/damaged").status_code == 200
    broken = [item for item in caplog.records if getattr(item, "action", "") == "export_broke_off"]
    assert [item.exc_info for item in broken] == [None]
    assert "checksum" in broken[0].getMessage()


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/runs/none/export", 404, "unknown_run"),
        ("/runs/full/export?format=xml", 400, "invalid_parameter"),
        ("/runs/full/export?keys=nothing", 404, "unknown_scalar"),
        ("/runs/full/export?stats=nothing", 404, "unknown_statistic"),
        ("/runs/full/export?layers=perhaps", 400, "invalid_parameter"),
    ],
)
def test_an_export_with_wrong_parameters_is_refused(api: httpx.Client, path: str, status: int, code: str) -> None:
    answer = api.get(path)
    assert (answer.status_code, answer.json()["error"]) == (status, code)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_the_memory_of_an_export_does_not_grow_with_the_run(database: Database) -> None:
    """20,000 steps of 100 layers × 2 statistics are 16 MB; the export is to hold a row group or two."""
    stores = Stores.over(database)
    noise = np.random.default_rng(0)
    writer = await stores.register("long", layouts=(WIDE,))
    block = noise.standard_normal((100, 2)).tolist()
    for start in range(0, 20_000, 500):
        records = [record(start + at, block=block, noise=float(noise.standard_normal())) for at in range(500)]
        await stores.commit(writer, start, records)
    layouts = LayoutStore(database)
    exporter = Exporter(StepReader(database, layouts))
    run = await FleetQuery(database, RunStore(database), layouts).summary("long")
    assert run is not None
    steps = await exporter.begin("long")
    assert steps.records == 20_000
    peaks = {}
    for form, layers in ((Format.PARQUET, False), (Format.CSV, True), (Format.MSGPACK, False)):
        size = largest = 0
        tracemalloc.start()
        async for piece in exporter.stream(run, steps, form, layers=layers, selection=Selection()):
            size += len(piece)
            largest = max(largest, len(piece))
        peaks[form] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert largest < 16 * 2**20
    assert max(peaks.values()) < 40 * 2**20, peaks


async def test_an_export_contains_the_steps_that_were_stored_when_it_began(database: Database) -> None:
    stores = Stores.over(database)
    writer = await stores.register("run")
    await stores.commit(writer, 0, [record(step) for step in range(5)])
    reader = StepReader(database, LayoutStore(database))
    steps = await reader.begin("run")
    seen: list[int] = []
    async for chunk in reader.walk(steps):
        seen += chunk.columns.steps.tolist()
        await stores.commit(writer, 5, [record(9)])
    assert seen == [0, 1, 2, 3, 4]


async def test_a_compaction_changes_nothing_in_an_export(database: Database) -> None:
    stores = Stores.over(database)
    writer = await stores.register("run")
    for at in range(40):
        step = at if at < 30 else at - 10
        await stores.commit(writer, at, [record(step, step / 7, block=[[step, math.nan], [2, 3]])])
    await stores.runs.finish_writer("run", writer.writer_id, RunState.FINISHED, 1_000.0)
    layouts = LayoutStore(database)
    exporter = Exporter(StepReader(database, layouts))
    run = await FleetQuery(database, RunStore(database), layouts).summary("run")
    assert run is not None

    async def table() -> pa.Table:
        pieces = [piece async for piece in exporter.stream(run, await exporter.begin("run"), Format.PARQUET)]
        return pq.read_table(io.BytesIO(b"".join(pieces)))

    before = await table()
    await read_everything(database)
    assert await compactor(database, 8).run_once() > 0
    assert before.num_rows == 40
    assert (await table()).to_pandas().to_json() == before.to_pandas().to_json()
