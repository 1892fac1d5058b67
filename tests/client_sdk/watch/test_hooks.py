"""The order in which the hooks of one optimizer are called."""

from __future__ import annotations

import torch

from client_sdk.watch.hooks import StepHooks


class Observer:
    """An observer that writes its name into a list."""

    def __init__(self, name: str, called: list[str]) -> None:
        self._name, self._called = name, called

    def before_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        self._called.append(f"before {self._name}")

    def after_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        self._called.append(f"after {self._name}")


def test_hooks_that_are_last_stay_behind_those_of_later_observers() -> None:
    called: list[str] = []
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    guard = StepHooks(optimizer, Observer("guard", called), are_last=True)
    watcher = StepHooks(optimizer, Observer("watcher", called))
    optimizer.step()
    assert called == ["before watcher", "before guard", "after watcher", "after guard"]
    guard.remove()
    called.clear()
    optimizer.step()
    assert called == ["before watcher", "after watcher"]
    watcher.remove()
    StepHooks(optimizer, Observer("later", called))
    called.clear()
    optimizer.step()
    assert called == ["before later", "after later"], "a removed hook does not come back"
