"""One line of a log as values, which imports collect in runs and `spikewatch follow` sends on at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """Scalars that were logged at one step."""

    step: int
    scalars: dict[str, float]
    time: float | None = None
    """Unix time in seconds; None if the line does not say it."""
    run: tuple[str, ...] = ()
    """Values of the columns that separate the runs of the file, in the order of `LineParser.run_columns`."""


class LineParser(Protocol):
    """Parser of the complete lines of one file, from its beginning and in their order."""

    run_columns: tuple[str, ...]
    """Names of the columns that may separate runs."""
    config: dict[str, Any]
    """Settings of the training that the lines so far contain."""

    @property
    def is_long(self) -> bool:
        """Whether each line holds one scalar, with its name."""
        ...

    def parse(self, number: int, line: str) -> Sequence[Entry]:
        """Return what a line holds; most lines hold nothing or one entry. ``number`` counts from 1.

        Raises `ImportFileError`.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to continue at the next line in another process, as JSON values."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where another parser of the same file stopped."""
        ...
