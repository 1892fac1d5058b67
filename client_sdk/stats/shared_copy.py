"""The statistics of one step of a model that several ranks measure together."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from client_sdk.distributed import Contribution, Participation, SharedStep, Team, Verdict
from client_sdk.measurement import HostCopy, Measurement
from client_sdk.protocol import HISTOGRAM_BINS, Histograms
from client_sdk.stats.layer_statistics import AMOUNT, AMOUNTS, statistics_block, totals
from client_sdk.stats.meter import Meter, StepCopy
from client_sdk.stats.parted_meter import PartedMeter, UnitedCopy
from client_sdk.warner import Warner

SHOWN = 3  # names of layers in a warning


class SharedCopy:
    """Statistics of one step of all ranks of a team. They are read on one rank alone, the team's speaker.

    Has the methods of `StepCopy` that `watch` needs.
    """

    def __init__(
        self, team: Team, shared: SharedStep, own: StepCopy | UnitedCopy | None, statistics: tuple[str, ...]
    ) -> None:
        """Combine the sums of all ranks with the histograms of this rank's own measurement."""
        self._team = team
        self._shared = shared
        self._own = own
        self._statistics = statistics
        self._warner: Warner | None = None
        self._run_step: int | None = None

    @property
    def shared(self) -> SharedStep:
        """Sum of all ranks that the statistics are read from."""
        return self._shared

    def note_record(self, step: int, warner: Warner) -> None:
        """Note the step of the run whose record takes the measurement, and the warner for what is found."""
        self._run_step, self._warner = step, warner

    def ready(self) -> bool:
        """Return whether everything has reached the host. Never synchronises a device."""
        return self._shared.ready() and (self._own is None or self._own.ready())

    @cached_property
    def totals(self) -> dict[str, float]:
        """Totals over all layers; see `layer_statistics.totals`. They are NaN if the step was lost."""
        verdict = self._shared.verdict
        return dict.fromkeys(("grad_norm", "decoupling"), np.nan) if verdict is None else totals(verdict.amounts)

    def measurement(self) -> Measurement:
        """Return the block of all layers, this rank's histograms and the scalars; nothing if the step was lost.

        A rank that is not the team's speaker returns nothing, so that the run has every layer once.
        """
        verdict = self._shared.verdict
        if verdict is None or verdict.speaker != self._team.rank:
            return Measurement()
        # A count that is missing means that some gradient could not be read, unlike one that holds NaN.
        is_read = bool(np.isfinite(verdict.amounts[:, AMOUNT["nonfinite"]]).all())
        scalars = {"grad_norm": self.totals["grad_norm"]} if is_read else {}
        if verdict.is_compared:
            scalars["replicas_differ"] = float(len({row for found in verdict.differences for row in found.layers}))
            self._warn(verdict)
        return Measurement(
            scalars=scalars,
            block=statistics_block(verdict.amounts, self._statistics),
            histograms=() if self._own is None else tuple(map(self._spread, self._own.histograms())),
        )

    def _warn(self, verdict: Verdict) -> None:
        if self._warner is None:
            return
        for found in verdict.differences:
            names = [self._team.division.layers[row] for row in found.layers]
            shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more layers" if len(names) > SHOWN else "")
            if found.ranks:
                whose = f"rank {found.ranks[0]}" if len(found.ranks) == 1 else f"ranks {_listed(found.ranks)}"
                subject = f"the {found.what} of {shown} on {whose} differ from those of the other ranks"
            else:
                subject = f"the {found.what} of {shown} differ between the ranks, which should have equal copies"
            self._warner.warn(
                f"replicas_{found.what}",
                f"{subject} since step {self._run_step}: the ranks train different models. Check that every rank "
                "starts from the same weights and reduces its gradients, and the memory of the rank that differs; "
                "if every process is to train a model of its own, pass watch(distributed=False)",
            )

    def _spread(self, own: Histograms) -> Histograms:
        """Return histograms of this rank's layers as those of all layers of the team."""
        rows, count = self._team.division.rows, len(self._team.division.layers)
        low, high = (_spread(np.frombuffer(values, "<f4"), rows, count, np.nan) for values in (own.low, own.high))
        counts = _spread(np.frombuffer(own.counts, "<u4").reshape(-1, HISTOGRAM_BINS), rows, count, 0)
        return Histograms(which=own.which, low=low.tobytes(), high=high.tobytes(), counts=counts.tobytes())


def _spread(values: NDArray[np.generic], rows: NDArray[np.intp], count: int, fill: float) -> NDArray[np.generic]:
    spread = np.full((count, *values.shape[1:]), fill, values.dtype)
    spread[rows] = values
    return spread


def _listed(ranks: tuple[int, ...]) -> str:
    return ", ".join(map(str, ranks[:8])) + (" …" if len(ranks) > 8 else "")


def share(
    participation: Participation,
    own: StepCopy | UnitedCopy | None,
    meter: Meter | PartedMeter,
    *,
    step: int,
    next_in: int,
    has_logged: bool,
    modes: tuple[int, HostCopy] | None = None,
) -> SharedCopy:
    """Share this rank's measurement of ``step``, the optimizer's, with its team. Returns at once.

    ``own`` is None if none of this rank's parameters had a gradient. ``modes`` are explained at `Team.share`.
    """
    team = participation.team
    assert team is not None
    counts = team.division.counts

    def measured() -> Contribution:
        if own is not None:
            return own.contribution(counts)
        layer_count = len(meter.layers.names)
        return Contribution(amounts=np.zeros((layer_count, len(AMOUNTS))), squares=np.full(len(counts), np.nan))

    shared = team.share(step, measured, participation.checksums(), next_in=next_in, has_logged=has_logged, modes=modes)
    return SharedCopy(team, shared, own, meter.statistics)
