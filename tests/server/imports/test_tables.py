"""Import of tables of other tools and of exported runs."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_sdk.protocol import MAX_STEP, Layout, Record
from server.errors import ImportFileError
from server.exports.exporter import Format
from server.imports.options import ReadOptions
from tests.server.imports.conftest import Workshop, workshop_at
from tests.server.storage.conftest import Stores

LAYOUTS = (
    Layout(id=0, layers=("first", "second"), statistics=("grad_norm", "update_norm"), sizes=(3, 4)),
    Layout(id=1, layers=("second", "third"), statistics=("grad_norm",)),
)


def table_of(records: Sequence[tuple[int, float]]) -> str:
    return "step,loss\n" + "".join(f"{step},{value}\n" for step, value in records)


async def test_a_plain_csv_becomes_a_run(workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "my run.csv"
    file.write_text("epoch,Step,loss,note,accuracy,timestamp\n0,1,0.5,begin,,10\n0,2,nan,,0.25,11.5\n\n1,3,inf,x,,12\n")
    (done,) = await workshop.import_all(file)
    assert (done.name, done.records) == ("my run", 3)
    table = await workshop.table(done.run_id, tmp_path)
    assert table["step"].to_pylist() == [1, 2, 3]
    assert table["time"].to_pylist() == [10.0, 11.5, 12.0]
    assert table["accuracy"].to_pylist() == [None, 0.25, None]
    assert table["loss"].to_pylist()[2] == math.inf
    assert "epoch" in table.schema.names
    assert any("'note' holds no numbers" in note for note in workshop.notes)


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfstep,loss,lr\r\n1,0.5,1e-3\r\n2,nan,\r\n",
        b"step;loss;lr\n1;0,5;0,001\n2;NaN;NA\n",
        b"step\t loss \tlr\n1\t0.5\t0.001\n2\tnan\tNone\n",
        "step;loss;lr\r\n1;0,5;0,001\r\n2;nan;-\r\n".encode("utf-16"),
    ],
    ids=["BOM and CRLF", "semicolons and decimal commas", "tabs and spaces", "UTF-16 of a spreadsheet"],
)
async def test_tables_of_spreadsheets_in_any_language_are_read(workshop: Workshop, tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(data)
    (done,) = await workshop.import_all(file)
    table = await workshop.table(done.run_id, tmp_path)
    assert table["step"].to_pylist() == [1, 2]
    np.testing.assert_equal(table["loss"].to_pylist(), [0.5, math.nan])
    assert table["lr"].to_pylist() == [0.001, None]


async def test_times_may_be_dates(workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "dated.csv"
    file.write_text(
        "steps,timestamp,loss\n1,1970-01-01 00:00:10,1\n2,1970-01-01T02:00:11+02:00,1\n"
        "3,1970-01-01T00:00:12.5Z,1\n4,,1\n"
    )
    (done,) = await workshop.import_all(file)
    times = (await workshop.table(done.run_id, tmp_path))["time"].to_pylist()
    np.testing.assert_equal(times, [10.0, 11.0, 12.5, math.nan])
    file.write_text("step,time,loss\n1,yesterday,1\n")
    with pytest.raises(ImportFileError, match="line 2: 'yesterday' is not a time; write Unix seconds or"):
        await workshop.import_all(file)


@pytest.mark.parametrize("end", ["3,0", '3,"0.'], ids=["within a row", "within quotes"])
async def test_a_table_that_was_cut_off_is_read_up_to_that_line(workshop: Workshop, tmp_path: Path, end: str) -> None:
    file = tmp_path / "cut.csv"
    file.write_text(f"step,loss,lr\n1,0.5,0.1\n2,0.4,0.1\n{end}")
    (done,) = await workshop.import_all(file)
    assert done.records == 2
    assert any("breaks off" in note for note in workshop.notes)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"step,l\xe9ss\n1,2\n", "odd.csv: it is not UTF-8 .*; save it as UTF-8"),
        (b"step,loss\n1,\xff\n2,3\n", "odd.csv: it is not UTF-8"),
        (b"a,b\n1,2\n", "name it with --step-column, or count the rows with --step-by-row; the columns are: a, b"),
        (b"step,loss\n1,2,3\n2,1\n", "line 2: 3 cells under 2 columns"),
        (b"step,loss\n1.5,2\n", "line 2: '1.5' in the column 'step' is not a whole number"),
        (b"step,loss\n99999999999999999999,2\n", "line 2: the step 99999999999999999999 is not within"),
        (b"step,loss\n-1,2\n", "line 2: the step -1 is not within"),
        (b"step,loss\n", "it contains no scalars"),
        (b"", "the file is empty"),
    ],
)
async def test_a_table_that_cannot_be_read_is_rejected_with_its_line(
    workshop: Workshop, tmp_path: Path, data: bytes, reason: str
) -> None:
    file = tmp_path / "odd.csv"
    file.write_bytes(data)
    with pytest.raises(ImportFileError, match=reason):
        await workshop.import_all(file)


async def test_a_chart_over_another_axis_has_no_scalar_of_steps(workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "chart.csv"
    columns = [f"sun - {name}{end}" for name in ("_step", "loss") for end in ("", "__MIN", "__MAX")]
    file.write_text(",".join(["train/global_step", *columns]) + "\n5,1,1,1,0.5,0.5,0.5\n")
    (done,) = await workshop.import_all(file)
    assert (await workshop.details(done.run_id))["scalars"] == ["loss"]


async def test_a_chart_of_wandb_becomes_a_run_for_each_of_its_curves(workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "chart.csv"
    file.write_text(
        '"Step","calm-sky - loss","calm-sky - loss__MIN","calm-sky - loss__MAX",'
        '"a - b - loss","a - b - loss__MIN","a - b - loss__MAX"\n'
        '"1","0.5","0.5","0.5","","",""\n"2","0.4","0.4","0.4","7","7","7"\n'
    )
    calm, other = await workshop.import_all(file)
    assert (calm.name, calm.records, other.name, other.records) == ("calm-sky", 2, "a - b", 1)
    assert (await workshop.details(calm.run_id))["scalars"] == ["loss"]
    assert calm.run_id != other.run_id


async def test_a_parquet_of_pandas_becomes_a_run(workshop: Workshop, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "iteration": [1.0, 2.0, 3.0],
            "train_loss": np.array([3, 2, 1], np.float32),
            "count": [1, 2, 3],
            "word": ["a", "b", "c"],
            "wall_time": pd.to_datetime([1, 2, 3], unit="s", utc=True),
        }
    )
    frame.to_parquet(tmp_path / "frame.parquet")
    (done,) = await workshop.import_all(tmp_path / "frame.parquet")
    assert done.renamed == {"train_loss": "loss"}
    table = await workshop.table(done.run_id, tmp_path)
    assert table["loss"].to_pylist() == [3.0, 2.0, 1.0]
    assert table["time"].to_pylist() == [1.0, 2.0, 3.0]
    assert table["count"].to_pylist() == [1.0, 2.0, 3.0]
    with pytest.raises(ImportFileError, match="'nothing'"):
        await workshop.import_all(tmp_path / "frame.parquet", reading=ReadOptions(step_column="nothing"))
    frame.loc[1, "iteration"] = np.nan
    frame.to_parquet(tmp_path / "broken.parquet")
    with pytest.raises(ImportFileError, match="row 2"):
        await workshop.import_all(tmp_path / "broken.parquet")


async def test_an_interrupted_import_is_continued(workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "long.csv"
    file.write_text(table_of([(step, 1.0) for step in range(3_000)]))
    cut: list[int] = []

    def stop_half_way(done: int, total: int) -> None:
        cut.append(done)
        if done > 1_500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await workshop.import_all(file, progress=lambda _: stop_half_way)
    (done,) = await workshop.import_all(file)
    assert done.new_records == 3_000 - cut[-1]
    table = await workshop.table(done.run_id, tmp_path)
    assert table["step"].to_pylist() == list(range(3_000))


numbers = st.floats(width=64)
entries = st.floats(width=32)
steps = st.one_of(st.integers(0, 12), st.integers(0, MAX_STEP))


@st.composite
def logs(draw: st.DrawFn) -> list[Record]:
    """Records that a training may log: steps that go back, gaps, two layouts, and any float.

    Each has the loss, so that a step that goes back is a training that went back and no late metric.
    """
    found = []
    for step in draw(st.lists(steps, min_size=1, max_size=12)):
        layout = draw(st.sampled_from([None, *LAYOUTS]))
        block = None
        if layout is not None:
            size = len(layout.layers) * len(layout.statistics)
            block = np.array(draw(st.lists(entries, min_size=size, max_size=size)), "<f4").tobytes()
        found.append(
            Record(
                step=step,
                time=draw(st.floats(allow_nan=False, allow_infinity=False)),
                scalars={"loss": draw(numbers)}
                | draw(st.dictionaries(st.sampled_from(["loss", "lr", "step", "ä b/c"]), numbers, max_size=3)),
                layout=None if layout is None else layout.id,
                block=block,
            )
        )
    found.append(Record(step=MAX_STEP, time=0.0, scalars={"loss": 1.0}))
    return found


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(ranks=st.lists(logs(), min_size=1, max_size=2))
def test_an_exported_run_is_imported_unchanged(ranks: list[list[Record]]) -> None:
    async def check(folder: Path) -> None:
        async with workshop_at(folder) as workshop:
            stores = Stores.over(workshop.database)
            for rank, records in enumerate(ranks):
                writer = await stores.register("original", writer=f"w{rank}", rank=rank, layouts=LAYOUTS)
                await stores.commit(writer, 0, records)
            original = await workshop.table("original", folder)
            (back,) = await workshop.import_all(folder / "original.parquet")
            again = await workshop.table(back.run_id, folder)
            assert again.schema.names == original.schema.names
            for name in original.schema.names:
                ours, theirs = original[name].to_pylist(), again[name].to_pylist()
                np.testing.assert_equal(theirs, ours, err_msg=name)
            details = await workshop.details(back.run_id)
            assert details["layers"] == (await workshop.details("original"))["layers"]

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(Path(folder)))


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(records=logs())
def test_the_scalars_of_a_csv_export_are_imported_unchanged(records: list[Record]) -> None:
    async def check(folder: Path) -> None:
        async with workshop_at(folder) as workshop:
            stores = Stores.over(workshop.database)
            writer = await stores.register("original", layouts=LAYOUTS)
            await stores.commit(writer, 0, records)
            (back,) = await workshop.import_all(await workshop.export("original", folder / "run.csv", Format.CSV))
            original, again = [await workshop.table(run_id, folder) for run_id in ("original", back.run_id)]
            for name in ("attempt", "rank", "step", "time", "loss"):
                np.testing.assert_equal(again[name].to_pylist(), original[name].to_pylist(), err_msg=name)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(Path(folder)))
