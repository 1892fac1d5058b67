"""Ways to write a training loop, and models that are more than a chain of layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn, optim

from campaigns.set_ups.loops import Bag, plain, steps
from campaigns.set_ups.set_up import Catalogue
from campaigns.set_ups.trial import FEATURES, OUTPUTS, Trial, loss_of, network


def add(catalogue: Catalogue) -> None:
    """Add the set-ups of this section."""
    loops: dict[str, Callable[[Trial], None]] = {
        "accumulated gradients": _accumulated,
        "a log for each micro-batch": partial(_accumulated, logs_parts=True),
        "clipping by norm, and the norm before it logged": _clipped,
        "clipping by value": _clipped_by_value,
        "scheduler before log": _scheduled,
        "log before the optimizer's step": _logged_before,
        "groups with different rates": _groups,
        "a group added later": _group_added,
        "a layer frozen": _frozen,
        "a layer unfrozen later": _unfrozen,
        "a layer frozen later": _frozen_later,
        "gradients kept as zeros": _zeros,
        "parameters without a gradient at some steps": _experts,
        "weight tying": _tied,
        "an average of the weights (EMA)": _averaged,
        "BatchNorm and dropout": _noisy,
        "weight normalisation": _normalised,
        "torch.compile, model": _compiled_model,
        "torch.compile, optimizer": _compiled_optimizer,
        "optimizer state loaded": _loaded,
        "optimizer replaced": _replaced,
        "two optimizers for one model": _two_optimizers,
        "GAN, two models": _adversaries,
        "LoRA": _lora,
        "LoRA added later": _lora_later,
    }
    for name, train in loops.items():
        catalogue.add(name, "Loops and models", train)
    catalogue.add("sparse gradients of an embedding, SGD", "Loops and models", plain(lambda p: optim.SGD(p, 0.1), Bag))


def adamw(model: nn.Module) -> optim.Optimizer:
    """Return the optimizer of most loops."""
    return optim.AdamW(model.parameters(), 0.01)


def _accumulated(trial: Trial, *, logs_parts: bool = False) -> None:
    import client_sdk

    model = network()
    optimizer = adamw(model)
    trial.begin(model, optimizer)
    for step, (inputs, targets) in enumerate(trial.batches()):
        optimizer.zero_grad()
        total = torch.zeros(())
        for part in (slice(0, 8), slice(8, 16)):
            loss = loss_of(model, (inputs[part], targets[part])) / 2
            loss.backward()
            total += loss.detach()
            if logs_parts and trial.is_watched:
                client_sdk.log({f"part{part.start}": loss}, step=step)
        trial.step(optimizer)
        trial.log(total)


def _clipped(trial: Trial) -> None:
    model = network()
    optimizer = adamw(model)
    trial.begin(model, optimizer)
    steps(
        trial,
        model,
        optimizer,
        before=lambda: {"grad_norm": torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)},
    )


def _clipped_by_value(trial: Trial) -> None:
    model = network()
    optimizer = adamw(model)
    trial.begin(model, optimizer)
    steps(trial, model, optimizer, before=lambda: torch.nn.utils.clip_grad_value_(model.parameters(), 0.01))


def _scheduled(trial: Trial) -> None:
    model = network()
    optimizer = adamw(model)
    schedule = optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=trial.steps + 1)
    trial.begin(model, optimizer)
    steps(trial, model, optimizer, after=schedule.step)


def _logged_before(trial: Trial) -> None:
    import client_sdk

    model = network()
    optimizer = adamw(model)
    trial.begin(model, optimizer)
    for step, batch in enumerate(trial.batches()):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        if trial.is_watched:
            client_sdk.log({"loss": loss}, step=step)
        trial.step(optimizer)
        trial.truths[step] = trial.latest


def _groups(trial: Trial) -> None:
    model = network()
    first, _, last = model.children()
    groups: list[dict[str, Any]] = [
        {"params": list(first.parameters()), "lr": 0.02},
        {"params": list(last.parameters())},
    ]
    optimizer = optim.AdamW(groups, lr=0.001)
    trial.begin(model, optimizer)
    steps(trial, model, optimizer)


def _group_added(trial: Trial) -> None:
    model = network()
    first, last = model[0], model[2]  # type: ignore[index]
    optimizer = optim.AdamW(first.parameters(), 0.01)
    trial.begin(model, optimizer)
    for step, batch in enumerate(trial.batches()):
        if step == 3:
            optimizer.add_param_group({"params": list(last.parameters())})
        model.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        if step < 3:  # the optimizer does not have the last layer yet, so it receives no gradient of it
            last.zero_grad()
        trial.step(optimizer)
        trial.log(loss)


def _frozen(trial: Trial) -> None:
    model = network()
    model[0].requires_grad_(False)  # type: ignore[index]
    optimizer = adamw(model)
    trial.absent = ("0.weight", "0.bias")
    trial.begin(model, optimizer)
    steps(trial, model, optimizer)


def _unfrozen(trial: Trial) -> None:
    model = network()
    first: Any = model[0]  # type: ignore[index]
    first.requires_grad_(False)
    optimizer = adamw(model)
    trial.begin(model, optimizer)
    steps(trial, model, optimizer, at=3, change=lambda: first.requires_grad_(True))


def _frozen_later(trial: Trial) -> None:
    model = network()
    first: Any = model[0]  # type: ignore[index]
    optimizer = adamw(model)
    trial.begin(model, optimizer)
    steps(trial, model, optimizer, at=4, change=lambda: first.requires_grad_(False))


def _zeros(trial: Trial) -> None:
    model = network()
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9)
    trial.begin(model, optimizer)
    steps(trial, model, optimizer, keeps_gradients=True)


class _Experts(nn.Module):
    """Two experts, of which every batch uses one."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(FEATURES, OUTPUTS) for _ in range(2)])
        self.turn = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.turn += 1
        result: Tensor = self.experts[self.turn % 2](inputs)
        return result


def _experts(trial: Trial) -> None:
    torch.manual_seed(0)
    model = _Experts()
    optimizer = adamw(model)
    trial.begin(model, optimizer)
    steps(trial, model, optimizer)


class _Tied(nn.Module):
    """One matrix on the way in and on the way out."""

    def __init__(self) -> None:
        super().__init__()
        self.way_in = nn.Linear(FEATURES, FEATURES, bias=False)
        self.way_out = nn.Linear(FEATURES, FEATURES, bias=False)
        self.way_out.weight = self.way_in.weight

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.way_out(torch.tanh(self.way_in(inputs)))[:, :OUTPUTS]
        return result


def _tied(trial: Trial) -> None:
    torch.manual_seed(0)
    model = _Tied()
    optimizer = adamw(model)
    trial.begin(model, optimizer)
    steps(trial, model, optimizer)


def _averaged(trial: Trial) -> None:
    model = network()
    optimizer = adamw(model)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    trial.begin(model, optimizer)
    steps(trial, model, optimizer, after=lambda: average.update_parameters(model))


def _noisy(trial: Trial) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, OUTPUTS)
    )
    optimizer = adamw(model)
    trial.begin(model, optimizer)
    steps(trial, model, optimizer)


def _normalised(trial: Trial) -> None:
    model = network()
    nn.utils.parametrizations.weight_norm(model[0])  # type: ignore[index]
    optimizer = adamw(model)
    trial.begin(model, optimizer)
    steps(trial, model, optimizer)


def _compiled_model(trial: Trial) -> None:
    model = network()
    optimizer = adamw(model)
    compiled: Any = torch.compile(model, backend="aot_eager")
    trial.begin(compiled, optimizer)
    steps(trial, compiled, optimizer)


def _compiled_optimizer(trial: Trial) -> None:
    model = network()
    optimizer = adamw(model)
    trial.begin(model, optimizer)
    step = torch.compile(optimizer.step, backend="aot_eager")
    steps(trial, model, optimizer, by=step)


def _loaded(trial: Trial) -> None:
    model = network()
    optimizer = adamw(model)
    trial.begin(model, optimizer)
    steps(
        trial, model, optimizer, at=4, change=lambda: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    )


def _replaced(trial: Trial) -> None:
    trial.steps = 60  # the SDK waits some steps until it says that the optimizer makes none
    model = network()
    first = adamw(model)
    trial.begin(model, first)
    second = optim.SGD(model.parameters(), 0.05)
    for step, batch in enumerate(trial.batches()):
        optimizer = first if step < 4 else second
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        trial.step(optimizer)
        trial.log(loss)


def _two_optimizers(trial: Trial) -> None:
    model = network()
    first = optim.AdamW(model[0].parameters(), 0.01)  # type: ignore[index]
    second = optim.SGD(model[2].parameters(), 0.01)  # type: ignore[index]
    trial.begin(model, first, second)
    steps(trial, model, first, second, by=lambda: (first.step(), second.step()))


class _Named(nn.Module):
    """A model whose parameters have a name of their own."""

    def __init__(self, name: str, width: int, out: int) -> None:
        super().__init__()
        self.add_module(name, nn.Linear(width, out))

    def forward(self, inputs: Tensor) -> Tensor:
        (only,) = self.children()
        result: Tensor = only(inputs)
        return result


def _adversaries(trial: Trial) -> None:
    torch.manual_seed(0)
    generator, critic = _Named("generator", 3, FEATURES), _Named("critic", FEATURES, 1)
    first, second = optim.Adam(generator.parameters(), 0.01), optim.Adam(critic.parameters(), 0.01)
    trial.begin(generator, first)
    trial.also(critic, second)
    for inputs, _ in trial.batches():
        noise = torch.randn(16, 3)

        def both(inputs: Tensor = inputs, noise: Tensor = noise) -> None:
            second.step()
            first.step()

        second.zero_grad()
        first.zero_grad()
        made = generator(noise)
        critic_loss = critic(made.detach()).mean() - critic(inputs).mean()
        critic_loss.backward()
        grads = [value.grad for value in critic.parameters()]
        loss = -critic(made).mean()
        loss.backward(inputs=list(generator.parameters()))
        assert all(value.grad is grad for value, grad in zip(critic.parameters(), grads, strict=True))
        trial.step(first, both)
        trial.log(loss)


def _adapted(model: nn.Module) -> Any:
    from peft import LoraConfig, inject_adapter_in_model

    return inject_adapter_in_model(LoraConfig(r=2, target_modules=["0", "2"]), model)


def _lora(trial: Trial) -> None:
    model = _adapted(network())
    trial.absent = tuple(name for name, value in model.named_parameters() if not value.requires_grad)
    optimizer = adamw(model)
    trial.begin(model, optimizer)
    steps(trial, model, optimizer)


def _lora_later(trial: Trial) -> None:
    model = network()
    optimizer = adamw(model)
    trial.begin(model, optimizer)
    trial.absent = ("0.weight", "0.bias", "2.weight", "2.bias")  # renamed when they move below their adapters

    def adapt() -> None:
        _adapted(model)
        adapters = [value for name, value in model.named_parameters() if "lora_" in name]
        optimizer.add_param_group({"params": adapters})

    steps(trial, model, optimizer, at=3, change=adapt)
    trial.absent = (*trial.absent, *(name for name, value in model.named_parameters() if not value.requires_grad))
