"""Which faults come in which order. Pure: a seed makes a schedule."""

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
KINDS: tuple[Kind, ...] = get_args(Kind)
OF_SEVERAL_SERVERS: frozenset[Kind] = frozenset({"kill -9 postgres", "kill -9 redis", "server hangs"})
"""Those that need a database and a Redis apart from the server, and a second server."""

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


@dataclass(frozen=True, kw_only=True)
class Fault:
    kind: Kind
    amount: float
    """0 … 1: what the kind makes of it."""


def schedule(seed: int, count: int, kinds: Sequence[Kind]) -> list[Fault]:
    """``count`` faults, each kind at least once and about as often as its share."""
    if count < len(kinds):
        raise ValueError(f"{count} faults are too few for {len(kinds)} kinds")
    chance = random.Random(seed)
    total = sum(SHARES[kind] for kind in kinds)
    chosen = [kind for kind in kinds for _ in range(max(1, SHARES[kind] * count // total))]
    while len(chosen) > count:
        chosen.remove(max(kinds, key=chosen.count))
    chosen += chance.choices(kinds, [SHARES[kind] for kind in kinds], k=count - len(chosen))
    chance.shuffle(chosen)
    return [Fault(kind=kind, amount=chance.random()) for kind in chosen]
