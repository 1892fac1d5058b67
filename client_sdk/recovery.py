"""Delivers the spools of earlier processes: of killed runs, offline runs and runs whose server was unreachable.

Finds these spools and gives each its own sender. The lock of a spool ensures that no two processes send it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
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

STOP_TIMEOUT: Final = 5.0  # seconds for a sender to close its connection after the last record


def deliver(
    directory: Path,
    endpoint: Endpoint,
    warner: Warner,
    *,
    gives_up: Callable[[TransportError], bool],
    timeout: float | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Send the spool of an earlier process, delete it, and return how many records were sent. Blocks.

    A run that was not finished is reported to the server as crashed. Raises `SpoolError` if the directory is in use or
    damaged, and `TransportError` if the server cannot be reached, refuses, or takes more than ``timeout`` seconds.
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
            sender.join(timeout)
            sender.stop(STOP_TIMEOUT)
        if not sender.delivered:
            raise sender.error or TransportError("timeout", f"{directory} was not sent within {timeout} seconds")
        spool.delete()
        return count
    finally:
        spool.release()


def deliver_in_subprocess(directory: Path, endpoint: Endpoint, timeout: float) -> bool:
    """Send a spool from another process, for an interpreter that can no longer start a thread.

    The spool must not be locked. Returns False if it was not sent within ``timeout`` seconds; it then stays on disk.
    """
    environ = {**os.environ, ENV_URL: endpoint.url, ENV_HOME: str(endpoint.home)}
    if endpoint.token is not None:
        environ[ENV_TOKEN] = endpoint.token
    command = (sys.executable, "-m", __package__, "sync", str(directory), "--timeout", str(timeout))
    if not sys.executable:
        return False
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter and this package
            command, env=environ, timeout=timeout + STOP_TIMEOUT, check=False, capture_output=True
        )
    except (OSError, subprocess.SubprocessError, RuntimeError):
        return False
    return done.returncode == 0


class Recovery:
    """The spools that earlier processes left under a directory, sent while a run continues."""

    def __init__(self, root: Path, endpoint: Endpoint, warner: Warner) -> None:
        self._spools = find_spools(root)
        self._endpoint = endpoint
        self._warner = warner

    def claim(self, own: Hello) -> Callable[[Callable[[], bool]], None]:
        """Remove the spools of the same run and rank from this recovery, and return a function that sends them.

        The server must receive them before the records of ``own``, or the order of steps would change. The function is
        called on the sender's thread and returns early when its argument, ``is_stopped``, returns True.
        """
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
                        f"another process is logging to run {own.run_id} as rank {own.rank}: each time their steps "
                        "cross, a new attempt begins. Give each process its own run_id or its own RANK",
                    )
                elif not is_stopped():
                    self._send(path, lambda error: is_stopped() or not error.retryable, is_stopped)

        return send

    def start(self) -> None:
        """Send the remaining spools one after the other in a daemon thread."""
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
        """Send one spool. Returns False if the server refuses it or cannot be reached."""
        try:
            deliver(path, self._endpoint, self._warner, gives_up=gives_up, is_stopped=is_stopped)
        except SpoolError as error:
            # Usually another run is using the spool, or another process has just sent it. Neither is an error.
            if not isinstance(error.__cause__, BlockingIOError | FileNotFoundError):
                self._warner.warn("recovery", f"{error}; its records are not sent")
        except TransportError as error:
            self._warner.note("recovery", str(error))
            return False
        except Exception as error:
            self._warner.caught("recovery", f"sending the spool {path}", error)
        return True
