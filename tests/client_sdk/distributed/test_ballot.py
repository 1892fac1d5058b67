"""Votes of ranks: one decision for all of them, and no rank that waits for long."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import pytest
import torch

from client_sdk.distributed import Ballot, Decision


def decisions(store: Any, number: int, says: Sequence[str | None], ballots: dict[int, Ballot]) -> list[Decision]:
    """Return the decision of each rank, which vote at the same time."""
    found: dict[int, Decision] = {}

    def vote(rank: int) -> None:
        found[rank] = ballots[rank].cast(number, says[rank])

    threads = [threading.Thread(target=vote, args=(rank,)) for rank in range(len(says))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(len(says))]


@pytest.fixture
def store() -> Any:
    """Store of one process."""
    distributed: Any = torch.distributed  # whose stubs lack the name
    return distributed.HashStore()


@pytest.fixture
def ballots(store: Any) -> dict[int, Ballot]:
    """Ballots of three ranks."""
    return {rank: Ballot(store, "p", rank, range(3)) for rank in range(3)}


def test_all_ranks_decide_alike(store: Any, ballots: dict[int, Ballot]) -> None:
    assert decisions(store, 1, ["a", "a", "a"], ballots) == ["agreed"] * 3
    assert decisions(store, 2, ["a", "b", "a"], ballots) == ["refused"] * 3
    assert decisions(store, 3, ["a", None, "a"], ballots) == ["refused"] * 3
    assert decisions(store, 4, ["", "", ""], ballots) == ["agreed"] * 3
    assert decisions(store, 5, [None, None, None], ballots) == ["refused"] * 3


@pytest.mark.parametrize("late", [0, 2])
def test_a_rank_that_comes_late_finds_the_decision(ballots: dict[int, Ballot], late: int) -> None:
    first = 1 if late == 0 else 0
    with patch("client_sdk.distributed.ballot.PATIENCE", 0.05):
        assert ballots[first].cast(1, "a") == "late"
        assert ballots[late].cast(1, "a") == "late"


def test_nobody_waits_for_a_rank_that_has_left(store: Any, ballots: dict[int, Ballot]) -> None:
    decisions(store, 1, ["a", "a", "a"], ballots)
    ballots[1].withdraw()

    with patch("client_sdk.distributed.ballot.PATIENCE", 1e9):
        assert ballots[0].cast(2, "a") == "late"
        assert ballots[2].cast(2, "a") == "late"


def test_votes_leave_nothing_in_the_store(store: Any, ballots: dict[int, Ballot]) -> None:
    decisions(store, 1, ["a", "a", "a"], ballots)
    before = store.num_keys()
    for number in range(2, 20):
        decisions(store, number, ["a", "a", "a"], ballots)

    assert store.num_keys() <= 2 * before
