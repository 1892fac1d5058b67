"""Tables: those of other tools, and our own exports on their way back."""

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
from server.exports.streams import Format
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
    (done,) = await workshop.bring(file)
    assert (done.name, done.records) == ("my run", 3)
    table = await workshop.table(done.run_id, tmp_path)
    assert table["step"].to_pylist() == [1, 2, 3]
    assert table["time"].to_pylist() == [10.0, 11.5, 12.0]
    assert table["accuracy"].to_pylist() == [None, 0.25, None]
    assert table["loss"].to_pylist()[2] == math.inf
    assert "epoch" in table.schema.names
    assert any("'note' holds no numbers" in note for note in workshop.notes)


async def test_a_chart_of_wandb_becomes_a_run_for_each_of_its_curves(workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "chart.csv"
    file.write_text(
        '"Step","calm-sky - loss","calm-sky - loss__MIN","calm-sky - loss__MAX",'
        '"a - b - loss","a - b - loss__MIN","a - b - loss__MAX"\n'
        '"1","0.5","0.5","0.5","","",""\n"2","0.4","0.4","0.4","7","7","7"\n'
    )
    calm, other = await workshop.bring(file)
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
    (done,) = await workshop.bring(tmp_path / "frame.parquet")
    assert done.renamed == {"train_loss": "loss"}
    table = await workshop.table(done.run_id, tmp_path)
    assert table["loss"].to_pylist() == [3.0, 2.0, 1.0]
    assert table["time"].to_pylist() == [1.0, 2.0, 3.0]
    assert table["count"].to_pylist() == [1.0, 2.0, 3.0]
    with pytest.raises(ImportFileError, match="'nothing'"):
        await workshop.bring(tmp_path / "frame.parquet", step_column="nothing")
    frame.loc[1, "iteration"] = np.nan
    frame.to_parquet(tmp_path / "broken.parquet")
    with pytest.raises(ImportFileError, match="row 2"):
        await workshop.bring(tmp_path / "broken.parquet")


async def test_an_import_that_was_cut_off_goes_on(workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "long.csv"
    file.write_text(table_of([(step, 1.0) for step in range(3_000)]))
    cut: list[int] = []

    def stop_half_way(done: int, total: int) -> None:
        cut.append(done)
        if done > 1_500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await workshop.bring(file, progress=stop_half_way)
    (done,) = await workshop.bring(file)
    assert done.new_records == 3_000 - cut[-1]
    table = await workshop.table(done.run_id, tmp_path)
    assert table["step"].to_pylist() == list(range(3_000))


numbers = st.floats(width=64)
entries = st.floats(width=32)
steps = st.one_of(st.integers(0, 12), st.integers(0, MAX_STEP))


@st.composite
def logs(draw: st.DrawFn) -> list[Record]:
    """What a training may log: steps that go back, gaps, two layouts, any float."""
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
                scalars=draw(st.dictionaries(st.sampled_from(["loss", "lr", "step", "ä b/c"]), numbers, max_size=3)),
                layout=None if layout is None else layout.id,
                block=block,
            )
        )
    found.append(Record(step=MAX_STEP, time=0.0, scalars={"loss": 1.0}))
    return found


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(ranks=st.lists(logs(), min_size=1, max_size=2))
def test_what_was_exported_comes_back_the_same(ranks: list[list[Record]]) -> None:
    async def check(folder: Path) -> None:
        async with workshop_at(folder) as workshop:
            stores = Stores.over(workshop.database)
            for rank, records in enumerate(ranks):
                writer = await stores.register("original", writer=f"w{rank}", rank=rank, layouts=LAYOUTS)
                await stores.commit(writer, 0, records)
            original = await workshop.table("original", folder)
            (back,) = await workshop.bring(folder / "original.parquet")
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
def test_the_scalars_of_a_csv_come_back_the_same(records: list[Record]) -> None:
    async def check(folder: Path) -> None:
        async with workshop_at(folder) as workshop:
            stores = Stores.over(workshop.database)
            writer = await stores.register("original", layouts=LAYOUTS)
            await stores.commit(writer, 0, records)
            (back,) = await workshop.bring(await workshop.export("original", folder / "run.csv", Format.CSV))
            original, again = [await workshop.table(run_id, folder) for run_id in ("original", back.run_id)]
            for name in ("attempt", "rank", "step", "time", "loss"):
                np.testing.assert_equal(again[name].to_pylist(), original[name].to_pylist(), err_msg=name)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(Path(folder)))
