"""What every reader of files gives the importer: a run, and its records as often as they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from client_sdk.protocol import MAX_STEP, Layout, Record
from server.errors import ImportFileError

Note = Callable[[str], None]
"""Told of what a reader leaves out."""

CHUNK = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """One run in one file or folder."""

    path: Path
    identity: str
    """The same for the same contents, wherever they lie."""
    name: str
    records: Callable[[], Iterator[tuple[int, Record]]]
    """(rank, record), each rank in the order in which it logged. Raises `ImportFileError`."""
    project: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    layouts: Mapping[int, Layout] = field(default_factory=dict)
    """Of each rank with layers; their number is 0."""
    state: Literal["finished", "crashed"] = "finished"
    renames: bool = True
    """Whether names such as train/loss are to be brought to those that the detectors know."""


def digest(paths: Iterable[Path], part: str = "") -> str:
    """An identity: of the contents of the files in this order, and which part of them. Raises `ImportFileError`."""
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
    """The step. Raises `ImportFileError`."""
    if not 0 <= step <= MAX_STEP:
        raise ImportFileError(path, place, f"the step {step} is not within 0 … 2**63 − 1")
    return step
