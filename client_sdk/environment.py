"""The environment of a training process: what one needs to know of machine and software to run it again.

Nothing is imported, started or initialised for it: it reads modules that are loaded, and files of the git repository.
The arguments of the command line are left out, because they may hold secrets.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

PACKAGES: Final = (
    "torch", "numpy", "transformers", "accelerate", "lightning", "trl", "peft", "deepspeed", "keras", "bitsandbytes",
    "triton",
)  # fmt: skip
"""Packages whose versions are told if the training has loaded them."""
MAX_GPUS: Final = 64
MAX_PARENTS: Final = 32
"""Folders above the script in which a git repository is looked for."""
COMMIT_CHARS: Final = 40


def describe(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the environment of this process; what cannot be found out is left out. Never raises.

    GPUs are named once the training has initialised CUDA, and never initialised for it.
    """
    found: dict[str, Any] = {}
    for name, read in (
        ("host", platform.node),
        ("system", _system),
        ("python", platform.python_version),
        ("cpus", os.cpu_count),
        ("script", _script),
        ("git_commit", _git_commit),
        ("packages", _packages),
        ("cuda", _cuda),
        ("gpus", _gpus),
        ("processes", lambda: int(environ.get("WORLD_SIZE") or 1)),
    ):
        # A description is no reason to disturb a training.
        with contextlib.suppress(Exception):
            value = read()
            if value:
                found[name] = value
    return found


def _system() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}".strip()


def _script() -> str:
    """Return the script or the module of the process, without its arguments."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return f"-m {spec.name.removesuffix('.__main__')}"
    path = getattr(main, "__file__", None)
    return Path(path).name if path else "interactive"


def _packages() -> dict[str, str]:
    loaded = ((name, getattr(sys.modules.get(name), "__version__", None)) for name in PACKAGES)
    return {name: str(version) for name, version in loaded if version is not None}


def _cuda() -> str | None:
    torch = sys.modules.get("torch")
    return None if torch is None else torch.version.cuda


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    return [torch.cuda.get_device_name(index) for index in range(min(torch.cuda.device_count(), MAX_GPUS))]


def _git_commit() -> str | None:
    """Return the commit that is checked out where the script lies, or in the working directory without a script."""
    path = getattr(sys.modules["__main__"], "__file__", None)
    return commit_at(Path(path).resolve().parent if path else Path.cwd())


def commit_at(folder: Path) -> str | None:
    """Return the commit that is checked out in a folder or in the nearest one above it; None without a repository."""
    for place in (folder, *folder.parents[:MAX_PARENTS]):
        entry = place / ".git"
        if entry.exists():
            return _head_of(entry)
    return None


def _head_of(entry: Path) -> str | None:
    """Return the commit of a `.git` folder, or of the file that a further work tree has in its place."""
    named = entry.read_text().partition("gitdir:")[2].strip() if entry.is_file() else entry.name
    folder = (entry.parent / named).resolve()
    head = (folder / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return head[:COMMIT_CHARS]
    name = head.partition(":")[2].strip()
    common = folder / "commondir"
    root = (folder / common.read_text().strip()).resolve() if common.exists() else folder
    if (root / name).exists():
        return (root / name).read_text().strip()[:COMMIT_CHARS]
    packed = root / "packed-refs"
    lines = packed.read_text().splitlines() if packed.exists() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {name}")), None)
