"""Encoding of a stream of pieces as a stream of bytes, in memory that does not grow with the run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Protocol, TypeVar

T_contra = TypeVar("T_contra", contravariant=True)
T = TypeVar("T")


class Encoder(Protocol[T_contra]):
    """Encoder of one file. `end` or `close` is called last."""

    def add(self, piece: T_contra) -> bytes:
        """Encode a piece, and return the bytes that are ready, perhaps none."""

    def end(self) -> bytes:
        """Return the remaining bytes of the file."""

    def close(self) -> None:
        """Release all resources. May be called at any time, and more than once."""


async def encoded(
    pieces: AsyncGenerator[T, None], encoder: Encoder[T], each: Callable[[T], None] | None = None
) -> AsyncGenerator[bytes, None]:
    """Encode pieces in threads, and yield the bytes of the file. ``each`` is called after each piece.

    Both ``pieces`` and ``encoder`` are closed at the end, also if the reader leaves before.
    """
    try:
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                if ready := await asyncio.to_thread(encoder.add, piece):
                    yield ready
                if each is not None:
                    each(piece)
        yield await asyncio.to_thread(encoder.end)
    finally:
        encoder.close()
