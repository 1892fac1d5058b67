"""The division of a model among ranks, computed from what they say of their parameters."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from client_sdk.distributed.agreement import Roster, RosterHolding
from client_sdk.distributed.division import divide
from client_sdk.distributed.replicas import checksums, compare

Copies = tuple[tuple[int, ...], ...]


def roster(copies: Copies = (), *, names: tuple[str, ...] = ("w",), value: int = 7, size: int = 10) -> Roster:
    """Return the roster of a rank whose parameters are all divided into ``copies``."""
    return Roster(
        layers=names,
        names=names,
        rows=tuple(range(len(names))),
        sizes=(size,) * len(names),
        holdings=(RosterHolding(copies=copies, is_flat=False, is_declared=False, obstacle=""),),
        holding_of=(0,) * len(names),
        is_held=(True,) * len(names),
        checksums=(0 if copies else value,) * len(names),
    )


def counting(rosters: dict[int, Roster]) -> list[int]:
    """Return the ranks whose part of the only parameter counts."""
    return [rank for rank in rosters if divide(rosters, rank).counts[0]]


def test_one_of_several_copies_counts() -> None:
    same = roster()
    rosters = dict.fromkeys(range(4), same)

    assert counting(rosters) == [0]
    assert [divide(rosters, rank).signs[0] for rank in rosters] == [3, -1, -1, -1]


def test_all_shards_of_one_copy_count() -> None:
    same = roster(((0, 1), (2, 3)))
    rosters = dict.fromkeys(range(4), same)

    assert counting(rosters) == [0, 1]
    assert [divide(rosters, rank).signs[0] for rank in rosters] == [1, 1, -1, -1]
    assert divide(rosters, 0).alike == {0: (0, 2), 1: (1, 3), 2: (0, 2), 3: (1, 3)}


def test_meshes_of_different_ranks_are_copies() -> None:
    first, second = roster(((0, 1),)), roster(((2, 3),))
    rosters = {0: first, 1: first, 2: second, 3: second}

    assert counting(rosters) == [0, 1]
    assert divide(rosters, 3).signs[0] == -1


def test_a_copy_with_a_missing_rank_does_not_count() -> None:
    same = roster(((0, 1), (2, 3)))
    rosters = dict.fromkeys((0, 2, 3), same)

    assert counting(rosters) == [2, 3]
    assert divide(dict.fromkeys((0, 2), same), 0).obstacles == {
        "w": "not every rank that holds a part of it called watch()"
    }


def test_unequal_values_are_no_copies() -> None:
    rosters = {0: roster(value=1), 1: roster(value=2)}

    assert counting(rosters) == []
    assert "different values" in divide(rosters, 0).obstacles["w"]


def test_copies_that_training_keeps_equal_are_not_compared_at_the_start() -> None:
    declared = (RosterHolding(copies=(), is_flat=False, is_declared=True, obstacle=""),)
    rosters = {rank: msgspec.structs.replace(roster(value=rank), holdings=declared) for rank in range(2)}

    assert counting(rosters) == [0]


def test_flat_parts_add_up_to_the_size_of_the_layer() -> None:
    flat = (RosterHolding(copies=((0, 1),), is_flat=True, is_declared=False, obstacle=""),)
    rosters = {rank: msgspec.structs.replace(roster(size=size), holdings=flat) for rank, size in ((0, 22), (1, 13))}

    assert divide(rosters, 1).sizes == (35,)


def test_layers_of_different_ranks_stand_together() -> None:
    rosters = {0: roster(names=("a", "b")), 1: roster(names=("c", "a"), size=4)}
    rosters[1] = msgspec.structs.replace(rosters[1], sizes=(4, 10))

    second = divide(rosters, 1)

    assert second.layers == ("a", "b", "c")
    assert second.sizes == (10, 10, 4)
    assert second.rows.tolist() == [2, 0]
    assert second.counts.tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
def test_a_checksum_sees_one_bit(dtype: torch.dtype) -> None:
    tensor = torch.randn(33, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    other = tensor.clone()
    other.view(torch.uint8)[20, 3] ^= 1

    same, changed, transposed = checksums([tensor, other, tensor.t()])[:3]
    assert same == checksums([tensor.clone()])[0]
    assert same != changed
    assert same == transposed


def test_a_minority_is_named_and_rounding_is_no_difference() -> None:
    alike = dict.fromkeys(range(3), (0, 1, 2))
    by_rank = {0: (5.0, 1.0), 1: (6.0, 1.0 + 1e-7), 2: (5.0, 1.0)}
    gaps = np.array([[0.0, 1e-7], [-3.0, 0.0]])

    (found,) = compare(gaps, np.array([1.0, 1.0]), by_rank, alike)

    assert (found.what, found.layers, found.ranks) == ("weights", (1,), (1,))
