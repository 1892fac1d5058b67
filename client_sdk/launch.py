"""Which process of a distributed training this is, and the run id that all of its ranks find by themselves.

The ranks must agree without talking, as any of them may never log. What they share is the environment that the launcher
made for them, and on one machine the launcher itself, their parent process, which outlives elastic restarts.
Reads the environment it is given and `/proc`; nothing else.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ENV_RANK: Final = "RANK"  # this and the others are set by torchrun, or by whoever stands in for it
ENV_WORLD_SIZE: Final = "WORLD_SIZE"
ENV_LOCAL_WORLD_SIZE: Final = "LOCAL_WORLD_SIZE"
ENV_LAUNCH_ID: Final = "TORCHELASTIC_RUN_ID"
ENV_MASTER_ADDR: Final = "MASTER_ADDR"
ENV_MASTER_PORT: Final = "MASTER_PORT"
ENV_SLURM_JOB: Final = "SLURM_JOB_ID"

NO_LAUNCH_ID: Final = "none"
"""What torchrun says where nobody gave `--rdzv-id`."""
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What the environment says of this process and of those it trains with."""

    rank: int
    run_id: str | None
    """The same in all ranks, another for each launch; None for a process that trains alone."""

    @classmethod
    def read(cls, project: str, environ: Mapping[str, str]) -> Launch:
        """From the variables that launchers set. What makes no sense is ignored."""
        rank, world_size = _number(environ, ENV_RANK, 0), _number(environ, ENV_WORLD_SIZE, 1)
        if world_size < 2 or ENV_RANK not in environ:
            return cls(rank=rank, run_id=None)
        if _number(environ, ENV_LOCAL_WORLD_SIZE, 0) == world_size:
            facts = ("launcher", *_parent())
        else:
            identity = environ.get(ENV_LAUNCH_ID, NO_LAUNCH_ID)
            job = environ.get(ENV_SLURM_JOB, "")
            facts = ("launch", identity, job)
            if identity == NO_LAUNCH_ID and not job:
                facts += (environ.get(ENV_MASTER_ADDR, ""), environ.get(ENV_MASTER_PORT, ""))
        digest = hashlib.blake2s("\0".join((project, *facts)).encode("utf-8", "replace"), digest_size=16)
        return cls(rank=rank, run_id=digest.hexdigest())


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else default


def _parent() -> tuple[str, ...]:
    """The parent process, told apart from every other one of this machine, before and after."""
    parent = os.getppid()
    try:
        boot = BOOT_ID.read_text(encoding="ascii").strip()
        # the 22nd field is the start time; the second, the name, is in brackets and may hold blanks
        started = (
            Path(f"/proc/{parent}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
    except (OSError, IndexError):
        return (str(parent),)
    return boot, str(parent), started
