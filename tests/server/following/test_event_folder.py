"""Folders of TensorBoard and files of W&B are read record by record while they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.following.event_folder import EventFolder
from server.following.log_source import LogSource
from server.following.wandb_log import WandbLog
from tests.server.imports.conftest import DATA
from tests.support.event_writer import EventWriter, event

WANDB = DATA / "run-8cx3lrgv.wandb"


def values(source: LogSource) -> list[tuple[int, float]]:
    return [(entry.step, value) for entry in source.read().entries for value in entry.scalars.values()]


def test_half_a_record_is_not_read(tmp_path: Path) -> None:
    writer, notes = EventWriter(tmp_path), list[str]()
    source = EventFolder(tmp_path, notes.append, "run")
    assert values(source) == []
    record = event(7, "loss", 0.5)
    for at in range(len(record)):
        writer.write(record[at : at + 1])
        assert values(source) == ([] if at < len(record) - 1 else [(7, 0.5)])
    writer.close()
    assert notes == []


def test_a_new_file_of_a_folder_is_read_after_the_old_one(tmp_path: Path) -> None:
    first = EventWriter(tmp_path)
    first.add(1, loss=1.0)
    source = EventFolder(tmp_path, lambda _: None, "run")
    assert values(source) == [(1, 1.0)]
    assert not source.has_news()
    first.add(2, loss=2.0)
    second = EventWriter(tmp_path, created=1_700_000_100)
    second.add(1, loss=3.0)
    assert source.has_news()
    assert values(source) == [(2, 2.0), (1, 3.0)]
    first.close()
    second.close()


def test_a_position_of_a_folder_continues_in_another_process(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.add(1, loss=1.0, lr=0.5)
    source = EventFolder(tmp_path, lambda _: None, "run")
    first = source.position()
    assert len(values(source)) == 2
    reached = source.position()
    writer.add(2, loss=2.0)
    later = EventFolder(tmp_path, lambda _: None, "run")
    later.restore(reached)
    assert values(later) == [(2, 2.0)]
    again = EventFolder(tmp_path, lambda _: None, "run")
    again.restore(first)
    assert [entry.step for entry in again.read(reached).entries] == [1, 1]
    assert values(again) == [(2, 2.0)]
    writer.close()


def test_hyperparameters_beside_the_events_are_the_configuration() -> None:
    source = EventFolder(DATA / "hyperparameters", lambda _: None, "run")
    source.read()
    assert source.about.config["optimizer"] == "adam"


@pytest.mark.parametrize("piece", [1_000, 4_097, 32_768])
def test_a_wandb_file_is_read_while_it_is_written(tmp_path: Path, piece: int) -> None:
    whole = WANDB.read_bytes()
    path = tmp_path / WANDB.name
    path.touch()
    source, found, states = WandbLog(path, lambda _: None), list[tuple[int, float]](), list[str | None]()
    for start in range(0, len(whole), piece):
        with path.open("ab") as file:
            file.write(whole[start : start + piece])
        assert source.has_news()
        growth = source.read()
        found += [(entry.step, entry.scalars["loss"]) for entry in growth.entries]
        states.append(growth.state)
        later = WandbLog(path, lambda _: None)
        later.restore(source.position())
        assert later.read().entries == () or list(later.read().entries) == []
    assert [step for step, _ in found] == list(range(120))
    assert states[-1] == "finished"
    assert (source.about.name, source.about.project, source.about.config["lr"]) == ("calm-sky", "old-project", 0.1)
