"""Series: scalars of a run over its steps, at the resolution that fits the asked number of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.pyramid.buckets import ALL_FIELDS, Buckets
from server.storage.measurements.reader import BucketReader
from server.storage.measurements.wanted import Wanted
from server.storage.runs import RunStore


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
        ranks: Mapping[str, int] | None = None,
    ) -> Series:
        """At most ``points`` buckets of each name, at step_from ≤ step ≤ step_to, by default all steps.

        The range is clamped to the steps that the run has. A name is read from the lowest rank that logs it; ``ranks``
        are these ranks, where they are known already. Raises `CorruptDataError` and `DatabaseError`.
        """
        ranks = await self._runs.scalar_ranks(run_id) if ranks is None else ranks
        wanted = {name: ranks[name] for name in dict.fromkeys(names) if name in ranks}
        reading = await self._reader.read(
            run_id,
            Wanted(scalars=wanted, fields=ALL_FIELDS, rows=len(wanted)),
            step_from=step_from,
            step_to=step_to,
            most=points,
            attempt=attempt,
        )
        if reading is None:
            return Series(step_from=step_from or 0, step_to=step_to or 0, bucket_steps=1, series={})
        first, last = reading.window
        return Series(
            step_from=first, step_to=last, bucket_steps=reading.width, series=_rows(list(wanted), reading.buckets)
        )


def _rows(names: Sequence[str], buckets: Buckets) -> dict[str, Buckets]:
    """Each name by itself, without the buckets in which it has nothing."""
    measured = buckets.measured()
    found = {}
    for row, name in enumerate(names):
        own = buckets.of(slice(row, row + 1))
        if measured[row].any():
            found[name] = own if measured[row].all() else own.at(measured[row])
    return found
