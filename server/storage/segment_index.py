"""Where the segments of a run lie, kept in memory and brought up to date by what is new.

Complete by construction: within a writer, sequences are committed strictly in order, so everything after the last
sequence that is known is everything that is new. `writers.last_seq` tells in one small query whether there is any.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from server.schema import attempts, segments, writers
from server.storage.database import Database
from server.storage.lru import ByteLru

Ids = NDArray[np.int64]
_FIELDS = ("id", "writer_id", "rank", "attempt", "first_step", "last_step")


@dataclass(frozen=True, kw_only=True)
class SegmentIndex:
    """The segments of one run, ordered by id, and the attempts of its ranks."""

    table: Ids
    """(6, segments): the rows of `_FIELDS`."""
    known: dict[int, int]
    """Writer to the last sequence in `table`."""
    starts: dict[int, tuple[int, ...]]
    """Rank to the first step of each of its attempts."""

    @property
    def nbytes(self) -> int:
        return int(self.table.nbytes) + 64 * len(self.known)

    def ranks(self) -> list[int]:
        return sorted(self.starts)

    def view(self, rank: int, attempt: int | None) -> View:
        """What is shown of a rank: one attempt, or for None of each attempt what no later one replaced."""
        table = self.table[:, self.table[2] == rank]
        ids, writer_ids, _, tries, first, last = table
        if attempt is not None:
            kept = tries == attempt
            return View(ids=ids[kept], writer_ids=writer_ids[kept], first=first[kept], last=last[kept])
        starts = np.array(self.starts.get(rank, ()), dtype=np.int64)
        if len(starts) == 0:
            return View(ids=ids, writer_ids=writer_ids, first=first, last=last)
        # An attempt is visible up to the least first step of those after it.
        ceiling = np.full(len(starts), np.iinfo(np.int64).max)
        if len(starts) > 1:
            ceiling[:-1] = np.minimum.accumulate(starts[::-1])[::-1][1:] - 1
        shown_last = np.minimum(last, ceiling[tries])
        kept = first <= shown_last
        return View(ids=ids[kept], writer_ids=writer_ids[kept], first=first[kept], last=shown_last[kept])


@dataclass(frozen=True, kw_only=True)
class View:
    """Segments in the order of their commits, each with the steps that are to be shown of it."""

    ids: Ids
    writer_ids: Ids
    first: Ids
    last: Ids

    def overlapping(self, step_from: int, step_to: int) -> View:
        kept = (self.first <= step_to) & (self.last >= step_from)
        return View(ids=self.ids[kept], writer_ids=self.writer_ids[kept], first=self.first[kept], last=self.last[kept])

    def span(self) -> tuple[int, int] | None:
        """The first and last step shown."""
        return None if len(self.ids) == 0 else (int(self.first.min()), int(self.last.max()))

    def fingerprint(self) -> tuple[int, int, int]:
        """Equal fingerprints of the same range of the same run mean equal contents: segments never change, only come
        (their ids grow) or are cut short by a later attempt (their last steps shrink)."""
        if len(self.ids) == 0:
            return (0, 0, 0)
        return (len(self.ids), int(self.ids.max()), int(np.bitwise_xor.reduce(self.ids * 31 + self.last)))


class SegmentIndexStore:
    """Gives the index of a run, reading only what was committed since the last time."""

    def __init__(self, database: Database, cache: ByteLru) -> None:
        self._database = database
        self._cache = cache

    async def get(self, run_id: str) -> SegmentIndex:
        cached: SegmentIndex | None = self._cache.get(("index", run_id))
        async with self._database.read() as connection:
            heads = {
                row.id: row.last_seq
                for row in await connection.execute(
                    select(writers.c.id, writers.c.last_seq).where(writers.c.run_id == run_id)
                )
            }
            known = {} if cached is None else cached.known
            if cached is not None and all(known.get(writer, 0) == head for writer, head in heads.items()):
                return cached
            found: list[tuple[int, ...]] = []
            reached: dict[int, int] = dict(known)
            for writer, head in heads.items():
                if known.get(writer, 0) == head:
                    continue
                rows = await connection.execute(
                    select(*(segments.c[name] for name in _FIELDS))
                    .where(
                        segments.c.writer_id == writer,
                        segments.c.first_seq > known.get(writer, 0),
                        segments.c.last_seq <= head,
                    )
                    .order_by(segments.c.first_seq)
                )
                found += [tuple(row) for row in rows]
                reached[writer] = head
            tries = await connection.execute(
                select(attempts.c.rank, attempts.c.first_step)
                .where(attempts.c.run_id == run_id)
                .order_by(attempts.c.rank, attempts.c.attempt)
            )
            starts: dict[int, tuple[int, ...]] = {}
            for row in tries:
                starts[row.rank] = (*starts.get(row.rank, ()), row.first_step)
        fresh = np.array(found, dtype=np.int64).reshape(-1, len(_FIELDS)).T
        table = fresh if cached is None else np.concatenate([cached.table, fresh], axis=1)
        table = table[:, np.argsort(table[0], kind="stable")]
        index = SegmentIndex(table=table, known=reached, starts=starts)
        self._cache.put(("index", run_id), index, index.nbytes)
        return index
