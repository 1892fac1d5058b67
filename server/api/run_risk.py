"""Metrics about the risk of runs, read from the database when Prometheus asks.

They are those of the whole database, so that every server exports the same. Their number is bounded: runs are counted
by state and alerts by level and kind, and only the `MAX_RUNS` runs with the most severe open alerts are named.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from client_sdk import answers
from client_sdk.vocabulary import LEVEL_RANK, AlertKind, AlertLevel
from server.errors import DatabaseError
from server.log_actions import LogAction
from server.metrics import Metrics
from server.models import AlertState
from server.storage.alerts import AlertStore
from server.storage.fleet import FleetQuery

logger = logging.getLogger(__name__)

MAX_RUNS = 20
"""Maximum number of runs that are named."""
MAX_ALERTS = 500
"""Newest open alerts of each level among which the runs are found."""
KEPT_SECONDS = 5.0
"""Seconds for which the values are kept, so that several readers cost one query."""
LABELS = ("project", "run", "run_id")
Series = dict[tuple[str, ...], float]


@dataclass(frozen=True, kw_only=True)
class _Values:
    runs: Series = field(default_factory=dict)
    alerts: Series = field(default_factory=dict)
    risk: Series = field(default_factory=dict)
    ratio: Series = field(default_factory=dict)
    left: Series = field(default_factory=dict)


class RunRisk:
    """The metrics about runs. Call `refresh` before they are read."""

    def __init__(
        self,
        metrics: Metrics,
        fleet: FleetQuery,
        alerts: AlertStore,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Add the metrics to those of a server."""
        self._fleet = fleet
        self._alerts = alerts
        self._monotonic = monotonic
        self._values = _Values()
        self._read_at = float("-inf")
        metrics.pull("runs", "Runs by state.", "gauge", lambda: self._values.runs, "state")
        text = "Open alerts of runs that go on."
        metrics.pull("open_alerts", text, "gauge", lambda: self._values.alerts, "level", "kind")
        text = "Most severe open alert of the runs at risk: 1 watch, 2 warning, 3 critical."
        metrics.pull("run_risk", text, "gauge", lambda: self._values.risk, *LABELS)
        text = "Curvature over the limit 2/η of the runs at risk, where it is measured."
        metrics.pull("run_stability_ratio", text, "gauge", lambda: self._values.ratio, *LABELS)
        text = "Steps until the predicted spike of the runs at risk; negative after it."
        metrics.pull("run_steps_to_spike", text, "gauge", lambda: self._values.left, *LABELS)

    async def refresh(self) -> None:
        """Read the values, unless they are fresh. Without the database there are none, and the other metrics remain."""
        if self._monotonic() - self._read_at < KEPT_SECONDS:
            return
        self._read_at = self._monotonic()
        try:
            self._values = await self._read()
        except DatabaseError as error:
            logger.warning("%s", error, extra={"action": LogAction.API_STORAGE_UNAVAILABLE})
            self._values = _Values()

    async def _read(self) -> _Values:
        states = await self._fleet.count_by_state()
        counts = await self._alerts.count_open()
        worst: dict[str, AlertLevel] = {}
        predicted: dict[str, answers.PredictedStep] = {}
        for level in sorted(AlertLevel, key=lambda level: LEVEL_RANK[level], reverse=True):
            if len(worst) >= MAX_RUNS:
                break
            found = await self._alerts.find(
                states=(AlertState.OPEN, AlertState.ACKNOWLEDGED), levels=[level], limit=MAX_ALERTS
            )
            for alert in found:
                if len(worst) < MAX_RUNS:
                    worst.setdefault(alert.run_id, level)
                if alert.kind == AlertKind.SPIKE_PREDICTED and alert.predicted_step is not None:
                    predicted.setdefault(alert.run_id, alert.predicted_step)
        runs = await self._fleet.summaries(list(worst)) if worst else []
        return _Values(
            runs={(state,): float(number) for state, number in states.items()},
            alerts={(level, kind): float(number) for (level, kind), number in counts.items()},
            risk=_of(runs, {run.id: 1.0 + LEVEL_RANK[worst[run.id]] for run in runs}),
            ratio=_of(runs, {run.id: run.stability_ratio for run in runs}),
            left=_of(runs, {run.id: _steps_left(run, predicted.get(run.id)) for run in runs}),
        )


def _of(runs: list[answers.RunSummary], values: Mapping[str, float | None]) -> Series:
    found = ((run, values[run.id]) for run in runs)
    return {(run.project, run.title, run.id): value for run, value in found if value is not None}


def _steps_left(run: answers.RunSummary, predicted: answers.PredictedStep | None) -> float | None:
    return None if predicted is None or run.last_step is None else float(predicted.best - run.last_step)
