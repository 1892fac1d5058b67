"""The settings of a run with one key for each value, by which runs are compared. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from client_sdk.answers import RunSummary

MAX_DEPTH: Final = 6
HIDDEN: Final = ("imported_names", "followed_log")
"""Keys of the configuration that an import or a follower of logs writes for itself."""


def flat(config: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """Return a nested configuration with one key for each value, joined by dots.

    >>> flat({"model": {"width": 64, "layers": [1, 2]}, "lr": 0.1})
    {'model.width': 64, 'model.layers': [1, 2], 'lr': 0.1}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and depth < MAX_DEPTH:
            found |= flat(value, f"{name}.", depth + 1)
        elif name not in HIDDEN:
            found[name] = value
    return found


def settings_of(run: RunSummary) -> dict[str, Any]:
    """Return the configuration of a run, and what its optimizer and model say of themselves.

    A key of the configuration wins over the same key of the optimizer.
    """
    known: dict[str, Any] = {}
    if run.optimizer is not None:
        known = {f"optimizer.{name}": value for name, value in msgspec.structs.asdict(run.optimizer).items()}
        known = {name: value for name, value in known.items() if value is not None and name != "optimizer.family"}
    if run.parameter_count:
        known |= {"parameters": run.parameter_count, "layers": run.layer_count}
    if run.rank_count > 1:
        known["ranks"] = run.rank_count
    return {**known, **flat(run.config)}
