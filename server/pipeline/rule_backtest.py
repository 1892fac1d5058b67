"""Backtests an alert rule: runs it over the history of a run, before the rule is saved.

The judging code is the live one, `RuleEvaluator` and `AlertLifecycle`. The history is read in pieces, so that memory
does not grow with the length of the run and a caller may stop anywhere. Silence is measured by the times of the
training, whereas live it is measured by the server's clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from client_sdk.protocol import Alert
from client_sdk.vocabulary import LOSS
from server.alerts.lifecycle import AlertLifecycle
from server.detectors.loss_name import renamed
from server.detectors.rule_evaluator import RuleEvaluator
from server.detectors.rule_values import RuleValues
from server.models import AlertKind, AlertState, Finding, Sample, Stage, Verdict
from server.pipeline.samples import samples
from server.rule import Rule
from server.storage.measurements.steps import Selection, StepChunk, StepReader
from server.storage.runs import RunStore

MAX_FIRINGS: Final = 200
"""Number of firings that are returned one by one; further ones are only counted."""
MAX_BUCKETS: Final = 512
"""Number of buckets of an outline."""
VERSION: Final = "backtest"
"""Version of the rule set of a backtest."""


@dataclass(frozen=True, kw_only=True)
class Firing:
    """An alert that the rule would have opened."""

    step: int
    until_step: int | None
    """Step at which the alert would have closed, or None if it is still open at the end."""
    time: float
    value: float | None
    title: str
    message: str
    layers: tuple[str, ...]


@dataclass(kw_only=True)
class Outline:
    """Smallest and largest value of the watched quantity in at most `MAX_BUCKETS` buckets of equal width in steps.

    The width doubles whenever there would be more buckets.
    """

    width: int = 1
    """Number of steps that a bucket covers."""
    buckets: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Smallest and largest value of each bucket, keyed by bucket number."""

    def add(self, step: int, value: float) -> None:
        """Add the value of a step."""
        number = step // self.width
        low, high = self.buckets.get(number, (value, value))
        self.buckets[number] = (min(low, value), max(high, value))
        while len(self.buckets) > MAX_BUCKETS:
            self.width *= 2
            merged: dict[int, tuple[float, float]] = {}
            for index, (low, high) in self.buckets.items():
                other = merged.get(index // 2, (low, high))
                merged[index // 2] = (min(low, other[0]), max(high, other[1]))
            self.buckets = merged


@dataclass(frozen=True, kw_only=True)
class BacktestResult:
    """The outcome of running a rule over one run."""

    fired: int
    """Number of alerts that the rule would have opened."""
    firings: tuple[Firing, ...]
    """The first `MAX_FIRINGS` of those alerts."""
    swallowed: tuple[Firing, ...]
    """Alerts that it would have opened without its cooldown and did not, among the first `MAX_FIRINGS` without it."""
    records: int
    """Number of records that were read."""
    values: int
    """Number of records in which the watched quantity was logged."""
    last_step: int | None
    complete: bool
    """Whether the history was read to its end."""
    outline: Outline
    """Range of the watched quantity over the steps that were read."""


class RuleBacktest:
    """Runs alert rules over stored runs."""

    def __init__(self, reader: StepReader, runs: RunStore) -> None:
        """``runs`` knows the scalar that is the loss of a run, which a rule about the loss watches."""
        self._reader = reader
        self._runs = runs

    async def of_run(
        self, rule: Rule, run_id: str, *, goes_on: bool, now: float, is_over: Callable[[], bool]
    ) -> BacktestResult:
        """Run a rule over every step of a run's lowest rank, which is the one that the detectors read.

        If the run ``goes_on``, silence up to the Unix time ``now`` counts. ``is_over`` is called between two pieces of
        the history; True ends the backtest early. Raises `CorruptDataError` and `DatabaseError`.
        """
        loss_name = await self._runs.loss_name(run_id)
        steps = await self._reader.begin(run_id)
        rank = min((writer.rank for writer in steps.writers if writer.last_seq), default=None)
        replay = _Replay(rule, run_id, loss_name)
        complete = True
        async with contextlib.aclosing(self._reader.walk(steps, _selection(rule, loss_name))) as chunks:
            async for chunk in chunks:
                if chunk.rank != rank:
                    break
                if is_over():
                    complete = False
                    break
                await asyncio.to_thread(replay.add, chunk)
        if complete and goes_on:
            replay.wait_until(now)
        return replay.result(complete=complete)


def _selection(rule: Rule, loss_name: str | None) -> Selection:
    scalar = loss_name if rule.scalar == LOSS and loss_name is not None else rule.scalar
    return Selection(
        scalars=() if scalar is None else (scalar,),
        statistics=() if rule.statistic is None else (rule.statistic,),
    )


class _Track:
    """The alerts of one rule over one run."""

    def __init__(self, rule: Rule, run_id: str) -> None:
        self._evaluator = RuleEvaluator()
        self._evaluator.replace_rules((rule,), VERSION)
        self._lifecycle = AlertLifecycle(run_id)
        self._values: dict[str, float | None] = {}
        self._alerts: dict[str, Alert] = {}
        self._current: str | None = None
        self.fired = 0
        """Number of alerts so far."""

    @property
    def firings(self) -> tuple[Firing, ...]:
        """The first alerts, at most `MAX_FIRINGS`."""
        return tuple(
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

    def wait_until(self, time: float) -> None:
        """Let the rule observe that nothing arrived until ``time``."""
        due = self._evaluator.due_at
        if due is not None and due <= time:
            for finding in self._evaluator.find_silent(due):
                self._note(self._lifecycle.report(finding, self._evaluator.last_step, due), finding)

    def update(self, sample: Sample) -> None:
        """Let the rule read one sample."""
        self.wait_until(sample.time)
        result = self._evaluator.update(sample, sample.time)
        for rule_id, _ in result.returned:
            self._note(self._lifecycle.end(f"{AlertKind.CUSTOM_RULE}:{rule_id}", sample.step, sample.time, ""), None)
        step = max(sample.step, self._evaluator.last_step) if sample.is_late else sample.step
        verdict = Verdict(step=step, stage=Stage.STABLE, stability_ratio=None, findings=result.findings)
        for alert in self._lifecycle.apply(verdict, sample.time, sample.attempt):
            self._note(alert, result.findings[0] if result.findings else None)

    def _note(self, alert: Alert | None, finding: Finding | None) -> None:
        """Keep an alert that opened, changed or closed. A rule has at most one open alert at a time."""
        if alert is None:
            return
        if alert.id != self._current:
            self._current = alert.id
            self.fired += 1
            if len(self._alerts) < MAX_FIRINGS:
                self._alerts[alert.id] = alert
                self._values[alert.id] = None if finding is None else _number(finding)
        elif alert.id in self._alerts:
            opened = self._alerts[alert.id]
            self._alerts[alert.id] = msgspec.structs.replace(opened, state=alert.state, updated_step=alert.updated_step)


class _Replay:
    """One rule over one run, with its cooldown and without it. Used by one thread at a time."""

    def __init__(self, rule: Rule, run_id: str, loss_name: str | None) -> None:
        self._rule = rule
        self._loss_name = loss_name
        self._track = _Track(rule, run_id)
        has_cooldown = rule.cooldown_minutes > 0
        self._eager = _Track(replace(rule, cooldown_minutes=0.0), run_id) if has_cooldown else None
        self._read = RuleValues()
        self._records = self._values_seen = 0
        self._last_step: int | None = None
        self._outline = Outline()

    def add(self, chunk: StepChunk) -> None:
        """Let the rule read the next piece of the history."""
        for stored in samples(chunk.columns, chunk.attempt, chunk.layouts, is_late=chunk.is_late):
            sample = renamed(stored, self._loss_name)
            self._records += 1
            if not sample.is_late:
                self._last_step = sample.step
            value = self._read.value(self._rule, sample)
            if value is not None:
                self._values_seen += 1
                if math.isfinite(value):
                    self._outline.add(sample.step, value)
            self._track.update(sample)
            if self._eager is not None:
                self._eager.update(sample)

    def wait_until(self, time: float) -> None:
        """Let the rule observe that nothing arrived until ``time``."""
        self._track.wait_until(time)
        if self._eager is not None:
            self._eager.wait_until(time)

    def result(self, *, complete: bool) -> BacktestResult:
        """Return the outcome so far."""
        firings = self._track.firings
        return BacktestResult(
            fired=self._track.fired,
            firings=firings,
            swallowed=() if self._eager is None else swallowed(self._eager.firings, firings),
            records=self._records,
            values=self._values_seen,
            last_step=self._last_step,
            complete=complete,
            outline=self._outline,
        )


def swallowed(eager: Sequence[Firing], told: Sequence[Firing]) -> tuple[Firing, ...]:
    """Return the firings without a cooldown during which none was told with it.

    ``told`` and ``eager``: the firings with and without the cooldown, in the order of their steps.
    """
    return tuple(firing for firing in eager if not any(_overlap(firing, other) for other in told))


def _overlap(one: Firing, other: Firing) -> bool:
    return _end(one) >= other.step and _end(other) >= one.step


def _end(firing: Firing) -> float:
    return math.inf if firing.until_step is None else firing.until_step


def _number(finding: Finding) -> float | None:
    found = finding.evidence.get("value", finding.evidence.get("silent_minutes"))
    return found if isinstance(found, int | float) else None
