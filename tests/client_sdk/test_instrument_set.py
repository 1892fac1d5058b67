"""A set of instruments stacks the rows of its instruments, unites their statistics and keeps layer names unique."""

from __future__ import annotations

import numpy as np
import pytest

from client_sdk.errors import ConfigurationError
from client_sdk.instrument_set import InstrumentSet
from client_sdk.measurement import Measurement
from client_sdk.protocol import Histograms
from tests.support.instruments import Landed, StepInstrument


def histogram(layers: int, value: float) -> Histograms:
    edge = np.full(layers, value, "<f4").tobytes()
    return Histograms(which="update", low=edge, high=edge, counts=np.full((layers, 64), int(value), "<u4").tobytes())


def test_one_instrument_keeps_its_layout_and_bytes() -> None:
    instrument_set = InstrumentSet([StepInstrument(("a", "b"), ("x", "y"))], 3)
    block = np.array([[1, 2], [3, np.nan]], np.float32)
    scalars, packed, _ = instrument_set.read([(0, Landed(Measurement(block=block, scalars={"lr": 0.5})))])
    assert (instrument_set.layout.id, instrument_set.layout.layers, instrument_set.layout.statistics) == (
        3,
        ("a", "b"),
        ("x", "y"),
    )
    assert packed is not None
    assert packed.tobytes() == block.astype("<f4").tobytes()
    assert scalars == {"lr": 0.5}


def test_block_in_column_order_or_float64_is_packed_by_rows() -> None:
    instrument_set = InstrumentSet([StepInstrument(("a", "b"), ("x", "y"))], 0)
    block = np.asfortranarray(np.array([[1.0, 2.0], [3.0, 4.0]]))
    _, packed, _ = instrument_set.read([(0, Landed(Measurement(block=block)))])
    assert packed is not None
    assert packed.tobytes() == np.array([1, 2, 3, 4], "<f4").tobytes()


def test_two_instruments_are_stacked() -> None:
    instrument_set = InstrumentSet([StepInstrument(("a", "b"), ("x", "y")), StepInstrument(("a",), ("y", "z"))], 0)
    assert instrument_set.layout.layers == ("a", "b", "a (2)")
    assert instrument_set.layout.statistics == ("x", "y", "z")
    assert instrument_set.layout.sizes == (1, 1, 1)
    first = Measurement(block=np.array([[1, 2], [3, 4]], np.float32), scalars={"lr": 0.5})
    second = Measurement(block=np.array([[5, 6]], np.float32), scalars={"lr": 0.25})
    scalars, packed, _ = instrument_set.read([(0, Landed(first)), (1, Landed(second))])
    assert packed is not None
    merged = np.frombuffer(packed, "<f4").reshape(3, 3)
    np.testing.assert_array_equal(merged, [[1, 2, np.nan], [3, 4, np.nan], [np.nan, 5, 6]])
    assert scalars == {"lr": 0.5, "lr_2": 0.25}


def test_instrument_without_a_measurement_leaves_its_rows_empty() -> None:
    instrument_set = InstrumentSet([StepInstrument(("a",), ("x",)), StepInstrument(("b",), ("x",))], 0)
    _, packed, _ = instrument_set.read([(1, Landed(Measurement(block=np.array([[5]], np.float32))))])
    assert packed is not None
    np.testing.assert_array_equal(np.frombuffer(packed, "<f4"), [np.nan, 5])


def test_histograms_of_two_instruments_are_stacked() -> None:
    instrument_set = InstrumentSet([StepInstrument(("a", "b"), ("x",)), StepInstrument(("c",), ("x",))], 0)
    _, _, (merged,) = instrument_set.read([(1, Landed(Measurement(histograms=(histogram(1, 7.0),))))])
    np.testing.assert_array_equal(np.frombuffer(merged.low, "<f4"), [np.nan, np.nan, 7])
    counts = np.frombuffer(merged.counts, "<u4").reshape(3, 64)
    assert counts.sum(axis=1).tolist() == [0, 0, 448]


def test_names_stay_unique_and_short() -> None:
    long = "n" * 256
    instrument_set = InstrumentSet(
        [StepInstrument((long,), ("x",)), StepInstrument((long,), ("x",)), StepInstrument((long,), ("x",))], 0
    )
    assert len(set(instrument_set.layout.layers)) == 3
    assert all(len(name) <= 256 for name in instrument_set.layout.layers)


def test_block_of_another_shape_is_refused() -> None:
    instrument_set = InstrumentSet([StepInstrument(("a", "b"), ("x",))], 0)
    with pytest.raises(ValueError, match="shape"):
        instrument_set.read([(0, Landed(Measurement(block=np.zeros((1, 1), np.float32))))])


@pytest.mark.parametrize(
    ("layers", "statistics", "match"),
    [
        (20_001, 1, "20001 layers"),
        (1, 65, "65 statistics"),
    ],
)
def test_layout_beyond_the_limits_is_refused(layers: int, statistics: int, match: str) -> None:
    instrument = StepInstrument(tuple(f"l{i}" for i in range(layers)), tuple(f"s{i}" for i in range(statistics)))
    with pytest.raises(ConfigurationError, match=match):
        InstrumentSet([instrument], 0)


def test_layer_name_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="257"):
        InstrumentSet([StepInstrument(("n" * 257,), ("x",))], 0)
