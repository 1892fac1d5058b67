"""Memory of a log follower across restarts, in one small file for each log.

The file holds two checkpoints, the present position and the one that the records under way lead to, each with the
number of records that every run has up to there. The server says which records it has; so the log is read again from
the earlier checkpoint, and what the server has is left out. The file is replaced as a whole before records are sent.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import uuid
from pathlib import Path
from typing import Any

import msgspec

from server.errors import ConfigurationError

VERSION = 1


class RunIdentity(msgspec.Struct, kw_only=True):
    """A run that a log became."""

    run_id: str
    writer: str
    name: str
    base: int = 0
    """Number of records that were sent under earlier writers: the sequence of the writer counts from here."""
    guessed: dict[str, str] = {}
    """Known names of scalars, keyed by the names in the log."""

    @staticmethod
    def new(name: str) -> RunIdentity:
        """Return a new run of this name."""
        return RunIdentity(run_id=uuid.uuid4().hex[:16], writer=uuid.uuid4().hex, name=name)


class Checkpoint(msgspec.Struct, kw_only=True):
    """A position in a log, with the number of records of each run up to there."""

    position: dict[str, Any] = {}
    counts: dict[str, int] = {}


class FeedState(msgspec.Struct, kw_only=True):
    """Contents of the file."""

    path: str
    version: int = VERSION
    earlier: Checkpoint = msgspec.field(default_factory=Checkpoint)
    later: Checkpoint | None = None
    """Position that the records under way lead to; None if none are."""
    runs: dict[str, RunIdentity] = {}
    """Runs of the log, keyed by edition and by the values of the columns that separate them."""


class StateFile:
    """The file of one log. It is locked, so that a log is followed to a server once at a time."""

    def __init__(self, directory: Path, path: Path, key: str) -> None:
        """``key`` tells apart the servers, projects and ways of reading. Raises `ConfigurationError`."""
        self._log = path.absolute()
        self._file = _file(directory, path, key)
        self._lock: int | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"{directory} cannot be written ({error.strerror or error}); set SPIKEWATCH_HOME to another directory"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise ConfigurationError(f"{path} is followed already, by another `spikewatch follow`") from error

    @staticmethod
    def is_known(directory: Path, path: Path, key: str) -> bool:
        """Return whether the log has been followed before."""
        return _file(directory, path, key).exists()

    def load(self) -> FeedState:
        """Return the stored state, or a new one if there is none or it cannot be read."""
        try:
            found = msgspec.json.decode(self._file.read_bytes(), type=FeedState)
        except (OSError, msgspec.DecodeError):
            return FeedState(path=str(self._log))
        return found if found.version == VERSION else FeedState(path=str(self._log))

    def save(self, state: FeedState) -> None:
        """Replace the file. Raises `OSError`."""
        part = self._file.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(state))
        part.replace(self._file)

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.close(self._lock)
            self._lock = None


def _file(directory: Path, path: Path, key: str) -> Path:
    digest = hashlib.sha256(f"{path.absolute()}\0{key}".encode()).hexdigest()[:24]
    return directory / f"{digest}.json"
