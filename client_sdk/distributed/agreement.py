"""The agreement of the ranks that watch one model, made through the store of the default process group.

Owns the question which ranks take part, and the time limits of its answer. A rank announces itself in `watch`. Before
the first step of its optimizer it exchanges a card with the others: training has synchronised all ranks by then, so
that whoever has not announced itself does not watch. No collective is entered before every rank that takes part has
said so, and one value of the store decides for all of them. Called on the training thread.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

GATHER_TIMEOUT: Final = 60.0  # seconds for ranks that have announced themselves to reach their first step
VERDICT_MARGIN: Final = 10.0  # seconds that the others give the leader beyond its own limit
POLL_INTERVAL: Final = 0.005  # seconds between two looks at the store; a wait would block its other users
AGREED: Final = "agreed"
PREFIX: Final = "spikewatch/watch"


class Store(Protocol):
    """The methods of `torch.distributed.Store` that the agreement needs."""

    def set(self, key: str, value: str | bytes, /) -> None:
        """Set the value of ``key``."""
        ...

    def get(self, key: str, /) -> bytes:
        """Return the value of ``key``, which must exist."""
        ...

    def add(self, key: str, amount: int, /) -> int:
        """Add ``amount`` to the number of ``key``, which is 0 if it does not exist, and return it."""
        ...

    def check(self, keys: list[str], /) -> bool:
        """Return whether all of ``keys`` exist."""
        ...

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        """Set ``key`` to ``desired`` if its value is ``expected`` (empty: if it does not exist); return its value."""
        ...


class Roster(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters that one rank watches. Ranks that hold the same parts of the same model have equal rosters."""

    layers: tuple[str, ...]
    """Names of the layers in the order of the rank's rows."""
    names: tuple[str, ...]
    """Name of each parameter."""
    rows: tuple[int, ...]
    """Row of each parameter."""
    sizes: tuple[int, ...]
    """Number of real numbers in each parameter, of the local part alone if the holding is flat."""
    holdings: tuple[RosterHolding, ...]
    """Holdings that occur."""
    holding_of: tuple[int, ...]
    """Position of each parameter's holding in ``holdings``."""
    is_held: tuple[bool, ...]
    """Whether the rank can measure each parameter: ZeRO-1 leaves the state of most parameters to other ranks."""
    checksums: tuple[int, ...]
    """Checksum of the values of each parameter, 0 unless the rank holds a complete copy of its own."""


class RosterHolding(msgspec.Struct, frozen=True, kw_only=True):
    """A `placements.Holding` in the form that is exchanged."""

    copies: tuple[tuple[int, ...], ...]
    is_flat: bool
    is_declared: bool
    obstacle: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Outcome of an agreement."""

    rosters: dict[int, Roster]
    """Roster of each rank that takes part, in the order of the ranks; empty without an agreement."""
    refusal: str = ""
    """Reason for which there is no agreement, or empty."""


class Agreement:
    """The agreement about one call of `watch`.

    Agreements are made in rounds. A round is led by the first rank that reaches it, takes in all ranks that have
    announced a `watch` without an agreement yet, and is closed by its verdict. Ranks that watch several models reach
    the first steps of their optimizers in the same order.
    """

    def __init__(self, store: Store, rank: int, world: Sequence[int]) -> None:
        """Announce that ``rank`` watches a model."""
        self._store = store
        self._rank = rank
        self._world = world
        self._prefix = ""
        self._is_pending = True
        store.add(_announced(rank), 1)

    def withdraw(self) -> None:
        """Take the announcement back. May be called more than once."""
        if self._is_pending:
            self._is_pending = False
            self._store.add(_announced(self._rank), -1)

    def conclude(self, roster: Roster) -> Answer:
        """Return the rosters of all ranks that take part, or the reason for which there is no agreement.

        Waits until every rank that has announced itself calls this method, at most `GATHER_TIMEOUT`.
        """
        try:
            return self._conclude(roster)
        finally:
            self.withdraw()

    def _conclude(self, roster: Roster) -> Answer:
        deadline = time.monotonic() + GATHER_TIMEOUT
        store, rank = self._store, self._rank
        self._prefix = self._open_round()
        content = msgspec.msgpack.encode(roster)
        digest = hashlib.blake2s(content, digest_size=16).hexdigest()
        store.set(self._key("roster", digest), content)
        store.set(self._key("card", rank), digest)
        leader = int(store.compare_set(self._key("leader"), "", str(rank)))
        if leader == rank:
            members = [other for other in self._world if other == rank or self._is_announced(other)]
            store.set(self._key("members"), ",".join(map(str, members)))
            missing = self._gather(members, deadline)
            verdict = f"ranks {_listed(missing)} did not reach their first step in time" if missing else AGREED
        else:
            verdict = f"rank {leader} did not answer in time"
            if self._await(self._key("verdict"), deadline + VERDICT_MARGIN):
                verdict = store.get(self._key("verdict")).decode()
        verdict = store.compare_set(self._key("verdict"), "", verdict).decode()
        if verdict != AGREED:
            return Answer(rosters={}, refusal=verdict)
        members = [int(member) for member in store.get(self._key("members")).decode().split(",")]
        if rank not in members:
            return Answer(rosters={}, refusal=f"rank {rank} called watch() after the others had begun to train")
        known = {digest: roster}
        rosters = {}
        for member in members:
            found = store.get(self._key("card", member)).decode()
            if found not in known:
                known[found] = msgspec.msgpack.decode(store.get(self._key("roster", found)), type=Roster)
            rosters[member] = known[found]
        return Answer(rosters=rosters)

    @property
    def prefix(self) -> str:
        """Prefix of the keys of this agreement's round in the store."""
        return self._prefix

    def _open_round(self) -> str:
        """Return the prefix of the first round without a verdict."""
        number = 0
        while self._store.check([f"{PREFIX}/{number}/verdict/"]):
            number += 1
        return f"{PREFIX}/{number}"

    def _is_announced(self, rank: int) -> bool:
        key = _announced(rank)
        return self._store.check([key]) and int(self._store.get(key)) > 0

    def _gather(self, members: Sequence[int], deadline: float) -> list[int]:
        """Wait for the cards of ``members`` until ``deadline``, and return those whose card is missing."""
        while not self._store.check([self._key("card", member) for member in members]):
            if time.monotonic() >= deadline:
                return [member for member in members if not self._store.check([self._key("card", member)])]
            time.sleep(POLL_INTERVAL)
        return []

    def _await(self, key: str, deadline: float) -> bool:
        while not self._store.check([key]):
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_INTERVAL)
        return True

    def _key(self, name: str, detail: int | str = "") -> str:
        return f"{self._prefix}/{name}/{detail}"


def _announced(rank: int) -> str:
    """Return the key that counts the announcements of a rank without an agreement yet."""
    return f"{PREFIX}/announced/{rank}"


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (" …" if len(ranks) > 8 else "")
