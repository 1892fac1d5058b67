"""A run exported into one archive, and imported again."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sqlalchemy import delete, select, update

from client_sdk.protocol import Histograms, Layout
from server.errors import HistogramCorruptError, ImportFileError, RunDeletedError
from server.exports.archive import Archiver
from server.exports.exporter import Exporter
from server.schema import histograms
from server.storage.alerts import AlertStore
from server.storage.database import Database
from server.storage.deletion import DeletionStore
from server.storage.events import EventStore
from server.storage.fleet import FleetQuery
from server.storage.layouts import LayoutStore
from server.storage.measurements.histogram_history import HistogramHistory
from server.storage.measurements.steps import StepReader
from server.storage.runs import RunStore
from tests.server.imports.conftest import Workshop
from tests.server.storage.conftest import Stores
from tests.support.writer import LAYOUT, histogram, record

GROWN = Layout(id=1, layers=("second", "third"), statistics=("grad_norm",))
NAMES = ["run.json", "steps.parquet", "histograms.parquet", "events.jsonl", "alerts.jsonl"]


async def archive(database: Database, run_id: str = "run") -> bytes:
    layouts = LayoutStore(database)
    exporter = Exporter(StepReader(database, layouts))
    made = Archiver(exporter, HistogramHistory(database), EventStore(database), AlertStore(database))
    run = await FleetQuery(database, RunStore(database), layouts).summary(run_id)
    assert run is not None
    return b"".join([piece async for piece in made.stream(run, await exporter.begin(run_id))])


def shapes(*seeds: int, which: str = "update") -> Histograms:
    rows = [np.random.default_rng(seed).integers(0, 50, 64).tolist() for seed in seeds]
    return histogram(which, rows, low=-float(seeds[0] + 1), high=2.0)


async def fill(stores: Stores) -> None:
    """Store two ranks; rank 0 repeats a step, rolls back, spikes, and has two layouts and a layer without histogram."""
    writer = await stores.register("run", layouts=(LAYOUT, GROWN))
    half = without_first_layer(shapes(1, 2))
    await stores.commit(
        writer,
        0,
        [
            record(0, block=[[1, 2], [3, 4]], histograms=(shapes(3, 4), shapes(5, 6, which="ratio"))),
            record(5, 0.1),
            record(5, 0.2, block=[[1, 2], [3, 4]], histograms=(half,)),
            record(6, 0.3),
            *(record(step, 0.5, block=[[1, 2], [3, 4]]) for step in range(7, 60)),
            record(60, float("nan")),
            record(6, 0.4, layout=1, block=[[7], [8]], histograms=(shapes(7, 8, which="ratio"),)),
            record(7, 0.4, layout=0, histograms=(shapes(9, 10),)),
        ],
    )
    other = await stores.register("run", writer="other", rank=1)
    await stores.commit(other, 0, [record(6, block=[[1, 2], [3, 4]], histograms=(shapes(11, 12),))])


def without_first_layer(given: Histograms) -> Histograms:
    low = np.frombuffer(given.low, "<f4").copy()
    low[0] = np.nan
    return Histograms(which=given.which, low=low.tobytes(), high=given.high, counts=given.counts)


def table(data: bytes, name: str) -> pd.DataFrame:
    with zipfile.ZipFile(io.BytesIO(data)) as held:
        return pq.read_table(io.BytesIO(held.read(name))).drop_columns(["run"]).to_pandas()


async def test_an_archive_contains_the_whole_run(database: Database) -> None:
    await fill(Stores.over(database))
    data = await archive(database)
    with zipfile.ZipFile(io.BytesIO(data)) as held:
        assert held.testzip() is None
        assert held.namelist() == NAMES
        assert json.loads(held.read("run.json"))["run"]["id"] == "run"
        events = [json.loads(line) for line in held.read("events.jsonl").splitlines()]
    assert [(event["kind"], event["step"], event["rank"]) for event in events] == [("rollback", 6, 0)]
    assert len(table(data, "steps.parquet")) == 61
    found = table(data, "histograms.parquet")
    assert [tuple(row) for row in found[["rank", "attempt", "step", "which", "layer"]].itertuples(index=False)] == [
        (0, 0, 0, "update", "first"),
        (0, 0, 0, "update", "second"),
        (0, 0, 0, "ratio", "first"),
        (0, 0, 0, "ratio", "second"),
        (0, 0, 5, "update", "second"),
        (0, 1, 6, "ratio", "second"),
        (0, 1, 6, "ratio", "third"),
        (0, 1, 7, "update", "first"),
        (0, 1, 7, "update", "second"),
        (1, 0, 6, "update", "first"),
        (1, 0, 6, "update", "second"),
    ]
    assert found["low"][0] == -4.0
    assert found["counts"][0].tolist() == np.random.default_rng(3).integers(0, 50, 64).tolist()
    assert found["dip"].isna().tolist() == [True, True, False, False, True, False, False, *[True] * 4]
    assert await archive(database) == data, "the same run must produce the same file"


@pytest.mark.parametrize("unpacked", [False, True], ids=["the file", "unpacked"])
async def test_an_archive_comes_back_the_same(workshop: Workshop, tmp_path: Path, unpacked: bool) -> None:
    await fill(Stores.over(workshop.database))
    data = await archive(workshop.database)
    file = tmp_path / "in" / "run.zip"
    file.parent.mkdir()
    file.write_bytes(data)
    if unpacked:
        with zipfile.ZipFile(file) as held:
            held.extractall(file.parent)
        file.unlink()
    (done,) = await workshop.import_all(file.parent)
    again = await archive(workshop.database, done.run_id)
    for name in ("steps.parquet", "histograms.parquet"):
        pd.testing.assert_frame_equal(table(again, name), table(data, name))
    with zipfile.ZipFile(io.BytesIO(again)) as held:
        events = [json.loads(line) for line in held.read("events.jsonl").splitlines()]
        alerts = [json.loads(line) for line in held.read("alerts.jsonl").splitlines()]
    assert ("rollback", 6) in [(event["kind"], event["step"]) for event in events]
    assert [alert["kind"] for alert in alerts] == ["nonfinite"]
    (once_more,) = await workshop.import_all(file.parent)
    assert (once_more.run_id, once_more.new_records) == (done.run_id, 0)


async def test_an_archive_that_was_changed_is_rejected_by_name(workshop: Workshop, tmp_path: Path) -> None:
    await fill(Stores.over(workshop.database))
    data = await archive(workshop.database)
    with zipfile.ZipFile(io.BytesIO(data)) as held:
        parts = {name: held.read(name) for name in NAMES}

    def packed(name: str, kept: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> Path:
        with zipfile.ZipFile(tmp_path / name, "w", how) as made:
            for member, content in kept.items():
                made.writestr(member, content)
        return tmp_path / name

    (tmp_path / "cut.zip").write_bytes(data[:-30])
    other = {**parts, "histograms.parquet": _moved(parts["histograms.parquet"])}
    for file, reason in (
        (tmp_path / "cut.zip", "cannot be read as ZIP"),
        (packed("again.zip", parts, zipfile.ZIP_DEFLATED), "unpack it, and import the folder"),
        (packed("none.zip", {"a.txt": b""}), "there is no steps.parquet in it"),
        (packed("broken.zip", {**parts, "steps.parquet": b"no"}), "cannot be read as Parquet"),
        (packed("mixed.zip", other), "histograms of rank 0, attempt 0, step 1 belong to no record"),
    ):
        with pytest.raises(ImportFileError, match=reason):
            await workshop.import_all(file)
    alone = tmp_path / "histograms.parquet"
    alone.write_bytes(parts["histograms.parquet"])
    with pytest.raises(ImportFileError, match=r"import the steps\.parquet next to them"):
        await workshop.import_all(alone)


def _moved(content: bytes) -> bytes:
    held = pq.read_table(io.BytesIO(content))
    at = held.schema.get_field_index("step")
    steps = [step + 1 for step in held["step"].to_pylist()]
    out = io.BytesIO()
    pq.write_table(held.set_column(at, held.schema.field(at), [steps]), out)
    return out.getvalue()


async def test_an_archive_is_a_snapshot_and_stops_if_the_run_is_deleted(database: Database) -> None:
    stores = Stores.over(database)
    writer = await stores.register("run")
    some = [record(step, block=[[1, 2], [3, 4]], histograms=(shapes(step, 1),)) for step in range(20)]
    await stores.commit(writer, 0, some[:10])
    steps = await StepReader(database, LayoutStore(database)).begin("run")
    await stores.commit(writer, 10, some[10:])
    found = [piece.step async for piece in HistogramHistory(database).walk(steps)]
    assert found == list(range(10))

    async def read_while_it_goes() -> None:
        async for _ in HistogramHistory(database).walk(steps):
            await DeletionStore(database).mark("run")
            async with database.write() as connection:
                await connection.execute(delete(histograms))

    with pytest.raises(RunDeletedError):
        await read_while_it_goes()


async def test_damaged_histograms_are_named(database: Database) -> None:
    stores = Stores.over(database)
    writer = await stores.register("run")
    await stores.commit(writer, 0, [record(0, block=[[1, 2], [3, 4]], histograms=(shapes(1, 2),))])
    async with database.write() as connection:
        number: Any = (await connection.execute(select(histograms.c.id))).scalar_one()
        await connection.execute(update(histograms).values(payload=b"\x95no"))
    with pytest.raises(HistogramCorruptError, match=f"histogram {number} cannot be read"):
        await archive(database)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_the_memory_of_an_archive_does_not_grow_with_the_run(database: Database) -> None:
    """Histograms of 200 layers at 1,000 steps are 51 MB."""
    wide = Layout(id=0, layers=tuple(f"layer{at}" for at in range(200)), statistics=("grad_norm",))
    stores = Stores.over(database)
    writer = await stores.register("run", layouts=(wide,))
    noise = np.random.default_rng(0)
    for start in range(0, 1_000, 100):
        counts = noise.integers(0, 1000, (200, 64), dtype=np.uint32).tolist()
        many = histogram("update", counts)
        await stores.commit(writer, start, [record(start + at, histograms=(many,)) for at in range(100)])
    tracemalloc.start()
    layouts = LayoutStore(database)
    exporter = Exporter(StepReader(database, layouts))
    made = Archiver(exporter, HistogramHistory(database), EventStore(database), AlertStore(database))
    run = await FleetQuery(database, RunStore(database), layouts).summary("run")
    assert run is not None
    async for piece in made.stream(run, await exporter.begin("run")):
        assert len(piece) < 16 * 2**20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20
