"""Where a run stands, for whoever asks: `client_sdk.status()`. A value; the run fills it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

State = Literal["running", "finished", "crashed"]


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a run stands. Counts are of records, that is of calls of `log`."""

    run_id: str
    mode: str
    state: State
    logged: int
    """Accepted by `log`."""
    acknowledged: int
    """Committed by the server."""
    thinned: int
    """Records that kept their scalars and gave up their layer statistics, as the server did not take them for long."""
    queued_bytes: int
    """On disk or in memory, not yet acknowledged."""
    dropped: int
    """Lost in whole or in part: no room, too large, a bad step, logged after `finish` or in a forked process."""
    connected: bool
    last_error: str | None
    callback_seconds: float
    """That training has waited for callbacks of `on_alert`."""
    warnings: Mapping[str, int]
    """How often each cause of trouble occurred; the first of each was printed."""
