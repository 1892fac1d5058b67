"""One file with several runs becomes several runs, or is refused with the option that decides."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from server.errors import ImportFileError
from server.imports.options import ReadOptions
from server.storage.runs import RunStore
from tests.server.imports.conftest import Workshop


def rows(header: str, *lines: str) -> str:
    return "\n".join([header, *lines]) + "\n"


BY_RUN = rows(
    "run,step,loss", *(f"{run},{step},{level - step}" for run, level in (("a", 9), ("b", 19)) for step in (0, 1))
)
BY_SEED = rows("seed,step,loss", *(f"{seed},{step},{10 * seed + step}" for step in (0, 1) for seed in (0, 1)))
WITH_SEED = rows(
    "run,seed,step,loss", *(f"{run},{seed},{step},1" for run, seed in (("a", 3), ("b", 4)) for step in (0, 1))
)
CROSSED = rows("run,seed,step,loss", *(f"{run},{seed},{step},1" for run in "ab" for seed in (1, 2) for step in (0, 1)))
UNNAMED = rows("model,step,loss", *(f"{name},{step},1" for step in (0, 1) for name in ("big", "small")))
BEGINS_AGAIN = rows("model,step,loss", *(f"{name},{step},1" for name in ("big", "small") for step in (0, 1, 2)))
BATCHES = rows("epoch,loss", *(f"{epoch},{epoch + batch}" for epoch in (0, 1) for batch in (0, 1, 2)))


def as_json_lines(table: str) -> str:
    header, *lines = table.splitlines()
    names = header.split(",")
    return "".join(json.dumps(dict(zip(names, line.split(","), strict=True))) + "\n" for line in lines)


def write(folder: Path, form: str, table: str) -> Path:
    file = folder / f"sweep.{form}"
    if form == "parquet":
        (folder / "table.csv").write_text(table)
        pd.read_csv(folder / "table.csv").to_parquet(file)
    else:
        file.write_text(as_json_lines(table) if form == "jsonl" else table)
    return file


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("table", "names"),
    [(BY_RUN, ["a", "b"]), (BY_SEED, ["sweep seed=0", "sweep seed=1"]), (WITH_SEED, ["a", "b"])],
    ids=["run", "seed", "run with seed"],
)
async def test_runs_of_one_file_are_kept_apart(
    workshop: Workshop, tmp_path: Path, form: str, table: str, names: list[str]
) -> None:
    done = await workshop.import_all(write(tmp_path, form, table))
    assert [run.name for run in done] == names
    assert [run.records for run in done] == [2, 2]
    assert len({run.run_id for run in done}) == 2
    if "seed" in table:
        assert isinstance((await workshop.details(done[1].run_id))["config"]["seed"], int)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (CROSSED, "both 'run' and 'seed' may separate the runs; choose with --run-column 'run' or --run-column 'seed'"),
        (UNNAMED, "'loss' occurs again at step 0 .*separates them with --run-column 'model'"),
        (BEGINS_AGAIN, "the steps begin again each time that 'model' changes.*--run-column 'model'"),
        (BATCHES, "'loss' occurs again at epoch 0 .*--step-column.*--step-by-row"),
    ],
    ids=["crossed", "unnamed", "begins again", "batches of an epoch"],
)
async def test_what_may_be_several_runs_is_refused_and_stores_nothing(
    workshop: Workshop, tmp_path: Path, form: str, table: str, reason: str
) -> None:
    with pytest.raises(ImportFileError, match=reason):
        await workshop.import_all(write(tmp_path, form, table))
    assert await RunStore(workshop.database).lagging() == []


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
async def test_options_decide(workshop: Workshop, tmp_path: Path, form: str) -> None:
    both = await workshop.import_all(write(tmp_path, form, CROSSED), ReadOptions(run_columns=("run", "seed")))
    assert [run.name for run in both] == [f"sweep run={run}, seed={seed}" for run in "ab" for seed in (1, 2)]
    models = await workshop.import_all(write(tmp_path, form, UNNAMED), ReadOptions(run_columns=("model",)))
    assert [run.name for run in models] == ["sweep model=big", "sweep model=small"]
    (counted,) = await workshop.import_all(write(tmp_path, form, BATCHES), ReadOptions(step_by_row=True))
    assert (await workshop.table(counted.run_id, tmp_path))["step"].to_pylist() == list(range(6))
    with pytest.raises(ImportFileError, match="'nothing', which --run-column names"):
        await workshop.import_all(write(tmp_path, form, BY_RUN), ReadOptions(run_columns=("nothing",)))


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
async def test_a_table_in_long_form_is_recognised(workshop: Workshop, tmp_path: Path, form: str) -> None:
    table = rows(
        "step,metric,value",
        *(f"{step},{name},{step + at}" for at, name in enumerate(("loss", "lr")) for step in (0, 1)),
    )
    (done,) = await workshop.import_all(write(tmp_path, form, table))
    found = await workshop.table(done.run_id, tmp_path)
    assert found["loss"].to_pylist() == [0.0, 1.0]
    assert found["lr"].to_pylist() == [1.0, 2.0]
    own = table.replace("metric", "what").replace("value", "much")
    options = ReadOptions(metric_column="what", value_column="much")
    (named,) = await workshop.import_all(write(tmp_path, form, own), options)
    assert named.records == 2


async def test_an_error_in_the_last_run_of_a_chart_stores_none(workshop: Workshop, tmp_path: Path) -> None:
    columns = [f"{run} - loss{end}" for run in ("a", "b") for end in ("", "__MIN", "__MAX")]
    (tmp_path / "chart.csv").write_text(f"Step,{','.join(columns)}\n1,1,1,1,2,2,2\n2,1,1,1,oops,2,2\n")
    with pytest.raises(ImportFileError, match="line 3: 'oops'"):
        await workshop.import_all(tmp_path / "chart.csv")
    assert await RunStore(workshop.database).lagging() == []


async def test_a_restart_within_one_run_is_still_an_attempt(workshop: Workshop, tmp_path: Path) -> None:
    lines = [f"{step},1" for step in range(20)] + ["step,loss"] + [f"{step},1" for step in range(15, 30)]
    (tmp_path / "restarted.csv").write_text(rows("step,loss", *lines))
    (done,) = await workshop.import_all(tmp_path / "restarted.csv")
    assert (done.records, (await workshop.details(done.run_id))["attempt"]) == (35, 1)
