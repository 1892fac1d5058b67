"""Delivers the records of a running training: opens the spool, the recorder and the sender, and closes them at the end.

Owns the order of opening and closing, and the warnings about records that could not be sent. Spools of earlier
processes belong to `client_sdk.recovery`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final, Literal

from client_sdk.config import Settings
from client_sdk.errors import SpoolError
from client_sdk.metrics import MetricReader
from client_sdk.progress import REDRAW_INTERVAL, Progress
from client_sdk.protocol import Alert, Finish, Hello
from client_sdk.recorder import Recorder
from client_sdk.recovery import Recovery, deliver_in_subprocess
from client_sdk.sender import Sender
from client_sdk.spool.spool import Spool
from client_sdk.warner import Warner

STOP_TIMEOUT: Final = 2.0  # seconds for the sender to close its connection
MIN_SUBPROCESS_TIMEOUT: Final = 1.0  # seconds for another process to send the spool


class Delivery:
    """The path of one writer's records to the server. Methods are called by the training thread."""

    def __init__(
        self,
        settings: Settings,
        hello: Hello,
        reader: MetricReader,
        warner: Warner,
        *,
        on_alert: Callable[[Alert], None],
    ) -> None:
        """Create the spool and start the threads; the sender connects in the background.

        Never raises for a missing disk or server. ``on_alert`` is called on the sender thread.
        """
        self._endpoint = settings.endpoint
        self._warner = warner
        self._spool = self._create_spool(settings, hello)
        self.recorder = Recorder(self._spool, reader, warner)
        """Writes the values of each `log` to the spool."""
        self._sender: Sender | None = None
        if settings.mode == "online":
            recovery = Recovery(settings.directory, settings.endpoint, warner)
            self._sender = Sender(
                self._spool,
                settings.endpoint,
                warner,
                on_alert=on_alert,
                send_earlier=recovery.claim(self._spool.hello),
            )
            self._sender.start()
            recovery.start()
        self.recorder.start()

    @property
    def logged(self) -> int:
        """Number of records that `log` accepted."""
        return self._spool.last_seq + self.recorder.waiting

    @property
    def acknowledged(self) -> int:
        """Number of records that the server has committed."""
        return self._spool.acknowledged

    @property
    def thinned(self) -> int:
        """Number of records that lost layer statistics to make room."""
        return self._spool.thinned

    @property
    def queued_bytes(self) -> int:
        """Bytes on disk or in memory that are not acknowledged."""
        return self._spool.queued_bytes

    @property
    def dropped(self) -> int:
        """Number of records that were lost in whole or in part."""
        return self.recorder.dropped + (0 if self._sender is None else self._sender.refused)

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the server."""
        return self._sender is not None and self._sender.connected

    def update_hello(self, hello: Hello) -> None:
        """Announce more layouts, before records that refer to them are staged."""
        self._spool.update_hello(hello)

    def flush(self, timeout: float) -> bool:
        """Wait until everything logged so far is acknowledged. Returns False after ``timeout`` seconds, and offline."""
        deadline = time.monotonic() + timeout
        is_recorded = self.recorder.flush(deadline)
        target = self._spool.last_seq
        if self._sender is None:
            return is_recorded and self._spool.acknowledged >= target
        self._sender.wake()
        return self._sender.wait_acknowledged(target, max(0.0, deadline - time.monotonic())) and is_recorded

    def finish(self, timeout: float, state: Literal["finished", "crashed"]) -> None:
        """Record the end of the run and send the remaining records for at most ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        if not self.recorder.flush(deadline):
            self.recorder.discard()
        self.recorder.stop()
        spool, sender = self._spool, self._sender
        spool.finish(Finish(last_seq=spool.last_seq, state=state))
        if sender is None:
            self._warn_of_unsent(None)
            spool.release()
            return
        sender.wake()
        is_delivered = self._await_delivery(sender, deadline)
        is_stopped = sender.stop(STOP_TIMEOUT)
        if is_delivered:
            spool.delete()
            return
        if sender.error is not None and sender.error.code == "exiting" and spool.directory is not None:
            spool.release()
            remaining = max(MIN_SUBPROCESS_TIMEOUT, deadline - time.monotonic())
            if deliver_in_subprocess(spool.directory, self._endpoint, remaining):
                return
        is_refused = sender.is_refused_until(deadline)
        self._warn_of_unsent("to a server that refuses them" if is_refused else f"within {timeout:g} s")
        if is_stopped:
            spool.release()

    def abandon(self) -> None:
        """Release the parent's connection in a forked child, without touching anything that the parent still uses."""
        if self._sender is not None:
            self._sender.abandon()

    def _create_spool(self, settings: Settings, hello: Hello) -> Spool:
        try:
            return Spool.create(settings.directory, hello, disk_limit=settings.spool_bytes)
        except SpoolError as error:
            self._warner.warn(
                "spool",
                f"{error}. Records are kept in memory only and lost if the process dies; "
                "pass directory=… or set SPIKEWATCH_DIR to a writable directory",
            )
            return Spool.in_memory(hello)

    def _await_delivery(self, sender: Sender, deadline: float) -> bool:
        """Wait until everything is delivered, with a progress bar. Returns False if the deadline came first."""
        progress = Progress(sys.stderr, self.queued_bytes)
        try:
            while not sender.wait_delivered(min(REDRAW_INTERVAL, max(0.0, deadline - time.monotonic()))):
                if time.monotonic() >= deadline or not sender.running or sender.is_refused_until(deadline):
                    return sender.delivered
                progress.show(self.queued_bytes, connected=sender.connected)
            return True
        finally:
            progress.close()

    def _warn_of_unsent(self, reason: str | None) -> None:
        """Warn of records that are still on disk, with the ``reason``, and of records that are lost with the process.

        ``reason`` completes "could not be sent"; None means that the run is offline and was not meant to be sent.
        """
        spool = self._spool
        kept = spool.last_seq - spool.acknowledged - spool.memory_count
        if reason is not None and spool.directory is not None and (kept or not spool.memory_count):
            self._warner.warn(
                "unsent",
                f"{kept} records could not be sent {reason}. They are in {spool.directory}: the next run with the same "
                f"directory sends them, or `python -m client_sdk sync {spool.directory.parent}`",
            )
        if spool.memory_count:
            self._warner.warn(
                "lost_with_process",
                f"{spool.memory_count} records could not be sent and are lost with the process, because no disk could "
                "store them",
            )
