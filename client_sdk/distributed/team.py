"""The ranks that measure one model together: what each of them sends at a measured step, and what the sum says.

Owns the schema of the summed array. A header has one row for each rank, which only that rank fills, so that the sum
gathers what every rank has to say without a collective of its own: above all the number of steps until the next
measurement, which the ranks must decide alike. After it comes one row for each layer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client_sdk.distributed.ballot import Ballot
from client_sdk.distributed.division import Division
from client_sdk.distributed.reduction import Reduced, Reduction
from client_sdk.distributed.replicas import Difference, compare
from client_sdk.measurement import HostCopy

HEADER: Final = (
    "step",        # the optimizer's step, which must be the same on all ranks
    "is_broken",   # 1 if the rank could not measure this step
    "is_leaving",  # 1 if the rank takes no further part
    "has_logged",  # 1 if the rank has called `log`
    "next_in",     # steps until the next measurement that the rank would choose
    "closure_at",  # the optimizer's step at the rank's last `log` with a closure, 0 if there was none
    "closure_gap", # steps between its last two
    "proposed_at", # the optimizer's step at which the rank proposed a measurement of curvature
    "curvature",   # that measurement as a number, 0 for none
    "mode_number", # that of the unstable directions which the rank has followed, 0 for none
    "mode_square", # its part of the squared preconditioned gradient
    "mode_first",  # its part of the gradient's amplitude along the first direction
    "mode_second", # the same along the second
    "checksum",    # of all its parameters that have copies, at a step of comparison
    "gg",          # Σ g² of the same parameters
)  # fmt: skip
"""Columns of the header."""
MODES: Final = ("mode_square", "mode_first", "mode_second")
"""Columns of the header that are added up."""
AT: Final = {name: position for position, name in enumerate(HEADER)}
"""Position of each column of the header."""
COMPARE_EVERY: Final = 10  # measurements between two comparisons of all weights, which read each of them once more
STEP_WAIT: Final = 20.0  # seconds that a step waits for the sum of the last measured one before measuring ends
LEAVE_TIMEOUT: Final = 5.0  # seconds for the last sums when the process ends
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """Measurement of one rank in host memory."""

    amounts: Array
    """Amounts of its layers, of its counting parts alone, [own layers, amounts]."""
    squares: Array
    """Σ g² of each of its parameters, NaN without a gradient, [own parameters]."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Measurement and decision of all ranks together."""

    amounts: Array
    """Amounts of all layers of the team, [layers, amounts]."""
    speaker: int
    """Rank that sends the layers: the first that has logged, or the first of all."""
    next_in: int
    """Steps until the next measurement."""
    differences: Sequence[Difference] = ()
    """Differences among copies."""
    is_compared: bool = False
    """Whether there are copies that were compared."""
    step: int = 0
    """Step of the optimizer that was measured."""
    curvature: int = 0
    """Measurement of curvature that the speaker proposes, if all ranks log with a closure at the same steps, or 0."""
    proposed_at: int = 0
    """Step of the optimizer at which it was proposed."""
    modes: tuple[float, ...] | None = None
    """Squared preconditioned gradient and amplitudes along the two unstable directions, of all ranks together.

    None unless all ranks have followed the same directions.
    """
    without_closure: Sequence[int] = ()
    """Ranks that have not logged with a closure, if some others have."""


class SharedStep:
    """The sum of one step over all ranks, which may still be under way."""

    def __init__(self, team: Team, reduced: Reduced, step: int) -> None:
        self._team = team
        self._reduced = reduced
        self._step = step

    def ready(self) -> bool:
        """Return whether the sum is there or will never be."""
        return self._reduced.ready()

    def wait(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds until the sum is there or will never be; return `ready`."""
        return self._reduced.wait(timeout)

    @cached_property
    def verdict(self) -> Verdict | None:
        """Verdict of the ranks on this step; None if the step could not be measured. Waits until `ready`."""
        while not self._reduced.wait(LEAVE_TIMEOUT):  # the reduction has a time limit of its own
            pass
        return self._team.judge(self._step, self._reduced.values)


@dataclass(kw_only=True, eq=False)
class Team:
    """Ranks that measure one model together. Its methods are called on the training thread, unless stated otherwise."""

    rank: int
    ranks: Sequence[int]
    """Ranks of the team in ascending order."""
    division: Division
    reduction: Reduction
    ballot: Ballot
    width: int
    """Number of amounts of a layer."""
    square: int
    """Position of Σ g² among the amounts of a layer."""
    end: str = ""
    """Reason for which the team measures no longer, or empty."""
    is_expected_end: bool = False
    """Whether the team ended because a rank stopped watching, which is no trouble."""
    verdict: Verdict | None = None
    """Verdict on the last measured step that `decide` has waited for; the same on all ranks."""
    on_curvature: Mapping[str, float] = field(default_factory=dict)
    """Words of this rank about curvature, for the header of the next sum."""
    _shared: int = 0
    _last: SharedStep | None = None
    _has_left: bool = False
    _pid: int = field(default_factory=os.getpid)

    @property
    def is_active(self) -> bool:
        """Whether the team still measures."""
        return not self.end and not self._has_left

    @property
    def compares_next(self) -> bool:
        """Whether the next measured step compares the weights of all copies."""
        return self._shared % COMPARE_EVERY == 0 and bool(self.division.signs.any())

    def decide(self) -> int | None:
        """Return the number of steps from the last measured one to the next, which is the same on all ranks.

        Waits for the sum of the last measured step, which has had a whole step of training to arrive. None if nothing
        was measured yet or the team has ended.
        """
        if self._last is None or not self.is_active:
            return None
        if not self._last.wait(STEP_WAIT):
            self.end = self.end or f"the sums of the other ranks did not arrive within {STEP_WAIT:g} s"
            return None
        verdict = self._last.verdict
        self.verdict = None if self.end else verdict
        if self.end or verdict is None:
            return None if self.end else 1
        return verdict.next_in

    def share(
        self,
        step: int,
        measured: Callable[[], Contribution] | None,
        checksums: HostCopy | None,
        *,
        next_in: int,
        has_logged: bool,
        modes: tuple[int, HostCopy] | None = None,
    ) -> SharedStep:
        """Sum what this rank measured at ``step`` of its optimizer over all ranks. Returns at once.

        ``measured`` is called on another thread; None stands for a rank that could not measure. ``checksums`` are those
        of all parameters with a sign, in their order, at a step of comparison. ``modes`` are the number of this rank's
        unstable directions and its parts of their amplitudes, which begin with the squared preconditioned gradient.
        """
        says = {
            "step": step,
            "next_in": next_in,
            "has_logged": has_logged,
            "is_broken": measured is None,
            **self.on_curvature,
        }

        def fill() -> Array:
            try:
                found = {**says, **_said_of(modes)}
                return self._packed(found, None if measured is None else measured(), checksums)
            except Exception:
                return self._packed({**says, "is_broken": True}, None, None)

        self._shared += 1
        self._last = SharedStep(self, self.reduction.submit(fill), step)
        return self._last

    def leave(self) -> None:
        """Take no further part. The others are told with the next sum, so that none of them waits."""
        if self._has_left or os.getpid() != self._pid:
            return
        self._has_left = True
        self.ballot.withdraw()
        if not self.end:
            self.reduction.submit(lambda: self._packed({"is_leaving": True}, None, None))
        self.reduction.close()

    def close(self) -> None:
        """Leave, and wait a moment until the last sums have been exchanged; for the end of the process."""
        self.leave()
        if os.getpid() == self._pid:
            self.reduction.join(LEAVE_TIMEOUT)

    def judge(self, step: int, values: Array | None) -> Verdict | None:
        """Return what a sum says, or None if the step is lost. Called from any thread."""
        if values is None:
            self.end = self.end or self.reduction.failure or "the sums of the other ranks did not arrive"
            return None
        split = len(self.ranks) * len(HEADER)
        header = values[:split].reshape(len(self.ranks), len(HEADER))
        rows = values[split:].reshape(len(self.division.layers), self.width + 2)
        leaving = [rank for rank, says in zip(self.ranks, header, strict=True) if says[AT["is_leaving"]]]
        if leaving:
            if not self.end:
                self.end, self.is_expected_end = f"rank {leaving[0]} stopped watching", True
            return None
        if len(set(header[:, AT["step"]].tolist())) > 1:
            steps = ", ".join(f"{at:g} on rank {rank}" for rank, at in zip(self.ranks, header[:, 0], strict=True))
            self.end = self.end or f"the ranks are at different steps of their optimizers ({steps:.200})"
            return None
        if header[:, AT["is_broken"]].any():
            return None
        has_logged = np.flatnonzero(header[:, AT["has_logged"]])
        speaker = int(has_logged[0]) if len(has_logged) else 0
        amounts = rows[:, : self.width]
        by_rank = {
            rank: (float(says[AT["checksum"]]), float(says[AT["gg"]]))
            for rank, says in zip(self.ranks, header, strict=True)
        }
        closures = header[:, [AT["closure_at"], AT["closure_gap"]]]
        without = [rank for rank, at in zip(self.ranks, closures[:, 0], strict=True) if not at]
        is_proposed = not without and bool((closures == closures[0]).all())
        return Verdict(
            step=step,
            curvature=int(header[speaker, AT["curvature"]]) if is_proposed else 0,
            proposed_at=int(header[speaker, AT["proposed_at"]]),
            modes=_united_modes(header),
            without_closure=without if len(without) < len(self.ranks) else (),
            amounts=amounts,
            speaker=self.ranks[speaker],
            next_in=max(1, int(header[speaker, AT["next_in"]])),
            differences=compare(rows[:, self.width :], amounts[:, self.square], by_rank, self.division.alike),
            is_compared=bool(self.division.signs.any()),
        )

    def _packed(self, says: Mapping[str, float], measured: Contribution | None, checksums: HostCopy | None) -> Array:
        division = self.division
        header = np.zeros((len(self.ranks), len(HEADER)))
        own = header[list(self.ranks).index(self.rank)]
        for name, value in says.items():
            own[AT[name]] = value
        rows = np.zeros((len(division.layers), self.width + 2))
        if measured is not None:
            rows[division.rows, : self.width] = measured.amounts
            compared = division.signs != 0
            if checksums is not None:
                sums = checksums.array()
                own[AT["checksum"]] = sums.sum()
                np.add.at(rows[:, self.width], division.row_of[compared], division.signs[compared] * sums)
            squares = np.where(compared & np.isfinite(measured.squares), measured.squares, 0.0)
            own[AT["gg"]] = squares.sum()
            np.add.at(rows[:, self.width + 1], division.row_of, division.signs / division.others * squares)
        return np.concatenate([header.reshape(-1), rows.reshape(-1)])


def _said_of(modes: tuple[int, HostCopy] | None) -> dict[str, float]:
    if modes is None:
        return {}
    number, copy = modes
    return {"mode_number": number, **dict(zip(MODES, copy.array().tolist(), strict=False))}


def _united_modes(header: Array) -> tuple[float, ...] | None:
    numbers = header[:, AT["mode_number"]]
    if not numbers.all() or (numbers != numbers[0]).any():
        return None
    return tuple(header[:, [AT[name] for name in MODES]].sum(0).tolist())
