"""Exports, imports and deletes runs directly on the database, with progress in the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from server.assembly.pipeline import make_pipeline
from server.broker import MemoryBroker
from server.config import Config
from server.errors import ConfigurationError, ImportFileError
from server.exports.archive import Archiver
from server.exports.columns import ExportColumns
from server.exports.exporter import Exporter, Format
from server.imports.csv_file import SIDECAR
from server.imports.discover import Opener, discover
from server.imports.importer import Imported, Importer
from server.imports.logged_run import LoggedRun, Note
from server.imports.options import ReadOptions
from server.pipeline.deletion import Deleter
from server.storage import migrate
from server.storage.alerts import AlertStore
from server.storage.database import Database
from server.storage.deletion import DeletionStore
from server.storage.events import EventStore
from server.storage.fleet import FleetQuery
from server.storage.layouts import LayoutStore
from server.storage.measurements.histogram_history import HistogramHistory
from server.storage.measurements.steps import Selection, StepReader
from server.storage.run_details import RunDetailStore
from server.storage.runs import RunStore

FORMATS = {".parquet": Format.PARQUET, ".csv": Format.CSV, ".zip": Format.ZIP}
FOLLOWER_IDLE = 0.05  # seconds; an import returns when its detectors have read everything


async def export_run(database: Database, run_id: str, out: Path, *, layers: bool = False) -> int:
    """Write a run to a file and return the number of its records.

    The extension of ``out`` selects the format; a CSV is accompanied by a JSON file with the settings of the run. The
    file appears complete or not at all. Raises `ConfigurationError`, `RunDeletedError`, `CorruptDataError` and
    `DatabaseError`.
    """
    form = FORMATS.get(out.suffix.lower())
    if form is None:
        raise ConfigurationError(f"{out}: unknown format; use one of the extensions {', '.join(FORMATS)}")
    await migrate.upgrade(database)
    stored = LayoutStore(database)
    run = await FleetQuery(database, RunStore(database), stored).details(run_id)
    if run is None:
        raise ConfigurationError(f"there is no run {run_id!r}; `spikewatch runs` lists them")
    exporter = Exporter(StepReader(database, stored))
    archiver = Archiver(exporter, HistogramHistory(database), EventStore(database), AlertStore(database))
    steps = await exporter.begin(run_id)
    part, about_part = (out.with_name(f".{out.name}.{os.getpid()}.{name}") for name in ("part", "about"))
    try:
        with _progress() as progress, part.open("wb") as file:
            task = progress.add_task(out.name, total=steps.records)

            def advance(records: int) -> None:
                progress.advance(task, records)

            if form is Format.ZIP:
                pieces = archiver.stream(run, steps, progress=advance)
            else:
                pieces = exporter.stream(run, steps, form, layers=layers, progress=advance)
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    file.write(piece)
        if form is Format.CSV:
            about = ExportColumns.of(run, steps, Selection()).metadata()
            about_part.write_bytes(msgspec.json.format(msgspec.json.encode(about)))
            about_part.replace(out.with_name(out.name + SIDECAR))
        part.replace(out)
    except OSError as error:
        raise ConfigurationError(f"{out} cannot be written ({error.strerror or error})") from error
    finally:
        for left in (part, about_part):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)
    return steps.records


async def import_paths(
    config: Config,
    database: Database,
    paths: Sequence[Path],
    *,
    project: str | None = None,
    renames: Mapping[str, str] | None = None,
    options: ReadOptions | None = None,
    tells_runs: bool = True,
) -> int:
    """Import all runs below the paths, report each on stderr, and return the number of files that could not be read.

    ``renames`` maps names in the files to names of scalars, and ``options`` say how files are read. Without
    ``tells_runs`` only what is left out and what cannot be read is reported. Raises `DatabaseError`.
    """
    await migrate.upgrade(database)
    pipeline = make_pipeline(config, database, MemoryBroker(config.live_queue), follower_idle=FOLLOWER_IDLE)
    importer, alerts = Importer(pipeline), AlertStore(database)
    broken = 0
    try:
        with _progress() as progress:
            reported: set[str] = set()

            def note(text: str) -> None:
                if text in reported:  # a file is read more than once
                    return
                reported.add(text)
                progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

            def report(error: ImportFileError) -> None:
                note(f"spikewatch: {error}")

            for path in paths:
                for opener in _openers(path, options or ReadOptions(), note, report):
                    if opener is None:
                        broken += 1
                        continue
                    try:
                        logged = await asyncio.to_thread(opener)
                        done = await _import_all(importer, logged, progress, project, renames)
                        for run, imported in zip(logged, done, strict=True):
                            if run.notes and imported.new_records:  # later ones may have been written here
                                await RunDetailStore(database).change(imported.run_id, notes=run.notes)
                        for run, imported in zip(logged, done, strict=True) if tells_runs else ():
                            raised = await alerts.find(run_ids=[imported.run_id])
                            note(_sentence(run, imported, len(raised)))
                    except ImportFileError as error:
                        broken += 1
                        report(error)
    finally:
        await pipeline.stop()
    return broken


async def delete_run(database: Database, run_id: str) -> None:
    """Delete a run and return when its space is free. Raises `ConfigurationError` and `DatabaseError`."""
    await migrate.upgrade(database)
    deleter = Deleter(DeletionStore(database), forget=lambda _: None, clock=time.time, retention_days=0, look_every=1.0)
    if not await deleter.delete(run_id):
        raise ConfigurationError(f"there is no run {run_id!r}; `spikewatch runs` lists them")
    await deleter.purge()


async def _import_all(
    importer: Importer,
    logged: Sequence[LoggedRun],
    progress: Progress,
    project: str | None,
    renames: Mapping[str, str] | None,
) -> list[Imported]:
    task = progress.add_task("", total=None)

    def of_run(run: LoggedRun) -> Callable[[int, int], None]:
        progress.update(task, description=run.name)
        return lambda done, total: progress.update(task, completed=done, total=total)

    try:
        return await importer.import_runs(logged, project=project, renames=renames, progress=of_run)
    finally:
        progress.remove_task(task)


def _openers(
    path: Path, options: ReadOptions, note: Note, report: Callable[[ImportFileError], None]
) -> Iterator[Opener | None]:
    """Yield a function that opens each file below a path, or None after reporting that there is nothing to import."""
    try:
        for _, opener in discover(path, options, note):
            yield opener
    except ImportFileError as error:
        report(error)
        yield None


def _sentence(logged: LoggedRun, done: Imported, alerts: int) -> str:
    named = "".join(f", {old} → {new}" for old, new in done.renamed.items())
    fresh = "" if done.new_records == done.records else f", {done.new_records} of them new"
    raised = f"{alerts} alert{'' if alerts == 1 else 's'}"
    name = "" if logged.name == logged.path.stem else f" ({logged.name})"
    return f"{logged.path}: run {done.run_id}{name} in {done.project}, {done.records} records{fresh}, {raised}{named}"


def _progress() -> Progress:
    """Return a progress display on stderr, which is disabled unless stderr is a terminal."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
