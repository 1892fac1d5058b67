"""The server's view of one connected writer: how far it is committed, and which records of a frame are new."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from client_sdk.protocol import Batch, Record
from server.errors import IngestError, WriterTakenError
from server.pipeline.late_records import TrainingSteps
from server.pyramid.drafts import SegmentDraft
from server.storage.measurements.commits import Commit
from server.storage.runs import Registration

MAX_KNOWN_NAMES = 10_000
"""Scalar names that a session remembers; the database has all of them."""


class WriterSession:
    """A registered writer and the last sequence that is committed for it. Owned by one connection."""

    def __init__(self, registration: Registration, sent_statistics: dict[int, int]) -> None:
        self.registration = registration
        self.last_seq = registration.last_seq
        """Sequence number of the last committed record."""
        self.sent_statistics = sent_statistics
        """Number of statistics columns in the writer's blocks on the wire, keyed by layout number."""
        self.known_names: frozenset[str] = frozenset()
        """Scalar names that the database has recorded for this rank."""
        self.training = TrainingSteps()
        """Steps that the training of the writer's rank has reached."""
        self.on_taken: Callable[[], None] = lambda: None
        """Callback for when a later connection of the same writer registers, on this server or another."""

    def note_commit(self, commit: Commit, drafts: Sequence[SegmentDraft]) -> None:
        """Record that these drafts, and everything before them, are committed."""
        self.last_seq = commit.last_seq
        self.training.note(commit, drafts)
        new = frozenset(name for draft in drafts for name in draft.names) - self.known_names
        if new:
            self.known_names = new if len(self.known_names) > MAX_KNOWN_NAMES else self.known_names | new


def taken() -> IngestError:
    """Return the error for a connection whose writer has registered again on a later connection."""
    return IngestError("writer_taken", str(WriterTakenError()), retryable=True)


def new_records(batches: Sequence[Batch], last_seq: int) -> tuple[int, list[Record]]:
    """Return the sequence number of the first record after ``last_seq``, and the records from there on.

    Raises `IngestError` if a sequence number is below 1 or records are missing in between.
    """
    records: list[Record] = []
    expected = last_seq + 1
    for batch in batches:
        if batch.first_seq < 1:
            raise IngestError("bad_record", f"invalid sequence number {batch.first_seq}: sequences count from 1")
        if batch.first_seq > expected:
            raise IngestError(
                "sequence_gap",
                f"expected record {expected}, got {batch.first_seq}; send hello again and continue after the last "
                "acknowledged record",
                retryable=True,
            )
        fresh = batch.records[expected - batch.first_seq :]
        records += fresh
        expected += len(fresh)
    return last_seq + 1, records
