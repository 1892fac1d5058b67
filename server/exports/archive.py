"""Export of a whole run as one ZIP file, in memory that does not grow with the run.

``run.json`` describes the run like the metadata of a Parquet export, and ``steps.parquet`` is that export.
``histograms.parquet`` has the rows of `histogram_rows`. ``events.jsonl`` and ``alerts.jsonl`` have one line for each
event and alert as the API returns them. Parquet files are stored uncompressed, so that an import reads them in place.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from client_sdk import answers
from server.exports import histogram_rows
from server.exports.arrow_files import ParquetFile, TableEncoder
from server.exports.columns import ExportColumns
from server.exports.encoder import encoded
from server.exports.exporter import Exporter, Format, Progress
from server.exports.sink import Sink
from server.storage.alerts import AlertStore
from server.storage.events import EventStore
from server.storage.measurements.histogram_history import HistogramHistory
from server.storage.measurements.steps import RunSteps, Selection

RUN, STEPS, HISTOGRAMS = "run.json", "steps.parquet", "histograms.parquet"
EVENTS, ALERTS = "events.jsonl", "alerts.jsonl"
LINES_BYTES = 256 * 1024
"""Size of the pieces in which lines are written."""


class Archiver:
    """Exporter of whole runs."""

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
        """Yield the bytes of the archive.

        Steps and histograms are those of ``steps``, events and alerts are read while the archive is written. Raises
        `RunDeletedError`, `CorruptDataError` and `DatabaseError`; the bytes before the error are an incomplete file.
        """
        sink = Sink()
        archive = zipfile.ZipFile(sink, "w")
        about = msgspec.json.format(msgspec.json.encode(ExportColumns.of(run, steps, Selection()).metadata()))
        members: tuple[tuple[str, AsyncIterator[bytes]], ...] = (
            (RUN, _single(about)),
            (STEPS, self._exporter.stream(run, steps, Format.PARQUET, progress=progress)),
            (HISTOGRAMS, self._histogram_table(run.id, steps)),
            (EVENTS, _lines(self._events.walk(run.id))),
            (ALERTS, _lines(self._alerts.walk(run.id))),
        )
        async with contextlib.AsyncExitStack() as stack:
            for _, pieces in members:
                stack.push_async_callback(pieces.aclose)  # type: ignore[attr-defined]  # each is a generator
            stack.callback(_close, archive)
            for name, pieces in members:
                entry = zipfile.ZipInfo(name)  # dated 1980, so that the same run produces the same file
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
        file = ParquetFile(histogram_rows.SCHEMA, histogram_rows.DICTIONARIES)
        encoder = TableEncoder(file, functools.partial(histogram_rows.rows, run_id))
        async with contextlib.aclosing(encoded(self._histograms.walk(steps), encoder)) as pieces:
            async for data in pieces:
                yield data


def _close(archive: zipfile.ZipFile) -> None:
    """Close an archive, complete or not."""
    with contextlib.suppress(ValueError, OSError):
        archive.close()


async def _single(data: bytes) -> AsyncGenerator[bytes, None]:
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
