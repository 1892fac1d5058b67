"""The straight line behind the ingest socket: commit, let the caller acknowledge, publish, detect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from client_sdk.protocol import Batch, Finish
from server.pipeline.committer import Committer
from server.pipeline.followers import Followers
from server.pipeline.inbox import fresh_segments
from server.pipeline.publisher import Publisher
from server.pipeline.run_state_keeper import RunStateKeeper
from server.pipeline.writer_registry import WriterRegistry
from server.pipeline.writer_session import WriterSession


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The parts between the sockets of training processes and those of viewers, and the order in which they work."""

    writers: WriterRegistry
    committer: Committer
    publisher: Publisher
    followers: Followers
    run_states: RunStateKeeper

    async def start(self) -> None:
        """Resume the detectors where they stopped, and start the background tasks. Raises `DatabaseError`."""
        await self.run_states.refresh_rules()
        await self.followers.start()
        self.run_states.start()
        self.writers.start()

    async def stop(self) -> None:
        """Save what the detectors have read and publish what is pending. Nothing may be committed any more."""
        await self.run_states.stop()
        await self.writers.stop()
        await self.committer.stop()
        await self.followers.stop()
        await self.publisher.stop()

    async def commit(self, session: WriterSession, batches: Sequence[Batch]) -> int:
        """Commit consecutive batches as one and return the last durable sequence number, which may be acknowledged.

        Records that were committed before are left out, so a resend changes nothing. Nothing waits between the commit
        and the return: publisher and followers only queue what they work on later. Raises the errors of
        `Committer.commit`.
        """
        committed = await self.committer.commit(session, batches)
        if committed is not None:
            self.publisher.committed(committed.run_id, committed.commit, committed.request.now)
            self.followers.offer(committed.run_id, fresh_segments(committed.request, committed.commit))
        return session.last_seq

    async def finish(self, session: WriterSession, message: Finish) -> None:
        """End the run of a writer. Raises the errors of `RunStateKeeper.finish`."""
        await self.run_states.finish(session, message)

    def forget(self, run_id: str) -> None:
        """Stop the detectors of a run that is being deleted, and release what is kept about it."""
        self.followers.forget(run_id)
        self.publisher.forget(run_id)
