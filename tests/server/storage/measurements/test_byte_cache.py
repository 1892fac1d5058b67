"""The cache stays within its bound in bytes."""

from __future__ import annotations

import tracemalloc
from zlib import crc32

import numpy as np
import pytest

from server.pyramid.columns import BlockColumns, Columns, ScalarColumn, encode
from server.storage.measurements.byte_cache import ByteCache
from server.storage.measurements.open_segments import decode


def test_the_least_recently_used_goes_first() -> None:
    cache = ByteCache(30)
    for name in "abc":
        cache.put(name, name, 10)
    assert cache.get("a") == "a"
    cache.put("d", "d", 10)
    assert cache.get("b") is None
    assert [cache.get(name) for name in "acd"] == ["a", "c", "d"]
    assert cache.nbytes == 30


def test_a_value_larger_than_the_cache_is_not_kept() -> None:
    cache = ByteCache(10)
    cache.put("small", 1, 5)
    cache.put("great", 2, 11)
    assert cache.get("great") is None
    assert cache.get("small") == 1


def test_a_value_that_grows_is_counted_once() -> None:
    cache = ByteCache(100)
    cache.put("a", 1, 10)
    cache.put("a", 2, 20)
    assert cache.nbytes == 20
    assert cache.get("a") == 2
    cache.put("a", 3, 200)
    assert cache.get("a") is None
    assert cache.nbytes == 0


@pytest.mark.parametrize("statistic", [None, "grad_norm"], ids=["scalars", "statistic"])
@pytest.mark.parametrize("records", [1, 10, 200])
def test_a_cached_segment_counts_for_the_memory_that_it_takes(statistic: str | None, records: int) -> None:
    """A short segment is mostly objects: counted by its numbers alone, the cache once held five times its bound."""
    data = _segment(records)
    cache = ByteCache(2**30)
    count = 200
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            ((_, tail),) = decode([(number, data, crc32(data))], statistic)
            cache.put(("tail", number, statistic), tail, tail.nbytes)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.7 * cache.nbytes < taken < 1.1 * cache.nbytes


def test_a_short_segment_of_twenty_scalars_is_a_handful_of_objects() -> None:
    """Hundreds of thousands of small objects in a cache would slow down the garbage collector."""
    data = _segment(3)
    (_, tail) = decode([(1, data, crc32(data))], None)[0]
    assert tail.nbytes < 2048


def _segment(records: int) -> bytes:
    """Return a segment with 20 scalars and 48 layers × 4 statistics."""
    random = np.random.default_rng(1)
    everywhere = np.ones(records, dtype=np.bool_)
    statistics = {
        name: random.random((48, records), dtype=np.float32) for name in ("grad_norm", "v_rms", "u_rms", "nonfinite")
    }
    return encode(
        Columns(
            steps=np.arange(records),
            times=np.arange(records, dtype=np.float64),
            scalars={f"metric {n}": ScalarColumn(present=everywhere, values=random.random(records)) for n in range(20)},
            blocks=(BlockColumns(layout=0, layers=48, rows=np.arange(records, dtype=np.int32), statistics=statistics),),
        )
    )
