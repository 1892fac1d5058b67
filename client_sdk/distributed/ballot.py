"""Votes of ranks that are about to do something together, made through the store of the default process group.

A vote is asked for before collectives on the training thread, which would wait forever for a rank that does not come.
It is taken only if all ranks come with the same words within `PATIENCE`; one value of the store decides for all.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Final, Literal

from client_sdk.distributed.agreement import Store

Decision = Literal["agreed", "refused", "late"]
"""Decision of a vote: all ranks said the same, or not, or one of them did not come in time or has left."""

PATIENCE: Final = 5.0  # seconds that a rank waits for the others
SHORT_POLL: Final = 0.0005  # seconds between two looks at the store at first, as the others are usually there
LONG_POLL: Final = 0.005  # the same after QUICK; a blocking wait would keep others from the store
QUICK: Final = 0.05  # seconds


class Ballot:
    """Votes of the ranks of one team. Used on the training thread."""

    def __init__(self, store: Store, prefix: str, rank: int, ranks: Sequence[int]) -> None:
        """Vote as ``rank``, one of ``ranks``. ``prefix`` is that of the team's keys in the store."""
        self._store = store
        self._prefix = f"{prefix}/vote"
        self._rank = rank
        self._ranks = ranks
        self._last: int | None = None

    def cast(self, number: int, says: str | None) -> Decision:
        """Vote on ``number`` with the words ``says``, or None against it; return the decision, the same on all ranks.

        Waits at most `PATIENCE` for the other ranks. Numbers ascend.
        """
        store = self._store
        store.set(self._key(number, self._rank), f"-{says}" if says is not None else "no")
        deadline = time.monotonic() + PATIENCE
        decision = "late"
        if self._rank == self._ranks[0]:
            keys = [self._key(number, rank) for rank in self._ranks]
            if self._wait(keys, deadline):
                words = {store.get(key) for key in keys}
                decision = "agreed" if len(words) == 1 and words != {b"no"} else "refused"
            self._forget_last()
        else:
            self._wait([self._key(number, "decision")], deadline)
        self._last = number
        found = store.compare_set(self._key(number, "decision"), "", decision).decode()
        return "agreed" if found == "agreed" else "refused" if found == "refused" else "late"

    def withdraw(self) -> None:
        """Take part in no further vote, so that no rank waits for this one."""
        if self._last is not None:
            with contextlib.suppress(Exception):  # the store may be gone at the end of a training
                self._store.set(f"{self._prefix}/left", "yes")

    def _wait(self, keys: list[str], deadline: float) -> bool:
        """Wait until all ``keys`` exist; return False after the deadline, or once a rank has left."""
        began = time.monotonic()
        while not self._store.check(keys):
            now = time.monotonic()
            if now >= deadline or self._store.check([f"{self._prefix}/left"]):
                return False
            time.sleep(SHORT_POLL if now - began < QUICK else LONG_POLL)
        return True

    def _forget_last(self) -> None:
        """Delete the keys of the vote before, whose decision every rank that came in time has read."""
        if self._last is not None and hasattr(self._store, "delete_key"):
            details: list[int | str] = [*self._ranks, "decision"]
            for detail in details:
                self._store.delete_key(self._key(self._last, detail))

    def _key(self, number: int, detail: int | str) -> str:
        return f"{self._prefix}/{number}/{detail}"
