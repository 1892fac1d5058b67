"""Columns of an export, and the rows of a chunk as Arrow arrays. Pure.

Each call of `log` is one row. A scalar that was not logged there is null; one that was logged as NaN is NaN. A
statistic is a list with one float32 for each layer, or null if the row has no layers; NaN in a list means "not
measured".
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
"""Metadata key of the run (in a file) and of the kind and name of a series (in a column), both as JSON."""
LAYERS_KEY = b"layers"
"""Metadata key of the layer names of each rank as JSON, in a column of lists."""
FIXED = (
    ("run", pa.string()),
    ("attempt", pa.int32()),
    ("rank", pa.int32()),
    ("step", pa.int64()),
    ("time", pa.float64()),
)
"""Names and types of the columns that every export begins with."""

Values = NDArray[np.float32]
"""Values of one statistic, shape (rows, layers)."""


@dataclass(frozen=True, kw_only=True)
class ExportColumns:
    """Columns of one export, the same for all of its rows."""

    run: answers.RunSummary
    """Run as GET /runs/{id} returns it."""
    scalars: tuple[str, ...]
    statistics: tuple[str, ...]
    layers: Mapping[int, tuple[str, ...]]
    """Layers of all layouts of a rank, in the order of its lists, keyed by rank."""
    sizes: Mapping[int, Mapping[str, int]]
    """Number of parameters of each layer, keyed by rank and layer."""

    @classmethod
    def of(cls, run: answers.RunSummary, steps: RunSteps, selection: Selection) -> ExportColumns:
        """Return the columns of a run's steps, limited to a selection."""
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
        """Return the description of the run that readers see and that an import restores the run from."""
        kept = ("id", "project", "name", "state", "created_at", "last_step", "tags", "config", "optimizer")
        run = {key: msgspec.to_builtins(getattr(self.run, key)) for key in kept}
        if self.run.loss_choice is not None and self.run.loss_choice.by != "project":
            run["loss"] = self.run.loss_choice.scalar
        if isinstance(self.run, answers.RunDetail):
            run |= {key: found for key in ("notes", "environment") if (found := getattr(self.run, key))}
        return {
            "format": FORMAT_VERSION,
            "run": run,
            "layers": {str(rank): list(names) for rank, names in self.layers.items()},
            "sizes": {str(rank): dict(found) for rank, found in self.sizes.items()},
        }

    def scalar_fields(self) -> list[pa.Field[Any]]:
        """Return the columns of the scalars."""
        taken = {name for name, _ in FIXED}
        return [
            pa.field(_name(name, taken), pa.float64(), metadata=_described("scalar", name)) for name in self.scalars
        ]

    def schema(self) -> pa.Schema:
        """Return the schema with scalars under their own names and statistics as `layer_NAME`.

        A name that is already in use gets an underscore at its end.
        """
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
        """Return the schema with one row for each step and layer."""
        fields = [pa.field(name, kind, nullable=False) for name, kind in (*FIXED, ("layer", pa.string()))]
        taken = {field.name for field in fields}
        return pa.schema([*fields, *(pa.field(_name(name, taken), pa.float32()) for name in self.statistics)])

    def rows(self, chunk: StepChunk, schema: pa.Schema) -> pa.RecordBatch:
        """Return the rows of a chunk under the schema of `schema`."""
        arrays = self._fixed(chunk, np.arange(len(chunk.columns.steps)))
        arrays += self._scalars(chunk)
        arrays += [_lists(values) for values in self._statistics(chunk)]
        return pa.record_batch(arrays, schema=schema)

    def scalar_rows(self, chunk: StepChunk, schema: pa.Schema) -> pa.RecordBatch:
        """Return the rows of a chunk without the layers."""
        arrays = self._fixed(chunk, np.arange(len(chunk.columns.steps)))
        return pa.record_batch(arrays + self._scalars(chunk), schema=schema)

    def long_rows(self, chunk: StepChunk, schema: pa.Schema) -> pa.RecordBatch:
        """Return the rows of a chunk under `long_schema`. A layer without any measurement has no row."""
        statistics = self._statistics(chunk)
        names = np.array(self.layers.get(chunk.rank, ()), dtype=object)
        measured = np.zeros((len(chunk.columns.steps), len(names)), dtype=np.bool_)
        for values in statistics:
            measured |= ~np.isnan(values)
        rows, layers = np.nonzero(measured)
        arrays = self._fixed(chunk, rows)
        arrays.append(pa.array(names[layers], pa.string()))
        for values in statistics:
            entries = values[rows, layers]
            arrays.append(pa.array(entries, pa.float32(), mask=np.isnan(entries)))
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

    def _statistics(self, chunk: StepChunk) -> list[Values]:
        """Return the values of each statistic, shape (rows, layers), with NaN where nothing was measured."""
        names = self.layers.get(chunk.rank, ())
        position = {name: at for at, name in enumerate(names)}
        shape = (len(chunk.columns.steps), len(names))
        found = {name: np.full(shape, np.nan, dtype=np.float32) for name in self.statistics}
        for block in chunk.columns.blocks:
            layout: Layout = chunk.layouts[block.layout]
            at = np.array([position[name] for name in layout.layers])
            for name, values in block.statistics.items():
                if name in found:
                    found[name][block.rows[:, None], at[None, :]] = values.T
        return [found[name] for name in self.statistics]


def _name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _described(kind: str, name: str) -> dict[bytes, bytes]:
    return {METADATA_KEY: json.dumps({"kind": kind, "name": name}).encode()}


def _lists(values: Values) -> pa.Array[Any]:
    filled = ~np.isnan(values).all(axis=1)
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum(filled * values.shape[1], out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[filled].reshape(-1)), mask=pa.array(~filled))
