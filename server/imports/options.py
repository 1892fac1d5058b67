"""Choices of the user about how a log is read, for logs that do not say it themselves."""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from server.errors import ConfigurationError

SPECIAL_GROUPS = frozenset({"step", "time", "run"})
"""Named groups of a pattern that are no scalars."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Names of columns, keys or groups; None and the empty tuple let the reader recognise them."""

    step_column: str | None = None
    time_column: str | None = None
    run_columns: tuple[str, ...] = ()
    """Columns whose values together separate the runs of one file."""
    metric_column: str | None = None
    """Column with the names of the scalars in a table that has one scalar in each row."""
    value_column: str | None = None
    step_by_row: bool = False
    """Whether the rows of a run are counted, from 0, instead of reading their steps."""
    pattern: re.Pattern[str] | None = None
    """Pattern of the lines of a text log, with a named group for each value."""

    @property
    def key(self) -> str:
        """Text that differs between choices, and is empty where nothing is chosen."""
        chosen = [
            *(self.step_column, self.time_column, list(self.run_columns), self.metric_column, self.value_column),
            *(self.step_by_row, None if self.pattern is None else self.pattern.pattern),
        ]
        return "" if self == ReadOptions() else msgspec.json.encode(chosen).decode()


def compiled_pattern(text: str, *, step_by_row: bool) -> re.Pattern[str]:
    r"""Return the pattern of a text log. Raises `ConfigurationError` if it cannot give steps and scalars.

    >>> compiled_pattern(r"it (?P<step>\d+) loss (?P<loss>\S+)", step_by_row=False).groups
    2
    """
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigurationError(f"--pattern is not a regular expression ({error})") from error
    names = set(pattern.groupindex)
    if "step" not in names and not step_by_row:
        raise ConfigurationError(r"--pattern has no group (?P<step>\d+); add it, or count the lines with --step-by-row")
    if not names - SPECIAL_GROUPS:
        raise ConfigurationError(r"--pattern has no group for a value, for example (?P<loss>\S+)")
    return pattern
