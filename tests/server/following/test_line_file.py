"""A text that grows is read line by line, each line once, whatever happens to its file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import ImportFileError
from server.following.line_file import Kind, LineFile
from server.imports.options import ReadOptions
from tests.server.following.conftest import append, lines

Open = Callable[..., LineFile]


def opened(path: Path, kind: Kind = "json", notes: list[str] | None = None, **options: object) -> LineFile:
    told = [] if notes is None else notes
    return LineFile(path, kind, ReadOptions(**options), told.append, path.stem)  # type: ignore[arg-type]


def steps(log: LineFile) -> list[int]:
    """Steps of everything that can be read now."""
    found = []
    while True:
        growth = log.read()
        found += [entry.step for entry in growth.entries]
        if not growth.has_more:
            return found


def test_half_a_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    append(path, "step,loss\n1,0.5\n2,0.2")
    log = opened(path, "table")
    assert [entry.scalars for entry in log.read().entries] == [{"loss": 0.5}]
    append(path, "5\n3,1e-")
    assert [entry.scalars for entry in log.read().entries] == [{"loss": 0.25}]
    append(path, "3\n")
    assert [entry.scalars for entry in log.read().entries] == [{"loss": 0.001}]


def test_bytes_that_a_network_disk_has_not_received_are_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines([1]).encode() + b"\0" * 20 + lines([3]).encode())
    log = opened(path)
    assert steps(log) == [1]
    assert log.has_news()
    second = lines([2]).encode()
    path.write_bytes(lines([1]).encode() + second + lines([3]).encode())
    assert steps(log) == [2, 3]


def test_what_cannot_be_read_is_reported_once_and_left_out(tmp_path: Path) -> None:
    path, notes = tmp_path / "log.jsonl", list[str]()
    append(path, lines([1]) + "Traceback (most recent call last):\n" + lines([2]) + "KeyError\n" + lines([3]))
    log = opened(path, notes=notes)
    assert steps(log) == [1, 2, 3]
    assert notes[0] == f"{path}, line 2: it is not JSON (Expecting value); lines like this one are left out"


def test_a_table_without_steps_cannot_be_followed(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    append(path, "time,loss\n1,2\n")
    with pytest.raises(ImportFileError, match=r"no column of steps.*--step-column"):
        opened(path, "table").read()
    assert [entry.step for entry in opened(path, "table", step_by_row=True).read().entries] == [0]


def test_a_utf_16_file_cannot_be_followed(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,2\n", encoding="utf-16")
    with pytest.raises(ImportFileError, match="UTF-16"):
        opened(path, "table").read()


def test_a_renamed_file_is_read_to_its_end_before_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    append(path, lines([1, 2]))
    log = opened(path)
    assert steps(log) == [1, 2]
    append(path, lines([3]))
    path.rename(tmp_path / "train.jsonl.1")
    append(tmp_path / "train.jsonl.1", lines([4]))
    assert steps(log) == [3, 4]
    append(path, lines([5]))
    assert log.has_news()
    assert steps(log) == [5]
    assert log.edition == 0
    assert log.owns(tmp_path / "train.jsonl.1")


def test_a_writer_that_keeps_the_renamed_file_open_is_read_on(tmp_path: Path) -> None:
    path, old = tmp_path / "train.jsonl", tmp_path / "train.jsonl.1"
    append(path, lines([1]))
    log = opened(path)
    assert steps(log) == [1]
    path.rename(old)
    path.touch()
    append(old, lines([2]))
    assert steps(log) == [2]
    append(old, lines([3]))
    assert log.has_news()
    assert steps(log) == [3]
    append(path, lines([4]))
    assert steps(log) == [4]


def test_a_copied_and_truncated_file_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    append(path, lines(range(30)))
    log = opened(path)
    assert steps(log) == list(range(30))
    append(path, lines([30]))
    shutil.copy(path, tmp_path / "train.jsonl.1")
    os.truncate(path, 0)
    append(path, lines([31]))
    assert steps(log) == [30, 31]
    assert log.edition == 0


def test_a_file_that_is_overwritten_from_its_first_step_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    append(path, lines(range(50)))
    log = opened(path)
    assert steps(log) == list(range(50))
    path.write_text(lines(range(80), loss=2.0))  # longer than before, under the same inode
    assert steps(log) == list(range(80))
    assert log.edition == 1
    path.write_text(lines([40, 41], loss=3.0))
    growth = log.read()
    assert [entry.step for entry in growth.entries] == [40, 41]
    assert growth.is_cut
    assert log.edition == 1  # it resumed in the middle: the same training


def test_a_table_that_is_replaced_may_have_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    append(path, "step,loss\n0,1\n1,2\n")
    log = opened(path, "table")
    assert steps(log) == [0, 1]
    path.write_text("loss,lr,step\n3,0.1,0\n")
    assert [(entry.step, entry.scalars) for entry in log.read().entries] == [(0, {"loss": 3.0, "lr": 0.1})]
    path.write_text("4,0.2,2\n")  # rotated without a header
    assert [(entry.step, entry.scalars) for entry in log.read().entries] == [(2, {"loss": 4.0, "lr": 0.2})]


def test_a_position_continues_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "keras.log"
    append(path, "Epoch 1/9\n10/10 - 1s - loss: 0.5\nEpoch 2/9\n")
    log = opened(path, "text")
    assert steps(log) == [1]
    later = opened(path, "text")
    later.restore(log.position())
    append(path, "10/10 - 1s - loss: 0.4\n")
    assert steps(later) == [2]


def test_rows_are_counted_on_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    append(path, "loss\n5\n4\n")
    log = opened(path, "table", step_by_row=True)
    assert steps(log) == [0, 1]
    later = opened(path, "table", step_by_row=True)
    later.restore(log.position())
    append(path, "loss\n3\n")
    assert steps(later) == [2]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_pieces_and_rotations_give_each_line_once(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("log") / "train.jsonl"
    whole = lines(range(30)).encode()
    log, found, sent, rotations = opened(path), list[int](), 0, 0
    while sent < len(whole):
        piece = data.draw(st.sampled_from([400, 90, 27, 13, 1]))
        with path.open("ab") as file:
            file.write(whole[sent : sent + piece])
        sent += piece
        what = data.draw(st.sampled_from(["read", "wait", "restart", "rotate"]))
        ends_with_line = sent >= len(whole) or whole[sent - 1 : sent] == b"\n"
        if what == "read":
            found += steps(log)
        elif what == "restart":
            later = opened(path)
            later.restore(log.position())
            log = later
        elif what == "rotate" and ends_with_line and found:
            rotations += 1
            path.rename(path.with_suffix(f".jsonl.{rotations}"))
            found += steps(log)
    found += steps(log)
    assert found == list(range(30))


def test_logs_with_the_same_beginning_are_not_taken_for_each_other(tmp_path: Path) -> None:
    first, second = tmp_path / "metrics.csv", tmp_path / "metrics2.csv"
    for path in (first, second):
        append(path, "step,loss\n")
    log = opened(first, "table")
    assert steps(log) == []
    assert not log.owns(second)
    first.unlink()
    append(second, "7,1\n")
    assert steps(log) == []
