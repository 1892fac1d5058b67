"""Checks of the layer statistics over many steps: dead layers, updates lost to rounding, an ε above the gradients.

Owns the memory of each layer. NumPy on the host; called from any thread, by one at a time, in the order of the steps.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client_sdk.audit.fault import Fault, listed
from client_sdk.protocol import Layout

SPELL: Final = 50  # steps of the optimizer
MIN_MEASURED: Final = 8  # measured steps among them
SWALLOWED: Final = 0.9999  # share of swallowed updates that counts as all
BELOW_EPS: Final = 0.99  # share of coordinates below ε that counts as all
EPS_FROM, EPS_TO = 10, 60  # steps of the optimizer
RISING: Final = 1.01  # factor of the learning rate within a spell
DECAYED: Final = 0.1  # of the largest learning rate, below which the end of a schedule swallows updates by nature


class _Spell:
    """For each layer, the step since which a condition has held and the number of measured steps since."""

    def __init__(self, count: int) -> None:
        self._since = np.full(count, -1, np.int64)
        self._measured = np.zeros(count, np.int64)

    def observe(self, step: int, holds: NDArray[np.bool_], knows: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Take in one step and return the layers for which the condition has held for a whole spell."""
        ended = knows & ~holds
        self._since[ended] = -1
        self._measured[ended] = 0
        begins = holds & (self._since < 0)
        self._since[begins] = step
        self._measured[holds] += 1
        lasted = holds & (step - self._since + 1 >= SPELL) & (self._measured >= MIN_MEASURED)
        return np.flatnonzero(lasted)

    def forget(self) -> None:
        """End every spell."""
        self._since[:] = -1
        self._measured[:] = 0


class LayerHistory:
    """History of the layers at the measured steps."""

    def __init__(self, layout: Layout, matrices: Collection[str]) -> None:
        """Follow blocks of ``layout``; ``matrices`` are the layers that are more than vectors.

        The gradient of a bias is exactly zero where only differences of outputs count, which is no fault.
        """
        self._layout = layout
        self._columns = {name: at for at, name in enumerate(layout.statistics)}
        self._sizes = np.array(layout.sizes, np.float64)
        self._is_matrix = np.array([name in matrices for name in layout.layers], np.bool_)
        count = len(layout.layers)
        self._zero, self._stuck = _Spell(count), _Spell(count)
        self._rate = self._largest_rate = 0.0
        self._eps_holds, self._eps_measured = True, 0
        self.grad_norm = math.nan
        """Gradient norm of all layers at the last measured step."""
        self.moves = False
        """Whether some layer moved by more than a relative 1e-5 at the last measured step."""

    def fits(self, layout: Layout) -> bool:
        """Return whether blocks of ``layout`` continue the history."""
        return layout is self._layout or (
            layout.layers == self._layout.layers and layout.statistics == self._layout.statistics
        )

    @property
    def checks(self) -> tuple[str, ...]:
        """Checks that the block has what it takes for."""
        needs = {"dead-layer": "grad_norm", "frozen-by-rounding": "swallowed", "eps-swallows": "eps_fraction"}
        return tuple(check for check, statistic in needs.items() if statistic in self._columns)

    def observe(self, step: int, block: NDArray[np.float32], lr: float | None) -> Iterator[Fault]:
        """Take in the block [layers, statistics] of a measured step of the optimizer, and yield faults."""
        if block.shape != (len(self._is_matrix), len(self._columns)):
            return
        with np.errstate(all="ignore"):
            norms = self._of(block, "grad_norm")
            ratios = self._of(block, "update_ratio")
            if norms is not None:
                self.grad_norm = float(np.sqrt(np.nansum(np.square(norms, dtype=np.float64))))
                yield from self._dead(step, norms)
            self.moves = ratios is not None and bool((ratios > 1e-5).any())
            swallowed = self._of(block, "swallowed")
            if swallowed is not None and lr is not None:
                yield from self._frozen(step, swallowed, lr)
            below = self._of(block, "eps_fraction")
            if below is not None and step >= EPS_FROM:
                yield from self._swallowing(step, below)

    def _of(self, block: NDArray[np.float32], name: str) -> NDArray[np.float32] | None:
        at = self._columns.get(name)
        return None if at is None else block[:, at]

    def _dead(self, step: int, norms: NDArray[np.float32]) -> Iterator[Fault]:
        if not self.grad_norm > 0:
            return
        rows = self._zero.observe(step, (norms == 0) & self._is_matrix, ~np.isnan(norms))
        if len(rows):
            yield self._fault(rows, "dead-layer", "has had a gradient of exactly zero", step, {})

    def _frozen(self, step: int, swallowed: NDArray[np.float32], lr: float) -> Iterator[Fault]:
        self._largest_rate = max(self._largest_rate, lr)
        if lr > RISING * self._rate:
            self._rate = lr
            self._stuck.forget()
        if lr < DECAYED * self._largest_rate:
            self._stuck.forget()
            return
        rows = self._stuck.observe(step, swallowed >= SWALLOWED, ~np.isnan(swallowed))
        if len(rows):
            words = "has had every update swallowed by the rounding of its weights"
            yield self._fault(rows, "frozen-by-rounding", words, step, {"lr": lr})

    def _swallowing(self, step: int, below: NDArray[np.float32]) -> Iterator[Fault]:
        if self._eps_measured < 0:
            return
        known = ~np.isnan(below)
        share = float((below * self._sizes)[known].sum() / max(self._sizes[known].sum(), 1.0))
        if step < EPS_TO:
            self._eps_measured += bool(known.any())
            self._eps_holds = self._eps_holds and (share >= BELOW_EPS or not known.any())
            return
        if self._eps_holds and self._eps_measured >= MIN_MEASURED and share >= BELOW_EPS:
            yield Fault(
                "eps-swallows",
                f"from step {EPS_FROM} to step {step} √v̂ is below ε in {100 * share:.0f} % of all coordinates",
                evidence={"share": round(share, 4), "steps": step - EPS_FROM},
            )
        self._eps_measured = -1

    def _fault(
        self, rows: NDArray[np.intp], check: str, words: str, step: int, evidence: dict[str, float | int | str | None]
    ) -> Fault:
        names = tuple(self._layout.layers[row] for row in rows)
        subject = listed(list(names))
        said = (
            words if len(names) == 1 else words.replace("has had", "have had").replace("its weights", "their weights")
        )
        return Fault(
            check,
            f"{subject} {said} for {SPELL} steps, up to step {step} of the optimizer",
            names,
            {"layers": len(names), "of_layers": len(self._layout.layers), "steps": SPELL, **evidence},
        )
