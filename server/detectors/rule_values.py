"""Values that alert rules read from a sample: a scalar, or a layer statistic reduced to one number. Pure."""

from __future__ import annotations

import math
from fnmatch import translate
from re import compile as compile_pattern
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client_sdk.vocabulary import Reduce
from server.models import Layout, Sample
from server.rule import Rule

MAX_LAYERS: Final = 3
"""Number of layers that an alert names at most."""


class RuleValues:
    """Reader of the values of one run's samples. Remembers the rows of the last layout that match each pattern."""

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self._rows: dict[str, NDArray[np.intp] | None] = {}

    def value(self, rule: Rule, sample: Sample) -> float | None:
        """Return the value that a rule watches; None if the sample has none, or only NaN."""
        if rule.statistic is None:
            value = sample.scalars.get(rule.scalar or "")
            return None if value is None or math.isnan(value) else value
        column = self._column(rule, sample)
        if column is None or not len(column):
            return None
        match rule.reduce:
            case Reduce.MAX:
                found = float(np.fmax.reduce(column))
            case Reduce.MIN:
                found = float(np.fmin.reduce(column))
            case _:
                known = column[np.isfinite(column)]
                found = float(known.mean(dtype=np.float64)) if len(known) else math.nan
        return None if math.isnan(found) else found

    def is_logged(self, rule: Rule, sample: Sample) -> bool:
        """Whether the sample has any value that the rule watches; a logged NaN counts."""
        if rule.statistic is not None:
            column = self._column(rule, sample)
            return column is not None and not bool(np.isnan(column).all())
        return rule.scalar is None or rule.scalar in sample.scalars

    def leaders(self, rule: Rule, sample: Sample) -> tuple[str, ...]:
        """Return the layers that the reduced value came from, most extreme first."""
        column = self._column(rule, sample)
        if column is None or sample.layout is None or rule.reduce is Reduce.MEAN:
            return ()
        keyed = np.nan_to_num(column if rule.reduce is Reduce.MIN else -column, nan=math.inf, neginf=-math.inf)
        rows = self._matching_rows(rule.layers, sample.layout)
        top = np.argsort(keyed, kind="stable")[:MAX_LAYERS]
        return tuple(
            sample.layout.layers[int(row if rows is None else rows[row])] for row in top if not np.isnan(column[row])
        )

    def _column(self, rule: Rule, sample: Sample) -> NDArray[np.float32] | None:
        column = sample.statistic(rule.statistic or "")
        if column is None or sample.layout is None:
            return None
        rows = self._matching_rows(rule.layers, sample.layout)
        return column if rows is None else column[rows]

    def _matching_rows(self, pattern: str, layout: Layout) -> NDArray[np.intp] | None:
        """Return the rows of the layers that match a pattern, None for all."""
        if layout is not self._layout:
            self._layout, self._rows = layout, {}
        if pattern == "*":
            return None
        if pattern not in self._rows:
            matches = compile_pattern(translate(pattern)).match
            chosen = [row for row, name in enumerate(layout.layers) if matches(name)]
            self._rows[pattern] = np.array(chosen, dtype=np.intp)
        return self._rows[pattern]
