"""Trainings whose loop belongs to a framework, through `client_sdk.integrations`."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim

import client_sdk
from campaigns.set_ups.loops import steps
from campaigns.set_ups.set_up import Catalogue
from campaigns.set_ups.trial import FEATURES, OUTPUTS, Trial, loss_of, network

WATCH: Any = {"every": 1, "precision": "exact"}


def add(catalogue: Catalogue) -> None:
    """Add the set-ups of this section."""
    catalogue.add("Trainer of transformers", "Frameworks", _trainer())
    catalogue.add("Trainer, accumulated, bf16, clipped", "Frameworks", _trainer(
        gradient_accumulation_steps=2, bf16=True, max_grad_norm=0.05
    ))  # fmt: skip
    catalogue.add("Trainer, Adafactor", "Frameworks", _trainer(optim="adafactor"))
    catalogue.add("Trainer, DDP on 2 processes", "Frameworks", _trainer(ddp_backend="gloo"), processes=2)
    catalogue.add("TRL SFTTrainer with LoRA", "Frameworks", _sft)
    catalogue.add("Lightning", "Frameworks", _lightning)
    catalogue.add("Lightning, two optimizers", "Frameworks", _lightning_manual)
    catalogue.add("Accelerate", "Frameworks", _accelerate)
    catalogue.add("Keras model on torch, with torch's optimizer", "Frameworks", _keras)
    catalogue.add(
        "Keras on torch, fit()",
        "Frameworks",
        _keras_fit,
        gap="Keras steps optimizers of its own, which are not torch's",
    )


class _WithLoss(nn.Module):
    """A model as the Trainer takes it: it returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": loss_of(self.net, (inputs, targets))}


def _observer(trial: Trial) -> Any:
    """Return a callback of the Trainer that takes the truth of each step."""
    from transformers import TrainerCallback

    class Observer(TrainerCallback):  # type: ignore[misc]  # the library is not type-checked
        def on_train_begin(self, *_: Any, model: Any, optimizer: Any, **__: Any) -> None:
            trial.observe(model, optimizer)

    return Observer()


def _callbacks(trial: Trial) -> list[Any]:
    from client_sdk.integrations.huggingface import SpikewatchCallback

    watched = [SpikewatchCallback(project=trial.project, watch=WATCH)] if trial.is_watched else []
    return [_observer(trial), *watched]


def _trainer(**given: Any) -> Callable[[Trial], None]:
    def train(trial: Trial) -> None:
        from transformers import Trainer, TrainingArguments

        trial.first_step = 1
        options = {
            "per_device_train_batch_size": 4, "max_steps": trial.steps, "learning_rate": 0.01, "use_cpu": True,
            "logging_steps": 3, "save_strategy": "no", "disable_tqdm": True, "report_to": "none", **given,
        }  # fmt: skip
        rows = [
            {"inputs": one, "targets": other}
            for inputs, targets in trial.batches()
            for one, other in zip(inputs, targets, strict=True)
        ]
        with tempfile.TemporaryDirectory() as folder:
            Trainer(
                model=_WithLoss(),
                args=TrainingArguments(output_dir=folder, **options),
                train_dataset=rows,
                callbacks=_callbacks(trial),
            ).train()

    return train


def _sft(trial: Trial) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    trial.first_step = 1
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(32)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, per_device_train_batch_size=4, max_steps=trial.steps, learning_rate=0.01, use_cpu=True,
            bf16=False, logging_steps=3, save_strategy="no", disable_tqdm=True, report_to="none", max_length=16,
            gradient_checkpointing=False,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(
                [{"text": " ".join(f"w{(3 * row + word) % 32}" for word in range(12))} for row in range(32)]
            ),
            processing_class=PreTrainedTokenizerFast(
                tokenizer_object=words, unk_token="w0", pad_token="w1", eos_token="w2"
            ),
            peft_config=LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True),
            callbacks=_callbacks(trial),
        )
        trainer.train()
    trial.absent = tuple(name for name, value in trainer.model.named_parameters() if not value.requires_grad)


def _fit(trial: Trial, module: Any) -> None:
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader

    from client_sdk.integrations.lightning import SpikewatchCallback

    warnings.filterwarnings("ignore", module="lightning")

    class Observer(pl.Callback):  # type: ignore[misc]  # the library is not type-checked
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            within = pl_module.automatic_optimization
            trial.observe(pl_module, trainer.optimizers[-1], computes_within=within)

    batches: Any = trial.batches()  # a list is as good as a data set
    watched = [SpikewatchCallback(project=trial.project, watch=WATCH)] if trial.is_watched else []
    pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=5, callbacks=[Observer(), *watched],
    ).fit(module, DataLoader(batches, batch_size=None))  # fmt: skip


def _lightning(trial: Trial) -> None:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):  # type: ignore[misc]  # the library is not type-checked
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any) -> Tensor:
            return loss_of(self.net, batch)

        def configure_optimizers(self) -> Any:
            optimizer = optim.AdamW(self.parameters(), 0.01)
            schedule = optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    _fit(trial, Module())


def _lightning_manual(trial: Trial) -> None:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):  # type: ignore[misc]  # the library is not type-checked
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.first, self.second = nn.Linear(FEATURES, OUTPUTS), nn.Linear(FEATURES, OUTPUTS)

        def training_step(self, batch: Any) -> Tensor:
            optimizers = self.optimizers()
            loss = loss_of(lambda inputs: self.first(inputs) + self.second(inputs), batch)
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in optimizers:
                optimizer.step()
            return loss

        def configure_optimizers(self) -> Any:
            return optim.Adam(self.first.parameters(), 0.01), optim.SGD(self.second.parameters(), 0.01)

    torch.manual_seed(0)
    # The truth is taken around the second optimizer's step.
    trial.absent = ("first.weight", "first.bias")
    _fit(trial, Module())


def _accelerate(trial: Trial) -> None:
    from accelerate import Accelerator

    from client_sdk.integrations.accelerate import SpikewatchTracker

    tracker = SpikewatchTracker(trial.project, watch=WATCH)
    accelerator = Accelerator(cpu=True, log_with=tracker if trial.is_watched else None)
    model = network()
    model, optimizer = accelerator.prepare(model, optim.AdamW(model.parameters(), 0.01))
    accelerator.init_trackers(trial.project)
    if trial.is_watched:
        tracker.watch(model, optimizer)
    trial.observe(model, optimizer)
    for step, batch in enumerate(trial.batches()):
        loss = loss_of(model, batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.log({"loss": loss}, step=step)
    accelerator.end_training()


def _keras_model() -> Any:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.layers.Input((FEATURES,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(OUTPUTS)]
    )


def _keras(trial: Trial) -> None:
    model = _keras_model()
    optimizer = optim.AdamW(model.parameters(), 0.01)
    trial.begin(model, optimizer)
    steps(trial, model, optimizer)


def _keras_fit(trial: Trial) -> None:
    model = _keras_model()
    model.compile(optimizer="adamw", loss="mse")
    client_sdk.init(project=trial.project)
    client_sdk.watch(model, model.optimizer)
