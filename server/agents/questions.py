"""Questions that agents ask about runs, answered from the storage that the HTTP API reads.

Every question takes the principal of the token. A run of another project does not exist for it. Answers are bounded: an
agent reads them with its context.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from client_sdk import answers
from client_sdk.vocabulary import LOSS, SCALARS, STATISTICS, AlertLevel, AlertState, RunState, loss_among
from server.agents import facts
from server.agents.facts import Facts, known
from server.api.access import Services, visible_alert, visible_projects, visible_run
from server.errors import ApiError
from server.models import Principal

MAX_RUNS: Final = 50
MAX_ALERTS: Final = 1_000
MAX_POINTS: Final = 60
"""Buckets of a series in an answer."""
MAX_SCALARS: Final = 12
MAX_NAMES: Final = 100
MAX_LAYERS: Final = 15
MAX_CHANGES: Final = 30
"""Differences between two configurations in an answer."""
MAX_EVENTS: Final = 30
MAX_NOTES: Final = 1_000
"""Characters of the notes of a run in an answer."""
NEARBY: Final = 200
"""Steps before and after an alert whose events belong to its story."""
SIGNALS: Final = (LOSS, "lr", "grad_norm", "stability_ratio", "period_two", "lambda_max", "stability_limit")
"""Scalars around a step, where the question names none."""
OPEN: Final = (AlertState.OPEN, AlertState.ACKNOWLEDGED)


class Questions:
    """Answers to the questions of agents."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @property
    def _url(self) -> str:
        return self._services.messenger.public_url

    async def runs(self, principal: Principal, project: str | None, state: str | None, limit: int) -> Facts:
        """Return the newest runs."""
        page = await self._services.fleet.page(
            projects=self._projects(principal, project),
            states=None if state is None else [state],
            limit=min(limit, MAX_RUNS),
        )
        return {
            "runs": [facts.of_run(run, self._url) for run in page.runs],
            **known(there_are_more=bool(page.next_cursor) or None),
        }

    async def runs_at_risk(self, principal: Principal, project: str | None) -> Facts:
        """Return the unfinished runs with open alerts, or close to the limit of stability, the most urgent first."""
        projects = self._projects(principal, project)
        page = await self._services.fleet.page(
            projects=projects, states=[RunState.RUNNING, RunState.STALE], limit=MAX_ALERTS
        )
        found = await self._services.alerts.find(projects=projects, states=OPEN, limit=MAX_ALERTS)
        of_run: dict[str, list[answers.Alert]] = {}
        for alert in found:
            of_run.setdefault(alert.run_id, []).append(alert)
        at_risk = []
        for run in page.runs:
            alerts = of_run.get(run.id, [])
            risk = facts.risk_of(run, alerts)
            if risk is not None:
                ids = [alert.id for alert in facts.worst_first(alerts)]
                at_risk.append((facts.urgency(run, alerts), {**facts.of_run(run, self._url), **risk, "alert_ids": ids}))
        at_risk.sort(key=lambda item: item[0])
        return {
            "runs_at_risk": [run for _, run in at_risk[:MAX_RUNS]],
            "unfinished_runs": len(page.runs),
            **known(there_are_more=len(at_risk) > MAX_RUNS or bool(page.next_cursor) or None),
        }

    async def alerts(self, principal: Principal, run_id: str | None, level: str | None, limit: int) -> Facts:
        """Return the newest alerts."""
        if run_id is not None:
            await visible_run(self._services, principal, run_id)
        found = await self._services.alerts.find(
            run_ids=None if run_id is None else [run_id],
            projects=visible_projects(principal, None),
            levels=None if level is None else [AlertLevel(level)],
            limit=min(limit, MAX_RUNS),
        )
        return {"alerts": [facts.of_alert(alert, self._url) for alert in found]}

    async def explain_alert(self, principal: Principal, alert_id: str) -> Facts:
        """Return an alert with its evidence, its layers, its advice, its forecasts and what happened around it."""
        alert = await visible_alert(self._services, principal, alert_id)
        first, last = max(alert.step - NEARBY, 0), alert.updated_step + NEARBY
        happened, run = await asyncio.gather(
            self._services.events.of_run(alert.run_id, step_from=first, step_to=last, limit=MAX_EVENTS),
            self._services.fleet.summary(alert.run_id),
        )
        shares = [*alert.layer_shares, *[None] * len(alert.layers)]
        outcome = alert.outcome
        return known(
            **facts.of_alert(alert, self._url),
            run=None if run is None else facts.of_run(run, self._url),
            evidence=facts.evidence_of(alert),
            layers=[
                known(layer=layer, share_of_growth=share)
                for layer, share in zip(alert.layers[:MAX_LAYERS], shares, strict=False)
            ],
            what_to_do=list(alert.advice),
            forecasts=[
                known(told_at_step=turn.step, level=turn.level, **(facts.of_forecast(turn) or {}))
                for turn in alert.turns
            ],
            outcome=None if outcome is None else known(result=outcome.result, step=outcome.step, lead=outcome.lead),
            other_runs=None if alert.coincidence is None else alert.coincidence.sentence,
            events_around=[facts.of_event(event) for event in happened],
        )

    async def series_around(
        self,
        principal: Principal,
        run_id: str,
        *,
        step: int | None,
        before: int,
        after: int,
        names: Sequence[str],
    ) -> Facts:
        """Return scalars from ``before`` steps before a step, by default the last one, to ``after`` steps after it."""
        await visible_run(self._services, principal, run_id)
        logged = await self._services.runs.scalar_ranks(run_id)
        chosen = await self._services.runs.loss_name(run_id) or loss_among(logged) or LOSS
        for name in names:
            if name not in logged and name != LOSS:
                raise ApiError(404, "unknown_scalar", _unknown("scalar", name, logged))
        stored = {name: chosen if name == LOSS and LOSS not in logged else name for name in names or SIGNALS}
        stored = {name: own for name, own in list(stored.items())[:MAX_SCALARS] if own in logged}
        at = await self._step(run_id, step)
        found = await self._services.series.read(
            run_id,
            list(dict.fromkeys(stored.values())),
            step_from=max(at - before, 0),
            step_to=at + after,
            points=MAX_POINTS,
            ranks=logged,
        )
        series = {}
        for name, own in stored.items():
            buckets = found.series.get(own)
            if buckets is not None:
                series[name] = known(
                    meaning=SCALARS[name].meaning if name in SCALARS else None,
                    logged_as=own if own != name else None,
                    step=(buckets.numbers * found.bucket_steps).tolist(),
                    value=_rounded(buckets.last[0]),
                    largest=_rounded(buckets.max[0]) if found.bucket_steps > 1 else None,
                    not_finite=int(buckets.counts().sum()) or None,
                )
        return {
            "run_id": run_id,
            "around_step": at,
            "steps_per_value": found.bucket_steps,
            "series": series,
            "logged": sorted(logged)[:MAX_NAMES],
        }

    async def layers_around(
        self, principal: Principal, run_id: str, *, step: int | None, statistic: str, before: int
    ) -> Facts:
        """Return the layers whose statistic has changed most at a step, against the median of the steps before it."""
        await visible_run(self._services, principal, run_id)
        stored = await self._services.layouts.of_run(run_id)
        statistics = sorted({name for item in stored for name in item.layout.statistics})
        if statistic not in statistics:
            raise ApiError(404, "unknown_statistic", _unknown("layer statistic", statistic, statistics))
        at = await self._step(run_id, step)
        found = await self._services.heatmap.read(
            run_id, statistic, step_from=max(at - before, 0), step_to=at, columns=MAX_POINTS, reduce="last"
        )
        layers = await asyncio.to_thread(_changed, found.layers, found.z)
        return known(
            run_id=run_id,
            at_step=at,
            statistic=statistic,
            meaning=STATISTICS[statistic].meaning if statistic in STATISTICS else None,
            layers=layers[:MAX_LAYERS],
            layer_count=len(found.layers),
            statistics=statistics,
        )

    async def compare_runs(self, principal: Principal, first_id: str, second_id: str) -> Facts:
        """Return how two runs differ: configuration, optimizer, loss at the same steps, and what happened to them."""
        for run_id in (first_id, second_id):
            await visible_run(self._services, principal, run_id)
        runs = [await self._summary(run_id) for run_id in (first_id, second_id)]
        changes = facts.differences(*(facts.of_settings(run) for run in runs))
        both = min(run.last_step or 0 for run in runs)
        steps = sorted({round(both * share) for share in (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)})
        losses = [await self._losses(run, steps) for run in runs]
        alerts = [await self._services.alerts.find(run_ids=[run.id], limit=MAX_ALERTS) for run in runs]
        return known(
            runs=[
                {
                    **facts.of_run(run, self._url),
                    "alerts": dict(Counter(f"{alert.level} {alert.kind}" for alert in own)),
                    "spikes_at_steps": sorted(alert.step for alert in own if alert.kind == "spike")[:MAX_EVENTS],
                }
                for run, own in zip(runs, alerts, strict=True)
            ],
            differences=dict(list(changes.items())[:MAX_CHANGES]),
            more_differences=max(len(changes) - MAX_CHANGES, 0) or None,
            loss_at_steps=[
                known(step=step, first=one, second=other)
                for step, one, other in zip(steps, *losses, strict=True)
                if one is not None or other is not None
            ],
        )

    async def what_was_tried(self, principal: Principal, project: str, limit: int) -> Facts:
        """Return the runs of a project with the settings in which they differ, and how each of them ended."""
        page = await self._services.fleet.page(projects=self._projects(principal, project), limit=min(limit, MAX_RUNS))
        settings = [facts.of_settings(run) for run in page.runs]
        names = [
            name
            for name in dict.fromkeys(name for own in settings for name in own)
            if len({repr(own.get(name)) for own in settings}) > 1
        ]
        ids = [run.id for run in page.runs]
        found = await self._services.alerts.find(run_ids=ids, limit=MAX_ALERTS) if ids else []
        alerts = Counter((alert.run_id, alert.kind) for alert in found if alert.level != AlertLevel.WATCH)
        notes = await self._services.run_details.notes_of(ids) if ids else {}
        return {
            "project": project,
            "settings_that_differ": names[:MAX_CHANGES],
            "runs": [
                known(
                    run_id=run.id,
                    name=run.title,
                    state=run.state,
                    settings={name: own[name] for name in names[:MAX_CHANGES] if name in own},
                    last_step=run.last_step,
                    loss=run.loss,
                    ended_with=run.ended_words,
                    tags=list(run.tags),
                    notes=notes.get(run.id, "")[:MAX_NOTES],
                    alerts={kind: n for (run_id, kind), n in alerts.items() if run_id == run.id},
                )
                for run, own in zip(page.runs, settings, strict=True)
            ],
            **known(there_are_more=bool(page.next_cursor) or None),
        }

    def _projects(self, principal: Principal, project: str | None) -> Sequence[str] | None:
        return visible_projects(principal, None if project is None else [project])

    async def _summary(self, run_id: str) -> answers.RunSummary:
        run = await self._services.fleet.summary(run_id)
        if run is None:
            raise ApiError(410, "run_deleted", f"the run {run_id!r} was deleted")
        return run

    async def _step(self, run_id: str, step: int | None) -> int:
        return step if step is not None else ((await self._summary(run_id)).last_step or 0)

    async def _losses(self, run: answers.RunSummary, steps: Sequence[int]) -> list[float | str | None]:
        """Return the last loss at or before each step."""
        name = run.loss_name
        if name is None:
            return [None] * len(steps)
        found = await self._services.series.read(run.id, [name], step_from=None, step_to=steps[-1], points=2_000)
        buckets = found.series.get(name)
        if buckets is None:
            return [None] * len(steps)
        at = np.searchsorted(buckets.numbers * found.bucket_steps, steps, side="right") - 1
        values = _rounded(buckets.last[0])
        return [values[index] if index >= 0 else None for index in at.tolist()]


def _changed(layers: Sequence[str], z: np.ndarray[Any, np.dtype[np.float32]]) -> list[Facts]:
    """Return the layers with their last value and the median before it, the most changed first."""
    found: list[tuple[float, Facts]] = []
    for layer, row in zip(layers, z.astype(np.float64), strict=True):
        measured = row[~np.isnan(row)]
        if not len(measured):
            continue
        last, earlier = measured[-1], measured[:-1][np.isfinite(measured[:-1])]
        usual = float(np.median(earlier)) if len(earlier) else None
        change = None
        if usual and math.isfinite(last) and last / usual > 0:
            change = last / usual
        rank = math.inf if not math.isfinite(last) else abs(math.log(change)) if change else 0.0
        value, before, times = _rounded([last, usual, change])
        found.append((rank, known(layer=layer, value=value, median_before=before, times_median=times)))
    return [item for _, item in sorted(found, key=lambda pair: -pair[0])]


def _rounded(values: Any) -> list[float | str | None]:
    """Return numbers to six digits, which is what an agent can use; those that are not finite as text."""
    return [
        None if value is None else float(f"{value:.6g}") if math.isfinite(value) else repr(float(value))
        for value in (values.tolist() if isinstance(values, np.ndarray) else values)
    ]


def _unknown(what: str, name: str, known_names: Any) -> str:
    names = sorted(known_names)
    listed = ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")
    return f"the run has no {what} {name!r}; it has {listed or 'none'}"
