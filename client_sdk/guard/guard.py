"""The guard of one optimizer: reads its steps, decides, and acts or says what it would have done.

Owns the order of the work within a step. `direction` and `oscillation` find what grows, `policy` and `bounds` say what
may be done, `changed_groups` and `direction` do it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Literal

import torch

from client_sdk.guard.agreement import Agreement, Decision
from client_sdk.guard.bounds import Bounds
from client_sdk.guard.changed_groups import ChangedGroups, LastingAction
from client_sdk.guard.direction import Direction, FollowedStep
from client_sdk.guard.oscillation import Oscillation, OscillationSign
from client_sdk.guard.outlier import OutlierSign
from client_sdk.guard.policy import NAMES, Action, Policy, RaiseSecondMoment, SkipBatch, steps_of
from client_sdk.optimizers import Kind
from client_sdk.run import Run
from client_sdk.vocabulary import GUARD_ACTIONS, LOSS, Cause, loss_among

Mode = Literal["advise", "act"]

LOSSES: Final = 40
"""Losses whose median is the level with which a forecast rise is compared."""
EPISODE: Final = 60
"""Steps after the last act of an episode at which the next one is the first of another."""
MAX_ACTS: Final = 1_000
"""Acts that are remembered."""
MAX_NAMES_READ: Final = 32
"""Records whose names are searched for a loss."""


@dataclass(frozen=True, kw_only=True)
class Act:
    """Something that a guard did, or in the mode "advise" would have done."""

    step: int
    """Step of the optimizer, counted from 1 since the guard began, after which it was done."""
    action: str
    """Name of the action (`client_sdk.vocabulary.GUARD_ACTIONS`)."""
    cause: str
    is_done: bool
    """Whether it was done."""
    steps: int
    """Steps that it touches."""
    factor: float
    """Factor on what it changes."""
    height: float
    """Forecast rise of the loss in units of its level, which it is to prevent; NaN if it is not known."""


class Guard:
    """The observer of an optimizer's steps (`client_sdk.watch.hooks.StepObserver`). Used on the training thread."""

    def __init__(
        self,
        run: Run,
        optimizer: torch.optim.Optimizer,
        kind: Kind,
        *,
        mode: Mode,
        policy: Policy,
        checkpoint: Callable[[], Any] | None,
        agreement: Agreement | None,
    ) -> None:
        self._run, self._optimizer, self._kind = run, optimizer, kind
        self._mode, self._policy, self._checkpoint = mode, policy, checkpoint
        self._agreement = agreement
        self._listed: list[tuple[str, Action]] = [
            (cause, action) for cause, actions in policy.actions.items() for action in actions
        ]
        self._direction = Direction(optimizer, kind)
        self._sign = OscillationSign()
        self._outlier = OutlierSign()
        self._groups = ChangedGroups(optimizer, kind)
        self._bounds = Bounds(policy)
        self._flying: deque[FollowedStep] = deque()
        self._losses: deque[float] = deque(maxlen=LOSSES)
        self._loss_name: str | None = run.settings.loss
        self._names_read = 0
        self._asked: str | None = None  # cause of an alert of the server that waits to be acted on
        self._step = 0
        self._acted_at: int | None = None
        self._in_episode = 0  # acts of the present episode
        self._saved_at: int | None = None
        self._is_off = False
        self._height = math.nan  # forecast rise that the last decision is to prevent
        self.acts: deque[Act] = deque(maxlen=MAX_ACTS)
        """The last acts, and in the mode "advise" pieces of advice."""
        self.skipped = 0
        """Number of oscillations that were left alone, because the forecast rise was too small or a bound forbade."""

    @property
    def is_shared(self) -> bool:
        """Whether other ranks wait for this one after every step."""
        return self._agreement is not None

    @property
    def touched(self) -> int:
        """Number of steps that were touched, or would have been."""
        return self._bounds.total

    # -- hooks of the optimizer --

    def before_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Change the step that begins, if an action is under way. A hook before steps; never raises."""
        del optimizer
        if self._is_off:
            return
        try:
            self._groups.before_step()
            self._look_at_batch(has_closure=_has_closure(args, kwargs))
        except Exception as error:
            self._switch_off(error)

    def after_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Restore the settings, read the step and decide. A hook after steps; never raises."""
        del optimizer, args, kwargs
        decision = Decision()
        try:
            self._groups.after_step()
            self._is_off = self._is_off or not self._run.active
            if not self._is_off:
                self._step += 1
                decision = self._decide()
        except Exception as error:
            self._switch_off(error)
        # Every rank comes by here once a step and nowhere else, so that no rank waits for another one in vain.
        if self._agreement is not None:
            decision = self._agree(self._agreement, decision)
        try:
            if decision.action >= 0 and not self._is_off:
                self._take(decision)
        except Exception as error:
            self._switch_off(error)

    def _agree(self, agreement: Agreement, decision: Decision) -> Decision:
        """Return what all ranks do; nothing from now on if one of them, or this one, cannot follow."""
        try:
            agreed = agreement.agree(decision, is_sound=not self._is_off)
            if agreed is not None:
                return agreed
            if not self._is_off:
                raise RuntimeError("another rank cannot follow")
        except Exception as error:
            self._switch_off(error)
        self._agreement = None
        return Decision()

    def restarted(self, optimizer: torch.optim.Optimizer) -> None:
        """End the episode, as other values were loaded into the optimizer. A hook after `load_state_dict`."""
        del optimizer
        self._groups.end()
        self._forget()

    def saving(self, optimizer: torch.optim.Optimizer) -> None:
        """Restore the settings of a step that raised an exception. A hook before `state_dict`."""
        del optimizer
        self._groups.after_step()

    def hear(self, scalars: Mapping[str, float]) -> None:
        """Take in the scalars of a record. Called from any thread."""
        loss = self._loss(scalars)
        if loss is not None:
            self._losses.append(loss)

    def ask(self, cause: str) -> None:
        """Act after the next step as if ``cause`` had been found; for alerts of the server."""
        self._asked = cause

    def stop(self) -> None:
        """End every action."""
        self._is_off = True
        self._groups.end()
        self._groups.after_step()

    # -- deciding --

    def _look_at_batch(self, *, has_closure: bool) -> None:
        skip = next((one for _, one in self._listed if isinstance(one, SkipBatch)), None)
        if skip is None or has_closure:
            return
        grads = [one.grad for group in self._optimizer.param_groups for one in group["params"] if one.grad is not None]
        if not grads:
            return
        norms = torch._foreach_norm([grad.detach() for grad in grads])
        norm = float(torch.stack([one.double().to(norms[0].device) for one in norms]).square().sum().sqrt())
        if not self._outlier.update(norm, jump=skip.jump):
            return
        step = self._step + 1
        if not self._bounds.allows(step, 1, is_whole=True):
            self._say_bound()
            return
        self._bounds.touch(step, 1, is_whole=True)
        if self._mode == "act":
            for group in self._optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        self._record(skip, Cause.BAD_BATCH, factor=0.0, height=math.nan, step=step)

    def _decide(self) -> Decision:
        """Return what to do after the step; rank 0 decides for all."""
        step = self._direction.follow()
        if step is None:
            self._forget()
            return Decision()
        self._flying.append(step)
        found: Oscillation | None = None
        while self._flying and self._flying[0].ready():
            landed = self._flying.popleft()
            if landed.is_first:
                self._sign.forget()
            found = self._sign.update(landed.amounts())
        asked, self._asked = self._asked, None
        if asked is not None and asked in self._policy.actions:
            return self._choose(asked, found, height=math.nan)
        if found is None or Cause.STALE_SECOND_MOMENT not in self._policy.actions:
            return Decision()
        height = self._relative(found.height)
        if height < self._policy.least_height:
            self.skipped += 1
            return Decision()
        return self._choose(Cause.STALE_SECOND_MOMENT, found, height=height)

    def _choose(self, cause: str, found: Oscillation | None, *, height: float) -> Decision:
        if self._acted_at is None or self._step - self._acted_at > EPISODE:
            self._in_episode = 0
        actions = self._policy.actions[cause]
        action = actions[min(self._in_episode // self._policy.patience, len(actions) - 1)]
        if self._groups.is_active:
            return Decision()
        factor = 1.0
        if isinstance(action, RaiseSecondMoment):
            if found is None or (self._acted_at is not None and self._step - self._acted_at < action.pause):
                return Decision()
            factor = (action.margin * found.stability_ratio) ** 2
        if not self._bounds.allows(
            self._step + 1, steps_of(action), is_whole=not isinstance(action, RaiseSecondMoment)
        ):
            self.skipped += 1
            self._say_bound()
            return Decision()
        self._height = height
        return Decision(self._listed.index((cause, action)), factor)

    def _relative(self, height: float) -> float:
        """Return a rise of the loss in units of its level; infinite if no positive level is known."""
        losses = [loss for loss in tuple(self._losses) if math.isfinite(loss)]
        level = median(losses) if losses else 0.0
        return height / level if level > 0 else math.inf

    def _loss(self, scalars: Mapping[str, float]) -> float | None:
        if self._loss_name is None and self._names_read < MAX_NAMES_READ:
            self._names_read += 1
            self._loss_name = LOSS if LOSS in scalars else loss_among(scalars)
        return None if self._loss_name is None else scalars.get(self._loss_name)

    # -- acting --

    def _take(self, decision: Decision) -> None:
        cause, action = self._listed[decision.action]
        is_whole = not isinstance(action, RaiseSecondMoment)
        self._bounds.touch(self._step + 1, steps_of(action), is_whole=is_whole)
        self._acted_at = self._step
        self._in_episode += 1
        if self._mode == "act":
            self._save()
            if isinstance(action, RaiseSecondMoment):
                self._direction.raise_second_moment(decision.factor)
            elif not isinstance(action, SkipBatch):
                lasting: LastingAction = action
                self._groups.begin(lasting)
        factor = decision.factor if isinstance(action, RaiseSecondMoment) else getattr(action, "factor", math.nan)
        self._record(action, cause, factor=factor, height=self._height, step=self._step)

    def _save(self) -> None:
        """Call the checkpoint callback before the first act of an episode."""
        if self._checkpoint is None:
            return
        if self._saved_at is not None and self._step - self._saved_at < self._policy.checkpoint_every:
            return
        self._saved_at = self._step
        try:
            self._checkpoint()
        except Exception as error:
            self._run.warner.caught("checkpoint", "the checkpoint callback of guard()", error)
            self._checkpoint = None

    def _record(self, action: Action, cause: str, *, factor: float, height: float, step: int) -> None:
        name, is_done = NAMES[type(action)], self._mode == "act"
        self.acts.append(
            Act(
                step=step, action=name, cause=str(cause), is_done=is_done, steps=steps_of(action), factor=factor,
                height=height,
            )
        )  # fmt: skip
        scalars = {
            "guard_act" if is_done else "guard_advice": float(GUARD_ACTIONS.index(name)),
            "guard_steps": float(steps_of(action)),
        }
        if math.isfinite(factor):
            scalars["guard_factor"] = factor
        if math.isfinite(height):
            scalars["guard_height"] = height
        self._run.add_scalars(scalars)

    def _say_bound(self) -> None:
        self._run.warner.warn(
            "guard_bound",
            "the guard does nothing for now, because its policy allows no further step: see share, whole_share and "
            "in_a_row of client_sdk.guard.Policy",
        )

    def _forget(self) -> None:
        self._direction.forget()
        self._sign.forget()
        self._flying.clear()

    def _switch_off(self, error: Exception) -> None:
        self._is_off = True
        self._run.warner.caught("guard", "the guard, which is switched off", error)
        try:
            self._groups.end()
            self._groups.after_step()
        except Exception as other:
            self._run.warner.caught("guard", "restoring the settings of the optimizer", other)


def _has_closure(args: object, kwargs: object) -> bool:
    """Return whether `step` was called with a closure; ``args`` begin with the optimizer itself."""
    is_positional = isinstance(args, tuple) and len(args) > 1 and args[1] is not None
    return is_positional or (isinstance(kwargs, dict) and kwargs.get("closure") is not None)
