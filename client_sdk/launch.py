"""Rank of this process in a distributed training, and the run id that all of its ranks derive independently.

The ranks must agree without communication, because any of them may never log. They share the environment that the
launcher set, and on one machine the launcher itself: their parent process, which outlives elastic restarts. Reads only
the environment that it is given and `/proc`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ENV_RANK: Final = "RANK"  # this and the others are set by torchrun or a compatible launcher
ENV_WORLD_SIZE: Final = "WORLD_SIZE"
ENV_LOCAL_WORLD_SIZE: Final = "LOCAL_WORLD_SIZE"
ENV_LAUNCH_ID: Final = "TORCHELASTIC_RUN_ID"
ENV_MASTER_ADDR: Final = "MASTER_ADDR"
ENV_MASTER_PORT: Final = "MASTER_PORT"
ENV_SLURM_JOB: Final = "SLURM_JOB_ID"

NO_LAUNCH_ID: Final = "none"
"""Value of TORCHELASTIC_RUN_ID when `--rdzv-id` was not given to torchrun."""
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Position of this process in the launch that started it."""

    rank: int
    """Rank of this process; 0 for a process that trains alone."""
    run_id: str | None
    """Run id that all ranks of a launch share, also after an elastic restart; None for a process that trains alone."""

    @classmethod
    def read(cls, project: str, environ: Mapping[str, str]) -> Launch:
        """Return the launch from the variables that launchers set. Invalid values are ignored.

        >>> Launch.read("gpt-small", {})
        Launch(rank=0, run_id=None)
        >>> nodes = {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "SLURM_JOB_ID": "71"}
        >>> first, tenth = (Launch.read("gpt-small", {**nodes, "RANK": rank}) for rank in ("0", "9"))
        >>> first.run_id == tenth.run_id
        True
        """
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
    """Return an identity of the parent process that no other process of this machine has, before or after it."""
    parent = os.getppid()
    try:
        boot = BOOT_ID.read_text(encoding="ascii").strip()
        # The 22nd field is the start time; the second, the name, is in brackets and may contain blanks.
        started = (
            Path(f"/proc/{parent}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
    except (OSError, IndexError):
        return (str(parent),)
    return boot, str(parent), started
