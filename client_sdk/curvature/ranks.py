"""The ranks that measure the curvature of one model together: what they agree on, and their means.

A rank must never wait for one that does not come. The first rank that logs proposes a measurement within the sum of the
layer statistics, which all ranks exchange anyway, together with the steps at which each rank has logged with a closure.
If these are the same everywhere, the measurement is made at the next `log` with a closure, after a vote. Curvature
therefore works in measured steps of the layer statistics.

Where each rank holds a copy of all parameters, vectors of the parameter space are the same on all ranks, and loss,
gradient and Hessian-vector products of the training are the means of those of the ranks. A rank whose closure fails
after the vote contributes NaN to the means that the others wait for. Where parameters are divided among the ranks,
vectors are too; `inner_product` adds them up, and `shared_sandbox` evaluates closures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar, get_args

import torch
from torch import Tensor

from client_sdk.curvature.exchange import Exchange
from client_sdk.curvature.hessian import Hessian
from client_sdk.curvature.inner_product import Part, SharedInnerProduct
from client_sdk.curvature.preconditioner import Preconditioner, UnsupportedError
from client_sdk.curvature.schedule import Choice
from client_sdk.curvature.tracking import Aim
from client_sdk.distributed import Decision, Participation, Possession, Team
from client_sdk.warner import Warner

CHOICES: Final[tuple[Choice, ...]] = get_args(Choice)
AIMS: Final[tuple[Aim | None, ...]] = (None, *get_args(Aim))
LACKING: Final = 3  # measured steps at which some ranks lack a closure before that is reported
Value = TypeVar("Value")


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


class MeanHessian:
    """Hessian of the mean of the losses of all ranks; implements `Hessian`.

    All ranks must ask for the same products in the same order. An error of this rank is kept in ``failure``, and NaN
    takes the place of its part, so that everything is NaN on all ranks.
    """

    def __init__(self, ranks: Ranks, make: Callable[[], Hessian], like: Tensor, *, products: int) -> None:
        """Average what the Hessian that ``make`` returns gives on each rank.

        ``like`` has the shape (N,) and the type of the vectors; ``products`` is the number of products to come.
        Allocates the memory of all means, so that nothing is missing later.
        """
        self._ranks = ranks
        self._make = make
        self._packed = like.new_empty(2 * len(like) + 3)
        self._first = self._packed[: len(like) + 2]  # loss, 1 for a failure, gradient
        self._second = self._packed[len(like) + 2 :]  # 1 for a failure, product
        self._own: Hessian | None = None
        self._is_averaged = False  # the first part
        self._products = products
        self._failures = like.new_zeros(())
        self.failure: Exception | None = None
        """The first error of this rank."""

    @property
    def loss(self) -> Tensor:
        """Mean loss, 0-d."""
        return self._averaged()[0]

    @property
    def gradient(self) -> Tensor:
        """Mean gradient, [N]."""
        return self._averaged()[2:]

    @property
    def failures(self) -> Tensor:
        """A number above 0 if any rank has failed so far, 0-d."""
        return self._failures

    @property
    def own_loss(self) -> Tensor | None:
        """Loss of this rank, 0-d; None if it failed."""
        return None if self._own is None or self.failure is not None else self._own.loss

    @property
    def error(self) -> float:
        """Relative error of the products of this rank; those of the others are made in the same way."""
        return 0.0 if self._own is None else self._own.error

    def product(self, vector: Tensor) -> Tensor:
        """Return the mean of H·vector, [N]. The first product takes loss and gradient with it if they are not known."""
        self._products -= 1
        own = self._attempt(lambda: self._local().product(vector))
        if not self._is_averaged:
            self._fill_first()
        if own is None or self.failure is not None:
            self._second.fill_(torch.nan)[0] = 1.0
        else:
            self._second[0] = 0.0
            self._second[1:] = own
        self._ranks.average(self._second if self._is_averaged else self._packed)
        if not self._is_averaged:
            self._is_averaged = True
            self._failures = self._failures + self._first[1]
        self._failures = self._failures + self._second[0]
        return self._second[1:].clone()

    def finish(self) -> None:
        """Contribute to the products that the other ranks still expect, after an error between two of them."""
        if self._products > 0 and self.failure is None:
            self.failure = RuntimeError("the measurement ended early")
        while self._products > 0:
            self.product(self._second[1:])

    def fail(self, error: Exception) -> None:
        """Keep an error of this rank."""
        self.failure = self.failure or error

    def _local(self) -> Hessian:
        if self._own is None:
            self._own = self._make()
        return self._own

    def _averaged(self) -> Tensor:
        if not self._is_averaged:
            self._fill_first()
            self._ranks.average(self._first)
            self._is_averaged = True
            self._failures = self._failures + self._first[1]
        return self._first

    def _fill_first(self) -> None:
        own = self._attempt(lambda: (self._local().loss, self._local().gradient))
        if own is None or self.failure is not None:
            self._first.fill_(torch.nan)[1] = 1.0
            return
        self._first[0], self._first[1] = own[0], 0.0
        self._first[2:] = own[1]

    def _attempt(self, work: Callable[[], Value]) -> Value | None:
        if self.failure is not None:
            return None
        try:
            return work()
        except Exception as error:
            self.failure = error
            return None


def mean_step(
    ranks: Ranks, loss: Tensor | None, measure: Callable[[], dict[str, Tensor]], device: torch.device
) -> tuple[dict[str, Tensor], Exception | None]:
    """Return the means of ``loss``, and of `loss_before` and `slope` as ``measure`` returns them on each rank.

    A rank without ``loss``, or whose ``measure`` raises, makes them NaN and `failures` above 0; its error is returned.
    """
    failure: Exception | None = None
    values: dict[str, Tensor] = {}
    wide = torch.float32 if device.type == "mps" else torch.float64
    means = torch.full((4,), torch.nan, device=device, dtype=wide)
    means[3] = 1.0
    kind = torch.float32
    if loss is not None:
        try:
            values = measure()
            means[:3] = torch.stack([each.to(wide) for each in (loss, values["loss_before"], values["slope"])])
            means[3], kind = 0.0, loss.dtype
        except Exception as error:
            failure = error
    ranks.average(means)
    names = ("loss", "loss_before", "slope", "failures")
    found = {name: value.to(kind if name == "loss" else wide) for name, value in zip(names, means, strict=True)}
    return found | {name: value for name, value in values.items() if name not in names}, failure


@contextmanager
def without_reduction() -> Iterator[None]:
    """Let every DistributedDataParallel that is called inside only compute, without collectives of its own.

    Its forward pass otherwise exchanges buffers, and prepares for a backward pass that it does not see, because a
    closure is differentiated with `torch.autograd.grad`. What it remembers of the training's last forward pass is as
    before afterwards.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        yield
        return
    wrapper: Any = torch.nn.parallel.DistributedDataParallel
    forward = wrapper.forward
    saved: dict[int, tuple[Any, bool, bool]] = {}

    def forward_alone(self: Any, *arguments: Any, **options: Any) -> Any:
        saved.setdefault(id(self), (self, self.require_backward_grad_sync, self.require_forward_param_sync))
        self.require_backward_grad_sync = self.require_forward_param_sync = False
        return forward(self, *arguments, **options)

    wrapper.forward = forward_alone  # a hook of all modules would make compiled ones warn
    try:
        yield
    finally:
        wrapper.forward = forward
        for module, backward_sync, forward_sync in saved.values():
            module.require_backward_grad_sync, module.require_forward_param_sync = backward_sync, forward_sync
