"""Spikewatch in trainings with Accelerate.

    from client_sdk.integrations.accelerate import SpikewatchTracker

    tracker = SpikewatchTracker("gpt-small")
    accelerator = Accelerator(log_with=tracker)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.init_trackers("gpt-small", config={"lr": 3e-4})
    tracker.watch(model, optimizer)
    …
    accelerator.log({"loss": loss}, step=step)

Importing this module also makes ``log_with="spikewatch"`` known to Accelerate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Unpack

from client_sdk.inbox import TrainingAlert
from client_sdk.integrations.session import InitOptions, Session, WatchOptions
from client_sdk.run import Run

try:
    from accelerate import tracking
    from accelerate.tracking import GeneralTracker, on_main_process
except ImportError as error:
    raise ImportError("client_sdk.integrations.accelerate needs Accelerate: pip install 'accelerate>=1'") from error

__all__ = ["SpikewatchTracker"]


class SpikewatchTracker(GeneralTracker):  # type: ignore[misc]  # the library is not type-checked
    """Tracker of Accelerate that writes to a run.

    The run begins at the first call of `watch`, `log` or `tracker`, so that a checkpoint can be loaded before: after
    ``accelerator.register_for_checkpointing(tracker)`` a checkpoint holds the id of the run, and a training that loads
    it before it watches or logs continues that run.
    """

    name = "spikewatch"
    requires_logging_directory = False
    main_process_only = True

    def __init__(
        self,
        run_name: str = "default",
        *,
        on_alert: Callable[[TrainingAlert], Any] | None = None,
        watch: WatchOptions | None = None,
        **init: Unpack[InitOptions],
    ) -> None:
        """Take the project as ``run_name``, as Accelerate calls it, and the arguments of `client_sdk.init`.

        ``watch`` holds arguments of `client_sdk.watch` for the method of that name. Raises `ConfigurationError` if an
        argument is unknown.
        """
        super().__init__()
        self._project = run_name
        self._session = Session(init, watch, on_alert)
        self._config: dict[str, Any] = {}
        self._run_id: str | None = None

    @property
    def tracker(self) -> Run:
        """The run, which begins now if it has not yet."""
        return self._session.begin(project=self._project, config=self._config, run_id=self._run_id)

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Keep the configuration for the run."""
        self._config = dict(values)

    def watch(self, model: Any, optimizer: Any) -> None:
        """Measure the layers of a prepared model, as its prepared optimizer moves them. Every process calls this."""
        if not self._session.is_open:
            self._session.begin(project=self._project, config=self._config, run_id=self._run_id)
        self._session.watch(model, optimizer)

    @on_main_process  # type: ignore[untyped-decorator]
    def log(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        closure: Callable[[], Any] | None = None,
        **named: Any,
    ) -> None:
        """Record values at a step.

        A closure, which switches curvature on, is passed through Accelerate:
        ``accelerator.log({"loss": loss}, step=step, log_kwargs={"spikewatch": {"closure": batch_loss}})``.
        """
        if self._session.run is None:
            self._session.begin(project=self._project, config=self._config, run_id=self._run_id)
        self._session.log(values, step, closure)

    def finish(self) -> None:
        """Finish the run, unless the user began it; ``accelerator.end_training()`` calls this."""
        self._session.finish()

    def state_dict(self) -> dict[str, Any]:
        """Return the id of the run, for ``accelerator.register_for_checkpointing``."""
        return {"run_id": self._run_id if self._session.run is None else self._session.run.id}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the run of a checkpoint."""
        self._run_id = state_dict.get("run_id")
        run = self._session.run
        if run is not None and self._run_id not in {None, run.id}:
            run.warner.warn(
                "integration_resume",
                "a checkpoint of another run was loaded after this run began; load it before tracker.watch() and the "
                "first log to continue its run",
            )


if hasattr(tracking, "register_tracker_class"):  # not in old versions
    tracking.register_tracker_class(SpikewatchTracker)
