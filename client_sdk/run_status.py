"""The status of a run, as `client_sdk.status()` returns it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from client_sdk.vocabulary import interval_in_words

State = Literal["running", "finished", "crashed"]


@dataclass(frozen=True, kw_only=True)
class WatchStatus:
    """The rhythm in which a watched model is measured.

    >>> print(WatchStatus(every=4, share=0.016, is_dense=False, is_automatic=True))
    layers: every 4th step, 1.6 % of the training's time
    >>> print(WatchStatus(every=4, share=0.016, is_dense=False, is_automatic=True, curvature_share=0.027))
    layers: every 4th step, 1.6 % of the training's time; curvature: 2.7 %
    """

    every: int
    """Present number of optimizer steps from one measured step to the next."""
    share: float
    """Share of the training's time that measuring takes at this interval; 0 while it is not known."""
    is_dense: bool
    """Whether every step is measured for a while because something stirs, or because the training has just begun."""
    is_automatic: bool
    """Whether the interval adapts, as `watch(…, every="auto")` lets it."""

    curvature_share: float | None = None
    """Share of the training's time that curvature has taken over the last 200 steps; None if it is not measured."""

    def __str__(self) -> str:
        """Return the sentence for people."""
        layers = f"layers: {interval_in_words(self.every)}, {100 * self.share:.1f} % of the training's time"
        return layers if self.curvature_share is None else f"{layers}; curvature: {100 * self.curvature_share:.1f} %"


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
    watch: tuple[WatchStatus, ...] = ()
    """The rhythm of each `watch`; ``print(status.watch[0])`` prints it as a sentence."""
