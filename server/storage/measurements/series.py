"""Query for scalars of a run over its steps, at the resolution that fits the requested number of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.pyramid.buckets import ALL_FIELDS, Buckets
from server.pyramid.row_selection import RowSelection
from server.storage.measurements.reader import BucketReader
from server.storage.runs import RunStore


@dataclass(frozen=True, kw_only=True)
class Series:
    """Buckets of several scalars, all of the same width."""

    step_from: int
    step_to: int
    bucket_steps: int
    """Steps in each bucket."""
    series: dict[str, Buckets]
    """Buckets of each scalar, one row, keyed by name. A scalar without values in the range is absent."""


class SeriesQuery:
    """Reads series of scalars."""

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
        """Return at most ``points`` buckets of each scalar from ``step_from`` to ``step_to``, both included.

        None on either side means no bound; the range is clamped to the steps that the run has. A scalar is read from
        the lowest rank that logs it; ``ranks`` passes these ranks where they are already known. Raises
        `CorruptDataError` and `DatabaseError`.
        """
        ranks = await self._runs.scalar_ranks(run_id) if ranks is None else ranks
        scalars = {name: ranks[name] for name in dict.fromkeys(names) if name in ranks}
        result = await self._reader.read(
            run_id,
            RowSelection(scalars=scalars, fields=ALL_FIELDS, rows=len(scalars)),
            step_from=step_from,
            step_to=step_to,
            max_buckets=points,
            attempt=attempt,
        )
        if result is None:
            return Series(step_from=step_from or 0, step_to=step_to or 0, bucket_steps=1, series={})
        first, last = result.step_range
        return Series(
            step_from=first, step_to=last, bucket_steps=result.width, series=_rows(list(scalars), result.buckets)
        )


def _rows(names: Sequence[str], buckets: Buckets) -> dict[str, Buckets]:
    """Return each row by itself, without the buckets in which it has no values."""
    measured = buckets.measured()
    found = {}
    for row, name in enumerate(names):
        own = buckets.of(slice(row, row + 1))
        if measured[row].any():
            found[name] = own if measured[row].all() else own.at(measured[row])
    return found
