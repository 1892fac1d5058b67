"""A run that is not judged, and a loss of another name, from the SDK through the server to the API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client_sdk.config import Settings
from client_sdk.run import Run
from tests.support.server import RunningServer, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("judged")) as started:
        yield started


def train(
    server: RunningServer,
    directory: Path,
    name: str,
    metrics: dict[str, float],
    *,
    expected: dict[str, Any],
    loss: str | None = None,
) -> Any:
    """Log 40 records with these metrics and return the run once the API shows what is expected of it."""
    settings = Settings.resolve(
        project="p", run_id=name, url=server.url, token=server.token, directory=directory, loss=loss, environ={}
    )
    with server.connect(f"/live?run={name}") as live, server.api() as api:
        run = Run(settings)
        for step in range(40):
            run.log(metrics, step)
        run.finish()
        while True:
            found = api.get(f"/runs/{name}").json()
            if all(found.get(key) == value for key, value in expected.items()):
                return found
            live.recv(timeout=20)


def test_the_api_says_why_a_run_is_not_judged(server: RunningServer, tmp_path: Path) -> None:
    expected = {"stage": "not-judged", "stage_reason": "no-loss", "loss_name": None, "last_step": 39}
    assert train(server, tmp_path, "accuracy", {"accuracy": 0.5}, expected=expected)["open_alerts"] == 0


def test_a_loss_of_another_name_is_shown_and_served_as_the_loss(server: RunningServer, tmp_path: Path) -> None:
    expected = {"stage": "not-judged", "stage_reason": "loss-only", "loss_name": "train/loss", "loss": 2.5}
    found = train(server, tmp_path, "named", {"train/loss": 2.5, "val/loss": 7.0}, expected=expected)
    assert set(found["scalars"]) >= {"train/loss", "val/loss"}
    assert "loss" not in found["scalars"]
    with server.api() as api:
        series = api.get("/runs/named/series", params={"keys": "loss,train/loss"}).json()["series"]
    assert series["loss"] == series["train/loss"]
    assert set(series["loss"]["max"]) == {2.5}


def test_init_chooses_the_loss(server: RunningServer, tmp_path: Path) -> None:
    expected = {"loss_name": "elbo", "loss": 1.5, "stage_reason": "loss-only"}
    found = train(server, tmp_path, "chosen", {"elbo": 1.5, "loss": 9.0}, expected=expected, loss="elbo")
    assert found["sparkline"][0] == 1.5
