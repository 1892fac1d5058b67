"""Names that the SDK, the server and the dashboard share: alerts, stages, runs, scalars, layer statistics, evidence.

Each name and its meaning stands here once. Imports nothing of the project, so that every room may import this module.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal


class AlertLevel(StrEnum):
    """Severity of an alert, mildest first."""

    WATCH = "watch"
    WARNING = "warning"
    CRITICAL = "critical"


LEVEL_RANK: Final[Mapping[str, int]] = {level.value: rank for rank, level in enumerate(AlertLevel)}
"""Order of the alert levels: a higher rank is more severe."""


class AlertKind(StrEnum):
    """Subject of an alert."""

    SPIKE_PREDICTED = "spike-predicted"
    SPIKE = "spike"
    DIVERGENCE = "divergence"
    NONFINITE = "nonfinite"
    LR_JUMP = "lr-jump"
    BAD_BATCH = "bad-batch"
    EPS_FLOOR = "eps-floor"
    GRADIENT_EXPLOSION = "gradient-explosion"
    LOSS_NOISE = "loss-noise"
    CUSTOM_RULE = "custom-rule"


class AlertState(StrEnum):
    """State of an alert; an acknowledged alert is still open."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"
    """State of an alert whose condition has passed."""
    ENDED = "ended"
    """State of an alert that lasted until the run ended; it is open again if the run goes on."""


class Cause(StrEnum):
    """Mechanism behind a spike or a build-up (docs/explanation/science.md, "Causes and remedies")."""

    STALE_SECOND_MOMENT = "stale-second-moment"
    VANISHED_GRADIENTS = "vanished-gradients"
    BAD_BATCH = "bad-batch"
    LEARNING_RATE = "learning-rate"
    NUMERICAL = "numerical"
    DIVERGENCE = "divergence"
    STATE_LOSS = "state-loss"
    UNKNOWN = "unknown"


class Stage(StrEnum):
    """The five stages of an Adam spike (Bai et al.; docs/explanation/science.md), and the lack of evidence for them."""

    STABLE = "stable"
    DECOUPLED = "decoupled"
    UNSTABLE = "unstable"
    SPIKING = "spiking"
    RECOVERING = "recovering"
    NONFINITE = "non-finite"
    """The latest loss is NaN or infinite."""
    NOT_JUDGED = "not-judged"
    """Nothing unusual was found, but what the run logs cannot show that it is stable; see `StageReason`."""


STAGE_MEANINGS: Final[Mapping[str, str]] = {
    Stage.STABLE: "The second moment follows the gradient, and no measured direction is unstable.",
    Stage.DECOUPLED: "The second moment decays on its own, so that the steps grow whatever the gradient does.",
    Stage.UNSTABLE: "λ_max is above the limit 2/η, so that the loss held by some direction grows at every step.",
    Stage.SPIKING: "The loss is far above its usual level.",
    Stage.RECOVERING: "The loss falls back to its usual level after a spike.",
    Stage.NONFINITE: "The latest loss is NaN or infinite.",
    Stage.NOT_JUDGED: "Nothing unusual was found, but what the run logs cannot show that it is stable.",
}
"""Sentences for people, keyed by stage; docs/glossary.md has the same."""
CURVE_MEANINGS: Final[Mapping[str, str]] = {
    "lambda_max": "The largest eigenvalue of the preconditioned Hessian; above 2/η some direction is unstable.",
    "lambda_grad": "gᵀĤg/‖g‖², the curvature along the gradient; above 2/η a spike is under way.",
    "stability_limit": "2/η, the value of λ_max above which gradient descent is unstable.",
    "critical_sharpness": (
        "2/η_c, where η_c is the shortest step along the optimizer's last update that raises the loss"
    ),
    "stability_ratio": "λ_max divided by the limit 2/η; above 1 some direction is unstable.",
}
"""Sentences about curvature for people, keyed by scalar; docs/glossary.md has the same."""


class StageReason(StrEnum):
    """Reason for which a run is not judged."""

    NO_LOSS = "no-loss"
    TOO_FEW_RECORDS = "too-few-records"
    LOSS_ONLY = "loss-only"
    NO_SECOND_MOMENT = "no-second-moment"


STAGE_REASONS: Final[Mapping[str, str]] = {
    StageReason.NO_LOSS: "no scalar is named loss, so no spike can be found",
    StageReason.TOO_FEW_RECORDS: "there are too few records, a spike can be found after 10 losses",
    StageReason.LOSS_ONLY: (
        "neither layers nor curvature is logged, so spikes are found when they come and none can be predicted"
    ),
    StageReason.NO_SECOND_MOMENT: (
        "neither second moment nor curvature is logged, so spikes are found when they come and none can be predicted"
    ),
}
"""Sentences for people, keyed by reason."""


class RunState(StrEnum):
    """State of a run."""

    RUNNING = "running"
    FINISHED = "finished"
    CRASHED = "crashed"
    STALE = "stale"
    """The run has not finished, and nothing has arrived from it for a while."""


class EventKind(StrEnum):
    """Subject of an event, that is of something that happened at a step."""

    STAGE = "stage"
    SPIKE = "spike"
    LR_JUMP = "lr-jump"
    BAD_BATCH = "bad-batch"
    NONFINITE = "nonfinite"
    LOSS_OUTLIER = "loss-outlier"
    ROLLBACK = "rollback"
    GUARD = "guard"
    """Something that the guard of the training did, or would have done."""
    STATISTICS_THINNED = "statistics-thinned"
    STATISTICS_COMPLETE = "statistics-complete"
    AUDIT = "audit"


class Scope(StrEnum):
    """Rights of a token; each scope includes the scopes before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


class Sensitivity(StrEnum):
    """Step of the knob by which people ask a replay for fewer or for more warnings."""

    FEWER = "fewer"
    USUAL = "usual"
    MORE = "more"


class Condition(StrEnum):
    """Condition under which an alert rule fires (docs/how-to/write-rules.md)."""

    ABOVE = "above"
    BELOW = "below"
    CHANGE = "change"
    Z_SCORE = "z-score"
    NO_DATA = "no-data"


class Direction(StrEnum):
    """Direction of a change or of an unusual value."""

    UP = "up"
    DOWN = "down"
    EITHER = "either"


class ChangeBy(StrEnum):
    """Measure of a change: the factor between two values, or their difference."""

    FACTOR = "factor"
    AMOUNT = "amount"


class Reduce(StrEnum):
    """Reduction of the matching layers to one number: the maximum is above a limit when any layer is."""

    MAX = "max"
    MIN = "min"
    MEAN = "mean"


@dataclass(frozen=True, kw_only=True)
class Scalar:
    """A scalar with a meaning. A run may log scalars of any other name; those are plotted as they are."""

    name: str
    label: str
    unit: str
    """Unit of the values; empty where the user's own loss or parameters decide it."""
    meaning: str
    """The meaning in one sentence."""
    is_filled_in: bool
    """Whether the SDK logs it by itself where it can."""


SCALARS: Final[Mapping[str, Scalar]] = {
    scalar.name: scalar
    for scalar in (
        Scalar(
            name="loss", label="loss", unit="", is_filled_in=False,
            meaning="The training loss of the batch, as the user logs it.",
        ),
        Scalar(
            name="lr", label="learning rate", unit="", is_filled_in=True,
            meaning="The largest learning rate η of the optimizer's parameter groups.",
        ),
        Scalar(
            name="grad_norm", label="gradient norm", unit="", is_filled_in=True,
            meaning=(
                "‖g‖ over all watched layers, as the optimizer received the gradient; a run that logs `grad_norm` "
                "itself keeps its own."
            ),
        ),
        Scalar(
            name="grad_norm_before_clip", label="gradient norm before clipping", unit="", is_filled_in=False,
            meaning="‖g‖ before clipping, where a framework or the user logs it under this name.",
        ),
        Scalar(
            name="grad_norm_after_clip", label="gradient norm after clipping", unit="", is_filled_in=True,
            meaning="‖g‖ as the optimizer received the gradient, in a run that logs a `grad_norm` of its own.",
        ),
        Scalar(
            name="lambda_max", label="λ_max", unit="", is_filled_in=True,
            meaning="The largest eigenvalue of the preconditioned Hessian; above 2/η some direction is unstable.",
        ),
        Scalar(
            name="lambda_max_error", label="error of λ_max", unit="", is_filled_in=True,
            meaning="The relative error of `lambda_max`: by how much it may be below the true value.",
        ),
        Scalar(
            name="lambda_max_age", label="age of λ_max", unit="steps", is_filled_in=True,
            meaning="The number of steps since λ_max was last read; 0 where the record has a reading of its own.",
        ),
        Scalar(
            name="stability_ratio", label="stability ratio", unit="", is_filled_in=True,
            meaning="λ_max·η/2, where every parameter group counts with its own learning rate; above 1 is unstable.",
        ),
        Scalar(
            name="lambda_grad", label="λ_grad", unit="", is_filled_in=True,
            meaning="The preconditioned curvature along the gradient; above 2/η a spike is under way.",
        ),
        Scalar(
            name="lambda_step", label="λ_step", unit="", is_filled_in=True,
            meaning="The curvature that the last step met; above 2/η the step raised the loss of its own batch.",
        ),
        Scalar(
            name="mode_loss", label="loss in the unstable direction", unit="", is_filled_in=True,
            meaning="The part of the loss that the directions of largest curvature hold, Σ c²/(2λ).",
        ),
        Scalar(
            name="mode_growth", label="growth of the unstable direction", unit="1/step", is_filled_in=True,
            meaning="The growth per step of the gradient in the unstable direction; 0.05 is 5 % a step.",
        ),
        Scalar(
            name="mode_alternation", label="alternation", unit="", is_filled_in=True,
            meaning="The share of the last steps at which the gradient along the leading direction changed its sign.",
        ),
        Scalar(
            name="mode_share", label="share of the unstable direction", unit="", is_filled_in=True,
            meaning="The share of the preconditioned gradient that the directions of largest curvature hold.",
        ),
        Scalar(
            name="period_two", label="alternating share of the gradient", unit="", is_filled_in=True,
            meaning="The share of the gradient that changes its sign at every step, from a sample; 1/3 is noise.",
        ),
        Scalar(
            name="period_two_growth", label="growth of the alternating gradient", unit="1/step", is_filled_in=True,
            meaning="The growth per step of the alternating part of the gradient; 0.05 is 5 % a step.",
        ),
        Scalar(
            name="stability_ratio_source", label="source of the stability ratio", unit="", is_filled_in=True,
            meaning="What `stability_ratio` was taken from: 1 is a curvature probe, 2 the growth of `period_two`.",
        ),
        Scalar(
            name="critical_sharpness", label="critical sharpness", unit="", is_filled_in=True,
            meaning=(
                "2/η_c, where η_c is the shortest step along the last update that raises the loss; above 2/η the step "
                "was too long for its batch."
            ),
        ),
        Scalar(
            name="critical_sharpness_error", label="error of the critical sharpness", unit="", is_filled_in=True,
            meaning="The relative width of the interval that holds `critical_sharpness`.",
        ),
        Scalar(
            name="stability_limit", label="limit 2/η", unit="", is_filled_in=True,
            meaning="The preconditioned curvature 2/η above which a direction is unstable.",
        ),
        Scalar(
            name="replicas_differ", label="layers that differ between ranks", unit="layers", is_filled_in=True,
            meaning="Layers whose copies on the ranks of a distributed training differ; 0 in a sound training.",
        ),
        Scalar(
            name="guard_act", label="act of the guard", unit="", is_filled_in=True,
            meaning="What `guard` did after this step: a position in the list of its actions.",
        ),
        Scalar(
            name="guard_advice", label="advice of the guard", unit="", is_filled_in=True,
            meaning='What `guard` would have done in the mode "act": a position in the list of its actions.',
        ),
        Scalar(
            name="guard_factor", label="factor of the guard", unit="", is_filled_in=True,
            meaning="The factor of the guard's action on the second moment, the learning rate or ε.",
        ),
        Scalar(
            name="guard_steps", label="steps of the guard", unit="steps", is_filled_in=True,
            meaning="The number of steps that the guard's action touches.",
        ),
        Scalar(
            name="guard_height", label="rise that the guard saw coming", unit="", is_filled_in=True,
            meaning="The forecast rise of the loss, in units of its level, for which the guard acted.",
        ),
        Scalar(
            name="step_time", label="step time", unit="seconds", is_filled_in=True,
            meaning="Wall-clock time from one call of `log` to the next, divided by the steps between them.",
        ),
        Scalar(
            name="watch_every", label="layers every", unit="steps", is_filled_in=True,
            meaning='Optimizer steps from one measured step to the next; logged when `every="auto"` changes it.',
        ),
        Scalar(
            name="curvature_share", label="share of curvature", unit="", is_filled_in=True,
            meaning="The share of the training's time that measuring curvature took over the last 200 steps.",
        ),
        Scalar(
            name="watch_share", label="share of measuring", unit="", is_filled_in=True,
            meaning="Share of the training's time that layer statistics take at this interval; logged with it.",
        ),
    )
}  # fmt: skip
"""Scalars with a meaning by name, in the order in which they are documented."""

GUARD_ACTIONS: Final = (
    "raise-second-moment", "reduce-rate", "clip-update", "lower-beta2", "scale-eps", "skip-batch",
)  # fmt: skip
"""Names of the actions of a guard, at the positions by which `guard_act` and `guard_advice` record them."""

StatisticKind = Literal["magnitude", "ratio", "cosine", "share", "count"]
"""Reading of a statistic's values: a magnitude spans decades, a ratio is neutral at 1, a cosine at 0."""

PrecisionClass = Literal["rounded", "exact"]
"""Whether a watch with compact precision rounds a statistic's values (docs/explanation/storage.md)."""


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """A statistic of each layer. A layout may carry any subset of these, and statistics of the user's own."""

    name: str
    label: str
    unit: str
    """Unit of the values; empty where the parameters and the loss decide it."""
    kind: StatisticKind
    precision: PrecisionClass
    meaning: str
    """One sentence: how to read it."""
    formula: str


STATISTICS: Final[Mapping[str, Statistic]] = {
    statistic.name: statistic
    for statistic in (
        Statistic(
            name="grad_norm", label="gradient norm", unit="", kind="magnitude", precision="rounded", formula="‖g‖",
            meaning="‖g‖ of each layer; look for one that grows alone",
        ),
        Statistic(
            name="weight_norm", label="weight norm", unit="", kind="magnitude", precision="rounded", formula="‖w‖",
            meaning="‖w‖ of each layer after the step; slow growth makes logits and attention scores grow too",
        ),
        Statistic(
            name="update_norm", label="update norm", unit="", kind="magnitude", precision="rounded", formula="‖Δw‖",
            meaning="‖Δw‖ of each layer; sudden doublings come before many spikes",
        ),
        Statistic(
            name="update_ratio", label="update / weight", unit="", kind="magnitude", precision="rounded",
            formula="‖Δw‖ / ‖w‖",
            meaning="‖Δw‖/‖w‖, usually near 0.001; far above it the layer is being rewritten",
        ),
        Statistic(
            name="v_rms", label="√v, root mean", unit="", kind="magnitude", precision="rounded", formula="√mean v̂",
            meaning="what Adam remembers of the gradient's size",
        ),
        Statistic(
            name="rms_ratio", label="RMS of g² / v", unit="", kind="ratio", precision="rounded",
            formula="√mean(g² / max(v̂, ε²))",
            meaning="how far v under-estimates g²; above 1 the step is larger than Adam thinks",
        ),
        Statistic(
            name="decoupling", label="Σg² / Σv", unit="", kind="magnitude", precision="rounded", formula="Σg² / Σv̂",
            meaning="far below 1 the second moment decays on its own, whatever the gradient does",
        ),
        Statistic(
            name="u_rms", label="update before lr, RMS", unit="", kind="ratio", precision="rounded",
            formula="√mean u²",
            meaning="RMS of u; near 1 early in training",
        ),
        Statistic(
            name="eps_fraction", label="share below ε", unit="", kind="share", precision="rounded",
            formula="share of coordinates with √v̂ < ε",
            meaning="share of coordinates whose √v is under ε; those barely move",
        ),
        Statistic(
            name="grad_momentum_cosine", label="gradient · momentum", unit="", kind="cosine", precision="rounded",
            formula="cos(g_t, m_{t−1})",
            meaning="cosine between g and m; −1 means the step overshoots and comes back",
        ),
        Statistic(
            name="period_two", label="alternating share of the gradient", unit="", kind="share", precision="rounded",
            formula="‖e‖ / √level, e = filter of (−1)^t·D^½·g",
            meaning="share of the gradient that changes its sign at every step; near 1 the layer oscillates",
        ),
        Statistic(
            name="swallowed", label="updates lost to rounding", unit="", kind="share", precision="rounded",
            formula="share of coordinates with u ≠ 0 and Δw = 0",
            meaning="share of non-zero updates that rounding of the weights swallowed; only for 16-bit weights",
        ),
        Statistic(
            name="nonfinite", label="NaN or Inf", unit="coordinates", kind="count", precision="exact",
            formula="count of NaN and ±∞ in g",
            meaning="how many numbers in the layer were not finite",
        ),
        Statistic(
            name="bimodality", label="bimodality of r", unit="", kind="share", precision="rounded",
            formula="Hartigan's dip of r",
            meaning="Hartigan's dip of r; two modes mean gradients at the size of ε",
        ),
    )
}  # fmt: skip
"""Layer statistics by name, in the order of the wire format."""

EvidenceForm = Literal["number", "count", "ratio", "times", "share", "growth", "step", "steps", "flag", "text"]
"""Presentation of an evidence value; ``growth`` is a relative change per step, ``times`` a multiple."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One measurement that a detector gives as evidence with a finding."""

    key: str
    label: str
    """Words for people; λ_max and λ_grad stand for the symbols with a subscript."""
    form: EvidenceForm = "number"


EVIDENCE: Final[Mapping[str, Evidence]] = {
    evidence.key: evidence
    for evidence in (
        Evidence(key="stability_ratio", label="λ_max / limit", form="ratio"),
        Evidence(key="lambda_max", label="λ_max"),
        Evidence(key="stability_limit", label="limit 2/η"),
        Evidence(key="lambda_max_growth_per_step", label="λ_max grows", form="growth"),
        Evidence(key="crossing_step", label="λ_max crosses the limit", form="step"),
        Evidence(key="lambda_grad_ratio", label="λ_grad / limit", form="ratio"),
        Evidence(key="decoupling", label="Σg² / Σv̂"),
        Evidence(key="decoupling_least", label="Σg² / Σv̂, least"),
        Evidence(key="decoupled_steps", label="v decays on its own", form="steps"),
        Evidence(key="gradient_growth_per_step", label="‖g‖ grows", form="growth"),
        Evidence(key="expected_rise", label="loss may rise by, times its level", form="ratio"),
        Evidence(key="expected_rise_low", label="loss may rise by at least", form="ratio"),
        Evidence(key="expected_rise_high", label="loss may rise by at most", form="ratio"),
        Evidence(key="mode_growth_per_step", label="unstable direction grows", form="growth"),
        Evidence(key="alternating_share", label="gradient that changes its sign at every step", form="share"),
        Evidence(key="alternation_growth_per_step", label="this part of the gradient grows", form="growth"),
        Evidence(key="grad_norm", label="‖g‖"),
        Evidence(key="grad_norm_usual", label="usual ‖g‖"),
        Evidence(key="grad_norm_start", label="‖g‖ at the start"),
        Evidence(key="grad_norm_ratio", label="‖g‖ against its usual size", form="times"),
        Evidence(key="grad_norm_deviations", label="‖g‖ above usual, deviations", form="ratio"),
        Evidence(key="loss", label="loss"),
        Evidence(key="loss_baseline", label="loss before"),
        Evidence(key="loss_before", label="loss before the rise"),
        Evidence(key="loss_start", label="loss at the start"),
        Evidence(key="loss_peak", label="loss at its peak"),
        Evidence(key="loss_deviations", label="loss above usual, deviations", form="ratio"),
        Evidence(key="peak_step", label="peak", form="step"),
        Evidence(key="outlier_step", label="loss jumped", form="step"),
        Evidence(key="same_step_runs", label="spiked at the same step", form="text"),
        Evidence(key="passed_without", label="other runs that passed it without", form="count"),
        Evidence(key="update_ratio", label="update / weight"),
        Evidence(key="learning_rate_before", label="learning rate before"),
        Evidence(key="learning_rate_after", label="learning rate after"),
        Evidence(key="lr_jump_step", label="learning rate changed", form="step"),
        Evidence(key="state_reset_step", label="optimizer state was empty", form="step"),
        Evidence(key="nonfinite_step", label="not finite", form="step"),
        Evidence(key="nonfinite_gradients", label="gradients not finite", form="count"),
        Evidence(key="nonfinite_loss", label="loss not finite", form="flag"),
        Evidence(key="eps_fraction", label="coordinates below ε", form="share"),
        Evidence(key="series", label="series", form="text"),
        Evidence(key="value", label="value"),
        Evidence(key="limit", label="limit"),
        Evidence(key="silent_minutes", label="silent for minutes"),
        Evidence(key="predicted_at_step", label="was predicted at", form="step"),
        Evidence(key="warned_at_step", label="first warning", form="step"),
        Evidence(key="first_seen_at_step", label="first signs", form="step"),
        Evidence(key="prediction_result", label="prediction", form="text"),
        Evidence(key="lead_steps", label="lead", form="steps"),
        Evidence(key="false_alarms_before", label="false alarms before it"),
    )
}
"""Evidence with a label, by key. A detector may give keys of its own; those are shown by their key."""

LOSS: Final = "loss"
"""Name of the scalar that the detectors read as the training loss."""
_NOISE: Final = frozenset(
    {"train", "training", "step", "batch", "iter", "total", "optimizer", "optim", "adam", "adamw", "sgd"}
)
_FORMS: Final[Mapping[str, tuple[frozenset[str], ...]]] = {
    LOSS: tuple(
        frozenset(words.split())
        for words in ("loss", "lm loss", "nll", "nll loss", "ce loss", "cross entropy", "cross entropy loss", "xent")
    ),
    "lr": tuple(frozenset(words.split()) for words in ("lr", "learning rate", "learningrate")),
    "grad_norm": tuple(frozenset(words.split()) for words in ("grad norm", "gradient norm", "gnorm", "gradnorm")),
}
"""Sets of words that mean a scalar, the plainest first, keyed by the name of the scalar."""


def guess_names(names: Collection[str]) -> dict[str, str]:
    """Return the known names of metrics, keyed by their present names, for known names that are not present.

    "train/loss" and "Loss/train" are the loss, "val/loss" is not. Among several candidates the plainest form is chosen,
    then the shortest name: train/loss before nll, and before train/loss_step.

    >>> guess_names(["train/loss", "train/loss_step", "val/loss", "lr"])
    {'train/loss': 'loss'}
    >>> guess_names(["training_loss", "eval_nll"]), guess_names(["nll"])
    ({'training_loss': 'loss'}, {'nll': 'loss'})
    """
    found = {}
    for known, forms in _FORMS.items():
        if known in names:
            continue
        words = {name: _words(name) for name in names}
        candidates = [
            (forms.index(own - _NOISE), len(own), len(name), name)
            for name, own in words.items()
            if own - _NOISE in forms
        ]
        if candidates:
            found[min(candidates)[-1]] = known
    return found


def loss_among(names: Collection[str]) -> str | None:
    """Return the name of the training loss among names of scalars, or None if there is none.

    >>> loss_among(["Loss/train", "lr"]), loss_among(["loss", "train/loss"]), loss_among(["accuracy"])
    ('Loss/train', 'loss', None)
    """
    if LOSS in names:
        return LOSS
    return next((name for name, known in guess_names(names).items() if known == LOSS), None)


def interval_in_words(every: int) -> str:
    """Return "every step", "every 2nd step", and so on.

    >>> interval_in_words(1), interval_in_words(3), interval_in_words(12), interval_in_words(22)
    ('every step', 'every 3rd step', 'every 12th step', 'every 22nd step')
    """
    if every == 1:
        return "every step"
    ending = "th" if every % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(every % 10, "th")
    return f"every {every}{ending} step"


def _words(name: str) -> frozenset[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", name)
    return frozenset(word for word in re.split(r"[^a-z]+", apart.lower()) if word)
