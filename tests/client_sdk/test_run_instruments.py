"""What instruments measure arrives, and values under way hold nobody up."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client_sdk import run as run_module
from client_sdk.errors import ConfigurationError
from client_sdk.measurement import Measurement
from client_sdk.protocol import Histograms
from client_sdk.recorder import MAX_STAGED, Staged
from client_sdk.spool.spool import Spool
from tests.support.ingest_server import IngestServer
from tests.support.instruments import BrokenInstrument, Landed, StepInstrument
from tests.support.logged import MakeRun, kept, warnings_of


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
    maintained = threading.Event()
    monkeypatch.setattr(Spool, "maintain", lambda spool: maintained.set())
    run = make_run()
    run.attach(instrument := StepInstrument(("a",), ("x",), landed=False))

    class Endless(Landed):
        """While it is looked at, training logs the next one."""

        def ready(self) -> bool:
            if not maintained.is_set() and threading.current_thread().name == "spikewatch-recorder":
                run.log({})
            return True

    monkeypatch.setattr(instrument, "measure", lambda step, metrics, closure: Endless(Measurement()))
    assert run._recorder is not None
    run._recorder._line.append(Staged(0, 0.0, {}, (), None, run._panel, [(0, Endless(Measurement()))]))
    assert maintained.wait(20)
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
    """A copy from a device like `client_sdk.host.ScalarCopy`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.landed = False

    def ready(self) -> bool:
        return self.landed

    def array(self) -> NDArray[np.float64]:
        return np.arange(self.count, dtype=np.float64)


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
