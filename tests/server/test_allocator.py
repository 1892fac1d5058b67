"""How many arenas the allocator makes for the threads of a server."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

THREADS = """
import ctypes, re, sys, threading
from pathlib import Path
from server.allocator import limit_arenas

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
starts = re.findall(r"^([0-9a-f]+)-[0-9a-f]+ rw-p 00000000 00:00 0 *$", Path("/proc/self/maps").read_text(), re.M)
print(sum(int(start, 16) % (64 * 2**20) == 0 for start in starts))
barrier.wait(30)
"""


def arenas(mode: str) -> int:
    """Heaps of threads in a process with eight of them."""
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    command = [sys.executable, "-c", THREADS, mode]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no arenas")
def test_threads_share_an_arena_once_they_are_limited() -> None:
    assert arenas("limited") <= 1 < arenas("unlimited")
