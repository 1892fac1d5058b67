"""The C library's allocator, told how a server lives: long, with many threads that take turns.

glibc gives every thread an arena of its own, up to eight a core, and an arena keeps what its threads once needed at the
same time. Ours hand large buffers from thread to thread (a frame is decoded in one, packed in another, stored by a
third), so that each arena grows to the peak of all: 50 MiB more after ten minutes at 200 steps a second, and creeping
for hours. Of two arenas, too, one has holes where the other has no room: after five minutes of a soak they had 14 MiB
free between what was in use, one has 6. Threads that take turns at Python's lock gain nothing from more of them.

What one keeps grew with every busier moment, too. Free memory goes back to the system by itself only from the end of an
arena, and some page of SQLite's or a small object always lies there: it is given back from the middle as well, now and
then.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable

ARENAS = 1
TRIM_EVERY = 20.0  # seconds
_M_ARENA_MAX = -8  # malloc.h


def limit_arenas(count: int = ARENAS) -> bool:
    """For threads that start from now on. False, and nothing done, where the C library has no such setting, or where
    the environment (MALLOC_ARENA_MAX) has set it."""
    if sys.platform != "linux" or "MALLOC_ARENA_MAX" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and mallopt(_M_ARENA_MAX, count) == 1


def trim() -> bool:
    """Give whole free pages of all arenas back to the system. False where there was none, or where the C library
    cannot. Takes a few milliseconds, without Python's lock; for a thread."""
    if sys.platform != "linux":
        return False
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    return malloc_trim is not None and malloc_trim(ctypes.c_size_t(0)) == 1


async def keep_trimmed(every: float = TRIM_EVERY, trim: Callable[[], object] = trim) -> None:
    """`trim` every so many seconds, in a thread, until cancelled."""
    while True:
        await asyncio.sleep(every)
        await asyncio.to_thread(trim)
