"""Payloads of segments: decoding returns what was encoded, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from server.pyramid.columns import BlockColumns, Columns, Payload, ScalarColumn, encode

FLOATS = st.floats(allow_nan=True, allow_infinity=True, width=64)


@st.composite
def columns(draw: st.DrawFn) -> Columns:
    n = draw(st.integers(1, 12))
    steps = np.array(sorted(draw(st.lists(st.integers(0, 2**63 - 1), min_size=n, max_size=n))), dtype=np.int64)
    scalars = {}
    for name in draw(st.sets(st.text(min_size=1, max_size=8), max_size=4)):
        present = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        values = draw(st.lists(FLOATS, min_size=int(present.sum()), max_size=int(present.sum())))
        scalars[name] = ScalarColumn(present=present, values=np.array(values, dtype=np.float64))
    blocks = []
    for number in range(draw(st.integers(0, 2))):
        layers = draw(st.integers(1, 3))
        rows = np.array(sorted(draw(st.sets(st.integers(0, n - 1), min_size=1))), dtype=np.int32)
        shape = (layers, len(rows))
        statistics = {
            name: draw(hnp.arrays(np.float32, shape, elements=st.floats(width=32))) for name in ("grad_norm", "v_rms")
        }
        blocks.append(BlockColumns(layout=number, layers=layers, rows=rows, statistics=statistics))
    return Columns(steps=steps, times=np.linspace(0, 1, n, dtype=np.float64), scalars=scalars, blocks=tuple(blocks))


def _same(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@given(columns())
def test_a_segment_comes_back_as_it_was(given_columns: Columns) -> None:
    read = Payload(encode(given_columns)).columns()
    assert _same(read.steps, given_columns.steps)
    assert _same(read.times, given_columns.times)
    assert read.scalars.keys() == given_columns.scalars.keys()
    for name, column in given_columns.scalars.items():
        assert _same(read.scalars[name].present, column.present)
        assert _same(read.scalars[name].values, column.values)
    for block, before in zip(read.blocks, given_columns.blocks, strict=True):
        assert (block.layout, block.layers) == (before.layout, before.layers)
        assert _same(block.rows, before.rows)
        for name, values in before.statistics.items():
            if np.isnan(values).all():
                assert name not in block.statistics
            else:
                assert _same(block.statistics[name], values)


@given(columns(), st.data())
def test_cutting_keeps_every_record(whole: Columns, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(whole.steps)))
    parts = [whole.rows(0, cut), whole.rows(cut, len(whole.steps))]
    assert np.concatenate([part.steps for part in parts]).tolist() == whole.steps.tolist()
    for name, column in whole.scalars.items():
        values = [part.scalars[name].values for part in parts if name in part.scalars]
        assert _same(np.concatenate([np.empty(0), *values]), column.values)
    for block in whole.blocks:
        rows = [
            found.rows + start
            for part, start in zip(parts, (0, cut), strict=True)
            for found in part.blocks
            if found.layout == block.layout
        ]
        assert np.concatenate(rows).tolist() == block.rows.tolist()


def test_a_logged_nan_is_not_an_absent_value() -> None:
    present = np.array([True, False, True])
    column = ScalarColumn(present=present, values=np.array([np.nan, 2.0]))
    stored = Columns(steps=np.arange(3), times=np.zeros(3), scalars={"loss": column})
    read = Payload(encode(stored)).scalars()["loss"]
    assert read.present.tolist() == [True, False, True]
    assert np.isnan(read.values[0])
    assert read.values[1] == 2.0


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01\x02\x03", b"not msgpack at all"])
def test_bytes_that_are_not_a_segment_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a segment"):
        Payload(data)


def test_a_damaged_column_is_refused() -> None:
    stored = encode(Columns(steps=np.arange(50), times=np.zeros(50), scalars={}))
    at = stored.index(b"\x28\xb5\x2f\xfd") + 6
    damaged = stored[:at] + bytes([stored[at] ^ 0xFF, stored[at + 1] ^ 0xFF]) + stored[at + 2 :]
    with pytest.raises(ValueError, match="column"):
        Payload(damaged).steps()
