"""The run of a training whose loop belongs to a framework.

Owns the beginning and the end of the run, the arguments that every integration takes, and the watched optimizers. A run
that the user began with `client_sdk.init` is used and left open. Knows no framework, and does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, get_type_hints

import client_sdk
from client_sdk.config import plain_config
from client_sdk.errors import ConfigurationError
from client_sdk.inbox import TrainingAlert
from client_sdk.protocol import MAX_NAME_CHARS
from client_sdk.run import Run

if TYPE_CHECKING:
    from client_sdk.watch import Handle

LATE_TIMEOUT: Final = 5.0  # seconds for records that arrive after the end of the training, such as a last evaluation


class InitOptions(TypedDict, total=False):
    """Arguments of `client_sdk.init` that an integration passes on."""

    project: str
    name: str | None
    config: Mapping[str, Any] | None
    tags: Iterable[str]
    url: str | None
    token: str | None
    mode: Literal["online", "offline", "disabled"] | None
    directory: str | os.PathLike[str] | None
    run_id: str | None
    loss: str | None


class WatchOptions(TypedDict, total=False):
    """Arguments of `client_sdk.watch` that an integration passes on."""

    every: Any
    histogram_every: int
    curvature_every: int
    group: str | Callable[[str], str | None]
    precision: str
    curvature: Literal["auto", "exact", "finite-difference", "forward", "off"]
    budget: float
    distributed: bool


class Session:
    """The run of one training, from its first step to its last record. Used on the training thread."""

    def __init__(
        self,
        init: InitOptions,
        watch: WatchOptions | None = None,
        on_alert: Callable[[TrainingAlert], Any] | None = None,
    ) -> None:
        """Keep the arguments for `begin`. Raises `ConfigurationError` if one is unknown or cannot be used."""
        self._init = init
        self._watch: WatchOptions = {} if watch is None else watch
        self._on_alert = on_alert
        self._handles: list[Handle] = []
        self._is_ours = False
        self.run: Run | None = None
        """The run, or None before `begin`."""
        for argument, given, known in (("", init, InitOptions), ("watch", self._watch, WatchOptions)):
            if not isinstance(given, Mapping):
                raise ConfigurationError(f"{argument} is {given!r}; expected a dictionary of arguments of watch()")
            names = tuple(get_type_hints(known))
            unknown = [name for name in given if name not in names]
            if unknown:
                place = f" in {argument}" if argument else ""
                raise ConfigurationError(f"the argument {unknown[0]!r}{place} is unknown; expected {', '.join(names)}")
        if on_alert is not None and not callable(on_alert):
            raise ConfigurationError(f"on_alert is {on_alert!r}; expected a function of one alert")

    @property
    def is_open(self) -> bool:
        """Whether the run takes records."""
        return self.run is not None and self.run.active

    def begin(
        self,
        *,
        project: str = "default",
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> Run:
        """Return the run of the training: the open one, the user's, the run ``run_id``, or a new one.

        The arguments are the framework's; those that the user gave win. Raises `ConfigurationError` if one of the
        user's is invalid.
        """
        if self.run is not None and self.run.active:
            return self.run
        theirs = client_sdk.active_run()
        if theirs is not None:
            self.run, self._is_ours = theirs, False
        else:
            self.run, self._is_ours = self._open(project, name, config, run_id), True
        if self._on_alert is not None:
            self.run.on_alert(self._on_alert)
        return self.run

    def watch(self, model: Any, optimizer: Any) -> None:
        """Measure the layers of ``model``. A model or optimizer that cannot be measured is reported by a warning."""
        run = self.run
        if run is None or not run.active:
            return
        try:
            self._handles.append(client_sdk.watch(model, optimizer, **self._watch, run=run))
        except ConfigurationError as error:
            run.warner.warn("integration_watch", f"the layers are not measured: {error}")

    def unwatch(self) -> None:
        """Stop measuring layers."""
        while self._handles:
            self._handles.pop().remove()

    def log(
        self, metrics: Mapping[str, Any], step: int | None = None, closure: Callable[[], Any] | None = None
    ) -> None:
        """Record ``metrics`` as `client_sdk.log` does; after the end of our own run, which is opened again for them.

        Without metrics and closure nothing happens.
        """
        run = self.run
        if run is None or not (metrics or closure):
            return
        if run.active or not self._is_ours:
            run.log(metrics, step, closure)
            return
        again = self._open(run.settings.project, run.settings.name, run.settings.config, run.id)
        again.log(metrics, step)
        again.finish(LATE_TIMEOUT, "crashed" if run.status().state == "crashed" else "finished")

    def finish(self, state: Literal["finished", "crashed"] | None = None) -> None:
        """Finish the run if it is ours. ``state`` None means "crashed" while an exception passes through."""
        self.unwatch()
        if self.run is not None and self._is_ours and self.run.active:
            self.run.finish(state=state)

    def _open(self, project: str, name: str | None, config: Mapping[str, Any] | None, run_id: str | None) -> Run:
        options: InitOptions = {"project": usable_name(project) or "default", **self._init}
        if options.get("name") is None:
            options["name"] = usable_name(name)
        if options.get("run_id") is None:
            options["run_id"] = run_id
        options["config"] = usable_config({**(config or {}), **(options.get("config") or {})}, options.get("config"))
        return client_sdk.init(**options)


def usable_name(name: str | None) -> str | None:
    """Return a framework's name as `client_sdk.init` takes it: printable and not too long, or None.

    >>> usable_name("first\\nrun")
    'first run'
    """
    if not isinstance(name, str):
        return None
    return " ".join("".join(mark if mark.isprintable() else " " for mark in name).split())[:MAX_NAME_CHARS] or None


def usable_config(config: Mapping[str, Any], fallback: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return ``config``, or ``fallback`` if a framework's configuration is too large to be stored."""
    try:
        return plain_config(config)
    except ConfigurationError:
        return fallback
