"""Arrow batches as the bytes of a Parquet or CSV file, written piece by piece."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from server.exports.sink import Sink

T = TypeVar("T")

GROUP_BYTES = 8 * 1024 * 1024
"""Size at which a row group is written."""
GROUP_ROWS = 65_536
"""Number of rows at which a row group is written, even if it is smaller than `GROUP_BYTES`."""


class _ArrowFile:
    """File that threads write one after another. An event loop may close it while a thread is writing."""

    def __init__(self, sink: Sink, writer: Any) -> None:
        self._sink = sink
        self._writer = writer
        self._writing = threading.Lock()
        """Lock that keeps `close` waiting for a thread that is still writing, for example after a cancellation."""

    def close(self) -> None:
        """Release the writer, also after an error."""
        with self._writing, contextlib.suppress(pa.ArrowException, OSError, ValueError):
            self._writer.close()


class ParquetFile(_ArrowFile):
    """Parquet file that is written one row group at a time."""

    def __init__(self, schema: pa.Schema, dictionaries: Sequence[str]) -> None:
        """``dictionaries`` names the columns with few different texts."""
        self._schema = schema
        sink = Sink()
        writer = pa.parquet.ParquetWriter(
            pa.PythonFile(sink, mode="w"),
            schema,
            compression="zstd",
            use_dictionary=list(dictionaries),
            store_schema=True,
        )
        super().__init__(sink, writer)
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = self._rows = 0

    def add(self, batch: pa.RecordBatch) -> bytes:
        """Add rows, and return the bytes that are ready, perhaps none."""
        with self._writing:
            self._waiting.append(batch)
            self._bytes += batch.nbytes
            self._rows += batch.num_rows
            if self._bytes >= GROUP_BYTES or self._rows >= GROUP_ROWS:
                self._write_group()
            return self._sink.take()

    def end(self) -> bytes:
        """Write the last row group, and return the remaining bytes of the file."""
        with self._writing:
            if self._waiting:
                self._write_group()
            self._writer.close()
            return self._sink.take()

    def _write_group(self) -> None:
        table = pa.Table.from_batches(self._waiting, self._schema)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._waiting = []
        self._bytes = self._rows = 0


class CsvFile(_ArrowFile):
    """CSV file with a header."""

    def __init__(self, schema: pa.Schema) -> None:
        sink = Sink()
        options = pa.csv.WriteOptions(quoting_style="needed", quoting_header="needed")
        writer = pa.csv.CSVWriter(pa.PythonFile(sink, mode="w"), schema, write_options=options)
        super().__init__(sink, writer)

    def add(self, batch: pa.RecordBatch) -> bytes:
        """Add rows, and return their bytes."""
        with self._writing:
            self._writer.write_batch(batch)
            return self._sink.take()

    def end(self) -> bytes:
        """Return the remaining bytes of the file."""
        with self._writing:
            self._writer.close()
            return self._sink.take()


class TableEncoder(Generic[T]):
    """Encoder of pieces as rows of a Parquet or CSV file."""

    def __init__(self, file: ParquetFile | CsvFile, rows: Callable[[T], pa.RecordBatch]) -> None:
        """``rows`` returns the rows of a piece."""
        self._file = file
        self._rows = rows

    def add(self, piece: T) -> bytes:
        """Add the rows of a piece, and return the bytes that are ready, perhaps none."""
        return self._file.add(self._rows(piece))

    def end(self) -> bytes:
        """Return the remaining bytes of the file."""
        return self._file.end()

    def close(self) -> None:
        """Release the file, also after an error."""
        self._file.close()
