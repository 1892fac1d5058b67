"""The parts of a measurement besides the table of sums, on their way to the host: movements and corrections.

Owns how these reach the sums on the host: sums that another pass has measured, gradients that could not be read, and
the judgement of the formula. Used by `meter.StepCopy` on any thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from client_sdk.host import TensorCopy
from client_sdk.optimizers import UpdateRule
from client_sdk.stats.movement import MOVE, MOVED, Movement, Refutation, judge
from client_sdk.stats.sums import SUM

REMAINDERS: Final = frozenset({"master_param", "master_params", "kahan_comp", "compensation", "shift"})
"""Keys of a state that keeps more digits of the weights than the weights themselves: float32 copies, Kahan sums."""
_OF_GRADIENT: Final = np.array([SUM[name] for name in ("gg", "nonfinite", "ee", "rr", "ep", "pp")])
_OF_UPDATE: Final = np.array([SUM[name] for name in ("uu", "uw", "ee")])
_OF_EFFECTIVE: Final = np.array([SUM[name] for name in ("rr", "ep", "pp")])
_MOVED_BY_GRADIENT: Final = np.array([MOVE[name] for name in ("pushed", "stuck")])
_MOVED_BY_FORMULA: Final = np.array([MOVE[name] for name in ("expected", "missed", "pushed", "stuck")])
_MOVED_COUNTS: Final = np.array([MOVE[name] for name in ("pushed", "stuck")])


@dataclass(kw_only=True)
class Verdict:
    """Result of all checks of an optimizer's formula so far; set on any thread."""

    is_refuted: bool = False
    """Whether the weights have moved otherwise than the formula says."""
    judged: int = 0
    """Number of steps whose movement has been compared."""
    refutation: Refutation | None = None
    """Evidence of the first step that refuted the formula."""


class Patch:
    """Sums of some tensors that were measured apart from the table, on their way to the host."""

    def __init__(self, positions: Sequence[int], columns: Sequence[int], values: Tensor) -> None:
        """Start copying ``values``, [len(positions), len(columns)]; ``columns`` are positions in `SUMS`."""
        self.norms = tuple(positions) if SUM["gg"] in columns else ()
        """Positions of the tensors whose Σ g² is among the sums."""
        self._cells = np.ix_(np.array(positions, np.intp), np.array(columns, np.intp))
        self._copy = TensorCopy(values)

    def ready(self) -> bool:
        """Return whether `apply` does not wait."""
        return self._copy.ready()

    def apply(self, sums: NDArray[np.float64]) -> None:
        """Write the values into ``sums``, [P, len(SUMS)]."""
        sums[self._cells] = self._copy.array()


@dataclass(kw_only=True)
class Tensors:
    """Properties of the P tensors of one step that the host needs; appended to as the tensors are found."""

    has_formula: list[bool] = field(default_factory=list)
    """Whether the update is known from the formula."""
    is_measured: list[bool] = field(default_factory=list)
    """Whether Δw is to be taken from the weights."""
    is_readable: list[bool] = field(default_factory=list)
    """Whether the gradient is known."""
    uses_gradient: list[bool] = field(default_factory=list)
    """Whether the formula needs the gradient itself."""
    is_coupled: list[bool] = field(default_factory=list)
    """Whether there is coupled weight decay."""
    is_solvable: list[bool] = field(default_factory=list)
    """Whether the gradient with coupled weight decay can be told from weights of this precision."""
    defines_u: list[bool] = field(default_factory=list)
    """Whether Δw = −lr·u gives u where there is no formula."""
    keeps_updates: list[bool] = field(default_factory=list)
    """Whether a weight that stays has lost no update: this step moves none, or the state keeps what rounding took."""
    tolerance: list[float] = field(default_factory=list)
    """Relative error of the formula that is accepted, by the precision of the optimizer's state."""

    def add(
        self,
        rule: UpdateRule,
        state: Mapping[str, Any],
        *,
        formula: bool,
        rounded: bool,
        readable: bool,
        trusted: bool,
        tolerance: float,
    ) -> None:
        """Append one tensor with its optimizer state; its weights are ``rounded`` if they are of low precision.

        ``trusted`` is False if the weights are known to move otherwise than the rule says.
        """
        self.has_formula.append(formula)
        self.is_measured.append(not formula or rounded)
        self.is_readable.append(readable)
        self.uses_gradient.append(rule.uses_gradient)
        self.is_coupled.append(rule.coupled != 0)
        self.is_solvable.append(not (rounded and rule.coupled and rule.uses_gradient))
        self.defines_u.append(trusted and rule.is_scaled_by_rate)
        self.keeps_updates.append(rule.is_idle or not REMAINDERS.isdisjoint(state))
        self.tolerance.append(tolerance)


class StepExtras:
    """Movements and corrections of one step."""

    def __init__(
        self,
        tensors: Tensors,
        movements: Sequence[Movement],
        patches: Sequence[Patch],
        verdict: Verdict,
        names: Sequence[str],
    ) -> None:
        """Start copying ``movements``; ``verdict`` hears what the check of the formula finds.

        ``names`` has the layer of each tensor.
        """
        self._names = names
        self._tensors = tensors
        self._movements = [(movement.positions, TensorCopy(movement.values)) for movement in movements]
        self._patches = patches
        self._verdict = verdict
        summed = {position for patch in patches for position in patch.norms}
        self.knows_norms = all(known or at in summed for at, known in enumerate(tensors.is_readable))
        """Whether the gradient norms of all tensors are known."""

    def ready(self) -> bool:
        """Return whether `apply` does not wait."""
        return all(copy.ready() for _, copy in self._movements) and all(patch.ready() for patch in self._patches)

    def apply(
        self, sums: NDArray[np.float64], *, is_skipped: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], bool]:
        """Correct the ``sums`` of P tensors, [P, len(SUMS)], in place.

        ``is_skipped`` is True if the optimizer is known to have left the step out. Returns the `MOVED` of the tensors,
        [P, len(MOVED)], whether Δw is to be taken from them, [P], and whether the formulas held.
        """
        tensors = self._tensors
        known = slice(0, len(tensors.has_formula))  # sparse gradients follow, which have no formula
        has_formula, readable, coupled = (
            np.array(values, np.bool_) for values in (tensors.has_formula, tensors.is_readable, tensors.is_coupled)
        )
        moved = np.full((len(sums), len(MOVED)), np.nan)
        for positions, copy in self._movements:
            moved[positions] = copy.array()
        measured = np.zeros(len(sums), np.bool_)
        measured[known] = tensors.is_measured
        unread = np.flatnonzero(~readable)
        sums[np.ix_(unread, _OF_GRADIENT)] = np.nan
        moved[np.ix_(unread, _MOVED_BY_GRADIENT)] = np.nan
        broken = np.flatnonzero(~readable & (np.array(tensors.uses_gradient, np.bool_) | coupled))
        sums[np.ix_(broken, _OF_UPDATE)] = np.nan
        moved[np.ix_(broken, _MOVED_BY_FORMULA)] = np.nan
        unsolved = np.flatnonzero(~np.array(tensors.is_solvable, np.bool_))
        sums[np.ix_(unsolved, np.union1d(_OF_UPDATE, _OF_EFFECTIVE))] = np.nan
        moved[np.ix_(np.flatnonzero(tensors.keeps_updates), _MOVED_COUNTS)] = np.nan
        moved[np.flatnonzero(~np.array(tensors.defines_u, np.bool_)), MOVE["unscaled"]] = np.nan
        for patch in self._patches:
            patch.apply(sums)
        if is_skipped:
            sums[:, [at for name, at in SUM.items() if name != "nonfinite"]] = np.nan
            moved[:] = np.nan
            return moved, measured, False
        formulas = np.flatnonzero(has_formula)
        finding = judge(moved[formulas], np.array(tensors.tolerance)[formulas])
        self._verdict.judged += bool(self._movements)
        holds = not finding.is_refuted and not finding.is_skipped
        if finding.refutation is not None and self._verdict.refutation is None:
            names = [self._names[formulas[at]] for at in finding.refutation.positions]
            self._verdict.refutation = finding.refutation._replace(layers=tuple(dict.fromkeys(names)))
        if finding.is_refuted:
            self._verdict.is_refuted = True
        if not holds:
            sums[np.ix_(formulas, _OF_UPDATE)] = np.nan
            sums[np.ix_(np.flatnonzero(has_formula & coupled), _OF_EFFECTIVE)] = np.nan
            moved[np.ix_(formulas, _MOVED_COUNTS)] = np.nan
        return moved, measured, holds
