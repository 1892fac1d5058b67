"""Arrow batches as the bytes of one Parquet file, a row group at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet

from server.exports.sink import Sink

GROUP_BYTES = 8 * 1024 * 1024
GROUP_ROWS = 65_536
"""A row group is written when either is reached."""


class ParquetStream:
    def __init__(self, schema: pa.Schema, dictionaries: Sequence[str]) -> None:
        """``dictionaries``: the columns of few different texts."""
        self._schema = schema
        self._sink = Sink()
        self._writer = pa.parquet.ParquetWriter(
            pa.PythonFile(self._sink, mode="w"),
            schema,
            compression="zstd",
            use_dictionary=list(dictionaries),
            store_schema=True,
        )
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = self._rows = 0
        self._turn = threading.Lock()
        """Whoever is cancelled while a thread adds lets go of the writer only after that."""

    def add(self, batch: pa.RecordBatch) -> bytes:
        """The bytes that are ready after these rows, perhaps none."""
        with self._turn:
            self._waiting.append(batch)
            self._bytes += batch.nbytes
            self._rows += batch.num_rows
            if self._bytes >= GROUP_BYTES or self._rows >= GROUP_ROWS:
                self._write_group()
            return self._sink.take()

    def end(self) -> bytes:
        """The rest."""
        with self._turn:
            if self._waiting:
                self._write_group()
            self._writer.close()
            return self._sink.take()

    def close(self) -> None:
        """Let go of everything; also after an error."""
        with self._turn, contextlib.suppress(pa.ArrowException, OSError, ValueError):
            self._writer.close()

    def _write_group(self) -> None:
        table = pa.Table.from_batches(self._waiting, self._schema)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._waiting = []
        self._bytes = self._rows = 0
