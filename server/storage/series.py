"""Series: scalars of a run over its steps, at the resolution that fits the asked number of points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.storage.buckets import ALL_FIELDS, Buckets
from server.storage.reader import BucketReader
from server.storage.runs import RunStore
from server.storage.wanted import Wanted


@dataclass(frozen=True, kw_only=True)
class Series:
    """Buckets of several scalars, all of one width."""

    step_from: int
    step_to: int
    bucket_steps: int
    series: dict[str, Buckets]
    """One row each; a name without values in the range has no buckets and is absent."""


class SeriesQuery:
    def __init__(self, runs: RunStore, reader: BucketReader) -> None:
        self._runs = runs
        self._reader = reader

    async def read(
        self,
        run_id: str,
        names: Sequence[str],
        *,
        step_from: int | None,
        step_to: int | None,
        points: int,
        attempt: int | None = None,
    ) -> Series:
        """At most ``points`` buckets of each name, at step_from ≤ step ≤ step_to, by default all steps.

        The range is clamped to the steps that the run has. A name is read from the lowest rank that logs it.
        Raises `CorruptDataError` and `DatabaseError`.
        """
        ranks = await self._runs.scalar_ranks(run_id)
        wanted: dict[int, frozenset[str]] = {}
        for name in names:
            if name in ranks:
                wanted[ranks[name]] = wanted.get(ranks[name], frozenset()) | {name}
        reading = await self._reader.read(
            run_id,
            Wanted(scalars=wanted, fields=ALL_FIELDS),
            step_from=step_from,
            step_to=step_to,
            most=points,
            attempt=attempt,
        )
        if reading is None:
            return Series(step_from=step_from or 0, step_to=step_to or 0, bucket_steps=1, series={})
        first, last = reading.window
        return Series(
            step_from=first,
            step_to=last,
            bucket_steps=reading.width,
            series={group.name: buckets for group, buckets in reading.groups.items()},
        )
