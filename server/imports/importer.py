"""Import of a logged run through the pipeline, as if a training process had sent it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from client_sdk.protocol import MAX_SCALARS, PROTOCOL_VERSION, Batch, Finish, Hello, Record
from client_sdk.vocabulary import guess_names
from server.errors import ImportFileError, IngestError
from server.imports.logged_run import LoggedRun
from server.ingest.hello import checked
from server.models import Principal, Scope
from server.pipeline.packing import is_name
from server.pipeline.pipeline import Pipeline
from server.pipeline.writer_session import WriterSession

BATCH_RECORDS = 1_024
BATCH_BYTES = 4 * 1024 * 1024  # blocks and histograms
DEFAULT_PROJECT = "imported"

Progress = Callable[[int, int], None]
"""Function that receives the number of imported records and their total."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Result of an import."""

    run_id: str
    name: str
    project: str
    records: int
    new_records: int
    """Number of records that no earlier import had stored."""
    renamed: Mapping[str, str]
    """Names of scalars in the run, keyed by their names in the file."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Summary of a logged run that must be known before it is stored."""

    records: int
    names: frozenset[str]
    ranks: frozenset[int]
    started_at: float


class Importer:
    """Importer of logged runs into a pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def import_run(
        self,
        logged: LoggedRun,
        *,
        project: str | None = None,
        renames: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> Imported:
        """Import one run, and wait until the detectors have read all of it.

        ``renames`` maps names in the file to names of scalars. The run's id is derived from the contents, the project
        and ``renames``: a repeated import changes nothing, and an interrupted one is continued. The file is read once
        before anything is stored, so that a damaged file leaves no trace. Raises `ImportFileError` and `DatabaseError`.
        """
        overview = await asyncio.to_thread(survey, logged)
        return await self._import(logged, overview, project=project, renames=renames, progress=progress)

    async def import_runs(
        self,
        logged: Sequence[LoggedRun],
        *,
        project: str | None = None,
        renames: Mapping[str, str] | None = None,
        progress: Callable[[LoggedRun], Progress] | None = None,
    ) -> list[Imported]:
        """Import the runs of one file as `import_run` does. All are read before the first is stored.

        ``progress`` returns the function that receives the progress of a run.
        """
        overviews = [await asyncio.to_thread(survey, run) for run in logged]
        done = []
        for run, overview in zip(logged, overviews, strict=True):
            told = None if progress is None else progress(run)
            done.append(await self._import(run, overview, project=project, renames=renames, progress=told))
        return done

    async def _import(
        self,
        logged: LoggedRun,
        overview: Overview,
        *,
        project: str | None,
        renames: Mapping[str, str] | None,
        progress: Progress | None,
    ) -> Imported:
        chosen = dict(renames or {})
        for name in chosen:
            if name not in overview.names:
                raise ImportFileError(logged.path, None, f"it has no scalar {name!r} to rename")
        if logged.renames:
            taken = set(chosen.values())
            free = overview.names - set(chosen)
            chosen |= {name: known for name, known in guess_names(free | taken).items() if name not in taken}
        chosen_project = project or logged.project or DEFAULT_PROJECT
        run_id = _run_id(logged.identity, chosen_project, renames or {})
        try:
            writers = await self._register(logged, overview, run_id, chosen_project, chosen)
            new = await self._send(logged, overview, writers, chosen, progress)
            for writer in writers.values():
                await self._pipeline.finish(writer, Finish(last_seq=writer.last_seq, state=logged.state))
        except IngestError as error:
            raise ImportFileError(logged.path, None, error.message) from error
        await self._pipeline.followers.settle(run_id)
        return Imported(
            run_id=run_id,
            name=logged.name,
            project=chosen_project,
            records=overview.records,
            new_records=new,
            renamed=chosen,
        )

    async def _register(
        self, logged: LoggedRun, overview: Overview, run_id: str, project: str, renamed: Mapping[str, str]
    ) -> dict[int, WriterSession]:
        config: dict[str, Any] = dict(logged.config)
        if renamed:
            config["imported_names"] = {known: name for name, known in renamed.items()}
        writers = {}
        for rank in sorted(overview.ranks):
            hello = Hello(
                version=PROTOCOL_VERSION,
                run_id=run_id,
                writer=f"import-{run_id}-{rank}",
                project=project,
                name=logged.name[-256:],
                rank=rank,
                config=config,
                tags=tuple(tag for tag in logged.tags if is_name(tag))[:64],
                layouts=(logged.layouts[rank],) if rank in logged.layouts else (),
                started_at=overview.started_at,
                sdk="import",
                environment=dict(logged.environment) or msgspec.UNSET,
                loss=msgspec.UNSET if logged.loss is None else renamed.get(logged.loss, logged.loss),
            )
            writers[rank] = await self._pipeline.writers.register(checked(hello, Principal(scope=Scope.ADMIN)))
        return writers

    async def _send(
        self,
        logged: LoggedRun,
        overview: Overview,
        writers: Mapping[int, WriterSession],
        renamed: Mapping[str, str],
        progress: Progress | None,
    ) -> int:
        sequence = dict.fromkeys(writers, 0)
        stored = {rank: writer.last_seq for rank, writer in writers.items()}
        batches = _batches(logged.records(), renamed)
        done = 0
        while (found := await asyncio.to_thread(next, batches, None)) is not None:
            rank, records = found
            first_seq = sequence[rank] + 1
            sequence[rank] += len(records)
            done += len(records)
            if sequence[rank] > stored[rank]:
                await self._pipeline.commit(writers[rank], [Batch(first_seq=first_seq, records=tuple(records))])
            if progress is not None:
                progress(done, overview.records)
        return overview.records - sum(min(stored[rank], sequence[rank]) for rank in sequence)


def _run_id(identity: str, project: str, renames: Mapping[str, str]) -> str:
    parts = msgspec.json.encode([identity, project, sorted(renames.items())])
    return hashlib.sha256(parts).hexdigest()[:16]


def survey(logged: LoggedRun) -> Overview:
    """Read all records once, and check what the pipeline would reject. Raises `ImportFileError`."""
    count, names, ranks, started_at = 0, set[str](), set[int](), 0.0
    for rank, record in logged.records():
        if count == 0 and record.time == record.time:
            started_at = record.time
        count += 1
        ranks.add(rank)
        names.update(record.scalars)
        if len(record.scalars) > MAX_SCALARS:
            raise ImportFileError(
                logged.path, f"step {record.step}", f"{len(record.scalars)} scalars; at most {MAX_SCALARS} are allowed"
            )
    if count == 0:
        raise ImportFileError(logged.path, None, "it contains no scalars")
    for name in names:
        if not is_name(name):
            raise ImportFileError(logged.path, None, f"{name[:40]!r} is not a valid name of a scalar")
    return Overview(records=count, names=frozenset(names), ranks=frozenset(ranks), started_at=started_at)


def _batches(records: Iterator[tuple[int, Record]], renamed: Mapping[str, str]) -> Iterator[tuple[int, list[Record]]]:
    """Yield consecutive records of one rank, as many as fit in one commit, under their new names."""
    waiting: list[Record] = []
    held, current = 0, 0
    for rank, record in records:
        size = 0 if record.block is None else len(record.block)
        size += sum(len(shapes.counts) for shapes in record.histograms)
        if waiting and (rank != current or len(waiting) >= BATCH_RECORDS or held + size > BATCH_BYTES):
            yield current, waiting
            waiting, held = [], 0
        current = rank
        held += size
        scalars = {renamed.get(name, name): value for name, value in record.scalars.items()}
        waiting.append(msgspec.structs.replace(record, scalars=scalars) if renamed else record)
    if waiting:
        yield current, waiting
