"""A set-up that people train with, and the registry of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from campaigns.set_ups.trial import Trial

Train = Callable[[Trial], None]


@dataclass(frozen=True, kw_only=True)
class SetUp:
    """One small training that is run bare and watched."""

    name: str
    group: str
    """Section of the table."""
    train: Train
    gap: str = ""
    """The fault that is known; empty if everything must hold."""
    says: tuple[str, ...] = ()
    """Causes of warnings that belong to the set-up, such as "optimizer" for an update rule that is not known."""
    processes: int = 1
    """Number of processes, each of which calls ``train``."""


class Catalogue:
    """Set-ups in the order of the table."""

    def __init__(self) -> None:
        self.set_ups: dict[str, SetUp] = {}

    def add(
        self,
        name: str,
        group: str,
        train: Train,
        *,
        gap: str = "",
        says: tuple[str, ...] = (),
        processes: int = 1,
    ) -> None:
        """Add a set-up. Raises `ValueError` if another has its name."""
        if name in self.set_ups:
            raise ValueError(f"two set-ups are called {name!r}")
        self.set_ups[name] = SetUp(name=name, group=group, train=train, gap=gap, says=says, processes=processes)
