"""The reduction sums over ranks without making training wait, and ends for good when a rank is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.distributed_c10d import _get_default_store

from client_sdk.distributed.reduction import Reduction
from tests.support.rank_pool import RankPool


def sum_of_ranks(rank: int, size: int) -> list[Any]:
    """Sum two arrays over the ranks."""
    reduction = connected(rank, size, "sum", 10.0)
    first = reduction.submit(lambda: np.full(3, 1.0 + rank))
    second = reduction.submit(lambda: np.full((2, 2), np.nan if rank else 1.0))
    assert first.wait(10)
    assert second.wait(10)
    assert first.values is not None
    assert second.values is not None
    reduction.close()
    reduction.join(10)
    return [first.values.tolist(), np.isnan(second.values).all()]


def late_rank(rank: int, size: int) -> list[Any]:
    """Sum an array that rank 1 never submits."""
    reduction = connected(rank, size, "late", 0.5)
    if rank == 1:
        torch.distributed.barrier()
        return []
    first = reduction.submit(lambda: np.ones(2))
    assert first.wait(30)
    second = reduction.submit(lambda: np.ones(2))
    torch.distributed.barrier()
    return [first.values, second.ready(), second.values, bool(reduction.failure)]


def connected(rank: int, size: int, name: str, timeout: float) -> Reduction:
    """Return a reduction over all ranks of the default process group."""
    return Reduction(_get_default_store(), range(size), rank, timeout=timeout, prefix=f"test/{name}/{size}")


@pytest.mark.parametrize("size", [2, 4])
def test_every_rank_has_the_sum(size: int, request: pytest.FixtureRequest) -> None:
    pool: RankPool = request.getfixturevalue("pair" if size == 2 else "four")

    assert pool.run(sum_of_ranks) == [[[size * (size + 1) / 2] * 3, True]] * size


def test_a_late_rank_ends_the_reduction(pair: RankPool) -> None:
    assert pair.run(late_rank)[0] == [None, True, None, True]
