"""Replays a stored run through the present detectors: what people would have been told, and when.

The judging code is the live one (`server.alerts.telling`), without alert rules. The history is read in pieces, so that
memory does not grow with the length of the run, and a caller may stop anywhere. Judging runs in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from client_sdk import answers
from client_sdk.protocol import Alert, PredictedStep
from client_sdk.vocabulary import Sensitivity
from server.alerts.telling import Telling
from server.detectors.layer_sums import STATISTICS
from server.detectors.loss_name import renamed
from server.detectors.sensitivity import factor_of
from server.models import AlertKind
from server.pipeline.samples import samples
from server.storage.alerts import AlertStore
from server.storage.measurements.steps import Selection, StepChunk, StepReader
from server.storage.runs import RunStore

MAX_TOLD: Final = 200
"""Number of alerts that each list of a replay holds; further ones are only counted."""
JUDGED: Final = tuple(kind for kind in AlertKind if kind is not AlertKind.CUSTOM_RULE)
"""Kinds of alerts that the detectors raise; the others come from rules."""
CHUNK: Final = 500
"""Number of records between two looks at the time limit."""


@dataclass(kw_only=True)
class _Judged:
    """The latest form of each alert of a replay."""

    alerts: dict[str, Alert]
    opened: int = 0
    records: int = 0
    last_step: int | None = None


class RunReplay:
    """Replays stored runs."""

    def __init__(self, reader: StepReader, runs: RunStore, alerts: AlertStore) -> None:
        """``runs`` knows the scalar that is the loss of a run, ``alerts`` what was told while the run was live."""
        self._reader = reader
        self._runs = runs
        self._alerts = alerts

    async def of_run(self, run_id: str, sensitivity: Sensitivity, *, is_over: Callable[[], bool]) -> answers.Replay:
        """Replay every step of a run's lowest rank, which is the one that the detectors read.

        ``is_over`` is called every few hundred records; True ends the replay early. Raises `CorruptDataError` and
        `DatabaseError`.
        """
        loss_name = await self._runs.loss_name(run_id)
        steps = await self._reader.begin(run_id)
        rank = min((writer.rank for writer in steps.writers if writer.last_seq), default=None)
        telling = Telling(run_id, factor_of(sensitivity))
        judged = _Judged(alerts={})
        is_complete = True
        selection = Selection(statistics=STATISTICS)
        async with contextlib.aclosing(self._reader.walk(steps, selection)) as chunks:
            async for chunk in chunks:
                if chunk.rank != rank:
                    break
                is_complete = await asyncio.to_thread(_judge, telling, chunk, loss_name, judged, is_over)
                if not is_complete:
                    break
        told = [alert async for alert in self._alerts.walk(run_id) if alert.kind in JUDGED]
        return answers.Replay(
            run_id=run_id,
            sensitivity=sensitivity.value,
            would=_told(judged.alerts.values()),
            told=_told(told),
            would_count=judged.opened,
            records=judged.records,
            last_step=judged.last_step,
            complete=is_complete,
        )


def _judge(
    telling: Telling, chunk: StepChunk, loss_name: str | None, judged: _Judged, is_over: Callable[[], bool]
) -> bool:
    """Judge the next piece of the history, and return False if the time was over before its end."""
    for stored in samples(chunk.columns, chunk.attempt, chunk.layouts, is_late=chunk.is_late, summed=True):
        if judged.records % CHUNK == 0 and is_over():
            return False
        sample = renamed(stored, loss_name)
        judged.records += 1
        if not sample.is_late:
            judged.last_step = sample.step
        for alert in telling.update(sample):
            if alert.id in judged.alerts:
                judged.alerts[alert.id] = alert
            elif alert.closed_at is None:
                judged.opened += 1
                if len(judged.alerts) < MAX_TOLD:
                    judged.alerts[alert.id] = alert
    return True


def _told(alerts: Iterable[Alert]) -> tuple[answers.Told, ...]:
    """Return the first alerts of a list in the order of their steps."""
    found = sorted(alerts, key=lambda alert: (alert.attempt, alert.step, alert.kind))[:MAX_TOLD]
    return tuple(
        answers.Told(
            step=alert.step,
            kind=alert.kind,
            level=alert.level,
            title=alert.title,
            cause=alert.cause,
            warned_at_step=_warned_at(alert.evidence),
            predicted_step=_judged_forecast(alert),
            result=None if alert.outcome is None else alert.outcome.result,
            until_step=None if alert.closed_at is None else alert.updated_step,
        )
        for alert in found
    )


def _warned_at(evidence: Mapping[str, float | int | str | None]) -> int | None:
    step = evidence.get("warned_at_step")
    return step if isinstance(step, int) else None


def _judged_forecast(alert: Alert) -> PredictedStep | None:
    return alert.judged_forecast or alert.first_predicted_step
