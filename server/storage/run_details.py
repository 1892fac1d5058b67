"""Name, tags and notes of runs as people write them, and whether a run is archived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select, update

from server.models import DELETING
from server.schema import runs
from server.storage.database import Database
from server.storage.id_list import padded
from server.storage.loss_choices import renew_version


class RunDetailStore:
    """Stores what people write about runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def change(
        self,
        run_id: str,
        *,
        name: str | None = None,
        tags: tuple[str, ...] | None = None,
        notes: str | None = None,
        archived_at: float | None = None,
        is_unarchived: bool = False,
    ) -> bool:
        """Change what is given and leave the rest. Returns False if there is no such run.

        ``archived_at``: Unix time at which the run is put away. ``is_unarchived``: whether it is listed again.
        """
        values: dict[str, Any] = {
            key: value
            for key, value in {"name": name, "notes": notes, "archived_at": archived_at}.items()
            if value is not None
        }
        if tags is not None:
            values["tags"] = list(tags)
        if is_unarchived:
            values["archived_at"] = None
        return await self._write(run_id, values, is_relabelled=name is not None or tags is not None)

    async def notes_of(self, run_ids: Sequence[str]) -> dict[str, str]:
        """Return the notes of those of these runs that have any, keyed by run id."""
        query = select(runs.c.id, runs.c.notes).where(runs.c.id.in_(padded(run_ids)), runs.c.notes.is_not(None))
        async with self._database.read() as connection:
            return {row.id: row.notes for row in await connection.execute(query) if row.notes}

    async def _write(self, run_id: str, values: Mapping[str, Any], *, is_relabelled: bool) -> bool:
        if not values:
            return True
        async with self._database.write() as connection:
            shown = runs.c.id == run_id, runs.c.state != DELETING
            changed = await connection.execute(update(runs).where(*shown).values(**values))
            if changed.rowcount == 1 and is_relabelled:
                # The detectors read name, tags and choices of the loss together, and notice the change by one version.
                await renew_version(connection)
            return changed.rowcount == 1
