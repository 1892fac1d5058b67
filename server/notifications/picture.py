"""Small picture of the loss and of λ_max over its limit, for channels that can show one.

The values come from `SeriesQuery`. Pillow's built-in font has no Greek letters, so λ_max is spelled out.
"""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from client_sdk.vocabulary import LOSS
from server.errors import CorruptDataError, DatabaseError
from server.pyramid.buckets import Buckets
from server.storage.measurements.series import SeriesQuery
from server.storage.runs import RunStore

WIDTH: Final = 760  # pixels
HEIGHT: Final = 380
SCALE: Final = 2
"""Factor by which the picture is drawn larger and then reduced, because Pillow draws lines without antialiasing."""
BEHIND: Final = 300
"""Number of steps that are shown before the current one."""
TITLE_CHARS: Final = 60
"""Maximum length of a panel's title."""
LEFT: Final = 64
RIGHT: Final = 16
INK, MUTED, GRID, ACCENT, DANGER = "#1b1d21", "#666a71", "#e4e4e0", "#2f6fde", "#c8371b"
Points = Sequence[tuple[float, float]]
"""Pairs of step and value."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One curve with its title and axis."""

    title: str
    points: Points
    logarithmic: bool
    limit: float | None = None


def draw(panels: Sequence[Panel], now: int, predicted: tuple[int, int, int] | None) -> bytes:
    """Return a PNG with the panels one above the other.

    ``now`` is the current step, ``predicted`` the low, best and high step of a predicted spike.
    """
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "#ffffff")
    canvas = ImageDraw.Draw(image)
    first = min((panel.points[0][0] for panel in panels if panel.points), default=float(now))
    last = max(float(now), *(panel.points[-1][0] for panel in panels if panel.points), 0.0)
    if predicted is not None:
        last = max(last, min(float(predicted[2]), now + float(BEHIND)))
    last += 0.02 * (last - first) + 1
    height = HEIGHT // len(panels)

    def x(step: float) -> float:
        return SCALE * (LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT))

    for number, panel in enumerate(panels):
        top, bottom = number * height + 30, (number + 1) * height - 24
        if predicted is not None:
            low, best, high = predicted
            if low < last:
                band = (x(low), SCALE * top, x(min(high, last)), SCALE * bottom)
                canvas.rectangle(band, fill="#f9e3de")
                if best < last:
                    canvas.line((x(best), SCALE * top, x(best), SCALE * bottom), fill=DANGER, width=SCALE)
        _panel(canvas, panel, top, bottom, x)
        canvas.line((x(now), SCALE * top, x(now), SCALE * bottom), fill=MUTED, width=SCALE)
    for step in _ticks(first, last, 6):
        canvas.text((x(step), SCALE * (HEIGHT - 20)), f"{step:,.0f}", fill=MUTED, font=_font(11), anchor="ma")
    out = io.BytesIO()
    image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(out, "PNG", optimize=True)
    return out.getvalue()


class PictureRenderer:
    """Renderer of pictures of stored runs."""

    def __init__(self, series: SeriesQuery, runs: RunStore) -> None:
        """``runs`` knows the scalar that is the loss of a run."""
        self._series = series
        self._runs = runs

    async def render(self, run_id: str, step: int, predicted: tuple[int, int, int] | None) -> bytes | None:
        """Return a PNG of the last steps up to ``step``, or None if there is no loss or it cannot be read."""
        try:
            name = await self._runs.loss_name(run_id) or LOSS
            names = (name, "lambda_max", "stability_limit")
            found = await self._series.read(
                run_id, names, step_from=max(0, step - BEHIND), step_to=step, points=BEHIND + 1
            )
        except (DatabaseError, CorruptDataError):
            return None  # the run's page shows the error
        width = found.bucket_steps
        loss = points(found.series.get(name), width)
        if not loss:
            return None
        panels = [Panel(title=ellipsis(name), points=loss, logarithmic=True)]
        ratio = _ratio(found.series.get("lambda_max"), found.series.get("stability_limit"), width)
        if ratio:
            panels.append(Panel(title="lambda_max / limit", points=ratio, logarithmic=False, limit=1.0))
        return await asyncio.to_thread(draw, panels, step, predicted)


def ellipsis(name: str) -> str:
    """Return the name of a scalar, cut to the width of a title.

    >>> len(ellipsis("x" * 300))
    60
    """
    return name if len(name) <= TITLE_CHARS else name[: TITLE_CHARS - 1] + "…"


def points(buckets: Buckets | None, width: int) -> list[tuple[float, float]]:
    """Return the step and the maximum of each bucket with a finite maximum. ``width`` is the bucket size in steps."""
    if buckets is None:
        return []
    values: NDArray[np.floating] = buckets.max[0]
    finite = np.isfinite(values)
    return list(zip((buckets.numbers[finite] * width).tolist(), values[finite].tolist(), strict=True))


def _ratio(curvature: Buckets | None, limit: Buckets | None, width: int) -> list[tuple[float, float]]:
    limits = dict(points(limit, width))
    return [(step, value / limits[step]) for step, value in points(curvature, width) if limits.get(step, 0.0) > 0]


def _panel(canvas: ImageDraw.ImageDraw, panel: Panel, top: int, bottom: int, x: Callable[[float], float]) -> None:
    values = [value for _, value in panel.points if value > 0 or not panel.logarithmic]
    if panel.limit is not None:
        values.append(panel.limit)
    canvas.text((SCALE * LEFT, SCALE * (top - 8)), panel.title, fill=INK, font=_font(13), anchor="lb")
    if not values:
        return
    scale: Callable[[float], float] = math.log10 if panel.logarithmic else float
    low, high = scale(min(values)), scale(max(values))
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)

    def y(value: float) -> float:
        return SCALE * (bottom - (scale(value) - low) / (high - low) * (bottom - top))

    for tick in _ticks(low, high, 4):
        value = 10**tick if panel.logarithmic else tick
        canvas.line((SCALE * LEFT, y(value), SCALE * (WIDTH - RIGHT), y(value)), fill=GRID, width=SCALE)
        label = f"1e{tick:.0f}" if panel.logarithmic and tick == round(tick) else f"{value:.3g}"
        canvas.text((SCALE * (LEFT - 6), y(value)), label, fill=MUTED, font=_font(11), anchor="rm")
    if panel.limit is not None:
        canvas.line((SCALE * LEFT, y(panel.limit), SCALE * (WIDTH - RIGHT), y(panel.limit)), fill=DANGER, width=SCALE)
    curve = [(x(step), y(value)) for step, value in panel.points if value > 0 or not panel.logarithmic]
    if len(curve) > 1:
        canvas.line(curve, fill=ACCENT, width=2 * SCALE, joint="curve")
    for point in curve if len(curve) < 30 else ():
        canvas.circle(point, 2.5 * SCALE, fill=ACCENT)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Return round numbers within a range, about ``count`` of them.

    >>> _ticks(0.0, 10.0, 5)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    span = high - low
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    width = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / width)
    return [round(index * width, 12) for index in range(first, math.floor(high / width + 1e-9) + 1)]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)
