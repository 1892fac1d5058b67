"""Number formats: autocast, loss scaling, pure bfloat16, float64 and complex numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn, optim

from campaigns.set_ups.loops import Batch, steps
from campaigns.set_ups.set_up import Catalogue
from campaigns.set_ups.trial import FEATURES, OUTPUTS, Trial, loss_of, network


def add(catalogue: Catalogue) -> None:
    """Add the set-ups of this section."""
    catalogue.add("autocast to bfloat16", "Precision", _autocast)
    catalogue.add("float16 with a GradScaler that skips steps", "Precision", _scaled)
    catalogue.add("pure bfloat16, AdamW", "Precision", _cast(torch.bfloat16, lambda p: optim.AdamW(p, 0.01)))
    catalogue.add(
        "pure bfloat16, updates lost to rounding",
        "Precision",
        _cast(torch.bfloat16, lambda p: optim.AdamW(p, 1e-5, weight_decay=0.0)),
    )
    catalogue.add("pure bfloat16, SGD", "Precision", _cast(torch.bfloat16, lambda p: optim.SGD(p, 0.05, momentum=0.9)))
    catalogue.add("float64", "Precision", _cast(torch.float64, lambda p: optim.AdamW(p, 0.01)))
    catalogue.add("complex parameters", "Precision", _complex)


def _cast(dtype: torch.dtype, make: Callable[..., optim.Optimizer]) -> Callable[[Trial], None]:
    def train(trial: Trial) -> None:
        model = network().to(dtype)
        optimizer = make(model.parameters())
        trial.begin(model, optimizer)
        steps(
            trial,
            model,
            optimizer,
            objective=lambda model, batch: loss_of(model, (batch[0].to(dtype), batch[1].to(dtype))),
        )

    return train


def _autocast(trial: Trial) -> None:
    model = network()
    optimizer = optim.AdamW(model.parameters(), 0.01)
    trial.begin(model, optimizer)

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(model, batch)

    def clip() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)

    steps(trial, model, optimizer, objective=objective, before=clip)


def _scaled(trial: Trial) -> None:
    model = network()
    optimizer = optim.AdamW(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trial.begin(model, optimizer)
    for step, batch in enumerate(trial.batches()):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        scaler.scale(loss).backward()
        if step == 4:
            next(model.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]  # backward has made it
            scaler.step(optimizer)
            scaler.update()
            continue  # this step was skipped, and is not logged
        trial.step(optimizer, lambda: scaler.step(optimizer))
        scaler.update()
        trial.log(loss)


class _Complex(nn.Module):
    """A model with a complex weight, of which each number counts as two."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(FEATURES, OUTPUTS, dtype=torch.complex64))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs.to(torch.complex64) @ self.weight).abs()


def _complex(trial: Trial) -> None:
    torch.manual_seed(0)
    model = _Complex()
    optimizer = optim.AdamW(model.parameters(), 0.01)
    trial.begin(model, optimizer)
    steps(trial, model, optimizer)
