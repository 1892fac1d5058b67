"""Commits the batches of writers: what is new in them is packed into segments and stored in shared transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from client_sdk.protocol import Batch, Record
from server.errors import (
    CorruptDataError,
    IngestError,
    RunDeletedError,
    SequenceMovedError,
    TrainingMovedError,
    WriterTakenError,
)
from server.pipeline.group_committer import GroupCommitter
from server.pipeline.late_records import UnknownStepsError
from server.pipeline.packing import pack
from server.pipeline.writer_session import WriterSession, new_records, taken
from server.storage.measurements.commits import Commit, CommitRequest, CommitStore
from server.storage.measurements.logged_steps import LoggedStepsQuery

MAX_TRANSACTION_BYTES = 1024 * 1024
"""Bytes of segments after which a transaction takes no further request."""
MAX_ATTEMPTS = 10
"""Number of attempts at one commit while other connections of the writer or its rank commit too."""
INLINE_BYTES = 32 * 1024
"""Smaller batches are packed on the event loop: a fraction of a millisecond, less than a round trip to a thread."""


@dataclass(frozen=True, kw_only=True)
class Committed:
    """Segments that have become durable."""

    request: CommitRequest
    commit: Commit

    @property
    def run_id(self) -> str:
        """Id of the run that the segments belong to."""
        return self.request.writer.run_id


class Committer:
    """Stores batches exactly once. Used from the event loop only."""

    def __init__(
        self,
        commits: CommitStore,
        logged_steps: LoggedStepsQuery,
        *,
        clock: Callable[[], float],
        write_lock: asyncio.Lock,
    ) -> None:
        """``write_lock`` serializes the transactions of this server that change several runs."""
        self._logged_steps = logged_steps
        self._clock = clock
        self._groups: GroupCommitter[CommitRequest, Commit] = GroupCommitter(
            commits.commit, max_bytes=MAX_TRANSACTION_BYTES, lock=write_lock
        )

    @property
    def is_contended(self) -> bool:
        """Whether more waits than one transaction takes, so that smaller commits let other writers in sooner."""
        return self._groups.is_contended

    async def commit(self, session: WriterSession, batches: Sequence[Batch]) -> Committed | None:
        """Commit the new records of consecutive batches as one. Return None if every record was committed before.

        Afterwards everything up to ``session.last_seq`` is durable. Raises `IngestError` (``sequence_gap`` if records
        are missing in between, ``writer_taken`` if a later connection has registered as this writer) and
        `DatabaseError`.
        """
        is_small = sum(map(_size, batches)) <= INLINE_BYTES
        for _ in range(MAX_ATTEMPTS):
            first_seq, records = new_records(batches, session.last_seq)
            if not records:
                return None
            late = await self._find_late(session, records)
            arguments = (first_seq, records, session.registration.layouts, session.sent_statistics, late)
            drafts = pack(*arguments) if is_small else await asyncio.to_thread(pack, *arguments)
            request = CommitRequest(
                writer=session.registration,
                expected_seq=session.last_seq,
                drafts=drafts,
                now=self._clock(),
                known_names=session.known_names,
                position=session.training.position,
            )
            size = sum(len(draft.payload) for draft in drafts)
            try:
                commit = await self._groups.write(request, session.registration.run_id, size)
            except SequenceMovedError as moved:
                # Another connection of this writer committed first: leave out what it stored and try the rest again.
                session.last_seq = moved.last_seq
                continue
            except TrainingMovedError as moved:
                # Another writer of the rank has moved its training: tell late records apart again.
                session.training.move(moved.attempt, moved.last_step)
                continue
            except WriterTakenError as error:
                raise taken() from error
            except RunDeletedError as error:
                raise IngestError("run_deleted", str(error)) from error
            session.note_commit(commit, drafts)
            return Committed(request=request, commit=commit)
        raise IngestError("internal", "another connection of this writer is committing; try again", retryable=True)

    async def _find_late(self, session: WriterSession, records: Sequence[Record]) -> list[bool] | None:
        """Return whether each record is late, or None if none is. Raises `DatabaseError`."""
        while True:
            try:
                return session.training.find_late(records)
            except UnknownStepsError as question:
                session.training.learn(question.step, question.names, await self._logged_after(session, question))

    async def _logged_after(self, session: WriterSession, question: UnknownStepsError) -> list[str]:
        try:
            return await self._logged_steps.logged_after(
                session.registration.run_id,
                session.registration.rank,
                session.training.position.attempt,
                question.step,
                question.names,
            )
        except CorruptDataError:
            return list(question.names)  # A damaged history must not stop the commits; begin a new attempt.

    async def stop(self) -> None:
        """Return when every commit in progress has ended."""
        await self._groups.stop()


def _size(batch: Batch) -> int:
    """Return the approximate size of a batch on the wire in bytes."""
    return sum(
        16 + 24 * len(record.scalars) + len(record.block or b"") + sum(len(item.counts) for item in record.histograms)
        for record in batch.records
    )
