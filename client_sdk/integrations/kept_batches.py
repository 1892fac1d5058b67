"""The batches of one training step, kept so that curvature can be measured on them. Imports torch.

Nothing is copied: the tensors are those of the training, without their graph. They are released when the next step
begins. A step whose batches are larger than `MAX_BYTES` is not kept.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

MAX_BYTES: Final = 512 * 1024**2
"""Bytes of one step's batches that are kept at most."""


class KeptBatches:
    """Arguments of the calls that made up one step, such as the micro-batches of an accumulated gradient."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._calls: list[Any] = []

    def clear(self) -> None:
        """Release the batches of the last step."""
        self._calls.clear()
        self._bytes = 0

    def add(self, call: Any) -> None:
        """Keep the arguments of one call: tensors, and containers of them."""
        self._bytes += size_of(call)
        if self.is_complete:
            self._calls.append(detached(call))
        else:
            self._calls.clear()

    @property
    def is_complete(self) -> bool:
        """Whether every batch of the step was kept."""
        return self._bytes <= self._max_bytes

    def calls(self) -> list[Any]:
        """Return the kept arguments in fresh containers, which the training's code may change."""
        return [detached(call) for call in self._calls]

    def __len__(self) -> int:
        return len(self._calls)


def detached(value: Any) -> Any:
    """Return ``value`` with new containers and without the graphs of its tensors; other objects are shared."""
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) in (list, tuple):
        return type(value)(detached(item) for item in value)
    if isinstance(value, tuple):
        return value._make(detached(item) for item in value) if hasattr(value, "_make") else value
    if isinstance(value, Mapping):
        items = {key: detached(item) for key, item in value.items()}
        if type(value) is dict:
            return items
        try:  # transformers' BatchEncoding and others, which their code may read by attribute
            fresh = copy.copy(value)
            fresh.update(items)  # type: ignore[attr-defined]
        except Exception:
            return items
        return fresh
    return value


def size_of(value: Any) -> int:
    """Return the bytes of the tensors in ``value``."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(size_of(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(size_of(item) for item in value)
    return 0


def is_plain(value: Any, depth: int = 4) -> bool:
    """Return whether ``value`` is a number, a text, or a small container of these: bookkeeping, not data."""
    if value is None or isinstance(value, bool | int | float | str):
        return True
    if depth and isinstance(value, dict) and len(value) <= 1_000:
        return all(is_plain(item, depth - 1) for item in value.values())
    if depth and isinstance(value, list | tuple) and len(value) <= 10_000:
        return all(is_plain(item, depth - 1) for item in value)
    return False
