"""Export of the steps of a run as a stream of bytes: Parquet, CSV, or frames for the Python read API."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from enum import StrEnum
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from client_sdk import answers
from server.exports.arrow_files import CsvFile, ParquetFile, TableEncoder
from server.exports.columns import FIXED, ExportColumns
from server.exports.encoder import Encoder, encoded
from server.storage.measurements.steps import RunSteps, Selection, StepChunk, StepReader

Progress = Callable[[int], None]
"""Function that receives the number of records of each chunk after its export."""


class Format(StrEnum):
    """File formats of an export. ZIP is the archive of `server.exports.archive`."""

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


class FrameEncoder:
    """Encoder for `client_sdk.read`: a little-endian uint32 with the length, then a msgpack map; arrays are raw bytes.

    An empty map ends the stream, so that a reader can tell a complete stream from one that was cut off.
    """

    def __init__(self, columns: ExportColumns) -> None:
        self._columns = columns

    def add(self, piece: StepChunk) -> bytes:
        """Return the frame of a chunk."""
        columns = piece.columns
        blocks = [
            {
                "rows": block.rows.astype("<i4").tobytes(),
                "layers": piece.layouts[block.layout].layers,
                "statistics": {
                    name: np.ascontiguousarray(values, "<f4").tobytes()
                    for name, values in block.statistics.items()
                    if name in self._columns.statistics
                },
            }
            for block in columns.blocks
        ]
        return _frame(
            {
                "rank": piece.rank,
                "attempt": piece.attempt,
                "step": columns.steps.astype("<i8").tobytes(),
                "time": columns.times.astype("<f8").tobytes(),
                "scalars": {
                    name: [
                        np.flatnonzero(column.present).astype("<i4").tobytes(),
                        column.values.astype("<f8").tobytes(),
                    ]
                    for name, column in columns.scalars.items()
                },
                "blocks": blocks,
            }
        )

    def end(self) -> bytes:
        """Return the frame that ends the stream."""
        return _frame({})

    def close(self) -> None:
        """Release nothing, because frames need no resources."""


def _frame(value: Mapping[str, Any]) -> bytes:
    body = msgspec.msgpack.encode(value)
    return len(body).to_bytes(4, "little") + body


class Exporter:
    """Exporter of the steps of runs."""

    def __init__(self, reader: StepReader) -> None:
        self._reader = reader

    async def begin(self, run_id: str) -> RunSteps:
        """Return the steps that an export contains: those that are stored now."""
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
        """Yield the bytes of a Parquet file, a CSV file or frames.

        With ``layers``, a CSV file contains the layers instead of the scalars. Raises `RunDeletedError`,
        `CorruptDataError` and `DatabaseError`; the bytes before the error are an incomplete file.
        """
        chosen = Selection() if selection is None else selection
        if form is Format.CSV:
            chosen = Selection(scalars=() if layers else chosen.scalars, statistics=chosen.statistics if layers else ())
        encoder = _encoder(ExportColumns.of(run, steps, chosen), form, layers=layers)

        def report(chunk: StepChunk) -> None:
            if progress is not None:
                progress(len(chunk.columns.steps))

        async with contextlib.aclosing(encoded(self._reader.walk(steps, chosen), encoder, report)) as pieces:
            async for data in pieces:
                yield data


def _encoder(columns: ExportColumns, form: Format, *, layers: bool) -> Encoder[StepChunk]:
    if form is Format.MSGPACK:
        return FrameEncoder(columns)
    if form is Format.PARQUET:
        schema = columns.schema()
        return TableEncoder(ParquetFile(schema, ["run"]), lambda chunk: columns.rows(chunk, schema))
    if layers:
        schema = columns.long_schema().remove_metadata()
        return TableEncoder(CsvFile(schema), lambda chunk: columns.long_rows(chunk, schema))
    schema = pa.schema(list(columns.schema())[: len(FIXED) + len(columns.scalars)])
    return TableEncoder(CsvFile(schema), lambda chunk: columns.scalar_rows(chunk, schema))
