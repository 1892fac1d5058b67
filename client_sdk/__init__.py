"""Spikewatch in a training loop: `init`, `watch`, `log`, `on_alert`, `off_alert`, `flush`, `finish`, `status`.

    import client_sdk

    client_sdk.init(project="gpt-small")
    client_sdk.watch(model, optimizer)
    for step, batch in enumerate(loader):
        loss = loss_fn(model, batch); loss.backward(); optimizer.step(); optimizer.zero_grad()
        client_sdk.log({"loss": loss}, step=step, closure=lambda: loss_fn(model, batch))
    client_sdk.finish()

Importing this package imports no torch; `watch` does. The functions here act on the run that `init` made last; the
methods of `Run` do the same for one run among several.
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
from client_sdk.inbox import TrainingAlert
from client_sdk.protocol import Alert
from client_sdk.run import Run
from client_sdk.run_status import Status
from client_sdk.warner import Warner

if TYPE_CHECKING:
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
    "finish",
    "flush",
    "init",
    "log",
    "off_alert",
    "on_alert",
    "status",
    "watch",
]

EXIT_TIMEOUT = 5.0  # seconds that a run which nobody finished may take at the end of the process

_Callback = TypeVar("_Callback", bound=Callable[[TrainingAlert], Any])

_default: Run | None = None
_runs: weakref.WeakSet[Run] = weakref.WeakSet()
_warner = Warner()  # of calls before `init`


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
) -> Run:
    """Begin a run and make it the default of this module. A run that is still open is finished first, with a warning.

    What is not given comes from SPIKEWATCH_URL, SPIKEWATCH_TOKEN, SPIKEWATCH_MODE and SPIKEWATCH_DIR. ``config`` is
    kept with the run (a mapping, dataclass or `argparse.Namespace`); ``run_id`` continues an earlier run. The server
    need not be up. Raises `ConfigurationError` for arguments that cannot be meant.
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
        environ=os.environ,
    )
    previous = _default
    if previous is not None and previous.active:
        _warner.warn("second_init", f"init() while run {previous.id} is open: it is finished. Call finish() before")
        previous.finish(EXIT_TIMEOUT)
    _default = Run(settings)
    _runs.add(_default)
    return _default


def watch(  # noqa: PLR0917 - the contract's signature
    model: Any,
    optimizer: Any,
    every: int = 1,
    histogram_every: int = 50,
    curvature_every: int = 25,
    group: str | Callable[[str], str | None] = "parameter",
    *,
    precision: str = "compact",
    run: Run | None = None,
) -> Handle:
    """Measure every layer of ``model`` at every ``every``-th call of `log`, from the next one on.

    ``group``: "parameter", "module", or a callable from parameter name to layer name (None leaves it out). Several
    models may be watched on one run. ``precision``: "compact" keeps layer statistics within 2⁻¹² of their value, which
    halves what is sent and stored; "exact" keeps every bit of them. Returns a handle with ``remove()``. Raises
    `ConfigurationError` for arguments that cannot be meant, and before `init`.
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
    )
    return handle


def log(metrics: Mapping[str, Any], step: int | None = None, closure: Callable[[], Any] | None = None) -> None:
    """Record ``metrics`` (numbers, or tensors of one element on any device) at ``step`` (default: the last + 1).

    ``closure`` is optional: it returns the loss of the batch, and switches curvature on. Never raises or waits.
    """
    run = _default
    if run is None:
        _warner.warn("no_run", "log() before init() is ignored: call client_sdk.init(project=…) first")
        return
    run.log(metrics, step, closure)


def on_alert(callback: _Callback) -> _Callback:
    """Call ``callback`` when an alert opens, escalates or is resolved (`TrainingAlert.change`); on the training thread,
    inside the next `log`. Each change comes once, on every rank that logs. Returns the callback, so that it decorates.
    """
    if _default is None:
        _warner.warn("no_run", "on_alert() before init() is ignored: call client_sdk.init(project=…) first")
    else:
        _default.on_alert(callback)
    return callback


def off_alert(callback: Callable[[TrainingAlert], Any]) -> None:
    """Call ``callback`` no longer."""
    if _default is not None:
        _default.off_alert(callback)


def flush(timeout: float = 10.0) -> bool:
    """Wait until everything logged so far is acknowledged; False when that took longer, and offline."""
    return True if _default is None else _default.flush(timeout)


def finish(timeout: float = 30.0) -> None:
    """End the run: send what is left, for at most ``timeout`` seconds. What could not be sent stays on disk."""
    if _default is not None:
        _default.finish(timeout)


def status() -> Status:
    """Counts and connection of the run. Raises `ConfigurationError` before `init`."""
    if _default is None:
        raise ConfigurationError("status() before init(): call client_sdk.init(project=…) first")
    return _default.status()


class _Package(ModuleType):
    """This package, with `watch` staying the function when the import system binds the submodule of that name."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "watch" and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


@atexit.register
def _finish_at_exit() -> None:
    """A run that nobody finished: with its end known, it does not look stale. `sys.last_type` tells an exception that
    nobody caught; a run interrupted by Ctrl-C is a finished one."""
    error = getattr(sys, "last_type", None)
    crashed = error is not None and not issubclass(error, KeyboardInterrupt) and not hasattr(sys, "ps1")
    for run in tuple(_runs):
        run.finish(EXIT_TIMEOUT, state="crashed" if crashed else "finished")
