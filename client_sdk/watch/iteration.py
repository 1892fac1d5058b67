"""The order of a training loop: whether a call of `log` belongs to the optimizer's last step or to its next one.

Loops log before the backward pass, between backward pass and step, or after the step. The calls alone do not tell these
apart, because logs and steps alternate in all of them. The forward pass does: between a step and the log of another
iteration there is one. Autograd numbers the nodes of its graphs in the order of their creation, so a forward pass with
gradients has happened exactly if that number has grown. No module needs a hook for this.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import torch

_count_nodes: Final[Callable[[], int] | None] = getattr(torch.autograd, "_get_sequence_nr", None)
"""Number of autograd nodes that this thread has created. Not public; checked with torch 2.13, where torch.fx uses it
too. Without it every log belongs to the last step."""


class Iteration:
    """Position within the training loop, as steps, logs and forward passes show it; shared by the watchers of a run."""

    def __init__(self) -> None:
        self._own = 0  # nodes that our probes created
        self._at_start = self._nodes()
        self._thread: int | None = None
        self._at_step: int | None = None
        self._at_log: int | None = None
        self._before_log = 0  # nodes between the last log and the step or log before it

    def note_step(self) -> None:
        """Note that an optimizer has made a step."""
        self._thread = threading.get_ident()
        self._at_step = self._nodes()

    def note_log(self) -> None:
        """Note that a call of `log` has been measured; may be called by several watchers in turn."""
        self._thread = threading.get_ident()
        now = self._nodes()
        if now != self._at_log:
            self._before_log, self._at_log = now - self._last(), now

    def is_log_of_next_step(self) -> bool:
        """Return whether a log at this moment belongs to a step to come.

        It does if there was a forward pass since the last step of any optimizer, and before the first step.
        """
        if self._at_step is None:
            return _count_nodes is not None
        return threading.get_ident() == self._thread and self._nodes() > self._at_step

    def is_step_of_last_log(self) -> bool:
        """Return whether a step at this moment is that of the last log, as there was no forward pass in between.

        The few nodes of a scaled loss (`scaler.scale(loss).backward()`) do not count.
        """
        if self._at_log is None or _count_nodes is None or threading.get_ident() != self._thread:
            return False
        since = self._nodes() - self._at_log
        return since == 0 or 2 * since < self._before_log

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Leave out the forward passes of the context, which are those of a probe."""
        before = self._nodes()
        try:
            yield
        finally:
            self._own += self._nodes() - before

    def _last(self) -> int:
        known = [at for at in (self._at_step, self._at_log) if at is not None]
        return max(known, default=self._at_start)

    def _nodes(self) -> int:
        return 0 if _count_nodes is None else _count_nodes() - self._own
