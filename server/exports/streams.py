"""An export as a stream of bytes, in memory that does not grow with the run."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from enum import StrEnum
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv

from client_sdk import answers
from server.exports.columns import Plan
from server.exports.parquet import ParquetStream
from server.exports.sink import Sink
from server.storage.measurements.steps import RunSteps, Selection, StepChunk, StepReader

Progress = Callable[[int], None]
"""Told of the number of records after each chunk."""


class Format(StrEnum):
    PARQUET = "parquet"
    CSV = "csv"
    MSGPACK = "msgpack"
    ZIP = "zip"


MEDIA_TYPES = {
    Format.PARQUET: "application/vnd.apache.parquet",
    Format.CSV: "text/csv",
    Format.MSGPACK: "application/vnd.spikewatch.steps",
    Format.ZIP: "application/zip",
}


class _Encoder(Protocol):
    def add(self, chunk: StepChunk) -> bytes:
        """The bytes that are ready after this chunk, perhaps none."""

    def end(self) -> bytes:
        """The rest."""

    def close(self) -> None:
        """Let go of everything; also after an error."""


class ParquetEncoder:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._schema = plan.schema()
        self._stream = ParquetStream(self._schema, ["run"])

    def add(self, chunk: StepChunk) -> bytes:
        return self._stream.add(self._plan.rows(chunk, self._schema))

    def end(self) -> bytes:
        return self._stream.end()

    def close(self) -> None:
        self._stream.close()


class CsvEncoder:
    """Scalars, or the layers in long form. Empty: not logged, or not measured; NaN is ``nan``."""

    def __init__(self, plan: Plan, *, layers: bool) -> None:
        self._rows = plan.long_rows if layers else plan.scalar_rows
        fixed = plan.long_schema() if layers else pa.schema(list(plan.schema())[: 5 + len(plan.scalars)])
        self._schema = fixed.remove_metadata()
        self._sink = Sink()
        options = pa.csv.WriteOptions(quoting_style="needed", quoting_header="needed")
        self._writer = pa.csv.CSVWriter(pa.PythonFile(self._sink, mode="w"), self._schema, write_options=options)
        self._turn = threading.Lock()
        """As in `ParquetStream`."""

    def add(self, chunk: StepChunk) -> bytes:
        with self._turn:
            self._writer.write_batch(self._rows(chunk, self._schema))
            return self._sink.take()

    def end(self) -> bytes:
        with self._turn:
            self._writer.close()
            return self._sink.take()

    def close(self) -> None:
        with self._turn, contextlib.suppress(pa.ArrowException, OSError, ValueError):
            self._writer.close()


class FrameEncoder:
    """For `client_sdk.read`: each chunk is a little-endian uint32, the length, and a msgpack map; arrays are raw bytes.

    A map without keys ends the stream, so that one that broke off can be told from a whole one.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def add(self, chunk: StepChunk) -> bytes:
        columns = chunk.columns
        layouts = [
            {
                "rows": block.rows.astype("<i4").tobytes(),
                "layers": chunk.layouts[block.layout].layers,
                "statistics": {
                    name: np.ascontiguousarray(values, "<f4").tobytes()
                    for name, values in block.statistics.items()
                    if name in self._plan.statistics
                },
            }
            for block in columns.blocks
        ]
        return _frame(
            {
                "rank": chunk.rank,
                "attempt": chunk.attempt,
                "step": columns.steps.astype("<i8").tobytes(),
                "time": columns.times.astype("<f8").tobytes(),
                "scalars": {
                    name: [
                        np.flatnonzero(column.present).astype("<i4").tobytes(),
                        column.values.astype("<f8").tobytes(),
                    ]
                    for name, column in columns.scalars.items()
                },
                "blocks": layouts,
            }
        )

    def end(self) -> bytes:
        return _frame({})

    def close(self) -> None:
        """Nothing is open."""


def _frame(value: Mapping[str, Any]) -> bytes:
    body = msgspec.msgpack.encode(value)
    return len(body).to_bytes(4, "little") + body


class Exporter:
    def __init__(self, reader: StepReader) -> None:
        self._reader = reader

    async def begin(self, run_id: str) -> RunSteps:
        """What is to be exported; the rest of the run may come later."""
        return await self._reader.begin(run_id)

    async def stream(
        self,
        run: answers.RunSummary,
        steps: RunSteps,
        form: Format,
        *,
        selection: Selection | None = None,
        layers: bool = False,
        progress: Progress | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """The steps as Parquet, CSV or frames, piece by piece. ``layers``: of a CSV, the layers instead of the scalars.

        Raises `RunDeletedError`, `CorruptDataError` and `DatabaseError`; what has come by then is no whole file.
        """
        chosen = Selection() if selection is None else selection
        if form is Format.CSV:
            chosen = Selection(scalars=() if layers else chosen.scalars, statistics=chosen.statistics if layers else ())
        plan = Plan.of(run, steps, chosen)
        encoder: _Encoder
        if form is Format.PARQUET:
            encoder = ParquetEncoder(plan)
        elif form is Format.CSV:
            encoder = CsvEncoder(plan, layers=layers)
        else:
            encoder = FrameEncoder(plan)
        try:
            async for chunk in self._reader.walk(steps, chosen):
                piece = await asyncio.to_thread(encoder.add, chunk)
                if piece:
                    yield piece
                if progress is not None:
                    progress(len(chunk.columns.steps))
            yield await asyncio.to_thread(encoder.end)
        finally:
            encoder.close()
