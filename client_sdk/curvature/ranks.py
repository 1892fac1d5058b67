"""The ranks that measure the curvature of one model together: what they agree on, and their means.

A rank must never wait for one that does not come. The first rank that logs proposes a measurement within the sum of the
layer statistics, which all ranks exchange anyway, together with the steps at which each rank has logged with a closure.
If these are the same everywhere, the measurement is made at the next `log` with a closure, after a vote. Curvature
therefore works in measured steps of the layer statistics.

Where each rank holds a copy of all parameters, vectors of the parameter space are the same on all ranks, and loss,
gradient and Hessian-vector products of the training are the means of those of the ranks (`rank_means`). Where
parameters are divided among the ranks, vectors are too; `inner_product` adds them up, and `shared_sandbox` evaluates
closures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, get_args

import torch
from torch import Tensor

from client_sdk.curvature.exchange import Exchange
from client_sdk.curvature.inner_product import Part, SharedInnerProduct
from client_sdk.curvature.preconditioner import Preconditioner, UnsupportedError
from client_sdk.curvature.schedule import Choice
from client_sdk.curvature.tracking import Aim
from client_sdk.distributed import Decision, Participation, Possession, Team
from client_sdk.warner import Warner

CHOICES: Final[tuple[Choice, ...]] = get_args(Choice)
AIMS: Final[tuple[Aim | None, ...]] = (None, *get_args(Aim))
LACKING: Final = 3  # measured steps at which some ranks lack a closure before that is reported


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A measurement that the ranks make together."""

    choice: Choice
    aim: Aim | None
    """Purpose of the product of "track"."""
    has_step: bool
    """Whether λ_step is measured too."""

    @property
    def code(self) -> int:
        """The plan as a number above 0, which travels with the layer statistics."""
        return (CHOICES.index(self.choice) * len(AIMS) + AIMS.index(self.aim)) * 2 + self.has_step

    @classmethod
    def of(cls, code: int) -> Plan:
        """Return the plan of a number."""
        choice, aim = divmod(code // 2, len(AIMS))
        return cls(choice=CHOICES[choice], aim=AIMS[aim], has_step=bool(code % 2))


class Ranks:
    """The ranks of one team, as this one sees them. Used on the training thread."""

    def __init__(self, team: Team, warner: Warner, possessions: Mapping[int, Possession] | None = None) -> None:
        """Measure together with the other ranks of ``team``.

        ``possessions`` are what this rank has of each parameter, keyed by its id; None if every rank holds a copy of
        all parameters.
        """
        self._possessions = possessions
        self._team = team
        self._warner = warner
        self._closure_at = self._closure_gap = 0
        self._proposed_at: int | None = None  # of the proposal that is open
        self._seen = 0  # step of the last verdict
        self._lacking = 0
        self._agreed: tuple[int, Plan] | None = None
        self._done = -1  # the last proposal that was voted on
        self._vote = 0

    @classmethod
    def of(cls, participation: Participation, model: torch.nn.Module, warner: Warner) -> Ranks | None:
        """Return the ranks that train ``model`` by their ``participation``, or None if this process trains it alone.

        Raises `UnsupportedError` if the ranks cannot measure curvature together.
        """
        distributed = torch.distributed
        if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() < 2:
            return None
        team = participation.team
        if not participation.is_together and participation.measures:
            return None
        if team is None or len(team.ranks) < distributed.get_world_size():
            raise UnsupportedError(
                "curvature of a model that several processes train needs watch() and log() with a closure on every "
                "rank; layer statistics need watch() alone"
            )
        division = team.division
        own = division.alike.get(team.rank, ())
        possessions: Mapping[int, Possession] | None = None
        is_copied = len(own) == len(team.ranks) and len(division.whole) == len(division.layers)
        if not is_copied or participation.has_dtensors:
            possessions = participation.parts()
            if possessions is None:
                raise UnsupportedError(
                    "curvature in several processes is measured where every rank holds all parameters and their "
                    "optimizer state, as with DistributedDataParallel, or a DTensor of each of them, as with FSDP2; "
                    "this model is divided among the ranks in another way"
                )
        if any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules()):
            raise UnsupportedError("curvature of a model with SyncBatchNorm in several processes is not measured")
        return cls(team, warner, possessions)

    @property
    def is_sharded(self) -> bool:
        """Whether a rank may hold a part of a parameter alone."""
        return self._possessions is not None

    def exchange(self) -> Exchange:
        """Return the exchange of a measurement that all ranks are about to make."""
        return Exchange(self._team.reduction, self.size)

    def counts(self, parameter: Tensor) -> bool:
        """Return whether this rank's part of ``parameter`` is added to those of the others."""
        return self._possession_of(parameter).counts

    def inner_product(self, exchange: Exchange, preconditioner: Preconditioner) -> SharedInnerProduct:
        """Return the inner product of vectors that the ranks hold together. Raises `UnsupportedError`."""
        possessions = map(self._possession_of, preconditioner.parameters)
        return SharedInnerProduct(
            exchange,
            [
                Part(size=shape.numel(), counts=has.counts, number=has.number)
                for shape, has in zip(preconditioner.shapes, possessions, strict=True)
            ],
        )

    def _possession_of(self, parameter: Tensor) -> Possession:
        found = None if self._possessions is None else self._possessions.get(id(parameter))
        if found is None:
            raise UnsupportedError("curvature of parameters that came after the first step is not measured")
        return found

    @property
    def speaks(self) -> bool:
        """Whether this rank reports what was measured, so that the run has every value once."""
        verdict = self._team.verdict
        return verdict is not None and verdict.speaker == self._team.rank

    # -- what is measured, and when --

    def note_closure(self, at: int) -> None:
        """Note a `log` with a closure after ``at`` steps of the optimizer."""
        if at > self._closure_at:
            self._closure_gap = at - self._closure_at if self._closure_at else 0
            self._closure_at = at
            self._say(self._team.on_curvature.get("curvature", 0))

    def propose(self, plan: Plan | None) -> None:
        """Propose a measurement with the next sum; None proposes nothing. Called at every `log` with a closure."""
        if plan is None or self._proposed_at is None:
            self._proposed_at = None if plan is None else self._closure_at
        self._say(0 if plan is None else plan.code)

    def withdraw(self) -> None:
        """Tell the others with the next sum that this rank measures no curvature any more."""
        self._closure_at = self._closure_gap = 0
        self._say(0)

    def follow(self) -> None:
        """Take in what the ranks agreed on with the last sum. Called before every step of the optimizer."""
        verdict = self._team.verdict
        if verdict is None or not self._team.is_active:
            self._agreed = None
            return
        if verdict.step == self._seen:
            return
        self._seen = verdict.step
        is_new = verdict.curvature > 0 and verdict.proposed_at > self._done
        self._agreed = (verdict.proposed_at, Plan.of(verdict.curvature)) if is_new else None
        self._lacking = self._lacking + 1 if verdict.without_closure and self._closure_at else 0
        if self._lacking == LACKING:
            ranks = ", ".join(map(str, verdict.without_closure[:8]))
            self._warner.warn(
                "curvature_ranks",
                f"log() has a closure on rank {self._team.rank} and none on rank {ranks}, so that curvature is not "
                "measured. Call log() on every rank at the same steps, each with the closure of its own batch; the "
                "metrics of the others may be empty",
            )

    @property
    def agreed(self) -> Plan | None:
        """The measurement that the ranks have agreed to make at the next `log` with a closure."""
        return None if self._agreed is None else self._agreed[1]

    def take(self) -> Plan | None:
        """Return the agreed measurement, which must be voted on now if there is one."""
        if self._agreed is None:
            return None
        self._done, plan = self._agreed
        self._vote = self._done
        self._agreed = self._proposed_at = None
        return plan

    @property
    def measured_at(self) -> int:
        """Step of the optimizer at which the last measurement was proposed; the same on all ranks, and above 0."""
        return self._done

    def vote(self, says: str | None) -> Decision:
        """Return whether all ranks make the measurement that `take` returned now; None votes against it.

        ``says`` describes the measurement and must be the same on all ranks. Waits a few seconds at most.
        """
        decision = self._team.ballot.cast(self._vote, None if says is None else f"{self._closure_at} {says}")
        if decision == "late":
            self._warner.note("curvature_ranks", "not every rank came to log() with its closure, or not in time")
        return decision

    def _say(self, code: float) -> None:
        self._team.on_curvature = {
            "closure_at": self._closure_at,
            "closure_gap": self._closure_gap,
            "proposed_at": self._proposed_at or 0,
            "curvature": code,
        }

    # -- means --

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self._team.ranks)

    def average(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by its mean over the ranks. All ranks must call this."""
        torch.distributed.all_reduce(tensor)
        tensor /= self.size
