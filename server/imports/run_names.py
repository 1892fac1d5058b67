"""Names of runs whose files are called the same in every folder, such as Lightning's ``version_0/metrics.csv``."""

from __future__ import annotations

import re
from pathlib import Path

GENERIC = frozenset(
    [
        "metrics",
        "log",
        "logs",
        "main",
        "train",
        "training",
        "train_log",
        "training_log",
        "trainer_state",
        "history",
        "progress",
        "results",
        "output",
        "stdout",
        "events",
        "scalars",
    ]
)
"""File names without suffix, in lower case, that tell nothing about the run."""

_NUMBERED = re.compile(r"(version|checkpoint|run|trial|seed|exp|job)?[-_]?\d+", re.IGNORECASE)


def name_of(path: Path, root: Path | None = None) -> str:
    """Return a name for the run of a file.

    A generic file name gives way to the path of its folder below ``root``, the folder that is imported, or to the
    name of its folder, preceded by that of the next folder if it is only a number.

    >>> name_of(Path("/a/lightning_logs/version_3/metrics.csv")), name_of(Path("/a/gpt.csv"))
    ('lightning_logs/version_3', 'gpt')
    >>> name_of(Path("/a/logs/big/metrics.csv"), Path("/a/logs"))
    'logs/big'
    """
    if path.stem.lower() not in GENERIC:
        return path.stem
    folder = path.resolve().parent
    if root is not None and folder.is_relative_to(root.resolve()):
        return str(Path(root.resolve().name) / folder.relative_to(root.resolve()))
    if _NUMBERED.fullmatch(folder.name) and folder.parent.name:
        return f"{folder.parent.name}/{folder.name}"
    return folder.name or path.stem
