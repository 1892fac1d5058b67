"""A whole run as one ZIP file, in memory that does not grow with the run.

``run.json``: the run, as it is in the metadata of every Parquet export. ``steps.parquet``: that export.
``histograms.parquet``: `histogram_rows`. ``events.jsonl`` and ``alerts.jsonl``: a line each, as the API shows them.
Parquet is stored as it is, so that an import reads it where it lies.
"""

from __future__ import annotations

import asyncio
import contextlib
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from client_sdk import answers
from server.exports import histogram_rows
from server.exports.columns import Plan
from server.exports.parquet import ParquetStream
from server.exports.sink import Sink
from server.exports.streams import Exporter, Format, Progress
from server.storage.alerts import AlertStore
from server.storage.events import EventStore
from server.storage.measurements.histogram_history import HistogramHistory
from server.storage.measurements.steps import RunSteps, Selection

RUN, STEPS, HISTOGRAMS = "run.json", "steps.parquet", "histograms.parquet"
EVENTS, ALERTS = "events.jsonl", "alerts.jsonl"
LINES_BYTES = 256 * 1024


class Archiver:
    def __init__(
        self, exporter: Exporter, histograms: HistogramHistory, events: EventStore, alerts: AlertStore
    ) -> None:
        self._exporter = exporter
        self._histograms = histograms
        self._events = events
        self._alerts = alerts

    async def stream(
        self, run: answers.RunSummary, steps: RunSteps, *, progress: Progress | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The file, piece by piece: steps and histograms as of when the walk began, events and alerts as of now.

        Raises `RunDeletedError`, `CorruptDataError` and `DatabaseError`; what has come by then is no whole file.
        """
        sink = Sink()
        archive = zipfile.ZipFile(sink, "w")
        about = msgspec.json.format(msgspec.json.encode(Plan.of(run, steps, Selection()).metadata()))
        members: tuple[tuple[str, AsyncIterator[bytes]], ...] = (
            (RUN, _whole(about)),
            (STEPS, self._exporter.stream(run, steps, Format.PARQUET, progress=progress)),
            (HISTOGRAMS, self._histogram_table(run.id, steps)),
            (EVENTS, _lines(self._events.walk(run.id))),
            (ALERTS, _lines(self._alerts.walk(run.id))),
        )
        async with contextlib.AsyncExitStack() as stack:
            for _, pieces in members:
                stack.push_async_callback(pieces.aclose)  # type: ignore[attr-defined]  # generators, all of them
            stack.callback(_abandon, archive)
            for name, pieces in members:
                entry = zipfile.ZipInfo(name)  # of 1980: the same run makes the same file
                is_packed = name.endswith(".parquet")
                entry.compress_type = zipfile.ZIP_STORED if is_packed else zipfile.ZIP_DEFLATED
                with archive.open(entry, "w", force_zip64=True) as member:
                    async for piece in pieces:
                        await asyncio.to_thread(member.write, piece)
                        if taken := sink.take():
                            yield taken
            archive.close()
            yield sink.take()

    async def _histogram_table(self, run_id: str, steps: RunSteps) -> AsyncGenerator[bytes, None]:
        table = ParquetStream(histogram_rows.SCHEMA, histogram_rows.DICTIONARIES)
        try:
            async with contextlib.aclosing(self._histograms.walk(steps)) as pieces:
                async for piece in pieces:
                    rows = await asyncio.to_thread(histogram_rows.rows, run_id, piece)
                    if ready := await asyncio.to_thread(table.add, rows):
                        yield ready
            yield await asyncio.to_thread(table.end)
        finally:
            table.close()


def _abandon(archive: zipfile.ZipFile) -> None:
    """Let go of it, whole or not."""
    with contextlib.suppress(ValueError, OSError):
        archive.close()


async def _whole(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


async def _lines(found: AsyncGenerator[answers.ArchivedEvent | answers.Alert, None]) -> AsyncGenerator[bytes, None]:
    lines, size = [], 0
    async with contextlib.aclosing(found) as items:
        async for item in items:
            line = msgspec.json.encode(item) + b"\n"
            lines.append(line)
            size += len(line)
            if size >= LINES_BYTES:
                yield b"".join(lines)
                lines, size = [], 0
    yield b"".join(lines)
