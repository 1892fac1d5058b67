"""Inner products of vectors of the parameter space, of which this process may hold a part.

`InnerProduct` is that of a process that holds all coordinates. `SharedInnerProduct` adds up what each rank has of a
sharded model. Small results only: no vector ever leaves a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import starmap

import torch
from torch import Tensor

from client_sdk.curvature.exchange import Exchange


class InnerProduct:
    """Inner products of whole vectors."""

    def dots(self, *pairs: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Return the inner product of each pair of vectors [N], 0-d, in their type."""
        return list(starmap(torch.dot, pairs))

    def lengths(self, *vectors: Tensor) -> list[Tensor]:
        """Return the Euclidean norm of each vector [N], 0-d, in its type."""
        return list(map(torch.linalg.vector_norm, vectors))

    def matrix(self, rows: Tensor, *columns: Tensor) -> Tensor:
        """Return the inner products of the vectors in ``rows`` [m, N] with those in all of ``columns`` [k, N].

        The shape is (m, Σ k), the type float64 where the device has it.
        """
        product = torch.cat([rows @ each.T for each in columns], 1)
        return product if product.device.type == "mps" else product.double()

    def counted(self, vectors: Tensor) -> Tensor:
        """Return ``vectors`` [..., N] without the coordinates that other ranks add, which become zero."""
        return vectors

    def noise(self, like: Tensor) -> Tensor:
        """Return a random vector in the shape [N] and type of ``like``, always the same one."""
        random = torch.Generator(like.device).manual_seed(0)
        return torch.randn(like.shape, generator=random, device=like.device, dtype=like.dtype)


WHOLE = InnerProduct()
"""Inner product of a process that holds all coordinates."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The part of one parameter that this rank holds."""

    size: int
    """Number of coordinates."""
    counts: bool
    """Whether they are added to those of the other ranks; False for a further copy of what another rank adds."""
    number: int
    """Position of this part among those of a complete copy of the parameter."""


class SharedInnerProduct(InnerProduct):
    """Inner products of vectors whose coordinates several ranks hold together; every rank finds the same numbers.

    All ranks must make the same calls in the same order. Each call waits for the device and for the other ranks, and
    raises `AbandonedError` once one of them has failed.
    """

    def __init__(self, exchange: Exchange, parts: Sequence[Part]) -> None:
        """Add up vectors that have ``parts`` one after the other on this rank."""
        self._exchange = exchange
        self._parts = parts
        self._counted = _ranges(parts)

    def dots(self, *pairs: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Return the inner product of each pair of vectors, 0-d, in their type."""
        values = [self._sum(first, second) for first, second in pairs]
        sums = self._exchange.add("inner product", torch.stack(values))
        return [value.to(first) for value, (first, _) in zip(sums, pairs, strict=True)]

    def lengths(self, *vectors: Tensor) -> list[Tensor]:
        """Return the Euclidean norm of each vector, 0-d, in its type."""
        values = [self._sum(vector, vector) for vector in vectors]
        sums = self._exchange.add("inner product", torch.stack(values))
        return [value.sqrt().to(vector) for value, vector in zip(sums, vectors, strict=True)]

    def matrix(self, rows: Tensor, *columns: Tensor) -> Tensor:
        """Return the inner products of the vectors in ``rows`` with those in all of ``columns``, as for whole ones."""
        product = rows.new_zeros(len(rows), sum(map(len, columns)))
        for part in self._counted:
            product += torch.cat([rows[:, part] @ each[:, part].T for each in columns], 1)
        return self._exchange.add("inner products", product)

    def counted(self, vectors: Tensor) -> Tensor:
        """Return ``vectors`` [..., N] without the coordinates that other ranks add, which become zero."""
        kept = torch.zeros_like(vectors)
        for part in self._counted:
            kept[..., part] = vectors[..., part]
        return kept

    def noise(self, like: Tensor) -> Tensor:
        """Return a random vector like ``like``; copies of a part have the same numbers on all ranks."""
        pieces = []
        for at, part in enumerate(self._parts):
            random = torch.Generator(like.device).manual_seed(at * 2**20 + part.number)
            pieces.append(torch.randn(part.size, generator=random, device=like.device, dtype=like.dtype))
        return torch.cat(pieces)

    def _sum(self, first: Tensor, second: Tensor) -> Tensor:
        return sum((torch.dot(first[part], second[part]) for part in self._counted), first.new_zeros(()))


def _ranges(parts: Sequence[Part]) -> list[slice]:
    """Return the ranges of coordinates that count, as few as possible."""
    ranges: list[slice] = []
    start = 0
    for part in parts:
        stop = start + part.size
        if part.counts and part.size:
            if ranges and ranges[-1].stop == start:
                ranges[-1] = slice(ranges[-1].start, stop)
            else:
                ranges.append(slice(start, stop))
        start = stop
    return ranges
