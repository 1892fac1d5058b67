"""The schedule of the faults of a chaos campaign. Pure: a seed determines a schedule."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "kill -9 trainer",
    "kill -9 server",
    "kill -9 postgres",
    "kill -9 redis",
    "server hangs",
    "cut in mid-frame",
    "answers cut off",
    "delayed frame",
    "duplicated frames",
    "disk full",
    "clock jump",
]
"""Kind of a fault."""
KINDS: tuple[Kind, ...] = get_args(Kind)
"""All kinds of faults in the order of the table."""
OF_SEVERAL_SERVERS: frozenset[Kind] = frozenset({"kill -9 postgres", "kill -9 redis", "server hangs"})
"""Kinds of faults that need a separate database and Redis, and a second server."""

SHARES: dict[Kind, int] = {
    "kill -9 trainer": 16,
    "kill -9 server": 12,
    "kill -9 postgres": 10,
    "kill -9 redis": 8,
    "server hangs": 6,
    "cut in mid-frame": 20,
    "answers cut off": 10,
    "delayed frame": 12,
    "duplicated frames": 14,
    "disk full": 6,
    "clock jump": 10,
}
"""Number of faults of each kind in a schedule of all 124, which sets their proportions."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault to inject."""

    kind: Kind
    amount: float
    """Severity of the fault, 0 to 1, whose meaning depends on the kind."""


def schedule(seed: int, count: int, kinds: Sequence[Kind]) -> list[Fault]:
    """Return ``count`` faults, with each kind at least once and about as often as its share.

    Raises `ValueError` if there are fewer faults than kinds.
    """
    if count < len(kinds):
        raise ValueError(f"{count} faults are too few for {len(kinds)} kinds; use at least {len(kinds)}")
    chance = random.Random(seed)
    total = sum(SHARES[kind] for kind in kinds)
    chosen = [kind for kind in kinds for _ in range(max(1, SHARES[kind] * count // total))]
    while len(chosen) > count:
        chosen.remove(max(kinds, key=chosen.count))
    chosen += chance.choices(kinds, [SHARES[kind] for kind in kinds], k=count - len(chosen))
    chance.shuffle(chosen)
    return [Fault(kind=kind, amount=chance.random()) for kind in chosen]
