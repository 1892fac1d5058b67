"""The C library's allocator, told how a server lives: long, with many threads that take turns.

glibc gives every thread an arena of its own, up to eight a core, and an arena keeps what its threads once needed at the
same time. Ours hand large buffers from thread to thread (a frame is decoded in one, packed in another, stored by a
third), so that each arena grows to the peak of all: 50 MiB more after ten minutes at 200 steps a second, and creeping
for hours. Threads that take turns at Python's lock gain nothing from more arenas than two.
"""

from __future__ import annotations

import ctypes
import os
import sys

ARENAS = 2
_M_ARENA_MAX = -8  # malloc.h
_ENVIRONMENT = "MALLOC_ARENA_MAX"


def limit_arenas(count: int = ARENAS) -> bool:
    """For threads that start from now on. False, and nothing done, where the C library has no such setting, or where
    the environment (MALLOC_ARENA_MAX) has set it."""
    if sys.platform != "linux" or _ENVIRONMENT in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and mallopt(_M_ARENA_MAX, count) == 1
