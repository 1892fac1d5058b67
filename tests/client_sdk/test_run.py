"""A run: what `log` is given arrives, and nothing that goes wrong reaches training."""

from __future__ import annotations

import errno
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client_sdk import run as run_module
from client_sdk.errors import ConfigurationError
from client_sdk.measurement import Measurement
from client_sdk.protocol import Alert, Histograms, Record, decode_record
from client_sdk.recorder import MAX_STAGED, Staged
from client_sdk.run import Run
from client_sdk.spool import Spool
from tests.support.ingest_server import IngestServer
from tests.support.instruments import BrokenInstrument, Landed, StepInstrument

MakeRun = Callable[..., Run]


def kept(run: Run) -> list[Record]:
    """Finish an offline run and read its spool."""
    run.finish()
    (directory,) = (run.settings.directory).glob(f"{run.id}-*")
    spool = Spool.open(directory)
    records: list[Record] = []
    while payloads := spool.read(len(records), 1_000_000):
        records += map(decode_record, payloads)
    spool.release()
    return records


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def alert(number: int) -> Alert:
    return Alert(
        id=str(number), run_id="r", kind="spike", level="watch", state="open", step=number, title="t", message="m"
    )


# -- what arrives --


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


def test_nan_and_infinity_arrive_in_every_place(make_run: MakeRun, server: IngestServer) -> None:
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


def test_more_layers_than_the_protocol_takes_are_refused_at_once(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(ConfigurationError, match="20001 layers; at most 20000"):
        run.attach(StepInstrument(tuple(f"layer{i}" for i in range(20_001)), ("x",)))
    run.log({"loss": 1.0})
    assert [record.scalars["loss"] for record in kept(run)] == [1.0]


def test_outage_that_fills_the_disk_thins_and_says_so(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create = Spool.create
    monkeypatch.setattr(
        Spool, "create", lambda root, hello, disk_limit: create(root, hello, disk_limit=100_000, segment_bytes=10_000)
    )
    run = make_run()
    run.attach(StepInstrument(tuple(f"l{i}" for i in range(100)), ("x",)))
    step = 0
    deadline = time.monotonic() + 30
    while run.status().thinned < 100 and time.monotonic() < deadline:
        run.log({"loss": float(step)}, step=step)
        step += 1
        while run.status().queued_bytes > 95_000 and time.monotonic() < deadline:
            time.sleep(0)  # until the recorder's thread has made room
    assert run.status().thinned >= 100
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


def test_step_time_is_filled_in_per_step_and_the_users_wins(make_run: MakeRun) -> None:
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


# -- instruments --


def test_instrument_fills_block_scalars_and_histograms(make_run: MakeRun, server: IngestServer) -> None:
    histogram = Histograms(which="ratio", low=bytes(8), high=bytes(8), counts=bytes(2 * 64 * 4))
    run = make_run(url=server.url)
    run.log({"loss": 1.0})
    attachment = run.attach(
        StepInstrument(("a", "b"), ("x", "y"), scalars={"lr": 0.5, "loss": 9.0}, histograms=(histogram,))
    )
    assert attachment.layout.id == 0
    called: list[str] = []
    run.log({"loss": 2.0}, step=7, closure=lambda: called.append("closure"))
    attachment.remove()
    attachment.remove()
    run.log({"loss": 3.0})
    assert run.flush(20)
    before, measured, after = server.all_records()
    assert (before.block, before.layout, after.block, after.layout) == (None, None, None, None)
    assert measured.layout == 0
    assert measured.block == np.full(4, 7, "<f4").tobytes()
    assert measured.histograms == (histogram,)
    assert (measured.scalars["loss"], measured.scalars["lr"]) == (2.0, 0.5), "what the user says wins"
    assert called == ["closure"]
    assert server.hellos[-1].layouts == (attachment.layout,)


def test_two_instruments_make_one_layout_and_each_change_a_new_one(make_run: MakeRun) -> None:
    run = make_run()
    first = run.attach(StepInstrument(("a",), ("x",)))
    second = run.attach(StepInstrument(("a",), ("x",)))
    run.log({})
    first.remove()
    run.log({})
    second.remove()
    records = kept(run)
    assert second.layout.layers == ("a", "a (2)")
    assert [record.layout for record in records] == [1, 2]
    assert [len(record.block or b"") for record in records] == [8, 4]


def test_instruments_may_come_and_go_often_but_not_for_ever(make_run: MakeRun) -> None:
    run = make_run()
    instrument = StepInstrument(("a",), ("x",))
    for _ in range(500):
        run.attach(instrument)
        run.detach(instrument)
    with pytest.raises(ConfigurationError, match="500 times"):
        run.attach(instrument)
    run.log({"loss": 1.0})
    assert len(kept(run)) == 1


def test_instrument_that_raises_costs_its_values_only(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run()
    run.attach(BrokenInstrument())
    for _ in range(3):
        run.log({"loss": 1.0})
    assert run.status().warnings == {"measure": 3}
    assert len(warnings_of(caplog)) == 1
    assert [record.scalars["loss"] for record in kept(run)] == [1.0, 1.0, 1.0]


def test_values_under_way_keep_their_order_and_hold_nobody_up(make_run: MakeRun) -> None:
    run = make_run()
    slow = StepInstrument(("a",), ("x",), landed=False)
    attachment = run.attach(slow)
    run.log({}, step=1)
    run.log({}, step=2)
    attachment.remove()
    run.log({}, step=3)
    assert run.status().logged == 3
    slow.pending[1].landed = True
    run.log({}, step=4)
    slow.pending[0].landed = True
    records = kept(run)
    assert [record.step for record in records] == [1, 2, 3, 4]
    assert [record.block is not None for record in records] == [True, True, False, False]


def test_sender_moves_values_on_when_training_does_not(make_run: MakeRun, server: IngestServer) -> None:
    run = make_run(url=server.url)
    slow = StepInstrument(("a",), ("x",), landed=False)
    run.attach(slow)
    run.log({}, step=1)
    server.wait_for(lambda: server.hellos)
    slow.pending[0].landed = True
    server.wait_for(lambda: server.steps() == [1])


def test_values_under_way_wait_for_no_lock(make_run: MakeRun) -> None:
    run = make_run()
    run.attach(StepInstrument(("a",), ("x",), landed=False))
    recorder = run._recorder
    assert recorder is not None
    with recorder._append_lock, recorder._drain_lock:  # as while a disk of the network takes its time
        training = threading.Thread(target=run.log, args=({},), daemon=True)
        training.start()
        training.join(10)
        assert recorder.waiting == 1
    run.finish(timeout=0.05)


def test_line_that_is_never_empty_does_not_keep_the_spool_from_being_tended(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    tended = threading.Event()
    monkeypatch.setattr(Spool, "tend", lambda spool: tended.set())
    run = make_run()
    run.attach(instrument := StepInstrument(("a",), ("x",), landed=False))

    class Endless(Landed):
        """While it is looked at, training logs the next one."""

        def ready(self) -> bool:
            if not tended.is_set() and threading.current_thread().name == "spikewatch-recorder":
                run.log({})
            return True

    monkeypatch.setattr(instrument, "measure", lambda step, metrics, closure: Endless(Measurement()))
    assert run._recorder is not None
    run._recorder._line.append(Staged(0, 0.0, {}, (), None, run._panel, [(0, Endless(Measurement()))]))
    assert tended.wait(20)
    run.finish()


def test_device_that_never_answers_is_bounded_and_given_up(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run()
    run.attach(StepInstrument(("a",), ("x",), landed=False))
    for _ in range(MAX_STAGED + 5):
        run.log({})
    assert run.status().dropped == 5
    run.finish(timeout=0.05)
    assert run.status().dropped == MAX_STAGED + 5
    assert len(warnings_of(caplog)) == 2


class _Copy:
    """A copy from a device as `client_sdk.stats.copy_to_host` makes it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.landed = False

    def ready(self) -> bool:
        return self.landed

    def values(self) -> Sequence[float]:
        return [float(i) for i in range(self.count)]


def test_tensors_on_a_device_are_copied_together_and_awaited(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[_Copy] = []

    def copy_to_host(tensors: list[Any]) -> _Copy:
        copies.append(_Copy(len(tensors)))
        return copies[-1]

    monkeypatch.setattr(run_module, "_copy_to_host", copy_to_host)
    run = make_run()
    tensor = torch.zeros((), device="meta")
    run.log({"loss": tensor, "host": 5.0, "accuracy": tensor})
    run.log({"loss": 2.0})
    (copy,) = copies
    assert run.status().logged == 2
    copy.landed = True
    first, second = kept(run)
    assert first.scalars == {"host": 5.0, "loss": 0.0, "accuracy": 1.0}
    assert second.scalars["loss"] == 2.0


# -- bad input: training goes on, one warning a cause, counted --


@pytest.mark.parametrize("step", [-1, 2**63, 1.5, "3", [1], float("nan")], ids=repr)
def test_bad_step_drops_the_record(make_run: MakeRun, caplog: pytest.LogCaptureFixture, step: Any) -> None:
    run = make_run()
    run.log({"loss": 1.0}, step=step)
    run.log({"loss": 1.0}, step=step)
    run.log({"loss": 2.0}, step=4)
    assert [record.step for record in kept(run)] == [4]
    assert (run.status().dropped, run.status().warnings) == (2, {"bad_step": 2})
    assert len(warnings_of(caplog)) == 1


def test_there_is_no_step_after_the_last_one(make_run: MakeRun) -> None:
    run = make_run()
    run.log({}, step=2**63 - 1)
    run.log({})
    assert [record.step for record in kept(run)] == [2**63 - 1]
    assert run.status().warnings == {"bad_step": 1}


@pytest.mark.parametrize("metrics", [None, 3, "loss", [("loss", 1.0)]], ids=repr)
def test_metrics_that_are_no_mapping(make_run: MakeRun, caplog: pytest.LogCaptureFixture, metrics: Any) -> None:
    run = make_run()
    run.log(metrics)
    run.log(metrics)
    assert run.status().warnings == {"bad_metrics": 2}
    assert len(warnings_of(caplog)) == 1


def test_bad_values_and_names_leave_the_others(make_run: MakeRun) -> None:
    run = make_run()
    run.log({"text": "high", "x" * 10_000: 1.0, "loss": 1.0, "vector": torch.zeros(3)})
    assert kept(run)[0].scalars == {"loss": 1.0}
    assert run.status().warnings == {"bad_metric": 2, "bad_name": 1}


def test_more_scalars_than_the_protocol_takes(make_run: MakeRun) -> None:
    run = make_run()
    run.log({f"m{i}": i for i in range(1500)})
    assert len(kept(run)[0].scalars) == 1000
    assert run.status().warnings == {"too_many_scalars": 1}


def test_object_that_raises_when_looked_at(make_run: MakeRun) -> None:
    class Hostile:
        def __float__(self) -> float:
            raise RuntimeError("no")

        def __getattr__(self, name: str) -> Any:
            raise ZeroDivisionError

    run = make_run()
    run.log({"loss": Hostile()})
    run.log({"loss": 1.0})
    assert [record.scalars["loss"] for record in kept(run)] == [1.0]
    assert run.status().dropped == 1


def test_log_after_finish_is_counted(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run()
    run.log({"loss": 1.0})
    run.finish()
    run.finish()
    run.log({"loss": 2.0})
    run.log({"loss": 3.0})
    assert (run.status().state, run.status().logged, run.status().dropped) == ("finished", 1, 2)
    assert len(warnings_of(caplog)) == 1


def test_record_larger_than_a_frame_is_split(make_run: MakeRun, server: IngestServer) -> None:
    layers = 16_000
    edges = bytes(4 * layers)
    several = tuple(
        Histograms(which=which, low=edges, high=edges, counts=bytes(4 * 64 * layers)) for which in ("update", "ratio")
    )
    run = make_run(url=server.url)
    names = tuple(f"layer{i}" for i in range(layers))
    run.attach(StepInstrument(names, tuple(f"s{i}" for i in range(60)), histograms=several))
    run.log({"loss": 1.0}, step=3)
    assert run.flush(60)
    first, *others = server.all_records()
    assert (first.step, first.scalars["loss"], len(first.block or b"")) == (3, 1.0, 4 * 60 * layers)
    assert [record.histograms[0].which for record in others] == ["update", "ratio"]
    assert run.status().dropped == 0


def test_full_spool_keeps_scalars_and_counts(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    create = Spool.create
    monkeypatch.setattr(Spool, "create", lambda root, hello, disk_limit: create(root, hello, disk_limit=20_000))
    run = make_run()
    run.attach(StepInstrument(tuple(f"l{i}" for i in range(100)), ("x",)))
    for _ in range(60):
        run.log({"loss": 1.0})
    dropped = run.status().dropped
    records = kept(run)
    assert 0 < dropped < 60
    assert [record.block is None for record in records].count(True) >= min(dropped, 15)
    assert run.status().warnings["spool_full"] == dropped


def test_directory_that_cannot_be_made_degrades_to_memory(
    make_run: MakeRun, server: IngestServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    run = make_run(url=server.url, directory=tmp_path / "file")
    for step in range(50):
        run.log({"loss": 1.0}, step=step)
    assert run.flush(20)
    assert server.steps() == list(range(50))
    assert len(warnings_of(caplog)) == 1
    assert "SPIKEWATCH_DIR" in caplog.text


def test_disk_that_fails_in_mid_run_is_said_once(
    make_run: MakeRun, server: IngestServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("client_sdk.file_supply.may_map", lambda directory: False)
    run = make_run(url=server.url)
    run.log({"loss": 1.0})

    def pwritev(descriptor: int, parts: object, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", pwritev)
    for _ in range(20):
        run.log({"loss": 2.0})
    assert run.flush(20)
    assert server.steps() == list(range(21))
    run.finish()
    assert len(warnings_of(caplog)) == 1
    assert "No space left" in caplog.text


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("recovers", [True, False])
def test_end_of_a_run_says_what_the_disk_has_and_what_is_lost(
    make_run: MakeRun, nobody: str, monkeypatch: pytest.MonkeyPatch, online: bool, recovers: bool
) -> None:
    run = make_run(**({"url": nobody} if online else {}))
    run.log({"loss": 1.0})
    append = Spool._append_to_disk

    def full(spool: Spool, seq: int, payload: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Spool, "_append_to_disk", full)
    for _ in range(20):
        run.log({"loss": 2.0})
    if recovers:
        monkeypatch.setattr(Spool, "_append_to_disk", append)
    run.finish(timeout=0.1)
    status = run.status()
    assert ("unsent" in status.warnings) is online
    assert ("lost_with_process" in status.warnings) is not recovers
    if not recovers:
        assert (status.last_error or "").startswith("20 records could not be sent and are lost")
    elif online:
        assert (status.last_error or "").startswith("21 records could not be sent within 0.1 s. They are in")
    (directory,) = run.settings.directory.iterdir()
    spool = Spool.open(directory)
    assert spool.last_seq == (21 if recovers else 1)
    spool.release()


def test_server_that_is_not_there_costs_nothing_but_a_warning(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    server = IngestServer()
    server.start()
    server.stop()
    run = make_run(url=server.url)
    for step in range(100):
        run.log({"loss": 1.0}, step=step)
    assert not run.flush(0.3)
    assert not run.status().connected
    run.finish(timeout=0.3)
    assert run.status().acknowledged == 0
    unreachable, unsent = warnings_of(caplog)
    assert "spikewatch up" in unreachable
    assert "100 records" in unsent
    assert "python -m client_sdk sync" in unsent
    (directory,) = run.settings.directory.iterdir()
    spool = Spool.open(directory)
    assert spool.last_seq == 100
    spool.release()


def test_finish_does_not_wait_for_a_server_that_refuses(make_run: MakeRun) -> None:
    with IngestServer(token="right") as server:
        run = make_run(url=server.url, token="wrong")
        run.log({"loss": 1.0})
        end = threading.Thread(target=run.finish, args=(50.0,), daemon=True)
        end.start()
        end.join(20)
        assert not end.is_alive()
        assert (run.status().last_error or "").startswith("1 records could not be sent to a server that refuses them")


def test_two_processes_that_log_to_one_run_are_told(make_run: MakeRun, server: IngestServer) -> None:
    first = make_run(url=server.url, run_id="shared")
    server.wait_for(lambda: len(server.hellos) == 1)
    second = make_run(url=server.url, run_id="shared")
    server.wait_for(lambda: len(server.hellos) == 2)
    assert "shared_run" in second.status().warnings
    first.finish()
    second.finish()
    third = make_run(url=server.url, run_id="shared")
    server.wait_for(lambda: len(server.hellos) == 3)
    assert "shared_run" not in third.status().warnings, "one after the other is what run_id= is for"


def test_disabled_run_does_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(mode="disabled")
    run.attach(StepInstrument(("a",), ("x",)))
    run.log({"loss": "not even looked at"})
    assert run.flush(0)
    run.finish()
    assert run.status().logged == 0
    assert not (tmp_path / "spool").exists()


def test_offline_run_is_not_acknowledged(make_run: MakeRun) -> None:
    run = make_run()
    assert run.flush(0), "nothing was logged, so nothing is missing"
    run.log({})
    assert not run.flush(0)


# -- alerts --


def test_alerts_reach_the_training_thread_inside_the_next_log(make_run: MakeRun, server: IngestServer) -> None:
    run = make_run(url=server.url)
    received: list[tuple[str, int]] = []
    run.on_alert(lambda one: received.append((one.id, threading.get_ident())))
    run.log({})
    assert run.flush(20)
    server.push(alert(1))
    server.push(alert(2))
    deadline = time.monotonic() + 20
    while len(received) < 2 and time.monotonic() < deadline:
        run.log({})
        run.flush(20)
    assert received == [("1", threading.get_ident()), ("2", threading.get_ident())]


def test_callback_that_raises_is_said_once_and_the_others_are_called(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run()
    received: list[str] = []

    def broken(one: Alert) -> None:
        raise RuntimeError("callback")

    run.on_alert(broken)
    run.on_alert(lambda one: received.append(one.id))
    run.on_alert(3)  # type: ignore[arg-type]
    for number in range(3):
        run._inbox.deliver(alert(number))
        run.log({})
    assert received == ["0", "1", "2"]
    (cause,) = (cause for cause in run.status().warnings if cause != "bad_callback")
    assert cause.startswith("callback:")
    assert cause.endswith("broken:RuntimeError")
    assert run.status().warnings == {"bad_callback": 1, cause: 3}
    assert len(warnings_of(caplog)) == 2


def test_flood_of_alerts_drops_the_oldest(make_run: MakeRun) -> None:
    run = make_run()
    received: list[str] = []
    run.on_alert(lambda one: received.append(one.id))
    for number in range(300):
        run._inbox.deliver(alert(number))
    run.log({})
    assert received == [str(number) for number in range(300 - 256, 300)]
    assert run.status().warnings == {"alerts_dropped": 300 - 256}


def test_a_removed_callback_hears_nothing_more(make_run: MakeRun) -> None:
    run = make_run()
    received: list[str] = []

    def callback(one: Alert) -> None:
        received.append(one.id)

    run.on_alert(callback)
    run._inbox.deliver(alert(1))
    run.log({})
    run.off_alert(callback)
    run._inbox.deliver(alert(2))
    run.log({})
    run.off_alert(callback)
    assert received == ["1"]
    assert run.status().warnings == {"bad_callback": 1}


def test_a_slow_callback_is_measured_and_said_and_is_no_slow_step(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter(range(0, 10_000, 3))  # each look at the clock is three seconds later
    run = make_run()
    monkeypatch.setattr(run._inbox, "_clock", lambda: float(next(clock)))
    run.on_alert(lambda one: None)
    run.log({}, step=0)
    run._inbox.deliver(alert(1))
    run.log({}, step=1)
    assert run.status().callback_seconds == 9.0
    assert "took 3.0 s" in caplog.text
    # The nine seconds passed on no real clock, so that what is left of the step is less than nothing.
    assert kept(run)[1].scalars["step_time"] < 0.0


def test_a_callback_may_log(make_run: MakeRun) -> None:
    run = make_run()
    run.on_alert(lambda one: run.log({"alerts": 1.0}))
    for number in range(2):
        run._inbox.deliver(alert(number))
    run.log({"loss": 1.0})
    names = [sorted(record.scalars.keys() - {"step_time"}) for record in kept(run)]
    assert names == [["alerts"], ["alerts"], ["loss"]]


# -- threads --


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
