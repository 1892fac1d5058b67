"""Spikewatch in a training loop: `init`, `watch`, `guard`, `log`, `on_alert`, `off_alert`, `flush`, `finish`, `status`.

    import client_sdk

    client_sdk.init(project="gpt-small")
    client_sdk.watch(model, optimizer)
    for step, batch in enumerate(loader):
        loss = loss_fn(model, batch); loss.backward(); optimizer.step(); optimizer.zero_grad()
        client_sdk.log({"loss": loss}, step=step, closure=lambda: loss_fn(model, batch))
    client_sdk.finish()

Importing this package does not import torch; calling `watch` does. The functions here act on the run that `init`
created last; the methods of `Run` do the same for one run among several.
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from client_sdk.config import Settings
from client_sdk.errors import ConfigurationError, SpikewatchError, SpoolError, TransportError
from client_sdk.exit_status import failed_at_exit
from client_sdk.inbox import TrainingAlert
from client_sdk.protocol import Alert
from client_sdk.run import Run
from client_sdk.run_status import Status
from client_sdk.warner import Warner

if TYPE_CHECKING:
    from client_sdk.guard import GuardHandle, Policy
    from client_sdk.watch import Handle

__all__ = [
    "Alert",
    "ConfigurationError",
    "Run",
    "SpikewatchError",
    "SpoolError",
    "Status",
    "TrainingAlert",
    "TransportError",
    "active_run",
    "finish",
    "flush",
    "guard",
    "init",
    "log",
    "off_alert",
    "on_alert",
    "status",
    "watch",
]

EXIT_TIMEOUT = 5.0  # seconds that an unfinished run may take at the end of the process

_Callback = TypeVar("_Callback", bound=Callable[[TrainingAlert], Any])

_default: Run | None = None
_runs: weakref.WeakSet[Run] = weakref.WeakSet()
_warner = Warner()  # for calls before `init`


def init(  # noqa: PLR0917 - the contract's signature
    project: str = "default",
    name: str | None = None,
    config: Any = None,
    tags: Iterable[str] = (),
    url: str | None = None,
    token: str | None = None,
    mode: Literal["online", "offline", "disabled"] | None = None,
    directory: str | os.PathLike[str] | None = None,
    run_id: str | None = None,
    loss: str | None = None,
) -> Run:
    """Begin a run and make it the default run of this module.

    A run that is still open is finished first, with a warning. Defaults come from the environment variables
    SPIKEWATCH_URL, SPIKEWATCH_TOKEN, SPIKEWATCH_MODE, SPIKEWATCH_DIR and SPIKEWATCH_RUN_ID. ``config`` (a mapping, a
    dataclass or an `argparse.Namespace`) is stored with the run; ``run_id`` continues an earlier run. ``loss`` is the
    name of the scalar that is the training loss (default: "loss", or a usual name such as "train/loss"; its sign and
    scale are yours). The server need not be running. Raises `ConfigurationError` if an argument is invalid.
    """
    global _default  # noqa: PLW0603 - the contract's module-level default
    settings = Settings.resolve(
        project=project,
        name=name,
        config=config,
        tags=tags,
        url=url,
        token=token,
        mode=mode,
        directory=directory,
        run_id=run_id,
        loss=loss,
        environ=os.environ,
    )
    previous = _default
    if previous is not None and previous.active:
        _warner.warn(
            "second_init", f"init() while run {previous.id} is open: that run is finished now. Call finish() first"
        )
        previous.finish(EXIT_TIMEOUT)
    _default = Run(settings)
    _runs.add(_default)
    return _default


def watch(  # noqa: PLR0917 - the contract's signature
    model: Any,
    optimizer: Any,
    every: int | Literal["auto"] = "auto",
    histogram_every: int = 50,
    curvature_every: int = 25,
    group: str | Callable[[str], str | None] = "parameter",
    *,
    precision: str = "compact",
    curvature: Literal["auto", "exact", "finite-difference", "forward", "off"] = "auto",
    budget: float = 0.05,
    distributed: bool = True,
    run: Run | None = None,
) -> Handle:
    """Measure every layer of ``model`` as ``optimizer`` moves it, from its next step on.

    ``every`` "auto" measures every step while something stirs, and in calm times as many as take at most 2 % of the
    training's time; a number measures every ``every``-th step, however long that takes. `status().watch` says which.
    ``group`` is "parameter", "module", or a callable from parameter name to layer name; a parameter for which it
    returns None is left out. ``precision`` "compact" keeps layer statistics within a relative 2⁻¹² and halves the
    bytes that are sent and stored; "exact" keeps every bit.

    ``budget`` is the share of the training's time that measuring may take over any 200 steps, for the curvature that a
    ``closure`` of `log` switches on and for ``every="auto"``. Steps that take less than a few milliseconds can afford
    more, such as ``budget=1.0``; ``math.inf`` sets no limit. ``curvature`` is the method: "exact" (double backward),
    "finite-difference" (differences of gradients), "forward" (critical sharpness, from losses alone), "auto" (the first
    of these that the model and its optimizer allow) or "off". ``curvature_every`` is the number of steps between
    readings of λ_max in calm times, if the budget allows them.

    In a training of several processes every rank calls `watch`, and the layers are those of the whole model;
    ``distributed`` False says that each process trains a model of its own. With DeepSpeed, pass the engine and the
    optimizer that `deepspeed.initialize` returned. Several models may be watched on one run. Returns a handle with
    ``remove()``. Raises `ConfigurationError` if an argument is invalid, and before `init`.
    """
    target = _default if run is None else run
    if target is None:
        raise ConfigurationError("watch() before init(): call client_sdk.init(project=…) first")
    implementation = importlib.import_module("client_sdk.watch")
    handle: Handle = implementation.watch(
        target,
        model,
        optimizer,
        every=every,
        histogram_every=histogram_every,
        curvature_every=curvature_every,
        group=group,
        precision=precision,
        curvature=curvature,
        budget=budget,
        distributed=distributed,
    )
    return handle


def guard(
    optimizer: Any,
    mode: Literal["advise", "act"] = "advise",
    policy: Policy | None = None,
    checkpoint: Callable[[], Any] | None = None,
    *,
    run: Run | None = None,
) -> GuardHandle:
    """Guard the steps of ``optimizer`` against loss spikes, within the bounds of ``policy``.

    The mode "advise" records what would have been done; "act" does it. Without a `client_sdk.guard.Policy` the second
    moment is raised along a direction of the gradient that oscillates and grows, and nothing else. No closure is
    needed, and the optimizer need not be watched. While nothing is wrong, training is bit-identical to training without
    a guard. ``checkpoint`` is called without arguments on the training thread, between two steps, before the first act
    of an episode. In a training of several processes every rank calls `guard`, and rank 0 decides.

    Returns a handle with ``remove()``, ``acts`` and ``touched``. Raises `ConfigurationError` if an argument is invalid
    or the optimizer does not allow an action of the policy, and before `init`.
    """
    target = _default if run is None else run
    if target is None:
        raise ConfigurationError("guard() before init(): call client_sdk.init(project=…) first")
    implementation = importlib.import_module("client_sdk.guard")
    handle: GuardHandle = implementation.guard(target, optimizer, mode=mode, policy=policy, checkpoint=checkpoint)
    return handle


def log(metrics: Mapping[str, Any], step: int | None = None, closure: Callable[[], Any] | None = None) -> None:
    """Record ``metrics`` (numbers, or tensors of one element on any device) at ``step`` (default: the last + 1).

    ``closure`` returns the loss of the current batch; passing it switches curvature on. Never raises and never waits.
    """
    run = _default
    if run is None:
        _warner.warn("no_run", "log() before init() is ignored: call client_sdk.init(project=…) first")
        return
    run.log(metrics, step, closure)


def on_alert(callback: _Callback) -> _Callback:
    """Call ``callback`` when an alert opens, escalates or is resolved (see `TrainingAlert.change`).

    Callbacks run on the training thread, inside the next `log`. Each change is reported once, on every rank that logs.
    Returns ``callback``, so that this function can be used as a decorator.
    """
    if _default is None:
        _warner.warn("no_run", "on_alert() before init() is ignored: call client_sdk.init(project=…) first")
    else:
        _default.on_alert(callback)
    return callback


def off_alert(callback: Callable[[TrainingAlert], Any]) -> None:
    """Stop calling ``callback``."""
    if _default is not None:
        _default.off_alert(callback)


def flush(timeout: float = 10.0) -> bool:
    """Wait until everything logged so far is acknowledged. Returns False after ``timeout`` seconds, and offline."""
    return True if _default is None else _default.flush(timeout)


def finish(timeout: float = 30.0, state: Literal["finished", "crashed"] | None = None) -> None:
    """Finish the run and send the remaining records for at most ``timeout`` seconds; unsent ones stay on disk.

    ``state`` None means "crashed" while an exception passes through, as in a ``finally`` block, otherwise "finished".
    """
    if _default is not None:
        _default.finish(timeout, state)


def active_run() -> Run | None:
    """Return the run on which these functions act, or None before `init` and after `finish`."""
    return _default if _default is not None and _default.active else None


def status() -> Status:
    """Return the counts and the connection state of the run. Raises `ConfigurationError` before `init`."""
    if _default is None:
        raise ConfigurationError("status() before init(): call client_sdk.init(project=…) first")
    return _default.status()


class _Package(ModuleType):
    """Module type of this package: `watch` and `guard` stay functions when submodules of these names are imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("watch", "guard") and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


@atexit.register
def _finish_at_exit() -> None:
    """Finish runs that the program did not finish, so that the server does not show them as stale.

    An uncaught exception and `sys.exit` with a failing status make them crashed; an interruption by Ctrl-C does not.
    """
    state: Literal["finished", "crashed"] = "crashed" if failed_at_exit() else "finished"
    for run in tuple(_runs):
        run.finish(EXIT_TIMEOUT, state)
