"""Faults of trainings with two processes are named within their steps, and a healthy one has none."""

from __future__ import annotations

from campaigns.audit.distributed_faults import case, try_out_together
from tests.support.rank_pool import RankPool


def test_faults_of_ranks_are_named_within_their_steps(pair: RankPool) -> None:
    for _, name, _, within, after, others in try_out_together(pair):
        assert after is not None, name
        assert 1 <= after <= within, name
        assert others == [], name


def test_a_healthy_training_of_ranks_has_no_finding(pair: RankPool) -> None:
    _, findings, runs = pair.run(case, "healthy", "ranks-differ")[0]
    assert findings == []
    assert runs > 100
