"""Delivers the records of one run, each exactly once, over connections that come and go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from client_sdk.protocol import Batch, Finish, Hello, Record
from server.errors import LinkError
from server.following.connection import WriterConnection
from server.following.feed_state import RunIdentity
from server.following.server_link import ServerLink

BATCH_RECORDS = 1_024
FRAME_CODES = frozenset({"malformed", "too_large", "bad_record"})
"""Codes of errors that concern one frame; the others concern the connection."""


class RecordsMissingError(Exception):
    """The server lacks records that it had acknowledged, or has another database."""

    def __init__(self, last_seq: int) -> None:
        super().__init__(f"the server has {last_seq} records")
        self.last_seq = last_seq


class RunDelivery:
    """The writer of one run."""

    def __init__(
        self,
        identity: RunIdentity,
        hello: Callable[[RunIdentity], Hello],
        link: ServerLink,
        note: Callable[[str], None],
    ) -> None:
        """``hello`` returns the first message of a connection."""
        self.identity = identity
        self._hello = hello
        self._link = link
        self._note = note
        self._connection: WriterConnection | None = None
        self._is_deleted = False
        self._isolates = False
        """Whether records are sent one at a time, to find the one that the server refuses."""

    async def send(self, first: int, records: Sequence[Record]) -> None:
        """Return when the server has committed the records, the first of which is the ``first`` one of the run.

        Records that the server has are not sent again. Raises `RecordsMissingError` if it lacks earlier ones.
        """
        tries = 0
        while not self._is_deleted:
            try:
                await self._send(first - self.identity.base, records)
            except LinkError as error:
                await self.close()
                if error.code == "run_deleted":
                    self._is_deleted = True
                    self._note(f"the run {self.identity.run_id} was deleted; {self.identity.name} is no longer sent")
                elif error.code in FRAME_CODES and not error.retryable:
                    self._isolates = True
                else:
                    tries += 1
                    await self._link.wait_after(error, tries)
            else:
                self._isolates = False
                return

    async def finish(self, count: int, state: Literal["finished", "crashed"]) -> None:
        """Report the end of the training, which the log tells, after ``count`` records of the run."""
        tries = 0
        while not self._is_deleted:
            try:
                connection = await self._connected()
                await connection.finish(Finish(last_seq=count - self.identity.base, state=state))
            except LinkError as error:
                await self.close()
                tries += 1
                await self._link.wait_after(error, tries)
            else:
                await self.close()
                return

    async def close(self) -> None:
        """Close the connection. The run becomes stale unless another one is opened."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _send(self, first: int, records: Sequence[Record]) -> None:
        connection = await self._connected()
        if connection.last_seq < first - 1:
            raise RecordsMissingError(connection.last_seq)
        size = 1 if self._isolates else BATCH_RECORDS
        start = connection.last_seq - first + 1
        while start < len(records):
            part = tuple(records[start : start + size])
            try:
                await connection.commit(Batch(first_seq=first + start, records=part))
            except LinkError as error:
                if not self._isolates or error.code not in FRAME_CODES or error.retryable:
                    raise
                await self.close()
                self._note(f"{self.identity.name}: the server refused the record at step {part[0].step}: {error}")
                connection = await self._connected()
                blank = msgspec.structs.replace(part[0], scalars={})
                await connection.commit(Batch(first_seq=first + start, records=(blank,)))
            start += len(part)

    async def _connected(self) -> WriterConnection:
        if self._connection is None or not self._connection.is_open:
            await self.close()
            self._connection = await self._link.open(self._hello(self.identity))
        return self._connection
