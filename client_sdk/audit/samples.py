"""Samples of the values of tensors, by which a change is told from a write that changed nothing.

A sample is one small tensor made by one kernel, so that it may be taken at each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from client_sdk.stats.entry import flat

TENSORS: Final = 100  # tensors of a sample at most
VALUES: Final = 4  # values of a tensor
PLACED_EVERY: Final = 16  # samples between two looks whether tensors have moved, so that old memory is let go


class ValueSample:
    """The first values of up to `TENSORS` dense tensors of one device and dtype."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Choose tensors spread over ``tensors``, those of the most frequent device and dtype."""
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for tensor in tensors:
            if is_plain(tensor) and tensor.numel() and tensor.is_contiguous():
                kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
        fitting = max(kinds.values(), key=len, default=[])
        self._tensors = fitting[:: max(1, -(-len(fitting) // TENSORS))]
        self._views: list[Tensor] = []
        self._places: tuple[int, ...] = ()
        self._before: Tensor | None = None
        self._taken = 0

    def take(self) -> None:
        """Keep the present values. Never synchronises a device."""
        self._before = self._now(looks=self._taken % PLACED_EVERY == 0)
        self._taken += 1

    @torch.no_grad()
    def _now(self, *, looks: bool = True) -> Tensor | None:
        """Return the present values; with ``looks``, also of tensors that have been moved since the last look."""
        if not self._tensors:
            return None
        if looks:
            places = tuple(tensor.data_ptr() for tensor in self._tensors)
            if places != self._places:
                self._places = places
                self._views = [flat(tensor.detach())[:VALUES] for tensor in self._tensors]
        return torch.cat(self._views)

    def unchanged(self) -> set[int]:
        """Return the ids of the tensors whose values are those of the last `take`. Waits for the device."""
        now, before = self._now(), self._before
        if now is None or before is None or now.shape != before.shape:
            return set()
        same = [bool(part.all()) for part in (now == before).cpu().split([view.numel() for view in self._views])]
        return {id(tensor) for tensor, is_same in zip(self._tensors, same, strict=True) if is_same}

    def has_changed(self) -> bool:
        """Return whether any value differs from the last `take`. Waits for the device, so it is for rare suspicions."""
        now, before = self._now(), self._before
        return now is not None and before is not None and now.shape == before.shape and not torch.equal(now, before)


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is dense and whole in the memory of this process: no shard, no fake, no sparse one."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type != "meta"
        and not tensor.is_inference()
    )
