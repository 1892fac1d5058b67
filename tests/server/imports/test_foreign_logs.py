"""Logs that other tools have written become runs with detectors and views."""

from __future__ import annotations

import math
import shutil
import struct
import tracemalloc
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pytest

from client_sdk.vocabulary import guess_names
from server.errors import ImportFileError
from server.imports import tensorboard
from server.storage.alerts import AlertStore
from server.storage.runs import RunStore
from tests.server.imports.conftest import DATA, Workshop

WANDB = DATA / "run-8cx3lrgv.wandb"


def column(table: pa.Table, name: str, attempt: int = 0) -> dict[int, float]:
    """The values of one attempt, keyed by step."""
    rows = zip(table["step"].to_pylist(), table["attempt"].to_pylist(), table[name].to_pylist(), strict=True)
    return {step: value for step, own, value in rows if own == attempt and value is not None}


async def test_a_folder_of_tensorboard_becomes_a_run(workshop: Workshop, tmp_path: Path) -> None:
    (done,) = await workshop.import_all(DATA / "restarted")
    assert (done.name, done.project, done.renamed) == ("restarted", "imported", {"train/loss": "loss"})
    run = await workshop.details(done.run_id)
    assert run["state"] == "finished"
    assert run["scalars"] == ["epoch/val_loss", "loss", "lr"]
    assert run["config"] == {"imported_names": {"loss": "train/loss"}}
    assert run["created_at"] == 1_700_000_000.0
    assert [(item["first_step"], item["last_step"]) for item in run["attempts"]] == [(0, 59), (40, 99)]
    table = await workshop.table(done.run_id, tmp_path)
    first, second = column(table, "loss"), column(table, "loss", 1)
    assert list(first) == list(range(60))
    assert first[30] == pytest.approx(2 / math.e)
    assert list(second) == list(range(40, 100))
    assert second[77] == 9.0
    assert math.isnan(second[78])
    assert list(column(table, "epoch/val_loss")) == [0, 1, 2]


async def test_detectors_run_on_old_logs(workshop: Workshop) -> None:
    (tensorboard,) = await workshop.import_all(DATA / "restarted")
    assert {"spike", "nonfinite"} <= await workshop.alert_kinds(tensorboard.run_id)
    (wandb,) = await workshop.import_all(WANDB)
    assert "nonfinite" in await workshop.alert_kinds(wandb.run_id)
    assert (await workshop.details(wandb.run_id))["open_alerts"] == 0


async def test_scalars_in_tensors_are_read_and_other_tensors_are_reported(workshop: Workshop, tmp_path: Path) -> None:
    (done,) = await workshop.import_all(DATA / "tensors")
    assert done.name == "tensors/train"
    table = await workshop.table(done.run_id, tmp_path)
    assert column(table, "loss") == {step: float(np.float32(1 / step)) for step in range(1, 31)}
    assert column(table, "accuracy") == {step: step / 31 for step in range(1, 31)}
    assert any("'weights' is not a scalar" in note for note in workshop.notes)


async def test_hyperparameters_of_tensorboard_become_the_configuration(workshop: Workshop, tmp_path: Path) -> None:
    (done,) = await workshop.import_all(DATA / "hyperparameters")
    run = await workshop.details(done.run_id)
    assert {name: run["config"][name] for name in ("lr", "optimizer", "nesterov")} == {
        "lr": 0.1,
        "optimizer": "adam",
        "nesterov": True,
    }
    assert run["scalars"] == ["loss", "lr", "val/loss"]
    assert any("its 1 scalars are left out" in note for note in workshop.notes)
    (own,) = await workshop.import_all(DATA / "hyperparameters" / "1796021913.8919296", project="apart")
    assert (await workshop.details(own.run_id))["config"]["optimizer"] == "adam"


async def test_each_tag_of_tensorboard_keeps_its_own_time(workshop: Workshop, tmp_path: Path) -> None:
    (done,) = await workshop.import_all(DATA / "hyperparameters")
    table = await workshop.table(done.run_id, tmp_path)
    rows = table.to_pylist()
    assert {row["step"]: row["time"] for row in rows if row["loss"] is not None} == {
        step: 1_700_000_000 + step for step in range(5)
    }
    assert {row["step"]: row["time"] for row in rows if row["val/loss"] is not None} == {
        step: 1_700_000_300 + step for step in range(5)
    }


async def test_a_wandb_file_becomes_a_run(workshop: Workshop, tmp_path: Path) -> None:
    (done,) = await workshop.import_all(WANDB)
    assert (done.name, done.project, done.records) == ("calm-sky", "old-project", 120)
    run = await workshop.details(done.run_id)
    assert run["config"] == {"lr": 0.1, "model": {"layers": 2}}
    assert run["tags"] == ["wandb", "a"]
    assert run["scalars"] == ["loss", "val.acc"]
    table = await workshop.table(done.run_id, tmp_path)
    loss = column(table, "loss")
    assert list(loss) == list(range(120))
    assert loss[77] == 8.0
    assert math.isnan(loss[78])
    assert loss[40] == 2 / math.e
    assert column(table, "val.acc")[30] == 30 / 120


async def test_the_same_file_is_the_same_run_under_any_path(workshop: Workshop, tmp_path: Path) -> None:
    (first,) = await workshop.import_all(WANDB)
    shutil.copy(WANDB, tmp_path / "elsewhere.wandb")
    (again,) = await workshop.import_all(tmp_path / "elsewhere.wandb")
    assert again.run_id == first.run_id
    assert (first.new_records, again.new_records) == (120, 0)
    (other,) = await workshop.import_all(WANDB, project="other")
    assert other.run_id != first.run_id
    run = await workshop.details(first.run_id)
    assert (run["attempt"], run["last_step"], run["state"]) == (0, 119, "finished")


async def test_a_log_that_a_crash_cut_off_is_read_up_to_that_record(workshop: Workshop, tmp_path: Path) -> None:
    events = next((DATA / "restarted").glob("*.0"))
    for source, name in ((events, events.name), (WANDB, "cut.wandb")):
        cut = tmp_path / name
        cut.write_bytes(source.read_bytes()[:-300])
        (done,) = await workshop.import_all(cut)
        assert 50 < done.records < 120
        assert any("breaks off in record" in note for note in workshop.notes)


@pytest.mark.parametrize("at", [20, 2_000])
async def test_damage_is_reported_by_file_and_record_and_stores_nothing(
    workshop: Workshop, tmp_path: Path, at: int
) -> None:
    events = next((DATA / "restarted").glob("*.0"))
    for source, name in ((events, events.name), (WANDB, "bad.wandb")):
        broken = tmp_path / name
        data = bytearray(source.read_bytes())
        data[at] ^= 0x10
        broken.write_bytes(data)
        with pytest.raises(ImportFileError, match=rf"{name}, record \d+: .*") as raised:
            await workshop.import_all(broken)
        assert raised.value.place is not None
    assert await RunStore(workshop.database).lagging() == []


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("x.wandb", b"not one of them", r"not a \.wandb file"),
        ("x.tfevents", b"not an event file at all", "not an event file"),
        ("x.tfevents", b"", "contains no scalars"),
        ("x.csv", b"", "empty"),
        ("x.csv", b"step,loss\n", "contains no scalars"),
        ("x.csv", b"a,b\n1,2\n", "no column of steps"),
        ("x.csv", b"step,loss,loss\n", "occurs twice"),
        ("x.csv", b"step,loss\n1,2\n2\n", r"line 3: 1 cells under 2 columns"),
        ("x.csv", b"step,loss\n1,2\n2,oops\n", r"line 3: 'oops' in the column 'loss' is not a number"),
        ("x.csv", b"step,loss\n1.5,2\n", r"line 2: '1.5' in the column 'step' is not a whole number"),
        ("x.csv", b"step,loss\n-1,2\n", r"line 2: the step -1"),
        ("x.csv", b"step,loss\n\xff\xfe,2\n", "utf-8"),
        ("x.parquet", b"PAR1 no", "cannot be read as Parquet"),
        ("x.xlsx", b"", "does not show its format"),
        ("x.zip", b"", "cannot be read as ZIP"),
    ],
)
async def test_a_file_that_cannot_be_imported_is_rejected_with_a_reason(
    workshop: Workshop, tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImportFileError, match=reason):
        await workshop.import_all(tmp_path / name)


async def test_a_path_without_logs_is_rejected_with_a_reason(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(ImportFileError, match="no such file"):
        await workshop.import_all(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImportFileError, match="nothing to import"):
        await workshop.import_all(tmp_path / "empty")
    with pytest.raises(ImportFileError, match="no scalar 'objective'"):
        await workshop.import_all(WANDB, renames={"objective": "loss"})


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["train/loss", "val/loss"], {"train/loss": "loss"}),
        (["Loss/train", "Loss/test", "lr-AdamW"], {"Loss/train": "loss", "lr-AdamW": "lr"}),
        (
            ["trainLoss", "learning_rate", "gradient norm"],
            {"trainLoss": "loss", "learning_rate": "lr", "gradient norm": "grad_norm"},
        ),
        (["train/loss", "train/loss_step"], {"train/loss": "loss"}),
        (["loss", "train/loss"], {}),
        (["val_loss", "accuracy"], {}),
    ],
)
def test_names_of_other_tools_are_mapped(names: list[str], found: dict[str, str]) -> None:
    assert guess_names(names) == found


def test_a_long_log_of_tensorboard_takes_little_memory(tmp_path: Path) -> None:
    def checked(data: bytes) -> bytes:
        crc = google_crc32c.value(data)
        return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    file = tmp_path / "events.out.tfevents.1"
    value = b"\x0a\x04loss\x15" + struct.pack("<f", 0.5)
    summary = b"\x0a" + bytes([len(value)]) + value
    with file.open("wb") as written:
        for step in range(20_000):
            number = bytes([step & 127 | 128, step >> 7 & 127 | 128, step >> 14])  # a varint of three bytes
            event = b"\x09" + struct.pack("<d", step) + b"\x10" + number + b"\x2a" + bytes([len(summary)]) + summary
            length = struct.pack("<Q", len(event))
            written.write(length + checked(length) + event + checked(event))
    tracemalloc.start()
    run = tensorboard.open_file(file, print)
    steps = [record.step for _, record in run.records()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert steps == list(range(20_000))
    assert peak < 20_000 * 150


async def test_an_imported_run_has_the_times_of_its_log(workshop: Workshop, tmp_path: Path) -> None:
    """The clock of the log is years behind, some records have no time, and a restart begins an attempt."""
    begin, losses = 1_500_000_000.0, [2.0 + 0.01 * (step % 7) for step in range(200)]
    losses[150:] = [math.nan] * 50
    file = tmp_path / "old.csv"
    rows = [f"{step},{begin + 60 * step if step != 150 else ''},{loss}" for step, loss in enumerate(losses)]
    file.write_text("step,time,loss\n" + "\n".join(rows) + "\n")
    (done,) = await workshop.import_all(file)
    run = await workshop.run(done.run_id)
    assert (run.created_at, [attempt.started_at for attempt in run.attempts]) == (begin, [begin])
    found = await AlertStore(workshop.database).find(run_ids=[done.run_id])
    nonfinite = next(alert for alert in found if alert.kind == "nonfinite")
    assert nonfinite.opened_at == begin + 60 * 149, "the record without a time has that of the one before"
    assert (nonfinite.state, nonfinite.closed_at) == ("ended", begin + 60 * 199)
    for alert in found:
        assert begin <= alert.opened_at <= (alert.closed_at or math.inf)


async def test_each_attempt_of_an_imported_run_begins_at_its_time_in_the_log(workshop: Workshop) -> None:
    (done,) = await workshop.import_all(DATA / "restarted")
    run = await workshop.run(done.run_id)
    started = [attempt.started_at for attempt in run.attempts]
    assert started == sorted(started)
    assert started[0] == 1_700_000_000.0
    assert started[-1] < 1_700_100_000.0
