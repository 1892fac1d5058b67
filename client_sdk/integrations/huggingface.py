"""Spikewatch in the Trainer of transformers, and in its subclasses such as those of TRL.

    from client_sdk.integrations.huggingface import SpikewatchCallback

    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[SpikewatchCallback()])

Importing this module also makes ``report_to="spikewatch"`` known to `TrainingArguments`.

A callback of the Trainer does not see the loss of a step: the Trainer shows it the mean over ``logging_steps``, without
the steps whose loss is not finite. This module therefore wraps `Trainer.train`; for a trainer that has the callback,
``training_step`` is observed for as long as ``train`` runs. For every other trainer nothing changes.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Unpack

from client_sdk.inbox import TrainingAlert
from client_sdk.integrations.session import InitOptions, Session, WatchOptions
from client_sdk.run import Run

try:
    from transformers import Trainer, TrainerCallback
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
except ImportError as error:
    raise ImportError(
        "client_sdk.integrations.huggingface needs transformers with its Trainer: pip install 'transformers[torch]>=5'"
    ) from error

from client_sdk.integrations.kept_batches import KeptBatches, is_plain

__all__ = ["SpikewatchCallback"]

REPORT_TO: Final = "spikewatch"
"""Name for ``report_to``, and the key of the callback's state in the Trainer's checkpoints."""
SUMMARY: Final = frozenset(
    {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}
)
"""Values that the Trainer logs once, at its end."""


class SpikewatchCallback(TrainerCallback):  # type: ignore[misc]  # the library is not type-checked
    """Records a training of the Trainer: the loss of every step, its layers, and what the Trainer logs.

    Steps are the Trainer's ``global_step``: the first optimizer step is step 1. The hyperparameters and the model's
    configuration become the configuration of the run. A training that is resumed from a checkpoint continues its run.

    Names: ``loss`` is the loss of the step and ``trainer/loss`` the mean that the Trainer logs; its ``grad_norm`` is
    ``grad_norm_before_clip``, as ``grad_norm`` is the norm that the optimizer received; what it logs once, at its end,
    has the prefix ``summary/``. Other names are the Trainer's.
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

        ``curvature`` keeps the batches of each step and computes their loss again where curvature is measured, by
        ``compute_loss`` of the trainer. ``on_alert`` is called as by `client_sdk.on_alert`. If a run is open when the
        training begins, that run is used. Raises `ConfigurationError` if an argument is unknown.
        """
        self._session = Session(init, watch, on_alert)
        self._wants_curvature = curvature
        self._batches = KeptBatches()
        self._trainer: Any = None
        self._loss: Any = None  # of the step, as far as its micro-batches have run
        self._norm: Any = None  # of its gradient before clipping
        self._knows_norm = False

    @property
    def run(self) -> Run | None:
        """The run, or None before the training begins."""
        return self._session.run

    # -- events of the Trainer --

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Begin the run, or continue that of the checkpoint, and watch the optimizer."""
        model, optimizer = objects.get("model"), objects.get("optimizer")
        name = state.trial_name if state.is_hyper_param_search else args.run_name
        saved = (state.stateful_callbacks or {}).get(REPORT_TO, {})
        run = self._session.begin(
            project=args.project, name=name, config=_config(args, state, model), run_id=saved.get("run_id")
        )
        if isinstance(state.stateful_callbacks, dict):
            state.stateful_callbacks[REPORT_TO] = {"run_id": run.id}
        self._session.unwatch()  # `auto_find_batch_size` begins the training again
        self._session.watch(model, optimizer)
        if self._trainer is None:
            run.warner.warn(
                "integration_trainer",
                "Trainer.train was not called, so the loss of each step is unknown and the Trainer's means are logged",
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Forget the last step."""
        self._loss = self._norm = None
        self._batches.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Log the loss of the step. The other processes have part in its curvature alone."""
        if self._loss is None:
            return
        if not state.is_world_process_zero:
            self._session.log({}, state.global_step, self._closure())
            self._loss = self._norm = None
            return
        metrics = {"loss": self._loss}
        self._knows_norm = self._norm is not None
        if self._knows_norm:
            metrics["grad_norm_before_clip"] = self._norm
        self._session.log(metrics, state.global_step, self._closure())
        self._loss = self._norm = None

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **objects: Any
    ) -> None:
        """Log the Trainer's metrics, evaluations among them, at its step."""
        if logs is None or not state.is_world_process_zero:
            return
        metrics = {f"summary/{name}" if name in SUMMARY else name: value for name, value in logs.items()}
        metrics = {name: value for name, value in metrics.items() if _is_number(value)}
        if "grad_norm" in metrics:
            metrics["grad_norm_before_clip"] = metrics.pop("grad_norm")
        if self._trainer is not None:  # `on_step_end` has logged the values of this step
            if "loss" in metrics:
                metrics["trainer/loss"] = metrics.pop("loss")
            if self._knows_norm:
                metrics.pop("grad_norm_before_clip", None)
        self._session.log(metrics, state.global_step)

    def on_predict(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **objects: Any
    ) -> None:
        """Log the metrics of a prediction."""
        if metrics is not None and state.is_world_process_zero:
            numbers = {name: value for name, value in metrics.items() if _is_number(value)}
            self._session.log(numbers, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Finish the run, unless the user began it."""
        self._batches.clear()
        self._session.finish()

    # -- called by the wrapper of `Trainer.train` --

    @contextlib.contextmanager
    def observing(self, trainer: Any) -> Iterator[None]:
        """Observe ``training_step`` and the clipping of ``trainer``. An exception that passes through is a crash."""
        self._trainer = trainer
        try:
            with (
                _observed(trainer, "training_step", self._after_training_step),
                _observed(trainer.accelerator, "clip_grad_norm_", self._after_clipping),
            ):
                yield
        except BaseException:
            self._session.finish()
            raise
        finally:
            self._trainer = None
            self._batches.clear()

    def _after_training_step(self, loss: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Add the loss of one micro-batch, whose sum over the step is the loss as the Trainer defines it."""
        self._loss = loss if self._loss is None else self._loss + loss
        if self._wants_curvature:
            self._batches.add((arguments, named))

    def _after_clipping(self, norm: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        self._norm = norm if norm is None or isinstance(norm, float) or hasattr(norm, "detach") else None

    def _closure(self) -> Callable[[], Any] | None:
        if not self._wants_curvature or self._trainer is None:
            return None
        run = self._session.run
        if not self._batches.is_complete and run is not None:
            run.warner.warn("integration_batch", "the batches of a step are too large to be kept: no curvature")
        return functools.partial(_loss_again, self._trainer, self._batches) if len(self._batches) else None


def _config(args: Any, state: Any, model: Any) -> dict[str, Any]:
    """Return the hyperparameters, those of a search's trial, and the configurations of the model and its adapters."""
    config: dict[str, Any] = {}
    described: Any = getattr(model, "config", None)
    if hasattr(described, "to_dict"):
        config["model"] = described.to_dict()
    elif isinstance(described, dict):
        config["model"] = described
    adapters = getattr(model, "peft_config", None)
    if isinstance(adapters, dict):
        config["peft"] = {
            name: adapter.to_dict() if hasattr(adapter, "to_dict") else adapter for name, adapter in adapters.items()
        }
    config |= args.to_dict()  # without the tokens of the user
    config |= state.trial_params or {}
    return config


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or hasattr(value, "item")


def _loss_again(trainer: Any, batches: KeptBatches) -> Any:
    """Return the loss of the kept batches at the present parameters, as the Trainer adds it up.

    What ``compute_loss`` counts on the side, such as the mean accuracy of TRL's trainers, is set back afterwards.
    """
    bookkeeping = {name: copy.deepcopy(value) for name, value in vars(trainer).items() if is_plain(value)}
    total = None
    try:
        for arguments, named in batches.calls():
            loss = _micro_batch_loss(trainer, *arguments, **named)
            total = loss if total is None else total + loss
    finally:
        vars(trainer).update(bookkeeping)
    return total


def _micro_batch_loss(trainer: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
    is_scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    if is_scaled is None:
        is_scaled = (
            trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        ) or trainer.compute_loss_func is not None
    return loss.mean() if is_scaled else loss.mean() / trainer.current_gradient_accumulation_steps


@contextlib.contextmanager
def _observed(
    owner: Any, name: str, observe: Callable[[Any, tuple[Any, ...], Mapping[str, Any]], None]
) -> Iterator[None]:
    """Call ``observe`` with the result and the arguments of every call of a method of one object, in this context."""
    missing = object()
    before = vars(owner).get(name, missing)
    method = getattr(owner, name)

    @functools.wraps(method)
    def observed(*arguments: Any, **named: Any) -> Any:
        result = method(*arguments, **named)
        observe(result, arguments, named)
        return result

    setattr(owner, name, observed)
    try:
        yield
    finally:
        if before is missing:
            vars(owner).pop(name, None)
        else:
            setattr(owner, name, before)


def _callback_of(trainer: Any) -> SpikewatchCallback | None:
    """Return the callback of a trainer; with ``report_to`` and a callback of the user's, the user's is kept."""
    found = [item for item in trainer.callback_handler.callbacks if isinstance(item, SpikewatchCallback)]
    for callback in found[:-1]:
        trainer.callback_handler.callbacks.remove(callback)
    return found[-1] if found else None


def _wrap_train() -> None:
    """Wrap `Trainer.train`, once."""
    train = Trainer.train
    if hasattr(train, "_is_observed_by_spikewatch"):
        return

    @functools.wraps(train)
    def train_observed(self: Any, *arguments: Any, **named: Any) -> Any:
        callback = _callback_of(self)
        if callback is None:
            return train(self, *arguments, **named)
        with callback.observing(self):
            return train(self, *arguments, **named)

    train_observed._is_observed_by_spikewatch = True  # type: ignore[attr-defined]
    Trainer.train = train_observed


_wrap_train()
INTEGRATION_TO_CALLBACK[REPORT_TO] = SpikewatchCallback
