"""Readers that disconnect in the middle of an export."""

from __future__ import annotations

import asyncio
import logging
import threading
from _thread import allocate_lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from server.api.exports import Download
from server.exports.arrow_files import GROUP_ROWS, ParquetFile
from server.exports.exporter import Format
from tests.support.server import RunningServer
from tests.support.writer import Writer, record


def test_readers_that_disconnect_cause_no_error_and_no_log_line(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello("run")
        for start in range(0, 4_000, 250):
            writer.commit(*(record(start + at, block=[[at, 1], [2, 3]]) for at in range(250)))
    for form in Format:
        for _ in range(6):
            with server.api() as api, api.stream("GET", "/runs/run/export", params={"format": form}) as answer:
                assert answer.status_code == 200
    with server.api() as api:
        whole = api.get("/runs/run/export", params={"keys": "loss"})
        assert pq.read_metadata(pa.BufferReader(whole.content)).num_rows == 4_000
    assert [item.getMessage() for item in caplog.records if item.levelno >= logging.WARNING] == []


async def test_a_download_ends_between_two_pieces_when_its_reader_disconnects() -> None:
    """A download that was cancelled within a piece would release a file that a thread is still writing."""
    left, noticed, steps = asyncio.Event(), asyncio.Event(), []

    async def stream() -> Any:
        try:
            for number in range(3):
                steps.append(f"piece {number}")
                if number == 1:
                    left.set()
                    await asyncio.to_thread(steps.append, "thread")
                    await noticed.wait()
                yield b"x"
        finally:
            steps.append("closed")

    async def receive() -> dict[str, Any]:
        await left.wait()
        noticed.set()
        return {"type": "http.disconnect"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await Download(stream())({"type": "http"}, receive, send)
    assert steps == ["piece 0", "piece 1", "thread", "closed"]
    assert sent == ["http.response.start", "http.response.body"]


def test_a_parquet_writer_is_released_after_the_thread_that_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = pa.schema([pa.field("n", pa.int64())])
    writing, waiting, go_on, order = threading.Event(), threading.Event(), threading.Event(), []

    class WatchedLock:
        """A lock that sets an event when a thread has to wait for it."""

        def __init__(self) -> None:
            self._lock = allocate_lock()

        def __enter__(self) -> None:
            if not self._lock.acquire(blocking=False):
                waiting.set()
                self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()

    with monkeypatch.context() as patched:
        patched.setattr("server.exports.arrow_files.threading.Lock", WatchedLock)
        stream = ParquetFile(schema, [])
    write = pq.ParquetWriter.write_table

    def slowly(writer: Any, *arguments: Any, **options: Any) -> None:
        writing.set()
        assert go_on.wait(20)
        write(writer, *arguments, **options)
        order.append("written")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", slowly)
    batch = pa.record_batch([pa.array(range(GROUP_ROWS))], schema=schema)
    adding = threading.Thread(target=stream.add, args=(batch,))

    def release() -> None:
        stream.close()
        order.append("closed")

    closing = threading.Thread(target=release)
    adding.start()
    assert writing.wait(20)
    closing.start()
    assert waiting.wait(20)
    assert order == []
    go_on.set()
    adding.join(20)
    closing.join(20)
    assert order == ["written", "closed"]
