"""A comparison of runs as the query of an address, which holds all of it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import parse_qs, urlencode

from client_sdk.vocabulary import EventKind

MAX_RUNS: Final = 8
"""Number of runs that are compared at once; each has a colour of its own."""
MAX_ID_CHARS: Final = 128
MAX_NAME_CHARS: Final = 256
AXES: Final[Mapping[str, str]] = {"step": "by step", "time": "by time", "tokens": "by tokens"}
"""Words for the horizontal axis, the first of which is the default."""
EVENTS: Final[Mapping[str, str]] = {
    EventKind.SPIKE.value: "spike",
    EventKind.BAD_BATCH.value: "bad batch",
    EventKind.LR_JUMP.value: "jump of the learning rate",
    EventKind.ROLLBACK.value: "rollback",
    EventKind.NONFINITE.value: "NaN or infinity",
}
"""Words for the kinds of events at whose first one runs can be aligned."""
STARTS: Final[Mapping[str, str]] = {
    "logged": "as logged",
    "start": "aligned at their starts",
    **{kind: f"aligned at the first {words}" for kind, words in EVENTS.items()},
}
"""Words for the place where the runs meet, the first of which is the default."""
SCALES: Final[Mapping[str, str]] = {"auto": "fitting scale", "log": "log scale", "linear": "linear scale"}
"""Words for the vertical axis, the first of which is the default."""
REFERENCES: Final[Mapping[str, str]] = {"none": "no reference", "healthy": "against healthy runs"}
"""Words for what the runs are compared with, the first of which is the default."""
COLOURS: Final[Mapping[str, str]] = {"usual": "against usual", "log": "log colour", "linear": "linear colour"}
"""Words for the colours of the heatmaps, the first of which is the default."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that decides what a comparison shows. Malformed values fall back to their defaults."""

    runs: tuple[str, ...] = ()
    """Ids of the compared runs in their order, at most `MAX_RUNS`."""
    metric: str = "loss"
    """Name of the scalar in the first panel; "loss" is the loss of each run, under whatever name it was logged."""
    axis: str = "step"
    start: str = "logged"
    scale: str = "auto"
    reference: str = "none"
    stat: str | None = None
    """Name of the statistic in the heatmaps; None chooses the first that a run has."""
    colours: str = "usual"
    zoom: tuple[float, float] | None = None
    """First and last value of the horizontal axis, in its units; None shows everything."""

    @property
    def href(self) -> str:
        """Address that holds this comparison."""
        given = {
            "runs": ",".join(self.runs),
            "metric": "" if self.metric == "loss" else self.metric,
            "axis": "" if self.axis == next(iter(AXES)) else self.axis,
            "start": "" if self.start == next(iter(STARTS)) else self.start,
            "scale": "" if self.scale == next(iter(SCALES)) else self.scale,
            "reference": "" if self.reference == next(iter(REFERENCES)) else self.reference,
            "stat": self.stat or "",
            "colours": "" if self.colours == next(iter(COLOURS)) else self.colours,
            "from": "" if self.zoom is None else f"{self.zoom[0]:.10g}",
            "to": "" if self.zoom is None else f"{self.zoom[1]:.10g}",
        }
        query = urlencode({name: value for name, value in given.items() if value}, safe=",")
        return f"/compare?{query}" if query else "/compare"

    def without(self, run_id: str) -> Comparison:
        """Return the comparison of the other runs."""
        return replace(self, runs=tuple(run for run in self.runs if run != run_id))

    def everything(self) -> Comparison:
        """Return the comparison without its zoom."""
        return replace(self, zoom=None)


def parse_comparison(query: str) -> Comparison:
    """Return the comparison that the query of an address describes. Accepts any text.

    >>> parse_comparison("?runs=a,b,a&axis=time&from=1&to=nan")
    Comparison(runs=('a', 'b'), metric='loss', axis='time', start='logged', scale='auto', reference='none', stat=None, \
colours='usual', zoom=None)
    """
    given = {name: values[-1] for name, values in parse_qs(query.removeprefix("?"), max_num_fields=100).items()}
    ids = [run for run in given.get("runs", "").split(",") if 0 < len(run) <= MAX_ID_CHARS]

    def one_of(name: str, words: Mapping[str, str]) -> str:
        return given[name] if given.get(name) in words else next(iter(words))

    return Comparison(
        runs=tuple(dict.fromkeys(ids))[:MAX_RUNS],
        metric=_name(given.get("metric")) or "loss",
        axis=one_of("axis", AXES),
        start=one_of("start", STARTS),
        scale=one_of("scale", SCALES),
        reference=one_of("reference", REFERENCES),
        stat=_name(given.get("stat")),
        colours=one_of("colours", COLOURS),
        zoom=_zoom(given.get("from"), given.get("to")),
    )


def _name(text: str | None) -> str | None:
    """Return a name, or None for a text that is none."""
    return text if text and len(text) <= MAX_NAME_CHARS else None


def _zoom(low: Any, high: Any) -> tuple[float, float] | None:
    try:
        ends = float(low), float(high)
    except (TypeError, ValueError):
        return None
    return ends if all(map(math.isfinite, ends)) and ends[0] < ends[1] and max(map(abs, ends)) < 2**53 else None
