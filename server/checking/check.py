"""Checks a stored run, or logs that are imported into a temporary database."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from server.checking.finding import RunFacts
from server.config import Config
from server.errors import ConfigurationError
from server.imports.options import ReadOptions
from server.storage import migrate
from server.storage.alerts import AlertStore
from server.storage.audits import AuditStore
from server.storage.database import Database
from server.storage.events import EventStore
from server.storage.fleet import FleetQuery
from server.storage.layouts import LayoutStore
from server.storage.runs import RunStore
from server.transfers import import_paths

PAGE = 500  # runs


async def check_run(database: Database, run_id: str) -> list[RunFacts]:
    """Return what is known of a stored run. Raises `ConfigurationError` if there is none, and `DatabaseError`."""
    await migrate.upgrade(database)
    facts = await _facts(database, [run_id])
    if not facts:
        raise ConfigurationError(
            f"{run_id} is neither a file, a folder nor a run; `spikewatch runs` lists the runs of this database"
        )
    return facts


async def check_path(
    path: Path, *, renames: Mapping[str, str] | None = None, options: ReadOptions | None = None
) -> list[RunFacts] | None:
    """Import the logs below a path into a database that is deleted afterwards, and return what is known of their runs.

    What cannot be read is reported on stderr; then the answer is None.
    """
    with tempfile.TemporaryDirectory(prefix="spikewatch-check-") as directory:
        config = Config(data=Path(directory), database_url=f"sqlite:///{Path(directory) / 'check.sqlite3'}")
        database = Database(config.resolved_database_url)
        try:
            broken = await import_paths(config, database, [path], renames=renames, options=options, tells_runs=False)
            if broken:
                return None
            fleet = FleetQuery(database, RunStore(database), LayoutStore(database))
            ids: list[str] = []
            cursor = None
            while True:
                page = await fleet.page(limit=PAGE, cursor=cursor)
                ids += (run.id for run in page.runs)
                if len(page.runs) < PAGE:
                    break
                cursor = (page.runs[-1].created_at, page.runs[-1].id)
            return await _facts(database, ids)
        finally:
            await database.close()


async def _facts(database: Database, run_ids: Sequence[str]) -> list[RunFacts]:
    fleet = FleetQuery(database, RunStore(database), LayoutStore(database))
    alerts, events, audits = AlertStore(database), EventStore(database), AuditStore(database)
    found = []
    for run_id in run_ids:
        run = await fleet.details(run_id)
        if run is not None:
            raised = [alert async for alert in alerts.walk(run_id)]
            found.append(
                RunFacts(
                    run=run,
                    alerts=raised,
                    events=await events.of_run(run_id),
                    audit=await audits.of_run(run_id),
                )
            )
    return found
