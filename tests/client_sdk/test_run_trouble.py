"""Trouble in a run never reaches training: each cause is logged once and counted."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from client_sdk.protocol import Histograms
from client_sdk.spool.appender import Appender
from client_sdk.spool.spool import Spool
from tests.support.ingest_server import IngestServer
from tests.support.instruments import StepInstrument
from tests.support.logged import MakeRun, kept, warnings_of


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
def test_metrics_that_are_not_a_mapping(make_run: MakeRun, caplog: pytest.LogCaptureFixture, metrics: Any) -> None:
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


def test_object_that_raises_when_it_is_inspected(make_run: MakeRun) -> None:
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


def test_records_stay_in_memory_if_the_directory_cannot_be_created(
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


def test_disk_that_fails_during_the_run_is_reported_once(
    make_run: MakeRun, server: IngestServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("client_sdk.spool.file_supply.may_map", lambda directory: False)
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
def test_finish_reports_what_the_disk_has_and_what_is_lost(
    make_run: MakeRun, nobody: str, monkeypatch: pytest.MonkeyPatch, online: bool, recovers: bool
) -> None:
    run = make_run(**({"url": nobody} if online else {}))
    run.log({"loss": 1.0})
    append = Appender.append

    def append_to_a_full_disk(appender: Appender, end: int, payload: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Appender, "append", append_to_a_full_disk)
    for _ in range(20):
        run.log({"loss": 2.0})
    if recovers:
        monkeypatch.setattr(Appender, "append", append)
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


def test_unreachable_server_costs_only_a_warning(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
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


def test_second_process_that_logs_to_the_same_run_warns(make_run: MakeRun, server: IngestServer) -> None:
    first = make_run(url=server.url, run_id="shared")
    server.wait_for(lambda: len(server.hellos) == 1)
    second = make_run(url=server.url, run_id="shared")
    server.wait_for(lambda: len(server.hellos) == 2)
    assert "shared_run" in second.status().warnings
    first.finish()
    second.finish()
    third = make_run(url=server.url, run_id="shared")
    server.wait_for(lambda: len(server.hellos) == 3)
    assert "shared_run" not in third.status().warnings, "consecutive processes may share a run id"


def test_disabled_run_does_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(mode="disabled")
    run.attach(StepInstrument(("a",), ("x",)))
    run.log({"loss": "not inspected"})
    assert run.flush(0)
    run.finish()
    assert run.status().logged == 0
    assert not (tmp_path / "spool").exists()


def test_offline_run_is_not_acknowledged(make_run: MakeRun) -> None:
    run = make_run()
    assert run.flush(0), "nothing was logged, so that nothing is missing"
    run.log({})
    assert not run.flush(0)
