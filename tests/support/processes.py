"""What the kernel knows of another process."""

from __future__ import annotations

import os
import re
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")  # bytes
MIB = 1024 * 1024
ARENA = 64 * MIB
"""Bytes that glibc reserves for the heap of an arena, and what its address is a multiple of."""


def resident_mib(pid: int) -> float:
    """Memory in RAM, MiB. Raises `OSError` when there is no such process."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE / MIB


def anonymous_mib(pid: int) -> float:
    """Memory in RAM that is no file's, MiB: what the process allocated. Raises `OSError` when there is no such
    process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(kib) / 1024


def arenas(pid: int) -> int:
    """Arenas that threads have, beside the heap of the process."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    found = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0 *\n\2-([0-9a-f]+) ---p", maps, re.M)
    return sum(int(start, 16) % ARENA == 0 and int(end, 16) - int(start, 16) >= ARENA for start, _, end in found)
