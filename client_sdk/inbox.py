"""Alerts on their way into the training loop: which changes a callback receives, and when.

Remembers what was passed to callbacks, so that an alert that arrives again (after a reconnection, or from another
server) is passed on once, and each of its three changes once. The sender thread calls `AlertInbox.receive`; training
threads call everything else.
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

MAX_WAITING: Final = 256  # alerts that wait for the next `log`; beyond them the oldest is dropped
MAX_KNOWN: Final = 1024  # open alerts that are remembered, and as many ids of resolved ones
SLOW_CALLBACK: Final = 1.0  # seconds that a callback may take without a warning


class TrainingAlert(Alert, frozen=True, kw_only=True):
    """An `Alert` as callbacks receive it, with what has changed."""

    change: Change
    """Change of the alert: it opened, escalated to a higher level, or was resolved. An alert that opened and was
    resolved while there was no connection is only reported as resolved."""


Callback = Callable[[TrainingAlert], Any]
_Value = TypeVar("_Value")


class AlertInbox:
    """The alerts of one run and the callbacks that receive them."""

    def __init__(self, warner: Warner, *, began_at: float, clock: Callable[[], float] = time.perf_counter) -> None:
        """``began_at`` is the Unix time at which this process began its part of the run."""
        self.waiting: deque[TrainingAlert] = deque(maxlen=MAX_WAITING)
        """Alerts that the next `log` passes to callbacks."""
        self.received = 0
        """Number of messages so far that opened an alert or changed an open one."""
        self.callback_seconds = 0.0
        """Seconds that training has waited for callbacks."""
        self._warner = warner
        self._began_at = began_at
        self._clock = clock
        self._callbacks: list[Callback] = []
        self._open: dict[str, Alert] = {}  # by id, the one received last at the end
        self._resolved: dict[str, None] = {}  # ids only: an alert takes kilobytes, and a long run has hundreds
        self._calling = threading.Lock()

    @property
    def open(self) -> tuple[Alert, ...]:
        """Open alerts according to the latest messages of the server, each as it was received last."""
        return tuple(self._open.values())

    def add(self, callback: Callback) -> None:
        """Pass alerts to ``callback`` from now on."""
        self._callbacks.append(callback)

    def remove(self, callback: Callback) -> bool:
        """Stop passing alerts to ``callback``. Returns False if it was not registered."""
        try:
            self._callbacks.remove(callback)
        except ValueError:
            return False
        return True

    def receive(self, alert: Alert) -> None:
        """Accept an alert from the server, perhaps not for the first time. Called from the sender thread."""
        if alert.id in self._resolved:
            return
        before = self._open.pop(alert.id, None)
        if alert.state == AlertState.ENDED:
            return  # It lasts if the run goes on, and is open again then.
        if alert.state == AlertState.RESOLVED:
            _remember(self._resolved, alert.id, None)
        else:
            _remember(self._open, alert.id, alert)
            self.received += 1
        change = self._change(before, alert)
        if change is not None:
            if len(self.waiting) == MAX_WAITING:
                self._warner.note("alerts_dropped", "too many alerts wait for callbacks; the oldest are dropped")
            fields = {name: getattr(alert, name) for name in alert.__struct_fields__}
            self.waiting.append(TrainingAlert(**fields, change=change))

    def call_callbacks(self) -> float:
        """Pass every waiting alert to every callback and return the seconds that took.

        Does nothing if it is called from a callback.
        """
        if not self._calling.acquire(blocking=False):
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
            self._calling.release()

    def _call(self, callback: Callback, alert: TrainingAlert) -> None:
        name = getattr(callback, "__qualname__", type(callback).__qualname__)
        began = self._clock()
        try:
            callback(alert)
        except Exception as error:
            self._warner.caught(f"callback:{name}:{type(error).__name__}", f"the on_alert callback {name}", error)
        seconds = self._clock() - began
        if seconds > SLOW_CALLBACK:
            self._warner.warn(
                f"slow_callback:{name}",
                f"the on_alert callback {name} took {seconds:.1f} s, and training waited for it; do the work in a "
                "thread unless training is meant to wait",
            )

    def _change(self, before: Alert | None, alert: Alert) -> Change | None:
        """Return the change to report, or None if there is nothing new for a callback."""
        if alert.state == AlertState.RESOLVED:
            # An alert that was resolved before this process began does not concern it. `opened_at` comes from the clock
            # of the training, as `began_at` does.
            return None if before is None and alert.opened_at < self._began_at else "resolved"
        if before is None:
            return "opened"
        return "escalated" if LEVEL_RANK.get(alert.level, 0) > LEVEL_RANK.get(before.level, 0) else None


def _remember(known: dict[str, _Value], alert_id: str, value: _Value) -> None:
    """Add ``value`` at the end, and drop the first entry if there are too many."""
    known[alert_id] = value
    if len(known) > MAX_KNOWN:
        del known[next(iter(known))]
