"""Measurements of instruments arrive, and values that are still being copied delay nothing."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client_sdk.errors import ConfigurationError
from client_sdk.measurement import Measurement
from client_sdk.protocol import Histograms
from client_sdk.recorder import MAX_STAGED
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
    assert (measured.scalars["loss"], measured.scalars["lr"]) == (2.0, 0.5), "the user's value wins"
    assert called == ["closure"]
    assert server.hellos[-1].layouts == (attachment.layout,)


def test_two_instruments_share_one_layout_and_each_change_creates_a_new_one(make_run: MakeRun) -> None:
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


def test_instruments_may_be_attached_often_but_not_without_limit(make_run: MakeRun) -> None:
    run = make_run()
    instrument = StepInstrument(("a",), ("x",))
    for _ in range(500):
        run.attach(instrument)
        run.detach(instrument)
    with pytest.raises(ConfigurationError, match="500 times"):
        run.attach(instrument)
    run.log({"loss": 1.0})
    assert len(kept(run)) == 1


def test_instrument_that_raises_costs_only_its_values(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run()
    run.attach(BrokenInstrument())
    for _ in range(3):
        run.log({"loss": 1.0})
    assert run.status().warnings == {"measure": 3}
    assert len(warnings_of(caplog)) == 1
    assert [record.scalars["loss"] for record in kept(run)] == [1.0, 1.0, 1.0]


def test_values_under_way_keep_their_order_and_delay_nothing(make_run: MakeRun) -> None:
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


def test_values_under_way_are_sent_without_another_log(make_run: MakeRun, server: IngestServer) -> None:
    run = make_run(url=server.url)
    slow = StepInstrument(("a",), ("x",), landed=False)
    run.attach(slow)
    run.log({}, step=1)
    server.wait_for(lambda: server.hellos)
    slow.pending[0].landed = True
    server.wait_for(lambda: server.steps() == [1])


def test_log_takes_no_lock_while_earlier_values_are_under_way(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_writing, may_write = threading.Event(), threading.Event()
    append = Spool.append

    def append_to_a_slow_disk(spool: Spool, payload: bytes, *, reserve: float = 1.0) -> bool:
        is_writing.set()
        assert may_write.wait(20)
        return append(spool, payload, reserve=reserve)

    monkeypatch.setattr(Spool, "append", append_to_a_slow_disk)
    run = make_run()
    run.attach(slow := StepInstrument(("a",), ("x",), landed=False))
    run.log({})
    slow.pending[0].landed = True
    assert is_writing.wait(20), "the recorder's thread holds every lock of the recorder now"
    training = threading.Thread(target=run.log, args=({},), daemon=True)
    training.start()
    training.join(10)
    assert not training.is_alive()
    assert run.status().logged == 2
    may_write.set()
    slow.pending[1].landed = True
    assert [record.step for record in kept(run)] == [0, 1]


def test_spool_is_maintained_while_the_queue_is_never_empty(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    is_draining, is_maintained = threading.Event(), threading.Event()
    monkeypatch.setattr(Spool, "maintain", lambda spool: is_maintained.set() if is_draining.is_set() else None)
    run = make_run()
    run.attach(instrument := StepInstrument(("a",), ("x",), landed=False))
    run.log({})
    first = instrument.pending[0]

    class Endless(Landed):
        """A measurement during whose check for readiness training logs the next one."""

        def ready(self) -> bool:
            if not is_maintained.is_set() and threading.current_thread().name == "spikewatch-recorder":
                is_draining.set()
                run.log({})
            return True

    monkeypatch.setattr(instrument, "measure", lambda step, metrics, closure: Endless(Measurement()))
    run.log({})
    first.landed = True
    was_maintained = is_maintained.wait(20)
    is_maintained.set()  # so that the queue may become empty
    run.finish()
    assert was_maintained


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

    monkeypatch.setattr("client_sdk.host.ScalarCopy", copy_to_host)
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
