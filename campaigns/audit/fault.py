"""A fault that is put into a training, and the registry of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from client_sdk.run import Run
from client_sdk.watch import watch

Train = Callable[[Run], int]
"""Trains with the run watching, and returns the step at which the fault can be seen for the first time."""

FEATURES, OUTPUTS, ROWS = 6, 3, 16


@dataclass(frozen=True, kw_only=True)
class Injection:
    """One fault in a real training of milliseconds."""

    number: int
    """Number of the fault in the table."""
    name: str
    check: str
    """Name of the check that must find it."""
    within: int
    """Steps within which it must be named, from the first one at which it can be seen."""
    train: Train
    config: tuple[tuple[str, float], ...] = ()
    """Configuration of the run."""
    processes: int = 1


class Training:
    """A small training in the usual order, at whose points a fault can be put in."""

    def __init__(self, run: Run, model: nn.Module | None = None, **options: Any) -> None:
        """Create a model, an optimizer and batches; ``options`` are those of AdamW."""
        torch.manual_seed(0)
        self.run = run
        self.model = network() if model is None else model
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            **{"lr": 0.01, "foreach": False, **options},
        )
        self.random = torch.Generator().manual_seed(1)
        self.step = 0
        self.logged: dict[str, Any] = {}
        """Scalars that the next record has beside the loss."""
        self.makes_closure = False

    def watch(self, **options: Any) -> Any:
        """Watch the training at every step."""
        return watch(self.run, self.model, self.optimizer, **{"every": 1, "curvature": "off", **options})

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return a new batch with targets that can be learnt."""
        inputs = torch.randn(ROWS, FEATURES, generator=self.random)
        return inputs, torch.sin(inputs[:, :OUTPUTS])

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean square error of a batch."""
        loss: Tensor = (self.model(batch[0]) - batch[1]).square().mean()
        return loss

    def once(
        self,
        *,
        batch: tuple[Tensor, Tensor] | None = None,
        before: Callable[[], object] | None = None,
        zero: bool = True,
    ) -> None:
        """Make one step; ``before`` is called between backward() and step()."""
        found = self.batch() if batch is None else batch
        if zero:
            self.optimizer.zero_grad()
        loss = self.loss(found)
        loss.backward()
        if before is not None:
            before()
        self.optimizer.step()
        closure = partial(self.loss, found) if self.makes_closure else None
        self.run.log({"loss": loss, **self.logged}, step=self.step, closure=closure)
        self.step += 1

    def steps(self, count: int, **options: Any) -> None:
        """Make several steps."""
        for _ in range(count):
            self.once(**options)


def network(width: int = 12, layers: int = 2) -> nn.Module:
    """Return a small network, with the same weights at every call."""
    torch.manual_seed(0)
    hidden = [part for _ in range(layers - 1) for part in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(nn.Linear(FEATURES, width), nn.Tanh(), *hidden, nn.Linear(width, OUTPUTS))
