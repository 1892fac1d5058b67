"""Runs under test: their type, the records that they keep, and the warnings that they log."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from client_sdk.protocol import Alert, Record, decode_record
from client_sdk.run import Run
from client_sdk.spool.spool import Spool
from client_sdk.spool.spool_file import HEADER, SUFFIX, frames

MakeRun = Callable[..., Run]


def kept(run: Run) -> list[Record]:
    """Finish an offline run and return the records of its spool."""
    run.finish()
    (directory,) = (run.settings.directory).glob(f"{run.id}-*")
    spool = Spool.open(directory)
    records: list[Record] = []
    while payloads := spool.read(len(records), 1_000_000):
        records += map(decode_record, payloads)
    spool.release()
    return records


def written(run: Run) -> list[Record]:
    """Return the records that an open run has written to its spool so far."""
    records: list[Record] = []
    for path in sorted(run.settings.directory.glob(f"{run.id}-*/*{SUFFIX}")):
        data = path.read_bytes()
        records += [decode_record(data[start:stop]) for start, stop in frames(data, HEADER.size)]
    return records


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages of all warnings and errors that were logged."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def alert(number: int) -> Alert:
    """Return an open alert whose id and step are ``number``."""
    return Alert(
        id=str(number), run_id="r", kind="spike", level="watch", state="open", step=number, title="t", message="m"
    )
