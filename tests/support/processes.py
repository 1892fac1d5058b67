"""What the kernel knows of another process."""

from __future__ import annotations

import os
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")  # bytes
MIB = 1024 * 1024


def resident_mib(pid: int) -> float:
    """Memory in RAM, MiB. Raises `OSError` when there is no such process."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE / MIB


def anonymous_mib(pid: int) -> float:
    """Memory in RAM that is no file's, MiB: what the process allocated. Raises `OSError` when there is no such
    process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(kib) / 1024
