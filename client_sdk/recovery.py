"""Delivery of what earlier processes left in the spool directory: killed runs, offline runs, runs without a server.

Owns finding those directories and giving each its own sender; two processes never work on one, as its lock decides.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from client_sdk.config import ENV_HOME, ENV_TOKEN, ENV_URL, Endpoint
from client_sdk.errors import SpoolError, TransportError
from client_sdk.protocol import Finish, Hello
from client_sdk.sender import Sender
from client_sdk.spool.directory import SpoolDirectory, find_spools
from client_sdk.spool.spool import Spool
from client_sdk.warner import Warner

REST: Final = 5.0  # seconds for a socket to close after the last record


def deliver(
    directory: Path,
    endpoint: Endpoint,
    warner: Warner,
    *,
    gives_up: Callable[[TransportError], bool],
    timeout: float | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Send one left spool and delete it; returns how many records it had to send. Blocks.

    A run without an end has crashed, and the server is told so. Raises `SpoolError` when the directory is in use or
    damaged, `TransportError` when the server cannot be reached, refuses, or takes longer than ``timeout`` seconds.
    """
    spool = Spool.open(directory)
    try:
        if spool.lost:
            warner.warn("damaged", f"{spool.lost} records in {directory} are damaged and lost; the others are sent")
        if spool.meta.finish is None:
            spool.finish(Finish(last_seq=spool.last_seq, state="crashed"))
        count = spool.last_seq - spool.acknowledged
        sender = Sender(spool, endpoint, warner, gives_up=gives_up, is_stopped=is_stopped)
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


def deliver_elsewhere(directory: Path, endpoint: Endpoint, timeout: float) -> bool:
    """Send a spool that nobody holds from another process, for one that can start no thread any more. False when it
    was not sent within ``timeout`` seconds; it stays where it is."""
    environ = {**os.environ, ENV_URL: endpoint.url, ENV_HOME: str(endpoint.home)}
    if endpoint.token is not None:
        environ[ENV_TOKEN] = endpoint.token
    command = (sys.executable, "-m", __package__, "sync", str(directory), "--timeout", str(timeout))
    if not sys.executable:
        return False
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter and this package
            command, env=environ, timeout=timeout + REST, check=False, capture_output=True
        )
    except (OSError, subprocess.SubprocessError, RuntimeError):
        return False
    return done.returncode == 0


def say_what_is_left(spool: Spool, warner: Warner, why: str | None) -> None:
    """At the end of a run: what waits on the disk, and ``why`` it "could not be sent …" (None: it was not meant to be);
    and what is lost, as no disk has it."""
    kept = spool.last_seq - spool.acknowledged - spool.memory_count
    if why is not None and spool.directory is not None and (kept or not spool.memory_count):
        warner.warn(
            "unsent",
            f"{kept} records could not be sent {why}. They are in {spool.directory}: the next run "
            f"with the same directory sends them, or `python -m client_sdk sync {spool.directory.parent}`",
        )
    if spool.memory_count:
        warner.warn(
            "lost_with_process",
            f"{spool.memory_count} records could not be sent and are lost with the process: "
            "there was no disk to keep them",
        )


class Recovery:
    """What earlier processes left under a directory, sent while a run goes on."""

    def __init__(self, root: Path, endpoint: Endpoint, warner: Warner) -> None:
        self._spools = find_spools(root)
        self._endpoint = endpoint
        self._warner = warner

    def claim(self, own: Hello) -> Callable[[Callable[[], bool]], None]:
        """Take out the spools of the same run and rank: the server must have them before what ``own`` records, or the
        order of steps would be another. The answer sends them, in the sender's thread, until told to stop."""
        same = [
            path
            for path, meta in self._spools
            if (meta.hello.run_id, meta.hello.rank) == (own.run_id, own.rank) and meta.hello.writer != own.writer
        ]
        self._spools = [
            (path, meta) for path, meta in self._spools if path not in same and meta.hello.writer != own.writer
        ]

        def send(is_stopped: Callable[[], bool]) -> None:
            for path in same:
                if not is_stopped() and self._is_in_use(path):
                    self._warner.warn(
                        "shared_run",
                        f"another process logs to run {own.run_id} as rank {own.rank} at the same time: whenever their "
                        "steps cross, an attempt begins. Give each process a run_id of its own, or its RANK",
                    )
                elif not is_stopped():
                    self._send(path, lambda error: is_stopped() or not error.retryable, is_stopped)

        return send

    def start(self) -> None:
        """Send the others, one after the other, in a daemon thread."""
        if self._spools:
            threading.Thread(target=self._work, name="spikewatch-recovery", daemon=True).start()

    def _work(self) -> None:
        for path, _ in self._spools:
            if not self._send(path, lambda error: not error.retryable, lambda: False):
                return

    @staticmethod
    def _is_in_use(path: Path) -> bool:
        directory = SpoolDirectory(path)
        try:
            directory.lock()
        except BlockingIOError:
            return True
        except OSError:
            return False
        directory.unlock()
        return False

    def _send(self, path: Path, gives_up: Callable[[TransportError], bool], is_stopped: Callable[[], bool]) -> bool:
        """False when the server does not want what is ours."""
        try:
            deliver(path, self._endpoint, self._warner, gives_up=gives_up, is_stopped=is_stopped)
        except SpoolError as error:
            # Most often another run goes on there, or another process has just sent it: all is well.
            if not isinstance(error.__cause__, BlockingIOError | FileNotFoundError):
                self._warner.warn("recovery", f"{error}; what it holds is not sent")
        except TransportError as error:
            self._warner.note("recovery", str(error))
            return False
        except Exception as error:
            self._warner.caught("recovery", f"sending what is left in {path}", error)
        return True
