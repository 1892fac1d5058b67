"""A run delivers the values of `log`, from any thread."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import pytest
import torch

from client_sdk.errors import ConfigurationError
from client_sdk.protocol import Histograms
from client_sdk.spool.spool import Spool
from tests.support.ingest_server import IngestServer
from tests.support.instruments import Landed, StepInstrument
from tests.support.logged import MakeRun, kept, warnings_of


def test_logged_values_arrive_bit_for_bit(make_run: MakeRun, server: IngestServer) -> None:
    run = make_run(url=server.url, name="n", config={"lr": 0.1}, tags=["a"])
    values = [0.1, math.pi, 5e-324, -0.0, math.inf, 1e308]
    for step, value in enumerate(values):
        run.log({"loss": value, "other": step}, step=step)
    assert run.flush(20)
    assert [record.scalars["loss"].hex() for record in server.all_records()] == [value.hex() for value in values]
    hello = server.hellos[0]
    assert (hello.run_id, hello.project, hello.name, hello.config, hello.tags) == (
        run.id,
        "p",
        "n",
        {"lr": 0.1},
        ("a",),
    )
    assert hello.sdk.startswith("python/")
    status = run.status()
    assert (status.logged, status.acknowledged, status.queued_bytes, status.dropped) == (6, 6, 0, 0)
    assert status.connected
    run.finish()
    assert [finish.state for _, finish in server.finishes] == ["finished"]
    assert not list(run.settings.directory.iterdir()), "nothing is left on disk"


def test_nan_and_infinity_arrive_in_scalars_blocks_and_histograms(make_run: MakeRun, server: IngestServer) -> None:
    values = np.array([math.nan, math.inf, -math.inf, -0.0], np.float32)
    edges = values[:2].tobytes()
    histogram = Histograms(which="update", low=edges, high=edges, counts=bytes(2 * 64 * 4))

    class Odd(StepInstrument):
        def measure(self, *arguments: Any) -> Landed:
            pending = super().measure(*arguments)
            assert pending.measurement.block is not None
            pending.measurement.block[:] = values.reshape(2, 2)
            return pending

    run = make_run(url=server.url)
    run.attach(Odd(("a", "b"), ("x", "y"), scalars={"lambda_max": math.nan, "lr": -math.inf}, histograms=(histogram,)))
    run.log({"loss": math.nan, "tensor": torch.tensor(math.inf), "numpy": np.float32(-math.inf), "step_time": math.inf})
    assert run.flush(20)
    (arrived,) = server.all_records()
    assert {name: value.hex() for name, value in arrived.scalars.items()} == {
        "loss": "nan",
        "tensor": "inf",
        "numpy": "-inf",
        "step_time": "inf",
        "lambda_max": "nan",
        "lr": "-inf",
    }
    assert arrived.block == values.tobytes()
    assert arrived.histograms == (histogram,)
    assert run.status().warnings == {}


def test_more_layers_than_the_protocol_allows_are_refused_at_once(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(ConfigurationError, match="20001 layers; at most 20000"):
        run.attach(StepInstrument(tuple(f"layer{i}" for i in range(20_001)), ("x",)))
    run.log({"loss": 1.0})
    assert [record.scalars["loss"] for record in kept(run)] == [1.0]


def test_outage_that_fills_the_disk_thins_with_a_warning(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create = Spool.create
    monkeypatch.setattr(
        Spool, "create", lambda root, hello, disk_limit: create(root, hello, disk_limit=100_000, file_bytes=10_000)
    )
    maintained = threading.Semaphore(0)
    maintain = Spool.maintain

    def maintain_and_notify(spool: Spool) -> None:
        maintain(spool)
        maintained.release()

    monkeypatch.setattr(Spool, "maintain", maintain_and_notify)
    run = make_run()
    run.attach(StepInstrument(tuple(f"l{i}" for i in range(100)), ("x",)))
    step = 0
    while run.status().thinned < 100:
        run.log({"loss": float(step)}, step=step)
        step += 1
        while run.status().queued_bytes > 95_000:
            assert maintained.acquire(timeout=20), "the recorder's thread makes room"
    records = kept(run)
    assert [record.scalars["loss"] for record in records] == list(range(step))
    assert sum("statistics_thinned" in record.scalars for record in records) >= 100
    assert sum("thinned" in message for message in warnings_of(caplog)) == 1


def test_step_defaults_to_the_last_and_one(make_run: MakeRun) -> None:
    run = make_run()
    run.log({})
    run.log({"a": 1})
    run.log({}, step=10)
    run.log({})
    records = kept(run)
    assert [record.step for record in records] == [0, 1, 10, 11]
    assert ["step_time" in record.scalars for record in records] == [False, True, True, True]


def test_step_may_go_backwards_and_repeat(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run()
    for step in (5, 6, 6, 3, 4):
        run.log({"loss": 1.0}, step=step)
    assert [record.step for record in kept(run)] == [5, 6, 6, 3, 4]
    assert not warnings_of(caplog)


def test_step_time_is_filled_in_and_the_users_value_wins(make_run: MakeRun) -> None:
    run = make_run()
    for step in (0, 10, 10, 5):
        run.log({}, step=step)
    run.log({"step_time": 77.0})
    records = kept(run)
    assert ["step_time" in record.scalars for record in records] == [False, True, False, False, True]
    assert 0 < records[1].scalars["step_time"] < 1
    assert records[4].scalars["step_time"] == 77.0


def test_loss_with_a_graph_keeps_its_graph(make_run: MakeRun) -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    loss = weight * 3
    run = make_run()
    run.log({"loss": loss})
    loss.backward()
    assert weight.grad is not None
    assert kept(run)[0].scalars["loss"] == 6.0


def test_threads_may_log_at_once(make_run: MakeRun, server: IngestServer) -> None:
    run = make_run(url=server.url)

    def work(name: str) -> None:
        for step in range(200):
            run.log({name: step}, step=step)

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run.flush(30)
    for i in range(4):
        values = [record.scalars[f"t{i}"] for record in server.all_records() if f"t{i}" in record.scalars]
        assert values == list(range(200))
