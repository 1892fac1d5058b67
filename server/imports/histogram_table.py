"""Import of the histograms of an export: rows of ``histograms.parquet`` return to the records they were logged with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from client_sdk.protocol import HISTOGRAM_BINS, Histograms, Record
from server.errors import ImportFileError

ROWS_AT_ONCE = 16_384

Key = tuple[int, int, int]
"""Rank, attempt and step of a record."""


@dataclass(frozen=True, kw_only=True)
class _RecordHistograms:
    """Histograms of one quantity that were logged with one record."""

    key: Key
    which: str
    rows: dict[str, tuple[float, float, Any]] = field(default_factory=dict)
    """Lower edge, upper edge and counts, keyed by layer."""


def with_histograms(
    path: Path,
    records: Iterator[tuple[int, int, Record]],
    table: pa.parquet.ParquetFile,
    layers: Mapping[int, tuple[str, ...]],
) -> Iterator[tuple[int, Record]]:
    """Yield the rank and the record of each (rank, attempt, record), with the histograms that were logged with it.

    The table must have the order of the records. Among several records of one step, those with layers receive
    histograms first. Raises `ImportFileError` if a histogram belongs to no record.
    """
    found = _shapes(path, table)
    head = next(found, None)
    for key, same in itertools.groupby(records, lambda item: (item[0], item[1], item[2].step)):
        if head is None or head.key != key:
            yield from ((rank, record) for rank, _, record in same)
            continue
        held = [record for _, _, record in same]
        given: list[dict[str, Histograms]] = [{} for _ in held]
        order = sorted(range(len(held)), key=lambda at: held[at].block is None)
        while head is not None and head.key == key:
            place = next((at for at in order if head.which not in given[at]), None)
            if place is None:
                break
            given[place][head.which] = _packed(path, head, layers.get(key[0], ()))
            head = next(found, None)
        for record, shapes in zip(held, given, strict=True):
            more = {"layout": 0, "histograms": tuple(shapes.values())} if shapes else {}
            yield key[0], msgspec.structs.replace(record, **more)
    if head is not None:
        rank, attempt, step = head.key
        raise ImportFileError(
            path,
            None,
            f"the histograms of rank {rank}, attempt {attempt}, step {step} belong to no record",
        )


def _shapes(path: Path, table: pa.parquet.ParquetFile) -> Iterator[_RecordHistograms]:
    """Yield the histograms of each record and quantity."""
    columns = ("rank", "attempt", "step", "which", "layer", "low", "high")
    current: _RecordHistograms | None = None
    for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=[*columns, "counts"]):
        lists = batch.column("counts")
        if lists.null_count or lists.type != pa.list_(pa.uint32(), HISTOGRAM_BINS):
            raise ImportFileError(path, "counts", f"expected {HISTOGRAM_BINS} whole numbers in each row")
        counts = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, HISTOGRAM_BINS)
        cells = [batch.column(name).to_pylist() for name in columns]
        for at, (rank, attempt, step, which, layer, low, high) in enumerate(zip(*cells, strict=True)):
            key = (rank, attempt, step)
            if current is None or (current.key, current.which) != (key, which) or layer in current.rows:
                if current is not None:
                    yield current
                current = _RecordHistograms(key=key, which=which)
            current.rows[layer] = (low, high, counts[at])
    if current is not None:
        yield current


def _packed(path: Path, shapes: _RecordHistograms, layers: tuple[str, ...]) -> Histograms:
    low, high = (np.full(len(layers), np.nan, dtype="<f4") for _ in range(2))
    counts = np.zeros((len(layers), HISTOGRAM_BINS), dtype="<u4")
    for layer, found in shapes.rows.items():
        if layer not in layers:
            raise ImportFileError(path, f"step {shapes.key[2]}", f"a histogram of the unknown layer {layer!r}")
        at = layers.index(layer)
        low[at], high[at], counts[at] = found
    return Histograms(which=shapes.which, low=low.tobytes(), high=high.tobytes(), counts=counts.tobytes())
