"""The sentences under the headings of the run page, which say what to look for in a panel. Pure."""

from __future__ import annotations

from typing import Final

from client_sdk.answers import Buckets, RunDetail, Series
from client_sdk.vocabulary import LOSS, interval_in_words
from dashboard.figures.curvature import LIMIT, has_curvature
from dashboard.figures.heatmap import has_usual_level
from dashboard.figures.held_loss import HeldLoss, held_words
from dashboard.figures.loss import is_logarithmic, numbers
from dashboard.figures.marks import Marks
from dashboard.figures.scales import statistic
from dashboard.numbers import exact

RHYTHM: Final = ("watch_every", "watch_share")
"""Scalars that say how often layers are measured, and what share of the training's time that takes."""
FRESHNESS: Final = ("lambda_max_age", "lambda_max_error", "curvature_share")
"""The same of curvature."""
NO_CURVATURE: Final = "pass closure= to client_sdk.log, or curvature=True to the integration of your framework"


def layers_note(stat: str, scale: str, series: Series) -> str:
    """Return the meaning of the statistic, how often layers are measured, and what that takes, if the run says it."""
    every, share = (_last(series.series.get(name)) for name in RHYTHM)
    said = [statistic(stat).meaning]
    if has_usual_level(stat, scale):
        said.append("each layer against its own recent level")
    if every is not None and share is not None:
        said.append(f"{interval_in_words(round(every))}, {100 * share:.1f} % of the training's time")
    return " · ".join(said)


def curvature_note(series: Series) -> str:
    """Return how old and how exact the last λ_max is and what curvature takes, or how to measure it."""
    if not has_curvature(series.series):
        limit = _last(series.series.get(LIMIT))
        return (f"limit 2/η = {exact(limit)}, no curvature: " if limit is not None else "no curvature: ") + NO_CURVATURE
    age, error, share = (_last(series.series.get(name)) for name in FRESHNESS)
    said = []
    if age is not None and error is not None:
        when = "at the last record" if age < 1 else "one step ago" if age < 2 else f"{age:,.0f} steps ago"
        said.append(f"λ_max read {when}, within {max(100 * error, 0.1):.1f} %")
    if share is not None:
        said.append(f"{100 * share:.1f} % of the training's time")
    return " · ".join([*said, "stable below the line; the strip shows the stage"])


def loss_note(
    run: RunDetail, series: Series, metric: str, marks: Marks, *, held: HeldLoss | None = None, scale: str = ""
) -> str:
    """Return how to read the panel of a scalar."""
    is_loss = metric == (run.loss_name or LOSS)
    parts: list[str] = [f"loss: {run.original_loss}"] if is_loss and run.original_loss is not None else []
    buckets = series.series.get(metric)
    if buckets is not None and is_logarithmic(
        numbers(buckets.min), numbers(buckets.max), scale, has_held=held is not None
    ):
        parts.append("log scale")
    if held is not None and held_words(held):
        parts.append(held_words(held))
    if series.bucket_steps > 1:
        parts.append(f"band: lowest and highest of {series.bucket_steps:,} steps")
    if is_loss and marks.expected is not None:
        parts.append("shaded: predicted spike" if series.bucket_steps > 1 else "band: predicted spike")
    return " · ".join(parts)


def _last(found: Buckets | None) -> float | None:
    return None if found is None else next((value for value in reversed(found.last) if value is not None), None)
