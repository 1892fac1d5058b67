"""Import of Parquet files with a column of steps: exports with their layers, and the scalars of any other table."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from numpy.typing import NDArray

from client_sdk.protocol import Layout, Optimizer, Record
from server.errors import ImportFileError
from server.exports.archive import HISTOGRAMS, STEPS
from server.exports.columns import METADATA_KEY
from server.exports.histogram_rows import TABLE_KEY
from server.imports.histogram_table import with_histograms
from server.imports.log_time import unix_seconds
from server.imports.logged_run import LoggedRun, Note, checked_step, digest
from server.imports.options import ReadOptions
from server.imports.repeats import Repeats
from server.imports.run_groups import RunGroups
from server.imports.run_names import name_of
from server.imports.table_columns import Part, find_parts, note_without_numbers
from server.imports.table_row import RowReader

MAX_VALUES = 4 * 1024 * 1024  # values of layers in memory at once
MAX_ROWS = 4_096
MAGIC = b"PAR1"
Flags = NDArray[np.bool_]
Opened = Callable[[], Any]
"""Function that returns a path or a new seekable file."""


class _Described(msgspec.Struct):
    """Metadata of a column of an export."""

    kind: str
    name: str


class _About(msgspec.Struct):
    """Metadata of the file of an export."""

    format: int
    run: dict[str, Any]
    layers: dict[int, tuple[str, ...]]
    sizes: dict[int, dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A table and the meaning of its columns."""

    path: Path
    table: Opened
    part: Part
    attempt: str | None
    statistics: Mapping[str, str]
    """Names of statistics, keyed by column."""
    layers: Mapping[int, tuple[str, ...]]
    fallback: float


def open_file(path: Path, options: ReadOptions, note: Note, root: Path | None = None) -> list[LoggedRun]:
    """Return the runs of a Parquet file. ``root`` is the folder that is imported. Raises `ImportFileError`."""
    _check_complete(path)
    with _opened(path, lambda: path) as file:
        schema: pa.Schema = file.schema_arrow
    if TABLE_KEY in (schema.metadata or {}):
        raise ImportFileError(path, None, f"these are the histograms of an export; import the {STEPS} next to them")
    if METADATA_KEY not in (schema.metadata or {}):
        return _open_foreign(path, schema, options, note, root)
    histograms = path.with_name(HISTOGRAMS)
    if path.name == STEPS and histograms.is_file():
        return [read_export(path, digest([path, histograms]), lambda: path, lambda: histograms)]
    return [read_export(path, digest([path]), lambda: path, None)]


def read_export(path: Path, identity: str, steps: Opened, histograms: Opened | None) -> LoggedRun:
    """Return the run of an export.

    ``path`` is the file that the user named; ``steps`` and ``histograms`` open the tables. Raises `ImportFileError`.
    """
    with _opened(path, steps) as file:
        schema: pa.Schema = file.schema_arrow
    about = _about(path, schema)
    described = {field.name: item for field in schema if (item := _description(path, field)) is not None}
    statistics = {name: item.name for name, item in described.items() if item.kind == "statistic"}
    scalars = {name: item.name for name, item in described.items() if item.kind == "scalar"}
    source = _Source(
        path=path,
        table=steps,
        part=Part(name=None, step="step", time="time", rank="rank", scalars=scalars),
        attempt="attempt",
        statistics=statistics,
        layers=about.layers,
        fallback=0.0,
    )

    def records() -> Iterator[tuple[int, Record]]:
        if histograms is None:
            yield from ((rank, record) for rank, _, record in _records(source))
            return
        with _opened(path, histograms) as table:
            yield from with_histograms(path, _records(source), table, about.layers)

    optimizer = about.run.get("optimizer")
    layouts = {
        rank: Layout(
            id=0,
            layers=names,
            statistics=tuple(statistics.values()),
            sizes=tuple(found.get(name, 0) for name in names) if (found := about.sizes.get(rank)) else (),
            optimizer=None
            if optimizer is None or optimizer.get("lr") is None
            else msgspec.convert(optimizer, Optimizer),
        )
        for rank, names in about.layers.items()
        if statistics
    }
    return LoggedRun(
        path=path,
        identity=identity,
        name=about.run["name"],
        records=records,
        project=about.run["project"],
        config=about.run["config"],
        tags=tuple(about.run["tags"]),
        notes=str(about.run.get("notes", "")),
        environment=found if isinstance(found := about.run.get("environment"), dict) else {},
        loss=about.run.get("loss"),
        layouts=layouts,
        state="crashed" if about.run["state"] == "crashed" else "finished",
        renames=False,
    )


def _open_foreign(
    path: Path, schema: pa.Schema, options: ReadOptions, note: Note, root: Path | None
) -> list[LoggedRun]:
    numeric = {field.name for field in schema if _is_number(field.type)}
    timed = {field.name for field in schema if pa.types.is_timestamp(field.type)}
    texts = {field.name for field in schema if _is_text(field.type)}
    name = name_of(path, root)
    runs = []
    for part in find_parts(path, [name for name in schema.names if name in numeric | timed | texts], options):
        if part.is_grouped or part.step is None:
            return _grouped(path, part, options, note, name)
        scalars = {column: name for column, name in part.scalars.items() if column in numeric}
        for field in schema:
            if field.name not in scalars and field.name not in {part.step, part.time}:
                note_without_numbers(path, field.name, note)
        kept = replace(part, scalars=scalars)
        left = tuple(column for column in part.scalars if column in texts)
        source = _Source(
            path=path,
            table=lambda: path,
            part=kept,
            attempt=None,
            statistics={},
            layers={},
            fallback=path.stat().st_mtime,
        )

        def records(source: _Source = source, left: tuple[str, ...] = left) -> Iterator[tuple[int, Record]]:
            repeats = Repeats(path)
            texts = _texts(path, left)
            for row, (rank, _, record) in enumerate(_records(source), 1):
                repeats.add(f"row {row}", record.step, record.scalars, next(texts))
                yield rank, record
            repeats.check(source.part.step)

        runs.append(
            LoggedRun(
                path=path,
                identity=digest([path], (part.name or "") + options.key),
                name=part.name or name,
                records=records,
                tags=("parquet",),
            )
        )
    return runs


def _grouped(path: Path, part: Part, options: ReadOptions, note: Note, name: str) -> list[LoggedRun]:
    """Return the runs of a table whose rows belong to several runs, or are counted, or are in long form."""
    wanted = [part.step, part.time, *part.runs, part.metric, part.value, *part.scalars]
    header = [column for column in wanted if column is not None]
    reader = RowReader(path, header, part, note, decimal_comma=False)
    groups = RunGroups(path, part.runs, options)
    row = 0
    with _opened(path, lambda: path) as file:
        for batch in file.iter_batches(batch_size=MAX_ROWS, columns=header):
            columns = [_cells(batch.column(column), is_time=column == part.time) for column in header]
            for cells in zip(*columns, strict=True):
                row += 1
                groups.add(f"row {row}", reader.read(f"row {row}", cells), reader.texts)
    return groups.runs(name, tags=("parquet",), step_column=part.step)


def _cells(column: pa.Array[Any], *, is_time: bool) -> list[str]:
    values = _times(column).tolist() if is_time and not _is_text(column.type) else column.to_pylist()
    return ["" if value is None else str(value) for value in values]


def _texts(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Yield the texts of each row, without end."""
    if columns:
        with _opened(path, lambda: path) as file:
            for batch in file.iter_batches(batch_size=MAX_ROWS, columns=list(columns)):
                for row in batch.to_pylist():
                    yield {name: str(value) for name, value in row.items()}
    while True:
        yield {}


def _check_complete(path: Path) -> None:
    """Raise `ImportFileError` if a file begins as Parquet and does not end so."""
    with _readable(path), path.open("rb") as file:
        begins = file.read(len(MAGIC)) == MAGIC
        file.seek(max(0, file.seek(0, os.SEEK_END) - len(MAGIC)))
        if begins and file.read() != MAGIC:
            raise ImportFileError(
                path,
                None,
                "it cannot be read as Parquet: it was cut off, and its end is missing; copy or download it again",
            )


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_dictionary(kind)
        or pa.types.is_boolean(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind))


def _records(source: _Source) -> Iterator[tuple[int, int, Record]]:
    """Yield the rank, the attempt and the record of each row."""
    part = source.part
    asked = (part.step, part.time, part.rank, source.attempt)
    wanted = [*part.scalars, *source.statistics, *(name for name in asked if name is not None)]
    widest = max((len(names) for names in source.layers.values()), default=0) * len(source.statistics)
    size = max(1, min(MAX_ROWS, MAX_VALUES // max(widest, 1)))
    row = 0
    with _opened(source.path, source.table) as file:
        for batch in file.iter_batches(batch_size=size, columns=wanted):
            yield from _rows(source, batch, row)
            row += batch.num_rows


def _rows(source: _Source, batch: pa.RecordBatch, first: int) -> Iterator[tuple[int, int, Record]]:
    part, n = source.part, batch.num_rows
    assert part.step is not None
    steps = _steps(source, batch.column(part.step), first)
    times = (
        np.full(n, source.fallback)
        if part.time is None
        else _times(batch.column(part.time), exact=part.rank is not None)
    )
    ranks, attempts = (
        np.zeros(n, np.int64) if name is None else batch.column(name).to_numpy(zero_copy_only=False)
        for name in (part.rank, source.attempt)
    )
    columns = [(name, *_floats(batch.column(column))) for column, name in part.scalars.items()]
    lists = [_entries(batch.column(column)) for column in source.statistics]
    for at in range(n):
        scalars = {name: float(values[at]) for name, values, present in columns if present[at]}
        rank = int(ranks[at])
        names = source.layers.get(rank, ())
        block = None
        if any(present[at] for _, _, present in lists):
            cube = np.full((len(names), len(lists)), np.nan, dtype="<f4")
            for number, (values, offsets, present) in enumerate(lists):
                if not present[at]:
                    continue
                entries = values[offsets[at] : offsets[at + 1]]
                if len(entries) != len(names):
                    raise ImportFileError(
                        source.path, f"row {first + at + 1}", f"{len(entries)} entries for {len(names)} layers"
                    )
                cube[:, number] = entries
            block = cube.tobytes()
        place = f"row {first + at + 1}"
        yield (
            rank,
            int(attempts[at]),
            Record(
                step=checked_step(source.path, place, int(steps[at])),
                time=float(times[at]),
                scalars=scalars,
                layout=None if block is None else 0,
                block=block,
            ),
        )


def _steps(source: _Source, column: pa.Array[Any], first: int) -> NDArray[np.int64]:
    missing = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
    if len(missing):
        raise ImportFileError(source.path, f"row {first + int(missing[0]) + 1}", "it has no step")
    if pa.types.is_integer(column.type):
        return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False), dtype=np.int64)
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    odd = np.flatnonzero(~(np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) < 2**63)))
    if len(odd):
        at = int(odd[0])
        raise ImportFileError(
            source.path,
            f"row {first + at + 1}",
            f"the step {values[at]} is not a whole number; name the column of "
            "steps with --step-column, or use --step-by-row",
        )
    return np.asarray(values, dtype=np.int64)


def _times(column: pa.Array[Any], *, exact: bool = False) -> NDArray[np.float64]:
    """Return times in seconds; ``exact`` ones are in seconds already."""
    if pa.types.is_timestamp(column.type):
        micros = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
        return _floats(micros)[0] / 1e6
    values = _floats(column)[0]
    return values if exact else np.array([unix_seconds(value) for value in values.tolist()], dtype=np.float64)


def _floats(column: pa.Array[Any]) -> tuple[NDArray[np.float64], Flags]:
    """Return the values with NaN for null, shape (n,), and a mask of those that are not null."""
    present = column.is_valid().to_numpy(zero_copy_only=False)
    filled = column.cast(pa.float64(), safe=False).fill_null(float("nan"))
    return filled.to_numpy(zero_copy_only=False), present


def _entries(column: pa.Array[Any]) -> tuple[NDArray[np.float32], NDArray[np.int64], Flags]:
    """Return all entries of a column of lists, the n + 1 offsets of the rows, and a mask of rows that are not null."""
    lists = column.cast(pa.large_list(pa.float32()))
    offsets = lists.offsets.to_numpy(zero_copy_only=False)
    values = lists.values.fill_null(float("nan")).to_numpy(zero_copy_only=False)
    return values, offsets, column.is_valid().to_numpy(zero_copy_only=False)


def _about(path: Path, schema: pa.Schema) -> _About:
    try:
        return msgspec.json.decode((schema.metadata or {}).get(METADATA_KEY, b""), type=_About, strict=False)
    except msgspec.DecodeError as error:
        raise ImportFileError(path, None, f"its metadata cannot be read as those of an export ({error})") from error


def _description(path: Path, field: pa.Field[Any]) -> _Described | None:
    data = (field.metadata or {}).get(METADATA_KEY)
    try:
        return None if data is None else msgspec.json.decode(data, type=_Described)
    except msgspec.DecodeError as error:
        raise ImportFileError(path, None, f"cannot read the metadata of the column {field.name!r} ({error})") from error


@contextlib.contextmanager
def _opened(path: Path, table: Opened) -> Iterator[pa.parquet.ParquetFile]:
    """Open a table. Raises `ImportFileError` if it cannot be opened or read within the block."""
    with _readable(path):
        source = table()
        try:
            with pa.parquet.ParquetFile(source) as file:
                yield file
        finally:
            if isinstance(source, io.IOBase):
                source.close()


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ImportFileError(path, None, f"it cannot be read as Parquet ({str(error).strip()})") from error
