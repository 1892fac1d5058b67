"""A rule against what a run has logged: when it would have told somebody, before it is saved.

The code that judges is the live one, `RuleEvaluator` and `AlertLifecycle`. The history is read piece by piece, so
memory does not grow with the run, and a caller may end it anywhere. Where the server's clock hears silence live, the
training's times do here.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from client_sdk.protocol import Alert
from server.alerts.lifecycle import AlertLifecycle
from server.detectors.rule_evaluator import RuleEvaluator
from server.detectors.rule_values import RuleValues
from server.models import AlertKind, AlertState, Finding, Sample, Stage, Verdict
from server.pipeline.samples import samples
from server.rule import Rule
from server.storage.measurements.steps import Selection, StepChunk, StepReader

MAX_FIRINGS: Final = 200
"""That are told one by one; the others are counted."""
BUCKETS: Final = 512
VERSION: Final = "rehearsal"


@dataclass(frozen=True, kw_only=True)
class Firing:
    """One alert that there would have been."""

    step: int
    until_step: int | None
    """None: still open at the end."""
    time: float
    value: float | None
    title: str
    message: str
    layers: tuple[str, ...]


@dataclass(kw_only=True)
class Outline:
    """Least and greatest value of at most `BUCKETS` buckets, whose width doubles as the steps come."""

    width: int = 1
    buckets: dict[int, tuple[float, float]] = field(default_factory=dict)

    def add(self, step: int, value: float) -> None:
        number = step // self.width
        low, high = self.buckets.get(number, (value, value))
        self.buckets[number] = (min(low, value), max(high, value))
        while len(self.buckets) > BUCKETS:
            self.width *= 2
            merged: dict[int, tuple[float, float]] = {}
            for place, (low, high) in self.buckets.items():
                other = merged.get(place // 2, (low, high))
                merged[place // 2] = (min(low, other[0]), max(high, other[1]))
            self.buckets = merged


@dataclass(frozen=True, kw_only=True)
class BacktestResult:
    """What a rule would have done in one run."""

    fired: int
    firings: tuple[Firing, ...]
    """The first `MAX_FIRINGS`."""
    records: int
    """That were read."""
    values: int
    """Those of them in which what the rule watches was logged."""
    last_step: int | None
    complete: bool
    """False: the time was up before the end."""
    outline: Outline
    """Of what the rule watches."""


class RuleBacktest:
    def __init__(self, reader: StepReader) -> None:
        self._reader = reader

    async def of_run(
        self, rule: Rule, run_id: str, *, goes_on: bool, now: float, is_over: Callable[[], bool]
    ) -> BacktestResult:
        """Every step of the lowest rank, as the detectors read it. ``goes_on``: silence up to ``now`` counts.

        ``is_over`` is asked between pieces; True ends it there. Raises `CorruptDataError` and `DatabaseError`.
        """
        steps = await self._reader.begin(run_id)
        rank = min((writer.rank for writer in steps.writers if writer.last_seq), default=None)
        trial = _Trial(rule, run_id)
        complete = True
        async with contextlib.aclosing(self._reader.walk(steps, _selection(rule))) as chunks:
            async for chunk in chunks:
                if chunk.rank != rank:
                    break
                if is_over():
                    complete = False
                    break
                await asyncio.to_thread(trial.add, chunk)
        if complete and goes_on:
            trial.wait_until(now)
        return trial.result(complete=complete)


def _selection(rule: Rule) -> Selection:
    return Selection(
        scalars=() if rule.scalar is None else (rule.scalar,),
        statistics=() if rule.statistic is None else (rule.statistic,),
    )


class _Trial:
    """One rule, one run. Used by one thread at a time."""

    def __init__(self, rule: Rule, run_id: str) -> None:
        self._rule = rule
        self._bank = RuleEvaluator()
        self._bank.replace_rules((rule,), VERSION)
        self._book = AlertLifecycle(run_id)
        self._read = RuleValues()
        self._values: dict[str, float | None] = {}
        self._alerts: dict[str, Alert] = {}
        self._current: str | None = None
        self._fired = self._records = self._seen = 0
        self._last_step: int | None = None
        self._outline = Outline()

    def add(self, chunk: StepChunk) -> None:
        for sample in samples(chunk.columns, chunk.attempt, chunk.layouts):
            self._records += 1
            self._last_step = sample.step
            value = self._read.value(self._rule, sample)
            if value is not None:
                self._seen += 1
                if math.isfinite(value):
                    self._outline.add(sample.step, value)
            self._hear(sample)

    def wait_until(self, time: float) -> None:
        """Nothing came up to then."""
        due = self._bank.due_at
        if due is not None and due <= time:
            for finding in self._bank.find_silent(due):
                self._note(self._book.report(finding, self._bank.last_step, due), finding)

    def result(self, *, complete: bool) -> BacktestResult:
        firings = tuple(
            Firing(
                step=alert.step,
                until_step=alert.updated_step if alert.state == AlertState.RESOLVED else None,
                time=alert.opened_at,
                value=self._values[alert.id],
                title=alert.title,
                message=alert.message,
                layers=alert.layers,
            )
            for alert in self._alerts.values()
        )
        return BacktestResult(
            fired=self._fired,
            firings=firings,
            records=self._records,
            values=self._seen,
            last_step=self._last_step,
            complete=complete,
            outline=self._outline,
        )

    def _hear(self, sample: Sample) -> None:
        self.wait_until(sample.time)
        heard = self._bank.update(sample, sample.time)
        for rule_id, _ in heard.returned:
            self._note(self._book.end(f"{AlertKind.CUSTOM_RULE}:{rule_id}", sample.step, sample.time, ""), None)
        verdict = Verdict(step=sample.step, stage=Stage.STABLE, stability_ratio=None, findings=heard.findings)
        for alert in self._book.apply(verdict, sample.time, sample.attempt):
            self._note(alert, heard.findings[0] if heard.findings else None)

    def _note(self, alert: Alert | None, finding: Finding | None) -> None:
        """Of one rule one alert is open at a time."""
        if alert is None:
            return
        if alert.id != self._current:
            self._current = alert.id
            self._fired += 1
            if len(self._alerts) < MAX_FIRINGS:
                self._alerts[alert.id] = alert
                self._values[alert.id] = None if finding is None else _number(finding)
        elif alert.id in self._alerts:
            opened = self._alerts[alert.id]
            self._alerts[alert.id] = msgspec.structs.replace(opened, state=alert.state, updated_step=alert.updated_step)


def _number(finding: Finding) -> float | None:
    found = finding.evidence.get("value", finding.evidence.get("silent_minutes"))
    return found if isinstance(found, int | float) else None
