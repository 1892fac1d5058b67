"""What the kernel knows of another process."""

from __future__ import annotations

import os
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")  # bytes
MIB = 1024 * 1024


def resident_mib(pid: int) -> float:
    """Memory in RAM, MiB. Raises `OSError` when there is no such process."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE / MIB
