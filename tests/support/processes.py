"""Memory of other processes, as the kernel reports it."""

from __future__ import annotations

import os
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
"""Size of a page in bytes."""
MIB = 1024 * 1024


def resident_mib(pid: int) -> float:
    """Return the resident memory in MiB. Raises `OSError` if there is no such process."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE / MIB


def anonymous_mib(pid: int) -> float:
    """Return the memory that a process has allocated and uses, in MiB. Raises `OSError` if there is none."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(kib) / 1024
