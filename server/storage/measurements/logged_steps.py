"""Query whether scalars were logged after a step, for telling late records from a training that went back."""

from __future__ import annotations

from collections.abc import Sequence

from server.pyramid.row_selection import RowSelection
from server.storage.measurements.reader import BucketReader


class LoggedStepsQuery:
    """Reads which scalars the training of a rank has logged."""

    def __init__(self, reader: BucketReader) -> None:
        self._reader = reader

    async def logged_after(self, run_id: str, rank: int, attempt: int, step: int, names: Sequence[str]) -> list[str]:
        """Return those of ``names`` that training has logged after ``step`` in an attempt; late records do not count.

        Raises `CorruptDataError` and `DatabaseError`.
        """
        selection = RowSelection(scalars=dict.fromkeys(names, rank), fields=frozenset({"last"}), rows=len(names))
        result = await self._reader.read(
            run_id, selection, step_from=step + 1, step_to=None, max_buckets=1, attempt=attempt, with_late=False
        )
        if result is None:
            return []
        measured = result.buckets.measured()
        return [name for row, name in enumerate(names) if measured[row].any()]
