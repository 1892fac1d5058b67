"""The status of a run, as `client_sdk.status()` returns it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

State = Literal["running", "finished", "crashed"]


@dataclass(frozen=True, kw_only=True)
class Status:
    """Counts, connection state and warnings of a run. Counts are numbers of records, that is of calls of `log`."""

    run_id: str
    mode: str
    state: State
    logged: int
    """Records that `log` accepted."""
    acknowledged: int
    """Records that the server has committed."""
    thinned: int
    """Records that lost their layer statistics, but no scalar, because an outage of the server filled the spool."""
    queued_bytes: int
    """Bytes on disk or in memory that are not acknowledged."""
    dropped: int
    """Records lost in whole or in part: no room, too large, an invalid step, after `finish` or in a forked process."""
    connected: bool
    """Whether there is a connection to the server."""
    last_error: str | None
    """Message of the latest warning; None if there was none."""
    callback_seconds: float
    """Seconds that training has waited for callbacks of `on_alert`."""
    warnings: Mapping[str, int]
    """Number of occurrences of each cause of a warning; the first of each was logged."""
