"""The division of work among the ranks that watch one model: which part of which layer each of them contributes.

A parameter has one or several complete copies, each held by some ranks together. Exactly one copy counts; the others
are compared with it. Pure, and every rank computes the same division from the same rosters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from client_sdk.distributed.agreement import Roster

Copy = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Division:
    """Part of one rank in the measurement of a model, and the layers of all ranks together."""

    layers: tuple[str, ...]
    """Names of all layers that any rank watches."""
    sizes: tuple[int, ...]
    """Number of real numbers in each layer, those of all shards together."""
    rows: NDArray[np.intp]
    """Row among ``layers`` of each layer of this rank, [own layers]."""
    row_of: NDArray[np.intp]
    """Row among ``layers`` of each parameter of this rank, [own parameters]."""
    counts: NDArray[np.bool_]
    """Whether this rank's part of each of its parameters counts, [own parameters]."""
    signs: NDArray[np.float64]
    """Factor of each of this rank's parameters in the comparison of copies, [own parameters].

    For n copies it is n − 1 in the first copy and −1 in the others, so that the sum over equal copies is 0. It is 0
    for a parameter without a second copy.
    """
    others: NDArray[np.float64]
    """Number of copies of each of this rank's parameters beyond the first, at least 1, [own parameters]."""
    whole: frozenset[int]
    """Own layers whose parameters this rank holds completely, so that it knows their histograms."""
    alike: Mapping[int, tuple[int, ...]]
    """Ranks that hold the same parts of the same parameters as each rank, itself included, keyed by the rank."""
    obstacles: Mapping[str, str]
    """Reason for which a parameter is not measured, keyed by its name."""


def divide(rosters: Mapping[int, Roster], rank: int) -> Division:
    """Return the part of ``rank`` in the measurement of the parameters in ``rosters``, which are keyed by rank."""
    layers: dict[str, int] = {}
    for roster, _ in _groups(rosters):
        for name in roster.layers:
            layers.setdefault(name, len(layers))
    copies, obstacles = _copies(rosters)
    own = rosters[rank]
    counts = np.zeros(len(own.names), np.bool_)
    signs, others = np.zeros(len(own.names)), np.ones(len(own.names))
    is_whole = np.zeros(len(own.names), np.bool_)
    known: dict[int, _Part] = {}  # keyed by the list of copies, which many parameters share
    for at, name in enumerate(own.names):
        found = copies.get(name)
        if found is None or not own.is_held[at]:
            continue
        if id(found) not in known:
            known[id(found)] = _part_in(found, rank)
        counts[at], signs[at], others[at], is_whole[at] = known[id(found)]
    rows = np.array([layers[name] for name in own.layers], np.intp)
    broken = {row for row, whole in zip(own.rows, is_whole, strict=True) if not whole}
    return Division(
        layers=tuple(layers),
        sizes=_sizes(rosters, layers, copies),
        rows=rows,
        row_of=rows[np.array(own.rows, np.intp)],
        counts=counts,
        signs=signs,
        others=others,
        whole=frozenset(set(own.rows) - broken),
        alike=_alike(rosters, copies),
        obstacles=obstacles,
    )


class _Part(NamedTuple):
    """Part of a rank in the parameters that have certain copies."""

    counts: bool
    sign: float
    others: float
    is_whole: bool


def _part_in(found: Sequence[Copy], rank: int) -> _Part:
    counts = rank in found[0]
    others = float(max(1, len(found) - 1))
    is_comparable = len(found) > 1 and len({len(copy) for copy in found}) == 1
    sign = 0.0
    if is_comparable:
        sign = others if counts else -1.0 if any(rank in copy for copy in found) else 0.0
    return _Part(counts, sign, others, (rank,) in found)


def is_alone(roster: Roster) -> bool:
    """Return whether the rank of ``roster`` holds all of its parameters completely, so that it needs no other rank."""
    return all(roster.is_held) and all(not holding.copies and not holding.obstacle for holding in roster.holdings)


def _groups(rosters: Mapping[int, Roster]) -> list[tuple[Roster, list[int]]]:
    """Return each roster once, with the ranks that have it; equal rosters are one object."""
    groups: dict[int, tuple[Roster, list[int]]] = {}
    for rank, roster in rosters.items():
        groups.setdefault(id(roster), (roster, []))[1].append(rank)
    return list(groups.values())


_Found = Sequence[tuple[Roster, Sequence[int], int]]
"""The rosters that name a parameter, each with its ranks and the parameter's position."""


def _copies(rosters: Mapping[int, Roster]) -> tuple[dict[str, list[Copy]], dict[str, str]]:
    """Return the complete copies of each parameter by name, the one that counts first, and what has none, with why."""
    holders: dict[str, list[tuple[Roster, Sequence[int], int]]] = {}
    for roster, ranks in _groups(rosters):
        for at, name in enumerate(roster.names):
            holders.setdefault(name, []).append((roster, ranks, at))
    copies: dict[str, list[Copy]] = {}
    obstacles: dict[str, str] = {}
    known: dict[tuple[object, ...], list[Copy]] = {}
    for name, found in holders.items():
        obstacle = _obstacle(found)
        if obstacle:
            obstacles[name] = obstacle
            continue
        key = tuple((id(roster), roster.is_held[at], roster.holding_of[at]) for roster, _, at in found)
        if key not in known:
            known[key] = _complete_copies(found)
        if known[key]:
            copies[name] = known[key]
        else:
            obstacles[name] = "not every rank that holds a part of it called watch()"
    return copies, obstacles


def _obstacle(found: _Found) -> str:
    values = set()
    for roster, _, at in found:
        holding = roster.holdings[roster.holding_of[at]]
        if holding.obstacle:
            return holding.obstacle
        if not holding.copies and not holding.is_declared:
            values.add((roster.checksums[at], roster.sizes[at]))
    return "the ranks hold different values under this name" if len(values) > 1 else ""


def _complete_copies(found: _Found) -> list[Copy]:
    held = {rank for roster, ranks, at in found if roster.is_held[at] for rank in ranks}
    copies: dict[Copy, None] = {}
    for roster, ranks, at in found:
        for copy in roster.holdings[roster.holding_of[at]].copies or [(rank,) for rank in ranks]:
            if held.issuperset(copy):
                copies[copy] = None
    return sorted(copies, key=lambda copy: (min(copy), copy))


def _sizes(
    rosters: Mapping[int, Roster], layers: Mapping[str, int], copies: Mapping[str, Sequence[Copy]]
) -> tuple[int, ...]:
    sizes = [0] * len(layers)
    groups = _groups(rosters)
    at_of = {id(roster): {name: at for at, name in enumerate(roster.names)} for roster, _ in groups}
    done: set[str] = set()
    for roster, _ in groups:
        for at, name in enumerate(roster.names):
            if name in done:
                continue
            done.add(name)
            size = roster.sizes[at]
            if roster.holdings[roster.holding_of[at]].is_flat and name in copies:
                parts = ((rosters[rank], at_of[id(rosters[rank])]) for rank in copies[name][0])
                size = sum(part.sizes[positions[name]] for part, positions in parts)
            sizes[layers[roster.layers[roster.rows[at]]]] += size
    return tuple(sizes)


def _alike(rosters: Mapping[int, Roster], copies: Mapping[str, Sequence[Copy]]) -> dict[int, tuple[int, ...]]:
    """Return the ranks that hold the same parts of the same parameters as each rank."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for roster, ranks in _groups(rosters):
        kinds = {id(found): found for found in (copies.get(name, ()) for name in roster.names)}
        place = {key: {rank: at for copy in found for at, rank in enumerate(copy)} for key, found in kinds.items()}
        for rank in ranks:
            groups.setdefault((roster.names, *(at.get(rank, -1) for at in place.values())), []).append(rank)
    return {rank: tuple(group) for group in groups.values() for rank in group}
