"""A writer as its connection has it: how far it has got, and what of a frame is new."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from client_sdk.protocol import Batch, Record
from server.errors import IngestError, WriterTakenError
from server.storage.runs import Registration

MOST_NAMES = 10_000  # that a connection remembers; the database knows them all


class Writer:
    """A registered writer and how far it has got. Belongs to one connection."""

    def __init__(self, registration: Registration, sent_statistics: dict[int, int]) -> None:
        self.registration = registration
        self.last_seq = registration.last_seq
        self.sent_statistics = sent_statistics
        """Layout to the number of columns of its blocks on the wire."""
        self.known_names: frozenset[str] = frozenset()
        """Scalars that the database knows this rank to have logged."""
        self.on_taken: Callable[[], None] = lambda: None
        """Called when a later connection is this writer, on this server or another."""

    def note(self, last_seq: int, names: Iterable[str]) -> None:
        """Everything up to ``last_seq`` is committed, these scalars among it."""
        self.last_seq = last_seq
        new = frozenset(names) - self.known_names
        if new:
            self.known_names = new if len(self.known_names) > MOST_NAMES else self.known_names | new


def taken() -> IngestError:
    """What a connection is told whose writer a later one is."""
    return IngestError("writer_taken", str(WriterTakenError()), retryable=True)


def new_records(batches: Sequence[Batch], last_seq: int) -> tuple[int, list[Record]]:
    """The records after ``last_seq`` and the sequence of the first. Raises `IngestError` for a gap."""
    records: list[Record] = []
    expected = last_seq + 1
    for batch in batches:
        if batch.first_seq < 1:
            raise IngestError("bad_record", f"the sequence {batch.first_seq} is none: sequences count from 1")
        if batch.first_seq > expected:
            raise IngestError(
                "sequence_gap",
                f"expected record {expected}, got {batch.first_seq}; say hello and send from the last one acknowledged",
                retryable=True,
            )
        fresh = batch.records[expected - batch.first_seq :]
        records += fresh
        expected += len(fresh)
    return last_seq + 1, records
