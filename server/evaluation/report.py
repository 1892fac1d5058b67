"""The evaluation as plain values for `spikewatch evaluate --json`. Pure.

Keys: `measures` has every measure of every method with its interval, over all runs whose labels are certain; `groups`
the same without intervals for full batches, mini-batches, slow swells and each family; `recordings` the alarms of the
detectors on each run. A measure is `{"value", "low", "high", "count"}`, null where it is not defined.
"""

from __future__ import annotations

from typing import Any

from server.evaluation.evaluation import RANDOM, WITH, WITHOUT, Evaluation, RecordingScores
from server.evaluation.measures import MEASURES, Estimate, draws, measure
from server.evaluation.recording import FULL_BATCH, MINI_BATCH
from server.evaluation.scores import RunScore


def report(evaluation: Evaluation) -> dict[str, Any]:
    """Return the evaluation as dictionaries, lists, numbers and texts."""
    clear = evaluation.only(lambda truth: not truth.is_swell)
    groups = {
        "full batch": clear.only(lambda truth: truth.batches == FULL_BATCH),
        "mini-batch": clear.only(lambda truth: truth.batches == MINI_BATCH),
        "slow swells": evaluation.only(lambda truth: truth.is_swell),
    }
    for family in sorted({one.truth.family for one in clear.recordings}):
        groups[f"family {family or 'other'}"] = Evaluation(
            recordings=tuple(one for one in clear.recordings if one.truth.family == family)
        )
    return {
        "runs": len(clear.recordings),
        "measures": _measures(clear, with_intervals=True),
        "groups": {
            name: {"runs": len(own.recordings), "measures": _measures(own, with_intervals=False)}
            for name, own in groups.items()
            if own.recordings
        },
        "recordings": [_recording(one) for one in evaluation.recordings],
    }


def _measures(evaluation: Evaluation, *, with_intervals: bool) -> dict[str, dict[str, Any]]:
    weights = draws(len(evaluation.recordings)) if with_intervals else None
    names = [name for name in evaluation.methods if with_intervals or name in (WITH, WITHOUT)]
    return {
        name: {
            key: _values(measure(one, evaluation.methods[name], None if name == RANDOM else weights))
            for key, one in MEASURES.items()
        }
        for name in names
        if evaluation.methods[name]
    }


def _values(estimate: Estimate) -> dict[str, float | int | None]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "count": estimate.count}


def _recording(one: RecordingScores) -> dict[str, Any]:
    truth = one.truth
    return {
        "name": truth.name,
        "cause": truth.cause,
        "family": truth.family,
        "batches": truth.batches,
        "swell": truth.is_swell,
        "spikes": [
            {"onset": event.onset, "peak": event.peak, "end": event.end, "rise": event.rise} for event in truth.judged
        ],
        "with_curvature": _alarms(one.with_curvature),
        "without_curvature": _alarms(one.without_curvature),
    }


def _alarms(run: RunScore) -> dict[str, Any]:
    return {
        "alarms": [alarm.step for alarm in run.alarms],
        "false": list(run.false),
        "early": [
            {
                "onset": recall.event.onset,
                "step": recall.alarm.step,
                "lead": recall.lead,
                "range": None
                if recall.alarm.predicted is None
                else [recall.alarm.predicted.low, recall.alarm.predicted.best, recall.alarm.predicted.high],
                "expected_rise": None if recall.alarm.height is None else recall.alarm.height.best,
            }
            for recall in run.recalled
        ],
        "causes": [{"onset": event.onset, "cause": cause.value} for event, cause in run.causes],
    }
