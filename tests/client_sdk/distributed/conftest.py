"""Process groups of two and four ranks, which all tests of this directory share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.rank_pool import RankPool


@pytest.fixture(scope="session")
def pair() -> Iterator[RankPool]:
    """Process group of two ranks."""
    pool = RankPool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def four() -> Iterator[RankPool]:
    """Process group of four ranks."""
    pool = RankPool(4)
    yield pool
    pool.close()


@pytest.fixture(params=[2, 4], ids=["2 ranks", "4 ranks"])
def ranks(request: pytest.FixtureRequest) -> RankPool:
    """Two and four ranks, one after the other."""
    pool: RankPool = request.getfixturevalue("pair" if request.param == 2 else "four")
    return pool
