"""The call `guard`, which checks its arguments and attaches a `Guard` to an optimizer, and its handle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch.utils.hooks import RemovableHandle

from client_sdk.errors import ConfigurationError
from client_sdk.guard.agreement import Agreement, is_shared
from client_sdk.guard.guard import Act, Guard, Mode
from client_sdk.guard.policy import (
    Action,
    ClipUpdate,
    LowerBeta2,
    Policy,
    RaiseSecondMoment,
    ReduceRate,
    ScaleEps,
    SkipBatch,
)
from client_sdk.inbox import TrainingAlert
from client_sdk.optimizers import Kind, kind_of, read_update_rule, watched_optimizer
from client_sdk.run import Run
from client_sdk.vocabulary import AlertKind, AlertLevel
from client_sdk.watch.hooks import StepHooks

_GUARDED = "_spikewatch_guard"


class GuardHandle:
    """Handle of a `guard`, which can be removed."""

    def __init__(self, guard: Guard | None, undo: tuple[Callable[[], object], ...]) -> None:
        """Take over a guard and what ends it; None in a disabled run."""
        self._guard, self._undo = guard, undo

    @property
    def acts(self) -> tuple[Act, ...]:
        """The last 1,000 acts, or pieces of advice, oldest first."""
        return () if self._guard is None else tuple(self._guard.acts)

    @property
    def touched(self) -> int:
        """Number of steps that were touched, or in the mode "advise" would have been."""
        return 0 if self._guard is None else self._guard.touched

    @property
    def left_alone(self) -> int:
        """Number of steps at which an oscillation grew and nothing was done: it was too small, or a bound forbade."""
        return 0 if self._guard is None else self._guard.skipped

    def remove(self) -> None:
        """Stop guarding; settings that a step has changed are restored. May be called more than once."""
        if self._guard is not None:
            self._guard.stop()
        for undo in self._undo:
            undo()
        self._undo = ()


def guard(
    run: Run,
    optimizer: object,
    *,
    mode: Mode = "advise",
    policy: Policy | None = None,
    checkpoint: Callable[[], Any] | None = None,
) -> GuardHandle:
    """Guard the steps of ``optimizer``; see `client_sdk.guard`.

    Raises `ConfigurationError` if an argument is invalid, if the optimizer is guarded already, if it does not allow an
    action of the policy, or if its parameters are divided among processes.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigurationError(f"guard() needs a torch.optim.Optimizer, not {type(optimizer).__name__}")
    if mode not in get_args(Mode):
        raise ConfigurationError(f'mode is {mode!r}; use "advise" or "act"')
    if policy is not None and not isinstance(policy, Policy):
        raise ConfigurationError(f"policy is {policy!r:.80}; it must be a client_sdk.guard.Policy, which has bounds")
    if checkpoint is not None and not callable(checkpoint):
        raise ConfigurationError(f"checkpoint is {checkpoint!r:.80}; it must be a function of no arguments")
    policy = policy or Policy()
    watched = watched_optimizer(optimizer)
    inner = watched.optimizer
    kind: Kind = "other" if watched.wrapper is not None else kind_of(inner)
    _check_parameters(inner)
    for actions in policy.actions.values():
        for action in actions:
            _check(action, inner, kind)
    if run.disabled:
        return GuardHandle(None, ())
    if getattr(inner, _GUARDED, False):
        raise ConfigurationError("the optimizer is guarded already: call remove() of the earlier handle first")
    agreement = None
    if mode == "act" and is_shared():
        if any(isinstance(action, SkipBatch) for actions in policy.actions.values() for action in actions):
            raise ConfigurationError(
                "SkipBatch is not possible in a training of several processes: leave it out of the policy"
            )
        agreement = Agreement()
    found = Guard(run, inner, kind, mode=mode, policy=policy, checkpoint=checkpoint, agreement=agreement)
    hooks = StepHooks(inner, found, are_last=True)  # a watcher reads the step as it was made
    loading: RemovableHandle = inner.register_load_state_dict_post_hook(found.restarted)
    saving: RemovableHandle = inner.register_state_dict_pre_hook(found.saving)
    run.listen(found.hear)
    setattr(inner, _GUARDED, True)
    undo: list[Callable[[], object]] = [
        loading.remove, saving.remove, lambda: run.stop_listening(found.hear), lambda: setattr(inner, _GUARDED, False),
    ]  # fmt: skip
    if not found.is_shared:  # other ranks wait for this one after each step, which the hook tells that it has left
        undo.append(hooks.remove)
    if policy.server_alerts:
        undo.append(_hear_alerts(run, found))
    return GuardHandle(found, tuple(undo))


def _hear_alerts(run: Run, found: Guard) -> Callable[[], None]:
    """Let alerts of the server ask for actions; returns a function that ends this."""

    def ask(alert: TrainingAlert) -> None:
        is_strong = alert.level != AlertLevel.WATCH and alert.change != "resolved"
        if is_strong and alert.kind == AlertKind.SPIKE_PREDICTED and alert.cause is not None:
            found.ask(alert.cause)

    run.on_alert(ask)
    return lambda: run.off_alert(ask)


def _check_parameters(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if hasattr(parameter, "placements") or hasattr(parameter, "_is_flat_param"):
                raise ConfigurationError(
                    "guard() cannot follow parameters that are divided among processes (FSDP, tensor parallelism): "
                    "each of them sees a part of the direction alone. DistributedDataParallel works"
                )
    names = {kind.__name__ for kind in type(optimizer).__mro__}
    if "ZeroRedundancyOptimizer" in names:
        raise ConfigurationError("guard() cannot follow an optimizer whose state is divided among processes")


def _check(action: Action, optimizer: torch.optim.Optimizer, kind: Kind) -> None:
    """Raise `ConfigurationError` if ``optimizer`` does not allow an action."""
    name = type(optimizer).__name__
    groups = optimizer.param_groups
    rules = [read_update_rule(kind, optimizer, group) for group in groups]
    if isinstance(action, RaiseSecondMoment):
        if any(group.get("amsgrad") for group in groups):
            raise ConfigurationError(
                "AMSGrad never lets its second moment fall, so that a raised one would stay: use another action, such "
                'as Policy(actions={"stale-second-moment": (ReduceRate(),)})'
            )
        if not all(_has_plain_second(rule.second, rule.is_rotated, kind) for rule in rules):
            raise ConfigurationError(
                f"{name} keeps no second moment of each coordinate that could be raised: use another action, such as "
                'Policy(actions={"stale-second-moment": (ReduceRate(),)})'
            )
    key = {ReduceRate: "lr", ClipUpdate: "lr", LowerBeta2: "betas", ScaleEps: "eps"}.get(type(action))
    if key is not None and any(group.get(key) is None for group in groups):
        raise ConfigurationError(f"{type(action).__name__} needs {key!r} in every group of the optimizer, {name}")
    if isinstance(action, LowerBeta2) and any(len(group["betas"]) < 2 for group in groups):
        raise ConfigurationError(f"LowerBeta2 needs two betas in every group of the optimizer, {name}")
    if isinstance(action, ClipUpdate) and any(rule.second is None for rule in rules):
        raise ConfigurationError(f"ClipUpdate needs the second moment that {name} does not keep")


def _has_plain_second(second: str | None, is_rotated: bool, kind: Kind) -> bool:
    return second is not None and not is_rotated and kind in ("adam", "nadam", "radam", "fused_adam", "rmsprop")
