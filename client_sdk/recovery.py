"""Delivery of what earlier processes left in the spool directory: killed runs, offline runs, runs without a server.

Owns finding those directories and giving each its own sender; two processes never work on one, as its lock decides.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from client_sdk.config import Endpoint
from client_sdk.errors import SpoolError, TransportError
from client_sdk.notices import Notices
from client_sdk.protocol import Finish
from client_sdk.sender import Sender
from client_sdk.spool import META_NAME, Spool

REST: Final = 5.0  # seconds for a socket to close after the last record


def find_spools(root: Path) -> list[Path]:
    """Spool directories under ``root``, oldest first; those in use among them."""
    try:
        found = [path for path in root.iterdir() if (path / META_NAME).is_file()]
        return sorted(found, key=lambda path: (path / META_NAME).stat().st_mtime)
    except OSError:
        return []


def deliver(
    directory: Path,
    endpoint: Endpoint,
    notices: Notices,
    *,
    gives_up: Callable[[TransportError], bool],
    timeout: float | None = None,
) -> int:
    """Send one left spool and delete it; returns how many records it had to send. Blocks.

    A run without an end has crashed, and the server is told so. Raises `SpoolError` when the directory is in use or
    damaged, `TransportError` when the server cannot be reached, refuses, or takes longer than ``timeout`` seconds.
    """
    spool = Spool.open(directory)
    try:
        if spool.lost:
            notices.warn("damaged", f"{spool.lost} records in {directory} are damaged and lost; the others are sent")
        if spool.meta.finish is None:
            spool.finish(Finish(last_seq=spool.last_seq, state="crashed"))
        count = spool.last_seq - spool.acknowledged
        sender = Sender(spool, endpoint, notices, gives_up=gives_up)
        if timeout is None:
            sender.run()
        else:
            sender.start()
            deadline = time.monotonic() + timeout
            while not sender.delivered and sender.running and time.monotonic() < deadline:
                sender.wait_delivered(min(0.2, max(0.0, deadline - time.monotonic())))
            sender.stop(REST)
        if not sender.delivered:
            raise sender.error or TransportError("timeout", f"{directory} was not sent within {timeout} seconds")
        spool.delete()
        return count
    finally:
        spool.release()


class Recovery:
    """Sends what is left under a directory while a run goes on, one spool after the other, in a daemon thread."""

    def __init__(self, root: Path, endpoint: Endpoint, notices: Notices) -> None:
        self._spools = find_spools(root)
        self._endpoint = endpoint
        self._notices = notices

    def start(self, own: Path | None) -> None:
        """Begin, if there is anything but the ``own`` spool of this run."""
        self._spools = [path for path in self._spools if path != own]
        if self._spools:
            threading.Thread(target=self._work, name="spikewatch-recovery", daemon=True).start()

    def _work(self) -> None:
        for path in self._spools:
            try:
                deliver(path, self._endpoint, self._notices, gives_up=lambda error: not error.retryable)
            except SpoolError as error:
                self._notices.note("recovery", str(error))  # most often it is another run that goes on
            except TransportError as error:
                self._notices.note("recovery", str(error))
                return
            except Exception as error:
                self._notices.caught("recovery", f"sending what is left in {path}", error)
