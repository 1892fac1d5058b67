"""JSON lines, states of the Trainer, times in several units, and files that are not what their names say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from server.errors import ImportFileError
from server.imports.options import ReadOptions
from tests.server.imports.conftest import DATA, Workshop

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"
DENIED = '<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code>'


async def test_json_lines_with_any_keys_become_a_run(workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text(
        '{"config": {"lr": 0.1}}\n'
        '{"global_step": 1, "train": {"loss": 2.5}, "note": "begin", "timestamp": 1700000000000}\n'
        '{"global_step": 2, "train": {"loss": NaN}, "flag": true, "timestamp": "2023-11-14T22:13:21Z"}\n'
        '{"global_step": 3, "train": {"loss": "1.5"}}\n{"global_step": 4, "tra'
    )
    (done,) = await workshop.import_all(file)
    assert (done.name, done.renamed) == (tmp_path.name, {"train.loss": "loss"})
    table = await workshop.table(done.run_id, tmp_path)
    np.testing.assert_equal(table["loss"].to_pylist(), [2.5, np.nan, 1.5])
    assert table["time"].to_pylist()[:2] == [1.7e9, 1.7e9 + 1]
    assert (await workshop.details(done.run_id))["config"]["lr"] == 0.1
    assert any("breaks off in line 5" in note for note in workshop.notes)


@pytest.mark.parametrize(
    ("name", "data", "options", "reason"),
    [
        ("x.jsonl", '{"a": 1}\n', ReadOptions(), "no key of steps.*--step-column.*--step-by-row; the keys are: a"),
        ("x.jsonl", '{"step": 1}\n{oops\n{"step": 2}\n', ReadOptions(), "x.jsonl, line 2: it is not JSON"),
        ("x.jsonl", "[1]\n", ReadOptions(), "x.jsonl, line 1: expected an object"),
        ("x.jsonl", '{"step": 1.5, "loss": 1}\n', ReadOptions(), "line 1: 1.5 under 'step' is not a whole number"),
        ("x.jsonl", '{"step": -1, "loss": 1}\n', ReadOptions(), "line 1: the step -1"),
        ("x.jsonl", '{"step": 1, "loss": 1}\n', ReadOptions(time_column="t"), "'t', which --time-column names"),
        ("x.jsonl", '{"step": 1, "loss": 1, "time": "soon"}\n', ReadOptions(), "line 1: 'soon' is not a time"),
        ("x.jsonl", '{"step": 1}\n', ReadOptions(), "it contains no scalars"),
        ("x.jsonl", "", ReadOptions(), "the file is empty"),
        ("x.json", '[{"step": 1', ReadOptions(), "it is not JSON .*downloaded again"),
        ("trainer_state.json", '{"log_history": [{"st', ReadOptions(), "it is not JSON .*copy or download it again"),
        ("trainer_state.json", "{}", ReadOptions(), "no list log_history"),
        (
            "x.csv",
            POINTER,
            ReadOptions(),
            "pointer of Git LFS.*lfs pull",
        ),
        (
            "x.parquet",
            POINTER,
            ReadOptions(),
            "pointer of Git LFS",
        ),
        ("x.csv", "<!DOCTYPE html>\n<html>", ReadOptions(), "line 1: this is a web page, not a log"),
        ("x.jsonl", "\n<html><body>404</body></html>", ReadOptions(), "this is a web page"),
        (
            "x.csv",
            '<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code>',
            ReadOptions(),
            "error message of a file server",
        ),
        ("x.csv", "\x1f\x8b\x08", ReadOptions(), "compressed by gzip; unpack it"),
        ("x.parquet", "PAR1 and no end", ReadOptions(), "it was cut off.*download it again"),
        ("x.zip", "PK\x03\x04 and no end", ReadOptions(), "it was cut off.*download it again"),
    ],
)
async def test_a_file_that_is_no_log_is_named_as_what_it_is(
    workshop: Workshop, tmp_path: Path, *, name: str, data: str, options: ReadOptions, reason: str
) -> None:
    (tmp_path / name).write_bytes(data.encode("latin-1"))
    with pytest.raises(ImportFileError, match=reason):
        await workshop.import_all(tmp_path / name, options)


@pytest.mark.parametrize("factor", [1, 1_000, 1_000_000, 1_000_000_000])
async def test_times_in_any_unit_are_recognised(workshop: Workshop, tmp_path: Path, factor: int) -> None:
    (tmp_path / "x.csv").write_text(f"step,timestamp,loss\n1,{1_700_000_000 * factor},1\n")
    (done,) = await workshop.import_all(tmp_path / "x.csv")
    assert (await workshop.table(done.run_id, tmp_path))["time"].to_pylist() == [1.7e9]


async def test_files_that_are_called_the_same_become_runs_with_their_own_names(
    workshop: Workshop, tmp_path: Path
) -> None:
    for version in (0, 1):
        folder = tmp_path / "lightning_logs" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"epoch,step,train_loss\n0,{version},1.5\n")
    done = await workshop.import_all(tmp_path / "lightning_logs")
    assert [run.name for run in done] == ["lightning_logs/version_0", "lightning_logs/version_1"]
    (alone,) = await workshop.import_all(tmp_path / "lightning_logs" / "version_1" / "metrics.csv")
    assert alone.name == "lightning_logs/version_1"


async def test_only_the_last_state_of_a_trainer_is_imported(workshop: Workshop, tmp_path: Path) -> None:
    history = [{"epoch": step / 10, "loss": 5.0 - step, "learning_rate": 0.1, "step": step} for step in (1, 2, 3)]
    history.append({"epoch": 0.3, "eval_loss": 4.0, "step": 3})
    for last in (2, 10):
        folder = tmp_path / "gpt" / f"checkpoint-{last}"
        folder.mkdir(parents=True)
        state = {"log_history": history[: 2 * last], "max_steps": 10, "global_step": last}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    (done,) = await workshop.import_all(tmp_path)
    assert (done.name, done.renamed) == ("gpt", {"learning_rate": "lr"})
    table = await workshop.table(done.run_id, tmp_path)
    assert table["loss"].to_pylist() == [4.0, 3.0, 2.0]
    assert table["eval_loss"].to_pylist() == [None, None, 4.0]
    assert (await workshop.details(done.run_id))["config"]["max_steps"] == 10


async def test_text_files_without_lines_of_a_log_are_left_out_of_a_folder(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("step by step\n")
    (tmp_path / "space.txt").write_text("step loss\n1 0.5\n2  0.25\n")
    (tmp_path / "list.json").write_text("[]")
    (done,) = await workshop.import_all(tmp_path)
    assert (done.name, done.records) == ("space", 2)
    assert any("1 text file without lines that are known are left out" in note for note in workshop.notes)


async def test_wandb_does_not_become_two_runs_by_what_it_printed(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "output.log").write_text("step 1: loss=2.5\n")
    shutil.copy(DATA / "run-8cx3lrgv.wandb", tmp_path)
    (done,) = await workshop.import_all(tmp_path)
    assert done.name == "calm-sky"
