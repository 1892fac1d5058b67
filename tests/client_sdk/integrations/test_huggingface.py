"""The Trainer of transformers and of TRL, on tiny language models, with what a real server has stored of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

import client_sdk
from client_sdk.integrations.huggingface import SpikewatchCallback
from client_sdk.read import Run

Read = Callable[[], Run]


class Tokens(torch.utils.data.Dataset[dict[str, Any]]):
    """Sixty-four sequences of sixteen tokens."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = torch.randint(0, 32, (16,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens.clone()}


class WithNaN(Trainer):  # type: ignore[misc]  # the library is not type-checked
    """A Trainer whose loss is NaN at one step, with the gradient of an ordinary one."""

    nan_step = 3

    def compute_loss(self, *arguments: Any, **named: Any) -> Any:
        loss = super().compute_loss(*arguments, **named)
        return loss + math.nan if self.state.global_step + 1 == self.nan_step else loss


class Broken(Trainer):  # type: ignore[misc]  # the library is not type-checked
    """A Trainer whose training raises at step 3."""

    def training_step(self, *arguments: Any, **named: Any) -> Any:
        if self.state.global_step == 2:
            raise RuntimeError("the data ended early")
        return super().training_step(*arguments, **named)


def small_model() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        loss_type="ForCausalLMLoss",
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def trainer_of(callbacks: list[Any], kind: Any = Trainer, model: Any = None, **given: Any) -> Any:
    """Return a Trainer for eight steps of four sequences, in a folder of the test."""
    arguments = {
        "output_dir": "out", "per_device_train_batch_size": 4, "max_steps": 8, "learning_rate": 1e-2, "use_cpu": True,
        "logging_steps": 5, "save_strategy": "no", "disable_tqdm": True, "report_to": "none", **given,
    }  # fmt: skip
    return kind(
        model=small_model() if model is None else model,
        args=TrainingArguments(**arguments),
        train_dataset=Tokens(),
        eval_dataset=Tokens(),
        callbacks=callbacks,
    )


def true_losses(**given: Any) -> list[float]:
    """Return the loss of each step as the Trainer itself logs it when it logs every step."""
    trainer = trainer_of([], **{**given, "logging_steps": 1, "eval_strategy": "no"})
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights_of(trainer: Any) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"gradient_accumulation_steps": 3, "optim": "adafactor"},
        {"bf16": True, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"},
    ],
    ids=["defaults", "accumulated", "bf16"],
)
def test_every_loss_is_stored_once_and_the_weights_are_the_same(
    given: dict[str, Any], stored: Read, project: str
) -> None:
    bare = trainer_of([], **given)
    bare.train()
    watched = trainer_of([SpikewatchCallback(project=project)], **given)
    watched.train()
    assert all(map(torch.equal, weights_of(bare), weights_of(watched)))
    run = stored()
    loss = run.series("loss")
    assert loss.step.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    np.testing.assert_allclose(loss.value, true_losses(**given), rtol=1e-6)
    assert run.series("trainer/loss").step.tolist() == [5]
    assert run.summary.state == "finished"
    assert run.summary.config["learning_rate"] == 1e-2
    assert run.summary.config["model"]["n_embd"] == 16


def test_layers_learning_rate_and_evaluations_are_on_their_steps(stored: Read, project: str) -> None:
    callback = SpikewatchCallback(project=project, watch={"every": 1, "precision": "exact"})
    trainer = trainer_of([callback], eval_strategy="steps", eval_steps=3, eval_on_start=True, max_grad_norm=0.5)
    trainer.train()
    run = stored()
    norms = run.layers("grad_norm")
    assert norms.step.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert "transformer.h.1.mlp.c_fc.weight" in norms.layers
    assert run.series("eval_loss").step.tolist() == [0, 3, 6, 8]
    history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    np.testing.assert_array_equal(run.series("eval_loss").value, [entry["eval_loss"] for entry in history])
    before, after = run.series("grad_norm_before_clip"), run.series("grad_norm")
    assert before.step.tolist() == after.step.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    np.testing.assert_allclose(after.value, np.minimum(before.value, 0.5), rtol=1e-4)


def test_a_loss_that_the_nan_filter_hides_is_stored(stored: Read, project: str) -> None:
    trainer = trainer_of([SpikewatchCallback(project=project)], WithNaN, logging_nan_inf_filter=True)
    trainer.train()
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    loss = stored().series("loss")
    assert loss.step.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert np.isnan(loss.value).tolist() == [False, False, True] + 5 * [False]


def test_a_training_that_is_resumed_continues_its_run(stored: Read, project: str) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4}
    first = trainer_of([SpikewatchCallback(project=project)], **saving)
    first.args.max_steps = 6  # the schedule is that of eight steps where it counts, in the second part
    first.train()
    again = trainer_of([SpikewatchCallback(project=project)], **saving)
    again.train(resume_from_checkpoint="out/checkpoint-4")
    run = stored()  # one run, not two
    loss = run.series("loss")
    assert loss.step.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert run.series("loss", attempt=0).step.tolist() == [1, 2, 3, 4, 5, 6]
    assert run.summary.state == "finished"


def test_an_exception_makes_the_run_crashed(stored: Read, project: str) -> None:
    with pytest.raises(RuntimeError, match="the data ended early"):
        trainer_of([SpikewatchCallback(project=project)], Broken).train()
    run = stored()
    assert run.summary.state == "crashed"
    assert run.series("loss").step.tolist() == [1, 2]


def test_report_to_is_enough_and_a_later_evaluation_is_added(stored: Read, project: str) -> None:
    trainer = trainer_of([], report_to="spikewatch", project=project, run_name="by name")
    trainer.train()
    assert trainer.model.training
    trainer.evaluate()
    run = stored()
    assert run.name == "by name"
    assert run.series("loss").step.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert run.series("eval_loss").step.tolist() == [8]
    assert run.summary.state == "finished"


def test_a_run_that_is_open_is_used_and_stays_open(stored: Read, project: str) -> None:
    mine = client_sdk.init(project=project, name="mine")
    trainer_of([SpikewatchCallback(project="another")], report_to="spikewatch").train()
    assert mine.active
    client_sdk.finish()
    run = stored()
    assert (run.id, run.name) == (mine.id, "mine")
    assert run.series("loss").step.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_curvature_is_that_of_the_steps_batches(accumulate: int, stored: Read, project: str) -> None:
    given = {"gradient_accumulation_steps": accumulate, "label_smoothing_factor": 0.1}
    bare = trainer_of([], **given)
    bare.train()
    callback = SpikewatchCallback(project=project, curvature=True, watch={"curvature_every": 1, "budget": math.inf})
    watched = trainer_of([callback], **given)
    watched.train()
    assert all(map(torch.equal, weights_of(bare), weights_of(watched)))
    run = stored()
    assert len(run.series("lambda_grad").step) >= 5
    assert np.isfinite(run.series("lambda_max").value).all()
    assert not [name for name in client_sdk_warnings(callback) if name.startswith("integration")]


def client_sdk_warnings(callback: SpikewatchCallback) -> list[str]:
    """Return the causes of the warnings of the callback's run."""
    return list(callback.run.status().warnings) if callback.run is not None else []


def tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = Tokenizer(WordLevel({f"w{number}": number for number in range(32)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w1", eos_token="w2")


def sft(callbacks: list[Any], model: Any) -> Any:
    """Return TRL's SFTTrainer for six steps."""
    from datasets import Dataset

    rows = [{"text": " ".join(f"w{(3 * row + word) % 32}" for word in range(12))} for row in range(32)]
    config = SFTConfig(
        output_dir="out", per_device_train_batch_size=4, max_steps=6, learning_rate=1e-2, use_cpu=True, bf16=False,
        logging_steps=4, save_strategy="no", disable_tqdm=True, report_to="none", max_length=16,
        gradient_checkpointing=False,
    )  # fmt: skip
    return SFTTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer(),
        callbacks=callbacks,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")  # peft and trl call what transformers renames
def test_trl_and_lora_are_recorded(stored: Read, project: str, monkeypatch: pytest.MonkeyPatch) -> None:

    def adapted() -> Any:
        return get_peft_model(small_model(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))

    bare = sft([], adapted())
    bare.train()
    watched = sft([SpikewatchCallback(project=project, curvature=True)], adapted())
    watched.train()
    assert all(map(torch.equal, weights_of(bare), weights_of(watched)))
    numbers = ("entropy", "mean_token_accuracy", "num_tokens")  # what the probe counted must not be in these
    assert [[entry.get(name) for name in numbers] for entry in bare.state.log_history] == [
        [entry.get(name) for name in numbers] for entry in watched.state.log_history
    ]
    run = stored()
    assert run.series("loss").step.tolist() == [1, 2, 3, 4, 5, 6]
    layers = run.layers("update_norm").layers
    assert len(layers) == 4
    assert all("lora_" in name for name in layers)
    assert run.series("mean_token_accuracy").step.tolist() == [4, 6]  # TRL adds the rest to the summary
    assert run.summary.config["peft"]["default"]["r"] == 2


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(client_sdk.ConfigurationError, match="'evry' in watch is unknown"):
        SpikewatchCallback(watch={"evry": 2})  # type: ignore[arg-type]
    with pytest.raises(client_sdk.ConfigurationError, match="'projekt' is unknown"):
        SpikewatchCallback(projekt="x")  # type: ignore[call-arg]
