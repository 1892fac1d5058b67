"""Runs under test: how they are made, what they kept, what they said."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from client_sdk.protocol import Alert, Record, decode_record
from client_sdk.run import Run
from client_sdk.spool.spool import Spool

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
