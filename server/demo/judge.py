"""Judgement of the demo: what happened, from the alerts and losses that the server stored. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from server.demo.cases import BAD_BATCH, BAD_STEP, CHAR_TRANSFORMER, TANH_NET
from server.models import AlertKind, AlertLevel

JUMP: Final = 1e3
"""Ratio of a loss to the median before it that is certainly a spike; tanh-net jumps by 1e9 and more."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The outcome of one run."""

    run: str
    held: bool
    """Whether the run did what the demo promises."""
    sentence: str


def first_jump(steps: Sequence[int], losses: Sequence[float | None]) -> int | None:
    """Return the step of the first loss above `JUMP` times the median of the hundred before it.

    No detector is involved. A loss that is not finite counts as well.
    """
    for i in range(100, len(losses)):
        loss = losses[i]
        before = sorted(value for value in losses[i - 100 : i] if value is not None)
        if loss is None or (before and loss > JUMP * before[len(before) // 2]):
            return steps[i]
    return None


def judge_tanh_net(
    alerts: Sequence[Mapping[str, Any]], steps: Sequence[int], losses: Sequence[float | None]
) -> Judgement:
    """Judge whether a spike was predicted and then came."""
    came = first_jump(steps, losses)
    predictions = [a for a in alerts if a["kind"] == AlertKind.SPIKE_PREDICTED and (a["outcome"] or {}).get("step")]
    if came is None:
        return Judgement(run=TANH_NET, held=False, sentence="the loss did not spike")
    early = [a for a in predictions if a["step"] < min(came, a["outcome"]["step"])]
    if not early:
        return Judgement(run=TANH_NET, held=False, sentence=f"the spike at step {came} was not predicted")
    alert = early[0]
    outcome = alert["outcome"]
    warned = alert["evidence"].get("warned_at_step")
    told = [forecast for forecast in alert.get("forecasts", ()) if forecast["level"] != AlertLevel.WATCH]
    forecast = told[0] if told else alert["first_predicted_step"]
    seen = outcome["step"] - alert["step"]
    if warned is None or warned >= outcome["step"]:
        lead = f"no warning before it, first signs at step {alert['step']} ({seen} steps before)"
    else:
        signs = f"{seen} from the first signs at step {alert['step']}"
        lead = f"lead {outcome['step'] - warned} steps from the warning, {signs}"
    return Judgement(
        run=TANH_NET,
        held=True,
        sentence=(
            f"spike predicted at step {alert['step'] if warned is None else warned} for step {forecast['best']} "
            f"(between {forecast['low']} and {forecast['high']}); it came at step {outcome['step']}: {lead}"
        ),
    )


def judge_bad_batch(
    alerts: Sequence[Mapping[str, Any]], steps: Sequence[int], losses: Sequence[float | None]
) -> Judgement:
    """Judge whether the corrupted batch was named a bad batch and no spike was predicted."""
    del steps, losses
    # A bad batch is named at the next step, when the loss is back.
    named = [a for a in alerts if a["kind"] == AlertKind.BAD_BATCH and BAD_STEP <= a["step"] <= BAD_STEP + 2]
    predicted = [a for a in alerts if a["kind"] == AlertKind.SPIKE_PREDICTED]
    if named and not predicted:
        sentence = f"named the batch of step {BAD_STEP} a bad batch, not a predicted spike"
    elif predicted:
        sentence = f"a spike was predicted at step {predicted[0]['step']}, wrongly"
    else:
        kinds = ", ".join(sorted({a["kind"] for a in alerts})) or "nothing"
        sentence = f"the bad batch of step {BAD_STEP} was not named; raised: {kinds}"
    return Judgement(run=BAD_BATCH, held=bool(named) and not predicted, sentence=sentence)


def judge_char_transformer(
    alerts: Sequence[Mapping[str, Any]], steps: Sequence[int], losses: Sequence[float | None]
) -> Judgement:
    """Judge whether no alert above "watch" opened."""
    del losses
    loud = [a for a in alerts if a["level"] != AlertLevel.WATCH]
    if loud:
        sentence = f"healthy, yet {loud[0]['kind']} was raised at step {loud[0]['step']}"
    else:
        sentence = f'healthy for {steps[-1] if steps else 0} steps, no alert above "watch"'
    return Judgement(run=CHAR_TRANSFORMER, held=not loud and bool(steps), sentence=sentence)


JUDGES: Final[
    Mapping[str, Callable[[Sequence[Mapping[str, Any]], Sequence[int], Sequence[float | None]], Judgement]]
] = {
    TANH_NET: judge_tanh_net,
    CHAR_TRANSFORMER: judge_char_transformer,
    BAD_BATCH: judge_bad_batch,
}
