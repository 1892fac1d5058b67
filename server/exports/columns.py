"""Which columns an export has, and the rows of a chunk as Arrow arrays. Pure.

One row for each call of `log`. A scalar that was not logged there is null, and one that was logged as NaN is NaN. A
statistic is a list with one float32 for each layer, null where the row has none; within a list NaN says "not measured".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from client_sdk import answers
from server.models import Layout
from server.storage.measurements.steps import RunSteps, Selection, StepChunk

FORMAT_VERSION = 1
METADATA_KEY = b"spikewatch"
"""Of the file: the run as JSON. Of a column: what it is."""
LAYERS_KEY = b"layers"
"""Of a column of lists: the names of the layers of each rank, as JSON."""
FIXED = (
    ("run", pa.string()),
    ("attempt", pa.int32()),
    ("rank", pa.int32()),
    ("step", pa.int64()),
    ("time", pa.float64()),
)

Cube = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The columns of one export, the same for all its rows."""

    run: answers.RunSummary
    scalars: tuple[str, ...]
    statistics: tuple[str, ...]
    layers: Mapping[int, tuple[str, ...]]
    """Rank to the layers of all its layouts, in order: the entries of its lists."""
    sizes: Mapping[int, Mapping[str, int]]

    @classmethod
    def of(cls, run: answers.RunSummary, steps: RunSteps, selection: Selection) -> Plan:
        layers: dict[int, dict[str, None]] = {}
        sizes: dict[int, dict[str, int]] = {}
        statistics: dict[str, None] = {}
        for writer in steps.writers:
            for layout in writer.layouts.values():
                layers.setdefault(writer.rank, {}).update(dict.fromkeys(layout.layers))
                if layout.sizes:
                    sizes.setdefault(writer.rank, {}).update(zip(layout.layers, layout.sizes, strict=True))
                statistics.update(dict.fromkeys(layout.statistics))
        return cls(
            run=run,
            scalars=tuple(n for n in steps.scalars if selection.scalars is None or n in selection.scalars),
            statistics=tuple(n for n in statistics if selection.statistics is None or n in selection.statistics),
            layers={rank: tuple(names) for rank, names in layers.items()},
            sizes=sizes,
        )

    def metadata(self) -> dict[str, Any]:
        """What an importer needs to make the run again, and a reader to know what this is."""
        kept = ("id", "project", "name", "state", "created_at", "last_step", "tags", "config", "optimizer")
        return {
            "format": FORMAT_VERSION,
            "run": {key: msgspec.to_builtins(getattr(self.run, key)) for key in kept},
            "layers": {str(rank): list(names) for rank, names in self.layers.items()},
            "sizes": {str(rank): dict(found) for rank, found in self.sizes.items()},
        }

    def scalar_fields(self) -> list[pa.Field[Any]]:
        taken = {name for name, _ in FIXED}
        return [
            pa.field(_name(name, taken), pa.float64(), metadata=_described("scalar", name)) for name in self.scalars
        ]

    def schema(self) -> pa.Schema:
        """Scalars under their own names, statistics as `layer_NAME`; an underscore sets apart what would clash."""
        fields = [pa.field(name, kind, nullable=False) for name, kind in FIXED]
        scalars = self.scalar_fields()
        taken = {field.name for field in [*fields, *scalars]}
        names = json.dumps({str(rank): found for rank, found in self.layers.items()}).encode()
        lists = [
            pa.field(
                _name(f"layer_{name}", taken),
                pa.list_(pa.float32()),
                metadata={**_described("statistic", name), LAYERS_KEY: names},
            )
            for name in self.statistics
        ]
        return pa.schema([*fields, *scalars, *lists], {METADATA_KEY: json.dumps(self.metadata()).encode()})

    def long_schema(self) -> pa.Schema:
        """One row for each step and layer."""
        fields = [pa.field(name, kind, nullable=False) for name, kind in (*FIXED, ("layer", pa.string()))]
        taken = {field.name for field in fields}
        return pa.schema([*fields, *(pa.field(_name(name, taken), pa.float32()) for name in self.statistics)])

    def rows(self, chunk: StepChunk, schema: pa.Schema) -> pa.RecordBatch:
        """The rows of a chunk under `schema`."""
        arrays = self._fixed(chunk, np.arange(len(chunk.columns.steps)))
        arrays += self._scalars(chunk)
        for cube in self._cubes(chunk):
            arrays.append(_lists(cube))
        return pa.record_batch(arrays, schema=schema)

    def scalar_rows(self, chunk: StepChunk, schema: pa.Schema) -> pa.RecordBatch:
        """The rows of a chunk without the layers."""
        arrays = self._fixed(chunk, np.arange(len(chunk.columns.steps)))
        return pa.record_batch(arrays + self._scalars(chunk), schema=schema)

    def long_rows(self, chunk: StepChunk, schema: pa.Schema) -> pa.RecordBatch:
        """The rows of a chunk under `long_schema`; layers of which nothing was measured have none."""
        cubes = self._cubes(chunk)
        names = np.array(self.layers.get(chunk.rank, ()), dtype=object)
        measured = np.zeros((len(chunk.columns.steps), len(names)), dtype=np.bool_)
        for cube in cubes:
            measured |= ~np.isnan(cube)
        rows, layers = np.nonzero(measured)
        arrays = self._fixed(chunk, rows)
        arrays.append(pa.array(names[layers], pa.string()))
        for cube in cubes:
            values = cube[rows, layers]
            arrays.append(pa.array(values, pa.float32(), mask=np.isnan(values)))
        return pa.record_batch(arrays, schema=schema)

    def _fixed(self, chunk: StepChunk, rows: NDArray[np.intp]) -> list[pa.Array[Any]]:
        n = len(rows)
        return [
            pa.array([self.run.id] * n, pa.string()),
            pa.array(np.full(n, chunk.attempt, np.int32)),
            pa.array(np.full(n, chunk.rank, np.int32)),
            pa.array(chunk.columns.steps[rows]),
            pa.array(chunk.columns.times[rows]),
        ]

    def _scalars(self, chunk: StepChunk) -> list[pa.Array[Any]]:
        n = len(chunk.columns.steps)
        arrays: list[pa.Array[Any]] = []
        for name in self.scalars:
            column = chunk.columns.scalars.get(name)
            if column is None:
                arrays.append(pa.nulls(n, pa.float64()))
                continue
            values = np.zeros(n)
            values[column.present] = column.values
            arrays.append(pa.array(values, mask=~column.present))
        return arrays

    def _cubes(self, chunk: StepChunk) -> list[Cube]:
        """Of each statistic rows × layers of the rank, NaN where not measured."""
        names = self.layers.get(chunk.rank, ())
        place = {name: at for at, name in enumerate(names)}
        shape = (len(chunk.columns.steps), len(names))
        cubes = {name: np.full(shape, np.nan, dtype=np.float32) for name in self.statistics}
        for block in chunk.columns.blocks:
            layout: Layout = chunk.layouts[block.layout]
            at = np.array([place[name] for name in layout.layers])
            for name, values in block.statistics.items():
                if name in cubes:
                    cubes[name][block.rows[:, None], at[None, :]] = values.T
        return [cubes[name] for name in self.statistics]


def _name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _described(kind: str, name: str) -> dict[bytes, bytes]:
    return {METADATA_KEY: json.dumps({"kind": kind, "name": name}).encode()}


def _lists(cube: Cube) -> pa.Array[Any]:
    filled = ~np.isnan(cube).all(axis=1)
    offsets = np.zeros(len(cube) + 1, dtype=np.int32)
    np.cumsum(filled * cube.shape[1], out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(cube[filled].reshape(-1)), mask=pa.array(~filled))
