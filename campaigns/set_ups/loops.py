"""The training loop that most set-ups share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from campaigns.set_ups.trial import Trial, loss_of, network

Make = Callable[[Iterable[nn.Parameter]], Any]


def plain(make: Make, model_of: Callable[[], nn.Module] = network, **changes: Any) -> Callable[[Trial], None]:
    """Return a training with the optimizer that ``make`` returns. ``changes`` are set on the trial."""

    def train(trial: Trial) -> None:
        _set(trial, changes)
        model = model_of()
        optimizer = make(model.parameters())
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()
        trial.begin(model, optimizer)
        for batch in trial.batches():
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            trial.step(optimizer)
            trial.log(loss)

    return train


def with_closure(make: Make, **changes: Any) -> Callable[[Trial], None]:
    """Return a training whose optimizer evaluates the loss itself, perhaps several times a step."""

    def train(trial: Trial) -> None:
        _set(trial, changes)
        model = network()
        optimizer = make(model.parameters())
        trial.begin(model, optimizer)
        for batch in trial.batches():
            losses: list[Tensor] = []

            def closure(batch: tuple[Tensor, Tensor] = batch, losses: list[Tensor] = losses) -> Tensor:
                optimizer.zero_grad()
                with torch.enable_grad():
                    loss = loss_of(model, batch)
                loss.backward()
                losses.append(loss.detach())
                return loss

            trial.step(optimizer, lambda closure=closure: optimizer.step(closure))  # type: ignore[misc]
            trial.log(losses[0])

    return train


def _set(trial: Trial, changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        setattr(trial, name, value)
