"""The training loop that most set-ups share, and models that several of them train."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from campaigns.set_ups.trial import OUTPUTS, Trial, loss_of, network

Make = Callable[[Iterable[nn.Parameter]], Any]
Batch = tuple[Tensor, Tensor]


def steps(
    trial: Trial,
    model: Any,
    *optimizers: Any,
    objective: Callable[[Any, Batch], Tensor] = loss_of,
    at: int = -1,
    change: Callable[[], Any] | None = None,
    before: Callable[[], dict[str, Any] | None] | None = None,
    by: Callable[[], Any] | None = None,
    after: Callable[[], Any] | None = None,
    log: Callable[[Tensor], None] | None = None,
    keeps_gradients: bool = False,
) -> None:
    """Train ``model``; the truth is taken of the first of ``optimizers``.

    ``change`` is called before step number ``at``; ``before``, ``by`` and ``after`` are called before each step of the
    optimizer, in place of it, and after it. What ``before`` returns is logged too. ``log`` takes the place of
    `Trial.log`. With ``keeps_gradients`` they are set to zero instead of None.
    """
    for step, batch in enumerate(trial.batches()):
        if step == at and change is not None:
            change()
        for optimizer in optimizers:
            optimizer.zero_grad(**({"set_to_none": False} if keeps_gradients else {}))
        loss = objective(model, batch)
        loss.backward()
        found = None if before is None else before()
        trial.step(optimizers[0], by)
        if after is not None:
            after()
        if log is not None:
            log(loss)
        else:
            trial.log(loss, **(found or {}))


def plain(make: Make, model_of: Callable[[], nn.Module] = network, **changes: Any) -> Callable[[Trial], None]:
    """Return a training with the optimizer that ``make`` returns. ``changes`` are set on the trial."""

    def train(trial: Trial) -> None:
        _set(trial, changes)
        model = model_of()
        optimizer = make(model.parameters())
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()
        trial.begin(model, optimizer)
        steps(trial, model, optimizer)

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


class Bag(nn.Module):
    """An embedding whose gradients are sparse."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, OUTPUTS, sparse=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the rows that the first feature of the inputs chooses."""
        result: Tensor = self.embedding((inputs[:, 0] * 10).long().clamp(0, 49))
        return result


def _set(trial: Trial, changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        setattr(trial, name, value)
