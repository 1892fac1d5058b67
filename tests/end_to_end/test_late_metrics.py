"""Metrics at earlier steps are merged into their steps; only a training that went back begins a new attempt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import client_sdk
from client_sdk.read import Run, Server
from client_sdk.run import Run as TrainingRun
from tests.support.server import RunningServer, running_server

Begin = Callable[..., TrainingRun]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("late")) as running:
        yield running


@pytest.fixture
def begin(server: RunningServer, tmp_path: Path) -> Iterator[Begin]:
    yield lambda **options: client_sdk.init(
        project="late", url=server.url, token=server.token, directory=tmp_path, **options
    )
    client_sdk.finish()


def read(server: RunningServer, run: TrainingRun) -> Run:
    client_sdk.finish()
    return Server(server.url, server.token).run(run.id)


def attempts(server: RunningServer, run: TrainingRun) -> list[tuple[int, int, int]]:
    """Return the number, the first and the last step of each attempt."""
    with server.api() as api:
        found = api.get(f"/runs/{run.id}").json()["attempts"]
    return [(item["attempt"], item["first_step"], item["last_step"]) for item in found]


def test_a_validation_logged_by_epoch_keeps_the_training(
    server: RunningServer, begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    run = begin(name="epochs")
    client_sdk.watch(model, optimizer, every=1)
    step = 0
    with caplog.at_level(logging.WARNING, logger="client_sdk"):
        for epoch in range(5):
            for _ in range(40):
                optimizer.zero_grad()
                loss = model(torch.randn(8, 4)).pow(2).mean()
                loss.backward()
                optimizer.step()
                client_sdk.log({"loss": loss}, step=step)
                step += 1
            client_sdk.log({"val_loss": loss.item()}, step=epoch)
    found = read(server, run)
    assert found.series("loss").step.tolist() == list(range(200))
    assert found.series("val_loss").step.tolist() == [0, 1, 2, 3, 4]
    assert found.layers("grad_norm").step.tolist() == list(range(200))
    assert found.info["last_step"] == 199
    assert attempts(server, run) == [(0, 0, 199)]
    assert [event for event in found.events() if event["kind"] == "rollback"] == []
    warnings = [entry.getMessage() for entry in caplog.records if "is that an epoch" in entry.getMessage()]
    assert warnings == [
        "spikewatch: val_loss is logged at steps 0 to 2 while loss is at 119: is that an epoch? Pass step=the training "
        "step to show it there"
    ]


def test_late_evaluations_are_shown_at_their_steps_whatever_their_order(server: RunningServer, begin: Begin) -> None:
    run = begin(name="evaluations")
    for step in range(40):
        client_sdk.log({"loss": 1.0 + step}, step=step)
        late = {15: 10, 25: 20, 35: 5}.get(step)
        if late is not None:
            client_sdk.log({"eval": float(late)}, step=late)
    warnings = run.status().warnings
    found = read(server, run)
    assert found.series("loss").step.tolist() == list(range(40))
    assert found.series("eval").step.tolist() == [5, 10, 20]
    assert found.series("eval").value.tolist() == [5.0, 10.0, 20.0]
    assert not any(cause.startswith("other_steps") for cause in warnings)


def test_another_metric_after_a_resume_keeps_the_first(server: RunningServer, begin: Begin) -> None:
    run = begin(run_id="resumed")
    for step in range(5):
        client_sdk.log({"first": step}, step=step)
    client_sdk.finish()
    begin(run_id="resumed")
    for step in range(5):
        client_sdk.log({"second": 5 + step}, step=step)
    found = read(server, run)
    assert found.series("first").step.tolist() == [0, 1, 2, 3, 4]
    assert found.series("second").step.tolist() == [0, 1, 2, 3, 4]


def test_a_training_that_goes_back_begins_an_attempt_in_the_same_process_and_in_the_next(
    server: RunningServer, begin: Begin
) -> None:
    run = begin(run_id="back")
    for step in (*range(100), *range(50, 80)):
        client_sdk.log({"loss": 1.0}, step=step)
    client_sdk.finish()
    begin(run_id="back")
    for step in range(60, 70):
        client_sdk.log({"loss": 2.0}, step=step)
    client_sdk.log({"eval": 1.0}, step=65)
    found = read(server, run)
    assert found.series("loss").step.tolist() == list(range(70))
    assert attempts(server, run) == [
        (0, 0, 99),
        (1, 50, 79),
        (2, 60, 69),
    ]
    assert found.series("eval").step.tolist() == [65]


def test_another_phase_of_training_with_other_metrics_gets_layers(server: RunningServer, begin: Begin) -> None:
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    run = begin(name="phases")
    client_sdk.watch(model, optimizer, every=1)
    for name, steps in (("loss", 30), ("tuning_loss", 20)):
        for step in range(steps):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 4)).pow(2).mean()
            loss.backward()
            optimizer.step()
            client_sdk.log({name: loss}, step=step)
    found = read(server, run)
    assert attempts(server, run) == [(0, 0, 29), (1, 1, 19)]
    assert found.series("tuning_loss").step.tolist() == list(range(20))
    assert found.layers("grad_norm").step.tolist() == list(range(20))


def test_the_default_step_continues_after_a_late_metric(server: RunningServer, begin: Begin) -> None:
    run = begin(name="default")
    for _ in range(5):
        client_sdk.log({"loss": 1.0})
    client_sdk.log({"eval": 1.0}, step=2)
    client_sdk.log({"loss": 1.0})
    assert read(server, run).series("loss").step.tolist() == list(range(6))
