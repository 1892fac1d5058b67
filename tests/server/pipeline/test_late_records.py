"""Late records are told from a training that went back, by their contents and by what was logged before."""

from __future__ import annotations

from pathlib import Path

import pytest

from client_sdk.protocol import STATISTICS_THINNED, Record
from server.pipeline.late_records import TrainingSteps, UnknownStepsError
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, record


def scalar(step: int, **scalars: float) -> Record:
    """Return a record without a loss."""
    return Record(step=step, time=1_000_000.0 + step, scalars=scalars)


TRAINING = [record(step) for step in range(20)]


def test_ascending_records_are_not_late() -> None:
    assert TrainingSteps().find_late(TRAINING) is None


@pytest.mark.parametrize(
    ("back", "is_late"),
    [
        (scalar(3, val_loss=1.0), True),
        (scalar(3, val_loss=1.0, lr=0.1), True),
        (scalar(3), True),
        (record(3), False),
        (record(3, val_loss=1.0), False),
        (scalar(3, **{STATISTICS_THINNED: 1.0}), False),
        (Record(step=3, time=0.0, scalars={"val_loss": 1.0}, layout=0, block=b"\0" * 16), False),
    ],
    ids=["another scalar", "with a filled-in scalar", "empty", "the loss", "both", "thinned", "a block"],
)
def test_only_statistics_and_scalars_of_later_steps_prove_that_training_went_back(back: Record, is_late: bool) -> None:
    steps = TrainingSteps()
    steps.move(0, -1)
    steps.learn(3, ["val_loss", "lr"], [])
    late = steps.find_late([*TRAINING, back])
    assert late == ([*(False for _ in TRAINING), True] if is_late else None)


def test_what_the_connection_has_not_seen_is_asked_of_storage_once() -> None:
    steps = TrainingSteps()
    steps.move(2, 100)
    with pytest.raises(UnknownStepsError) as question:
        steps.find_late([scalar(7, val_loss=1.0)])
    assert (question.value.step, question.value.names) == (7, ["val_loss"])
    steps.learn(7, ["val_loss"], [])
    assert steps.find_late([scalar(7, val_loss=1.0), scalar(9, val_loss=1.0)]) == [True, True]
    with pytest.raises(UnknownStepsError):
        steps.find_late([scalar(5, val_loss=1.0)])
    steps.learn(5, ["val_loss"], ["val_loss"])
    assert steps.find_late([scalar(5, val_loss=1.0)]) is None


def send(server: RunningServer, *records: Record, batch: int = 1_000, writer: str = "writer") -> None:
    with server.connect("/ingest") as socket:
        sender = Writer(socket)
        sender.hello(writer=writer)
        first = sender.seq
        for start in range(0, len(records), batch):
            sender.send(*records[start : start + batch])
        sender.wait_for(first + len(records))


def stored(server: RunningServer, **options: int) -> dict[str, list[int]]:
    with server.api() as api:
        query: dict[str, str | int] = {"keys": "loss,val_loss", "points": 10_000, **options}
        answer = api.get("/runs/run/series", params=query).json()
        return {name: series["step"] for name, series in answer["series"].items()}


def attempts(server: RunningServer) -> list[tuple[int, int, int]]:
    with server.api() as api:
        found = api.get("/runs/run").json()["attempts"]
    return [(item["attempt"], item["first_step"], item["last_step"]) for item in found]


@pytest.mark.parametrize("batch", [1, 7, 1_000])
def test_the_division_into_batches_does_not_matter(tmp_path: Path, batch: int) -> None:
    records = []
    for step in range(200):
        records.append(record(step))
        if step % 40 == 39:
            records.append(scalar(step // 40, val_loss=1.0))
    records += [record(step) for step in range(150, 180)]
    with running_server(tmp_path) as server:
        send(server, *records, batch=batch)
        assert attempts(server) == [(0, 0, 199), (1, 150, 179)]
        assert stored(server) == {"loss": list(range(180)), "val_loss": [0, 1, 2, 3, 4]}
        assert stored(server, attempt=0) == {"loss": list(range(200)), "val_loss": [0, 1, 2, 3, 4]}
        assert stored(server, attempt=1) == {"loss": list(range(150, 180)), "val_loss": []}


def test_a_late_record_disappears_with_the_attempt_that_was_replaced(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        send(server, *TRAINING, scalar(4, val_loss=1.0), scalar(12, val_loss=1.0))
        send(server, *(record(step) for step in range(10, 15)), writer="second")
        assert attempts(server) == [(0, 0, 19), (1, 10, 14)]
        assert stored(server) == {"loss": list(range(15)), "val_loss": [4]}


def test_a_later_connection_asks_storage_what_was_logged(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        send(server, *TRAINING, scalar(30, val_loss=1.0))
        send(server, scalar(25, other=1.0), writer="second")
        assert attempts(server) == [(0, 0, 30)]
        send(server, scalar(25, val_loss=1.0), writer="third")
        assert attempts(server) == [(0, 0, 30), (1, 25, 25)]
