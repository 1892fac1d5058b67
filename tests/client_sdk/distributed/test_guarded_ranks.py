"""Ranks that train together act alike, at the same step, or not at all."""

from __future__ import annotations

from tests.client_sdk.distributed.guarded import guarded, refused, sharded
from tests.client_sdk.guard.descent import STALE_AT
from tests.support.rank_pool import RankPool


def test_rank_0_decides_and_all_replicas_stay_equal(pair: RankPool) -> None:
    first, second = pair.run(guarded)
    assert first["acts"]
    assert first["acts"] == second["acts"]
    assert first["weights"] == second["weights"]
    assert first["second"] == second["second"]
    assert max(first["losses"][STALE_AT:]) < 100 * first["losses"][STALE_AT - 1]
    assert first["warnings"] == second["warnings"] == {}


def test_a_rank_that_leaves_stops_the_guard_everywhere(pair: RankPool) -> None:
    found = pair.run(guarded, leaves=1)
    bare = pair.run(guarded, leaves=0)
    assert [one["acts"] for one in found] == [[], []]
    assert [one["acts"] for one in bare] == [[], []]
    assert found[0]["losses"] == bare[0]["losses"]
    assert found[0]["warnings"] == {"guard": 1}
    assert found[0]["weights"] == found[1]["weights"]


def test_what_ranks_cannot_do_together_is_refused(pair: RankPool) -> None:
    assert all("SkipBatch is not possible in a training of several processes" in one for one in pair.run(refused))
    assert all("divided among processes" in one for one in pair.run(sharded))
