"""Alerts on their way into the training loop: what a callback hears, when, and what becomes of its troubles.

Owns the memory of what was told, so that an alert that comes again (a reconnection, another server) is told once, and
each of its three changes once. `deliver` belongs to the sender thread, everything else to threads that train.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal, TypeVar

from client_sdk.protocol import Alert
from client_sdk.vocabulary import LEVEL_RANK, AlertState
from client_sdk.warner import Warner

Change = Literal["opened", "escalated", "resolved"]

MAX_WAITING: Final = 256  # that wait for the next `log`; the oldest is dropped
MAX_KNOWN: Final = 1024  # open alerts whose last state is remembered, and as many ids of those that are over
SLOW: Final = 1.0  # seconds that a callback may take before it is mentioned


class TrainingAlert(Alert, frozen=True, kw_only=True):
    """An `Alert` as a callback gets it: with what changed."""

    change: Change
    """opened; escalated to a higher level; or resolved, which may be the first that is heard of it."""


Callback = Callable[[TrainingAlert], Any]
_Value = TypeVar("_Value")


class AlertInbox:
    """Of one run."""

    def __init__(self, warner: Warner, *, began_at: float, clock: Callable[[], float] = time.perf_counter) -> None:
        """``began_at``: Unix time of the beginning of this process's part of the run."""
        self.waiting: deque[TrainingAlert] = deque(maxlen=MAX_WAITING)
        """What the next `log` tells."""
        self.callback_seconds = 0.0
        """That training has waited for callbacks."""
        self._warner = warner
        self._began_at = began_at
        self._clock = clock
        self._callbacks: list[Callback] = []
        self._known: dict[str, Alert] = {}
        """Those that are open, the one heard of last at the end."""
        self._over: dict[str, None] = {}
        """Ids of resolved ones. A whole alert weighs kilobytes, and a long run has hundreds."""
        self._telling = threading.Lock()

    @property
    def open(self) -> tuple[Alert, ...]:
        """The alerts that are open as far as is known, as they were told last, dates that moved included."""
        return tuple(self._known.values())

    def add(self, callback: Callback) -> None:
        self._callbacks.append(callback)

    def remove(self, callback: Callback) -> bool:
        """False when it was not there."""
        try:
            self._callbacks.remove(callback)
        except ValueError:
            return False
        return True

    def deliver(self, alert: Alert) -> None:
        """Called from the sender thread: an alert as the server told it, perhaps not for the first time."""
        if alert.id in self._over:
            return
        before = self._known.pop(alert.id, None)
        if alert.state == AlertState.RESOLVED:
            _remember(self._over, alert.id, None)
        else:
            _remember(self._known, alert.id, alert)
        change = self._change(before, alert)
        if change is not None:
            if len(self.waiting) == MAX_WAITING:
                self._warner.note("alerts_dropped", "more alerts than callbacks could hear; the oldest are dropped")
            fields = {name: getattr(alert, name) for name in alert.__struct_fields__}
            self.waiting.append(TrainingAlert(**fields, change=change))

    def tell(self) -> float:
        """Call every callback with what waits; the seconds that took. In a callback it does nothing."""
        if not self._telling.acquire(blocking=False):
            return 0.0
        try:
            began = self._clock()
            while self.waiting:
                alert = self.waiting.popleft()
                for callback in tuple(self._callbacks):
                    self._call(callback, alert)
            seconds = self._clock() - began
            self.callback_seconds += seconds
            return seconds
        finally:
            self._telling.release()

    def _call(self, callback: Callback, alert: TrainingAlert) -> None:
        name = getattr(callback, "__qualname__", type(callback).__qualname__)
        began = self._clock()
        try:
            callback(alert)
        except Exception as error:
            self._warner.caught(f"callback:{name}:{type(error).__name__}", f"the on_alert callback {name}", error)
        seconds = self._clock() - began
        if seconds > SLOW:
            self._warner.warn(
                f"slow_callback:{name}",
                f"the on_alert callback {name} took {seconds:.1f} s, and training waited for it; leave the work to a "
                "thread if that is not meant",
            )

    def _change(self, before: Alert | None, alert: Alert) -> Change | None:
        """What is new about an alert; None where nothing is that a callback hears."""
        if alert.state == AlertState.RESOLVED:
            # What was over before this process began is none of its business. Alerts carry the training's own time.
            return None if before is None and alert.opened_at < self._began_at else "resolved"
        if before is None:
            return "opened"
        return "escalated" if LEVEL_RANK.get(alert.level, 0) > LEVEL_RANK.get(before.level, 0) else None


def _remember(known: dict[str, _Value], alert_id: str, value: _Value) -> None:
    """Put it at the end, and let go of the first where there are too many."""
    known[alert_id] = value
    if len(known) > MAX_KNOWN:
        del known[next(iter(known))]
