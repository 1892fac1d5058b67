"""The permissions of a guard as a frozen, bounded value.

An action is a small frozen value too. Each says how large it is and how long it lasts; the policy says for which cause
it is taken, in which order, and how much of a training may be touched at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from client_sdk.errors import ConfigurationError
from client_sdk.vocabulary import Cause


@dataclass(frozen=True, kw_only=True)
class RaiseSecondMoment:
    """Raise v on the coordinates on which the oscillating direction sits, and touch nothing else.

    v is multiplied by (``margin``·r)², where r is the curvature of the direction over its limit, so that it falls to
    1/``margin`` of the limit. v decays back to the mean of the squared gradients by itself. It touches one step.
    """

    margin: float = 1.1
    """Factor beyond what brings the direction to its limit."""
    pause: int = 8
    """Steps from one raise to the next at least."""


@dataclass(frozen=True, kw_only=True)
class ReduceRate:
    """Multiply the learning rates by ``factor`` for ``steps`` steps, then return along a straight line."""

    factor: float = 0.5
    steps: int = 6
    ramp: int = 4
    """Steps of the way back."""


@dataclass(frozen=True, kw_only=True)
class ClipUpdate:
    """Divide the learning rates by max(1, RMS_t) for ``steps`` steps, RMS_t = √mean(g²/max(v̂, ε²)) over each group.

    This is the update clipping of StableAdamW (Wortsman et al. 2023, arXiv 2304.13013), for groups instead of tensors.
    """

    steps: int = 10


@dataclass(frozen=True, kw_only=True)
class LowerBeta2:
    """Let the second moment follow the gradients faster, with this β2 for ``steps`` steps."""

    beta2: float = 0.9
    steps: int = 10


@dataclass(frozen=True, kw_only=True)
class ScaleEps:
    """Multiply ε by ``factor`` for ``steps`` steps: raised for a stale second moment, lowered for lost gradients."""

    factor: float = 100.0
    steps: int = 10


@dataclass(frozen=True, kw_only=True)
class SkipBatch:
    """Leave out the step whose gradient is not finite, or is far beyond those before it, without a change of state."""

    jump: float = 10.0
    """Norm of the gradient over the median of the last 64 above which a batch is skipped."""


Action = RaiseSecondMoment | ReduceRate | ClipUpdate | LowerBeta2 | ScaleEps | SkipBatch
"""Something that a guard can do."""
KINDS: Final = (RaiseSecondMoment, ReduceRate, ClipUpdate, LowerBeta2, ScaleEps, SkipBatch)
NAMES: Final[Mapping[type, str]] = {
    RaiseSecondMoment: "raise-second-moment",
    ReduceRate: "reduce-rate",
    ClipUpdate: "clip-update",
    LowerBeta2: "lower-beta2",
    ScaleEps: "scale-eps",
    SkipBatch: "skip-batch",
}
"""Names of the actions in records, by their classes. `client_sdk.vocabulary.GUARD_ACTIONS` has their order."""


def steps_of(action: Action) -> int:
    """Return the number of steps that an action touches."""
    if isinstance(action, ReduceRate):
        return action.steps + action.ramp
    if isinstance(action, ClipUpdate | LowerBeta2 | ScaleEps):
        return action.steps
    return 1


def _default_actions() -> Mapping[str, Sequence[Action]]:
    return {Cause.STALE_SECOND_MOMENT: (RaiseSecondMoment(),)}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Causes, actions and bounds of a guard. Raises `ConfigurationError` if a value is invalid or a bound is missing.

    >>> Policy(actions={"stale-second-moment": (ReduceRate(factor=0.5),)}).whole_share
    0.01
    """

    actions: Mapping[str, Sequence[Action]] = field(default_factory=_default_actions)
    """Actions for each cause (`client_sdk.vocabulary.Cause`), in order: where one has not ended the growth, the next is
    taken."""
    share: float = 0.05
    """Share of the last 1,000 steps that actions along a direction may touch."""
    whole_share: float = 0.01
    """The same for all other actions, which touch every coordinate."""
    in_a_row: int = 20
    """Successive steps that may be touched."""
    patience: int = 3
    """Times that an action is taken for one episode before the next one of its cause is."""
    least_height: float = 2.0
    """Forecast rise of the loss, in units of its level, below which nothing is done."""
    server_alerts: bool = False
    """Whether alerts of the server (a predicted spike, at warning or above) are acted on, by their cause."""
    checkpoint_every: int = 200
    """Steps between two calls of the checkpoint callback at least."""

    def __post_init__(self) -> None:
        """Check every value."""
        for name, bound in (("share", self.share), ("whole_share", self.whole_share)):
            if not _is_number(bound) or not 0 <= bound <= 1:
                raise ConfigurationError(
                    f"{name} is {bound!r}; a policy needs a bound, a share of the steps from 0 to 1 such as 0.05"
                )
        for name, count in (
            ("in_a_row", self.in_a_row), ("patience", self.patience), ("checkpoint_every", self.checkpoint_every),
        ):  # fmt: skip
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ConfigurationError(f"{name} is {count!r}; a policy needs a bound, a number of steps from 1 on")
        if not _is_number(self.least_height) or not 0 <= self.least_height < math.inf:
            raise ConfigurationError(
                f"least_height is {self.least_height!r}; it must be a rise in units of the loss, such as 2.0, or 0"
            )
        if not isinstance(self.actions, Mapping) or not self.actions:
            raise ConfigurationError(
                "actions must be a mapping from a cause to actions, such as "
                '{"stale-second-moment": (RaiseSecondMoment(),)}'
            )
        for cause, actions in self.actions.items():
            if cause not in set(Cause):
                raise ConfigurationError(f"{cause!r} is no cause; use one of {', '.join(Cause)}")
            if isinstance(actions, KINDS) or not isinstance(actions, Sequence):
                raise ConfigurationError(f"the actions of {cause} are {actions!r}; use a tuple of them")
            for action in actions:
                self._check(cause, action)
        object.__setattr__(
            self,
            "actions",
            MappingProxyType({str(cause): tuple(actions) for cause, actions in self.actions.items()}),
        )

    def _check(self, cause: str, action: object) -> None:
        if not isinstance(action, KINDS):
            raise ConfigurationError(
                f"{action!r} is no action; use {', '.join(kind.__name__ for kind in KINDS)} of client_sdk.guard"
            )
        if isinstance(action, SkipBatch) and cause != Cause.BAD_BATCH:
            raise ConfigurationError(f'SkipBatch is an action for "bad-batch", not for "{cause}"')
        if not isinstance(action, SkipBatch) and cause == Cause.BAD_BATCH:
            raise ConfigurationError(f'{type(action).__name__} is no action for "bad-batch"; SkipBatch is')
        for name, value in vars(action).items():
            if not _is_number(value) or not 0 <= value < math.inf:
                raise ConfigurationError(f"{name} of {action!r} must be a finite number, not negative")
        if steps_of(action) < 1:
            raise ConfigurationError(f"{action!r} lasts no step; use at least 1")
        if isinstance(action, LowerBeta2) and action.beta2 >= 1:
            raise ConfigurationError(f"beta2 of {action!r} must be below 1")
        if isinstance(action, ReduceRate | ScaleEps) and action.factor == 0:
            raise ConfigurationError(f"factor of {action!r} must be above 0")
        if isinstance(action, ReduceRate) and action.factor > 1:
            raise ConfigurationError(f"factor of {action!r} raises the learning rate; use at most 1")
        if isinstance(action, RaiseSecondMoment) and action.margin < 1:
            raise ConfigurationError(f"margin of {action!r} leaves the direction above its limit; use at least 1")
        if steps_of(action) > self.in_a_row:
            raise ConfigurationError(
                f"{action!r} lasts {steps_of(action)} steps, but in_a_row allows {self.in_a_row}: shorten it, or raise "
                "in_a_row"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
