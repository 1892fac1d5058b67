"""Histograms as rows of a table, one row for each layer, quantity and step. Pure."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from client_sdk.protocol import HISTOGRAM_BINS
from server.exports.columns import FORMAT_VERSION
from server.storage.measurements.histogram_history import HistogramPiece

TABLE_KEY = b"spikewatch.table"
"""Metadata key of an exported file that holds something other than steps."""
SCHEMA = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("which", pa.string(), nullable=False),
        pa.field("layer", pa.string(), nullable=False),
        pa.field("low", pa.float32(), nullable=False),
        pa.field("high", pa.float32(), nullable=False),
        pa.field("dip", pa.float32()),
        pa.field("counts", pa.list_(pa.uint32(), HISTOGRAM_BINS), nullable=False),
    ],
    {TABLE_KEY: json.dumps({"format": FORMAT_VERSION, "table": "histograms"}).encode()},
)
DICTIONARIES = ("run", "which", "layer")
"""Columns with few different texts."""


def rows(run_id: str, piece: HistogramPiece) -> pa.RecordBatch:
    """Return the rows of the layers that have a histogram."""
    shapes = piece.shapes
    at = np.flatnonzero(shapes.measured)
    n = len(at)
    dips = shapes.dips[at]
    return pa.record_batch(
        [
            pa.array([run_id] * n, pa.string()),
            pa.array(np.full(n, piece.attempt, np.int32)),
            pa.array(np.full(n, piece.rank, np.int32)),
            pa.array(np.full(n, piece.step, np.int64)),
            pa.array([piece.which] * n, pa.string()),
            pa.array([piece.layers[row] for row in at.tolist()], pa.string()),
            pa.array(shapes.low[at]),
            pa.array(shapes.high[at]),
            pa.array(dips, mask=np.isnan(dips)),
            pa.FixedSizeListArray.from_arrays(pa.array(shapes.counts[at].reshape(-1), pa.uint32()), HISTOGRAM_BINS),
        ],
        schema=SCHEMA,
    )
