"""The steps of an optimizer that moves its flat tensors one after the other, told to a watcher as one step."""

from __future__ import annotations

from typing import Protocol

import torch

from client_sdk.distributed import Partition
from client_sdk.warner import Warner
from client_sdk.watch.hooks import StepObserver


class PartObserver(StepObserver, Protocol):
    """A `StepObserver` that also hears of the parts of a step."""

    def before_part(self) -> None:
        """Called before each part of a step but the first. Must not raise."""
        ...

    def after_part(self) -> None:
        """Called after each part of a step but the last. Must not raise."""
        ...

    def cancel_step(self) -> None:
        """Called if a step was begun and never completed. Must not raise."""
        ...


class PartSteps:
    """Observer of the steps of a partition's optimizer; implements `StepObserver`.

    A step of the training begins with the first of these steps and ends once all flat tensors have been moved. The
    watcher receives the optimizer of all fragments.
    """

    def __init__(self, partition: Partition, observer: PartObserver, warner: Warner) -> None:
        self._partition = partition
        self._observer = observer
        self._warner = warner
        self._moved: set[int] = set()
        self._is_open = False

    def before_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Begin a step, or its next part."""
        try:
            self._partition.note_step()
            if self._partition.has_strangers:
                self._warner.warn(
                    "new_parameters",
                    f"{type(optimizer).__name__} moves tensors that it did not have when watch() was called; they are "
                    "not measured. Call handle.remove() and watch() again on every rank",
                )
            if self._is_open and self._moved.intersection(self._partition.stepped):
                self._is_open = False  # the step before ended early, as one that a GradScaler left out
                self._observer.cancel_step()
            if not self._partition.stepped:
                return
            if self._is_open:
                self._observer.before_part()
                return
            self._is_open, self._moved = True, set()
            self._partition.steps += 1
            self._observer.before_step(self._partition.whole, args, kwargs)
        except Exception as error:
            self._warner.caught("statistics", "reading the optimizer before its step", error)

    def after_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """End a part of a step, and with the last one the step."""
        try:
            if not self._is_open or not self._partition.stepped:
                return
            self._moved.update(self._partition.stepped)
            if len(self._moved) < self._partition.count:
                self._observer.after_part()
                return
            self._is_open = False
            self._observer.after_step(self._partition.whole, args, kwargs)
        except Exception as error:
            self._warner.caught("statistics", "measuring layer statistics", error)
