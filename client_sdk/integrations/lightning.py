"""Spikewatch in the Trainer of Lightning.

    from client_sdk.integrations.lightning import SpikewatchCallback, SpikewatchLogger

    trainer = Trainer(logger=SpikewatchLogger(project="gpt-small"), callbacks=[SpikewatchCallback()])

The callback records the loss of every step and the layers; the logger records what the module logs with ``self.log``,
at the steps at which Lightning passes it on. Each works without the other. Together they write one run.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import uuid
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Unpack

from client_sdk.inbox import TrainingAlert
from client_sdk.integrations.session import InitOptions, Session, WatchOptions
from client_sdk.launch import Launch
from client_sdk.run import Run

try:
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.utilities import rank_zero_only
except ImportError as error:
    raise ImportError("client_sdk.integrations.lightning needs Lightning: pip install 'lightning>=2.5'") from error

from client_sdk.integrations.kept_batches import KeptBatches

__all__ = ["SpikewatchCallback", "SpikewatchLogger"]


class SpikewatchLogger(Logger):  # type: ignore[misc]  # the library is not type-checked
    """Logger of Lightning that writes to a run.

    The run begins with the first metric and gets the hyperparameters as its configuration. It is finished when the
    trainer has ended; what is logged later, such as a test, is added to it.
    """

    def __init__(self, *, on_alert: Callable[[TrainingAlert], Any] | None = None, **init: Unpack[InitOptions]) -> None:
        """Take the arguments of `client_sdk.init`. Raises `ConfigurationError` if one is unknown."""
        super().__init__()
        self._session = Session(init, None, on_alert)
        self.logs_loss = True
        """Whether a metric called "loss" is recorded; False while a callback records the loss of every step."""
        self._project = init.get("project") or "default"
        self._id = init.get("run_id") or Launch.read(self._project, os.environ).run_id or uuid.uuid4().hex
        self._hyperparameters: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Name of the project."""
        return self._project

    @property
    def version(self) -> str:
        """Id of the run; Lightning names the folder of its checkpoints after it."""
        return self._id if self._session.run is None else self._session.run.id

    def begin(self, run_id: str | None = None, config: Mapping[str, Any] | None = None) -> Any:
        """Return the run, which begins now if it has not yet; ``run_id`` is that of a checkpoint."""
        if not self._session.is_open:
            self._id = run_id or self._id
        return self._session.begin(
            project=self._project, config={**(config or {}), **self._hyperparameters}, run_id=self._id
        )

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics at a step."""
        if self._session.run is None:
            self.begin()
        self._session.log({name: value for name, value in metrics.items() if self.logs_loss or name != "loss"}, step)

    def log_hyperparams(
        self, params: Mapping[str, Any] | Namespace | None = None, *arguments: Any, **named: Any
    ) -> None:
        """Keep hyperparameters for the configuration of the run."""
        given = vars(params) if isinstance(params, Namespace) else dict(params or {})
        self._hyperparameters |= given

    def finalize(self, status: str) -> None:
        """Finish the run. Lightning passes "failed" while it handles an exception, and Ctrl-C is no crash."""
        self._session.finish("finished" if status == "success" else None)


class SpikewatchCallback(Callback):  # type: ignore[misc]  # the library is not type-checked
    """Records the loss of every step and watches every optimizer of the module.

    The first optimizer step is step 0, as for Lightning's loggers. ``loss`` is what ``training_step`` returns, whatever
    ``log_every_n_steps`` is; with accumulated gradients the mean over the batches of the step. With manual optimization
    each batch is a step, and what ``training_step`` logs is recorded too, as its result may have no loss. Validation
    metrics are recorded at the last training step. A training that is resumed from a checkpoint continues its run.
    """

    def __init__(
        self,
        *,
        curvature: bool = False,
        on_alert: Callable[[TrainingAlert], Any] | None = None,
        watch: WatchOptions | None = None,
        **init: Unpack[InitOptions],
    ) -> None:
        """Take the arguments of `client_sdk.init`, and as ``watch`` those of `client_sdk.watch`.

        ``curvature`` keeps the batches of each step and calls ``training_step`` on them again where curvature is
        measured, with ``self.log`` silent. If the trainer has a `SpikewatchLogger`, its run is used; otherwise the run
        that is open, or a new one. Raises `ConfigurationError` if an argument is unknown.
        """
        self._session = Session(init, watch, on_alert)
        self._wants_curvature = curvature
        self._batches = KeptBatches()
        self._losses: list[Any] = []
        self._logger: SpikewatchLogger | None = None
        self._step: int | None = None  # of the next optimizer step
        self._run_id: str | None = None  # that of a checkpoint
        self._steps_before = 0
        self._seen: dict[str, Any] = {}

    @property
    def run(self) -> Run | None:
        """The run, or None before the training begins."""
        return self._session.run

    # -- events of the trainer --

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the run, or continue that of the checkpoint, and watch the optimizers."""
        config = {**_hyperparameters(trainer.datamodule), **_hyperparameters(pl_module)}
        self._logger = next((item for item in trainer.loggers if isinstance(item, SpikewatchLogger)), None)
        if self._logger is None:
            run = self._session.begin(config=config, run_id=self._run_id)
        else:
            self._logger.begin(self._run_id, config)
            run = self._session.begin()  # the logger's, which is the open one
        if self._step is None:
            per_batch = 1 if pl_module.automatic_optimization else max(1, len(trainer.optimizers))
            self._step = trainer.global_step // per_batch
        self._run_id = run.id
        self._session.unwatch()
        for optimizer in trainer.optimizers:
            self._session.watch(pl_module, optimizer)
        if self._wants_curvature and (trainer.world_size > 1 or not pl_module.automatic_optimization):
            self._wants_curvature = False
            run.warner.warn(
                "integration_curvature",
                "curvature=True is for one process and automatic optimization; it is switched off",
            )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note whether the batch begins a step."""
        self._steps_before = trainer.global_step
        if not self._losses:
            self._batches.clear()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the loss if the batch ended a step."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        is_manual = not pl_module.automatic_optimization
        if loss is not None:
            # Lightning has divided it for the accumulation of gradients.
            self._losses.append(loss.detach() * (1 if is_manual else trainer.accumulate_grad_batches))
            if self._wants_curvature:
                self._batches.add((batch, batch_idx))
        if not is_manual and trainer.global_step == self._steps_before:
            return
        metrics = self._fresh(trainer.callback_metrics) if is_manual else {}
        if self._losses:
            metrics["loss"] = sum(self._losses[1:], self._losses[0]) / len(self._losses)
        if self._logger is not None:
            self._logger.logs_loss = "loss" not in metrics
        assert self._step is not None
        if trainer.is_global_zero:
            self._session.log(metrics, self._step, self._closure(trainer, pl_module))
        self._step += 1
        self._losses.clear()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Note what was logged before the validation."""
        self._seen = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the metrics of the validation, if no `SpikewatchLogger` does."""
        if trainer.sanity_checking or not trainer.is_global_zero or self._logger is not None or not self._step:
            return
        self._session.log(self._fresh(trainer.callback_metrics), self._step - 1)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Finish the run as crashed, unless Ctrl-C has ended the training."""
        self._batches.clear()
        self._session.finish()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Finish the run, unless the user began it."""
        self._batches.clear()
        self._session.finish()
        self._step = self._run_id = None

    def state_dict(self) -> dict[str, Any]:
        """Return the id of the run and the number of the next step, for the checkpoint."""
        return {"run_id": self._run_id, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the run of a checkpoint."""
        self._run_id, self._step = state_dict.get("run_id"), state_dict.get("step")

    # -- internal --

    def _fresh(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return the metrics that were set since the last call."""
        fresh = {name: value for name, value in metrics.items() if self._seen.get(name) is not value}
        self._seen = dict(metrics)
        return fresh

    def _closure(self, trainer: Any, pl_module: Any) -> Callable[[], Any] | None:
        if not self._wants_curvature:
            return None
        run = self._session.run
        if not self._batches.is_complete and run is not None:
            run.warner.warn("integration_batch", "the batches of a step are too large to be kept: no curvature")
        if not len(self._batches):
            return None
        return functools.partial(_loss_again, trainer, pl_module, self._batches)


def _hyperparameters(owner: Any) -> dict[str, Any]:
    """Return the hyperparameters of a module or a data module that has saved them."""
    found = getattr(owner, "hparams_initial", None)
    return dict(found) if found else {}


def _loss_again(trainer: Any, pl_module: Any, batches: KeptBatches) -> Any:
    """Return the mean loss of the kept batches at the present parameters, without a trace in the module's logs."""
    takes_index = len(inspect.signature(pl_module.training_step).parameters) > 1
    losses = []
    with _silent(pl_module):
        for batch, index in batches.calls():
            arguments = (batch, index) if takes_index else (batch,)
            result = trainer.strategy.training_step(*arguments)
            losses.append(result["loss"] if isinstance(result, Mapping) else result)
    return sum(losses[1:], losses[0]) / len(losses)


@contextlib.contextmanager
def _silent(pl_module: Any) -> Iterator[None]:
    """Let ``self.log`` do nothing, and set the metrics of torchmetrics back afterwards."""
    metrics = [module for module in pl_module.modules() if hasattr(module, "metric_state")]
    saved = [
        (metric, {name: list(value) if isinstance(value, list) else value for name, value in vars(metric).items()})
        for metric in metrics
    ]
    names = ("log", "log_dict")
    before = {name: vars(pl_module)[name] for name in names if name in vars(pl_module)}
    vars(pl_module).update(dict.fromkeys(names, _do_nothing))
    try:
        yield
    finally:
        for name in names:
            vars(pl_module).pop(name, None)
        vars(pl_module).update(before)
        for metric, state in saved:
            vars(metric).clear()
            vars(metric).update(state)


def _do_nothing(*arguments: Any, **named: Any) -> None:
    """Ignore what a silent module logs."""
