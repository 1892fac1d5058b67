"""How many arenas the allocator makes for the threads of a server, and what it gives back."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from server.allocator import keep_trimmed
from tests.support.embedded import embedded
from tests.support.processes import arenas

is_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no arenas")

THREADS = """
import ctypes, os, sys, threading
from server.allocator import limit_arenas
from tests.support.processes import arenas

if sys.argv[1] == "limited":
    assert limit_arenas()
barrier = threading.Barrier(9)

def allocate() -> None:
    address = libc.malloc(20_000)
    barrier.wait(30)
    barrier.wait(30)
    libc.free(ctypes.c_void_p(address))

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
barrier.wait(30)
print(arenas(os.getpid()))
barrier.wait(30)
"""

HOLES = """
import os
from server.allocator import trim
from tests.support.processes import anonymous_mib

kept = [b"x" * (64 * 1024) for _ in range(1024)]
kept = [kept[-1]]
full = anonymous_mib(os.getpid())
assert trim()
print(full - anonymous_mib(os.getpid()))
"""


def said(script: str, *arguments: str) -> str:
    """By a process whose environment tells the allocator nothing."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout


@is_glibc
def test_threads_share_an_arena_once_they_are_limited() -> None:
    assert int(said(THREADS, "limited")) == 0 < int(said(THREADS, "unlimited")), "heaps beside that of the process"


@is_glibc
def test_a_server_has_no_arena_beside_that_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries start threads as they are imported: the arena of one of them was shared by all others."""
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    with embedded(tmp_path) as server, server.api() as api:
        assert api.get("/runs").is_success
        assert arenas(server.process.pid) == 0


@is_glibc
def test_free_memory_before_the_end_of_an_arena_is_given_back() -> None:
    assert 60 < float(said(HOLES)) < 70, "MiB, of the 64 that were freed"


def test_it_is_given_back_again_and_again() -> None:
    trimmed: list[int] = []

    async def until_the_third_time() -> None:
        third = asyncio.Event()
        loop = asyncio.get_running_loop()

        def trim() -> None:
            trimmed.append(len(trimmed))
            if len(trimmed) == 3:
                loop.call_soon_threadsafe(third.set)

        task = asyncio.create_task(keep_trimmed(0.0, trim))
        async with asyncio.timeout(20):
            await third.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(until_the_third_time())
    assert len(trimmed) >= 3
