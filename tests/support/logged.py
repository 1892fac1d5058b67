"""Inspection of runs under test: their records, layouts and warnings."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

import pytest

from client_sdk.protocol import Alert, Layout, Record, decode_record
from client_sdk.run import Run
from client_sdk.spool.spool import Spool

MakeRun = Callable[..., Run]
"""Fixture that creates a run from the arguments of `Settings.resolve`."""


def kept(run: Run) -> list[Record]:
    """Finish an offline run and return the records in its spool."""
    records: list[Record] = []
    with _finished_spool(run) as spool:
        while payloads := spool.read(len(records), 1_000_000):
            records += map(decode_record, payloads)
    return records


def last_layout(run: Run) -> Layout:
    """Finish an offline run and return the last layout that it announced."""
    with _finished_spool(run) as spool:
        return spool.hello.layouts[-1]


@contextlib.contextmanager
def _finished_spool(run: Run) -> Iterator[Spool]:
    run.finish()
    (directory,) = (run.settings.directory).glob(f"{run.id}-*")
    spool = Spool.open(directory)
    try:
        yield spool
    finally:
        spool.release()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the captured messages of level WARNING and above."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def alert(number: int) -> Alert:
    """Return an open alert whose id and step are ``number``."""
    return Alert(
        id=str(number), run_id="r", kind="spike", level="watch", state="open", step=number, title="t", message="m"
    )
