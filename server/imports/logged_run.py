"""Interface between the readers of files and the importer: a run whose records can be read several times."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from client_sdk.protocol import MAX_STEP, Layout, Record
from server.errors import ImportFileError

Note = Callable[[str], None]
"""Function that receives a message about something that an import leaves out."""

CHUNK = 1024 * 1024  # bytes


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """A run in a file or folder."""

    path: Path
    identity: str
    """Digest of the contents, independent of their path."""
    name: str
    records: Callable[[], Iterator[tuple[int, Record]]]
    """Function that yields pairs of rank and record, each rank in its own order. Raises `ImportFileError`."""
    project: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    notes: str = ""
    """Notes of people about the run."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Machine and software of the training, if the file describes them."""
    loss: str | None = None
    """Name of the scalar that was chosen as the loss; None where the names of the scalars decide."""
    layouts: Mapping[int, Layout] = field(default_factory=dict)
    """Layouts of the ranks that have layers, keyed by rank; their layout number is 0."""
    state: Literal["finished", "crashed"] = "finished"
    renames: bool = True
    """Whether names such as train/loss are replaced by those that the detectors use."""


def digest(paths: Iterable[Path], part: str = "") -> str:
    """Return a digest of the contents of files in this order, and of the name of a part. Raises `ImportFileError`."""
    found = hashlib.sha256(part.encode())
    for path in paths:
        try:
            with path.open("rb") as file:
                while data := file.read(CHUNK):
                    found.update(data)
        except OSError as error:
            raise ImportFileError(path, None, error.strerror or str(error)) from error
    return found.hexdigest()


def checked_step(path: Path, place: str, step: int) -> int:
    """Return the step. Raises `ImportFileError` if it is out of range."""
    if not 0 <= step <= MAX_STEP:
        raise ImportFileError(path, place, f"the step {step} is not within 0 … 2**63 − 1")
    return step
